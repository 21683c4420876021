"""Room that is kept so that a full disk can be emptied: deleting a row writes to the disk, too."""

import contextlib
import os
import pathlib

BALLAST_BYTES = 1 << 21
"""A deletion's pages in SQLite's log are a few; 2 MiB hold hundreds."""


class Ballast:
    """A file beside the database that is given up when the disk is full, and made again later."""

    def __init__(self, path: str):
        self._path = pathlib.Path(path)

    def keep(self) -> None:
        """Makes the file if it is not there and there is room for it."""
        if self._path.exists():
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()  # half of it would keep others from what little room there is

    def release(self) -> bool:
        """Gives the room up; returns whether there was any."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False
