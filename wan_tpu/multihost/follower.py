"""Every process of a slice but the first: does what process 0 says, when it says it.

It decides nothing by itself but to end, when process 0 is gone or silent.
"""

import dataclasses
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_tpu.errors import MismatchError, ProcessLostError
from wan_tpu.multihost.connection import Connection, connect_to_leader
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.identity import Identity
from wan_tpu.multihost.listener import HANDSHAKE_SECONDS
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.roster import is_compiling, noted
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
    Silence,
    Stop,
    Welcome,
)

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
            group: with this process's number, which is not 0.
            on_lost: called once, on a thread, with what is wrong, when process 0 is lost. It must
                end this process.
            on_stop: called on a thread when process 0 ends all, maybe in the middle of a job.
            patience_seconds: how long process 0 may be silent.
        """
        self._group = group
        self._on_lost = on_lost
        self._on_stop = on_stop
        self._patience = patience_seconds
        self._words: queue.Queue[Any] = queue.Queue()
        self._silence = Silence()
        self._connection: Connection | None = None
        self._at = At(number=0, point=0, stage="")
        self._compiled = False
        self._free = threading.Event()
        self._free.set()
        self._ended_by: End | None = None
        self._is_ending = threading.Event()

    def gather(self, timeout_seconds: float) -> None:
        """Goes to process 0, which may not be there yet.

        Raises:
            ProcessLostError: it did not come in time.
            MismatchError: whoever answers there does not know the slice's secret.
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
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`."""
        self._say(Identified(identity={part: dict(names) for part, names in identity.items()}))
        match self._words.get():
            case Welcome(jax_coordinator=address):
                return address
            case Refused(reason=reason):
                raise MismatchError(reason)
            case word:
                raise ProcessLostError(f"process 0 said {word} before Welcome")

    def loaded(self) -> None:
        """See `Lockstep.loaded`."""
        self._say(Loaded())

    def begin(self, task: dict[str, Any] | None = None) -> dict[str, Any]:
        """See `Lockstep.begin`."""
        word = self._words.get()
        assert isinstance(word, Begin), f"{word} where a job should begin"
        self._at = At(number=word.number, point=0, stage="")
        self._ended_by = None
        return word.task

    def note(self, stage: str, *, is_over: bool) -> None:
        """See `Lockstep.note`."""
        stage = noted(stage, is_over=is_over)
        self._at = dataclasses.replace(self._at, stage=stage)
        if is_compiling(stage):
            self._compiled = True
            self._say(self._at)  # process 0 may have to be patient from now on

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`; what this process was asked does not count."""
        self._at = dataclasses.replace(self._at, point=self._at.point + 1)
        if self._compiled:
            self._say(self._at)  # process 0 waits for it
            self._compiled = False
        match self._words.get():
            case Continue():
                return False
            case Cancel():
                return True
            case End() as end:  # process 0 failed, or was stopped, on its way here
                self._at = dataclasses.replace(self._at, point=self._at.point - 1)
                self._ended_by = end
                return True
            case word:
                raise AssertionError(f"{word} in the middle of a job")

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """See `Lockstep.leave`."""
        self._say(
            Left(number=self._at.number, point=self._at.point, outcome=str(outcome), reason=reason)
        )
        stopped_by = self._ended_by
        while self._ended_by is None:
            word = self._words.get()
            self._ended_by = word if isinstance(word, End) else None
        return "" if stopped_by is None else stopped_by.failure

    def close(self) -> None:
        """See `Lockstep.close`."""
        self._is_ending.wait()

    @property
    def is_in_job(self) -> bool:
        """Whether process 0 has begun a job and not left it."""
        return not self._free.is_set()

    def finish(self, reason: str, timeout_seconds: float) -> None:
        """Tells process 0 that this one is about to end, and waits until it may.

        That is when the running job is over, if there is one. If process 0 was told to end, too,
        it stops this one; else it notices at the next job that this one is missing.
        """
        if self.is_in_job:
            self._say(Leaving(reason=reason))
            if self._free.wait(timeout_seconds):
                self._is_ending.wait(LINGER_SECONDS)

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """See `Lockstep.give_up`; from any thread, whatever runs."""
        self._is_ending.set()
        self._say(Goodbye(reason=reason))

    def _say(self, word: Any) -> None:
        if self._connection is not None:
            self._connection.send(word)

    def _listen(self) -> None:
        assert self._connection is not None
        try:
            self._connection.listen(self._hear)
        except ValueError as error:
            self._lose(f"process 0 makes no sense: {error}")
        self._lose("process 0 ended")

    def _hear(self, word: Any) -> None:
        self._silence.heard()
        match word:
            case Beat():
                pass
            case Stop():
                self.give_up("stopped")
                self._on_stop()
            case GaveUp(reason=reason):
                self._lose(f"process 0 cannot go on: {reason}")
            case Refused():
                self._is_ending.set()  # it hangs up now, and that is no loss
                self._words.put(word)
            case _:
                if isinstance(word, Begin):
                    self._free.clear()
                self._words.put(word)
                if isinstance(word, End):
                    self._free.set()

    def _beat(self) -> None:
        """Says where this process is, and notices when process 0 says nothing any more."""
        while not self._is_ending.is_set():
            self._say(self._at)
            silent = self._silence.passed()
            if silent > self._patience:
                self._lose(f"process 0 has not been heard of for {silent:g} s")
            time.sleep(BEAT_SECONDS)

    def _lose(self, message: str) -> None:
        if not self._is_ending.is_set():
            self._is_ending.set()
            self._on_lost(message)
