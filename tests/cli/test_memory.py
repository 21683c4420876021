"""Out of memory, real: one line that says what would fit, and the documented exit code."""

import subprocess

import pytest

from tests.cli.conftest import COMMAND

PROMPT = "a red circle moving right on a black background"
LIMIT_KIB = 10 * 2**20
"""Of addresses, not of memory: the step of the video below asks for 10 GB at once."""


@pytest.mark.timeout(280)
def test_a_video_that_is_too_large_is_one_line_and_exit_code_1(environment, tmp_path):
    """Red when JAX's RESOURCE_EXHAUSTED comes through, or its threads abort the end of the process.

    The decoder still compiles when the first step finds no memory.
    """
    size = ("--size", "2048x2048", "--frames", "509", "--steps", "1", "--guidance-scale", "1")
    command = [*COMMAND, "generate", PROMPT, *size, "--no-cache", "-o", "never.npy"]
    done = subprocess.run(
        ["bash", "-c", f'ulimit -v {LIMIT_KIB}; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=270,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("wan-tpu: out of memory: 2048x2048, 509 frames on 1 x cpu")
    assert "--frames " in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
