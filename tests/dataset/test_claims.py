"""Several processes at one folder."""

import os
import signal
import subprocess
import sys

import pytest

from wan_tpu.dataset.claims import Claims
from wan_tpu.errors import OutputError

KEY, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4

HOLD = """
import pathlib, sys
from wan_tpu.dataset.claims import Claims
with Claims(pathlib.Path(sys.argv[1])) as claims:
    print(claims.claim(sys.argv[2]), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed `KEY`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), KEY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_what_another_process_makes_cannot_be_claimed_until_it_has_ended(holder, tmp_path):
    with Claims(tmp_path) as claims:
        assert not claims.claim(KEY)
        assert claims.claim(OTHER)
        assert not claims.is_alone()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert claims.claim(KEY)
        assert claims.is_alone()
        claims.let_others_in()
        claims.release(KEY)


def test_nobody_is_alone_while_another_is_at_work_and_says_so_at_once(tmp_path, holder):
    with Claims(tmp_path) as claims:
        assert not claims.is_alone()
        assert not claims.is_alone()  # asking twice does not hang


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"claims\.lock"):
        Claims(tmp_path / "absent")
