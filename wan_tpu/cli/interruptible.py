"""A command's work on a thread of its own, so that signals are heard while a program compiles.

XLA cannot be interrupted. The main thread waits beside the work and takes SIGINT, SIGTERM and
SIGHUP, which a terminal sends when it closes: the work is asked to stop, has a moment for it, and
then the process ends, with no half file left.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_INTERRUPTED = 130
GRACE_SECONDS = 3.0
"""How long Ctrl-C waits for the running step; a compiling program cannot be asked to stop."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, for work without long programs.

    The `KeyboardInterrupt` then has the signal's number as its argument; Ctrl-C's has none.
    """

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup, or in the background
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interruptible:
    """One piece of work that can be ended at any moment.

    Attributes:
        is_asked: whether the work has been asked to stop.
    """

    def __init__(self) -> None:
        self.grace_seconds = GRACE_SECONDS
        self._asked = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._is_leaving = False
        self._on_interrupt: Callable[[], None] = lambda: None
        self._undo: Callable[[], None] = lambda: None

    def is_asked(self) -> bool:
        """Whether the work has been asked to stop."""
        return self._asked.is_set()

    def run(self, work: Callable[[], None]) -> None:
        """Waits for the end of the work; raises what it raised, leaves on a signal."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or in the background
                signal.signal(number, self._interrupt)
        threading.Thread(target=self._work, args=(work,), name="generate", daemon=True).start()
        try:
            # An event, not join: a join that Ctrl-C interrupts can take a live thread for ended.
            while not self._ended.wait(timeout=0.2):
                pass
        except KeyboardInterrupt:
            self._asked.set()
            self._ended.wait(timeout=self.grace_seconds)
            self._on_interrupt()
            self.end(EXIT_INTERRUPTED, "interrupted")
        if self._error is not None:
            raise self._error

    def before_interrupt(self, action: Callable[[], None], *, grace_seconds: float) -> None:
        """What a signal does before it ends the process, and how long it waits before that."""
        self._on_interrupt = action
        self.grace_seconds = grace_seconds

    @contextlib.contextmanager
    def undoing(self, undo: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a sudden end takes back what it has half done."""
        self._undo = undo
        try:
            yield
        finally:
            self._undo = lambda: None

    def end(self, status: int, message: str) -> NoReturn:
        """Ends the process at once, also in the middle of a very long step; from any thread.

        Not an orderly end of the interpreter: XLA's threads, stopped in the middle of their work,
        abort the process with a message about exceptions that were not rethrown.
        """
        with contextlib.suppress(OSError):  # a disk that has become read-only keeps it
            self._undo()
        below_the_bar = "\n" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{below_the_bar}wan-tpu: {message}\n")
        sys.stderr.flush()
        os._exit(status)

    def _interrupt(self, number: int, frame: object) -> None:
        """A signal to leave; a second one does not wait for what the first one waits for."""
        if self._is_leaving:
            self.end(EXIT_INTERRUPTED, "interrupted")
        self._is_leaving = True
        raise KeyboardInterrupt

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, raised there
            self._error = error
        finally:
            self._ended.set()
