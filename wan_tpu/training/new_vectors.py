"""What a run of textual inversion trains, in the form that every kind of training has.

The text encoder is part of the step and, with the transformer, only used. Both experts of a model
with two train the same vectors: a word has one meaning.
"""

import functools
import logging
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.weights import Weight, load_weights
from wan_tpu.errors import InputError
from wan_tpu.family import TEXT_ENCODER
from wan_tpu.sharding.mesh import named, place
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.text.encoder import TextEncoder
from wan_tpu.text.new_words import WordTokenizer
from wan_tpu.text.prompt import SHOWN_CHARACTERS, clean_prompt
from wan_tpu.text.tokenizer import load_tokenizer
from wan_tpu.torch_bridge import Params
from wan_tpu.training.config import EmbeddingConfig
from wan_tpu.training.embedding import (
    KEPT_SIZE,
    VECTORS,
    CaptionTokens,
    embedding_of,
    kept_at_size,
    make_word_tokenizer,
    start_vectors,
    tokens_of,
    vector_weight,
)
from wan_tpu.training.placed_batch import PlacedBatch
from wan_tpu.training.trained import Text, load_each
from wan_tpu.transformer.denoiser import Denoiser

logger = logging.getLogger(__name__)

STATE = "embedding"
"""The state's name, whichever transformer trains it."""


class NewVectors:
    """Vectors of a word: see `wan_tpu.training.trained.Trained`.

    Attributes:
        config: the word.
    """

    def __init__(
        self,
        config: EmbeddingConfig,
        denoiser: Denoiser,
        encoder: TextEncoder,
        description: ModelDescription,
    ):
        """Reads nothing yet: a model that is planned has no files.

        Raises:
            InputError: the word cannot be one, or has more vectors than a prompt takes.
        """
        self.config = config
        self._denoiser, self._encoder, self._description = denoiser, encoder, description
        vector_weight(config, encoder.config.d_model)

    @functools.cached_property
    def tokenizer(self) -> WordTokenizer:
        """The model's, with the word."""
        rows = self._encoder.config.vocab_size
        folder = self._description.component_folder("tokenizer")
        return make_word_tokenizer(self.config, load_tokenizer(folder, rows), rows)

    def weights(self) -> list[Weight]:
        """See `Trained`: the vectors alone."""
        return [vector_weight(self.config, self._encoder.config.d_model)]

    def frozen_weights(self) -> list[Weight]:
        """See `Trained`: the transformer, the text encoder, and the size that is kept."""
        size = Weight(name=KEPT_SIZE, tensors=(KEPT_SIZE,), tensor_shape=(), dtype=jnp.float32)
        return [*self._denoiser.weights(), *self._encoder.weights(), size]

    def params(self, frozen: Params, trained: Params, key: PRNGKeyArray) -> Params:
        """See `Trained`: as they are."""
        return {weight.name: frozen[weight.name] for weight in self._denoiser.weights()}

    def merged(self, frozen: Params, trained: Params) -> Params:
        """See `Trained`: as they are."""
        return {weight.name: frozen[weight.name] for weight in self._denoiser.weights()}

    def word(self, trained: Params) -> Embedding:
        """See `Trained`."""
        return embedding_of(self.config, np.asarray(trained[VECTORS], np.float32))

    def text(self, frozen: Params, trained: Params, batch: PlacedBatch) -> Text:
        """See `Trained`: through the text encoder, whose layers are computed again backward."""
        assert batch.tokens is not None
        ids, mask, slots = batch.tokens
        params = {weight.name: frozen[weight.name] for weight in self._encoder.weights()}
        return self._encoder.encode(params, ids, mask, trained[VECTORS], slots, remat=True)

    def tokens(self, captions: Sequence[str]) -> CaptionTokens:
        """See `Trained`."""
        return tokens_of(self.tokenizer, captions)

    def check_captions(self, captions: Sequence[str]) -> None:
        """See `Trained`; those without the word teach nothing, and are told of."""
        words, word = self.tokenizer.words, self.config.word
        without = [caption for caption in captions if not words.used([clean_prompt(caption)])]
        if not without:
            return
        example = without[0][:SHOWN_CHARACTERS]
        if len(without) == len(captions):
            raise InputError(
                f"no caption of the data holds the word {word!r}, so nothing would be learnt; the "
                f"first is {example!r}"
            )
        logger.warning(
            "%d of %d captions do not hold the word %r and teach nothing; the first is %r",
            len(without),
            len(captions),
            word,
            example,
        )

    def after_update(self, frozen: Params, trained: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `Trained`: where `keeps_norm` says so, of the size that they began with."""
        if not self.config.keeps_norm:
            return trained
        return {VECTORS: kept_at_size(trained[VECTORS], frozen[KEPT_SIZE], self.config.kind)}

    def state_name(self, expert: str) -> str:
        """See `Trained`: there is one."""
        return STATE

    def load_frozen(
        self, description: ModelDescription, experts: Sequence[str], mesh: Mesh
    ) -> Mapping[str, Params]:
        """See `Trained`; the text encoder is loaded once for all."""
        encoder, source = self._encoder, description.source(TEXT_ENCODER)
        text = load_weights(TEXT_ENCODER, encoder.weights(), source, mesh)
        _, size = start_vectors(encoder, text, self.tokenizer, self.config, mesh)
        size = place(size, named(mesh))
        transformers = load_each(experts, self._denoiser.weights(), description, mesh)
        return {
            expert: {**params, **text, KEPT_SIZE: size} for expert, params in transformers.items()
        }

    def begin(
        self,
        description: ModelDescription,
        experts: Sequence[str],
        mesh: Mesh,
        seed: int,
        frozen: Mapping[str, Params],
    ) -> Mapping[str, Params]:
        """See `Trained`: the start text's; nothing begins at random."""
        text = frozen[experts[0]]
        vectors, _ = start_vectors(self._encoder, text, self.tokenizer, self.config, mesh)
        return {STATE: {VECTORS: place(vectors, named(mesh))}}
