"""API keys: only their hashes are kept, and each has a name, which owns jobs.

A key is 32 random bytes, so one round of SHA-256 hides it: there is nothing to guess. The file has
a line per key: name, hash, day.
"""

import datetime
import hashlib
import hmac
import os
import pathlib
import re
import secrets

from wan_tpu.errors import WanTpuError

PREFIX = "wt-"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeysError(WanTpuError):
    """The keys' file or a name cannot be used; says why."""


class Keys:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: pathlib.Path):
        """Reads the file.

        Raises:
            KeysError: it is missing or not a file of keys.
        """
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._hashes: dict[str, bytes] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads the file if it changed; call now and then.

        Raises:
            KeysError: it is missing or not a file of keys; the keys stay as they were.
        """
        try:
            status = self._path.stat()
        except OSError as error:
            raise KeysError(f"cannot read the keys in {self._path}: {error.strerror}") from None
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._hashes = read_keys(self._path)
            self._stamp = stamp

    def find(self, key: str) -> str | None:
        """The name of a key; takes as long for a wrong one as for a right one."""
        digest = hash_key(key)
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def hash_key(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest().encode()


def read_keys(path: pathlib.Path) -> dict[str, bytes]:
    """Hashes by name.

    Raises:
        KeysError: the file cannot be read, or a line of it is not a key's.
    """
    return {words[0]: words[1].encode() for words in _read_lines(path)}


def add_key(path: pathlib.Path, name: str) -> str:
    """Makes a key and writes its hash; the key itself is returned and nowhere else.

    Raises:
        KeysError: the name is taken or no name, or the file is not one of keys.
    """
    if not NAME.fullmatch(name):
        raise KeysError(f"a name is 1 to 64 letters, digits or . _ -, got {name!r}")
    lines = _read_lines(path) if path.exists() else []
    if any(words[0] == name for words in lines):
        raise KeysError(f"{path} has a key named {name} already; remove it first")
    key = PREFIX + secrets.token_urlsafe(32)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    _write_lines(path, [*lines, [name, hash_key(key).decode(), day]])
    return key


def remove_key(path: pathlib.Path, name: str) -> None:
    """Takes a key out; a running server notices within seconds.

    Raises:
        KeysError: there is no such key.
    """
    lines = _read_lines(path)
    kept = [words for words in lines if words[0] != name]
    if len(kept) == len(lines):
        known = ", ".join(words[0] for words in lines) or "none"
        raise KeysError(f"{path} has no key named {name!r}; it has: {known}")
    _write_lines(path, kept)


def _read_lines(path: pathlib.Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"cannot read the keys in {path}: {error}") from None
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for number, words in enumerate(lines, start=1):
        well_formed = (
            len(words) == 3 and NAME.fullmatch(words[0]) and re.fullmatch("[0-9a-f]{64}", words[1])
        )
        if not well_formed:
            raise KeysError(
                f"key {number} in {path} is not a name, a hash and a day; "
                "make keys with `python -m server keys add NAME`"
            )
    return lines


def _write_lines(path: pathlib.Path, lines: list[list[str]]) -> None:
    """Replaces the file, readable by its owner alone."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(" ".join(words) + "\n" for words in lines)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
