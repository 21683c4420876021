"""The pictures and clips that jobs are made from: files of the data folder, named by their digest.

They lie in `uploads/`, complete or absent, and one file serves every job that names it. A job that
is accepted has its files on the disk. A file goes when no job names it any more; one that belongs
to no known job is moved to `trash/` at the next start, and comes back if a database names it again.
"""

import collections
import contextlib
import datetime
import logging
import os
import pathlib
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from server.files.data_folder import make_private, sync
from server.files.media import TRASH_TIME
from wan_tpu.errors import MediaError
from wan_tpu.media import Media

logger = logging.getLogger(__name__)

FOLDER = "uploads"

_NAME = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.part")
_TRASHED = re.compile(rf"[0-9]{{8}}T[0-9]{{6}}-{FOLDER}-([0-9a-f]{{64}})")


class UploadLost(Exception):
    """A picture or clip of a job is gone from the disk, or damaged."""


def read_uploads(folder: pathlib.Path, wanted: Mapping[str, str]) -> Media:
    """The bytes that a request names.

    Args:
        folder: of the uploads.
        wanted: digest by role, `VideoRequest.media`.

    Raises:
        UploadLost: some are gone or damaged; says so for the client.
    """
    contents = {}
    for role, digest in wanted.items():
        try:
            contents[digest] = (folder / name_of(digest)).read_bytes()
        except OSError as error:
            raise UploadLost(f"the {role} of this video is gone from the server's disk") from error
        try:
            Media({digest: contents[digest]})
        except MediaError as error:
            raise UploadLost(f"the {role} of this video is damaged: {error}") from error
    return Media(contents)


class Uploads:
    """The folder of uploads under the data folder; from any thread."""

    def __init__(self, data_dir: pathlib.Path):
        root = data_dir.resolve()
        self.folder = root / FOLDER
        self._trash = root / "trash"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(self.folder)
        self._lock = threading.Lock()
        self._in_use: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def keeping(self, media: Media) -> Iterator[None]:
        """Writes files, and keeps them while the block runs: until a job names them.

        Raises:
            OSError: the disk is full or fails.
        """
        with self._lock:
            self._in_use.update(list(media))
        try:
            for digest, data in media.items():
                self._write(digest, data)
            yield
        finally:
            with self._lock:
                self._in_use -= collections.Counter(list(media))

    def remove(self, digests: Iterable[str], is_wanted: Callable[[str], bool]) -> None:
        """Removes those files that nobody needs.

        Args:
            digests: of files that may not be needed any more.
            is_wanted: whether a job names one.
        """
        for digest in digests:
            with self._lock:
                if digest not in self._in_use and not is_wanted(digest):
                    (self.folder / name_of(digest)).unlink(missing_ok=True)

    def path_of(self, digest: str) -> pathlib.Path:
        """Where a file lies, if it is there."""
        return self.folder / name_of(digest)

    def size_of(self, digest: str) -> int:
        """Bytes of a file; 0 if it is not there."""
        try:
            return self.path_of(digest).stat().st_size
        except OSError:
            return 0

    def tidy(self, wanted: Set[str]) -> list[str]:
        """Puts the folder in order after a start; returns the names of what is now in the trash.

        Args:
            wanted: digests that known jobs name.
        """
        names = {name_of(digest) for digest in wanted}
        moved = []
        for path in sorted(self.folder.iterdir()):
            if _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif _NAME.fullmatch(path.name) and path.name not in names:
                try:
                    self._move_to_trash(path)
                    moved.append(path.name)
                except OSError as error:  # a full disk must not keep a server from being started
                    logger.warning("%s belongs to no job, and stays: %s", path, error.strerror)
        for path in sorted(self._trash.iterdir()) if self._trash.is_dir() else ():
            match = _TRASHED.fullmatch(path.name)
            if match is not None and match[1] in names and not (self.folder / match[1]).exists():
                os.rename(path, self.folder / match[1])
                logger.warning("the upload %s is back from the trash", match[1])
        return moved

    def _write(self, digest: str, data: bytes) -> None:
        """Puts a file in its place, for good: also after a loss of power.

        One that is there already is written anew: it may be damaged.
        """
        path = self.folder / name_of(digest)
        aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync(self.folder)
        except OSError:
            aside.unlink(missing_ok=True)
            raise

    def _move_to_trash(self, path: pathlib.Path) -> None:
        self._trash.mkdir(mode=0o700, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC).strftime(TRASH_TIME)
        os.rename(path, self._trash / f"{now}-{FOLDER}-{path.name}")


def name_of(digest: str) -> str:
    """The name of a file: the digest without its kind."""
    name = digest.removeprefix("sha256:")
    assert _NAME.fullmatch(name), f"{digest!r} is no digest"
    return name
