"""What the program of one denoising step computes, and what a run carries from step to step.

Without a step cache that is the scheduler's state. With one the state is wrapped: it travels with
what a step left for later ones, begins anew with every run, and its memory is handed on with it.
Which steps reuse is decided elsewhere (`wan_tpu.step_cache`), but for those that decide themselves.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.denoise import unpack_numbers
from wan_tpu.pipeline.placed import PlacedModel
from wan_tpu.request import MOST_STEPS
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.mesh import named
from wan_tpu.sharding.rules import RESIDUAL
from wan_tpu.stage import abstract
from wan_tpu.transformer.denoiser import Denoiser

Tokens = Float32[Array, "1 tokens channels"]


class Keeps(enum.Enum):
    """What a run carries from step to step besides the scheduler's state."""

    NOTHING = "nothing"
    """Every step is computed."""

    RESIDUAL = "residual"
    """What the blocks added, for steps without blocks: MagCache."""

    VELOCITY = "velocity"
    """What the transformer gave, for steps that decide whether to run it: EasyCache."""

    RATIOS = "ratios"
    """How the residual's norm grows from step to step, to calibrate MagCache."""


class WithResidual(NamedTuple):
    """Of a run whose steps may reuse what the blocks added.

    Attributes:
        scheduler: its state.
        residual: `[padded batch, padded tokens, dim]`, of the last step that was computed; both
            branches of guidance, split as the residual stream is.
    """

    scheduler: Any
    residual: Float[Array, "batch tokens dim"]

    @property
    def sample(self) -> jax.Array:
        """The latents that the model sees next."""
        return self.scheduler.sample


class WithVelocity(NamedTuple):
    """Of a run whose steps decide themselves whether the transformer runs.

    Attributes:
        scheduler: its state.
        last_sample: the latents that the step before saw.
        full_sample: those that the last computed step saw.
        full_velocity: `[batch, tokens, channels]`, what the transformer made of them.
        rate: by how much the velocity changes where the latents change by 1.
        change: expected of the velocity since the last computed step, relative to its size.
        step: how many have run.
        computed: which of them were computed, `[MOST_STEPS]`.
    """

    scheduler: Any
    last_sample: Tokens
    full_sample: Tokens
    full_velocity: Float32[Array, "batch tokens channels"]
    rate: Float32[Array, ""]
    change: Float32[Array, ""]
    step: Int32[Array, ""]
    computed: Bool[Array, " steps"]

    @property
    def sample(self) -> jax.Array:
        """The latents that the model sees next."""
        return self.scheduler.sample


class WithRatios(NamedTuple):
    """Of a run that is made to see how the residual's norm grows.

    Attributes:
        scheduler: its state.
        residual: as of `WithResidual`, of the step before.
        step: how many have run.
        ratios: `[MOST_STEPS, 2]`: of each step, the mean over tokens of its residual's norm over
            that of the step before; with the prompt, and with the negative one. What stands at the
            first step means nothing.
    """

    scheduler: Any
    residual: Float[Array, "batch tokens dim"]
    step: Int32[Array, ""]
    ratios: Float32[Array, "steps 2"]

    @property
    def sample(self) -> jax.Array:
        """The latents that the model sees next."""
        return self.scheduler.sample


def abstract_carried(
    model: PlacedModel, geometry: Geometry, schedule: Schedule, keeps: Keeps, batch: int
) -> Any:
    """What travels from step to step of a run, split over the mesh.

    Args:
        model: on the mesh of the steps.
        geometry: sizes of the video.
        schedule: of the run.
        keeps: besides the scheduler's state.
        batch: the largest of the steps': 2 with guidance, 1 without.
    """
    state, tokens = model.abstract_state(geometry, schedule), model.abstract_tokens(geometry)
    whole, denoiser = named(model.mesh), model.denoiser

    def alone(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return abstract(shape, dtype, whole)

    shape = (denoiser.padded_batch(batch), tokens.shape[1], denoiser.config.dim)
    residual: Any = abstract(shape, model.dtype, named(model.mesh, *RESIDUAL))
    number: Any = alone((), jnp.float32)
    step: Any = alone((), jnp.int32)
    sample: Any = tokens
    match keeps:
        case Keeps.NOTHING:
            return state
        case Keeps.RESIDUAL:
            return WithResidual(state, residual)
        case Keeps.VELOCITY:
            velocity: Any = abstract((batch, *tokens.shape[1:]), tokens.dtype, tokens.sharding)
            computed: Any = alone((MOST_STEPS,), jnp.bool)
            return WithVelocity(state, sample, sample, velocity, number, number, step, computed)
        case Keeps.RATIOS:
            ratios: Any = alone((MOST_STEPS, 2), jnp.float32)
            return WithRatios(state, residual, step, ratios)


def make_start(schedule: Schedule, carried: Any) -> Callable[[jax.Array], Any]:
    """(noise in token form) -> what the first step is given: nothing of another run.

    Args:
        schedule: of the run.
        carried: of `abstract_carried`.
    """

    def start(noise: jax.Array) -> Any:
        state = schedule.init_state(noise)
        if not isinstance(carried, WithResidual | WithVelocity | WithRatios):
            return state
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), carried)
        return nothing._replace(scheduler=state)

    return start


def make_step(
    denoiser: Denoiser,
    geometry: Geometry,
    schedule: Schedule,
    batch: int,
    keeps: Keeps,
    *,
    reuses: bool,
) -> Callable[..., tuple[Any, jax.Array]]:
    """(parameters, context, carried, numbers, condition, noise) -> carried, whether all is finite.

    Args:
        denoiser: on the mesh of the steps.
        geometry: sizes of the video.
        schedule: of the run.
        batch: 2 with guidance, 1 without.
        keeps: what is carried besides the scheduler's state.
        reuses: whether the step reuses the residual that is carried; else it computes its own.
    """
    predict = _PREDICT_REUSING if reuses else _PREDICT[keeps]

    def step(
        params: Any, context: Any, carried: Any, numbers: Any, condition: Any, noise: Any
    ) -> tuple[Any, jax.Array]:
        threshold, numbers = (
            (numbers[-1], numbers[:-1]) if keeps is Keeps.VELOCITY else (None, numbers)
        )
        timestep, guidance_scale, coefficients = unpack_numbers(schedule, numbers)
        how = _Step(denoiser, geometry, batch, params, context, timestep, condition, threshold)
        velocity, carried = predict(how, carried)
        if batch == 2:
            positive, negative = velocity[0:1], velocity[1:2]
            velocity = negative + guidance_scale * (positive - negative)
        else:
            velocity = velocity[0:1]
        state = carried if keeps is Keeps.NOTHING else carried.scheduler
        state = schedule.update(state, velocity, coefficients, noise)
        carried = state if keeps is Keeps.NOTHING else carried._replace(scheduler=state)
        return carried, all_finite_tokens(state.sample, geometry)

    return step


def all_finite_tokens(tokens: jax.Array, geometry: Geometry) -> jax.Array:
    """Whether the real ones of `[1, padded tokens, channels]` are finite, padding left out."""
    return jnp.isfinite(jnp.where(_inside(tokens, geometry)[:, None], tokens, 0)).all()


class _Step(NamedTuple):
    """What a step is told, as `Denoiser.predict` takes it."""

    denoiser: Denoiser
    geometry: Geometry
    batch: int
    params: Any
    context: Any
    timestep: jax.Array
    condition: Any
    threshold: jax.Array | None

    def predict(self, sample: jax.Array) -> jax.Array:
        """`[padded batch, tokens, channels]`."""
        return self.denoiser.predict(
            self.params, sample, self.timestep, self.context, self.geometry, self.condition
        )

    def predict_with_residual(self, sample: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same, and the residual."""
        return self.denoiser.predict_with_residual(
            self.params, sample, self.timestep, self.context, self.geometry, self.condition
        )


def _plain(step: _Step, carried: Any) -> tuple[jax.Array, Any]:
    return step.predict(carried.sample), carried


def _keeping_residual(step: _Step, carried: WithResidual) -> tuple[jax.Array, WithResidual]:
    velocity, residual = step.predict_with_residual(carried.sample)
    return velocity, carried._replace(residual=_as_large(residual, carried.residual))


def _reusing_residual(step: _Step, carried: WithResidual) -> tuple[jax.Array, WithResidual]:
    denoiser = step.denoiser
    residual = carried.residual[: denoiser.padded_batch(step.batch)]
    velocity = denoiser.predict_reusing(
        step.params, carried.sample, step.timestep, residual, step.geometry, step.condition
    )
    return velocity, carried


def _deciding(step: _Step, carried: WithVelocity) -> tuple[jax.Array, WithVelocity]:
    """EasyCache (arXiv 2507.02860; H-EmbodVis/EasyCache): decided by the branch of the prompt.

    The scalar that decides is a sum over all devices, the same on each of them.
    """
    assert step.threshold is not None
    sample, tiny = carried.sample, jnp.finfo(jnp.float32).tiny

    def mean(array: jax.Array) -> jax.Array:
        inside = _inside(array, step.geometry)[:, None]
        return jnp.abs(jnp.where(inside, array, 0)).sum() / (
            step.geometry.num_tokens * array.shape[-1]
        )

    moved = mean(sample - carried.last_sample)
    size = jnp.maximum(mean(carried.full_velocity[:1]), tiny)
    change = carried.change + carried.rate * moved / size
    computes = jnp.logical_not(change < step.threshold)

    def compute() -> tuple[jax.Array, WithVelocity]:
        velocity = step.predict(sample)[: step.batch]
        since = jnp.maximum(mean(sample - carried.full_sample), tiny)
        return velocity, carried._replace(
            full_sample=sample,
            full_velocity=_as_large(velocity, carried.full_velocity),
            rate=mean(velocity[:1] - carried.full_velocity[:1]) / since,
            change=jnp.zeros_like(change),
        )

    def reuse() -> tuple[jax.Array, WithVelocity]:
        left = carried.full_velocity[: step.batch] - carried.full_sample
        return sample + left, carried._replace(change=change)

    velocity, kept = jax.lax.cond(computes, compute, reuse)
    return velocity, kept._replace(
        last_sample=sample,
        step=carried.step + 1,
        computed=carried.computed.at[carried.step].set(computes),
    )


def _measuring(step: _Step, carried: WithRatios) -> tuple[jax.Array, WithRatios]:
    """MagCache's calibration (arXiv 2506.09045; Zehong-Ma/MagCache)."""
    velocity, residual = step.predict_with_residual(carried.sample)
    inside = _inside(residual, step.geometry)

    def norm(array: jax.Array) -> jax.Array:
        return jnp.linalg.norm(array[: step.batch].astype(jnp.float32), axis=-1)  # [batch, tokens]

    last = jnp.maximum(norm(carried.residual), jnp.finfo(jnp.float32).tiny)
    ratios = jnp.where(inside, norm(residual) / last, 0).sum(axis=-1) / step.geometry.num_tokens
    return velocity, carried._replace(
        residual=_as_large(residual, carried.residual),
        step=carried.step + 1,
        ratios=carried.ratios.at[carried.step].set(ratios),  # of one branch for both
    )


_PREDICT: dict[Keeps, Callable[..., tuple[jax.Array, Any]]] = {
    Keeps.NOTHING: _plain,
    Keeps.RESIDUAL: _keeping_residual,
    Keeps.VELOCITY: _deciding,
    Keeps.RATIOS: _measuring,
}
_PREDICT_REUSING: Callable[..., tuple[jax.Array, Any]] = _reusing_residual


def _inside(tokens: jax.Array, geometry: Geometry) -> Bool[Array, " tokens"]:
    """Which of `[..., padded tokens, n]` are real."""
    return jnp.arange(tokens.shape[-2]) < geometry.num_tokens


def _as_large(array: jax.Array, like: jax.Array) -> jax.Array:
    """With zeros for the branches that a step without guidance does not have."""
    lacking = like.shape[0] - array.shape[0]
    return jnp.pad(array, ((0, lacking), (0, 0), (0, 0))) if lacking else array
