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
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE
from wan_tpu.text.tokenizer import CONFIG_FILE, MAKERS

INDEX = "digests.jsonl"
"""A line for each file that was read; lines are only added, so that processes may share it."""

_BLOB = re.compile(r"[0-9a-f]{64}")
"""The hub's cache calls a large file by its SHA-256, and a small one by 40 digits of git."""


class Digests:
    """SHA-256 of files, as 64 hexadecimal digits, remembered in a folder."""

    def __init__(self, folder: pathlib.Path | None):
        """Reads what was remembered; lines that a sudden end has cut are passed over.

        Args:
            folder: where the index lies; None remembers nothing.
        """
        self._index = None if folder is None else folder / INDEX
        self._known: dict[tuple[str, int, int], str] = {}
        if self._index is None or not self._index.is_file():
            return
        for line in self._index.read_text("utf-8", "replace").splitlines():
            try:
                path, size, changed, digest = json.loads(line)
            except ValueError:
                continue
            self._known[path, size, changed] = digest

    def of(self, path: pathlib.Path) -> str:
        """The digest of a file.

        Raises:
            OSError: it cannot be read.
        """
        path = path.resolve()
        if path.parent.name == "blobs" and _BLOB.fullmatch(path.name):
            return path.name
        key = _state(path)
        if key not in self._known:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if _state(path) != key:  # it is being written
                return digest
            self._known[key] = digest
            self._remember(key, digest)
        return self._known[key]

    def _remember(self, key: tuple[str, int, int], digest: str) -> None:
        if self._index is None:
            return
        try:
            with self._index.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*key, digest]) + "\n")
        except OSError:
            self._index = None  # a folder that is only read from: it costs reading the file again


def _state(path: pathlib.Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def encoder_digests(description: ModelDescription, digests: Digests) -> dict[str, str]:
    """What the encoders of a model are, by component: weights, configuration, the tokenizer's, too.

    Args:
        description: from `open_model`.
        digests: of files.

    Raises:
        CheckpointError: files are missing.
    """
    found = {}
    for name in (VAE, TEXT_ENCODER, IMAGE_ENCODER):
        if name not in description.kind.components:
            continue
        path = description.component_folder(name)
        files = weight_files(path, PLAIN_NAMES[name], description.variant)
        parts: list[Any] = [_essence(description.configs[name]), [digests.of(f) for f in files]]
        if name == TEXT_ENCODER:
            folder = description.component_folder("tokenizer")
            names = (*MAKERS, CONFIG_FILE)
            there = [folder / name for name in names if (folder / name).is_file()]
            parts.append([digests.of(file) for file in there])
        found[name] = digest_of_json(parts)
    return found


def _essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what says where it comes from."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def digest_of_json(value: Any) -> str:
    """SHA-256 of a value's JSON, 64 hexadecimal digits; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
