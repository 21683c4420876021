"""Several jobs as one piece of the engine's work: each has its own files, progress and end.

Runs in the engine process. What goes wrong with one job's files ends that job alone, at the next
step: processes in lock-step must not learn of it in the middle of a program.
"""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from server.engine.messages import Done, Failed, Generate, Message, Progress
from server.engine.outcome import code_of, words_for
from server.engine.recorder import Recorder
from server.engine.seam import Engine
from server.files.writer import MediaFiles
from wan_tpu.errors import Cancelled
from wan_tpu.pipeline.progress import Calls, Outcome
from wan_tpu.pipeline.progress import Progress as PipelineProgress
from wan_tpu.request import VideoRequest

logger = logging.getLogger("server.engine")


class Service(Protocol):
    """What of the connection to the service is needed here."""

    recorder: Recorder
    send: Callable[[Message], None]
    is_cancelled: Callable[[str], bool]
    forget: Callable[[str], None]


def make_together(engine: Engine, service: Service, works: Sequence[Generate]) -> None:
    """Makes the videos of several jobs; the service is told of each one's end as it comes."""
    members = _Members(engine, service, works)
    calls = Calls(
        on_progress=members.note,
        on_end=members.end,
        on_frames=members.write,
        cancelled=members.unwanted,
    )
    try:
        engine.generate_together(members.requests, calls)
    except Exception as error:  # the boundary of jobs: the next ones must be able to run
        logger.exception("generation failed", extra={"job": works[0].job})
        for member in sorted(members.open):
            members.end(member, error)


class _Members:
    """The jobs, by their place among them."""

    def __init__(self, engine: Engine, service: Service, works: Sequence[Generate]):
        self.requests = [VideoRequest(**work.request) for work in works]
        self.open = set(range(len(works)))
        self._engine = engine
        self._service = service
        self._works = works
        self._files: dict[int, MediaFiles] = {}
        self._file_errors: dict[int, Exception] = {}

    def note(self, members: Sequence[int], progress: PipelineProgress) -> None:
        """Those have got on: a profile counts it once, each job is told."""
        self._service.recorder.note(progress)
        for member in members:
            self._service.send(
                Progress(
                    job=self._works[member].job,
                    stage=progress.stage,
                    done=progress.done,
                    total=progress.total,
                    seconds=progress.seconds,
                )
            )

    def write(self, member: int, frames: np.ndarray) -> None:
        """Frames of one have come; an error is kept for its end."""
        if member in self._file_errors:
            return
        try:
            if member not in self._files:
                self._files[member] = self._open(member)
            self._files[member].write(frames)
        except Exception as error:  # noqa: BLE001 - it ends this job, with its own code
            self._file_errors[member] = error

    def unwanted(self) -> set[int]:
        """Those that are to end at this step."""
        asked = {i for i in self.open if self._service.is_cancelled(self._works[i].job)}
        return asked | (self._file_errors.keys() & self.open)

    def end(self, member: int, outcome: Outcome) -> None:
        """One has ended: its files are closed, the service is told."""
        self.open.discard(member)
        outcome = self._file_errors.get(member, outcome)
        job = self._works[member].job
        if isinstance(outcome, dict):
            outcome = self._close(member, outcome)
        elif (files := self._files.pop(member, None)) is not None:
            files.__exit__(type(outcome), outcome, None)
        if isinstance(outcome, dict):
            self._service.send(Done(job=job, metadata=outcome))
        elif isinstance(outcome, Cancelled):
            self._service.send(Failed(job=job, code="cancelled", message=str(outcome)))
        else:
            code = code_of(self._engine, outcome)
            logger.error("generation failed: %s", outcome, extra={"job": job, "code": code})
            self._service.send(Failed(job=job, code=code, message=words_for(outcome, code)))
        self._service.forget(job)

    def _open(self, member: int) -> MediaFiles:
        request = self.requests[member]
        assert request.fps is not None
        assert request.width is not None
        assert request.height is not None
        assert request.num_frames is not None
        files = MediaFiles(
            pathlib.Path(self._works[member].folder),
            fps=request.fps,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
        )
        return files.__enter__()

    def _close(self, member: int, metadata: dict) -> Outcome:
        """The metadata with what the files are; or why there are none."""
        files = self._files.pop(member)
        try:
            files.__exit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - a full disk shows here at the latest
            return error
        return {**metadata, "spritesheet": files.sheet}
