"""train: exact commands, what is refused before anything is sent, going on after preemption."""

import json

import pytest

from tests.deploy.conftest import COMMIT, WHERE, node, request, ssh_line
from tests.deploy.test_service import LIST, SCRIPT

DISK = {"dataDisks": [{"sourceDisk": "projects/p/zones/z/disks/wan-data"}]}
BUCKET = json.dumps({"name": "b", "hierarchical_namespace": {"enabled": True}})
DESCRIBE = "gcloud storage buckets describe gs://b --project=my-project --format=json --quiet"


def answers(cloud, *nodes):
    """A cloud in which everything works."""
    cloud.slices(*nodes)
    cloud.answer(" start fox ", out=f"started {COMMIT}\n")
    cloud.answer("-- secret", out="secret=0123456789abcdef\n")
    cloud.answer("buckets describe", out=BUCKET)
    cloud.answer("ssh wan")
    (cloud.here / "fox.toml").write_text('preset = "lora-wan2.1-1.3b-480p"\n')
    return cloud


@pytest.fixture
def one(cloud):
    """A v6e-8, one worker, with a data disk."""
    return answers(cloud, node(kind="v6e-8", workers=1, **DISK))


@pytest.fixture
def four(cloud):
    """A v6e-16, four workers."""
    return answers(cloud, node())


def worker_script(line):
    return f"sudo bash -s -- {line}"


def test_on_one_worker(one):
    done = one.run("train", "wan", "fox.toml", *WHERE)
    assert done.returncode == 0, done.stderr
    folder = "/var/lib/wan-tpu/runs/fox"
    config = "/var/lib/wan-tpu/training/fox/config.toml"
    send = (
        f"sudo sh -ec 'umask 077; cat >{config}.new; test -s {config}.new; "
        f"chown wan-tpu: {config}.new; mv {config}.new {config}; echo wan-tpu: sent'"
    )
    assert one.lines == [
        LIST,
        ssh_line(0, worker_script(f"train latest prepare fox {folder} -")),
        ssh_line(0, send),
        ssh_line(0, worker_script("train running stop")),
        ssh_line(0, worker_script(f"train latest start fox {folder} no-env-file")),
        ssh_line(0, worker_script("train running ready 3600")),
    ]
    assert one.calls[2]["stdin"] == 'preset = "lora-wan2.1-1.3b-480p"\n'
    assert {call["stdin"] for call in (one.calls[1], *one.calls[3:])} == {SCRIPT}
    assert "note:" not in done.stdout
    assert "fetch wan --project my-project --zone us-east5-b fox --trained" in done.stdout


def test_four_workers_share_a_bucket(four):
    done = four.run("train", "wan", "fox.toml", *WHERE, "--output", "gs://b/runs/fox")
    assert done.returncode == 0, done.stderr
    folder, everyone = "/var/lib/wan-tpu/buckets/b/runs/fox", range(4)
    prepare = worker_script(f"train latest prepare fox {folder} b")
    assert four.lines[:3] == [LIST, DESCRIBE, ssh_line(0, f"{prepare} leave")]
    others = [ssh_line(worker, f"{prepare} find") for worker in (1, 2, 3)]
    assert sorted(four.lines[3:6]) == others
    start = worker_script(f"train latest start fox {folder} no-env-file")
    assert sorted(line for line in four.lines if " start fox " in line) == [
        ssh_line(worker, start) for worker in everyone
    ]
    assert sum("-- secret" in line for line in four.lines) == 4  # they know each other by one
    assert four.lines[-1] == ssh_line(0, worker_script("train running ready 3600"))


def test_a_folder_that_all_have_mounted(four):
    done = four.run("train", "wan", "fox.toml", *WHERE, "--output", "/mnt/shared/fox/")
    assert done.returncode == 0, done.stderr
    assert "prepare fox /mnt/shared/fox - leave" in four.lines[1]
    assert not any("buckets describe" in line for line in four.lines)


def test_data_of_this_machine_goes_over_standard_input(one):
    (one.here / "clips").mkdir()
    (one.here / "clips" / "a.txt").write_text("a fox")
    done = one.run("train", "wan", "fox.toml", *WHERE, "--data", "clips", "--run", "fox-2")
    assert done.returncode == 0, done.stderr
    sent = [call for call in one.calls if "tar -C /var/lib/wan-tpu/training" in call["argv"][-2]]
    assert [("a fox" in call["stdin"], "./a.txt" in call["stdin"]) for call in sent] == [(1, 1)]
    (start,) = (line for line in one.lines if " start fox-2 " in line)
    assert "no-env-file --data /var/lib/wan-tpu/training/fox-2/data" in start


def test_data_of_a_bucket_is_copied_to_every_worker(four):
    where = ("--data", "gs://b/clips/", "--output", "/mnt/x/fox")
    assert four.run("train", "wan", "fox.toml", *WHERE, *where).returncode == 0
    copy = worker_script("copy-model gs://b/clips /var/lib/wan-tpu/training/fox/data")
    copied = [line for line in four.lines if "copy-model" in line]
    assert sorted(copied) == [ssh_line(worker, copy) for worker in range(4)]


def test_several_workers_without_a_place_that_they_share(four):
    done = four.run("train", "wan", "fox.toml", *WHERE)
    assert done.returncode == 1
    assert "wan has 4 workers, which keep a checkpoint together" in done.stderr
    assert four.lines == [LIST]


def test_a_bucket_in_which_folders_are_only_prefixes(cloud):
    """A checkpoint that is half written would look whole there."""
    cloud.slices(node(kind="v6e-8", workers=1))
    cloud.answer("buckets describe", out='{"name": "b"}')
    (cloud.here / "fox.toml").write_text("a = 1\n")
    done = cloud.run("train", "wan", "fox.toml", *WHERE, "--output", "gs://b")
    assert done.returncode == 1
    assert "gs://b has no hierarchical namespace" in done.stderr
    assert cloud.lines == [LIST, DESCRIBE]


def test_a_run_that_goes_with_its_slice_is_said(cloud):
    answers(cloud, node(kind="v6e-8", workers=1, schedulingConfig={"spot": True}))
    done = cloud.run("train", "wan", "fox.toml", *WHERE)
    assert done.returncode == 0, done.stderr
    assert "note: the run is on the boot disk of wan and goes with it, which spot" in done.stdout


def test_two_slices_are_not_one(cloud):
    answers(cloud, node("wan-0"), node("wan-1"))
    done = cloud.run("train", "wan", "fox.toml", *WHERE, "--output", "/mnt/x")
    assert done.returncode == 1
    assert "a run trains on one slice, and wan has 2" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no.toml",), "no.toml is not there"),
        (("empty.toml",), "empty.toml is empty"),
        (("fox.toml", "--run", "a/b"), "the run's name is 'a/b'"),
        (("fox.toml", "--data", "nowhere"), "nowhere, which is no folder here"),
        (("fox.toml", "--data", "fox.toml"), "fox.toml, which is no folder here"),
        (("fox.toml", "--data", "gs://b/$(x)"), "shell characters and .. are refused"),
        (("fox.toml", "--output", "runs/fox"), "expected gs://BUCKET/FOLDER, or the whole path"),
        (("fox.toml", "--output", "/mnt/../etc"), "shell characters and .. are refused"),
    ],
)
def test_wrong_input_is_said_before_gcloud_is_asked(one, words, message):
    (one.here / "empty.toml").touch()
    done = one.run("train", "wan", *words, *WHERE)
    assert done.returncode == 1
    assert message in done.stderr
    assert one.calls == []


def test_data_that_is_too_much_for_ssh(one):
    (one.here / "clips").mkdir()
    with (one.here / "clips" / "a.mp4").open("wb") as file:
        file.truncate(5 * 10**9)  # a hole
    done = one.run("train", "wan", "fox.toml", *WHERE, "--data", "clips")
    assert done.returncode == 1
    assert "clips has 5.0 GB" in done.stderr
    assert "gcloud storage rsync --recursive clips gs://BUCKET/FOLDER" in done.stderr


# --- status ---------------------------------------------------------------------------------------


def facts(**training):
    """What a worker says; of the run what is given, or what a good one would say."""
    said = {
        "state": "running", "step": 120, "steps": 1000, "loss": 0.12345, "hours_left": 3.42,
        "stage": None, "checkpoint": {"step": 100, "time": 0.0},
    }  # fmt: skip
    unit = training.pop("unit", "active/running")
    failures = training.pop("failures", 0)
    lines = (
        "unit=inactive/dead", "restarts=0", f"commit={COMMIT}", "run=fox",
        f"trainer={unit}", f"failures={failures}", f"training={json.dumps(said | training)}",
    )  # fmt: skip
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({}, 0, "fox: running, step 120 of 1000, loss 0.1235, 3.4 h left, kept: 100"),
        (
            {"step": 0, "loss": None, "stage": "compile step", "checkpoint": None},
            1,
            "fox: running, step 0 of 1000, compile step, no checkpoint yet",
        ),
        ({"state": "finished", "unit": "inactive/dead"}, 0, "fox: finished, step 120 of 1000"),
        ({"state": "killed", "unit": "inactive/dead"}, 1, "fox: killed, step 120 of 1000"),
        ({"unit": "active/running", "failures": 2}, 0, "failed 2 times lately"),
        ({"state": "killed", "unit": "activating/auto-restart"}, 1, "fox: killed"),
    ],
)
def test_status(cloud, changes, code, line):
    cloud.slices(node(kind="v6e-8", workers=1))
    cloud.answer("-- status", out=facts(**changes))
    done = cloud.run("status", "wan", *WHERE)
    assert line in done.stdout
    assert changes.get("unit", "active/running") in done.stdout
    assert done.returncode == code, done.stdout


def test_status_of_a_run_that_says_nothing_yet(cloud):
    cloud.slices(node(kind="v6e-8", workers=1))
    cloud.answer("-- status", out="unit=inactive/dead\nrun=fox\ntrainer=active/running\n")
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "fox: nothing to be seen of it yet (active/running)" in done.stdout


# --- going on -------------------------------------------------------------------------------------

REPOSITORY = ("--repository", "https://example.com/w.git")


def test_it_stays_until_the_run_is_done(one):
    one._answers.insert(0, {"match": "-- status", "times": 2, "out": facts()})
    one.answer("never")
    done_facts = facts(state="finished", step=1000, unit="inactive/dead")
    one._answers.insert(1, {"match": "-- status", "times": -1, "out": done_facts})
    one.answer("never")
    done = one.run("train", "wan", "fox.toml", *WHERE, "--keep-going")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 120 of 1000") == 1  # said once, though seen twice
    assert "fox: finished, step 1000 of 1000" in done.stdout
    assert "fetch wan --project my-project --zone us-east5-b fox --trained  brings" in done.stdout
    assert not any("delete" in line for line in one.lines)


def test_it_says_when_the_run_failed_for_good(one):
    one._answers.insert(
        0,
        {
            "match": "-- status",
            "times": -1,
            "out": facts(state="out of memory", unit="failed/failed"),
        },
    )
    one.answer("never")
    done = one.run("train", "wan", "fox.toml", *WHERE, "--keep-going")
    assert done.returncode == 1
    assert "fox ended and stays down (failed/failed)" in done.stderr


def test_a_slice_that_was_taken_away_is_made_anew(cloud):
    """Spot capacity of the queue: taken in the middle, made again with the same code and folder."""
    there = json.dumps([node(kind="v6e-8", workers=1, queuedResource="x/queuedResources/wan")])
    taken = json.dumps([node(kind="v6e-8", workers=1, state="PREEMPTED")])
    asked = json.dumps([request(state="SUSPENDED")])
    cloud.answer("tpu-vm list", out=there, times=1)  # train
    cloud.answer("tpu-vm list", out=taken, times=2)  # the watch, and delete
    cloud.answer("tpu-vm list", out="[]", times=2)  # it is gone; create looks
    cloud.answer("tpu-vm list", out=there)
    cloud.answer("queued-resources list", out=asked, times=1)
    cloud.answer("queued-resources list", out="[]")
    cloud.answer("queued-resources describe", out=json.dumps(request()))
    cloud.answer("queued-resources (create|delete)")
    done_facts = facts(state="finished", unit="inactive/dead")
    cloud.answer("-- status", out=done_facts)
    answers(cloud)
    flags = ("--type", "v6e-8", "--queued", "--spot", "--output", "gs://b/fox")
    done = cloud.run("train", "wan", "fox.toml", *WHERE, *flags, *REPOSITORY, "--keep-going")
    assert done.returncode == 0, done.stdout + done.stderr
    marks = (
        "-- train latest start fox", "queued-resources delete", "queued-resources create",
        f"-- install https://example.com/w.git {COMMIT}", f"-- train {COMMIT} start fox",
    )  # fmt: skip
    found = [mark for line in cloud.lines for mark in marks if mark in line]
    assert found == list(marks)
    assert "the slice was taken away: making it anew" in done.stdout
    folders = {
        line.split(" start fox ")[1].split()[0] for line in cloud.lines if "start fox" in line
    }
    assert folders == {"/var/lib/wan-tpu/buckets/b/fox"}


def test_the_result_is_fetched(one):
    one._answers.insert(0, {"match": "result fox", "times": -1, "out": "\0" * 1024})
    one.answer("never")
    done = one.run("fetch", "wan", *WHERE, "fox", "--trained", "--to", "here")
    assert done.returncode == 0, done.stderr
    assert one.lines[1] == ssh_line(0, worker_script("train running result fox"))
    assert "is no run's name" in one.run("fetch", "wan", *WHERE, "a/b", "--trained").stderr
