"""Who makes which sample, where several processes prepare one folder: locks of a file's bytes.

The system gives a lock back when its process ends, however it ends, so that nothing is ever claimed
by nobody. A folder on a file system without locks between hosts has work done twice at worst:
samples are called by what they are of, and are whole or absent.
"""

import fcntl
import os
import pathlib
from types import TracebackType

from wan_tpu.pipeline.whole_file import reporting

FILE = "claims.lock"

_PRESENCE = 0
"""The byte that every process at work shares; the others are those of keys."""

_DIGITS = 12
"""Of a key: 2^48 bytes, of which none is ever written. Two keys with one byte only wait."""


class Claims:
    """What this process has claimed in a folder; used with `with`."""

    def __init__(self, folder: pathlib.Path):
        """Says that this process is at work in the folder.

        Raises:
            OutputError: the folder cannot be written, or its file system has no locks.
        """
        self._path = folder / FILE
        with reporting(self._path):
            # One descriptor a process: closing any other would give the locks back.
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _PRESENCE)

    def __enter__(self) -> "Claims":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def claim(self, key: str) -> bool:
        """Whether this process may make what is called `key`; another one does where it may not."""
        return self._lock(_byte_of(key))

    def release(self, key: str) -> None:
        """It is made, or cannot be."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte_of(key))

    def is_alone(self) -> bool:
        """Whether no other process is at work here; none begins until `let_others_in`."""
        return self._lock(_PRESENCE)

    def let_others_in(self) -> None:
        """The end of what only one process may do."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _PRESENCE)

    def _lock(self, byte: int) -> bool:
        with reporting(self._path):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except BlockingIOError:
                return False
            return True


def _byte_of(key: str) -> int:
    return 1 + int(key[:_DIGITS], 16)
