"""What process 0 and the others say to each other, once they have proved themselves."""

import dataclasses
from typing import Any

from wan_tpu.json_lines import JsonLines

BEAT_SECONDS = 1.0
"""How often each side says that it is there."""

MAX_WORD_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """From a follower, first of all: who it is.

    Attributes:
        machine: its name, for people.
    """

    process_id: int
    num_processes: int
    machine: str

    @property
    def is_well_formed(self) -> bool:
        """Whether the fields are what they should be."""
        kinds = (type(self.process_id), type(self.num_processes), type(self.machine))
        return kinds == (int, int, str)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """From a follower: what it is (`wan_tpu.multihost.identity`)."""

    identity: dict[str, dict[str, str]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """To a follower: all are here and alike; JAX's coordination service will be here."""

    jax_coordinator: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """To a follower, before `Welcome`: it cannot take part, because the processes do not match."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """To a follower: process 0 cannot go on, and all start anew."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """From a follower: the model is on its devices, the programs are compiled."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """To a follower: the next job."""

    number: int
    task: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """To a follower: go on with the job."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """To a follower: leave the job at this very point."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """To a follower: process 0 has left the job.

    Attributes:
        failure: why it failed there; empty if it is done, or was told to stop.
    """

    failure: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """To a follower: all end now."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """From a follower: it has left the job.

    Attributes:
        number: of the job.
        point: how many times it was told to go on or to cancel.
        outcome: one of `lockstep.Outcome`.
        reason: of a failure, in words.
    """

    number: int
    point: int
    outcome: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """From a follower, as its beat: where it is.

    Attributes:
        number: of the job; 0 before the first.
        point: how many times it has asked whether to go on.
        stage: of the pipeline.
    """

    number: int
    point: int
    stage: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """To a follower: process 0 is there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """From a follower: it ends after this job, and why."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """From a follower: it ends, and why."""

    reason: str


_LINES = JsonLines(
    Hello, Identified, Welcome, Refused, GaveUp, Loaded, Begin, Continue, Cancel, End, Stop, Left,
    At, Beat, Leaving, Goodbye,
)  # fmt: skip


def encode(word: Any) -> bytes:
    """A word as one line."""
    return _LINES.encode(word)


def decode(line: bytes) -> Any:
    """The word of one line.

    Raises:
        ValueError: it is none.
    """
    return _LINES.decode(line)


class Silence:
    """How long a peer has said nothing, counted in this process's own beats.

    Counted, not read off a clock: a process that was itself stopped for a minute has not listened
    for a minute, and must not blame the others.
    """

    def __init__(self) -> None:
        self._beats = 0

    def heard(self) -> None:
        """The peer said something."""
        self._beats = 0

    def passed(self) -> float:
        """Another beat went by; returns the seconds of silence so far."""
        self._beats += 1
        return (self._beats - 1) * BEAT_SECONDS
