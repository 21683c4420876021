"""One step of training as a stage: loss at drawn noise levels, gradients, update.

The same program for every step, for both experts of a model and for every part of a batch; what
changes comes in as numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.checkpoints.weights import abstract_weights
from wan_tpu.family import Conditioning
from wan_tpu.geometry import Geometry
from wan_tpu.sharding.mesh import named
from wan_tpu.sharding.rules import GATHER_WEIGHTS_FIRST, RESIDUAL
from wan_tpu.stage import Stage, abstract
from wan_tpu.torch_bridge import Params
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.objective import (
    NUM_TIMESTEPS,
    Draws,
    SigmaRange,
    draw,
    flow_losses,
    noised,
    step_key,
    weight_of,
)
from wan_tpu.training.optimiser import Optimiser, TrainState
from wan_tpu.training.placed_batch import BatchShape, PlacedBatch, part_of
from wan_tpu.training.trained import Trained
from wan_tpu.transformer.conditions import (
    ChannelCondition,
    Condition,
    FirstFrameCondition,
    is_first_frame,
)
from wan_tpu.transformer.context import CONTEXT_WEIGHTS
from wan_tpu.transformer.denoiser import Denoiser


class Inputs(NamedTuple):
    """What a step takes besides the state.

    Attributes:
        frozen: parameters that are only used.
        empty_text: embeddings of the empty caption.
        batch: the samples.
        step: its number in the run, from 0: what is random follows from it.
        sigmas: noise levels that may be drawn.
    """

    frozen: dict[str, jax.Array]
    empty_text: Float[Array, "512 text_dim"]
    batch: PlacedBatch
    step: Int32[Array, ""]
    sigmas: SigmaRange


class Metrics(NamedTuple):
    """What a step says of itself.

    Attributes:
        loss: weighted mean over the batch: what was made smaller.
        losses: of each sample, not weighted.
        sigma: of each sample.
        gradient_norm: before it is clipped.
        learning_rate: of the update.
    """

    loss: Float32[Array, ""]
    losses: Float32[Array, " batch"]
    sigma: Float32[Array, " batch"]
    gradient_norm: Float32[Array, ""]
    learning_rate: Float32[Array, ""]


class SampleLosses(NamedTuple):
    """What each sample says.

    Attributes:
        losses: not weighted.
        sigma: noise levels.
    """

    losses: Float32[Array, " batch"]
    sigma: Float32[Array, " batch"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """What decides a step's program.

    Attributes:
        config: of the run.
        denoiser: the transformer.
        trained: what of it is trained.
        optimiser: by what rule.
        shape: of its batches.
        conditioning: how pictures enter the transformer.
    """

    config: TrainingConfig
    denoiser: Denoiser
    trained: Trained
    optimiser: Optimiser
    shape: BatchShape
    conditioning: Conditioning

    def stage(self, geometry: Geometry) -> Stage:
        """(state, inputs) -> state, metrics; for batches of one size."""
        state = self.abstract_state()

        def step(state: TrainState, inputs: Inputs) -> tuple[TrainState, Metrics]:
            return self.step(state, inputs, geometry)

        return self._stage(
            "train",
            step,
            (state, self.abstract_inputs(geometry)),
            geometry,
            donate=(0,),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), named(self.mesh)),
        )

    def loss_stage(self, geometry: Geometry) -> Stage:
        """(what is trained, inputs) -> each sample's loss and noise level: what is evaluated."""
        trained = abstract_weights(self.trained.weights(), self.mesh)

        def losses(trained: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
            def of_part(_: None, part: jax.Array) -> tuple[None, SampleLosses]:
                return None, self.loss(trained, inputs, part, geometry)[1]

            _, found = jax.lax.scan(of_part, None, jnp.arange(self.shape.parts))
            return found.losses.reshape(-1), found.sigma.reshape(-1)

        arguments = (trained, self.abstract_inputs(geometry))
        whole = named(self.mesh)  # every process reads all of them
        return self._stage("loss", losses, arguments, geometry, out_shardings=(whole, whole))

    def gradients_stage(self, geometry: Geometry) -> Stage:
        """(what is trained, inputs) -> loss and gradients, float32: for comparing layouts."""
        trained = abstract_weights(self.trained.weights(), self.mesh)

        def gradients(trained: Params, inputs: Inputs) -> tuple[jax.Array, Params]:
            loss, _, gradients = self.gradients(trained, inputs, geometry)
            return loss, gradients

        shardings = (named(self.mesh), {name: x.sharding for name, x in trained.items()})
        arguments = (trained, self.abstract_inputs(geometry))
        return self._stage("gradients", gradients, arguments, geometry, out_shardings=shardings)

    def step(
        self, state: TrainState, inputs: Inputs, geometry: Geometry
    ) -> tuple[TrainState, Metrics]:
        """Loss and gradients over the parts of the batch, then one update."""
        loss, found, gradients = self.gradients(state.trained, inputs, geometry)
        state, report = self.optimiser.update(state, gradients, inputs.step)
        state = state._replace(trained=self.trained.after_update(inputs.frozen, state.trained))
        return state, Metrics(
            loss=loss,
            losses=found.losses,
            sigma=found.sigma,
            gradient_norm=report.gradient_norm,
            learning_rate=report.learning_rate,
        )

    def gradients(
        self, trained: Params, inputs: Inputs, geometry: Geometry
    ) -> tuple[jax.Array, SampleLosses, Params]:
        """Of the whole batch: loss, what each sample says, gradients in float32."""

        def of_part(part: jax.Array) -> tuple[tuple[jax.Array, Params], SampleLosses]:
            differentiate = jax.value_and_grad(self.loss, has_aux=True)
            (loss, found), gradients = differentiate(trained, inputs, part, geometry)
            return (loss, {n: g.astype(jnp.float32) for n, g in gradients.items()}), found

        parts = self.shape.parts
        if parts == 1:  # without a sum of gradients beside the gradients
            (loss, gradients), found = of_part(jnp.zeros((), jnp.int32))
            return loss, found, gradients

        def add(total: Any, part: jax.Array) -> tuple[Any, SampleLosses]:
            sums, found = of_part(part)
            return jax.tree.map(jnp.add, total, sums), found

        zeros = {name: jnp.zeros(x.shape, jnp.float32) for name, x in trained.items()}
        total, found = jax.lax.scan(add, (jnp.zeros(()), zeros), jnp.arange(parts))
        loss, gradients = jax.tree.map(lambda x: x / parts, total)
        return loss, jax.tree.map(jnp.ravel, found), gradients

    def loss(
        self, trained: Params, inputs: Inputs, part: Int32[Array, ""], geometry: Geometry
    ) -> tuple[Float32[Array, ""], SampleLosses]:
        """Of one part of the batch: the weighted mean, and what each sample says.

        Args:
            trained: what is differentiated by.
            inputs: of the step.
            part: its number.
            geometry: sizes of the videos.
        """
        config, batch = self.config, part_of(inputs.batch, part)
        samples, tokens, channels = batch.latents.shape
        key = step_key(config.train.seed, inputs.step)
        draws = draw(
            key,
            part * samples + jnp.arange(samples),
            config.train.batch,
            (geometry.num_tokens, channels),
            config.flow,
            inputs.sigmas,
            caption_dropout=config.data.caption_dropout,
            image_probability=config.data.image_probability,
        )
        noise = jnp.pad(draws.noise, ((0, 0), (0, tokens - geometry.num_tokens), (0, 0)))
        noise = self.denoiser.setting.constrain(noise, RESIDUAL)
        # No sample's place is the number of samples.
        params = self.trained.params(
            inputs.frozen, trained, jax.random.fold_in(key, config.train.batch)
        )
        predicted = self._predict(params, trained, inputs, batch, draws, noise, geometry)
        is_real = jnp.arange(tokens) < geometry.num_tokens
        is_given = jnp.zeros((samples, 1), bool)
        if self.conditioning is Conditioning.FIRST_FRAME:
            is_given = draws.with_picture[:, None] & is_first_frame(tokens, geometry)
        losses = flow_losses(predicted, batch.latents, noise, is_real & ~is_given)
        weighted = (weight_of(draws.sigma, config.flow) * losses).mean()
        return weighted, SampleLosses(losses, draws.sigma)

    def _predict(
        self,
        params: Params,
        trained: Params,
        inputs: Inputs,
        batch: PlacedBatch,
        draws: Draws,
        noise: Float32[Array, "batch tokens channels"],
        geometry: Geometry,
    ) -> Float32[Array, "batch tokens channels"]:
        """The velocities of the samples at their noise levels."""
        denoiser = self.denoiser
        in_context = {n: x for n, x in params.items() if n.startswith(CONTEXT_WEIGHTS)}
        in_steps = {n: x for n, x in params.items() if n not in in_context}
        text = self.trained.text(inputs.frozen, trained, batch)
        text = jnp.where(draws.without_caption[:, None, None], inputs.empty_text, text)
        context = denoiser.text_context(in_context, text, batch.image)
        condition: Condition | None = None
        match self.conditioning:
            case Conditioning.CHANNELS:
                assert batch.condition is not None
                condition = ChannelCondition(denoiser.embed_condition(in_steps, batch.condition))
            case Conditioning.FIRST_FRAME if self.config.data.image_probability > 0:
                condition = FirstFrameCondition(batch.latents, draws.with_picture)
        seen = noised(batch.latents, noise, draws.sigma)
        timestep = NUM_TIMESTEPS * draws.sigma
        return denoiser.predict(in_steps, seen, timestep, context, geometry, condition)

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.denoiser.setting.concrete_mesh

    def abstract_state(self) -> TrainState:
        """The state's arrays: each lies as the parameter that it belongs to."""
        trained = abstract_weights(self.trained.weights(), self.mesh)
        state = jax.eval_shape(self.optimiser.start, trained)
        return jax.tree_util.tree_map_with_path(self._placed_like_trained(trained), state)

    def _placed_like_trained(self, trained: Mapping[str, Any]) -> Callable[..., Any]:
        """An array whose path ends in a parameter's name is split like that."""

        def placed(path: tuple[Any, ...], array: Any) -> Any:
            name = getattr(path[-1], "key", None)
            like = trained.get(name) if isinstance(name, str) else None
            return abstract(
                array.shape, array.dtype, named(self.mesh) if like is None else like.sharding
            )

        return placed

    def abstract_inputs(self, geometry: Geometry) -> Inputs:
        """The arrays that a step takes besides the state."""
        batch, whole = self.shape.abstract(geometry), named(self.mesh)
        frozen: Any = abstract_weights(self.trained.frozen_weights(), self.mesh)
        empty: Any = abstract(batch.text.shape[-2:], batch.text.dtype, whole)
        step: Any = abstract((), jnp.int32, whole)
        sigma: Any = abstract((), jnp.float32, whole)
        return Inputs(frozen, empty, batch, step, SigmaRange(sigma, sigma))

    def _stage(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        geometry: Geometry,
        **kwargs: Any,
    ) -> Stage:
        is_exact = self.denoiser.dtype == jnp.float32
        return Stage(
            name=name,
            function=function,
            arguments=arguments,
            mesh=self.mesh,
            closes_over=(geometry, self.config),
            matmul_precision="highest" if is_exact else None,
            tpu_compiler_options=GATHER_WEIGHTS_FIRST,
            size=geometry,
            **{"out_shardings": named(self.mesh), **kwargs},
        )
