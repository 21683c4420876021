"""When an engine counts as hung: it says nothing, or it does not get on. No clock, no process.

What is no fault takes very long at times: a compiler many minutes, a step on a CPU longer still.
So a unit of work is measured against those before it, and the compiler has a bound of its own.

Time is counted in ticks, one a second, that whoever asks gives: a service that was itself stopped
for a while must not take that for its engine's silence.
"""

import dataclasses

TICK_SECONDS = 1.0

STILL_FACTOR = 5
"""A unit that takes so much longer than the longest of its kind before will never end."""

MAX_REMEMBERED = 1000
"""Kinds of units whose longest is kept: clients may ask for ever new sizes."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """What is alike in time: a stage's units at one size."""

    stage: str
    size: tuple[int | None, ...]

    @property
    def is_compiling(self) -> bool:
        return self.stage.startswith("compile ")


class Patience:
    """How long one engine has been silent, and at one unit of work."""

    def __init__(self, *, stall_seconds: float, compile_seconds: float, knows_steps: bool = True):
        """Begins with an engine that has just spoken.

        Args:
            stall_seconds: silence, or one unit of work, that is never too long.
            compile_seconds: that compiling one program may take.
            knows_steps: whether steps are judged; over several processes `multihost` does it.
        """
        self._stall_seconds = stall_seconds
        self._compile_seconds = compile_seconds
        self._knows_steps = knows_steps
        self._longest: dict[_Kind, float] = {}
        self._silent = self._still = 0.0
        self._kind: _Kind | None = None
        self._size: tuple[int | None, ...] = ()
        self._job_seconds = self._unit_seconds = 0.0

    def begin(self, size: tuple[int | None, ...], job_seconds: float) -> None:
        """A job is given to the engine.

        Args:
            size: width, height and frames; equal sizes take equally long.
            job_seconds: that the whole job may take.
        """
        self._size, self._job_seconds = size, job_seconds
        self._silent = 0.0
        self._turn_to("begin", 1)

    def moved(self, stage: str, done: int, total: int) -> None:
        """The engine has finished so many units of a stage."""
        if self._kind is not None:
            self._remember(self._kind, self._still)
        is_over = done >= total
        self._turn_to(f"after {stage}" if is_over else stage, 1 if is_over else total)

    def end(self) -> None:
        """The engine has no work."""
        self._kind = None

    def heard(self) -> None:
        """The engine has said something, whatever it was."""
        self._silent = 0.0

    def tick(self) -> str:
        """A second has passed; returns what the engine is ended for, nothing while it is well."""
        self._silent += TICK_SECONDS
        self._still += TICK_SECONDS
        if self._silent > self._stall_seconds:
            return f"has said nothing for {self._silent:g} s"
        if self._kind is None or not self._knows_steps:
            return ""
        limit = self._limit(self._kind)
        if self._still <= limit:
            return ""
        return (
            f"hangs: it has been at {self._kind.stage!r} for {self._still:g} s, "
            f"where {limit:g} s are the most"
        )

    def _turn_to(self, stage: str, total: int) -> None:
        self._kind = _Kind(stage, () if stage.startswith("compile ") else self._size)
        # A job whose units are all alike cannot end in time if one takes longer than its share.
        self._unit_seconds = self._job_seconds / max(total, 1)
        self._still = 0.0

    def _remember(self, kind: _Kind, seconds: float) -> None:
        seconds = max(seconds, self._longest.pop(kind, 0.0))
        self._longest[kind] = seconds  # at the end: the first one is the longest unused
        if len(self._longest) > MAX_REMEMBERED:
            del self._longest[next(iter(self._longest))]

    def _limit(self, kind: _Kind) -> float:
        if kind.is_compiling:
            return self._compile_seconds
        expected = self._longest.get(kind, self._unit_seconds)
        return max(self._stall_seconds, STILL_FACTOR * expected)
