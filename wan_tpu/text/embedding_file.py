"""Files of textual inversion: vectors for a word, read and written. Knows no model, and no JAX.

Only safetensors. Three forms are read: ComfyUI's and OneTrainer's, a key for each text encoder
(UMT5-XXL's is `umt5xxl`, with `_out` for what comes out of it); diffusers', one tensor by the name
of its token (Gal et al. 2022, arXiv:2208.01618); and the web UI's `emb_params`. The first is
written.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from jaxtyping import Float32

from wan_tpu.checkpoints.source import FLOATS, SafetensorsSource
from wan_tpu.errors import InputError
from wan_tpu.geometry import TEXT_TOKENS
from wan_tpu.media import digest_of
from wan_tpu.text.prompt import check_prompt, clean_prompt

INPUT_KEY, OUTPUT_KEY = "umt5xxl", "umt5xxl_out"
"""ComfyUI's name for Wan's text encoder, and OneTrainer's ending for what comes out of it."""

SINGLE_KEYS = ("emb_params", "string_to_param", "string_to_param.*")
"""The web UI's names for the vectors of a file; it says nothing of the word."""

OTHER_ENCODERS = ("clip_l", "clip_g", "clip_h", "t5", "t5xxl", "llama", "gemma", "qwen")
"""Keys of the same form that are of text encoders Wan has not."""

WORD = "word"
"""The header's key for the word."""

SUFFIX = ".safetensors"
MOST_VECTORS = TEXT_TOKENS - 1
"""A prompt's end token needs a place, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """Vectors for a word; at least one of the two kinds.

    Attributes:
        word: what stands for them in a prompt; upper and lower case are the same.
        name: of the file, without its ending: what follows `embedding:` in a prompt.
        rows: that the text encoder looks up; None leaves the word out of what it reads.
        outputs: that take the place of what comes out of it; None keeps that.
        digest: of the file.

    Raises:
        InputError: the word cannot be one, or the vectors are none, not finite, too many, or of
            two numbers.
    """

    word: str
    name: str
    rows: Float32[np.ndarray, "rows dim"] | None = None
    outputs: Float32[np.ndarray, "outputs output_dim"] | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        check_word(self.word)
        given = [vectors for vectors in (self.rows, self.outputs) if vectors is not None]
        if not given:
            raise InputError(f"the embedding {self.word!r} has no vectors")
        for vectors in given:
            if not np.isfinite(vectors).all():
                raise InputError(f"the embedding {self.word!r} holds NaN or infinite numbers")
            if not 1 <= len(vectors) <= MOST_VECTORS:
                raise InputError(
                    f"the embedding {self.word!r} has {len(vectors)} vectors; a prompt takes 1 to "
                    f"{MOST_VECTORS}"
                )
        if given[0].shape != given[-1].shape:
            raise InputError(
                f"the embedding {self.word!r} has {list(given[0].shape)} numbers to go in and "
                f"{list(given[-1].shape)} to come out; both are of the same places"
            )

    @property
    def num_vectors(self) -> int:
        """Tokens that it takes in a prompt."""
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self._vectors.shape[1]

    @property
    def _vectors(self) -> Float32[np.ndarray, "vectors dim"]:
        """Those of either kind."""
        vectors = self.outputs if self.rows is None else self.rows
        assert vectors is not None
        return vectors

    def told(self) -> dict[str, str]:
        """What is told of it where it was used, JSON-ready."""
        return {"word": self.word, "file": self.name + SUFFIX, "digest": self.digest}


def check_word(word: str) -> None:
    """Refuses a word that would not be found in a prompt, or not come through its cleaning whole.

    Raises:
        InputError: says which, and a word that works.
    """
    try:
        check_prompt(word)
    except InputError:
        raise InputError(
            f"the word of an embedding is empty, got {word!r}; give one, for example 'moss'"
        ) from None
    if re.search(r"[\s<>&:]", word) or clean_prompt(word) != word:
        raise InputError(
            f"{word!r} cannot be the word of an embedding: blanks, '<', '>', '&', ':' and what the "
            "cleaning of prompts changes are not kept; take letters and digits, for example 'moss'"
        )


def split_word(argument: str) -> tuple[pathlib.Path, str | None]:
    """`FILE` or `FILE:WORD` as a path and a word; a file whose name has a colon is itself."""
    path = pathlib.Path(argument)
    head, colon, word = argument.rpartition(":")
    if path.is_file() or not colon or not head or "/" in word:
        return path, None
    return pathlib.Path(head), word


def read_embedding(argument: str) -> Embedding:
    """The vectors of a file, as float32.

    Args:
        argument: `FILE` or `FILE:WORD`. Without a word it is the header's, else the name of
            diffusers' token without its brackets, else the file's name.

    Raises:
        InputError: it is missing, a pickle, of something else, or its numbers or its word will not
            do.
        CheckpointError: it is damaged.
    """
    path, word = split_word(argument)
    if path.suffix in (".pt", ".bin", ".pth", ".ckpt"):
        raise InputError(
            f"{path} is a pickle, which can run code when it is read; convert it to {SUFFIX}"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the {SUFFIX} file of an embedding")
    source = SafetensorsSource(path)
    keys = _keys(path, source)
    tensors = {key: _read(path, source, key) for key in keys if key is not None}
    content = path.read_bytes()
    rows, outputs = (None if key is None else tensors[key] for key in keys)
    try:
        return Embedding(
            word=word or _metadata(content).get(WORD) or _token_of(keys[0]) or path.stem,
            name=path.stem,
            rows=rows,
            outputs=outputs,
            digest=digest_of(content),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def embedding_bytes(
    word: str,
    rows: Float32[np.ndarray, "rows dim"] | None,
    outputs: Float32[np.ndarray, "outputs output_dim"] | None,
    metadata: Mapping[str, str],
) -> bytes:
    """The content of a file, as `read_embedding` and ComfyUI take it.

    Args:
        word: kept in the header.
        rows: that go in. outputs: that come out. One of them may be None.
        metadata: further entries of the header.
    """
    given = {INPUT_KEY: rows, OUTPUT_KEY: outputs}
    tensors = {key: np.ascontiguousarray(v) for key, v in given.items() if v is not None}
    return safetensors.numpy.save(tensors, {**metadata, "format": "pt", WORD: word})


def _keys(path: pathlib.Path, source: SafetensorsSource) -> tuple[str | None, str | None]:
    """Names of the tensors that go in and that come out.

    Raises:
        InputError: there are others, or it is not clear which are meant.
    """
    names = list(source.shapes)
    known = {INPUT_KEY, OUTPUT_KEY}
    if known & set(names):
        strangers = sorted(set(names) - known)
        if strangers:
            raise InputError(
                f"{path} holds vectors of other text encoders besides {INPUT_KEY}: "
                f"{', '.join(strangers[:5])}; Wan has none of them, take them out"
            )
        return (
            INPUT_KEY if INPUT_KEY in names else None,
            OUTPUT_KEY if OUTPUT_KEY in names else None,
        )
    if len(names) != 1:
        raise InputError(
            f"{path} holds {len(names)} tensors and none is called {INPUT_KEY} or {OUTPUT_KEY}: it "
            "is no embedding for Wan's text encoder"
        )
    if names[0].removesuffix("_out") in OTHER_ENCODERS:
        raise InputError(
            f"{path} holds vectors of the text encoder {names[0]}; those of Wan's are called "
            f"{INPUT_KEY} or {OUTPUT_KEY}"
        )
    return names[0], None


def _read(
    path: pathlib.Path, source: SafetensorsSource, key: str
) -> Float32[np.ndarray, "vectors dim"]:
    """`[vectors, dim]`, of a vector alone `[1, dim]`."""
    shape, dtype = source.shapes[key], source.dtypes[key]
    if dtype not in FLOATS or len(shape) not in (1, 2) or 0 in shape:
        raise InputError(
            f"{path}: {key} is {dtype} {list(shape)}; vectors are floats, [vectors, dim]"
        )
    if len(shape) == 2 and shape[0] > MOST_VECTORS:
        raise InputError(
            f"{path}: {key} has {shape[0]} vectors; a prompt takes 1 to {MOST_VECTORS}"
        )
    return np.array(source.read(key), np.float32).reshape(-1, shape[-1])


def _token_of(key: str | None) -> str | None:
    """The word that diffusers' key is: `<moss>` is moss; None of keys that are no words."""
    if key is None or key in (INPUT_KEY, OUTPUT_KEY, *SINGLE_KEYS):
        return None
    return re.sub(r"^<(.*)>$", r"\1", key)


def _metadata(content: bytes) -> Mapping[str, str]:
    """The header's own entries; a sound file's."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})
