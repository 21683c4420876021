"""`wan-tpu generate` with the same command in several processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.cli.test_profile import names
from tests.multihost.running import clean_environment, free_port
from tests.server.running import wait_for
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.image.picture import read_picture
from wan_tpu.multihost.lockstep import EXIT_LOST

PROMPT = "a blue square moving up on a gray background"
LAYOUT = ("--layout", "dp2-sp2-tp2")
"""Of all these tests with the real engine: its programs are compiled once."""

PICTURE = pathlib.Path(__file__).parents[2] / "docs" / "images" / "square.png"

WAN_TPU = pathlib.Path(sys.executable).with_name("wan-tpu")


class Command:
    """`wan-tpu generate` in two processes of four devices; options of single ones by number."""

    def __init__(self, folder, *options, of_process=None, started=(0, 1)):
        coordinator = f"127.0.0.1:{free_port()}"
        self.folder = folder
        self.processes = {}
        for number in started:
            words = [str(WAN_TPU), "generate", PROMPT, "--host-devices", "4"]
            words += ["--coordinator", coordinator, "--processes", "2", "--process-id", str(number)]
            with (folder / f"{number}.log").open("w") as log:
                self.processes[number] = subprocess.Popen(
                    [*words, *options, *(of_process or {}).get(number, ())],
                    cwd=folder,
                    env=clean_environment(),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )

    def log(self, number):
        return (self.folder / f"{number}.log").read_text()

    def ends(self):
        """(exit code, standard output) of each."""
        found = {}
        for number, process in self.processes.items():
            out, _ = process.communicate(timeout=500)
            found[number] = (process.returncode, out)
        return found


@pytest.fixture
def command(tmp_path):
    started = []

    def start(*options, **settings):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Command(folder, *options, **settings))
        return started[-1]

    yield start
    for each in started:
        for process in each.processes.values():
            process.kill()
            process.communicate()


def make_secret(file, secret):
    file.write_text(f"{secret}\n")
    file.chmod(0o600)
    return file


def test_process_0_writes_the_video_of_both(command, tmp_path):
    """Of a picture: both are given its file, and process 0's bytes are what both make it from.

    Each records its own part of a profile meanwhile, and they stay in step.
    """
    secret = ("--group-secret-file", str(make_secret(tmp_path / "secret", "s" * 32)))
    picture = ("--model", WAN_TINY_TI2V, "--image", str(PICTURE))
    options = (*picture, *secret, "--profile", "profiles", "--steps", "4", *LAYOUT)
    both = command("-o", "both.npy", *options)
    assert both.ends() == {0: (0, "both.npy\n"), 1: (0, "")}, both.log(0) + both.log(1)
    there = {path.name for path in both.folder.iterdir()}
    assert there == {"both.npy", "both.json", "0.log", "1.log", "profiles"}
    metadata = json.loads((both.folder / "both.json").read_text())
    assert metadata["num_processes"] == 2
    assert metadata["lockstep"]["processes"] == 2
    assert "process 1 of 2 follows 127.0.0.1:" in both.log(1)
    assert metadata["pictures"] == {"image": "128x128 as it is"}
    frames = np.load(both.folder / "both.npy")
    assert frames.shape == (17, 128, 128, 3)
    given = read_picture(PICTURE.read_bytes()).astype(int)
    assert np.abs(frames[0] - given).mean() < 5, "the first frame is not the picture"
    for number in (0, 1):
        trace = f"trace-1-process-{number}"
        assert f"wan-tpu: 3 steps are in profiles/{trace} (" in both.log(number)
        assert names(both.folder / "profiles" / trace) == ["denoise 2", "denoise 3", "denoise 4"]


def test_ctrl_c_on_process_0_ends_both_and_leaves_no_file(command):
    both = command("--steps", "200", *LAYOUT, "-o", "never.mp4")
    wait_for(lambda: "denoise" in both.log(0))
    both.processes[0].send_signal(signal.SIGINT)
    assert both.ends() == {0: (130, ""), 1: (130, "")}, both.log(1)
    assert not list(both.folder.glob("never*"))
    assert "interrupted" in both.log(0)


def test_ctrl_c_on_another_process_is_named(command):
    both = command("--steps", "200", *LAYOUT, "-o", "never.mp4")
    wait_for(lambda: "denoise" in both.log(0))
    both.processes[1].send_signal(signal.SIGINT)
    assert both.ends() == {0: (os.EX_TEMPFAIL, ""), 1: (130, "")}
    assert "ended: it was interrupted" in both.log(0)
    assert not list(both.folder.glob("never*"))


def test_another_request_is_refused_by_name(command):
    both = command(of_process={1: ("--seed", "7")})
    assert both.ends() == {0: (1, ""), 1: (1, "")}
    for number in (0, 1):
        assert "settings: seed is 0 on process 0 and 7 on process 1 (" in both.log(number)
        assert "Traceback" not in both.log(number)


def test_another_secret_is_refused_on_both(command, tmp_path):
    """Process 0 cannot tell one of its own from a stranger: it names the address, and waits on."""
    secrets = {n: make_secret(tmp_path / f"{n}.secret", f"{n}" * 32) for n in (0, 1)}
    both = command(
        "-o",
        "never.npy",
        of_process={n: ("--group-secret-file", str(file)) for n, file in secrets.items()},
    )
    assert both.ends() == {0: (EXIT_LOST, ""), 1: (1, "")}
    assert "do not have the same secret" in both.log(1)
    said = "127.0.0.1 could not prove the slice's secret"
    assert f"waiting for process 1 of 2; {said}" in both.log(0)
    assert f"the same command must run on every host; {said}" in both.log(0)
    assert not list(both.folder.glob("never*"))


def test_half_of_the_options(tmp_path):
    done = subprocess.run(
        [str(WAN_TPU), "generate", PROMPT, "--processes", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "several processes need all of coordinator HOST:PORT" in done.stderr
