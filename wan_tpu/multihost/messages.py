"""The messages between process 0 (the leader) and the followers, one JSON object a line.

They begin once both ends have authenticated themselves (`handshake`), and each is signed. Bytes of
pictures and clips follow `Begin` in binary frames (`connection`). The pipe between the service and
its own engine process has messages of its own: `server.engine.messages`.
"""

import dataclasses
from typing import Any

from wan_tpu.json_lines import JsonLines

HEARTBEAT_SECONDS = 1.0
"""How often each side sends a message at least."""

MAX_MESSAGE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """From a follower, first of all: its rank.

    Attributes:
        machine: its name, for people.
    """

    process_id: int
    num_processes: int
    machine: str

    @property
    def is_well_formed(self) -> bool:
        """Whether the fields have the types that they should have."""
        kinds = (type(self.process_id), type(self.num_processes), type(self.machine))
        return kinds == (int, int, str)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """From a follower: what it runs (`wan_tpu.multihost.identity`)."""

    identity: dict[str, dict[str, str]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """To a follower: all have come and match; where JAX's coordination service will be."""

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
    """To a follower: the next job.

    Attributes:
        job: its number, from 1.
        task: what to make; JSON-ready.
        media: digest and size in bytes of each picture or clip, whose bytes follow in this order.
    """

    job: int
    task: dict[str, Any]
    media: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """To a follower, at a barrier: go on with the job.

    Attributes:
        stopped: of several videos that the job makes together, those that end here.
    """

    stopped: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """To a follower, at a barrier: leave the job here."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """To a follower: process 0 has left the job.

    Attributes:
        failure: why it failed there; empty if it is done, or was cancelled.
    """

    failure: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """To a follower: all processes end now."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """From a follower: it has left the job.

    Attributes:
        job: the job's number.
        barrier: of the job, the last one that it passed or was cancelled at.
        outcome: one of `lockstep.Outcome`.
        reason: of a failure, as text.
    """

    job: int
    barrier: int
    outcome: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """From a follower, as its heartbeat: where it is.

    Attributes:
        job: the job's number; 0 before the first.
        barrier: of the job, the last one that it has reached.
        stage: of the pipeline.
    """

    job: int = 0
    barrier: int = 0
    stage: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """To a follower: process 0 is alive."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """From a follower: it ends after this job, and why."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """From a follower: it ends now, and why."""

    reason: str


_LINES = JsonLines(
    Hello, Identified, Welcome, Refused, GaveUp, Loaded, Begin, Continue, Cancel, End, Stop, Left,
    Position, Heartbeat, Leaving, Goodbye,
)  # fmt: skip


def encode(message: Any) -> bytes:
    """A message as one line."""
    return _LINES.encode(message)


def decode(line: bytes) -> Any:
    """The message of one line.

    Raises:
        ValueError: it is none.
    """
    return _LINES.decode(line)
