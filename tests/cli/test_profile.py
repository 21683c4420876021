"""`wan-tpu generate --profile DIR`: a trace beside the video, and never instead of it."""

import subprocess

import jax
import numpy as np
import pytest

from tests.server.files.test_full_disk import mounted

PROMPT = "a red circle moving right on a black background"


def names(trace):
    (file,) = trace.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    found = {event.name for plane in planes for line in plane.lines for event in line.events}
    return sorted(name for name in found if name.startswith("denoise "))


def test_three_steps_are_recorded_and_the_video_is_the_same(run, tmp_path):
    words = ("generate", PROMPT, "--steps", "6", "-o")
    assert run(*words, "plain.npy").returncode == 0
    done = run(*words, "out.npy", "--profile", "profiles")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.npy\n"
    (said,) = [line for line in done.stderr.splitlines() if "xprof" in line]
    assert said.startswith("wan-tpu: 3 steps are in profiles/trace-1 (")
    assert names(tmp_path / "profiles" / "trace-1") == ["denoise 2", "denoise 3", "denoise 4"]
    frames = [np.load(tmp_path / name) for name in ("plain.npy", "out.npy")]
    np.testing.assert_array_equal(*frames)
    done = run(*words, "again.npy", "--profile", "profiles")
    assert "profiles/trace-2" in done.stderr


@pytest.mark.parametrize("folder", ["/proc/nope", "/etc/hostname", "read-only"])
def test_a_folder_that_cannot_be_written_is_one_line_before_the_work(run_here, tmp_path, folder):
    if folder == "read-only":
        with mounted(tmp_path / folder, "1m"):
            subprocess.run(("mount", "-o", "remount,ro", str(tmp_path / folder)), check=True)
            code, out, error = run_here("generate", PROMPT, "-o", "out.npy", "--profile", folder)
    else:
        code, out, error = run_here("generate", PROMPT, "-o", "out.npy", "--profile", folder)
    assert (code, out) == (1, "")
    assert error.startswith(f"wan-tpu: cannot write {folder}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.npy").exists()


def test_a_disk_that_is_full_costs_the_trace_alone(run, tmp_path):
    with mounted(tmp_path / "small", "16k") as disk:
        done = run("generate", PROMPT, "--steps", "3", "-o", "out.npy", "--profile", "small")
        assert list(disk.iterdir()) == []
    assert (done.returncode, done.stdout) == (0, "out.npy\n")
    (said,) = [line for line in done.stderr.splitlines() if "profile" in line]
    assert said.startswith("wan-tpu: there is no profile in small: ")
    assert said.endswith("No space left on device")
    assert np.load(tmp_path / "out.npy").shape == (17, 64, 64, 3)
    assert (tmp_path / "out.json").exists()
