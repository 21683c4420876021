"""A model for one mesh: its parts, and the arrays between its programs, without numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE
from wan_tpu.geometry import Geometry
from wan_tpu.image.encoder import ImageEncoder
from wan_tpu.pipeline.components import Component
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import named
from wan_tpu.sharding.rules import CONTEXT, LATENT_TOKENS
from wan_tpu.stage import abstract
from wan_tpu.text.encoder import TextEncoder
from wan_tpu.transformer.denoiser import Denoiser
from wan_tpu.transformer.processors import Context, KeysValues
from wan_tpu.vae.config import VaeConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlacedModel:
    """A model for one mesh, layout, dtype and attention.

    Attributes:
        description: names, configurations, defaults.
        mesh: the devices.
        layout: how the model is split over them.
        dtype: of weights and activations.
        vae_dtype: of the autoencoder.
        components: its parts, in the order they run.
    """

    description: ModelDescription
    mesh: Any  # jax.sharding.Mesh, or AbstractMesh where only sizes matter
    layout: Layout
    dtype: DTypeLike
    vae_dtype: DTypeLike
    components: Mapping[str, Component]

    @property
    def text_encoder(self) -> TextEncoder:
        """Prompts to embeddings."""
        return self.components[TEXT_ENCODER].module

    @property
    def image_encoder(self) -> ImageEncoder:
        """Pictures to tokens, in a model that reads them so."""
        return self.components[IMAGE_ENCODER].module

    @property
    def denoiser(self) -> Denoiser:
        """The transformer; every expert's parameters go through the same programs."""
        return self.components[self.description.kind.experts[0]].module

    @property
    def quantize(self) -> str | None:
        """`int8` where weights and products of the blocks' linears are; None where they are not."""
        return self.denoiser.quantize

    @property
    def vae(self) -> VaeConfig:
        """Sizes of the autoencoder."""
        return self.components[VAE].module

    def image_tokens(self, num_pictures: int) -> int:
        """Tokens that the image encoder makes of so many pictures, all together."""
        return num_pictures * self.image_encoder.config.num_tokens

    def abstract_context(self, batch: int, num_pictures: int = 0) -> Context:
        """Keys and values of cross-attention for a batch of 2 (guidance) or 1."""
        padded, sharding = self.denoiser.padded_batch(batch), named(self.mesh, *CONTEXT)
        text: Any = abstract(self.denoiser.context_shape(padded), self.dtype, sharding)
        if not num_pictures:
            return Context(text, text)
        shape = self.denoiser.context_shape(padded, self.image_tokens(num_pictures))
        image: Any = abstract(shape, self.dtype, sharding)
        return Context(text, text, KeysValues(image, image))

    def abstract_tokens(
        self, geometry: Geometry, channels: int | None = None
    ) -> jax.ShapeDtypeStruct:
        """Latents in token form, as the denoising loop holds them, or others beside them.

        Args:
            geometry: sizes of the video.
            channels: of a token; those of the latents when not given.
        """
        channels = self.denoiser.config.token_channels if channels is None else channels
        shape = (1, self.denoiser.padded_tokens(geometry), channels)
        return abstract(shape, jnp.float32, named(self.mesh, *LATENT_TOKENS))

    def abstract_state(self, geometry: Geometry, schedule: Schedule) -> Any:
        """The scheduler's state for a video, split like the tokens."""
        tokens = self.abstract_tokens(geometry)
        state = jax.eval_shape(schedule.init_state, tokens)
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, tokens.sharding), state)
