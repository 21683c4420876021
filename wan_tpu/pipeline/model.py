"""A model on a mesh without its weights: every program of the pipeline as a stage.

The pipeline adds weights and runs the stages; the planner compiles the very same ones for a slice
that is not there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from wan_tpu.attention.api import resolve_implementation
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.checkpoints.weights import abstract_weights
from wan_tpu.errors import UnknownNameError
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import device_kind_of, named, platform_of
from wan_tpu.sharding.rules import CONTEXT
from wan_tpu.stage import Stage, abstract
from wan_tpu.text.encoder import TextConfig, TextEncoder
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.denoiser import Denoiser, latent_tokens_sharding, unpatchify
from wan_tpu.transformer.processors import AttentionSetting, Context
from wan_tpu.vae.config import VaeConfig

DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoModel:
    """The components of a model for one mesh, layout, dtype and attention.

    Attributes:
        description: names, configurations, defaults.
        text_encoder: prompts to embeddings.
        denoiser: the transformer.
        vae: sizes of the autoencoder.
    """

    description: ModelDescription
    text_encoder: TextEncoder
    denoiser: Denoiser
    vae: VaeConfig

    @property
    def mesh(self) -> Any:
        """The devices."""
        return self.denoiser.setting.mesh

    @property
    def layout(self) -> Layout:
        """How the model is split over them."""
        return self.denoiser.setting.layout

    @property
    def dtype(self) -> Any:
        """Of weights and activations."""
        return self.denoiser.dtype

    def text_stage(self, num_prompts: int) -> Stage:
        """(parameters, ids, mask) -> embeddings `[prompts, 512, text_dim]`."""
        tokens = abstract((num_prompts, TEXT_TOKENS), jnp.int32, named(self.mesh))
        weights = abstract_weights(self.text_encoder.weights(), self.mesh)
        return self._stage("text", self.text_encoder.encode, (weights, tokens, tokens))

    def context_stage(self, num_prompts: int, batch: int) -> Stage:
        """(parameters, embeddings) -> keys and values of cross-attention for the whole batch.

        Args:
            num_prompts: different prompts that were encoded.
            batch: 2 with guidance, 1 without; entry i uses prompt `min(i, num_prompts - 1)`.
        """
        padded = self.denoiser.padded_batch(batch)
        order = [min(i % batch, num_prompts - 1) for i in range(padded)]

        def context(params: Any, text: jax.Array) -> Any:
            return self.denoiser.text_context(params, text[jnp.asarray(order)])

        shape = (num_prompts, TEXT_TOKENS, self.text_encoder.config.d_model)
        text = abstract(shape, self.dtype, named(self.mesh))
        weights = abstract_weights(self.denoiser.context_weights(), self.mesh)
        return self._stage("context", context, (weights, text), closes_over=batch)

    def start_stage(self, geometry: Geometry, schedule: Schedule) -> Stage:
        """(noise in token form) -> the scheduler's state before the first step."""
        state = self.abstract_state(geometry, schedule)
        return self._stage(
            "start",
            schedule.init_state,
            (self.abstract_tokens(geometry),),
            closes_over=jax.tree.structure(state),
            out_shardings=jax.tree.map(lambda x: x.sharding, state),
        )

    def step_stage(self, geometry: Geometry, schedule: Schedule, batch: int) -> Stage:
        """(parameters, context, state, coefficients, timestep, guidance scale) -> state.

        One program for all steps of all requests of this geometry and scheduler.
        """
        denoiser = self.denoiser

        def step(
            params: Any,
            context: Any,
            state: Any,
            coefficients: Any,
            timestep: Any,
            guidance_scale: Any,
        ) -> Any:
            velocity = denoiser.predict(params, state.sample, timestep, context, geometry)
            if batch == 2:
                positive, negative = velocity[0:1], velocity[1:2]
                velocity = negative + guidance_scale * (positive - negative)
            else:
                velocity = velocity[0:1]
            return schedule.update(state, velocity, coefficients)

        scalar = abstract((), jnp.float32, named(self.mesh))
        coefficients = jax.tree.map(
            lambda x: abstract(x.shape, x.dtype, named(self.mesh)), schedule.coefficients(0)
        )
        state = self.abstract_state(geometry, schedule)
        return self._stage(
            "step",
            step,
            (
                abstract_weights(denoiser.step_weights(), self.mesh),
                self.abstract_context(batch),
                state,
                coefficients,
                scalar,
                scalar,
            ),
            closes_over=(geometry, batch),
            donate=(2,),
            out_shardings=jax.tree.map(lambda x: x.sharding, state),
        )

    def velocity_stage(self, geometry: Geometry, batch: int) -> Stage:
        """(parameters, context, tokens, timestep) -> what the transformer alone predicts.

        Velocities `[batch, frames, height, width, channels]`, padding dropped, for comparing
        layouts; making a video does not run it.
        """
        denoiser = self.denoiser

        def velocity(
            params: Any, context: Any, tokens: jax.Array, timestep: jax.Array
        ) -> jax.Array:
            predicted = denoiser.predict(params, tokens, timestep, context, geometry)
            return unpatchify(predicted[:batch], geometry)

        return self._stage(
            "velocity",
            velocity,
            (
                abstract_weights(denoiser.step_weights(), self.mesh),
                self.abstract_context(batch),
                self.abstract_tokens(geometry),
                abstract((), jnp.float32, named(self.mesh)),
            ),
            closes_over=(geometry, batch),
            out_shardings=named(self.mesh),
        )

    def latents_stage(self, geometry: Geometry) -> Stage:
        """(tokens) -> latents `[1, frames, height, width, channels]`, as the VAE takes them."""

        def latents(tokens: jax.Array) -> jax.Array:
            return unpatchify(tokens, geometry)

        return self._stage(
            "latents",
            latents,
            (self.abstract_tokens(geometry),),
            closes_over=geometry,
            out_shardings=named(self.mesh),
        )

    def text_check_stage(self, num_prompts: int) -> Stage:
        """(embeddings) -> whether all their numbers are finite, known to every process."""
        shape = (num_prompts, TEXT_TOKENS, self.text_encoder.config.d_model)
        text = abstract(shape, self.dtype, named(self.mesh))
        return self._stage("check-text", _all_finite, (text,), out_shardings=named(self.mesh))

    def latents_check_stage(self, geometry: Geometry) -> Stage:
        """(tokens) -> whether all numbers are finite, padding left out, known to every process."""

        def check(tokens: jax.Array) -> jax.Array:
            inside = jnp.arange(tokens.shape[1]) < geometry.num_tokens
            return _all_finite(jnp.where(inside[:, None], tokens, 0))

        return self._stage(
            "check-latents",
            check,
            (self.abstract_tokens(geometry),),
            closes_over=geometry,
            out_shardings=named(self.mesh),
        )

    def abstract_context(self, batch: int) -> Context:
        """Keys and values of cross-attention for a batch of 2 (guidance) or 1."""
        shape = self.denoiser.context_shape(self.denoiser.padded_batch(batch))
        context = abstract(shape, self.dtype, named(self.mesh, *CONTEXT))
        return Context(context, context)  # type: ignore[arg-type]

    def abstract_tokens(self, geometry: Geometry) -> jax.ShapeDtypeStruct:
        """Latents in token form, as the denoising loop holds them."""
        shape = (1, self.denoiser.padded_tokens(geometry), self.denoiser.config.token_channels)
        return abstract(shape, jnp.float32, latent_tokens_sharding(self.denoiser.setting))

    def abstract_state(self, geometry: Geometry, schedule: Schedule) -> Any:
        """The scheduler's state for a video, split like the tokens."""
        tokens = self.abstract_tokens(geometry)
        state = jax.eval_shape(schedule.init_state, tokens)
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, tokens.sharding), state)

    def _stage(self, name: str, function: Any, arguments: tuple[Any, ...], **kwargs: Any) -> Stage:
        exact = self.dtype == jnp.float32
        return Stage(
            name=name,
            function=function,
            arguments=arguments,
            mesh=self.mesh,
            matmul_precision="highest" if exact else None,
            **kwargs,
        )


def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def make_video_model(
    description: ModelDescription,
    mesh: Mesh | AbstractMesh,
    layout: Layout,
    *,
    dtype: Any,
    attention: str = "auto",
) -> VideoModel:
    """The components of a described model on a mesh.

    Raises:
        UnknownNameError: there is no such attention.
        CheckpointError: the configuration is of a model that is not implemented.
    """
    configs = description.configs
    transformer = TransformerConfig.from_json(configs["transformer"])
    implementation = resolve_implementation(
        attention,
        platform_of(mesh),
        device_kind=device_kind_of(mesh),
        dtype=dtype,
        head_dim=transformer.attention_head_dim,
    )
    setting = AttentionSetting(mesh=mesh, layout=layout, implementation=implementation)
    return VideoModel(
        description=description,
        text_encoder=TextEncoder(
            config=TextConfig.from_json(configs["text_encoder"]), mesh=mesh, dtype=dtype
        ),
        denoiser=Denoiser(config=transformer, setting=setting, dtype=dtype),
        vae=VaeConfig.from_json(configs["vae"]),
    )


def parse_dtype(name: str) -> Any:
    """The JAX dtype called `name`.

    Raises:
        UnknownNameError: it is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return jnp.dtype(name)
