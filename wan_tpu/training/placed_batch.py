"""A batch on the mesh: latents in token form, samples over dp, tokens over sp and tp.

The first dimension counts the parts that a step computes one after the other.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32

from wan_tpu.dataset.sample import Batch
from wan_tpu.errors import InputError
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.sharding.layout import DP
from wan_tpu.sharding.mesh import place
from wan_tpu.sharding.rules import RESIDUAL
from wan_tpu.stage import abstract
from wan_tpu.training.embedding import CaptionTokens, TextTokens
from wan_tpu.transformer.denoiser import Denoiser
from wan_tpu.transformer.patches import patchify


class PlacedBatch(NamedTuple):
    """`Batch` as a step takes it, or one part of it without the first dimension.

    Attributes:
        latents: zeros after the real tokens.
        text: of the captions, zero past each one's end.
        condition: in token form, like the latents; None where a model sees no pictures so.
        image: tokens of the image encoder; None for a model without one.
        tokens: of the captions, where the text encoder is part of the step; else None.
    """

    latents: Float32[Array, "*parts batch tokens channels"]
    text: Float[Array, "*parts batch 512 text_dim"]
    condition: Float32[Array, "*parts batch tokens condition_channels"] | None = None
    image: Float[Array, "*parts batch image_tokens image_dim"] | None = None
    tokens: TextTokens | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """How batches are cut up and placed.

    Attributes:
        model: that is trained.
        denoiser: its transformer.
        batch: samples of a step.
        parts: one after the other.
        num_pictures: that an image encoder's tokens are of; 0 for none.
        has_tokens: whether the captions come as tokens, too.

    Raises:
        InputError: the samples of a part do not divide over dp; says which numbers do.
    """

    model: VideoModel
    denoiser: Denoiser
    batch: int
    parts: int
    num_pictures: int = 0
    has_tokens: bool = False

    def __post_init__(self) -> None:
        dp = self.model.layout.dp
        if self.batch % (self.parts * dp):
            multiple = self.parts * dp
            nearest = -(-self.batch // multiple) * multiple
            raise InputError(
                f"train.batch {self.batch} does not divide over {self.parts} parts "
                f"(train.accumulate) on layout {self.model.layout}, whose dp takes {dp} samples at "
                f"a time; nearest: {nearest}"
            )

    def place(self, batch: Batch, tokens: CaptionTokens | None = None) -> PlacedBatch:
        """A batch on the devices; every process gives the same one and keeps its part.

        Args:
            batch: its samples.
            tokens: of their captions, where the text encoder is part of the step.
        """
        target = self.abstract(batch.geometry)

        def put(array: np.ndarray | None, like: Any) -> Any:
            if array is None:
                return None
            array = np.asarray(array, like.dtype).reshape(self.parts, -1, *array.shape[1:])
            missing = like.shape[2] - array.shape[2]
            array = np.pad(array, [(0, missing if dim == 2 else 0) for dim in range(array.ndim)])
            assert array.shape == like.shape, (array.shape, like.shape)
            return place(array, like.sharding)

        latents, condition = (_tokens(x, batch.geometry) for x in (batch.latents, batch.condition))
        return PlacedBatch(
            latents=put(latents, target.latents),
            text=put(batch.text, target.text),
            condition=put(condition, target.condition),
            image=put(batch.image, target.image),
            tokens=TextTokens(*map(put, tokens, target.tokens or ())) if tokens else None,
        )

    def abstract(self, geometry: Geometry) -> PlacedBatch:
        """What `place` gives for batches of a size."""
        config, model = self.denoiser.config, self.model
        tokens = self.denoiser.padded_tokens(geometry)
        text_dim = model.text_encoder.config.d_model
        condition = image = None
        ids = self._abstract((TEXT_TOKENS,), jnp.int32, PartitionSpec(DP, None))
        if config.condition_channels:
            shape = (tokens, config.condition_channels)
            condition = self._abstract(shape, jnp.float32, RESIDUAL)
        if self.num_pictures:
            shape = (model.image_tokens(self.num_pictures), model.image_encoder.config.hidden_size)
            image = self._abstract(shape, model.dtype, OF_SAMPLES)
        return PlacedBatch(
            latents=self._abstract((tokens, config.token_channels), jnp.float32, RESIDUAL),
            text=self._abstract((TEXT_TOKENS, text_dim), model.dtype, OF_SAMPLES),
            condition=condition,
            image=image,
            tokens=TextTokens(ids, ids, ids) if self.has_tokens else None,
        )

    def _abstract(self, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
        samples = self.batch // self.parts
        sharding = NamedSharding(self.model.mesh, PartitionSpec(None, *spec))
        return abstract((self.parts, samples, *shape), dtype, sharding)


OF_SAMPLES = PartitionSpec(DP, None, None)
"""`[batch, ...]` that belongs to samples and to none of their tokens."""


def _tokens(latents: Any, geometry: Geometry) -> Any:
    """`[batch, frames, height, width, channels]` in token form."""
    if latents is None:
        return None
    return patchify(np.moveaxis(latents, -1, 1), geometry.compression.patch)


def part_of(batch: PlacedBatch, number: jax.Array) -> PlacedBatch:
    """One of the parts, inside a program."""
    return jax.tree.map(lambda x: x[number], batch)
