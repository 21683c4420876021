"""What systemd is told about the service: ready, what it is at, that it lives (sd_notify(3)).

Datagrams to the socket that `NOTIFY_SOCKET` names; without one nobody is told.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, MutableMapping


class Notifier:
    """The way to systemd, if it has started this process and wants to know."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ):
        """Takes the variables out of the environment: they are not meant for child processes."""
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", str(os.getpid()))
        is_ours = watchdog.isdecimal() and process == str(os.getpid())
        self.watchdog_seconds = int(watchdog) / 1e6 if is_ours else 0.0
        """How long it may be silent; 0 is for ever."""
        self._status = ""
        self._socket: socket.socket | None = None
        # "@" stands for a name that is in no folder. The socket is opened now: nothing but the
        # name is needed, and a server that runs out of descriptors can still say that it lives.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        """Nothing is said any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """It takes requests."""
        self._send("READY=1")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def status(self, words: str) -> None:
        """What `systemctl status` shows; said once."""
        if words != self._status:
            self._status = words
            self._send("STATUS=" + words.replace("\n", " "))

    def alive(self) -> None:
        """It lives."""
        self._send("WATCHDOG=1")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Says that it lives as long as the event loop turns, twice in the time that it has."""
        beating = asyncio.create_task(self._beat(), name="watchdog")
        try:
            yield
        finally:
            beating.cancel()

    def keep_alive(self) -> None:
        """Says that it lives from a thread of its own: for a process without an event loop."""

        def beat() -> None:
            while True:
                self.alive()
                time.sleep(self.watchdog_seconds / 2)

        if self.watchdog_seconds:
            threading.Thread(target=beat, name="watchdog", daemon=True).start()

    async def _beat(self) -> None:
        while self.watchdog_seconds:
            self.alive()
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _send(self, state: str) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # who does not listen need not know, nor stop us
            self._socket.sendto(state.encode(), self._address)
