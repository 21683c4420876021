"""Encoded samples as files: called by everything that made them, whole or absent.

Under `samples/` a file for each clip, under `texts/` one for each caption, shared by equal ones;
numbers are bfloat16. The name, and the file's header, are a digest of what made it: another clip,
window, size, caption or encoder gives another name, so that nothing old is ever taken for new.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.dataset.digests import digest_of_json
from wan_tpu.errors import CheckpointError, InputError
from wan_tpu.pipeline.whole_file import aside_of, publish, reporting

ENCODE_VERSION = 1
"""Goes up when the same frames or captions are encoded otherwise."""

SAMPLES, TEXTS = "samples", "texts"
SUFFIX = ".safetensors"
LATENTS, CONDITION, IMAGE, TEXT = "latents", "condition", "image", "text"
"""Names of arrays in the files."""

_HEADER = "wan_tpu"

Arrays = Mapping[str, Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Everything that makes the encodings of a model: what every key has in common.

    Attributes:
        encoders: digests by component, of `digests.encoder_digests`.
        dtype: of the text encoder's and the image encoder's weights and activations.
        vae_dtype: of the autoencoder's.
        inputs: pictures that the model is given as channels, of `wan_tpu.media.ROLES`.
    """

    encoders: Mapping[str, str]
    dtype: str
    vae_dtype: str
    inputs: tuple[str, ...] = ()

    def text(self, caption: str) -> dict[str, Any]:
        """What makes the embeddings of a cleaned caption."""
        return {
            "version": ENCODE_VERSION,
            "caption": caption,
            "text_encoder": self.encoders["text_encoder"],
            "dtype": self.dtype,
        }

    def sample(self, *, media: str, clip: Mapping[str, Any]) -> dict[str, Any]:
        """What makes the latents of a clip.

        Args:
            media: digest of its file.
            clip: what is taken of it, and in which size and frame rate.
        """
        made = {
            "version": ENCODE_VERSION,
            "media": media,
            "clip": dict(clip),
            "vae": self.encoders["vae"],
            "vae_dtype": self.vae_dtype,
            "inputs": list(self.inputs),
        }
        if "image_encoder" in self.encoders:
            made |= {"image_encoder": self.encoders["image_encoder"], "dtype": self.dtype}
        return made


def key_of(made: Mapping[str, Any]) -> str:
    """The name of what was made so: 64 hexadecimal digits."""
    return digest_of_json(made)


class Cache:
    """The files of a folder.

    Attributes:
        folder: has `samples/` and `texts/`.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def path(self, kind: str, key: str) -> pathlib.Path:
        """Where a file is, or would be; `kind` is `SAMPLES` or `TEXTS`."""
        return self.folder / kind / f"{key}{SUFFIX}"

    def make_folders(self) -> None:
        """Makes the two folders, where they are not there.

        Raises:
            OutputError: they cannot be.
        """
        for kind in (SAMPLES, TEXTS):
            with reporting(self.folder / kind):
                (self.folder / kind).mkdir(parents=True, exist_ok=True)

    def has(self, kind: str, key: str) -> bool:
        """Whether a file is there, whole, and what its name says."""
        path = self.path(kind, key)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="np") as file:
                told = json.loads((file.metadata() or {})[_HEADER])
        except (SafetensorError, OSError, KeyError, ValueError):
            return False
        return key_of(told) == key

    def write(self, kind: str, made: Mapping[str, Any], arrays: Arrays) -> str:
        """Writes a file.

        Args:
            kind: `SAMPLES` or `TEXTS`.
            made: what made it.
            arrays: rounded to bfloat16 here.

        Returns:
            Its key.

        Raises:
            OutputError: it cannot be written; nothing of it is left.
        """
        key = key_of(made)
        path = self.path(kind, key)
        # One entry: of several the order in the file would differ from time to time.
        header = {_HEADER: json.dumps(made, sort_keys=True)}
        data = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
        aside = aside_of(path)
        with reporting(path):
            try:
                aside.write_bytes(safetensors.numpy.save(data, metadata=header))
                publish(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        return key

    def read(self, kind: str, key: str) -> dict[str, Float[np.ndarray, "..."]]:
        """The arrays of a file, float32; the file is closed.

        Raises:
            InputError: it is gone or damaged.
        """
        path = self.path(kind, key)
        try:
            source = SafetensorsSource(path)
            return {name: source.read(name).astype(np.float32) for name in source.shapes}
        except CheckpointError as error:
            raise InputError(f"{error}; wan-tpu dataset prepare makes it again") from None

    def files(self) -> Iterator[tuple[str, str, pathlib.Path]]:
        """Every file of ours, with its kind and key."""
        for kind in (SAMPLES, TEXTS):
            for path in sorted((self.folder / kind).glob(f"*{SUFFIX}")):
                if len(path.stem) == 64 and not path.name.startswith("."):
                    yield kind, path.stem, path

    def leftovers(self) -> Iterator[pathlib.Path]:
        """What a sudden end has left half-written."""
        for kind in (SAMPLES, TEXTS):
            yield from (self.folder / kind).glob(".wan-tpu-*.part")
