"""Where a slice keeps the files of the job that it is at: nothing that anybody misses."""

import pathlib
import shutil

from server.files.data_folder import DataFolder, DataFolderError, disk_trouble, make_private

FOLDER = "scratch"
"""Below the data folder, so that a folder in which a server of one slice has its videos can be
given to a slice of a fleet, and loses nothing."""


class Scratch:
    """A part of the data folder, which is locked; empty at the start, and between two jobs."""

    def __init__(self, data_dir: pathlib.Path, *, min_free_bytes: int):
        """Locks the data folder and removes what an earlier slice has left.

        Raises:
            DataFolderError: another server has it, or it cannot be used.
        """
        self._locked = DataFolder(data_dir)
        self._root = self._locked.path / FOLDER
        self._min_free_bytes = min_free_bytes
        try:
            self.clear()
        except OSError as error:
            self._locked.close()
            raise DataFolderError(
                f"cannot use {error.filename or self._root}: {error.strerror}"
            ) from None

    def begin(self) -> tuple[pathlib.Path, pathlib.Path]:
        """Two new, empty folders: for the files of a video, and for what it is made from.

        Raises:
            OSError: the disk is full or fails.
        """
        self.clear()
        files, uploads = self._root / "files", self._root / "uploads"
        for folder in (files, uploads):
            folder.mkdir(mode=0o700)
        return files, uploads

    def clear(self) -> None:
        """Removes everything.

        Raises:
            OSError: the disk fails.
        """
        if self._root.exists():
            shutil.rmtree(self._root)
        self._root.mkdir(mode=0o700)
        make_private(self._root)

    @property
    def trouble(self) -> str | None:
        """Why no work can be taken on, as a sentence."""
        return disk_trouble(self._root, self._min_free_bytes)

    def close(self) -> None:
        """Lets others have the data folder."""
        self._locked.close()
