"""The data folder: that it is ours, that one server alone uses it, whose database it knows.

It holds the files of all videos, and SQLite's database unless that lies elsewhere. What is in it is
for the user who runs the server alone: prompts are.
"""

import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import secrets
import shutil

from wan_tpu.errors import WanTpuError

logger = logging.getLogger(__name__)

MARK, LOCK = "wan-tpu.json", "lock"
MARKS = (MARK, LOCK, "jobs.sqlite")
"""One of these is in every folder that a server has used; releases before the mark left a lock."""

IGNORED = ("lost+found",)
"""What an empty disk may hold, besides names that begin with a dot."""


class DataFolderError(WanTpuError):
    """The data folder cannot be used as it is; says what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What the folder says about itself.

    Attributes:
        folder_id: of this folder, for good.
        database_id: of the database that knows its files; None where it never had one.
    """

    folder_id: str
    database_id: str | None


class DataFolder:
    """A folder that is locked for this process until it ends, however it ends."""

    def __init__(self, path: pathlib.Path, *, adopt: bool = False):
        """Makes the folder if it is not there, and locks it.

        Args:
            path: the folder.
            adopt: whether to take one that holds other things and was never a server's.

        Raises:
            DataFolderError: it is not ours, another server has it, or it cannot be used.
        """
        try:
            self.path = path.resolve()
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not adopt:
                self._check_ours()
            self._descriptor = os.open(
                self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except (OSError, RuntimeError) as error:  # the latter: links in a circle
            reason = getattr(error, "strerror", None) or error
            raise DataFolderError(
                f"cannot use the folder {path}: {reason}; name one in WAN_TPU_DATA_DIR that can be "
                "made or written"
            ) from None
        self._lock()
        make_private(self.path)
        self.mark = self._read_mark()

    def bind(self, database_id: str) -> None:
        """Notes the database that knows the files of this folder.

        Raises:
            DataFolderError: it cannot be written.
        """
        self.mark = dataclasses.replace(self.mark, database_id=database_id)
        aside = self.path / f"{MARK}.part"
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:
                json.dump(dataclasses.asdict(self.mark), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.path / MARK)
            sync(self.path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise DataFolderError(f"cannot write {self.path / MARK}: {error.strerror}") from None

    def close(self) -> None:
        """Lets others have it."""
        os.close(self._descriptor)

    def _check_ours(self) -> None:
        names = {path.name for path in self.path.iterdir()}
        if names.intersection(MARKS):
            return
        foreign = sorted(name for name in names if name not in IGNORED and not name.startswith("."))
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise DataFolderError(
                f"the folder {self.path} holds other things ({shown}) and was never a server's; "
                "name an empty or a new one in WAN_TPU_DATA_DIR, or say `python -m server adopt` "
                "to have this one used all the same: what is in it stays"
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise DataFolderError(
                f"another server uses the folder {self.path}; "
                "give this one its own in WAN_TPU_DATA_DIR"
            ) from None

    def _read_mark(self) -> Mark:
        """The mark; a new one where there is none or it was cut short."""
        try:
            fields = json.loads((self.path / MARK).read_text())
            return Mark(folder_id=str(fields["folder_id"]), database_id=fields["database_id"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read and is made anew: %s", self.path / MARK, error)
        return Mark(folder_id=secrets.token_hex(16), database_id=None)


def make_private(path: pathlib.Path) -> None:
    """Takes the rights of all but the owner away, where that can be done."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            path.chmod(mode & 0o700)
    except OSError as error:
        logger.warning("%s stays readable by others: %s", path, error.strerror)


def disk_trouble(folder: pathlib.Path, min_free_bytes: int) -> str | None:
    """Why no work can be taken on, as a sentence; None where the disk has so many bytes free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"the data folder cannot be used: {error.strerror}"
    return "the disk is nearly full" if free < min_free_bytes else None


def sync(folder: pathlib.Path) -> None:
    """Returns once the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
