"""What every schedule offers the denoising loop. Knows nothing of models, meshes or latent shapes.

One step is `state = schedule.update(state, model_output, schedule.coefficients(step))`, and of a
schedule that renoises `update(..., noise)`, with noise that nothing has seen before. The
coefficients are computed on the host in float64; the update is one fused elementwise pass on the
device in float32. State and coefficients have the same structure, shapes and dtypes at every step
(missing history is zeros, met by zero coefficients), so one compiled program serves a whole run.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

Latents = Float32[Array, "*latents"]
Scalar = Float32[Array | np.ndarray, ""]
Weights = Float32[Array | np.ndarray, " weights"]


@runtime_checkable
class SchedulerState(Protocol):
    """What passes from step to step: a pytree of arrays of the latents' shape, float32."""

    @property
    def sample(self) -> jax.Array:
        """The latents that the model sees next."""
        ...


State = TypeVar("State", bound=SchedulerState)
Coefficients = TypeVar("Coefficients")
"""A pytree of float32 arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule(abc.ABC, Generic[State, Coefficients]):
    """The noise levels of one run and the solver's arithmetic between them.

    Attributes:
        timesteps: `[steps]`, float32: what the model is told at each step, equal to diffusers'.
        sigmas: `[steps + 1]`, float64 holding float32 values (diffusers rounds them so): the share
            of noise in the latents, `latents = (1 - sigma) * video + sigma * noise`; falls strictly
            from about 1 to 0.
        renoises: whether every step but the last takes fresh noise.
    """

    renoises: ClassVar[bool] = False
    timesteps: Float32[np.ndarray, " steps"]
    sigmas: Float64[np.ndarray, " steps+1"]

    def __post_init__(self) -> None:
        assert self.sigmas.shape == (len(self.timesteps) + 1,)
        self.timesteps.setflags(write=False)
        self.sigmas.setflags(write=False)

    @property
    def num_steps(self) -> int:
        """Steps of the run, one model evaluation each (two with guidance)."""
        return len(self.timesteps)

    def last(self, num_steps: int) -> "Schedule[State, Coefficients]":
        """The last steps of this run as a run of their own: its first step has no history.

        Args:
            num_steps: how many, at least 1 and at most all.
        """
        assert 1 <= num_steps <= self.num_steps, (num_steps, self.num_steps)
        return dataclasses.replace(
            self,
            timesteps=self.timesteps[-num_steps:],
            sigmas=self.sigmas[-num_steps - 1 :],
            **self._later(self.num_steps - num_steps),
        )

    def _later(self, skipped: int) -> dict[str, Any]:
        """Fields of the class that count steps, after so many are left out."""
        return {}

    def first_latents(
        self, noise: Float32[np.ndarray, "*latents"]
    ) -> Float32[np.ndarray, "*latents"]:
        """The latents that the first step begins with where there is noise alone.

        Args:
            noise: standard normal.
        """
        return noise

    def add_noise(
        self, clean: Float32[np.ndarray, "*latents"], noise: Float32[np.ndarray, "*latents"]
    ) -> Float32[np.ndarray, "*latents"]:
        """The latents that the first step begins with where there is a video: part of it is noise.

        Args:
            clean: latents of the video.
            noise: of the same shape.
        """
        sigma = np.float32(self.sigmas[0])
        return (1 - sigma) * clean + sigma * noise

    @abc.abstractmethod
    def coefficients(self, step: int) -> Coefficients:
        """The scalars of one step, `0 <= step < num_steps`: a pytree of float32 NumPy arrays."""

    @abc.abstractmethod
    def init_state(self, sample: Float[Array, "*latents"]) -> State:
        """The state before the first step.

        Args:
            sample: the noise, any shape; `state.sample` is this very array if it is float32.

        Returns:
            A pytree of float32 arrays, each of the shape of `sample`, no two sharing memory, so
            that the state can be donated. For an abstract `sample`, use `jax.eval_shape`.
        """

    @staticmethod
    @abc.abstractmethod
    def update(
        state: State,
        model_output: Float[Array, "*latents"],
        coefficients: Coefficients,
        noise: Latents | None = None,
    ) -> State:
        """One step on the device: pure, elementwise, float32 inside.

        Args:
            state: what `init_state` or the step before returned.
            model_output: the velocity at `state.sample` and this step's timestep, same shape, any
                floating dtype.
            coefficients: of this step.
            noise: standard normal, same shape, where the schedule `renoises`; else None.

        Returns:
            The state after the step; its `sample` are the new latents.
        """
