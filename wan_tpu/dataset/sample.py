"""What a training step takes of the data: latents, text, and what pictures add. NumPy, no JAX."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from jaxtyping import Float

from wan_tpu.geometry import Geometry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One clip with its caption, encoded.

    Attributes:
        name: of the clip, and where in it the sample begins.
        caption: as it was tokenised.
        latents: normalised mean of the autoencoder's distribution,
            `[frames, height, width, channels]`.
        text: embeddings of the caption's real tokens, `[tokens, text_dim]`.
        condition: for models that see pictures as channels: the encoded pictures and grey,
            `[frames, height, width, channels]`, without the mask.
        image: for models with an image encoder: its tokens, `[tokens, width]`.
    """

    name: str
    caption: str
    latents: Float[np.ndarray, "frames height width channels"]
    text: Float[np.ndarray, "tokens text_dim"]
    condition: Float[np.ndarray, "frames height width channels"] | None = None
    image: Float[np.ndarray, "image_tokens image_dim"] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        geometry: sizes of the clips.
        names: of the samples.
        captions: of the samples, as each was tokenised; for what is learnt through the text
            encoder, which sees words instead of embeddings.
        latents: `[batch, frames, height, width, channels]`.
        text: `[batch, 512, text_dim]`, zero past each caption's end.
        condition: `[batch, frames, height, width, condition channels]`, the mask before the
            encoded pictures, as `pipeline.conditions.FurtherChannels` has them; or None.
        image: `[batch, tokens, width]`, or None.
    """

    geometry: Geometry
    names: tuple[str, ...]
    latents: Float[np.ndarray, "batch frames height width channels"]
    text: Float[np.ndarray, "batch 512 text_dim"]
    captions: tuple[str, ...] = ()
    condition: Float[np.ndarray, "batch frames height width condition_channels"] | None = None
    image: Float[np.ndarray, "batch image_tokens image_dim"] | None = None


class Dataset(Protocol):
    """Batches in an order that is a pure function of a seed.

    Attributes:
        digest: of everything that made the samples: another digest is other data.
        geometries: sizes of the batches, each a program; the most frequent first.
        empty_text: embeddings of the empty caption, `[512, text_dim]`, zero past its end.
    """

    digest: str
    geometries: tuple[Geometry, ...]
    empty_text: Float[np.ndarray, "512 text_dim"]

    def batches(self, size: int, *, seed: int, start: int = 0, workers: int = 0) -> Iterator[Batch]:
        """Endless batches, all of one size (number of samples), each of one geometry.

        Args:
            size: samples of a batch.
            seed: of the order.
            start: the first batch's number; batch n is the same wherever the iteration began.
            workers: processes that read ahead.
        """
        ...
