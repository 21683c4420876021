"""The process that owns the accelerator: `python -m server.engine.process SOCKET PARENT`.

Takes `Generate` and `Cancel` over a socket and answers with progress, then `Done` or `Failed`. It
ends when the service does, however that ended. Signals meant for the service do not end it: the
service decides whether a running job may finish.
"""

import contextlib
import ctypes
import logging
import os
import pathlib
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from server.engine.extension import AfterFirst, frames_of_clip
from server.engine.failure import Failure
from server.engine.lockstep import LeadingEngine, end_for_loss, make_engine
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
    Stop,
    decode,
    encode,
)
from server.engine.outcome import code_of, words_for
from server.engine.recorder import Recorder
from server.engine.seam import Engine
from server.engine.together import make_together
from server.files.uploads import read_uploads
from server.files.writer import MediaFiles
from server.logs import flush_logging, start_logging
from server.settings import Settings
from server.signals import ending_signals
from wan_tpu.errors import Cancelled, ProcessLostError, WanTpuError
from wan_tpu.pipeline.progress import Progress as PipelineProgress
from wan_tpu.request import VideoRequest

logger = logging.getLogger("server.engine")

PR_SET_PDEATHSIG = 1

BEAT_SECONDS = 2.0

Work = Generate | GenerateTogether | Probe


class Connection:
    """The service at the other end; when it is gone, so is this process."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._sending = threading.Lock()
        self._requests: queue.Queue[Work] = queue.Queue()
        self._cancelled: set[str] = set()
        self.recorder = Recorder(self.send)
        self.on_stop: Callable[[], None] = lambda: None
        """Called before the end that the service asks for; not when the service is gone."""
        threading.Thread(target=self._read, name="service", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def send(self, message: Message) -> None:
        """Says something to the service."""
        try:
            with self._sending:
                self._socket.sendall(encode(message))
        except OSError:
            os._exit(1)

    def next_request(self) -> Work:
        """Waits for work."""
        return self._requests.get()

    def is_cancelled(self, job: str) -> bool:
        """Whether the service has asked to stop a job."""
        return job in self._cancelled

    def forget(self, job: str) -> None:
        """A job has ended."""
        self._cancelled.discard(job)
        self.recorder.leave_job()

    def _beat(self) -> None:
        while True:
            self.send(Beat())
            time.sleep(BEAT_SECONDS)

    def _read(self) -> None:
        with contextlib.suppress(ConnectionError), self._socket.makefile("rb") as lines:
            for line in lines:
                match decode(line):
                    case Generate() | GenerateTogether() | Probe() as request:
                        self._requests.put(request)
                    case Record() as record:
                        self.recorder.begin(record)
                    case Cancel(job=job):
                        if not self.recorder.cancel(job):
                            self._cancelled.add(job)
                    case Stop():
                        self.on_stop()
                        break
        # Not an orderly end: XLA's threads, stopped in the middle of their work, abort noisily.
        flush_logging()
        os._exit(0)


def serve(engine: Engine, service: Connection) -> None:
    """Starts the engine, then makes videos, one after the other or some together, for ever."""
    try:
        service.send(Loading(what="loading the model"))
        engine.start()
        engine.warm_up(lambda p: service.send(Loading(what=f"compiling: {p.stage}")))
        engine.measure(lambda p: service.send(Loading(what=f"measuring: {p.stage}")), lambda: False)
    except ProcessLostError as error:
        end_for_loss(str(error))
    except WanTpuError as error:
        service.send(Failed(job=None, code=Failure.ENGINE_ERROR, message=str(error)))
        return
    service.send(Ready(description=engine.describe()))
    while True:
        work = service.next_request()
        if isinstance(work, GenerateTogether):
            make_together(engine, service, [Generate(**job) for job in work.jobs])
            continue
        service.send(_answer(engine, service, work))
        service.forget(work.job)


def _answer(engine: Engine, service: Connection, work: Generate | Probe) -> Message:
    """Makes one video; whatever goes wrong with it ends here, and the next one is made."""
    try:
        if isinstance(work, Probe):
            return Done(job=work.job, metadata=_probe(engine, service, work))
        return Done(job=work.job, metadata=_generate(engine, service, work))
    except Cancelled as error:
        return Failed(job=work.job, code=Failure.CANCELLED, message=str(error))
    except Exception as error:
        code = code_of(engine, error)
        logger.exception("generation failed", extra={"job": work.job, "code": code})
        return Failed(job=work.job, code=code, message=words_for(error, code))


def _reporter(service: Connection, work: Generate | Probe) -> Callable[[PipelineProgress], None]:
    """Tells the service how far the work is."""

    def report(progress: PipelineProgress) -> None:
        service.recorder.note(progress)
        service.send(
            Progress(
                job=work.job,
                stage=progress.stage,
                done=progress.done,
                total=progress.total,
                seconds=progress.seconds,
            )
        )

    return report


def _probe(engine: Engine, service: Connection, work: Probe) -> dict[str, Any]:
    request, media = engine.probe_request()
    return engine.generate(
        request,
        media=media,
        on_frames=None,
        on_progress=_reporter(service, work),
        should_cancel=lambda: service.is_cancelled(work.job),
    )


def _generate(engine: Engine, service: Connection, work: Generate) -> dict[str, Any]:
    request = VideoRequest(**work.request)
    assert request.fps is not None
    assert request.width is not None
    assert request.height is not None
    assert request.num_frames is not None
    uploads = pathlib.Path(work.uploads)
    media = read_uploads(uploads, request.media)
    num_before = 0 if work.extended is None else work.extended["num_frames"]
    with MediaFiles(
        pathlib.Path(work.folder),
        fps=request.fps,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames + max(num_before - 1, 0),
    ) as files:
        write: Callable[[np.ndarray], None] = files.write
        if work.extended is not None:
            for frames in frames_of_clip(uploads, work.extended["video"], num_before, request):
                files.write(frames)
            write = AfterFirst(files.write)
        metadata = engine.generate(
            request,
            media=media,
            on_frames=write,
            on_progress=_reporter(service, work),
            should_cancel=lambda: service.is_cancelled(work.job),
        )
    return {**metadata, "spritesheet": files.sheet}


def _die_with_parent(parent: int) -> None:
    """Asks Linux to kill this process with its parent; the parent may be gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Serves the socket with the given number until the other end closes it."""
    descriptor, parent = map(int, arguments)
    _die_with_parent(parent)
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)
    settings = Settings()
    start_logging(settings.log_level, settings.group)
    service = Connection(socket.socket(fileno=descriptor))
    engine = make_engine(settings)
    if settings.group.num_processes > 1:
        engine = LeadingEngine(
            engine, settings, on_waiting=lambda words: service.send(Loading(what=words))
        )
        service.on_stop = engine.stop
    try:
        serve(engine, service)
    except Exception as error:
        logger.exception("the engine cannot start")
        flush_logging()  # the service may end this process as soon as it knows
        words = f"{words_for(error, Failure.ENGINE_ERROR)}"
        service.send(Failed(job=None, code=Failure.ENGINE_ERROR, message=words))
    flush_logging()
    os._exit(1)  # an orderly end of Python would wait in JAX for other processes


if __name__ == "__main__":
    main(sys.argv[1:])
