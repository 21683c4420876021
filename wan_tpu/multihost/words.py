"""What process 0 and the others say to each other, and the connection that carries it."""

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable
from typing import Any

from wan_tpu.json_lines import JsonLines

BEAT_SECONDS = 1.0
"""How often each side says that it is there."""

MAX_WORD_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """From a follower, first of all.

    Attributes:
        machine: its name, for people.
    """

    process_id: int
    num_processes: int
    machine: str

    @property
    def is_well_formed(self) -> bool:
        """Whether the fields are what they should be; anybody can send one."""
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


class Connection:
    """A socket that carries words both ways; several threads may send."""

    def __init__(self, connected: socket.socket):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._sending = threading.Lock()

    @property
    def peer(self) -> str:
        """The address at the other end."""
        try:
            return str(self._socket.getpeername()[0])
        except OSError:
            return "somebody"

    def send(self, word: Any) -> None:
        """Says something; that the other end is gone is learnt where it is listened to."""
        line = _LINES.encode(word)
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(line)

    def listen(self, on_word: Callable[[Any], None]) -> None:
        """Calls `on_word` with each word until the other end is gone or makes no sense."""
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            while (line := lines.readline(MAX_WORD_BYTES)).endswith(b"\n"):
                on_word(_LINES.decode(line))

    def receive_first(self, timeout_seconds: float) -> Any:
        """The first word, of somebody who may be anybody.

        Raises:
            ValueError: it is no word of ours.
            OSError: none came in time.
        """
        self._socket.settimeout(timeout_seconds)
        line = b""
        while not line.endswith(b"\n"):
            byte = self._socket.recv(1)  # no more: what follows is `listen`'s
            if not byte or len(line) > 4096:
                raise ValueError(f"not a word: {line[:80]!r}")
            line += byte
        self._socket.settimeout(None)
        return _LINES.decode(line)

    def dismiss(self, word: Any, timeout_seconds: float) -> None:
        """Says a last word and waits for the other end to hang up.

        To close while the other end still speaks would reset the connection, and the word be lost.
        """
        self.send(word)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(timeout_seconds)
            while self._socket.recv(4096):
                pass
        self.close()

    def close(self) -> None:
        """Ends the connection, for a `listen` in another thread, too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


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
