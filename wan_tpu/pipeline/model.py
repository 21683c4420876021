"""A model on a mesh without its weights: every program of the pipeline as a stage.

The pipeline adds weights and runs the stages; the planner compiles the very same ones for a slice
that is not there.
"""

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from wan_tpu.attention.choice import parse_attention
from wan_tpu.attention.resolve import resolve_implementation
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.checkpoints.weights import abstract_weights
from wan_tpu.errors import UnknownNameError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE, Conditioning
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.pipeline.components import make_components, transformer_config
from wan_tpu.pipeline.denoise import pack_numbers
from wan_tpu.pipeline.names import DTYPES
from wan_tpu.pipeline.placed import PlacedModel
from wan_tpu.pipeline.step_program import Keeps, abstract_carried, make_start, make_step
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import device_kind_of, named, platform_of
from wan_tpu.sharding.rules import CONTEXT, TPU_COMPILER_OPTIONS
from wan_tpu.stage import Stage, abstract
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.conditions import ChannelCondition, Condition, FirstFrameCondition
from wan_tpu.transformer.denoiser import Denoiser
from wan_tpu.transformer.patches import unpatchify
from wan_tpu.transformer.processors import AttentionSetting, Context
from wan_tpu.vae.streaming import StreamingVae
from wan_tpu.vae.weights import DECODER, ENCODER


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoModel(PlacedModel):
    """A model for one mesh, layout, dtype and attention; see `PlacedModel` for what it has."""

    def text_stage(self, num_prompts: int, num_vectors: int = 0) -> Stage:
        """(parameters, ids, mask) -> embeddings `[prompts, 512, text_dim]`, whether all finite.

        Args:
            num_prompts: different ones.
            num_vectors: of new words; with any there are two arguments more, the vectors and the
                slots, as `TextEncoder.encode` has them.
        """

        def encode(
            params: Params, ids: jax.Array, mask: jax.Array, *new_words: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            embeddings = self.text_encoder.encode(params, ids, mask, *new_words)
            return embeddings, _all_finite(embeddings)

        whole = named(self.mesh)
        tokens = abstract((num_prompts, TEXT_TOKENS), jnp.int32, whole)
        shape = (num_vectors, self.text_encoder.config.d_model)
        new_words = (abstract(shape, jnp.float32, whole), tokens) if num_vectors else ()
        return self.stage(
            "text",
            encode,
            (dict(self.components[TEXT_ENCODER].weights), tokens, tokens, *new_words),
            out_shardings=whole,  # every process asks, every device reads
        )

    def image_stage(self, num_pictures: int) -> Stage:
        """(parameters, pixels) -> image tokens `[1, pictures * tokens, width]`, whether all finite.

        Pixels are `[pictures, size, size, 3]`, float32, from `wan_tpu.image.preprocess`.
        """
        encoder = self.image_encoder

        def encode(params: Params, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
            tokens = encoder.encode(params, pixels)  # [pictures, tokens, width]
            return tokens.reshape(1, -1, tokens.shape[-1]), _all_finite(tokens)

        size = encoder.config.image_size
        pixels = abstract((num_pictures, size, size, 3), jnp.float32, named(self.mesh))
        return self.stage(
            "image",
            encode,
            (dict(self.components[IMAGE_ENCODER].weights), pixels),
            out_shardings=named(self.mesh),
        )

    def context_stage(self, num_prompts: int, batch: int, num_pictures: int = 0) -> Stage:
        """(parameters, embeddings, image tokens or None) -> keys and values of cross-attention.

        Args:
            num_prompts: different prompts that were encoded.
            batch: 2 with guidance, 1 without; entry i uses prompt `min(i, num_prompts - 1)`.
            num_pictures: that the image encoder encoded; all entries use all of them.
        """
        padded = self.denoiser.padded_batch(batch)
        order = [min(i % batch, num_prompts - 1) for i in range(padded)]

        def context(params: Params, text: jax.Array, image: jax.Array | None) -> Context:
            return self.denoiser.text_context(params, text[jnp.asarray(order)], image)

        whole = named(self.mesh)
        text_shape = (num_prompts, TEXT_TOKENS, self.text_encoder.config.d_model)
        image = None
        if num_pictures:
            image_shape = (
                1,
                self.image_tokens(num_pictures),
                self.image_encoder.config.hidden_size,
            )
            image = abstract(image_shape, self.dtype, whole)
        return self.stage(
            "context",
            context,
            (
                abstract_weights(self.denoiser.context_weights(), self.mesh),
                abstract(text_shape, self.dtype, whole),
                image,
            ),
            closes_over=batch,
            out_shardings=named(self.mesh, *CONTEXT),
        )

    def condition_stage(self, geometry: Geometry, in_steps: Conditioning) -> Stage:
        """(parameters, tokens) -> what every step is told of the pictures, made once per expert.

        Args:
            geometry: sizes of the video.
            in_steps: how the pictures enter them; not `NONE`.
        """
        denoiser, weights = self.denoiser, []
        match in_steps:
            case Conditioning.CHANNELS:
                channels, weights = denoiser.config.condition_channels, denoiser.condition_weights()

                def condition(params: Params, tokens: jax.Array) -> Condition:
                    return ChannelCondition(denoiser.embed_condition(params, tokens))
            case Conditioning.FIRST_FRAME:
                channels = denoiser.config.token_channels

                def condition(params: Params, tokens: jax.Array) -> Condition:
                    return FirstFrameCondition(tokens)
            case Conditioning.NONE:
                raise AssertionError("no step is told anything")
        return self.stage(
            "condition",
            condition,
            (abstract_weights(weights, self.mesh), self.abstract_tokens(geometry, channels)),
            size=geometry,
            closes_over=in_steps,
            out_shardings=self.abstract_tokens(geometry).sharding,
        )

    def start_stage(
        self,
        geometry: Geometry,
        schedule: Schedule,
        keeps: Keeps = Keeps.NOTHING,
        batch: int = 1,
    ) -> Stage:
        """(noise in token form) -> what travels from step to step, before the first one.

        Args:
            geometry: sizes of the video.
            schedule: of the run.
            keeps: what travels besides the scheduler's state.
            batch: the largest of the steps'; without anything besides it is of no account.
        """
        carried = abstract_carried(self, geometry, schedule, keeps, batch)
        return self.stage(
            "start",
            make_start(schedule, carried),
            (self.abstract_tokens(geometry),),
            size=geometry,
            closes_over=(jax.tree.structure(carried), batch),
            out_shardings=jax.tree.map(lambda x: x.sharding, carried),
        )

    def step_stage(
        self,
        geometry: Geometry,
        schedule: Schedule,
        batch: int,
        num_pictures: int = 0,
        in_steps: Conditioning = Conditioning.NONE,
        *,
        keeps: Keeps = Keeps.NOTHING,
        kept_batch: int | None = None,
        reuses: bool = False,
        exact: bool = False,
    ) -> Stage:
        """(parameters, context, carried, numbers, condition, noise) -> carried, whether finite.

        One program for all steps of all requests of this geometry and scheduler; `numbers` are
        those of `wan_tpu.pipeline.denoise.pack_numbers`, and `noise` is fresh, in token form, or
        None where the schedule does not renoise. Finite means every real token of its sample: what
        padding holds is nobody's. What is carried is the scheduler's state, or that with what a
        step cache keeps (`wan_tpu.pipeline.step_program`).

        Args:
            geometry: sizes of the video.
            schedule: of the run.
            batch: 2 with guidance, 1 without.
            num_pictures: that the context has image tokens of.
            in_steps: how pictures enter the step; the condition is of `condition_stage`, or None.
            keeps: what is carried besides the scheduler's state; a step that may decide to reuse
                is told a threshold after the other numbers.
            kept_batch: the largest batch of the run's steps, where something is kept; this one's
                when not given.
            reuses: whether it reuses the residual that is carried: its blocks do not run.
            exact: whether attention is exact in every layer, where the model's is not.
        """
        denoiser = self.denoiser.exact() if exact else self.denoiser
        numbers = pack_numbers(schedule, 0, 0.0).shape[0] + (keeps is Keeps.VELOCITY)
        carried = abstract_carried(self, geometry, schedule, keeps, kept_batch or batch)
        return self.stage(
            "step-reuse" if reuses else "step-exact" if exact else "step",
            make_step(denoiser, geometry, schedule, batch, keeps, reuses=reuses),
            (
                abstract_weights(self.denoiser.step_weights(), self.mesh),
                self.abstract_context(batch, num_pictures),
                carried,
                abstract((numbers,), jnp.float32, named(self.mesh)),
                self.abstract_condition(geometry, in_steps),
                self.abstract_tokens(geometry) if schedule.renoises else None,
            ),
            size=geometry,
            closes_over=(geometry, batch),
            donate=(2,),
            keeps_unused=keeps is Keeps.RESIDUAL and not reuses,  # the last residual's memory
            out_shardings=(jax.tree.map(lambda x: x.sharding, carried), named(self.mesh)),
        )

    def velocity_stage(
        self,
        geometry: Geometry,
        batch: int,
        num_pictures: int = 0,
        in_steps: Conditioning = Conditioning.NONE,
    ) -> Stage:
        """(parameters, context, tokens, timestep, condition) -> the transformer's own prediction.

        Velocities `[batch, frames, height, width, channels]`, padding dropped, for comparing
        layouts; making a video does not run it. Arguments as of `step_stage`.
        """
        denoiser = self.denoiser

        def velocity(
            params: Params,
            context: Context,
            tokens: jax.Array,
            timestep: jax.Array,
            condition: Condition | None,
        ) -> jax.Array:
            predicted = denoiser.predict(params, tokens, timestep, context, geometry, condition)
            return unpatchify(predicted[:batch], geometry)

        return self.stage(
            "velocity",
            velocity,
            (
                abstract_weights(denoiser.step_weights(), self.mesh),
                self.abstract_context(batch, num_pictures),
                self.abstract_tokens(geometry),
                abstract((), jnp.float32, named(self.mesh)),
                self.abstract_condition(geometry, in_steps),
            ),
            size=geometry,
            closes_over=(geometry, batch),
            out_shardings=named(self.mesh),
        )

    def latents_stage(self, geometry: Geometry) -> Stage:
        """(tokens) -> latents `[1, frames, height, width, channels]`, as the VAE takes them."""

        def latents(tokens: jax.Array) -> jax.Array:
            return unpatchify(tokens, geometry)

        return self.stage(
            "latents",
            latents,
            (self.abstract_tokens(geometry),),
            size=geometry,
            closes_over=geometry,
            out_shardings=named(self.mesh),
        )

    def stages(
        self, latent_height: int, latent_width: int, latent_frames: int
    ) -> tuple[Stage, ...]:
        """The programs of our own decoder, as `VaeBackend.stages`."""
        both = self._own_vae.decode_stages(latent_height, latent_width, self._vae_weights(DECODER))
        return both if latent_frames > 1 else both[:1]

    def encode_stages(self, height: int, width: int, num_frames: int) -> tuple[Stage, ...]:
        """The programs of the encoder, as `VaeBackend.encode_stages`."""
        both = self._own_vae.encode_stages(height, width, self._vae_weights(ENCODER))
        return both if num_frames > 1 else both[:1]

    def _vae_weights(self, part: str) -> dict[str, jax.ShapeDtypeStruct]:
        weights = self.components[VAE].weights
        return {name: weight for name, weight in weights.items() if name.startswith(part)}

    @property
    def _own_vae(self) -> StreamingVae:
        return StreamingVae(config=self.vae, mesh=self.mesh, dtype=self.vae_dtype)

    def abstract_condition(self, geometry: Geometry, in_steps: Conditioning) -> Any:
        """What `condition_stage` makes; None where steps are told nothing of pictures."""
        if in_steps is Conditioning.NONE:
            return None
        stage = self.condition_stage(geometry, in_steps)
        with jax.set_mesh(self.mesh):
            made = jax.eval_shape(stage.function, *stage.arguments)
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, stage.out_shardings), made)

    def stage(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], **kwargs: Any
    ) -> Stage:
        """A program of this model: what all of them have in common, and what this one is."""
        exact = self.dtype == jnp.float32
        return Stage(
            name=name,
            function=function,
            arguments=arguments,
            mesh=self.mesh,
            matmul_precision="highest" if exact else None,
            tpu_compiler_options=TPU_COMPILER_OPTIONS,
            **kwargs,
        )


def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def make_video_model(
    description: ModelDescription,
    mesh: Any,
    layout: Layout,
    *,
    dtype: DTypeLike,
    vae_dtype: DTypeLike | None = None,
    attention: str = "auto",
    quantize: str | None = None,
) -> VideoModel:
    """The components of a described model on a mesh.

    Args:
        description: of the model.
        mesh: the devices; an `AbstractMesh` where only sizes matter.
        layout: what the mesh was made for.
        dtype: of weights and activations.
        vae_dtype: the autoencoder's; the same when not given.
        attention: as `wan_tpu.attention.choice.parse_attention` reads it.
        quantize: what the transformers' blocks multiply in; None for `dtype`.

    Raises:
        InputError: there is no such attention, or the chip or the model is none for it.
        CheckpointError: the configuration is of a model that is not implemented.
    """
    vae_dtype = dtype if vae_dtype is None else vae_dtype
    transformer = transformer_config(description)
    choice = parse_attention(attention)
    implementation = resolve_implementation(
        choice.name,
        platform_of(mesh),
        device_kind=device_kind_of(mesh),
        dtype=dtype,
        head_dim=transformer.attention_head_dim,
    )
    setting = AttentionSetting(
        mesh=mesh, layout=layout, implementation=implementation, gate=choice.gate
    )
    denoiser = Denoiser(
        config=transformer, setting=setting, dtype=dtype, quantize=quantize, gathers_ahead=True
    )
    return VideoModel(
        description=description,
        mesh=mesh,
        layout=layout,
        dtype=dtype,
        vae_dtype=vae_dtype,
        components=MappingProxyType(make_components(description, denoiser, vae_dtype)),
    )


def parse_dtype(name: str) -> jnp.dtype:
    """The JAX dtype called `name`.

    Raises:
        UnknownNameError: it is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return jnp.dtype(name)
