"""The service's end of the engine process: starts it, talks to it, ends it. No JAX here."""

import asyncio
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from server.engine.call import Call
from server.engine.child import STOP_SECONDS, Child, how_it_ended
from server.engine.failure import EngineFailure, Failure, ProcessLost
from server.engine.messages import (
    Beat,
    Cancel,
    Done,
    Failed,
    Generate,
    GenerateTogether,
    Loading,
    Message,
    Probe,
    Progress,
    Ready,
    Record,
    Recorded,
    Stop,
    decode,
    encode,
)
from server.engine.patience import TICK_SECONDS, Patience
from wan_tpu.multihost.lockstep import EXIT_LOST
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)


class _Line:
    """What one process has said and nobody has heard yet, until it has ended."""

    def __init__(self, child: Child):
        self.child = child
        self.inbox: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.is_lost = False
        """Whether it ended because another process of the slice was lost."""
        self.reason = ""
        """What the service ended it for, if it did."""
        self.is_known = False
        """Whether somebody who waited for an answer has learnt of its end."""
        self.tasks: list[asyncio.Task[None]] = []
        self.is_ready = False
        """Whether it has loaded everything."""
        self.recordings: dict[str, asyncio.Future[str | None]] = {}
        """Profiles that it was asked for, until it says what became of them."""


class EngineClient:
    """One engine process at a time; a new one is started where the last one ended."""

    def __init__(self, patience: Callable[[], Patience]) -> None:
        """Starts nothing.

        Args:
            patience: makes what judges one process.
        """
        self._make_patience = patience
        self._patience = patience()
        self._line: _Line | None = None
        self._undead: Child | None = None
        self._killed_at = 0.0
        self._num_probes = 0

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._line is not None and not self._line.ended.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether there is a process that takes work."""
        return self._line is not None and self._line.is_ready and self.is_alive

    @property
    def how_it_ended(self) -> str:
        """Why there is no process, where it ended or hung without work; else nothing."""
        line = self._line
        if line is None or not line.ended.is_set() or line.is_known or line.is_lost:
            return ""
        return line.reason or how_it_ended(line.child.status)

    async def start(self, on_loading: Callable[[str], None]) -> dict[str, Any]:
        """Starts a process and waits until it is ready; cancelled, it leaves none.

        Args:
            on_loading: told what it is at.

        Returns:
            The engine's description.

        Raises:
            EngineFailure: it ended instead; the message says why.
            ProcessLost: it ended because another process was lost, now or since it was ready.
        """
        if self._line is not None and self._line.is_lost:
            raise ProcessLost
        await self.kill()
        self._check_undead()
        try:
            line = self._line = _Line(await Child.spawn())
            line.tasks.append(asyncio.create_task(self._listen(line), name="engine"))
            while True:
                match await self._receive(line):
                    case Loading(what=what):
                        on_loading(what)
                    case Ready(description=description):
                        self._patience = self._make_patience()
                        line.is_ready = True
                        line.tasks.append(asyncio.create_task(self._watch(line), name="patience"))
                        return description
                    case Failed(code=code, message=message):
                        raise EngineFailure(Failure(code), message)
        except asyncio.CancelledError:
            await self.stop()  # the others of a slice are to end in good order, too
            raise
        except EngineFailure:
            await self.kill()
            raise

    async def generate(
        self,
        job_id: str,
        request: VideoRequest,
        folder: pathlib.Path,
        on_progress: Callable[[Progress], None],
        *,
        uploads: pathlib.Path,
        extended: dict[str, Any] | None = None,
        timeout_seconds: float,
    ) -> dict[str, Any]:
        """Makes a job's video.

        Args:
            job_id: names the job in what the engine says.
            request: complete.
            folder: where the files are left.
            on_progress: told at every step.
            uploads: where the pictures and clips lie that the request names.
            extended: the clip that the video begins with; see `Generate`.
            timeout_seconds: that the caller will wait; nothing ends by it here.

        Returns:
            What ran: layout, attention, versions, seconds by stage.

        Raises:
            EngineFailure: no video; with the code that the job fails with.
            ProcessLost: another process of the slice was lost.
        """
        work = Generate(
            job=job_id,
            request=dataclasses.asdict(request),
            folder=str(folder),
            uploads=str(uploads),
            extended=extended,
        )
        size = (request.width, request.height, request.num_frames)
        return await self._do(work, on_progress, size, timeout_seconds)

    async def generate_together(self, calls: Sequence[Call], *, timeout_seconds: float) -> None:
        """Makes the videos of several jobs in one run; each call learns its own outcome.

        Args:
            calls: the jobs, alike in what `wan_tpu.pipeline.alike` says.
            timeout_seconds: that the caller will wait for all of them; nothing ends by it here.

        Raises:
            EngineFailure: the engine ended; calls that have no outcome by then get none.
            ProcessLost: another process of the slice was lost; likewise.
        """
        line = self._working_line()
        request = calls[0].request
        size = (request.width, request.height, request.num_frames, len(calls))
        self._patience.begin(size, timeout_seconds)
        work = GenerateTogether(jobs=[dataclasses.asdict(call.message) for call in calls])
        line.child.send(encode(work))
        waiting = {call.job_id: call for call in calls}
        try:
            while waiting:
                match await self._receive(line):
                    case Progress(job=name) as progress if name in waiting:
                        self._patience.moved(progress.stage, progress.done, progress.total)
                        waiting[name].on_progress(progress)
                    case Done(job=name, metadata=metadata) if name in waiting:
                        waiting.pop(name).succeed(metadata)
                    case Failed(job=str(name), code=code, message=message) if name in waiting:
                        waiting.pop(name).fail(EngineFailure(Failure(code), message))
        finally:
            self._patience.end()

    async def probe(self, *, timeout_seconds: float) -> None:
        """Has the engine make a small video of its own, which is thrown away.

        Raises:
            EngineFailure: it cannot.
            ProcessLost: another process of the slice was lost.
        """
        self._num_probes += 1
        work = Probe(job=f"probe-{self._num_probes}")
        await self._do(work, lambda _: None, (0,), timeout_seconds)

    async def cancel(self, job_id: str) -> None:
        """Asks for a job to be stopped at its next step; `generate` then ends."""
        if self._line is not None:
            self._line.child.send(encode(Cancel(job=job_id)))

    async def record(
        self,
        profile_id: str,
        folder: pathlib.Path,
        *,
        steps: int | None,
        seconds: float | None,
    ) -> str | None:
        """Has a profile of the work recorded, beside it; `cancel` by its id ends it early.

        Args:
            profile_id: names it.
            folder: where it is left.
            steps: denoising steps of the job that runs or comes; None for `seconds` from now on.

        Returns:
            Why there is none; None once it is written.

        Raises:
            EngineFailure: there is no engine, or it ended meanwhile.
        """
        line = self._line
        if line is None or not self.is_ready:
            raise EngineFailure(Failure.ENGINE_CRASHED, "the engine is not ready")
        written = line.recordings[profile_id] = asyncio.get_running_loop().create_future()
        work = Record(profile=profile_id, folder=str(folder), steps=steps, seconds=seconds)
        line.child.send(encode(work))
        try:
            return await written
        finally:
            line.recordings.pop(profile_id, None)

    async def ended(self) -> None:
        """Waits for the process to end."""
        assert self._line is not None
        await self._line.ended.wait()

    async def stop(self) -> None:
        """Ends the process in good order, and all others of the slice; or else as `kill` does."""
        line = self._line
        if line is not None and not line.ended.is_set():
            line.child.send(encode(Stop()))
            ending = asyncio.ensure_future(line.ended.wait())
            try:
                await asyncio.wait({ending}, timeout=STOP_SECONDS)
            finally:
                ending.cancel()
        await self.kill()

    async def kill(self) -> None:
        """Ends the process, whatever it is at. Returns in any case, after a while.

        A process that does not end even so holds the accelerator: none is started until it has.
        """
        line, self._line = self._line, None
        if line is None:
            return
        line.child.strike()
        if line.tasks:
            await asyncio.wait({line.tasks[0]})
        for task in line.tasks:
            task.cancel()
        if line.child.status is None:
            self._undead, self._killed_at = line.child, time.monotonic()

    async def _do(
        self,
        work: Generate | Probe,
        on_progress: Callable[[Progress], None],
        size: tuple[int | None, ...],
        timeout_seconds: float,
    ) -> dict[str, Any]:
        """Gives the engine work and waits for what becomes of it."""
        line = self._working_line()
        self._patience.begin(size, timeout_seconds)
        line.child.send(encode(work))
        try:
            while True:
                match await self._receive(line):
                    case Progress(job=name) as progress if name == work.job:
                        self._patience.moved(progress.stage, progress.done, progress.total)
                        on_progress(progress)
                    case Done(job=name, metadata=metadata) if name == work.job:
                        return metadata
                    case Failed(job=name, code=code, message=message) if name == work.job:
                        raise EngineFailure(Failure(code), message)
        finally:
            self._patience.end()

    def _working_line(self) -> _Line:
        if self._line is None:
            raise EngineFailure(Failure.ENGINE_CRASHED, "the engine was ended before the job began")
        return self._line

    async def _receive(self, line: _Line) -> Message:
        said = await line.inbox.get()
        if isinstance(said, Exception):
            line.inbox.put_nowait(said)  # whoever asks again learns the same
            line.is_known = True
            raise said
        return said

    async def _listen(self, line: _Line) -> None:
        """Hears a process until it has ended, and passes on how that was."""
        try:
            while (said := await line.child.receive()) is not None:
                message = decode(said)
                self._patience.heard()
                if isinstance(message, Recorded):
                    written = line.recordings.get(message.profile)
                    if written is not None and not written.done():
                        written.set_result(message.problem)
                elif not isinstance(message, Beat):
                    line.inbox.put_nowait(message)
        except ValueError as error:
            line.reason = f"the engine process makes no sense and was ended: {error}"
            logger.error("%s", line.reason)
            line.child.strike()
        # It hung up: a process that ends does that, and one that does not is of no use any more.
        status = await line.child.end(STOP_SECONDS)
        line.is_lost = status == EXIT_LOST
        failure = EngineFailure(Failure.ENGINE_CRASHED, line.reason or how_it_ended(status))
        line.inbox.put_nowait(ProcessLost() if line.is_lost else failure)
        for written in line.recordings.values():
            if not written.done():
                written.set_exception(failure)
        line.ended.set()

    async def _watch(self, line: _Line) -> None:
        """Ends a process that hangs: its job learns why."""
        while not line.ended.is_set():
            await asyncio.sleep(TICK_SECONDS)
            wrong = self._patience.tick()
            if wrong and not line.ended.is_set():
                line.reason = f"the engine {wrong}; it was ended"
                logger.error("%s", line.reason)
                line.child.strike()
                return

    def _check_undead(self) -> None:
        if self._undead is None:
            return
        if self._undead.status is not None:
            self._undead = None
            return
        raise EngineFailure(
            Failure.ENGINE_CRASHED,
            f"the engine's process {self._undead.pid} was killed "
            f"{time.monotonic() - self._killed_at:.0f} s ago and does not end (a device or a disk "
            "that does not answer?); it may hold the accelerator",
        )
