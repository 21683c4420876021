"""What train sends to a worker, run for real under a scratch root; the training is a stand-in.

The unit is obeyed by `fake_systemctl.py`: it comes back after 75, is counted after 1, left alone
after 2 and 0.
"""

import configparser
import pathlib
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from safetensors import safe_open

from tests.deploy.conftest import ROOT, WHERE
from tests.deploy.test_worker import (  # noqa: F401  # the fixtures
    commit,
    install,
    make_repository,
    repository,
    start,
    two_workers,
    worker,
)
from wan_tpu.demo.data import all_scenes
from wan_tpu.pipeline.video_file import VideoWriter

UNIT = ROOT / "deploy" / "wan-tpu-train.service"

TRAINING = '''
"""Trains as `wan-tpu train` does, at once: obeys what stands in $HOME/behave."""
import json, os, pathlib, signal, sys, time

home, words = pathlib.Path(os.environ["HOME"]), sys.argv[2:]
behave = (home / "behave").read_text() if (home / "behave").exists() else ""
if words[0] == "status":
    print((pathlib.Path(words[1]) / "state.json").read_text())
    sys.exit()
if words[0] == "export":
    out = pathlib.Path(words[words.index("-o") + 1])
    out.write_text(f"learnt on {os.environ['JAX_PLATFORMS']}")
    sys.exit()
folder = pathlib.Path(words[words.index("-o") + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text('{"kind": "lora"}')
with (folder / "starts").open("a") as starts:
    starts.write(json.dumps({"words": words, "config": pathlib.Path(words[0]).read_text()}) + "\\n")

def say(state, **more):
    now = {"state": state, "stage": None, "step": 0, "steps": 9, "last_line": None, **more}
    (folder / "state.aside").write_text(json.dumps(now, indent=1))
    (folder / "state.aside").rename(folder / "state.json")

def save(*_):
    (folder / "saved").touch()
    say("stopped", step=3, last_line=time.time())
    os._exit(75)

signal.signal(signal.SIGTERM, save)
for code, word in ((2, "usage"), (1, "crash")):
    if behave == word:
        print(f"this is a {word}", flush=True)
        sys.exit(code)
if behave == "lost once" and not (home / "was-lost").exists():
    (home / "was-lost").touch()
    sys.exit(75)
say("running", stage="compile step")
if behave == "done":
    say("finished", step=9, last_line=time.time())
    sys.exit()
say("running", step=1, last_line=time.time(), loss=0.5, hours_left=2.0)
while True:
    time.sleep(1)
'''


@pytest.fixture
def trainable(repository):  # noqa: F811
    """A repository whose wan-tpu is a stand-in; at one commit."""
    module = repository / "wan_tpu" / "cli" / "main.py"
    module.parent.mkdir(parents=True)
    module.write_text(TRAINING)
    for package in (module.parent, module.parents[1]):
        (package / "__init__.py").touch()
    return repository


def prepared(machine, trainable, behave=""):
    """The release is installed, and this machine's places are the worker's."""
    places = '"${@//\\/etc\\/wan-tpu/$WAN_TPU_ROOT/etc/wan-tpu}"'
    inner = 'a=("${@//\\/var\\/lib\\/wan-tpu/$WAN_TPU_ROOT/var/lib/wan-tpu}")'
    machine.tool("sudo", f'set -- {places}\n{inner}\nexec "${{a[@]}}"')
    machine.tool("mountpoint", "exit 1")
    machine._answers.insert(0, {"match": "tar -C /var/lib/wan-tpu/tr", "times": -1, "run": True})
    machine.answer("never")
    (machine.here / "fox.toml").write_text("steps = 9\n")
    assert install(machine, trainable, commit(trainable, "one")).returncode == 0
    for root in machine.root.parent.iterdir():
        (root / "var/lib/wan-tpu/behave").write_text(behave)
    return machine


def train(machine, *flags):
    words = ("train", "wan", "fox.toml", *WHERE, "--timeout-seconds", "120")
    return machine.run(*words, *flags)


def starts(machine):
    path = machine.root / "var/lib/wan-tpu/runs/fox/starts"
    return path.read_text().splitlines()


def wait(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come")


def test_from_start_to_the_result(worker, trainable):  # noqa: F811
    prepared(worker, trainable)
    (worker.here / "clips").mkdir()
    (worker.here / "clips" / "a.txt").write_text("a fox")
    done = train(worker, "--data", "clips")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"wan/0: step 1 after \d+ s", done.stdout)
    state = worker.root / "var/lib/wan-tpu"
    assert (state / "training/fox/data/a.txt").read_text() == "a fox"
    (first,) = starts(worker)
    assert f'"--data", "{state}/training/fox/data"' in first
    assert "steps = 9" in first

    done = worker.run("status", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    assert "wan/0  active/running" in done.stdout
    assert "wan/0: fox: running, step 1 of 9, loss 0.5, 2.0 h left" in done.stdout

    done = worker.run("fetch", "wan", *WHERE, "fox", "--trained", "--to", "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("home/fox.safetensors\n")
    assert (worker.here / "home/fox.safetensors").read_text() == "learnt on cpu"

    done = worker.run("stop", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    assert (state / "runs/fox/saved").exists()
    assert not (worker.root / "run/wan-tpu-train/enabled").exists()
    assert len(starts(worker)) == 1  # 75 after a stop does not bring it back
    assert train(worker).returncode == 0  # goes on
    assert len(starts(worker)) == 2


def test_what_it_was_told_is_private(worker, trainable):  # noqa: F811
    prepared(worker, trainable)
    assert train(worker).returncode == 0
    env = worker.root / "etc/wan-tpu/training.env"
    assert env.stat().st_mode & 0o777 == 0o600
    assert "GROUP_SECRET" not in env.read_text()  # one worker needs none


def test_75_brings_it_back(worker, trainable):  # noqa: F811
    prepared(worker, trainable, "lost once")
    done = train(worker)
    assert done.returncode == 0, done.stdout
    assert len(starts(worker)) == 2
    assert not (worker.root / "opt/wan-tpu/training-failures").exists()


def test_2_does_not(worker, trainable):  # noqa: F811
    prepared(worker, trainable, "usage")
    done = train(worker)
    assert done.returncode == 1
    assert "the run ended and stays down; its last words" in done.stdout
    assert "this is a usage" in done.stdout
    assert len(starts(worker)) == 1


def test_0_does_not(worker, trainable):  # noqa: F811
    prepared(worker, trainable, "done")
    done = train(worker)
    assert done.returncode == 0, done.stdout
    wait(lambda: not (worker.root / "run/wan-tpu-train/supervisor").exists())
    done = worker.run("status", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    assert "fox: finished, step 9 of 9" in done.stdout
    assert len(starts(worker)) == 1


def test_failures_are_counted_and_end(worker, trainable):  # noqa: F811
    """Red when a run that fails each time is started for ever, which costs."""
    prepared(worker, trainable, "crash")
    done = train(worker)
    assert done.returncode == 1
    assert "this is a crash" in done.stdout
    wait(lambda: not (worker.root / "run/wan-tpu-train/supervisor").exists())
    assert len(starts(worker)) == 5
    (worker.root / "var/lib/wan-tpu/behave").write_text("")
    assert train(worker).returncode == 0  # a person's start counts anew


def test_service_and_training_do_not_take_each_other_s_chips(worker, trainable):  # noqa: F811
    prepared(worker, trainable)
    assert start(worker).returncode == 0
    done = train(worker)
    assert done.returncode == 1
    assert "the service runs here and has the chips: stop it first" in done.stdout
    assert worker.run("stop", "wan", *WHERE).returncode == 0
    assert train(worker).returncode == 0
    done = start(worker)
    assert done.returncode == 1
    assert "a run is being trained here and has the chips: stop it first" in done.stdout
    done = train(worker, "--run", "cat")
    assert done.returncode == 1
    assert "fox is being trained here: stop it first" in done.stdout


def test_a_commit_from_before_training(worker, trainable):  # noqa: F811
    (trainable / "deploy/training.sh").unlink()
    prepared(worker, trainable)
    done = train(worker)
    assert done.returncode == 1
    assert "cannot train" in done.stdout
    assert "nothing was trained here" in worker.run("fetch", "wan", *WHERE, "a", "--trained").stdout


@pytest.mark.slow
def test_a_release_that_trains_is_kept(worker, trainable):  # noqa: F811
    prepared(worker, trainable)
    assert train(worker).returncode == 0
    trains = (worker.root / "opt/wan-tpu/training").resolve()
    for number in range(4):
        install(worker, trainable, commit(trainable, str(number)))
    assert trains.exists()


def test_workers_that_share_no_folder_are_found_out(two_workers, trainable):  # noqa: F811
    prepared(two_workers, trainable)
    done = train(two_workers, "--output", "/var/lib/wan-tpu/runs/fox")  # each its own
    assert done.returncode == 1
    assert "is not the folder that worker 0 has" in done.stdout
    shared = two_workers.here / "shared"
    done = train(two_workers, "--output", str(shared / "fox"))
    assert done.returncode == 0, done.stdout
    assert [path.name for path in shared.iterdir()] == ["fox"]  # the mark is gone
    assert len((shared / "fox/starts").read_text().splitlines()) == 2
    env = (two_workers.root / "etc/wan-tpu/training.env").read_text()
    assert "WAN_TPU_GROUP_SECRET_FILE=" in env


def test_a_bucket_is_mounted(worker, trainable):  # noqa: F811
    """With a mount that links a folder instead: there is no bucket here."""
    prepared(worker, trainable)
    bucket = worker.here / "bucket"
    bucket.mkdir()
    worker.tool("gcsfuse", "exit 1")
    worker.tool(
        "mount",
        f'echo "$*" >> {worker.here}/mounts; rmdir "${{@: -1}}"; ln -s {bucket} "${{@: -1}}"',
    )
    worker._answers.insert(
        0,
        {"match": "buckets describe", "times": -1,
         "out": '{"hierarchical_namespace": {"enabled": true}}'},
    )  # fmt: skip
    worker.answer("never")
    done = train(worker, "--output", "gs://b/runs/fox")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (bucket / "runs/fox/starts").exists()
    (mount,) = (worker.here / "mounts").read_text().splitlines()
    assert re.match(r"-t gcsfuse -o rw,_netdev,\S*metadata_cache_ttl_secs=0\S* b /", mount)
    unit = (worker.root / "etc/systemd/system/wan-tpu-train.service").read_text()
    state = f"{worker.root}/var/lib/wan-tpu"
    assert f"RequiresMountsFor={state} {state}/buckets/b/runs\n" in unit


# --- the unit ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unit():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read_string(UNIT.read_text())
    return parser


def test_which_ends_bring_it_back(unit):
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"] == "2"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"  # 75 must not count
    assert unit["Unit"]["Conflicts"] == "wan-tpu.service"


def test_a_checkpoint_has_the_time_that_it_takes(unit):
    state_of_14b, slow_disk = 172e9, 200e6
    assert int(unit["Service"]["TimeoutStopSec"]) >= state_of_14b / slow_disk
    assert unit["Service"]["KillMode"] == "mixed"


def test_systemd_takes_the_unit(worker, trainable):  # noqa: F811
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    prepared(worker, trainable)
    assert train(worker).returncode == 0
    path = worker.root / "etc/systemd/system/wan-tpu-train.service"
    assert str(worker.root / "opt/wan-tpu/training/deploy/training.sh") in path.read_text()
    done = subprocess.run(
        ("systemd-analyze", "verify", str(path)), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_runs_is_there():
    """Every program of ours that the unit names."""
    for word in re.findall(r"/opt/wan-tpu/training/(\S+\.sh)", UNIT.read_text()):
        assert (pathlib.Path(ROOT) / word).stat().st_mode & 0o100, word


@pytest.mark.slow
def test_a_real_training_from_clips_to_its_adapter(worker, tmp_path):  # noqa: F811
    """wan-tiny, two steps, on this machine's CPU: the unit, its status, the result brought home."""
    prepared(worker, make_repository(tmp_path / "repository", with_server=True))
    worker.environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    clips = worker.here / "clips"
    clips.mkdir()
    rng = np.random.default_rng(0)
    for number, scene in enumerate(all_scenes()[:2]):
        with VideoWriter(clips / f"{number}.mp4", fps=8, width=64, height=64) as out:
            out.write(rng.integers(0, 256, (17, 64, 64, 3), np.uint8))
        (clips / f"{number}.txt").write_text(scene.prompt)
    (worker.here / "fox.toml").write_text(
        'preset = "lora-wan-tiny"\n[train]\nsteps = 2\nbatch = 2\n[optimiser]\nwarmup_steps = 0\n'
    )
    done = worker.run(
        *("train", "wan", "fox.toml", *WHERE, "--data", "clips", "--timeout-seconds", "480")
    )
    journal = worker.root / "journal"
    said = journal.read_text() if journal.exists() else ""
    assert done.returncode == 0, done.stdout + said
    wait(lambda: not (worker.root / "run/wan-tpu-train/supervisor").exists())
    done = worker.run("status", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    assert "fox: finished, step 2 of 2, loss " in done.stdout
    done = worker.run("fetch", "wan", *WHERE, "fox", "--trained")
    assert done.returncode == 0, done.stderr
    with safe_open(worker.here / "fox.safetensors", "np") as file:
        assert any(name.endswith("lora_A.weight") for name in file.keys())  # noqa: SIM118
