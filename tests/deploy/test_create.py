"""create: exact commands, waiting in the queue, refusals."""

import json
import shlex
import signal
import subprocess
import time

import pytest

from tests.deploy.conftest import WHERE, node, request

QUOTA = (
    "ERROR: (gcloud.compute.tpus.tpu-vm.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV6EPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-east5-b.\n"
)


def created(cloud, *flags):
    cloud.answer("create")
    cloud.slices(node())
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16", *flags)
    assert done.returncode == 0, done.stderr
    return cloud.lines[0]


def test_on_demand(cloud):
    assert created(cloud) == (
        "gcloud compute tpus tpu-vm create wan --project=my-project --zone=us-east5-b "
        "--accelerator-type=v6e-16 --version=v2-alpha-tpuv6e "
        "--labels=wan-tpu=wan,wan-tpu-slice=0 --tags=wan-tpu --quiet"
    )


def test_spot_with_everything(cloud):
    line = created(
        *(cloud, "--spot", "--labels", "team=video", "--service-account", "a@b.example"),
        *("--network", "net", "--subnetwork", "sub", "--runtime-version", "v9", "--account", "me"),
    )
    assert line == (
        "gcloud compute tpus tpu-vm create wan --project=my-project --zone=us-east5-b --account=me "
        "--accelerator-type=v6e-16 --version=v9 --labels=wan-tpu=wan,wan-tpu-slice=0,team=video "
        "--tags=wan-tpu --network=net --subnetwork=sub --service-account=a@b.example --spot --quiet"
    )


DISK = "projects/my-project/zones/us-east5-b/disks/wan-data"
WITH_DISK = ("create", "wan", *WHERE, "--data-disk", "500", "--type", "v6e-8")


def test_a_data_disk_is_made_first_and_attached(cloud):
    cloud.answer("disks list", out="[]")
    cloud.answer("create")
    cloud.slices(node())
    done = cloud.run(*WITH_DISK)
    assert done.returncode == 0, done.stderr
    assert cloud.lines[:3] == [
        "gcloud compute disks list --project=my-project --zones=us-east5-b "
        "--filter=labels.wan-tpu=wan --format=json --quiet",
        "gcloud compute disks create wan-data --project=my-project --zone=us-east5-b "
        "--size=500GB --type=hyperdisk-balanced --labels=wan-tpu=wan --quiet",
        "gcloud compute tpus tpu-vm create wan --project=my-project --zone=us-east5-b "
        "--accelerator-type=v6e-8 --version=v2-alpha-tpuv6e "
        "--labels=wan-tpu=wan,wan-tpu-slice=0 --tags=wan-tpu "
        f"--data-disk=source={DISK},mode=read-write --quiet",
    ]


def test_the_disk_of_an_earlier_slice_is_taken_as_it_is(cloud):
    cloud.answer("disks list", out=json.dumps([{"name": "wan-data"}, {"name": "wan-1-data"}]))
    cloud.answer("create")
    cloud.slices(node())
    done = cloud.run(*WITH_DISK)
    assert done.returncode == 0, done.stderr
    assert "# the disk wan-data is there, with what is on it" in done.stdout
    assert not any("disks create" in line for line in cloud.lines)
    assert f"--data-disk=source={DISK},mode=read-write" in cloud.lines[1]


def test_a_slice_that_is_refused_leaves_the_disk_and_says_so(cloud):
    cloud.answer("disks list", out="[]")
    cloud.answer("disks create")
    cloud.answer("tpu-vm create", err=QUOTA, exit=1)
    done = cloud.run(*WITH_DISK)
    assert done.returncode == 1
    assert "nothing costs, but for the data disk" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--type", "v6e-16"), "v6e-16 has 4: Google attaches a disk that is written to one"),
        (("--data-disk", "5"), "data-disk is '5'; expected GB, from 10 to 65536"),
        (("--data-disk", "500GB"), "data-disk is '500GB'; expected GB"),
    ],
)
def test_disks_that_cannot_be(cloud, flags, words):
    done = cloud.run(*WITH_DISK, *flags)
    assert done.returncode == 1
    assert words in done.stderr
    assert cloud.calls == []


def test_a_disk_needs_to_know_where_it_is(cloud):
    done = cloud.run("create", "wan", "--data-disk", "500", "--type", "v6e-8", "--zone", "us-a1-b")
    assert done.returncode == 1
    assert "project is not set" in done.stderr
    assert cloud.calls == []


def test_says_what_it_costs_and_what_comes_next(cloud):
    cloud.answer("create")
    cloud.slices(node())
    out = cloud.run("create", "wan", *WHERE, "--type", "v6e-16").stdout
    assert "16 chips on 4 workers" in out
    assert "about $43.20 an hour" in out
    assert "next: deploy/wan-tpu-deploy install wan --project my-project --zone us-east5-b" in out


def test_runtime_version_follows_the_type(cloud):
    cloud.answer("create")
    cloud.slices(node(kind="v5litepod-16"))
    cloud.run("create", "wan", *WHERE, "--type", "v5e-16")
    assert "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite" in cloud.lines[0]


def test_queue(cloud):
    cloud.answer("queued-resources create")
    for state in ("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        cloud.answer("queued-resources describe", out=json.dumps(request(state=state)), times=1)
    cloud.slices(node())
    flags = ("--type", "v6e-16", "--queued", "--spot", "--valid-until-duration", "6h")
    done = cloud.run("create", "wan", *WHERE, *flags)
    assert done.returncode == 0, done.stderr
    assert cloud.lines[0] == (
        "gcloud compute tpus queued-resources create wan --project=my-project --zone=us-east5-b "
        "--node-id=wan --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e "
        "--labels=wan-tpu=wan,wan-tpu-slice=0 --tags=wan-tpu --spot --valid-until-duration=6h "
        "--async --quiet"
    )
    assert done.stdout.count("wan: WAITING_FOR_RESOURCES") == 1  # says changes only
    assert "wan: ACTIVE" in done.stdout


def test_queue_that_fails_says_why_and_what_to_do(cloud):
    cloud.answer("queued-resources create")
    failed = request(state="FAILED", failedData={"error": {"message": "Quota limit exceeded"}})
    cloud.answer("queued-resources describe", out=json.dumps(failed))
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16", "--queued")
    assert done.returncode == 1
    assert "wan is FAILED Quota limit exceeded" in done.stderr
    assert "delete wan" in done.stderr


def test_flex_start_is_alpha(cloud):
    cloud.answer("queued-resources create")
    cloud.answer("queued-resources describe", out=json.dumps(request()))
    cloud.slices(node())
    flags = ("--type", "v6e-16", "--queued", "--max-run-duration", "4h")
    assert cloud.run("create", "wan", *WHERE, *flags).returncode == 0
    assert cloud.lines[0].startswith("gcloud alpha compute tpus queued-resources create wan ")
    assert "--provisioning-model=flex-start --max-run-duration=4h" in cloud.lines[0]


def test_slices_are_made_at_once_one_line_each(cloud):
    cloud.answer("create")
    cloud.slices(*(node(f"wan-{i}") for i in (2, 0, 1)))
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16", "--slices", "3")
    assert done.returncode == 0, done.stderr
    made = sorted(line for line in cloud.lines if " create " in line)
    assert [shlex.split(line)[5] for line in made] == ["wan-0", "wan-1", "wan-2"]
    assert [f"wan-tpu-slice={i} " in line for i, line in enumerate(made)] == [True] * 3
    rows = [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("  wan-")]
    assert rows == [[f"wan-{i}", what] for what in ("ok", "v6e-16") for i in range(3)]


def test_one_of_three_slices_is_refused(cloud):
    cloud.answer("create wan-1", err=QUOTA, exit=1)
    cloud.answer("create")
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16", "--slices", "3")
    assert done.returncode == 1
    assert "not created: wan-1. There, and it costs: wan-0, wan-2. " in done.stderr
    assert "delete wan" in done.stderr


REFUSALS = (
    QUOTA,
    "ERROR: The tpu.googleapis.com API requires a quota project, which is not set by default.",
    "ERROR: PERMISSION_DENIED: This API method requires billing to be enabled.",
    "ERROR: Permission denied on 'locations/us-east5-b' (or it may not exist).",
    "ERROR: Accelerator type v6e-16 is not available in zone us-east5-b",
    "ERROR: (gcloud.compute.tpus) Invalid choice: 'tpu-vm'.",
)


@pytest.mark.parametrize("error", REFUSALS, ids=[error[7:40] for error in REFUSALS])
def test_a_refusal_before_anything_was_made_costs_nothing(cloud, error):
    cloud.answer("create", err=error, exit=1)
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16")
    assert done.returncode == 1
    assert "Nothing was created, and nothing costs" in done.stderr
    assert "delete" not in done.stderr


def test_ctrl_c_says_that_google_goes_on(cloud):
    cloud.answer("create", sleep=60)
    words = ("create", "wan", *WHERE, "--type", "v6e-16")
    pipe = subprocess.PIPE
    process = cloud.start(*words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    while not cloud.calls:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Google may go on with what it has begun, which costs then" in err
    assert "status wan --project my-project" in err


VAGUE = "ERROR: INTERNAL: an internal error has occurred\n"


@pytest.mark.parametrize("error", [VAGUE, "ERROR: There is no more capacity in the zone"])
def test_an_error_that_may_have_left_something_is_looked_into(cloud, error):
    cloud.answer("create", err=error, exit=1)
    cloud.slices()
    cloud.answer("queued-resources list", out="[]")
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16")
    assert "Nothing was created, and nothing costs" in done.stderr


def test_what_an_error_left_is_named(cloud):
    cloud.answer("create wan-1", err=VAGUE, exit=1)
    cloud.answer("create", err=QUOTA, exit=1)
    cloud.slices(node("wan-1", state="CREATING"))
    cloud.answer("queued-resources list", out="[]")
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16", "--slices", "3")
    assert done.returncode == 1
    assert "not created: wan-0, wan-1, wan-2." in done.stderr
    again = "delete wan --project my-project --zone us-east5-b"
    assert (
        f"There, and it costs: wan-1. It goes with  deploy/wan-tpu-deploy {again}, " in done.stderr
    )


def test_what_an_error_left_and_nobody_can_see(cloud):
    cloud.answer("", err=VAGUE, exit=1)
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16")
    assert done.returncode == 1
    assert "Something may have been created" in done.stderr
    assert "status wan" in done.stderr


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (QUOTA, "iam-admin/quotas"),
        ('ERROR: There is no more capacity in the zone "us-east5-b"', "add --queued"),
        ("ERROR: You do not currently have an active account selected.", "gcloud auth login"),
        ("ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "roles/tpu.admin"),
        ("ERROR: Cloud TPU API has not been used in project 1", "services enable tpu.google"),
        ("ERROR: ALREADY_EXISTS: Resource already exists", "status NAME"),
        ("ERROR: Failed to find attribute [zone].", "--zone"),
        ("ERROR: The required property [project] is not set", "--project"),
    ],
)
def test_errors_are_shown_with_what_to_do(cloud, error, hint):
    cloud.answer("create", err=error, exit=1)
    done = cloud.run("create", "wan", *WHERE, "--type", "v6e-16")
    assert done.returncode == 1
    assert error.strip().splitlines()[0] in done.stdout
    assert hint in done.stdout
    tries = [line for line in cloud.lines if " create " in line]
    assert len(tries) == 1  # an error is not a flake: no second try


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--type", "v6e-12"), "there are v6e-1, v6e-4"),
        ((), "type is not set"),
        (("--type", "v6e-16", "--max-run-duration", "4h"), "add --queued"),
        (("--type", "v6e-16", "--queued", "--max-run-duration", "soon"), "such as 4h"),
        (("--type", "v6e-16", "--queued", "--spot", "--max-run-duration", "4h"), "drop one"),
        (("--type", "v5p-8", "--queued", "--max-run-duration", "4h"), "v6e and v5e"),
        (("--type", "v6e-16", "--slices", "0"), "from 1 to 64"),
        (("--type", "v6e-16", "--labels", "Team=Video"), "KEY=VALUE"),
        (("--type", "v6e-16", "--ssh", "pigeon"), "iap, external, internal"),
        (("--type", "v6e-16;reboot"), "shell characters"),
        (("--type", "v6e-16", "--zone", "us-east5"), "such as us-east5-b"),
        (("--type", "v6e-16", "--zone", "US-EAST5-B"), "expected us-east5-b"),
        (("--type", "v6e-16", "--zone", "moon"), "expected REGION-LETTER"),
        (("--type", "v6e-16", "--project", "My-Project"), "gcloud projects list"),
        (("--type", "v6e-16", "--slices", "\u0663"), "from 1 to 64"),
        (("--type", "v6e-16", "--network", "a(b"), "shell characters"),
    ],
)
def test_wrong_input_is_refused_before_gcloud(cloud, flags, message):
    done = cloud.run("create", "wan", *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert cloud.calls == []


def test_a_name_that_google_would_refuse(cloud):
    done = cloud.run("create", "My_Slice", "--type", "v6e-16")
    assert done.returncode == 1
    assert "lower-case letters" in done.stderr


def test_no_gcloud(cloud):
    (cloud.bin / "gcloud").unlink()
    cloud.environment["PATH"] = str(cloud.bin)
    done = cloud.run("create", "wan", "--type", "v6e-16")
    assert done.returncode == 1
    assert "cloud.google.com/sdk/docs/install" in done.stderr
