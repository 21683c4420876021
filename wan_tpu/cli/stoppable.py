"""A long work that is asked to save and stop, on a thread of its own; a second Ctrl-C ends it.

Unlike `Interruptible`, a first signal does not end the process: the work does, when all is saved.
"""

import signal
import threading
import time
from collections.abc import Callable

from wan_tpu.cli.interruptible import EXIT_INTERRUPTED, Interruptible
from wan_tpu.cli.progress import say
from wan_tpu.multihost.lockstep import EXIT_LOST

FOLLOWER_SECONDS = 600.0
"""How long a follower that was asked waits for process 0, which alone can stop a work of several:
longer than the largest state takes to save."""


class Stoppable(Interruptible):
    """See `Interruptible`.

    Attributes:
        signal: that asked first; None for none.
    """

    def __init__(self, *, leads: bool = True):
        """Prepares; nothing runs yet.

        Args:
            leads: whether this process decides when to stop; of several, process 0.
        """
        super().__init__()
        self.signal: int | None = None
        self._leads = leads
        self._on_asked: Callable[[], None] = lambda: None
        self._has_something = threading.Event()

    @property
    def exit_code(self) -> int:
        """Of a work that was stopped: 130 by hand; 75 by SIGTERM or another process: once more."""
        by_hand = self.signal in (signal.SIGINT, signal.SIGHUP)
        return EXIT_INTERRUPTED if by_hand else EXIT_LOST

    def has_something(self) -> None:
        """The work tells that it has done what must be saved; until then it is ended at once."""
        self._has_something.set()

    def when_asked(self, action: Callable[[], None]) -> None:
        """What a first signal does at once, on the main thread; one that has come does it now."""
        self._on_asked = action
        if self.is_asked():
            action()

    def run(self, work: Callable[[], None]) -> None:
        """Waits for the end of the work, also when it was asked to stop; raises what it raised."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or in the background
                signal.signal(number, self._interrupt)
        threading.Thread(target=self._work, args=(work,), name="train", daemon=True).start()
        asked_at: float | None = None
        while not self._ended.wait(timeout=0.2):
            if self._asked.is_set() and asked_at is None:
                asked_at = time.monotonic()
                self._on_asked()
                if self._has_something.is_set():
                    say("stops after this step and saves; Ctrl-C now ends it at once")
            if asked_at is not None and time.monotonic() - asked_at > self._patience_seconds():
                self._on_interrupt()
                self.end(self.exit_code, "interrupted")
        if self._error is not None:
            raise self._error

    def _patience_seconds(self) -> float:
        if not self._has_something.is_set():
            return self.grace_seconds
        return float("inf") if self._leads else FOLLOWER_SECONDS

    def _interrupt(self, number: int, frame: object) -> None:
        """A signal to stop; Ctrl-C after any other one does not wait."""
        if self.signal is not None and number == signal.SIGINT:
            self.end(EXIT_INTERRUPTED, "interrupted; steps since the last checkpoint are lost")
        if self.signal is None:
            self.signal = number
        self._asked.set()
