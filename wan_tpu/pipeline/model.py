"""A model on a mesh without its weights: every program of the pipeline as a stage.

The pipeline adds weights and runs the stages; the planner compiles the very same ones for a slice
that is not there.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from wan_tpu.attention.api import resolve_implementation
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.checkpoints.weights import abstract_weights
from wan_tpu.errors import UnknownNameError
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.pipeline.denoise import pack_numbers, unpack_numbers
from wan_tpu.pipeline.names import DTYPES
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import device_kind_of, named, platform_of
from wan_tpu.sharding.rules import CONTEXT, GATHER_WEIGHTS_FIRST
from wan_tpu.stage import Stage, abstract
from wan_tpu.text.encoder import TextConfig, TextEncoder
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.denoiser import Denoiser, latent_tokens_sharding, unpatchify
from wan_tpu.transformer.processors import AttentionSetting, Context
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import StreamingVae, abstract_params
from wan_tpu.vae.weights import DECODER

TEXT_ENCODER, TRANSFORMER, VAE = "text_encoder", "transformer", "vae"
"""Components of a text-to-video model, by the names of their folders."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One part of a model: what it is, what of it lies on the devices, which stages it runs.

    Attributes:
        module: pure functions of its parameters; of the autoencoder its sizes.
        weights: by name, abstract: shapes, dtypes, how they are split.
        stages: names of the stages that take these weights.
    """

    module: Any
    weights: Mapping[str, jax.ShapeDtypeStruct]
    stages: tuple[str, ...]

    @property
    def bytes_per_device(self) -> int:
        """What each device holds of it."""
        return tree_bytes(dict(self.weights))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoModel:
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
    def denoiser(self) -> Denoiser:
        """The transformer; every set of its parameters goes through the same programs."""
        return self.components[TRANSFORMER].module

    @property
    def vae(self) -> VaeConfig:
        """Sizes of the autoencoder."""
        return self.components[VAE].module

    def text_stage(self, num_prompts: int) -> Stage:
        """(parameters, ids, mask) -> embeddings `[prompts, 512, text_dim]`, whether all finite."""

        def encode(params: Params, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            embeddings = self.text_encoder.encode(params, ids, mask)
            return embeddings, _all_finite(embeddings)

        tokens = abstract((num_prompts, TEXT_TOKENS), jnp.int32, named(self.mesh))
        return self._stage(
            "text",
            encode,
            (dict(self.components[TEXT_ENCODER].weights), tokens, tokens),
            out_shardings=named(self.mesh),  # every process asks, every device reads
        )

    def context_stage(self, num_prompts: int, batch: int) -> Stage:
        """(parameters, embeddings) -> keys and values of cross-attention for the whole batch.

        Args:
            num_prompts: different prompts that were encoded.
            batch: 2 with guidance, 1 without; entry i uses prompt `min(i, num_prompts - 1)`.
        """
        padded = self.denoiser.padded_batch(batch)
        order = [min(i % batch, num_prompts - 1) for i in range(padded)]

        def context(params: Params, text: jax.Array) -> Context:
            return self.denoiser.text_context(params, text[jnp.asarray(order)])

        shape = (num_prompts, TEXT_TOKENS, self.text_encoder.config.d_model)
        text = abstract(shape, self.dtype, named(self.mesh))
        weights = abstract_weights(self.denoiser.context_weights(), self.mesh)
        return self._stage(
            "context",
            context,
            (weights, text),
            closes_over=batch,
            out_shardings=named(self.mesh, *CONTEXT),
        )

    def start_stage(self, geometry: Geometry, schedule: Schedule) -> Stage:
        """(noise in token form) -> the scheduler's state before the first step."""
        state = self.abstract_state(geometry, schedule)
        return self._stage(
            "start",
            schedule.init_state,
            (self.abstract_tokens(geometry),),
            size=geometry,
            closes_over=jax.tree.structure(state),
            out_shardings=jax.tree.map(lambda x: x.sharding, state),
        )

    def step_stage(self, geometry: Geometry, schedule: Schedule, batch: int) -> Stage:
        """(parameters, context, state, numbers) -> state, whether its sample is finite.

        One program for all steps of all requests of this geometry and scheduler; `numbers` are
        those of `wan_tpu.pipeline.denoise.pack_numbers`. Finite means every real token: what
        padding holds is nobody's.
        """
        denoiser = self.denoiser

        def step(
            params: Params, context: Context, state: Any, numbers: jax.Array
        ) -> tuple[Any, jax.Array]:
            timestep, guidance_scale, coefficients = unpack_numbers(schedule, numbers)
            velocity = denoiser.predict(params, state.sample, timestep, context, geometry)
            if batch == 2:
                positive, negative = velocity[0:1], velocity[1:2]
                velocity = negative + guidance_scale * (positive - negative)
            else:
                velocity = velocity[0:1]
            state = schedule.update(state, velocity, coefficients)
            return state, all_finite_tokens(state.sample, geometry)

        numbers = abstract(pack_numbers(schedule, 0, 0.0).shape, jnp.float32, named(self.mesh))
        state = self.abstract_state(geometry, schedule)
        return self._stage(
            "step",
            step,
            (
                abstract_weights(denoiser.step_weights(), self.mesh),
                self.abstract_context(batch),
                state,
                numbers,
            ),
            size=geometry,
            closes_over=(geometry, batch),
            donate=(2,),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), named(self.mesh)),
        )

    def velocity_stage(self, geometry: Geometry, batch: int) -> Stage:
        """(parameters, context, tokens, timestep) -> what the transformer alone predicts.

        Velocities `[batch, frames, height, width, channels]`, padding dropped, for comparing
        layouts; making a video does not run it.
        """
        denoiser = self.denoiser

        def velocity(
            params: Params, context: Context, tokens: jax.Array, timestep: jax.Array
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
            size=geometry,
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
            size=geometry,
            closes_over=geometry,
            out_shardings=named(self.mesh),
        )

    def decode_stages(self, geometry: Geometry) -> tuple[Stage, Stage]:
        """Our own decoder's programs for the first and for every later latent frame."""
        vae = StreamingVae(config=self.vae, mesh=self.mesh, dtype=self.vae_dtype)
        weights = dict(self.components[VAE].weights)
        return vae.decode_stages(geometry.latent_height, geometry.latent_width, weights)

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

    def _stage(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], **kwargs: Any
    ) -> Stage:
        exact = self.dtype == jnp.float32
        return Stage(
            name=name,
            function=function,
            arguments=arguments,
            mesh=self.mesh,
            matmul_precision="highest" if exact else None,
            tpu_compiler_options=GATHER_WEIGHTS_FIRST,
            **kwargs,
        )


def all_finite_tokens(tokens: jax.Array, geometry: Geometry) -> jax.Array:
    """Whether the real ones of `[1, padded tokens, channels]` are finite, padding left out."""
    inside = jnp.arange(tokens.shape[1]) < geometry.num_tokens
    return _all_finite(jnp.where(inside[:, None], tokens, 0))


def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def tree_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of abstract arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def make_video_model(
    description: ModelDescription,
    mesh: Any,
    layout: Layout,
    *,
    dtype: DTypeLike,
    vae_dtype: DTypeLike | None = None,
    attention: str = "auto",
) -> VideoModel:
    """The components of a described model on a mesh.

    Args:
        description: of the model.
        mesh: the devices; an `AbstractMesh` where only sizes matter.
        layout: what the mesh was made for.
        dtype: of weights and activations.
        vae_dtype: the autoencoder's; the same when not given.
        attention: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.

    Raises:
        UnknownNameError: there is no such attention.
        CheckpointError: the configuration is of a model that is not implemented.
    """
    vae_dtype = dtype if vae_dtype is None else vae_dtype
    transformer = TransformerConfig.from_json(description.configs["transformer"])
    implementation = resolve_implementation(
        attention,
        platform_of(mesh),
        device_kind=device_kind_of(mesh),
        dtype=dtype,
        head_dim=transformer.attention_head_dim,
    )
    setting = AttentionSetting(mesh=mesh, layout=layout, implementation=implementation)
    denoiser = Denoiser(config=transformer, setting=setting, dtype=dtype)
    return VideoModel(
        description=description,
        mesh=mesh,
        layout=layout,
        dtype=dtype,
        vae_dtype=vae_dtype,
        components=MappingProxyType(_components(description, denoiser, vae_dtype)),
    )


def _components(
    description: ModelDescription, denoiser: Denoiser, vae_dtype: DTypeLike
) -> dict[str, Component]:
    """The parts of a text-to-video model, on the mesh and in the dtype of its denoiser."""
    mesh: Any = denoiser.setting.mesh
    configs = description.configs
    text_encoder = TextEncoder(
        config=TextConfig.from_json(configs["text_encoder"]), mesh=mesh, dtype=denoiser.dtype
    )
    vae = VaeConfig.from_json(configs["vae"])
    return {
        TEXT_ENCODER: Component(
            module=text_encoder,
            weights=abstract_weights(text_encoder.weights(), mesh),
            stages=("text",),
        ),
        TRANSFORMER: Component(
            module=denoiser,
            weights=abstract_weights(denoiser.weights(), mesh),
            stages=("context", "step"),
        ),
        VAE: Component(
            module=vae,
            weights=abstract_params(vae, vae_dtype, mesh=mesh, parts=(DECODER,)),
            stages=("decode-first", "decode-next"),
        ),
    }


def parse_dtype(name: str) -> jnp.dtype:
    """The JAX dtype called `name`.

    Raises:
        UnknownNameError: it is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return jnp.dtype(name)
