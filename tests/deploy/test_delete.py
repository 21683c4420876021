"""delete: asks, finds what was left behind, looks whether it is gone."""

import json
import os
import pty
import subprocess

from tests.deploy.conftest import WHERE, node, request

DELETE = ("delete", "wan", *WHERE)


def leftovers(cloud, requests, *, then=()):
    """What `queued-resources list` answers: first, and after the deletion."""
    cloud.answer("queued-resources list", out=json.dumps(requests), times=1)
    cloud.answer("queued-resources list", out=json.dumps(list(then)))


def test_a_slice_of_its_own(cloud):
    cloud.answer("tpu-vm list", out=json.dumps([node()]), times=1)
    cloud.slices()
    leftovers(cloud, [])
    cloud.answer("delete")
    done = cloud.run(*DELETE, "--yes")
    assert done.returncode == 0, done.stderr
    assert "about $43.20 an hour ($1,037 a day)" in done.stdout
    assert "may differ" in done.stdout
    assert "nothing named wan is left" in done.stdout
    assert cloud.lines[2] == (
        "gcloud compute tpus tpu-vm delete wan --project=my-project --zone=us-east5-b --quiet"
    )


def test_a_data_disk_stays_and_is_named(cloud):
    disks = [{"sourceDisk": "projects/my-project/zones/us-east5-b/disks/wan-data"}]
    made = node(kind="v6e-8", workers=1, dataDisks=disks)
    cloud.answer("tpu-vm list", out=json.dumps([made]), times=1)
    cloud.slices()
    leftovers(cloud, [])
    cloud.answer("delete")
    done = cloud.run(*DELETE, "--yes")
    assert done.returncode == 0, done.stderr
    assert "the disk wan-data stays, with jobs and models, and costs" in done.stdout
    command = "gcloud compute disks delete wan-data --project=my-project --zone=us-east5-b --quiet"
    assert f"  {command}  removes it" in done.stdout
    assert not any("disks" in line for line in cloud.lines)


def test_what_gclouds_filter_lets_through_too_much_stays(cloud):
    cloud.slices(node("theirs", labels={"wan-tpu": "WAN"}), node("others", labels={}))
    leftovers(cloud, [])
    assert cloud.run(*DELETE, "--yes").returncode == 0
    assert not any(" delete " in line for line in cloud.lines)


def test_a_slice_of_the_queue_goes_with_its_request(cloud):
    made = node(queuedResource="projects/p/locations/z/queuedResources/wan")
    cloud.answer("tpu-vm list", out=json.dumps([made]), times=1)
    cloud.slices()
    leftovers(cloud, [request(), request("other", label="someone-else")])
    cloud.answer("delete")
    done = cloud.run(*DELETE, "--yes")
    assert done.returncode == 0, done.stderr
    assert [line for line in cloud.lines if " delete " in line] == [
        "gcloud compute tpus queued-resources delete wan --project=my-project "
        "--zone=us-east5-b --force --quiet"
    ]


def test_requests_left_behind_are_found(cloud):
    cloud.slices()
    leftovers(cloud, [request("wan-1", "SUSPENDED"), request("wan-0", "FAILED")])
    cloud.answer("delete")
    done = cloud.run(*DELETE, "--yes")
    assert done.returncode == 0, done.stderr
    assert "queued resource wan-1: SUSPENDED" in done.stdout
    assert sum("queued-resources delete wan-" in line for line in cloud.lines) == 2


def test_what_is_still_there_is_said(cloud):
    cloud.slices(node())
    leftovers(cloud, [])
    cloud.answer("delete", err="ERROR: INTERNAL\n", exit=1)
    done = cloud.run(*DELETE, "--yes")
    assert done.returncode == 1
    assert "still there, and it may cost: wan" in done.stderr


def test_nothing_there(cloud):
    cloud.slices()
    leftovers(cloud, [])
    done = cloud.run(*DELETE)
    assert done.returncode == 0
    assert "nothing is labelled wan-tpu=wan in my-project, us-east5-b" in done.stdout


def test_nobody_to_ask(cloud):
    cloud.slices(node())
    leftovers(cloud, [])
    done = cloud.run(*DELETE)
    assert done.returncode == 1
    assert "give --yes" in done.stderr
    assert not any(" delete " in line for line in cloud.lines)


def ask(cloud, typed: str) -> tuple[int, str]:
    """Runs delete with somebody at the terminal; exit code and errors."""
    ours, theirs = pty.openpty()
    process = cloud.start(*DELETE, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(ours, f"{typed}\n".encode())
    _, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    return process.returncode, err


def test_the_wrong_name_deletes_nothing(cloud):
    cloud.slices(node())
    leftovers(cloud, [])
    returncode, err = ask(cloud, "yes")
    assert returncode == 1
    assert "not deleted" in err
    assert not any(" delete " in line for line in cloud.lines)


def test_the_name_deletes(cloud):
    cloud.answer("tpu-vm list", out=json.dumps([node()]), times=1)
    cloud.slices()
    leftovers(cloud, [])
    cloud.answer("delete")
    returncode, err = ask(cloud, "wan")
    assert returncode == 0, err
    assert any(" delete wan " in line for line in cloud.lines)
