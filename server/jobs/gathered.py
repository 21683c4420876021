"""Attempts at several jobs that the engine makes as one piece of work.

Each attempt asks for its own video as it would alone. The engine is asked once all of them have,
or have given up before.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from server.engine.call import Call
from server.engine.client import EngineClient
from server.engine.messages import Progress
from wan_tpu.request import VideoRequest


class Gathered:
    """The jobs of one piece of work, one or more.

    Attributes:
        count: jobs that it was begun with.
        timeout_seconds: that all of them together may take.
    """

    def __init__(self, engine: EngineClient, job_ids: Sequence[str], job_timeout_seconds: float):
        self.count = len(job_ids)
        self.timeout_seconds = job_timeout_seconds * self.count
        self._engine = engine
        self._missing = set(job_ids)
        self._calls: list[Call] = []
        self._order = list(job_ids)
        self._has_crashed = False
        self._work: asyncio.Task[None] | None = None

    async def generate(
        self,
        job_id: str,
        request: VideoRequest,
        folder: pathlib.Path,
        on_progress: Callable[[Progress], None],
        *,
        uploads: pathlib.Path,
        extended: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A job's video; see `EngineClient.generate`."""
        outcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls.append(
            Call(
                job_id=job_id,
                request=request,
                folder=folder,
                on_progress=on_progress,
                uploads=uploads,
                extended=extended,
                outcome=outcome,
            )
        )
        self.leave(job_id)
        return await outcome

    def leave(self, job_id: str) -> None:
        """A job is not waited for any more: it has asked, or never will."""
        self._missing.discard(job_id)
        if not self._missing and self._calls and self._work is None:
            self._work = asyncio.create_task(self._make(), name=f"work of {self._order[0]}")

    def is_first_to_crash(self) -> bool:
        """True once: a crash is one failure of the engine, however many jobs it was at."""
        is_first, self._has_crashed = not self._has_crashed, True
        return is_first

    async def close(self) -> None:
        """Ends what still runs; to be called once no attempt waits any more."""
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work

    async def _make(self) -> None:
        calls = sorted(self._calls, key=lambda call: self._order.index(call.job_id))
        try:
            if len(calls) == 1:
                await self._make_alone(calls[0])
            else:
                await self._engine.generate_together(calls, timeout_seconds=self.timeout_seconds)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - each attempt says what it means for its job
            for call in calls:
                call.fail(error)

    async def _make_alone(self, call: Call) -> None:
        call.succeed(
            await self._engine.generate(
                call.job_id,
                call.request,
                call.folder,
                call.on_progress,
                uploads=call.uploads,
                extended=call.extended,
                timeout_seconds=self.timeout_seconds,
            )
        )
