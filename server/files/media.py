"""Where the files of videos lie. A video's folder is complete or absent.

The engine fills `partial/<job>`; once it is complete it is renamed to `videos/<job>`, all three
files at once. What lies there without a finished job is an orphan and goes at start.
"""

import os
import pathlib
import shutil
from collections.abc import Set

FILE_NAMES = {
    "video": "video.mp4",
    "thumbnail": "thumbnail.webp",
    "spritesheet": "spritesheet.jpg",
}
MEDIA_TYPES = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}


class Media:
    """The folders under the data folder."""

    def __init__(self, data_dir: pathlib.Path, *, min_free_bytes: int):
        self._videos = data_dir.resolve() / "videos"
        self._partial = data_dir.resolve() / "partial"
        self._min_free_bytes = min_free_bytes
        for folder in (self._videos, self._partial):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, job_id: str, variant: str) -> pathlib.Path:
        """A file of a completed job."""
        return self._videos / job_id / FILE_NAMES[variant]

    def begin(self, job_id: str) -> pathlib.Path:
        """A new, empty folder for a job's files."""
        self.discard(job_id)
        folder = self._partial / job_id
        folder.mkdir()
        return folder

    def publish(self, job_id: str) -> None:
        """Puts a job's complete files in their place, for good: also after a loss of power."""
        _sync(self._partial / job_id)
        os.rename(self._partial / job_id, self._videos / job_id)
        _sync(self._videos)

    def discard(self, job_id: str) -> None:
        """Removes what a job has left unpublished."""
        shutil.rmtree(self._partial / job_id, ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Removes a job's files."""
        shutil.rmtree(self._videos / job_id, ignore_errors=True)

    def remove_orphans(self, completed: Set[str]) -> list[str]:
        """Removes everything that belongs to no completed job; returns what went."""
        orphans = [path for path in self._videos.iterdir() if path.name not in completed]
        orphans += list(self._partial.iterdir())
        for path in orphans:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return [path.name for path in orphans]

    def has_room(self) -> bool:
        """Whether the disk has room for more work."""
        return shutil.disk_usage(self._videos).free >= self._min_free_bytes


def _sync(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
