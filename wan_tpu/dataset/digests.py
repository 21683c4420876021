"""What a file holds, as a digest that is computed once; and what the encoders are, of theirs.

A cached sample is only as right as its key, so every byte of a clip and of the weights counts. What
was read once is remembered by path, size and time of change; of the hub's files the cache's own
names are digests.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.component import PLAIN_NAMES
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.files import weight_files
from wan_tpu.errors import CheckpointError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE
from wan_tpu.text.tokenizer import CONFIG_FILE, MAKERS

INDEX = "digests.jsonl"
"""A line for each file that was read; lines are only added, so that processes may share it."""

_BLOB = re.compile(r"[0-9a-f]{64}")
"""The hub's cache calls a large file by its SHA-256, and a small one by 40 digits of git."""


State = tuple[str, int, int]
"""Of a file: where it is, its bytes, and when it was changed, in nanoseconds."""


def state_of(path: pathlib.Path) -> State:
    """The state of a file, links followed.

    Raises:
        OSError: it is not there.
    """
    path = path.resolve()
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


class Lines:
    """JSON lines that are only ever added to; several processes may do so."""

    def __init__(self, path: pathlib.Path | None):
        """None remembers nothing."""
        self._path = path

    def read(self) -> list[Any]:
        """All of them, but for those that a sudden end has cut."""
        if self._path is None or not self._path.is_file():
            return []
        found = []
        for line in self._path.read_text("utf-8", "replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def add(self, value: Any) -> None:
        """One more; a folder that cannot be written forgets it, which costs time alone."""
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(value) + "\n")
        except OSError:
            self._path = None


class Digests:
    """SHA-256 of files, as 64 hexadecimal digits, remembered in a folder."""

    def __init__(self, folder: pathlib.Path | None):
        """Reads what was remembered.

        Args:
            folder: where the index lies; None remembers nothing.
        """
        self._index = Lines(None if folder is None else folder / INDEX)
        self._known: dict[State, str] = {}
        for path, size, changed, digest in self._index.read():
            self._known[path, size, changed] = digest

    def of(self, path: pathlib.Path) -> str:
        """The digest of a file.

        Raises:
            OSError: it cannot be read.
        """
        state = state_of(path)
        digest = self.known(state)
        if digest is None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.remember(path, state, digest)
        return digest

    def known(self, state: State) -> str | None:
        """The digest of a file in this state, where it needs no reading."""
        path = pathlib.PurePath(state[0])
        if path.parent.name == "blobs" and _BLOB.fullmatch(path.name):
            return path.name
        return self._known.get(state)

    def remember(self, path: pathlib.Path, state: State, digest: str) -> None:
        """What was read of a file, whose state was this before; not if it has changed meanwhile.

        Raises:
            OSError: the file has gone.
        """
        if state_of(path) != state:
            return
        self._known[state] = digest
        self._index.add([*state, digest])


def encoder_digests(description: ModelDescription, digests: Digests) -> dict[str, str]:
    """What the encoders of a model are, by component: weights, configuration, the tokenizer's, too.

    Args:
        description: from `open_model`.
        digests: of files.

    Raises:
        CheckpointError: files are missing or cannot be read.
    """
    found = {}

    def of(path: pathlib.Path) -> str:
        try:
            return digests.of(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None

    for name in (VAE, TEXT_ENCODER, IMAGE_ENCODER):
        if name not in description.kind.components:
            continue
        path = description.component_folder(name)
        files = weight_files(path, PLAIN_NAMES[name], description.variant)
        parts: list[Any] = [_essence(description.configs[name]), [of(file) for file in files]]
        if name == TEXT_ENCODER:
            folder = description.component_folder("tokenizer")
            names = (*MAKERS, CONFIG_FILE)
            there = [folder / name for name in names if (folder / name).is_file()]
            parts.append([of(file) for file in there])
        found[name] = digest_of_json(parts)
    return found


def _essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what says where it comes from."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def digest_of_json(value: Any) -> str:
    """SHA-256 of a value's JSON, 64 hexadecimal digits; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
