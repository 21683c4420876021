"""Where the files of videos lie. A video's folder is complete or absent.

The engine fills `partial/<job>`; once it is complete it is renamed to `videos/<job>`, all three
files at once. What is to be deleted goes to `deleting/` first, so that a crash in between leaves
either the job with its files or neither. Nothing is removed here but what a job's name says and its
owner or its time has given up; what belongs to nobody is moved to `trash/`, and removed later.
"""

import dataclasses
import datetime
import hashlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Set
from contextlib import suppress
from typing import Any

from server.files.data_folder import disk_trouble, make_private, sync

logger = logging.getLogger(__name__)

FILE_NAMES = {
    "video": "video.mp4",
    "thumbnail": "thumbnail.webp",
    "spritesheet": "spritesheet.jpg",
}
MEDIA_TYPES = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}

JOB_FOLDER = re.compile(r"video_[0-9a-f]{32}")
TRASHED = re.compile(r"([0-9]{8}T[0-9]{6})-.+")
TRASH_TIME = "%Y%m%dT%H%M%S"

NAMES_IN_LOG = 20


class FilesLost(Exception):
    """A completed video's file is missing, or not as long as it was written."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MediaFile:
    """A file that is as it was written.

    Attributes:
        digest: SHA-256 in hexadecimal; None for videos of a release that kept none.
    """

    path: pathlib.Path
    status: os.stat_result
    digest: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownJobs:
    """What the database says about jobs, by id.

    Attributes:
        with_files: jobs whose folder stays: completed, or not to be touched.
        ended: jobs that ended without a video.
        unfinished: jobs that are still to be made.
    """

    with_files: Set[str]
    ended: Set[str]
    unfinished: Set[str]


class Media:
    """The folders under the data folder."""

    def __init__(
        self,
        data_dir: pathlib.Path,
        *,
        min_free_bytes: int,
        trash_seconds: float = 604_800,
    ):
        root = data_dir.resolve()
        self._videos = root / "videos"
        self._partial = root / "partial"
        self._deleting = root / "deleting"
        self._trash = root / "trash"
        self._min_free_bytes = min_free_bytes
        self._trash_seconds = trash_seconds
        for folder in (self._videos, self._partial, self._deleting):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private(folder)

    def open(self, job_id: str, variant: str, files: dict[str, Any] | None) -> MediaFile:
        """A file of a completed job, checked.

        Args:
            job_id: of the job.
            variant: a key of `FILE_NAMES`.
            files: what was noted when the files were written, `metadata["files"]` of the job.

        Raises:
            FilesLost: it is gone or cut short; says so for the client.
        """
        path = self._videos / job_id / FILE_NAMES[variant]
        try:
            status = path.stat()
        except OSError:
            raise FilesLost(f"the {variant} of {job_id} is gone from the server's disk") from None
        noted = files.get(variant) if isinstance(files, dict) else None
        expected = noted.get("bytes") if isinstance(noted, dict) else None
        if status.st_size != (expected or status.st_size) or not status.st_size:
            raise FilesLost(
                f"the {variant} of {job_id} is damaged: {status.st_size} bytes are there, "
                f"{expected or 'more'} were written"
            )
        digest = noted.get("sha256") if isinstance(noted, dict) else None
        return MediaFile(path=path, status=status, digest=digest)

    def is_whole(self, job_id: str, files: dict[str, Any] | None) -> bool:
        """Whether all files of a job are there and as long as they were written."""
        try:
            for variant in FILE_NAMES:
                self.open(job_id, variant, files)
        except FilesLost:
            return False
        return True

    def begin(self, job_id: str) -> pathlib.Path:
        """A new, empty folder for a job's files."""
        self.discard(job_id)
        folder = self._partial / job_id
        folder.mkdir(mode=0o700)
        return folder

    def measure(self, job_id: str) -> dict[str, dict[str, Any]]:
        """Size and digest of each of a job's complete files, which from here on are the owner's."""
        return measure_files(self._partial / job_id)

    def publish(self, job_id: str) -> None:
        """Puts a job's complete files in their place, for good: also after a loss of power."""
        sync(self._partial / job_id)
        if (self._videos / job_id).exists():  # of an attempt that nobody noted
            self._move_to_trash(self._videos / job_id)
        os.rename(self._partial / job_id, self._videos / job_id)
        sync(self._videos)

    def discard(self, job_id: str) -> None:
        """Removes what a job has left unpublished."""
        shutil.rmtree(self._partial / job_id, ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Removes a job's files."""
        for folder in (self._videos, self._deleting):
            shutil.rmtree(folder / job_id, ignore_errors=True)

    def set_aside(self, job_id: str) -> None:
        """Takes a job's files out of sight; `remove` or `put_back` follows."""
        with suppress(OSError):  # there are none, or the disk fails: then they stay where they are
            os.rename(self._videos / job_id, self._deleting / job_id)

    def put_back(self, job_id: str) -> None:
        """Undoes `set_aside`, where the job stays after all."""
        with suppress(OSError):
            os.rename(self._deleting / job_id, self._videos / job_id)

    def job_folders(self) -> set[str]:
        """Names of the jobs that have a folder of finished files."""
        return {path.name for path in _job_folders(self._videos)}

    def tidy(self, known: KnownJobs) -> list[str]:
        """Puts the folders in order after a start; returns the names of what is now in the trash.

        Only folders named for a job are looked at; whatever else lies there is not ours.
        """
        for path in _job_folders(self._deleting):
            if path.name in known.with_files:
                self.put_back(path.name)
            else:
                self.remove(path.name)
        strangers = []
        for path in _job_folders(self._videos):
            if path.name in known.ended:
                self.remove(path.name)
            elif path.name not in known.with_files:
                strangers.append(path)
        for path in _job_folders(self._partial):
            if path.name in known.unfinished | known.ended:
                self.discard(path.name)
            else:
                strangers.append(path)
        self._bring_back(known.with_files)
        moved = []
        for path in strangers:
            try:
                self._move_to_trash(path)
                moved.append(path.name)
            except OSError as error:  # a full disk must not keep a server from being started
                logger.warning("%s belongs to no known job, and stays: %s", path, error.strerror)
        return moved

    def empty_trash(self, now: float) -> list[str]:
        """Removes what has been in the trash for long enough; returns its names.

        Args:
            now: unix seconds by a clock that does not jump ahead.
        """
        gone = []
        for path in self._trash.iterdir() if self._trash.is_dir() else ():
            match = TRASHED.fullmatch(path.name)
            if match is None:
                continue
            with suppress(ValueError):
                since = datetime.datetime.strptime(match[1], TRASH_TIME).replace(
                    tzinfo=datetime.UTC
                )
                if now - since.timestamp() > self._trash_seconds:
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
                    gone.append(path.name)
        return gone

    @property
    def trouble(self) -> str | None:
        """Why no work can be taken on, as a sentence."""
        return disk_trouble(self._videos, self._min_free_bytes)

    def has_room(self) -> bool:
        """Whether the disk has room for more work."""
        return self.trouble is None

    def _bring_back(self, wanted: Set[str]) -> None:
        """Takes out of the trash what a database names again, after another one did not."""
        for path in sorted(self._trash.iterdir()) if self._trash.is_dir() else ():
            job_id = path.name.partition(f"-{self._videos.name}-")[2]
            if job_id in wanted and not (self._videos / job_id).exists():
                os.rename(path, self._videos / job_id)
                logger.warning("the files of %s are back from the trash", job_id)

    def _move_to_trash(self, path: pathlib.Path) -> None:
        self._trash.mkdir(mode=0o700, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        name = f"{now.strftime(TRASH_TIME)}-{path.parent.name}-{path.name}"
        target = self._trash / name
        for number in range(1, 1000):
            if not target.exists():
                break
            target = self._trash / f"{name}-{number}"
        os.rename(path, target)


def measure_files(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Size and digest of each file of a video, which from here on are for the owner alone.

    Args:
        folder: that holds all of `FILE_NAMES`.

    Returns:
        `bytes` and `sha256` in hexadecimal, by variant.

    Raises:
        OSError: one is not there, or cannot be read.
    """
    found = {}
    for variant, name in FILE_NAMES.items():
        with (folder / name).open("rb") as file:
            os.fchmod(file.fileno(), 0o600)
            digest = hashlib.file_digest(file, hashlib.sha256).hexdigest()
            found[variant] = {"bytes": file.tell(), "sha256": digest}
    return found


def shown(names: list[str]) -> str:
    """Names for the log, the first of them if they are many."""
    more = "" if len(names) <= NAMES_IN_LOG else f" and {len(names) - NAMES_IN_LOG} more"
    return ", ".join(names[:NAMES_IN_LOG]) + more


def _job_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Real folders that are named as jobs are."""
    return sorted(
        path
        for path in folder.iterdir()
        if JOB_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
