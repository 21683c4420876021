"""AdamW on the mesh: the state lies as what is trained does, and padding stays zero.

The rule is optax's; ours is how a bfloat16 master keeps what rounding takes from it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from wan_tpu.checkpoints.weights import Weight
from wan_tpu.torch_bridge import Params
from wan_tpu.training.config import OptimiserConfig


class TrainState(NamedTuple):
    """Everything that a step changes, for one transformer.

    Attributes:
        updates: how many of the optimiser's steps were made.
        trained: the parameters, by name.
        lost: what rounding has taken from each, for a bfloat16 master; None for a float32 one.
        moments: optax's state.
        average: exponential moving average of the parameters, float32; None where none is kept.
    """

    updates: Int32[Array, ""]
    trained: dict[str, jax.Array]
    lost: dict[str, jax.Array] | None
    moments: Any
    average: dict[str, jax.Array] | None


class Update(NamedTuple):
    """What an update says of itself.

    Attributes:
        gradient_norm: before it is clipped.
        learning_rate: of this update.
    """

    gradient_norm: Float32[Array, ""]
    learning_rate: Float32[Array, ""]


class Optimiser:
    """The rule by which gradients change what is trained."""

    def __init__(self, config: OptimiserConfig, weights: list[Weight], steps: int):
        """Of `steps` updates in all; `weights` are those that are trained."""
        self._config = config
        self._rate = learning_rate(config, steps)
        # Matrices only; a stacked vector has its layers for a second dimension.
        decayed = {weight.name: len(weight.layer_shape) > 1 for weight in weights}
        self._rule = optax.chain(
            optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
            optax.scale_by_adam(
                *config.betas, eps=config.eps, mu_dtype=jnp.dtype(config.first_moment)
            ),
            optax.add_decayed_weights(config.weight_decay, mask=decayed),
        )

    def start(self, trained: Params) -> TrainState:
        """The state before the first update."""
        config, trained = self._config, dict(trained)
        exact = _float32(trained)
        is_rounded = any(array.dtype != jnp.float32 for array in trained.values())
        return TrainState(
            updates=jnp.zeros((), jnp.int32),
            trained=trained,
            lost=jax.tree.map(jnp.zeros_like, trained) if is_rounded else None,
            moments=self._rule.init(exact),
            average=exact if config.ema_decay is not None else None,
        )

    def update(
        self, state: TrainState, gradients: Params, step: Int32[Array, ""]
    ) -> tuple[TrainState, Update]:
        """The state after one more update.

        Args:
            state: before it.
            gradients: float32, by the names of what is trained.
            step: of the run, whose rate it is: where two experts take turns, each has updates at
                some of the steps only.
        """
        rate = jnp.asarray(self._rate(step))
        exact = _float32(state.trained)
        if state.lost is not None:
            exact = jax.tree.map(lambda x, lost: x + lost.astype(jnp.float32), exact, state.lost)
        changes, moments = self._rule.update(gradients, state.moments, exact)
        exact = jax.tree.map(lambda x, change: x - rate * change, exact, changes)
        trained = jax.tree.map(lambda new, old: new.astype(old.dtype), exact, state.trained)
        lost = state.lost
        if lost is not None:
            lost = jax.tree.map(
                lambda new, kept: (new - kept.astype(jnp.float32)).astype(kept.dtype),
                exact,
                trained,
            )
        report = Update(optax.tree.norm(gradients), jnp.asarray(self._rate(state.updates)))
        state = TrainState(
            updates=state.updates + 1,
            trained=trained,
            lost=lost,
            moments=moments,
            average=self._averaged(state, exact),
        )
        return state, report

    def _averaged(self, state: TrainState, exact: Any) -> Any:
        """Decays less at first, so that an average of few steps is not of the beginning."""
        decay = self._config.ema_decay
        if state.average is None or decay is None:
            return None
        count = state.updates + 1
        decay = jnp.minimum(decay, (1 + count) / (10 + count))
        return jax.tree.map(lambda a, x: a * decay + x * (1 - decay), state.average, exact)


def learning_rate(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """The rate of each update: it rises over the warm-up and then follows the schedule.

    Args:
        config: rates and schedule.
        steps: updates in all.
    """
    top, warmup = config.learning_rate, config.warmup_steps
    left, last = max(steps - warmup, 1), top * config.final_ratio
    after = {
        "constant": optax.constant_schedule(top),
        "cosine": optax.cosine_decay_schedule(top, left, alpha=config.final_ratio),
        "linear": optax.linear_schedule(top, last, left),
    }[config.schedule]
    if not warmup:
        return after
    # The first update is not wasted on a rate of zero.
    rising = optax.linear_schedule(top / (warmup + 1), top, warmup)
    return optax.join_schedules([rising, after], [warmup])


def _rounded_off(exact: jax.Array, kept: jax.Array) -> jax.Array:
    """What rounding took from it, in the dtype that it was rounded to."""
    return (exact - kept.astype(jnp.float32)).astype(kept.dtype)


def _float32(arrays: Params) -> Any:
    return {name: array.astype(jnp.float32) for name, array in arrays.items()}
