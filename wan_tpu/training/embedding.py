"""Textual inversion: vectors for a word are trained, through the text encoder; all else is frozen.

Gal et al. 2022, arXiv:2208.01618, for a model of videos. The vectors go in where the word stands
(`input`: rows beside the text encoder's table, gradients come through the encoder) or take the
place of what comes out there (`output`: the encoder's layers have no backward pass).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.checkpoints.weights import Weight
from wan_tpu.errors import InputError
from wan_tpu.pipeline.whole_file import aside_of, check_file_path, publish, reporting
from wan_tpu.sharding.mesh import named, place
from wan_tpu.text.embedding_file import INPUT_KEY, OUTPUT_KEY, Embedding, embedding_bytes
from wan_tpu.text.encoder import EMBEDDING, TextEncoder
from wan_tpu.text.new_words import NewWords, WordTokenizer
from wan_tpu.text.prompt import tokenize
from wan_tpu.text.tokenizer import Tokenizer
from wan_tpu.torch_bridge import Params
from wan_tpu.training.config import EmbeddingConfig

VECTORS = "vectors"
"""The one parameter that is trained."""

KEPT_SIZE = "kept_size"
"""What `keeps_norm` keeps; among the frozen parameters."""


CaptionTokens = tuple[Int32[np.ndarray, "batch 512"], ...]
"""The three of `TextTokens` on the host."""


class TextTokens(NamedTuple):
    """Captions as the text encoder is given them; see `TextEncoder.encode`.

    Attributes:
        ids: those of the vectors are above the table.
        mask: 1 for real tokens.
        slots: number of the vector that comes out in a place, or -1.
    """

    ids: Int32[Array, "*parts batch 512"]
    mask: Int32[Array, "*parts batch 512"]
    slots: Int32[Array, "*parts batch 512"]


def make_word_tokenizer(
    config: EmbeddingConfig, tokenizer: Tokenizer, vocab_size: int
) -> WordTokenizer:
    """A model's tokenizer that knows the new word.

    Args:
        config: the word and its number of vectors.
        tokenizer: the model's.
        vocab_size: rows of its text encoder's table.

    Raises:
        InputError: the word cannot be one.
    """
    return WordTokenizer(tokenizer, NewWords([_blank(config)], vocab_size))


def tokens_of(tokenizer: WordTokenizer, captions: Sequence[str]) -> CaptionTokens:
    """Captions as ids, mask and slots, the new word's vectors in their places.

    Args:
        tokenizer: of `make_word_tokenizer`.
        captions: of a batch.

    Raises:
        InputError: there are none: the data was made without them.
    """
    if not captions:
        raise InputError(
            "the data has no captions beside its embeddings, and a new word is learnt from "
            "captions; prepare it again"
        )
    ids, mask, _, slots = tokenizer.inputs(*tokenize(tokenizer, captions))
    return ids, mask, slots


def start_vectors(
    encoder: TextEncoder,
    params: Params,
    tokenizer: WordTokenizer,
    config: EmbeddingConfig,
    mesh: Mesh,
) -> tuple[Float32[np.ndarray, "vectors d_model"], Float32[np.ndarray, ""]]:
    """What the vectors begin as, and the size that `keeps_norm` keeps them at.

    They are the start text's, one after the other: cut, or begun again until there are enough.

    Args:
        encoder: the model's.
        params: its parameters.
        tokenizer: of `make_word_tokenizer`.
        config: start text, kind and number.
        mesh: the devices that the parameters are on.

    Returns:
        Rows of the table and the median norm of all of them; or, of the kind `output`, what the
        start text comes out as, and its standard deviation.

    Raises:
        InputError: the start text is no token.
    """
    ids, mask = tokenize(tokenizer, [config.start])
    count = int(mask.sum()) - 1  # without the end
    if count < 1:
        raise InputError(
            f"embedding.start {config.start!r} is no token of this model; take words that it knows"
        )
    with jax.set_mesh(mesh):
        whole = named(mesh)
        if config.kind == "input":
            found = jax.jit(lambda table: table[ids[0, :count]], out_shardings=whole)(
                params[EMBEDDING]
            )
            size = jax.jit(median_norm, out_shardings=whole)(params[EMBEDDING])
        else:
            encode = jax.jit(encoder.encode, out_shardings=whole)
            placed = (place(x, whole) for x in (ids, mask))
            found = encode(params, *placed)[0, :count]
            size = jnp.std(found.astype(jnp.float32))
    rows = np.asarray(found, np.float32)
    return np.resize(rows, (config.vectors, rows.shape[1])), np.asarray(size, np.float32)


def median_norm(table: Float[Array, "vocab d_model"]) -> Float32[Array, ""]:
    """Of a table's rows."""
    return jnp.median(jnp.linalg.norm(table.astype(jnp.float32), axis=1))


def kept_at_size(
    vectors: Float32[Array, "vectors d_model"], size: Float32[Array, ""], kind: str
) -> Float32[Array, "vectors d_model"]:
    """Each vector scaled to a norm, or of the kind `output` to a standard deviation.

    A vector of zeros stays: there is no direction to scale.
    """
    if kind == "input":
        now = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    else:
        now = jnp.std(vectors, axis=1, keepdims=True)
    return vectors * jnp.where(now > 0, size / jnp.where(now > 0, now, 1), 1)


def vector_weight(config: EmbeddingConfig, d_model: int) -> Weight:
    """The trained parameter: whole on every device, float32.

    Raises:
        InputError: the word cannot be one, or has more vectors than a prompt takes.
    """
    _blank(config)
    key = INPUT_KEY if config.kind == "input" else OUTPUT_KEY
    return Weight(
        name=VECTORS, tensors=(key,), tensor_shape=(config.vectors, d_model), dtype=jnp.float32
    )


def write_embedding(
    path: str | os.PathLike[str],
    config: EmbeddingConfig,
    vectors: Float32[np.ndarray, "vectors d_model"],
    metadata: Mapping[str, str],
) -> pathlib.Path:
    """Writes the file that `generate --embedding` and ComfyUI take, whole or not at all.

    Args:
        path: of the file; replaced where it is there.
        config: the word and the kind.
        vectors: `[vectors, d_model]`.
        metadata: kept in the header besides the word.

    Raises:
        InputError: the vectors are not finite.
        OutputError: the file cannot be written.
    """
    vectors = np.asarray(vectors, np.float32)
    word = embedding_of(config, vectors)
    target = pathlib.Path(os.path.realpath(check_file_path(path)))
    aside = aside_of(target)
    with reporting(path):
        try:
            aside.write_bytes(embedding_bytes(word.word, word.rows, word.outputs, metadata))
            publish(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return target


def embedding_of(
    config: EmbeddingConfig, vectors: Float32[np.ndarray, "vectors d_model"]
) -> Embedding:
    """The word with vectors of its kind, as a pipeline takes it.

    Args:
        config: the word and the kind.
        vectors: `[vectors, d_model]`.

    Raises:
        InputError: the word cannot be one, or the vectors are not finite or too many.
    """
    goes_in = config.kind == "input"
    return Embedding(
        word=config.word,
        name=config.word,
        rows=vectors if goes_in else None,
        outputs=None if goes_in else vectors,
    )


def _blank(config: EmbeddingConfig) -> Embedding:
    """The word before its vectors are known."""
    return embedding_of(config, np.zeros((config.vectors, 1), np.float32))
