"""The programs of several videos made together: samples beside each other in one batch.

The batch holds the samples in order, with guidance each as a pair of neighbours: prompt, negative
prompt. So a part of dp holds whole pairs, or one half of one, and no sample looks at another.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from wan_tpu.checkpoints.weights import abstract_weights
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.pipeline.denoise import pack_numbers, unpack_numbers
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.mesh import named
from wan_tpu.sharding.rules import CONTEXT, LATENT_TOKENS, RESIDUAL
from wan_tpu.stage import Stage, abstract
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.patches import unpatchify
from wan_tpu.transformer.processors import Context


class TogetherStages:
    """The programs of the denoising steps of so many samples of one size.

    Attributes:
        model: on the mesh for the whole batch (`wan_tpu.pipeline.load.for_batch`).
        geometry: sizes of each video. schedule: of all of them.
        samples: videos in the batch, those that only fill it up among them.
    """

    def __init__(self, model: VideoModel, geometry: Geometry, schedule: Schedule, samples: int):
        self.model = model
        self.geometry = geometry
        self.schedule = schedule
        self.samples = samples

    def context(self, batch: int, num_prompts: int) -> Stage:
        """(parameters, embeddings of each sample) -> keys and values of cross-attention.

        Args:
            batch: entries of each sample: 2 with guidance, 1 without.
            num_prompts: whose embeddings there are of each sample, `[prompts, 512, text_dim]`; the
                first `batch` are used.
        """
        denoiser, entries = self.model.denoiser, batch * self.samples
        padded = denoiser.padded_batch(entries)

        def context(params: Params, texts: tuple[jax.Array, ...]) -> Context:
            text = jnp.concatenate([text[:batch] for text in texts])  # [entries, 512, text_dim]
            return denoiser.text_context(params, _filled_up(text, padded))

        shape = (num_prompts, TEXT_TOKENS, self.model.text_encoder.config.d_model)
        text = abstract(shape, self.model.dtype, named(self.model.mesh))
        return self.model.stage(
            "context",
            context,
            (
                abstract_weights(denoiser.context_weights(), self.model.mesh),
                (text,) * self.samples,
            ),
            closes_over=("together", batch),
            out_shardings=named(self.model.mesh, *CONTEXT),
        )

    def start(self) -> Stage:
        """(first latents in token form) -> the scheduler's state before the first step."""
        state = self._abstract_state()
        return self.model.stage(
            "start",
            self.schedule.init_state,
            (self.abstract_tokens(),),
            size=self.geometry,
            closes_over=("together", jax.tree.structure(state)),
            out_shardings=jax.tree.map(lambda x: x.sharding, state),
        )

    def step(self, batch: int, *, exact: bool = False) -> Stage:
        """(parameters, context, state, numbers, None, noise) -> state, which samples are finite.

        As `VideoModel.step_stage`, for all samples at once; finite is `[samples]`, each by itself.

        Args:
            batch: entries of each sample: 2 with guidance, 1 without.
            exact: whether attention is exact in every layer, where the model's is not.
        """
        denoiser, geometry, schedule = self.model.denoiser, self.geometry, self.schedule
        denoiser = denoiser.exact() if exact else denoiser
        entries = batch * self.samples
        padded = denoiser.padded_batch(entries)

        def step(
            params: Params,
            context: Context,
            state: Any,
            numbers: jax.Array,
            condition: None,
            noise: jax.Array | None,
        ) -> tuple[Any, jax.Array]:
            timestep, guidance_scale, coefficients = unpack_numbers(schedule, numbers)
            shape = (self.samples, batch, *state.sample.shape[1:])
            latents = jnp.broadcast_to(state.sample[:, None], shape)
            latents = _filled_up(latents.reshape(entries, *shape[2:]), padded)
            latents = denoiser.setting.constrain(latents, RESIDUAL)
            velocity = denoiser.predict(params, latents, timestep, context, geometry)
            velocity = velocity[:entries].reshape(shape)  # [samples, branches, tokens, channels]
            if batch == 2:
                positive, negative = velocity[:, 0], velocity[:, 1]
                velocity = negative + guidance_scale * (positive - negative)
            else:
                velocity = velocity[:, 0]
            state = schedule.update(state, velocity, coefficients, noise)
            return state, finite_samples(state.sample, geometry)

        numbers = pack_numbers(schedule, 0, 0.0)
        state = self._abstract_state()
        return self.model.stage(
            "step-exact" if exact else "step",
            step,
            (
                abstract_weights(denoiser.step_weights(), self.model.mesh),
                self._abstract_context(padded),
                state,
                abstract(numbers.shape, jnp.float32, named(self.model.mesh)),
                None,
                self.abstract_tokens() if schedule.renoises else None,
            ),
            size=geometry,
            closes_over=("together", geometry, batch),
            donate=(2,),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), named(self.model.mesh)),
        )

    def latents(self) -> Stage:
        """(tokens) -> latents `[samples, frames, height, width, channels]`, as the VAE has them."""
        geometry = self.geometry

        def latents(tokens: jax.Array) -> jax.Array:
            return unpatchify(tokens, geometry)

        return self.model.stage(
            "latents",
            latents,
            (self.abstract_tokens(),),
            size=geometry,
            closes_over=("together", geometry),
            out_shardings=named(self.model.mesh),
        )

    def abstract_tokens(self) -> jax.ShapeDtypeStruct:
        """Latents of all samples, `[samples, padded tokens, channels]`, as the steps hold them.

        A part of dp holds its own samples; where dp divides the pairs of guidance, all hold all of
        them, as they do of one video.
        """
        _, *shape = self.model.abstract_tokens(self.geometry).shape
        spec = LATENT_TOKENS if self.samples % self.model.layout.dp else RESIDUAL
        return abstract((self.samples, *shape), jnp.float32, named(self.model.mesh, *spec))

    def _abstract_state(self) -> Any:
        tokens = self.abstract_tokens()
        state = jax.eval_shape(self.schedule.init_state, tokens)
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, tokens.sharding), state)

    def _abstract_context(self, padded: int) -> Context:
        shape = self.model.denoiser.context_shape(padded)
        text: Any = abstract(shape, self.model.dtype, named(self.model.mesh, *CONTEXT))
        return Context(text, text)


def finite_samples(
    tokens: Float32[Array, "samples tokens channels"], geometry: Geometry
) -> Bool[Array, " samples"]:
    """Of which samples every real token is finite; what padding holds is nobody's."""
    inside = jnp.arange(tokens.shape[1]) < geometry.num_tokens
    return jnp.isfinite(jnp.where(inside[:, None], tokens, 0)).all(axis=(1, 2))


def _filled_up(array: jax.Array, count: int) -> jax.Array:
    """As many entries: the first ones once more where there are too few."""
    return array if len(array) == count else array[jnp.arange(count) % len(array)]
