"""Standard streams as a command finds them: closed, full, in another encoding, without a reader.

Data goes to standard output, and failing to write it is an error of one line. Talk goes to standard
error, and what cannot be said there stops nothing: the video matters more.
"""

import contextlib
import io
import os
import sys
from typing import Any

from wan_tpu.errors import OutputError


class _Talk(io.FileIO):
    """Standard error; drops what it cannot write."""

    def write(self, data: Any) -> int:
        """All of it counts as written, also on a full disk or a terminal that was closed."""
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


def prepare() -> None:
    """Makes the three streams usable, whatever the caller left of them.

    A closed one becomes the null device: else the next file opened, the video for one, would get
    its number, and with it what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Talk(2, "w", closefd=False)),
        encoding=getattr(sys.stderr, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def keep_stdout_for_data() -> None:
    """Drops what C++ prints there: Gloo tells, program by program, whom it has connected."""
    sys.stdout = os.fdopen(os.dup(1), "w", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def write_data(data: str | bytes) -> None:
    """Writes to standard output, and waits until it is there.

    Args:
        data: text, or bytes as they are: a file's name may have no text.

    Raises:
        BrokenPipeError: the reader has left.
        OutputError: it cannot be written.
    """
    try:
        if isinstance(data, str):
            sys.stdout.write(data)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except OSError as error:
        _forget_output()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def _forget_output() -> None:
    """Lets what is still buffered go nowhere: Python's end would fail on it once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
