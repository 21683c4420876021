"""One job's video, asked of the engine; several may be asked for as one piece of work."""

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from server.engine.messages import Generate, Progress
from wan_tpu.request import VideoRequest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One job's video, asked for; the fields as of `EngineClient.generate`.

    Attributes:
        outcome: what the engine says of it, or the failure.
    """

    job_id: str
    request: VideoRequest
    folder: pathlib.Path
    on_progress: Callable[[Progress], None]
    uploads: pathlib.Path
    extended: dict[str, Any] | None
    outcome: asyncio.Future[dict[str, Any]]

    @property
    def message(self) -> Generate:
        """What the engine is told of it."""
        return Generate(
            job=self.job_id,
            request=dataclasses.asdict(self.request),
            folder=str(self.folder),
            uploads=str(self.uploads),
            extended=self.extended,
        )

    def fail(self, error: BaseException) -> None:
        """There is no video."""
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def succeed(self, metadata: dict[str, Any]) -> None:
        """The files lie in the folder."""
        if not self.outcome.done():
            self.outcome.set_result(metadata)
