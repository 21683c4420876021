"""API keys: only their hashes are kept, and each has a name, which owns jobs.

A key is 32 random bytes, so one round of SHA-256 hides it: there is nothing to guess. The file has
a line per key: name, hash, day. A name may have two keys while one takes the other's place.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator

from wan_tpu.errors import WanTpuError

PREFIX = "wt-"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HASH = re.compile("[0-9a-f]{64}")
KEYS_PER_NAME = 2
"""One in use, and one to take its place."""


class KeysError(WanTpuError):
    """The keys' file or a name cannot be used; says why."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key of the file.

    Attributes:
        name: whose it is.
        hash: of the key, 64 hexadecimal digits.
        day: on which it was made, as `2026-11-26`.
    """

    name: str
    hash: str
    day: str


class Keys:
    """The keys of a file, read again when it changes.

    Attributes:
        problem: why the file cannot be read now; no key is known then, since any of them may have
            been taken out.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the file.

        Raises:
            KeysError: it is missing or not a file of keys.
        """
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._names: dict[str, str] = {}
        self.problem: str | None = None
        self._read()

    def refresh(self) -> bool:
        """Reads the file if it changed; call now and then. Returns whether anything is new."""
        before = (self._stamp, self.problem)
        try:
            self._read()
        except KeysError as error:
            self._stamp, self._names, self.problem = None, {}, str(error)
        return (self._stamp, self.problem) != before

    def find(self, key: str) -> str | None:
        """The name of a key. How long it takes tells of the hash alone, which nobody can choose."""
        return self.find_hash(hash_key(key))

    def find_hash(self, hash: str) -> str | None:
        """The name of the key that has this hash, which opens nothing by itself."""
        return self._names.get(hash)

    def _read(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise _unreadable(self._path, error) from None
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._names = {entry.hash: entry.name for entry in read_keys(self._path)}
            self._stamp, self.problem = stamp, None


def hash_key(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: pathlib.Path) -> list[Entry]:
    """The keys of a file, older ones first.

    Raises:
        KeysError: the file cannot be read, or a line of it is not a key's.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for number, words in enumerate(lines, start=1):
        if len(words) != 3 or not NAME.fullmatch(words[0]) or not HASH.fullmatch(words[1]):
            raise KeysError(
                f"key {number} in {path} is not a name, a hash and a day; "
                "make keys with `python -m server keys add NAME`"
            )
    return [Entry(name=words[0], hash=words[1], day=words[2]) for words in lines]


def add_key(path: pathlib.Path, name: str, *, second: bool = False) -> str:
    """Makes a key and writes its hash; the key itself is returned and nowhere else.

    Args:
        path: the file; made where there is none.
        name: whose it is.
        second: to the one that the name has, so that programs can change over to it.

    Raises:
        KeysError: the name is taken or no name, or the file is not one of keys.
    """
    if not NAME.fullmatch(name):
        raise KeysError(f"a name is 1 to 64 letters, digits or . _ -, got {name!r}")
    key = PREFIX + secrets.token_urlsafe(32)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    with _changing(path) as entries:
        count = sum(entry.name == name for entry in entries)
        if count and not second:
            raise KeysError(
                f"{path} has a key named {name} already; `keys rotate {name}` adds a second one, "
                f"`keys remove {name}` takes it out"
            )
        if not count and second:
            raise KeysError(f"{path} has no key named {name!r} to rotate; {_known(entries)}")
        if count >= KEYS_PER_NAME:
            raise KeysError(
                f"{name} has {count} keys already; `keys remove {name} --older` takes the older out"
            )
        entries.append(Entry(name=name, hash=hash_key(key), day=day))
    return key


def remove_key(
    path: pathlib.Path, name: str, *, older: bool = False, key: str | None = None
) -> None:
    """Takes the keys of a name out; a running server notices within seconds.

    Args:
        path: the file.
        name: whose.
        older: the older one of two alone.
        key: this one alone.

    Raises:
        KeysError: there is no such key.
    """
    with _changing(path, must_exist=True) as entries:
        its = [entry for entry in entries if entry.name == name]
        if not its:
            raise KeysError(f"{path} has no key named {name!r}; {_known(entries)}")
        if older and len(its) < 2:
            raise KeysError(f"{name} has one key only; `keys rotate {name}` adds a second one")
        if key is not None:
            its = [entry for entry in its if entry.hash == hash_key(key)]
        for entry in its[:1] if older else its:
            entries.remove(entry)


@contextlib.contextmanager
def _changing(path: pathlib.Path, *, must_exist: bool = False) -> Iterator[list[Entry]]:
    """The keys of a file, to be changed in the block and then written; one program at a time."""
    try:
        target = path.resolve(strict=must_exist)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = read_keys(target) if must_exist or target.exists() else []
        yield entries
        _write(target, entries)
        os.fsync(folder)
    except OSError as error:
        raise KeysError(f"cannot write the keys in {path}: {error.strerror}") from None
    finally:
        os.close(folder)


def _write(target: pathlib.Path, entries: list[Entry]) -> None:
    """Replaces the file, all at once; owner and mode stay, a new one is its owner's alone.

    Raises:
        KeysError: the owner cannot be kept, so that the server might no longer be able to read it.
    """
    descriptor, aside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if target.exists():
                status = target.stat()
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    try:
                        os.fchown(descriptor, status.st_uid, status.st_gid)
                    except PermissionError:
                        raise KeysError(
                            f"{target} belongs to another user (uid {status.st_uid}), which only "
                            "root could keep so: run this as that user or as root"
                        ) from None
                os.fchmod(descriptor, status.st_mode & 0o7777)
            file.writelines(f"{entry.name} {entry.hash} {entry.day}\n" for entry in entries)
            file.flush()
            os.fsync(descriptor)
        os.replace(aside, target)
    except BaseException:
        pathlib.Path(aside).unlink(missing_ok=True)
        raise


def _unreadable(path: pathlib.Path, error: Exception) -> KeysError:
    reason = getattr(error, "strerror", None) or str(error)
    return KeysError(f"cannot read the keys in {path}: {reason}")


def _known(entries: list[Entry]) -> str:
    return "it has: " + (", ".join(dict.fromkeys(entry.name for entry in entries)) or "none")
