"""Files that are complete or absent: written aside, in the same folder, and renamed at the end."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wan_tpu.errors import OutputError


def check_file_path(path: str | os.PathLike[str]) -> Path:
    """Finds out, before any work, whether a file can be written or replaced.

    Raises:
        OutputError: the folder is missing or not writable, or something is in the way.
    """
    path = Path(path)
    with reporting(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not path.is_file():
            raise OutputError(f"cannot write {path}: it exists and is not a file")
        if mode is not None and not (mode & 0o222 and os.access(path, os.W_OK)):
            raise OutputError(f"cannot write {path}: the file there is read-only")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
        trial = aside_of(path)
        trial.touch()
        trial.unlink()
    return path


def write_json_atomically(path: str | os.PathLike[str], data: Any) -> None:
    """Writes `data` as indented JSON, whole or not at all; a link is followed.

    Raises:
        OutputError: the file cannot be written.
    """
    # Half a surrogate pair, which a prompt from the command line can hold, has no UTF-8; its
    # Python escape happens to be its JSON escape.
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    target = Path(os.path.realpath(path))
    aside = aside_of(target)
    with reporting(path):
        try:
            aside.write_bytes(text.encode("utf-8", "backslashreplace"))
            publish(aside, target)
        finally:
            aside.unlink(missing_ok=True)


def aside_of(path: Path) -> Path:
    """A name in the same folder, this process's and nobody else's."""
    return path.parent / f".wan-tpu-{os.getpid()}-{secrets.token_hex(4)}.part"


def publish(aside: Path, path: Path) -> None:
    """Gives a complete file its name, once its bytes are on the disk."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


@contextlib.contextmanager
def reporting(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's errors into `OutputError` with the file's name."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
