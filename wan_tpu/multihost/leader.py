"""Process 0 of a slice: gathers the followers, compares them, decides for all, watches all."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from wan_tpu.errors import InputError, MismatchError, ProcessLostError
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.group import ProcessGroup, join_address
from wan_tpu.multihost.health import LeaderPosition, Peer, StallDetector, is_compiling, stage_name
from wan_tpu.multihost.identity import Identity, differences
from wan_tpu.multihost.listener import DENIAL, Listener, listen_at
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.messages import (
    HEARTBEAT_SECONDS,
    Begin,
    Cancel,
    Continue,
    End,
    GaveUp,
    Goodbye,
    Heartbeat,
    Hello,
    Identified,
    Leaving,
    Left,
    Loaded,
    Position,
    Refused,
    Stop,
    Welcome,
    encode,
)
from wan_tpu.multihost.transfer import frames_of

logger = logging.getLogger(__name__)

Decision = TypeVar("Decision", Continue, Continue | Cancel)

CLOSE_SECONDS = 5.0
"""For all followers to confirm that they end."""


class Leader:
    """See `Lockstep`. It sends each decision before it acts on it itself."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        on_lost: Callable[[str], None],
        on_waiting: Callable[[str], None],
        patience_seconds: float,
    ):
        """Listens for the followers.

        Args:
            group: with this process as rank 0.
            on_lost: called once, on a thread, with the reason, when a process is lost later
                than `gather`. It must end this process: the devices may wait for the lost one for
                ever, and nothing but the end of the process gets them out of it.
            on_waiting: called with what is waited for.
            patience_seconds: how long a process may be silent, or behind the others.

        Raises:
            InputError: the address cannot be listened on.
        """
        self._group = group
        self._on_lost = on_lost
        self._on_waiting = on_waiting
        self._patience = patience_seconds
        self._changed = threading.Condition()
        self._peers: dict[int, Peer] = {}
        self._is_complete = self._is_welcome = self._is_closing = self._is_lost = False
        self._problem: str | None = None
        self._denied = ""
        self._position = LeaderPosition(job=0, barrier=0, stage="", has_left=True)
        self._media = NO_MEDIA
        self._compiled = False
        self._stall = StallDetector()
        self.messages = 0
        self.seconds = 0.0
        try:
            self._listener = Listener(group, on_process=self._greet, on_denied=self._note_denied)
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen on {group.coordinator}: {error}; the coordinator is an "
                "address of the machine that process 0 runs on"
            ) from None
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def gather(self, timeout_seconds: float) -> None:
        """Waits until all followers have come.

        Raises:
            ProcessLostError: some did not; names them.
            MismatchError: two processes claim the same rank.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            reported = None
            while missing := self._missing():
                self._check_problem()
                waiting = f"waiting for {missing}{self._denied}"
                if waiting != reported:
                    self._on_waiting(waiting)
                    reported = waiting
                if not self._changed.wait(deadline - time.monotonic()):
                    raise ProcessLostError(
                        f"{missing} did not come to {self._group.coordinator} "
                        f"({self._listener.address}) within {timeout_seconds:g} s; the same "
                        f"command must run on every host{self._denied}"
                    )
            self._is_complete = True
        self._listener.expect_no_more()

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`."""
        self._wait_for("to send its identity", lambda peer: peer.identity is not None)
        found = [
            sentence
            for peer in self._in_order()
            for sentence in differences(identity, peer.identity or {}, peer.name)
        ]
        if found:
            raise MismatchError("; ".join(found))
        self._is_welcome = True
        address = join_address(self._group.host, _free_port(self._group.host))
        self._send(Welcome(jax_coordinator=address))
        return address

    def loaded(self) -> None:
        """See `Lockstep.loaded`."""
        self._wait_for("to load and compile", lambda peer: peer.is_loaded)

    def begin(self, task: dict[str, Any] | None, media: Media = NO_MEDIA) -> dict[str, Any]:
        """See `Lockstep.begin`; returns once the bytes of pictures and clips are sent."""
        assert task is not None
        for peer in self._in_order():
            if peer.leaving:
                self._lose(f"{peer.name} is about to end: {peer.leaving}")
        with self._changed:
            job = self._position.job + 1
            self._position = LeaderPosition(job=job, barrier=0, stage="", has_left=False)
            self._media = media
            self.messages, self.seconds = 0, 0.0
            for peer in self._peers.values():
                peer.begin()
        sizes = {digest: len(data) for digest, data in media.items()}
        self._send(Begin(job=job, task=task, media=sizes))
        for frame in frames_of(media):  # to all in turn: nobody waits for long without a frame
            for peer in self._in_order():
                peer.connection.send_frame(frame)
        return task

    def receive_media(self) -> Media:
        """See `Lockstep.receive_media`."""
        return self._media

    def note(self, stage: str, *, is_over: bool) -> None:
        """See `Lockstep.note`."""
        stage = stage_name(stage, is_over=is_over)
        self._compiled = self._compiled or is_compiling(stage)
        with self._changed:
            if stage != self._position.stage:
                self._position = dataclasses.replace(self._position, stage=stage)
                self._stall.start()

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`."""
        return isinstance(self._decide(lambda: Cancel() if asked() else Continue()), Cancel)

    def stopped(self, asked: Callable[[], Collection[int]]) -> Collection[int]:
        """See `Lockstep.stopped`."""
        return self._decide(lambda: Continue(stopped=sorted(asked()))).stopped

    def _decide(self, make: Callable[[], Decision]) -> Decision:
        """Passes a barrier with a decision, made when all have come so far."""
        if self._compiled:
            # Collectives wait only so long for a process that still compiles.
            here = (self._position.job, self._position.barrier)
            self._wait_for(
                "to compile", lambda peer: (peer.position.job, peer.position.barrier) > here
            )
            self._compiled = False
        decision = make()
        with self._changed:
            self._position = dataclasses.replace(self._position, barrier=self._position.barrier + 1)
            self._stall.advance()
        self._send(decision)
        return decision

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """See `Lockstep.leave`; a process that left otherwise than this one is lost."""
        with self._changed:
            self._position = dataclasses.replace(self._position, has_left=True)
            self._media = NO_MEDIA
            self._stall.start()
        self._compiled = False
        self._send(End(failure=reason))
        self._wait_for("to leave the job", lambda peer: peer.left is not None)
        for peer in self._in_order():
            divergence = peer.divergence(self._position, outcome)
            if divergence:
                self._lose(f"{peer.name} fell out of step: {divergence}")
        return ""

    def close(self) -> None:
        """See `Lockstep.close`."""
        self._dismiss_all(Stop())

    def _dismiss_all(self, message: Any) -> None:
        """Sends a last message to all, and waits until they confirm it."""
        with self._changed:
            if self._is_closing or self._is_lost:
                return
            self._is_closing = True
            peers = list(self._peers.values())
            for peer in peers:
                peer.connection.send(message)
            self._listener.close()
            self._changed.wait_for(
                lambda: all(peer.goodbye or peer.is_gone for peer in peers), CLOSE_SECONDS
            )

    def account(self) -> dict[str, Any]:
        """The cost of the last job's messages: their number, and the seconds that sending took."""
        return {
            "processes": self._group.num_processes,
            "messages": self.messages,
            "seconds": round(self.seconds, 6),
        }

    def tell_asked(self, reason: str) -> None:
        """See `Lockstep.tell_asked`; it decides itself."""

    def others_asked(self) -> bool:
        """See `Lockstep.others_asked`."""
        return any(peer.leaving for peer in self._in_order())

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """See `Lockstep.give_up`; sends all away."""
        self._dismiss_all((Refused if is_mismatch else GaveUp)(reason=reason))

    def _send(self, message: Any) -> None:
        began = time.perf_counter()
        line = encode(message)
        for peer in self._in_order():
            peer.connection.send_line(line)
        self.messages += 1
        self.seconds += time.perf_counter() - began

    def _in_order(self) -> list[Peer]:
        with self._changed:
            return [self._peers[i] for i in sorted(self._peers)]

    def _missing(self) -> str:
        """The processes that have not come, as text; empty if all have."""
        absent = [str(i) for i in range(1, self._group.num_processes) if i not in self._peers]
        noun = "process" if len(absent) == 1 else "processes"
        return f"{noun} {', '.join(absent)} of {self._group.num_processes}" if absent else ""

    def _wait_for(self, what: str, is_there: Callable[[Peer], bool]) -> None:
        """Waits for every process; if one is lost, `on_lost` ends the wait with this process."""
        reported = None
        with self._changed:
            while waiting := [peer.name for peer in self._in_order() if not is_there(peer)]:
                if waiting != reported:
                    self._on_waiting(f"waiting for {', '.join(waiting)} {what}")
                    reported = waiting
                self._check_problem()
                self._changed.wait()

    def _check_problem(self) -> None:
        if self._problem:
            raise MismatchError(self._problem)

    def _note_denied(self, address: str) -> None:
        """A client has another secret: no process of the slice, or one with a wrong file."""
        with self._changed:
            self._denied = f"; {address} {DENIAL}"
            self._changed.notify_all()

    def _greet(self, connection: Connection, hello: Hello) -> None:
        """Listens to an authenticated process until it ends."""
        peer = Peer(process_id=hello.process_id, machine=hello.machine, connection=connection)
        if not self._admit(peer, hello):
            return
        try:
            connection.listen(lambda message: self._receive(peer, message))
        except ValueError as error:
            logger.warning("%s sent something malformed: %s", peer.name, error)
        self._gone(peer)

    def _admit(self, peer: Peer, hello: Hello) -> bool:
        """Admits a process, or dismisses it."""
        group, answer, again = self._group, Refused, False
        with self._changed:
            before = self._peers.get(hello.process_id)
            if hello.num_processes != group.num_processes or not (
                0 < hello.process_id < group.num_processes
            ):
                reason = (
                    f"{peer.machine} says it is process {hello.process_id} of "
                    f"{hello.num_processes}, process 0 says there are {group.num_processes}"
                )
            elif before is not None and before.machine != peer.machine:
                reason = (
                    f"{before.machine} and {peer.machine} both say they are process "
                    f"{hello.process_id}"
                )
            elif self._is_complete:
                again, answer = True, GaveUp
                reason = f"{peer.name} was started anew, and so must all others be"
            else:
                self._peers[hello.process_id] = peer
                self._changed.notify_all()
                return True
        if again:
            self._lose(reason)  # the end of the one before may never reach us
        # It learns first: this process may end as soon as it knows itself.
        peer.connection.dismiss(answer(reason=reason), CLOSE_SECONDS)
        with self._changed:
            if not self._is_complete:  # later, it disturbs nobody
                self._problem = reason
                self._changed.notify_all()
        return False

    def _receive(self, peer: Peer, message: Any) -> None:
        with self._changed:
            peer.silence.reset()
            match message:
                case Position():
                    peer.position = message
                case Identified(identity=identity):
                    peer.identity = identity
                case Loaded():
                    peer.is_loaded = True
                case Left():
                    peer.left = message
                case Leaving(reason=reason):
                    peer.leaving = reason
                case Goodbye(reason=reason):
                    peer.goodbye = reason
            self._changed.notify_all()

    def _gone(self, peer: Peer) -> None:
        """The connection of a process ended."""
        is_loss = False
        with self._changed:
            peer.is_gone = True
            if not self._is_complete:
                if self._peers.get(peer.process_id) is peer:
                    del self._peers[peer.process_id]  # it will come again
            elif peer.goodbye and not self._is_welcome:
                self._problem = f"{peer.name} cannot take part: {peer.goodbye}"
            else:
                is_loss = True
            self._changed.notify_all()
        if is_loss:
            why = f": {peer.goodbye}" if peer.goodbye else ""
            self._lose(f"{peer.name} ended{why}")

    def _watch(self) -> None:
        """Sends heartbeats, and looks whether all processes are alive and in step."""
        while not self._is_closing:
            for peer in self._in_order():
                peer.connection.send_unless_busy(Heartbeat())
                with self._changed:
                    problem = peer.problem(self._position, self._patience)
                if problem and self._is_complete:
                    self._lose(f"{peer.name} {problem}")
            with self._changed:
                stalled = self._stall.problem(self._patience)
                at = self._position
                where = f"barrier {at.barrier} of job {at.job} ({at.stage})"
            if stalled:
                self._lose(f"no process advances: all have been at {where} {stalled}")
            time.sleep(HEARTBEAT_SECONDS)

    def _lose(self, message: str) -> None:
        """Ends this process, unless it ends already; not to be called with the lock held."""
        with self._changed:
            if self._is_closing or self._is_lost:
                return
            self._is_lost = True
        self._on_lost(message)


def _free_port(host: str) -> int:
    """A port for JAX, a new one at every start: no process of an earlier start can reach it."""
    with listen_at(host, 0) as probe:
        return probe.getsockname()[1]
