"""One process at a time trains in a folder: a lock (`flock`) that ends with its process."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from wan_tpu.errors import OutputError, WanTpuError
from wan_tpu.pipeline.whole_file import reporting

TRIES, TRY_SECONDS = 10, 0.1
"""Whoever only looks whether a lock is held holds it for a moment."""

_held: set[int] = set()


def _close_in_child() -> None:
    """A child that is forked and outlives us must not hold the folder for us."""
    for file in _held:
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """Held from `take` to `release`, or to the end of the process, however it ends.

    The file stays: taken away, two processes could hold two files of the same name.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = -1

    def take(self) -> None:
        """Takes the lock; one that a dead process left is free.

        Raises:
            OutputError: another process holds it, said with its number and machine; or the file
                cannot be written, or the file system has no locks.
        """
        with reporting(self._path):
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with reporting(self._path):
                self._wait(file)
                told = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(told).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _held.add(file)

    def _wait(self, file: int) -> None:
        for remaining in reversed(range(TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not remaining:
                    who = _described(holder_of(self._path))
                    raise OutputError(
                        f"another process trains in {self._path.parent}: {who}; wait for it, stop "
                        "it, or take another folder"
                    ) from None
            time.sleep(TRY_SECONDS)

    def release(self) -> None:
        """Lets others take it."""
        if self._file >= 0:
            _held.discard(self._file)
            os.close(self._file)
            self._file = -1


def is_held(path: Path) -> bool:
    """Whether a process, this one or another, holds a folder's lock now.

    Raises:
        WanTpuError: the file cannot be read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WanTpuError(f"{path} cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def holder_of(path: Path) -> dict[str, object]:
    """Who took the lock last: `pid`, `host`, `since` in seconds since 1970; empty if unknown."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _described(told: dict[str, object]) -> str:
    if "pid" not in told:
        return "which one it does not say"
    return f"process {told['pid']} on {told.get('host')}"
