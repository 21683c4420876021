"""One engine process and the socket to it: how it is started, and how it is ended for certain."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys

logger = logging.getLogger(__name__)

LINE_LIMIT_BYTES = 1 << 22
STOP_SECONDS = 10.0
"""For an engine to end in good order; with others of a slice it waits up to 5 s for them."""

KILL_SECONDS = 10.0
"""For a killed process to be gone. One that waits for a device or a disk (state D) is not."""


class Child:
    """An engine process; made by `spawn`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ):
        self._process = process
        self._reader = reader
        self._writer = writer
        self._is_struck = False

    @classmethod
    async def spawn(cls) -> "Child":
        """Starts a process; whoever is cancelled in between leaves none behind."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT_BYTES)
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "server.engine.process",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),
                    start_new_session=True,  # Ctrl-C in the terminal is for the service alone
                )
            )
            try:
                # A process that nobody holds could be neither awaited nor killed.
                process = await asyncio.shield(starting)
            except BaseException:
                writer.close()
                await asyncio.wait({starting})
                if not starting.cancelled() and starting.exception() is None:
                    child = cls(starting.result(), reader, writer)
                    child.strike()
                    await child.end(0)
                raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended; None while it has not."""
        return self._process.returncode

    def send(self, line: bytes) -> None:
        """Says something; whoever waits for an answer learns if it could not be heard."""
        if not self._writer.is_closing():
            self._writer.write(line)

    async def receive(self) -> bytes | None:
        """The next line; None once it has closed its end, or we ours.

        Raises:
            ValueError: the line is longer than any that an engine says.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return line if line.endswith(b"\n") else None

    def strike(self) -> None:
        """Kills it and hangs up, without waiting."""
        self._is_struck = True
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._writer.close()

    async def end(self, seconds: float) -> int | None:
        """Waits for it to end, and makes it; returns its status, None when it does not end."""
        if not self._is_struck and not await self._has_ended(seconds):
            self.strike()
        if not await self._has_ended(KILL_SECONDS):
            logger.error("the engine's process %d was killed and does not end", self.pid)
        self._writer.close()
        return self.status

    async def _has_ended(self, seconds: float) -> bool:
        ending = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({ending}, timeout=seconds)
            return ending.done()
        finally:
            ending.cancel()


def how_it_ended(status: int | None) -> str:
    """A process's status in words."""
    if status is None:
        return "the engine process was killed and does not end"
    if status >= 0:
        return f"the engine process ended with status {status}"
    name = signal.Signals(-status).name
    hint = ", as the kernel does when memory runs out" if -status == signal.SIGKILL else ""
    return f"the engine process was ended by {name}{hint}"
