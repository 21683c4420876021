"""Process 0 of a slice: gathers the others, compares them, says every word, watches them all."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_tpu.errors import InputError, MismatchError, ProcessLostError
from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.group import ProcessGroup, join_address
from wan_tpu.multihost.identity import Identity, differences
from wan_tpu.multihost.listener import UNPROVED, Listener, listen_at
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.roster import Here, Member, Pace, is_compiling, noted
from wan_tpu.multihost.words import (
    BEAT_SECONDS,
    At,
    Beat,
    Begin,
    Cancel,
    Continue,
    End,
    GaveUp,
    Goodbye,
    Hello,
    Identified,
    Leaving,
    Left,
    Loaded,
    Refused,
    Stop,
    Welcome,
    encode,
)

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""For all to say that they have heard that they are to end."""


class Leader:
    """See `Lockstep`. Everything it says, it says before it acts on it itself."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        on_lost: Callable[[str], None],
        on_waiting: Callable[[str], None],
        patience_seconds: float,
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
        self._followers: dict[int, Member] = {}
        self._is_complete = self._is_welcome = self._is_closing = self._is_lost = False
        self._problem: str | None = None
        self._unproved = ""
        self._here = Here(number=0, point=0, stage="", has_left=True)
        self._compiled = False
        self._pace = Pace()
        self.words = 0
        self.seconds = 0.0
        try:
            self._listener = Listener(
                group, on_process=self._greet, on_unproved=self._note_unproved
            )
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen on {group.coordinator}: {error}; the coordinator is an "
                "address of the machine that process 0 runs on"
            ) from None
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
                waiting = f"waiting for {missing}{self._unproved}"
                if waiting != said:
                    self._on_waiting(waiting)
                    said = waiting
                if not self._changed.wait(deadline - time.monotonic()):
                    raise ProcessLostError(
                        f"{missing} did not come to {self._group.coordinator} "
                        f"({self._listener.address}) within {timeout_seconds:g} s; the same "
                        f"command must run on every host{self._unproved}"
                    )
            self._is_complete = True
        self._listener.expect_nobody()

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`."""
        self._wait_for("to say what it is", lambda f: f.identity is not None)
        found = [
            sentence
            for follower in self._in_order()
            for sentence in differences(identity, follower.identity or {}, follower.name)
        ]
        if found:
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
        for follower in self._in_order():
            if follower.leaving:
                self._lose(f"{follower.name} is about to end: {follower.leaving}")
        with self._changed:
            self._here = Here(number=self._here.number + 1, point=0, stage="", has_left=False)
            self.words, self.seconds = 0, 0.0
            for follower in self._followers.values():
                follower.begin()
        self._say(Begin(number=self._here.number, task=task))
        return task

    def note(self, stage: str, *, is_over: bool) -> None:
        """See `Lockstep.note`."""
        stage = noted(stage, is_over=is_over)
        self._compiled = self._compiled or is_compiling(stage)
        with self._changed:
            if stage != self._here.stage:
                self._here = dataclasses.replace(self._here, stage=stage)
                self._pace.start()

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`."""
        if self._compiled:
            # Collectives wait only so long for a process that still compiles.
            here = (self._here.number, self._here.point)
            self._wait_for("to compile", lambda f: (f.at.number, f.at.point) > here)
            self._compiled = False
        stop = asked()
        with self._changed:
            self._here = dataclasses.replace(self._here, point=self._here.point + 1)
            self._pace.point()
        self._say(Cancel() if stop else Continue())
        return stop

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """See `Lockstep.leave`; a process that left otherwise than this one is lost."""
        with self._changed:
            self._here = dataclasses.replace(self._here, has_left=True)
            self._pace.start()
        self._compiled = False
        self._say(End(failure=reason))
        self._wait_for("to leave the job", lambda f: f.left is not None)
        for follower in self._in_order():
            wrong = follower.left_otherwise(self._here, outcome)
            if wrong:
                self._lose(f"{follower.name} fell out of step: {wrong}")
        return ""

    def close(self) -> None:
        """See `Lockstep.close`."""
        self._dismiss_all(Stop())

    def _dismiss_all(self, word: Any) -> None:
        """Says a last word to all, and waits until they have heard it."""
        with self._changed:
            if self._is_closing or self._is_lost:
                return
            self._is_closing = True
            followers = list(self._followers.values())
            for follower in followers:
                follower.connection.send(word)
            self._listener.close()
            self._changed.wait_for(
                lambda: all(f.goodbye or f.is_gone for f in followers), CLOSE_SECONDS
            )

    def account(self) -> dict[str, Any]:
        """What the last job's words cost: their number, and the seconds that saying them took."""
        return {
            "processes": self._group.num_processes,
            "words": self.words,
            "seconds": round(self.seconds, 6),
        }

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """See `Lockstep.give_up`; sends all away."""
        self._dismiss_all((Refused if is_mismatch else GaveUp)(reason=reason))

    def _say(self, word: Any) -> None:
        began = time.perf_counter()
        line = encode(word)
        for follower in self._in_order():
            follower.connection.send_line(line)
        self.words += 1
        self.seconds += time.perf_counter() - began

    def _in_order(self) -> list[Member]:
        with self._changed:
            return [self._followers[i] for i in sorted(self._followers)]

    def _missing(self) -> str:
        """The processes that have not come, as words; empty if all have."""
        absent = [str(i) for i in range(1, self._group.num_processes) if i not in self._followers]
        noun = "process" if len(absent) == 1 else "processes"
        return f"{noun} {', '.join(absent)} of {self._group.num_processes}" if absent else ""

    def _wait_for(self, what: str, is_there: Callable[[Member], bool]) -> None:
        """Waits for every process; if one is lost, `on_lost` ends the wait with this process."""
        said = None
        with self._changed:
            while waiting := [f.name for f in self._in_order() if not is_there(f)]:
                if waiting != said:
                    self._on_waiting(f"waiting for {', '.join(waiting)} {what}")
                    said = waiting
                self._check_problem()
                self._changed.wait()

    def _check_problem(self) -> None:
        if self._problem:
            raise MismatchError(self._problem)

    def _note_unproved(self, address: str) -> None:
        """Somebody has another secret: a stranger, or one of ours that was given a wrong one."""
        with self._changed:
            self._unproved = f"; {address} {UNPROVED}"
            self._changed.notify_all()

    def _greet(self, connection: Connection, hello: Hello) -> None:
        """Listens to a process that has proved itself until it ends."""
        follower = Member(process_id=hello.process_id, machine=hello.machine, connection=connection)
        if not self._admit(follower, hello):
            return
        try:
            connection.listen(lambda word: self._hear(follower, word))
        except ValueError as error:
            logger.warning("%s makes no sense: %s", follower.name, error)
        self._gone(follower)

    def _admit(self, follower: Member, hello: Hello) -> bool:
        """Takes a process in, or sends it away."""
        group, word, again = self._group, Refused, False
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
                again, word = True, GaveUp
                reason = f"{follower.name} was started anew, and so must all others be"
            else:
                self._followers[hello.process_id] = follower
                self._changed.notify_all()
                return True
        if again:
            self._lose(reason)  # the end of the one before may never reach us
        # It learns first: this process may end as soon as it knows itself.
        follower.connection.dismiss(word(reason=reason), CLOSE_SECONDS)
        with self._changed:
            if not self._is_complete:  # later, a stranger disturbs nobody
                self._problem = reason
                self._changed.notify_all()
        return False

    def _hear(self, follower: Member, word: Any) -> None:
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
                case Leaving(reason=reason):
                    follower.leaving = reason
                case Goodbye(reason=reason):
                    follower.goodbye = reason
            self._changed.notify_all()

    def _gone(self, follower: Member) -> None:
        """The connection of a process ended."""
        is_loss = False
        with self._changed:
            follower.is_gone = True
            if not self._is_complete:
                if self._followers.get(follower.process_id) is follower:
                    del self._followers[follower.process_id]  # it will come again
            elif follower.goodbye and not self._is_welcome:
                self._problem = f"{follower.name} cannot take part: {follower.goodbye}"
            else:
                is_loss = True
            self._changed.notify_all()
        if is_loss:
            why = f": {follower.goodbye}" if follower.goodbye else ""
            self._lose(f"{follower.name} ended{why}")

    def _watch(self) -> None:
        """Beats, and looks whether everybody is there and in step."""
        while not self._is_closing:
            for follower in self._in_order():
                follower.connection.send(Beat())
                with self._changed:
                    wrong = follower.what_is_wrong(self._here, self._patience)
                if wrong and self._is_complete:
                    self._lose(f"{follower.name} {wrong}")
            with self._changed:
                wrong = self._pace.what_is_wrong(self._patience)
                here = self._here
                where = f"point {here.point} of job {here.number} ({here.stage})"
            if wrong:
                self._lose(f"nobody moves: all processes have been at {where} {wrong}")
            time.sleep(BEAT_SECONDS)

    def _lose(self, message: str) -> None:
        """Ends this process, unless it ends already; not for who holds the lock."""
        with self._changed:
            if self._is_closing or self._is_lost:
                return
            self._is_lost = True
        self._on_lost(message)


def _free_port(host: str) -> int:
    """A port for JAX, a new one at every start: nobody of an earlier start can come to it."""
    with listen_at(host, 0) as probe:
        return probe.getsockname()[1]
