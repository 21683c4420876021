"""The service's end of the engine process: starts it, talks to it, kills it. No JAX here."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from server.engine.failure import Failure
from server.engine.messages import (
    Cancel,
    Done,
    Failed,
    Generate,
    Loading,
    Message,
    Progress,
    Ready,
    Stop,
    decode,
    encode,
)
from wan_tpu.multihost.lockstep import EXIT_LOST
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)

LINE_LIMIT_BYTES = 1 << 22
STOP_SECONDS = 10
"""For an engine to end in good order; with others of a slice it waits up to 5 s for them."""


class EngineFailure(Exception):
    """The engine could not start, or could not make a video."""

    def __init__(self, code: Failure, message: str):
        super().__init__(message)
        self.code = code


class ProcessLost(Exception):
    """The engine ended because another process of the slice was lost; see `engine.lockstep`."""


class EngineClient:
    """One engine process at a time; a new one is started where the last one ended."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, on_loading: Callable[[str], None]) -> dict[str, Any]:
        """Starts a process and waits until it is ready.

        Args:
            on_loading: told what it is at.

        Returns:
            The engine's description.

        Raises:
            EngineFailure: it ended instead; the message says why.
            ProcessLost: it ended because another process was lost, now or since it was ready.
        """
        if self._process is not None and self._process.returncode == EXIT_LOST:
            raise ProcessLost
        await self.kill()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
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
        self._reader, self._writer = await asyncio.open_connection(
            sock=ours, limit=LINE_LIMIT_BYTES
        )
        while True:
            match await self._receive():
                case Loading(what=what):
                    on_loading(what)
                case Ready(description=description):
                    return description
                case Failed(code=code, message=message):
                    raise EngineFailure(Failure(code), message)

    async def generate(
        self,
        job_id: str,
        request: VideoRequest,
        folder: pathlib.Path,
        on_progress: Callable[[Progress], None],
    ) -> dict[str, Any]:
        """Makes a job's video.

        Args:
            job_id: names the job in what the engine says.
            request: complete.
            folder: where the files are left.
            on_progress: told at every step.

        Returns:
            What ran: layout, attention, versions, seconds by stage.

        Raises:
            EngineFailure: no video; with the code that the job fails with.
            ProcessLost: another process of the slice was lost.
        """
        await self._send(
            Generate(job=job_id, request=dataclasses.asdict(request), folder=str(folder))
        )
        while True:
            match await self._receive():
                case Progress(job=name) as progress if name == job_id:
                    on_progress(progress)
                case Done(job=name, metadata=metadata) if name == job_id:
                    return metadata
                case Failed(job=name, code=code, message=message) if name == job_id:
                    raise EngineFailure(Failure(code), message)

    async def cancel(self, job_id: str) -> None:
        """Asks for a job to be stopped at its next step; `generate` then ends."""
        if self.is_alive:
            await self._send(Cancel(job=job_id))

    async def ended(self) -> None:
        """Waits for the process to end."""
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> None:
        """Ends the process in good order, and all others of the slice; or else as `kill` does."""
        if self.is_alive:
            assert self._process is not None
            await self._send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """Ends the process, whatever it is at."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        self._process = self._reader = self._writer = None

    async def _send(self, message: Message) -> None:
        assert self._writer is not None
        self._writer.write(encode(message))
        # Whoever waits for the answer learns how the process ended.
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def _receive(self) -> Message:
        reader, process = self._reader, self._process  # `kill` forgets them while this waits
        assert reader is not None
        assert process is not None
        try:
            line = await reader.readline()
        except ConnectionError:
            line = b""
        if not line.endswith(b"\n"):
            status = await process.wait()
            if status == EXIT_LOST:
                raise ProcessLost
            raise EngineFailure(Failure.ENGINE_CRASHED, _how_it_ended(status))
        return decode(line)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"the engine process ended with status {status}"
    name = signal.Signals(-status).name
    hint = ", as the kernel does when memory runs out" if -status == signal.SIGKILL else ""
    return f"the engine process was ended by {name}{hint}"
