"""The signals that end a server, from the first moment of its life to the last."""

import contextlib
import os
import signal
import types
from collections.abc import Callable


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, Ctrl-C, and SIGHUP, which a terminal that is closed sends.

    `nohup` has SIGHUP ignored, and so it stays.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return signals
    return (*signals, signal.SIGHUP)


class Told:
    """How often this process was told to end.

    Until it serves, the first signal ends it at once: there is nothing yet that must be put in
    order. From then on they are only counted, and whoever serves acts on it.

    Attributes:
        times: that a signal has come since it serves.
        before_end: called before the end of a process that does not serve yet.
    """

    def __init__(self) -> None:
        self.times = 0
        self.before_end: Callable[[], None] = lambda: None
        self._serves = False

    def listen(self) -> None:
        """Takes the signals; on the main thread."""
        for number in ending_signals():
            signal.signal(number, self._arrived)

    def serve(self) -> None:
        """From now on signals are counted."""
        self._serves = True

    def finish(self) -> None:
        """From now on signals are ignored: everything is in order, and the exit code stands.

        Python gives the others their default back while it ends, but not those that are ignored.
        """
        for number in ending_signals():
            signal.signal(number, signal.SIG_IGN)

    def _arrived(self, number: int, frame: types.FrameType | None) -> None:
        if self._serves:
            self.times += 1
            return
        name = signal.Signals(number).name
        # Not the log: this may have interrupted it in the middle of a line.
        with contextlib.suppress(OSError):  # nobody may read it
            os.write(2, f"wan-tpu: ended by {name} before it served\n".encode())
        self.before_end()
        os._exit(0)
