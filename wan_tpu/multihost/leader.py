"""Process 0 of a slice: gathers the others, compares them, says every word, watches them all."""

import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_tpu.errors import InputError, MismatchError, ProcessLostError
from wan_tpu.multihost.group import ProcessGroup, join_address
from wan_tpu.multihost.identity import Identity, differences
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.words import (
    BEAT_SECONDS,
    At,
    Beat,
    Begin,
    Cancel,
    Connection,
    Continue,
    End,
    Goodbye,
    Hello,
    Identified,
    Left,
    Loaded,
    Refused,
    Silence,
    Stop,
    Welcome,
)

logger = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
"""For whoever connects to say who it is."""

CLOSE_SECONDS = 5.0
"""For all to say that they have heard that they are to end."""

GRACE_SECONDS = 5.0
"""A process that fails because another one died may be heard first; the dead one is to be named."""


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Follower:
    """What is known of one of the others."""

    process_id: int
    machine: str
    connection: Connection
    silence: Silence = dataclasses.field(default_factory=Silence)
    identity: Identity | None = None
    is_loaded: bool = False
    at: At = dataclasses.field(default_factory=lambda: At(number=0, point=0, stage=""))
    left: Left | None = None
    behind_beats: int = 0
    failed_beats: int = 0
    goodbye: str = ""

    @property
    def name(self) -> str:
        return f"process {self.process_id} ({self.machine})"

    @property
    def compiles(self) -> bool:
        return self.at.stage.startswith("compile")


class Leader:
    """See `Lockstep`. Everything it says, it says before it acts on it itself."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        on_lost: Callable[[str], None],
        on_waiting: Callable[[str], None] = lambda _: None,
        patience_seconds: float = 20.0,
    ):
        """Listens for the others.

        Args:
            group: with this process as number 0.
            on_lost: called once, on a thread, with what is wrong, when a process is lost later
                than `gather`. It must end this process: the devices may wait for the lost one for
                ever, and nothing but the end of the process gets them out of it.
            on_waiting: told what is waited for.
            patience_seconds: how long a process may be silent, or behind the others.

        Raises:
            InputError: the address cannot be listened on.
        """
        self._group = group
        self._on_lost = on_lost
        self._on_waiting = on_waiting
        self._patience = patience_seconds
        self._changed = threading.Condition()
        self._followers: dict[int, _Follower] = {}
        self._is_complete = self._is_welcome = self._is_closing = self._is_lost = False
        self._problem: str | None = None
        self._number = self._point = 0
        self._has_left = True
        self._compiled = False
        self.words = 0
        self.seconds = 0.0
        try:
            family = socket.AF_INET6 if ":" in group.host else socket.AF_INET
            self._listener = socket.create_server((group.host, group.port), family=family)
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen on {group.coordinator}: {error}; the coordinator is an "
                "address of the machine that process 0 runs on"
            ) from None
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def gather(self, timeout_seconds: float) -> None:
        """Waits until all others have come.

        Raises:
            ProcessLostError: some did not; names them.
            MismatchError: two processes say that they are the same one.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            said = None
            while missing := self._missing():
                self._check_problem()
                if missing != said:
                    self._on_waiting(f"waiting for {missing}")
                    said = missing
                if not self._changed.wait(deadline - time.monotonic()):
                    raise ProcessLostError(
                        f"{missing} did not come to {self._group.coordinator} within "
                        f"{timeout_seconds:g} s; the same command must run on every host"
                    )
            self._is_complete = True

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`."""
        self._wait_for("to say what it is", lambda f: f.identity is not None)
        found = [
            sentence
            for follower in self._in_order()
            for sentence in differences(identity, follower.identity or {}, follower.name)
        ]
        if found:
            self.give_up("; ".join(found))
            raise MismatchError("; ".join(found))
        self._is_welcome = True
        address = join_address(self._group.host, _free_port(self._group.host))
        self._say(Welcome(jax_coordinator=address))
        return address

    def loaded(self) -> None:
        """See `Lockstep.loaded`."""
        self._wait_for("to load and compile", lambda f: f.is_loaded)

    def begin(self, task: dict[str, Any] | None) -> dict[str, Any]:
        """See `Lockstep.begin`."""
        assert task is not None
        with self._changed:
            self._number, self._point, self._has_left = self._number + 1, 0, False
            self.words, self.seconds = 0, 0.0
            for follower in self._followers.values():
                follower.left, follower.behind_beats, follower.failed_beats = None, 0, 0
        self._say(Begin(number=self._number, task=task))
        return task

    def note(self, stage: str) -> None:
        """See `Lockstep.note`."""
        self._compiled = self._compiled or stage.startswith("compile")

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`."""
        if self._compiled:
            # Collectives wait only so long for a process that still compiles.
            self._wait_for("to compile", lambda f: f.at.point > self._point)
            self._compiled = False
        stop = asked()
        with self._changed:
            self._point += 1
        self._say(Cancel() if stop else Continue())
        return stop

    def leave(self, outcome: Outcome, reason: str = "") -> None:
        """See `Lockstep.leave`; a process that left otherwise than this one is lost."""
        with self._changed:
            self._has_left = True
        self._compiled = False
        self._say(End())
        self._wait_for("to leave the job", lambda f: f.left is not None)
        for follower in self._in_order():
            left = follower.left
            assert left is not None
            fits = left.outcome == outcome or {left.outcome, outcome} == {
                Outcome.STOPPED,
                Outcome.FAILED,
            }
            if not fits or left.point != self._point or left.number != self._number:
                self._lose(
                    f"{follower.name} fell out of step: it is {left.outcome} with job "
                    f"{left.number} at point {left.point} ({left.reason or 'no error'}), process 0 "
                    f"{outcome} with job {self._number} at point {self._point}"
                )

    def close(self) -> None:
        """See `Lockstep.close`."""
        with self._changed:
            self._is_closing = True
            followers = list(self._followers.values())
            for follower in followers:
                follower.connection.send(Stop())
            self._listener.close()
            self._changed.wait_for(lambda: all(f.goodbye for f in followers), CLOSE_SECONDS)

    def account(self) -> dict[str, Any]:
        """What the last job's words cost: their number, and the seconds that saying them took."""
        return {
            "processes": self._group.num_processes,
            "words": self.words,
            "seconds": round(self.seconds, 6),
        }

    def give_up(self, reason: str) -> None:
        """See `Lockstep.give_up`; sends all away."""
        with self._changed:
            self._is_closing = True
        for follower in self._in_order():
            follower.connection.send(Refused(reason=reason))
        self._listener.close()

    def _say(self, word: Any) -> None:
        began = time.perf_counter()
        for follower in self._in_order():
            follower.connection.send(word)
        self.words += 1
        self.seconds += time.perf_counter() - began

    def _in_order(self) -> list[_Follower]:
        with self._changed:
            return [self._followers[i] for i in sorted(self._followers)]

    def _missing(self) -> str:
        """The processes that have not come, as words; empty if all have."""
        absent = [str(i) for i in range(1, self._group.num_processes) if i not in self._followers]
        noun = "process" if len(absent) == 1 else "processes"
        return f"{noun} {', '.join(absent)} of {self._group.num_processes}" if absent else ""

    def _wait_for(self, what: str, is_there: Callable[[_Follower], bool]) -> None:
        """Waits for every process; `_watch` ends this one if another cannot come."""
        said = None
        with self._changed:
            while waiting := [f.name for f in self._in_order() if not is_there(f)]:
                if waiting != said:
                    self._on_waiting(f"waiting for {', '.join(waiting)} {what}")
                    said = waiting
                self._check_problem()
                if self._is_lost:
                    raise ProcessLostError("a process of the slice was lost")
                self._changed.wait()

    def _check_problem(self) -> None:
        if self._problem:
            self.give_up(self._problem)
            raise MismatchError(self._problem)

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return  # closed
            connection = Connection(connected)
            threading.Thread(
                target=self._greet, args=(connection,), name="follower", daemon=True
            ).start()

    def _greet(self, connection: Connection) -> None:
        """Finds out who has connected, and listens to it until it ends."""
        try:
            hello = connection.receive_first(HELLO_SECONDS)
            if not isinstance(hello, Hello):
                raise ValueError("a word before Hello")
        except (ValueError, OSError) as error:
            logger.warning("%s connected and is no process of ours: %s", connection.peer, error)
            connection.close()
            return
        follower = _Follower(
            process_id=hello.process_id, machine=hello.machine, connection=connection
        )
        if not self._admit(follower, hello):
            return
        try:
            connection.listen(lambda word: self._hear(follower, word))
        except ValueError as error:
            logger.warning("%s makes no sense: %s", follower.name, error)
        self._gone(follower)

    def _admit(self, follower: _Follower, hello: Hello) -> bool:
        """Takes a process in, or sends it away."""
        group = self._group
        with self._changed:
            before = self._followers.get(hello.process_id)
            if hello.num_processes != group.num_processes or not (
                0 < hello.process_id < group.num_processes
            ):
                reason = (
                    f"{follower.machine} says it is process {hello.process_id} of "
                    f"{hello.num_processes}, process 0 says there are {group.num_processes}"
                )
            elif before is not None and before.machine != follower.machine:
                reason = (
                    f"{before.machine} and {follower.machine} both say they are process "
                    f"{hello.process_id}"
                )
            elif self._is_complete:
                reason = "this process was here already; all of them start anew"
                self._lose_soon(f"{follower.name} was started anew")  # its end may never reach us
            else:
                self._followers[hello.process_id] = follower
                self._changed.notify_all()
                return True
            if not self._is_complete:  # later, a stranger disturbs nobody
                self._problem = reason
                self._changed.notify_all()
        follower.connection.send(Refused(reason=reason))
        follower.connection.close()
        return False

    def _hear(self, follower: _Follower, word: Any) -> None:
        with self._changed:
            follower.silence.heard()
            match word:
                case At():
                    follower.at = word
                case Identified(identity=identity):
                    follower.identity = identity
                case Loaded():
                    follower.is_loaded = True
                case Left():
                    follower.left = word
                case Goodbye(reason=reason):
                    follower.goodbye = reason
            self._changed.notify_all()

    def _gone(self, follower: _Follower) -> None:
        """The connection of a process ended."""
        with self._changed:
            if not self._is_complete:
                if self._followers.get(follower.process_id) is follower:
                    del self._followers[follower.process_id]  # it will come again
            elif follower.goodbye and not self._is_welcome:
                self._problem = f"{follower.name} cannot take part: {follower.goodbye}"
            else:
                why = f": {follower.goodbye}" if follower.goodbye else ""
                self._lose_soon(f"{follower.name} ended{why}")
            self._changed.notify_all()

    def _watch(self) -> None:
        """Beats, and looks whether everybody is there and in step."""
        while not self._is_closing:
            for follower in self._in_order():
                follower.connection.send(Beat())
                with self._changed:
                    wrong = self._what_is_wrong(follower) if self._is_complete else ""
                if wrong:
                    self._lose(f"{follower.name} {wrong}")
            time.sleep(BEAT_SECONDS)

    def _what_is_wrong(self, follower: _Follower) -> str:
        """What a process is lost for; empty while it is not."""
        silent = follower.silence.passed()
        if silent > self._patience:
            return f"has not been heard of for {silent:g} s"
        if silent > 2 * BEAT_SECONDS:
            return ""  # where it is, is not known
        behind = self._number > 0 and (follower.at.number, follower.at.point) < (
            self._number,
            self._point,
        )
        behind = behind or (self._has_left and self._number > 0)
        behind = behind and follower.left is None and not follower.compiles
        follower.behind_beats = follower.behind_beats + 1 if behind else 0
        if follower.behind_beats * BEAT_SECONDS > self._patience:
            where = f"point {follower.at.point} of job {follower.at.number}"
            if follower.at.stage:
                where += f" ({follower.at.stage})"
            return f"hangs: it is still at {where}, process 0 at point {self._point} of job " + str(
                self._number
            )
        left = follower.left
        early = left is not None and left.outcome == Outcome.FAILED and not self._has_left
        follower.failed_beats = follower.failed_beats + 1 if early else 0
        if left is not None and follower.failed_beats * BEAT_SECONDS > GRACE_SECONDS:
            return f"failed where process 0 did not: {left.reason}"
        return ""

    def _lose_soon(self, message: str) -> None:
        """`_lose` for who holds the lock."""
        threading.Thread(target=self._lose, args=(message,), daemon=True).start()

    def _lose(self, message: str) -> None:
        with self._changed:
            if self._is_closing or self._is_lost:
                return
            self._is_lost = True
            self._changed.notify_all()
        self._on_lost(message)


def _free_port(host: str) -> int:
    """A port for JAX, a new one at every start: nobody of an earlier start can come to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        return probe.getsockname()[1]
