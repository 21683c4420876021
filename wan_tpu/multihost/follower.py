"""A follower, any process of a slice but the first: it obeys process 0, message by message.

It decides nothing by itself but to end, when process 0 is gone or silent.
"""

import dataclasses
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from wan_tpu.errors import MismatchError, ProcessLostError, WanTpuError
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.multihost.connection import Connection, connect_to_leader
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.health import SilenceTimer, is_compiling, stage_name
from wan_tpu.multihost.identity import Identity
from wan_tpu.multihost.listener import HANDSHAKE_SECONDS
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
)
from wan_tpu.multihost.transfer import Incoming

RETRY_SECONDS = 0.2
LINGER_SECONDS = 10.0
"""After the last job: process 0 still writes the video, and ends when it loses this process."""


class Follower:
    """See `Lockstep`."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        on_lost: Callable[[str], None],
        on_stop: Callable[[], None],
        patience_seconds: float,
    ):
        """Prepares to join; nothing is sent yet.

        Args:
            group: with this process's rank, which is not 0.
            on_lost: called once, on a thread, with the reason, when process 0 is lost. It must
                end this process.
            on_stop: called on a thread when process 0 ends all, maybe in the middle of a job.
            patience_seconds: how long process 0 may be silent.
        """
        self._group = group
        self._on_lost = on_lost
        self._on_stop = on_stop
        self._patience = patience_seconds
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._silence = SilenceTimer()
        self._connection: Connection | None = None
        self._position = Position()
        self._begun: Begin | None = None
        self._incoming: Incoming | None = None
        self._compiled = False
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._ended_by: End | None = None
        self._is_ending = threading.Event()

    def gather(self, timeout_seconds: float) -> None:
        """Connects to process 0, which may not listen yet.

        Raises:
            ProcessLostError: it did not answer in time.
            MismatchError: what answers there does not know the slice's secret.
        """
        group = self._group
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                remaining = max(0.1, deadline - time.monotonic())
                self._connection = connect_to_leader(group, min(HANDSHAKE_SECONDS, remaining))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ProcessLostError(
                        f"process 0 does not answer at {group.coordinator} within "
                        f"{timeout_seconds:g} s: {error}"
                    ) from None
                time.sleep(RETRY_SECONDS)
        self._connection.send(
            Hello(
                process_id=group.process_id,
                num_processes=group.num_processes,
                machine=socket.gethostname(),
            )
        )
        threading.Thread(target=self._listen, name="process 0", daemon=True).start()
        threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True).start()

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`."""
        self._send(Identified(identity={part: dict(names) for part, names in identity.items()}))
        match self._inbox.get():
            case Welcome(jax_coordinator=address):
                return address
            case Refused(reason=reason):
                raise MismatchError(reason)
            case message:
                raise ProcessLostError(f"process 0 sent {message} before Welcome")

    def loaded(self) -> None:
        """See `Lockstep.loaded`."""
        self._send(Loaded())

    def begin(self, task: dict[str, Any] | None = None, media: Media = NO_MEDIA) -> dict[str, Any]:
        """See `Lockstep.begin`; returns once all bytes of pictures and clips have come."""
        message = self._inbox.get()
        assert isinstance(message, Begin), f"{message} where a job should begin"
        self._ended_by = None
        return message.task

    def receive_media(self) -> Media:
        """See `Lockstep.receive_media`."""
        incoming, self._incoming = self._incoming, None
        return NO_MEDIA if incoming is None else incoming.media()

    def note(self, stage: str, *, is_over: bool) -> None:
        """See `Lockstep.note`."""
        stage = stage_name(stage, is_over=is_over)
        self._position = dataclasses.replace(self._position, stage=stage)
        if is_compiling(stage):
            self._compiled = True
            self._send(self._position)  # process 0 may have to be patient from now on

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`; whether this process was asked to stop does not count."""
        return not isinstance(self._pass_barrier(), Continue)

    def stopped(self, asked: Callable[[], Collection[int]]) -> Collection[int]:
        """See `Lockstep.stopped`; what this process was asked for does not count."""
        decision = self._pass_barrier()
        if not isinstance(decision, Continue):
            raise WanTpuError("process 0 has left the job")
        return decision.stopped

    def _pass_barrier(self) -> Continue | Cancel | End:
        """Waits for what process 0 decides at the next barrier."""
        self._position = dataclasses.replace(self._position, barrier=self._position.barrier + 1)
        if self._compiled:
            self._send(self._position)  # process 0 waits for it
            self._compiled = False
        match self._inbox.get():
            case Continue() | Cancel() as decision:
                return decision
            case End() as end:  # process 0 failed, or was stopped, on its way here
                self._position = dataclasses.replace(
                    self._position, barrier=self._position.barrier - 1
                )
                self._ended_by = end
                return end
            case message:
                raise AssertionError(f"{message} in the middle of a job")

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """See `Lockstep.leave`."""
        self._send(
            Left(
                job=self._position.job,
                barrier=self._position.barrier,
                outcome=str(outcome),
                reason=reason,
            )
        )
        stopped_by = self._ended_by
        while self._ended_by is None:
            message = self._inbox.get()
            self._ended_by = message if isinstance(message, End) else None
        return "" if stopped_by is None else stopped_by.failure

    def close(self) -> None:
        """See `Lockstep.close`."""
        self._is_ending.wait()

    @property
    def is_in_job(self) -> bool:
        """Whether process 0 has begun a job and not left it."""
        return not self._is_idle.is_set()

    def finish(self, reason: str, timeout_seconds: float) -> None:
        """Tells process 0 that this one is about to end, and waits until it may.

        That is when the running job is over, if there is one. If process 0 was told to end, too,
        it stops this one; else it notices at the next job that this one is missing.
        """
        if self.is_in_job:
            self._send(Leaving(reason=reason))
            if self._is_idle.wait(timeout_seconds):
                self._is_ending.wait(LINGER_SECONDS)

    def tell_asked(self, reason: str) -> None:
        """See `Lockstep.tell_asked`; from any thread."""
        self._send(Leaving(reason=reason))

    def others_asked(self) -> bool:
        """See `Lockstep.others_asked`; process 0 decides."""
        return False

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """See `Lockstep.give_up`; from any thread, whatever runs."""
        self._is_ending.set()
        self._send(Goodbye(reason=reason))

    def _send(self, message: Any) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _listen(self) -> None:
        assert self._connection is not None
        try:
            self._connection.listen(self._receive)
        except ValueError as error:
            self._lose(f"process 0 sent something malformed: {error}")
        self._lose("process 0 ended")

    def _receive(self, message: Any) -> None:
        self._silence.reset()
        match message:
            case Heartbeat():
                pass
            case Begin(job=job, media=sizes):
                self._is_idle.clear()
                # Process 0 sees that this process is in the job while the bytes still come.
                self._position = Position(job=job)
                self._begun, self._incoming = message, Incoming(sizes)
                self._pass_on_begin()
            case bytes():
                if self._incoming is None:
                    raise ValueError(f"a frame of {len(message)} bytes that belongs to no job")
                self._incoming.add(message)
                self._pass_on_begin()
            case Stop():
                self.give_up("stopped")
                self._on_stop()
            case GaveUp(reason=reason):
                self._lose(f"process 0 cannot go on: {reason}")
            case Refused():
                self._is_ending.set()  # it hangs up now, and that is no loss
                self._inbox.put(message)
            case _:
                self._inbox.put(message)
                if isinstance(message, End):
                    self._is_idle.set()

    def _pass_on_begin(self) -> None:
        """Lets the job begin once no byte of it is missing."""
        if self._begun is not None and self._incoming is not None and self._incoming.is_complete:
            begun, self._begun = self._begun, None
            self._inbox.put(begun)

    def _keep_alive(self) -> None:
        """Sends this process's position, and notices when process 0 sends nothing any more."""
        while not self._is_ending.is_set():
            self._send(self._position)
            silent = self._silence.tick()
            if silent > self._patience:
                self._lose(f"process 0 has sent nothing for {silent:g} s")
            time.sleep(HEARTBEAT_SECONDS)

    def _lose(self, message: str) -> None:
        if not self._is_ending.is_set():
            self._is_ending.set()
            self._on_lost(message)
