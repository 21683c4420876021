"""install, start, status, logs, tunnel, fetch, stop: exact commands and what they say."""

import json
import subprocess

import pytest

from tests.deploy.conftest import COMMIT, ROOT, WHERE, node, ssh_line

REPOSITORY = "https://example.com/wan-tpu.git"
SCRIPT = (ROOT / "deploy" / "worker.sh").read_text()
LIST = (
    "gcloud compute tpus tpu-vm list --project=my-project --zone=us-east5-b "
    "--filter=labels.wan-tpu=wan --format=json --quiet"
)
START_DEFAULTS = (
    "sudo bash -s -- start latest no-env-file WAN_TPU_HOST=127.0.0.1 WAN_TPU_PORT=8000 "
    "WAN_TPU_MODEL=wan-tiny WAN_TPU_DRAIN_SECONDS=120"
)


@pytest.fixture
def slice_(cloud):
    """A v6e-16 on which everything works."""
    cloud.slices(node())
    cloud.answer("-- start ", out=f"started {COMMIT}\n")
    cloud.answer("-- pack ", out="compiled programs")
    cloud.answer("-- secret", out="secret=0123456789abcdef\n")
    cloud.answer("ssh wan")
    return cloud


# --- install ----------------------------------------------------------------------------------


def test_install(slice_):
    done = slice_.run("install", "wan", *WHERE, "--repository", REPOSITORY, "--ref", COMMIT)
    assert done.returncode == 0, done.stderr
    command = f"sudo bash -s -- install {REPOSITORY} {COMMIT}"
    assert slice_.lines[:2] == [LIST, ssh_line(0, "true")]  # the key is made before the crowd comes
    assert sorted(slice_.lines[2:]) == [ssh_line(worker, command) for worker in range(4)]
    assert {call["stdin"] for call in slice_.calls[2:]} == {SCRIPT}


def git(folder, *words):
    name = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    done = subprocess.run(
        ("git", *name, *words), cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "one")
    git(folder, "tag", "-a", "v1", "-m", "one")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "two")
    return folder


@pytest.mark.parametrize(("ref", "commit"), [("main", "HEAD"), ("v1", "HEAD~1")])
def test_names_become_commits_before_any_worker_sees_them(slice_, repository, ref, commit):
    words = ("install", "wan", *WHERE, "--repository", str(repository), "--ref", ref)
    assert slice_.run(*words).returncode == 0
    wanted = git(repository, "rev-parse", commit)
    assert sum(f"install {repository} {wanted}" in line for line in slice_.lines) == 4


def test_a_ref_that_is_not_there(slice_, repository):
    words = ("install", "wan", *WHERE, "--repository", str(repository), "--ref", "v7")
    done = slice_.run(*words)
    assert done.returncode == 1
    assert "no branch or tag 'v7'" in done.stderr
    assert slice_.lines == [LIST]


def test_without_a_ref_it_is_the_commit_of_this_checkout(slice_):
    done = slice_.run("install", "wan", *WHERE, "--repository", REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert f"install {REPOSITORY} {git(ROOT, 'rev-parse', 'HEAD')}" in slice_.lines[-1]


def test_a_slice_that_was_taken_away(cloud):
    cloud.slices(node(state="PREEMPTED"))
    done = cloud.run("install", "wan", *WHERE, "--repository", REPOSITORY, "--ref", COMMIT)
    assert done.returncode == 1
    assert "wan is PREEMPTED" in done.stderr
    assert "delete wan" in done.stderr


def test_no_slice(cloud):
    cloud.slices()
    done = cloud.run("start", "wan", *WHERE)
    assert done.returncode == 1
    assert "labelled wan-tpu=wan in my-project, us-east5-b" in done.stderr


# --- start and stop -----------------------------------------------------------------------------


def test_start(slice_):
    done = slice_.run("start", "wan", *WHERE)
    assert done.returncode == 0, done.stderr
    lines, everyone = slice_.lines, range(4)
    # The leader drains first; a run that is trained is not stopped by that.
    assert lines[:2] == [LIST, ssh_line(0, "sudo bash -s -- stop service")]
    look = "sudo bash -s -- secret"
    assert sorted(lines[2:6]) == [ssh_line(worker, look) for worker in everyone]
    assert sorted(lines[6:10]) == [ssh_line(worker, START_DEFAULTS) for worker in everyone]
    assert lines[10] == ssh_line(0, "sudo bash -s -- ready 3600")
    assert lines[11] == ssh_line(0, "sudo bash -s -- pack /var/lib/wan-tpu/compiled")
    unpack = "sudo -u wan-tpu tar -C /var/lib/wan-tpu -xf -"
    assert sorted(lines[12:]) == [ssh_line(worker, unpack) for worker in (1, 2, 3)]
    assert {call["stdin"] for call in slice_.calls[12:]} == {"compiled programs"}
    assert "tunnel wan --project my-project --zone us-east5-b\n" in done.stdout
    assert "start wan --project my-project --zone us-east5-b --commit previous" in done.stdout


def test_start_with_model_layout_and_commit(slice_):
    flags = ("--model", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "--layout", "dp2-sp8", "--port", "9000")
    done = slice_.run("start", "wan", *WHERE, *flags, "--commit", "0123456")
    assert done.returncode == 0, done.stderr
    (line,) = {line.partition("--command=")[2] for line in slice_.lines if "-- start " in line}
    assert line.endswith(
        "start 0123456 no-env-file WAN_TPU_HOST=127.0.0.1 WAN_TPU_PORT=9000 "
        "WAN_TPU_MODEL=Wan-AI/Wan2.1-T2V-14B-Diffusers WAN_TPU_LAYOUT=dp2-sp8 "
        "WAN_TPU_DRAIN_SECONDS=120' --quiet"
    )


def test_a_model_of_a_bucket_is_copied_first(slice_):
    flags = ("--bucket", "gs://b/models/", "--model", "wan-14b")
    assert slice_.run("start", "wan", *WHERE, *flags).returncode == 0
    copy = "sudo bash -s -- copy-model gs://b/models/wan-14b /var/lib/wan-tpu/models/wan-14b"
    assert sorted(slice_.lines[1:5]) == [ssh_line(worker, copy) for worker in range(4)]
    assert sum("WAN_TPU_MODEL=/var/lib/wan-tpu/models/wan-14b " in x for x in slice_.lines) == 4


def test_workers_on_different_commits_are_not_left_to_hang(cloud):
    cloud.slices(node())
    cloud.answer("--worker=2 .*-- start ", out=f"started {COMMIT[::-1]}\n")
    cloud.answer("-- start ", out=f"started {COMMIT}\n")
    cloud.answer("ssh wan")
    done = cloud.run("start", "wan", *WHERE)
    assert done.returncode == 1
    assert f"{COMMIT[:12]} on wan/0, wan/1, wan/3; {COMMIT[::-1][:12]} on wan/2" in done.stderr
    assert not any("ready" in line for line in cloud.lines)


def test_not_ready_shows_every_worker(cloud):
    cloud.slices(node())
    cloud.answer("-- start ", out=f"started {COMMIT}\n")
    cloud.answer("-- ready ", out="12 s: compiling\nnot ready after 3600 s\n", exit=1)
    cloud.answer("--worker=1 .*-- status", out="unit=failed/failed\nrestarts=3\n")
    cloud.answer("-- status", out="unit=active/running\nrestarts=0\n")
    cloud.answer("ssh wan")
    done = cloud.run("start", "wan", *WHERE)
    assert done.returncode == 1
    assert "wan/0: 12 s: compiling" in done.stdout
    assert "wan/1  failed/failed" in done.stdout
    assert "logs wan" in done.stderr


def test_opening_needs_keys(slice_):
    done = slice_.run("start", "wan", *WHERE, "--open")
    assert done.returncode == 1
    assert "--api-keys-file" in done.stderr
    assert slice_.calls == []


def test_secrets_go_over_standard_input_alone(slice_):
    (slice_.here / "keys").write_text("hashed-secret-key\n")
    (slice_.here / "wan.env").write_text("HF_TOKEN=hf_secret\n")
    flags = ("--open", "--api-keys-file", "keys", "--env-file", "wan.env")
    done = slice_.run("start", "wan", *WHERE, *flags)
    assert done.returncode == 0, done.stderr
    send = (
        "sudo sh -ec 'umask 077; cat >{0}.new; test -s {0}.new; chown {1}: {0}.new; "
        "mv {0}.new {0}; echo wan-tpu: sent'"
    )
    env = send.format("/etc/wan-tpu/extra.env", "root")
    keys = send.format("/etc/wan-tpu/api-keys", "wan-tpu")
    assert sorted(slice_.lines[1:5]) == [ssh_line(worker, env) for worker in range(4)]
    assert sorted(slice_.lines[5:9]) == [ssh_line(worker, keys) for worker in range(4)]
    assert {call["stdin"] for call in slice_.calls[1:5]} == {"HF_TOKEN=hf_secret\n"}
    assert {call["stdin"] for call in slice_.calls[5:9]} == {"hashed-secret-key\n"}
    said = "".join(slice_.lines) + done.stdout
    assert "hashed-secret-key" not in said
    assert "hf_secret" not in said
    started = [line for line in slice_.lines if "-- start " in line]
    assert all("-- start latest env-file WAN_TPU_HOST=0.0.0.0" in line for line in started)
    assert all("WAN_TPU_API_KEYS_FILE=/etc/wan-tpu/api-keys" in line for line in started)
    assert "http://34.1.2.0:8000" in done.stdout
    assert "--source-ranges=YOUR.ADDRESS/32" in done.stdout
    again = "--env-file wan.env --api-keys-file keys --open --commit previous\n"
    assert done.stdout.endswith(again)  # a start says everything anew
    assert not any("firewall" in line for line in slice_.lines)  # that stays the user's own step


def test_a_file_that_is_not_there(slice_):
    done = slice_.run("start", "wan", *WHERE, "--env-file", "nowhere.env")
    assert done.returncode == 1
    assert "nowhere.env is not there" in done.stderr
    assert slice_.lines == [LIST]


def test_a_file_that_cannot_be_one(slice_):
    (slice_.here / "empty.env").touch()
    assert "is empty" in slice_.run("start", "wan", *WHERE, "--env-file", "empty.env").stderr
    done = slice_.run("start", "wan", *WHERE, "--env-file", str(slice_.here))
    assert "cannot be read: Is a directory" in done.stderr


def test_stop(slice_):
    done = slice_.run("stop", "wan", *WHERE)
    assert done.returncode == 0, done.stderr
    stop = "sudo bash -s -- stop"
    assert slice_.lines[:2] == [LIST, ssh_line(0, stop)]
    assert sorted(slice_.lines[2:]) == [ssh_line(worker, stop) for worker in range(4)]
    assert "goes on costing about $43.20 an hour" in done.stdout


# --- watch --------------------------------------------------------------------------------------

STATUS = "\n".join(
    (
        "unit=active/running",
        "restarts=1",
        f"commit={COMMIT}",
        "chips=4 v6e",
        "hbm=41.5/125 GiB",
        "disk=37%",
        'readyz={"status":"ready"}',
        "queue=3.0\n",
    )
)


def test_status(cloud):
    cloud.slices(node())
    cloud.answer("-- status", out=STATUS)
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 0, done.stderr
    assert sorted(cloud.lines[1:]) == [ssh_line(w, "sudo bash -s -- status") for w in range(4)]
    words = f"wan/3 active/running 1 {COMMIT[:12]} 4 v6e 41.5/125 GiB 37%"
    assert words in " ".join(done.stdout.split())
    assert "wan/0: ready; 3 jobs wait" in done.stdout


def test_status_is_an_exit_code(cloud):
    cloud.slices(node())
    down = STATUS.replace("active/running", "activating/auto-restart")
    cloud.answer("--worker=2 .*-- status", out=down)
    missing = {"status": "not_ready", "missing": ["the engine is compiling"]}
    waiting = STATUS.replace('{"status":"ready"}', json.dumps(missing))
    cloud.answer("--worker=0 .*-- status", out=waiting)
    cloud.answer("-- status", out=STATUS)
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "wan/2  activating/auto-restart" in done.stdout
    assert "not ready: the engine is compiling; 3 jobs wait" in done.stdout


def test_status_of_a_worker_out_of_reach(cloud):
    cloud.slices(node())
    cloud.answer("--worker=1", err="ERROR: no route\n", exit=255)
    cloud.answer("-- status", out=STATUS)
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "wan/1  no ssh" in done.stdout


def test_status_while_the_request_waits(cloud):
    from tests.deploy.conftest import request

    cloud.slices()
    waiting = request(state="WAITING_FOR_RESOURCES")
    cloud.answer("queued-resources list", out=json.dumps([waiting]))
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "queued resource wan: WAITING_FOR_RESOURCES" in done.stdout


JOURNAL = "sudo journalctl --unit=wan-tpu --unit=wan-tpu-train --no-pager --output=short-iso"


def test_logs(slice_):
    assert slice_.run("logs", "wan", *WHERE).returncode == 0
    journal = f"{JOURNAL} --lines=100"
    assert sorted(slice_.lines[1:]) == [ssh_line(worker, journal) for worker in range(4)]


def test_logs_of_one_worker(slice_):
    words = ("logs", "wan", *WHERE, "--worker", "2", "--lines", "5", "--follow")
    assert slice_.run(*words).returncode == 0
    journal = f"{JOURNAL} --lines=5 --follow"
    assert slice_.lines[1:] == [ssh_line(2, journal)]
    assert "no worker 9" in slice_.run("logs", "wan", *WHERE, "--worker", "9").stderr


# --- reach --------------------------------------------------------------------------------------


def test_tunnel(slice_):
    done = slice_.run("tunnel", "wan", *WHERE, "--local-port", "18765")
    assert done.returncode == 0, done.stderr
    assert slice_.lines[1] == (
        "gcloud alpha compute tpus tpu-vm ssh wan --project=my-project --zone=us-east5-b "
        "--worker=0 --ssh-flag=-oServerAliveInterval=30 --tunnel-through-iap --quiet "
        "-- -N -o ExitOnForwardFailure=yes -L 18765:127.0.0.1:8000"
    )
    assert "http://127.0.0.1:18765 is wan until Ctrl-C" in done.stdout


def test_tunnel_to_the_second_of_two_slices(cloud):
    cloud.slices(node("wan-1"), node("wan-0"))
    cloud.answer("ssh wan-1")
    words = ("tunnel", "wan", *WHERE, "--local-port", "18766", "--slice", "1")
    assert cloud.run(*words).returncode == 0
    assert "no slice 2; there are 2" in cloud.run(*words[:-1], "2").stderr
    assert "--slice is -1; expected 0 or more" in cloud.run(*words[:-1], "-1").stderr


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999"])
def test_a_local_port_that_is_none(slice_, port):
    done = slice_.run("tunnel", "wan", *WHERE, "--local-port", port)
    assert done.returncode == 1
    assert f"--local-port is {port}; expected 1 to 65535" in done.stderr


def test_numbers_that_no_verb_can_mean(slice_):
    for words in (
        ("start", "wan", "--timeout-seconds", "0"),
        ("logs", "wan", "--lines", "-5"),
        ("logs", "wan", "--worker", "-1"),
        ("fetch", "wan", "video_1", "--slice", "-1"),
    ):
        done = slice_.run(*words, *WHERE)
        assert done.returncode == 1
        assert f"{words[-2]} is {words[-1]}; expected" in done.stderr
    assert slice_.calls == []


def test_a_port_that_is_taken(slice_):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = slice_.run("tunnel", "wan", *WHERE, "--local-port", str(port))
    assert done.returncode == 1
    assert f"--local-port {port + 1}" in done.stderr


@pytest.mark.parametrize(
    ("way", "track", "flag"),
    [("external", "gcloud compute", ""), ("internal", "gcloud compute", "--internal-ip")],
)
def test_other_ways_of_ssh(slice_, way, track, flag):
    assert slice_.run("logs", "wan", *WHERE, "--ssh", way).returncode == 0
    assert slice_.lines[1].startswith(f"{track} tpus tpu-vm ssh wan ")
    assert "--tunnel-through-iap" not in slice_.lines[1]
    assert flag in slice_.lines[1]


def test_fetch(cloud, tmp_path):
    """The bytes are a real tar's, so that what arrives is what was there."""
    video = tmp_path / "var/lib/wan-tpu/data/videos/video_1a2b/video.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(bytes(range(256)) * 1000)
    cloud.slices(node())
    cloud.tool("sudo", 'exec "$@"')
    cloud.environment["WAN_TPU_ROOT"] = str(tmp_path)
    cloud.answer("--command=sudo", run=True)
    done = cloud.run("fetch", "wan", "video_1a2b", *WHERE, "--to", "out")
    assert done.returncode == 0, done.stderr
    pack = "sudo bash -s -- pack /var/lib/wan-tpu/data/videos/video_1a2b"
    assert cloud.lines[1] == ssh_line(0, pack)
    fetched = cloud.here / "out" / "video_1a2b" / "video.mp4"
    assert fetched.read_bytes() == bytes(range(256)) * 1000
    assert done.stdout.splitlines()[-1] == "out/video_1a2b"
    assert [path.name for path in (cloud.here / "out").iterdir()] == ["video_1a2b"]


def test_fetch_of_a_path(slice_):
    slice_.run("fetch", "wan", "/var/lib/wan-tpu/data/jobs.sqlite", *WHERE)
    pack = "sudo bash -s -- pack /var/lib/wan-tpu/data/jobs.sqlite"
    assert slice_.lines[1] == ssh_line(0, pack)


def test_fetch_of_what_is_not_there_leaves_nothing(cloud):
    cloud.slices(node())
    cloud.answer("ssh", err="tar: video_x: Cannot stat\n", exit=2)
    done = cloud.run("fetch", "wan", "video_x", *WHERE, "--to", "out")
    assert done.returncode == 1
    assert "could not be copied" in done.stderr
    assert list((cloud.here / "out").iterdir()) == []


def test_fetch_to_where_no_folder_can_be(slice_):
    (slice_.here / "out").write_text("a file of the user's")
    for to, message in (("out", "out, a file; expected a folder"), ("out/in", "Not a directory")):
        done = slice_.run("fetch", "wan", "video_1a2b", *WHERE, "--to", to)
        assert done.returncode == 1
        assert message in done.stderr
    assert (slice_.here / "out").read_text() == "a file of the user's"
    assert not any(" pack " in line for line in slice_.lines)


@pytest.mark.parametrize("what", ["../etc/passwd", "a b", "x;reboot", "-x", "/var/../etc/shadow"])
def test_fetch_of_what_cannot_be_meant(slice_, what):
    done = slice_.run("fetch", "wan", *WHERE, "--", what)
    assert done.returncode == 1
    assert "neither a job's id nor a path" in done.stderr
    assert slice_.calls == []
