"""Waits for the end of a video on a server, and shows how far it is as `generate` does."""

import time

from wan_tpu.cli.progress import QUIET_SECONDS, ProgressBars, say
from wan_tpu.cli.remote.answers import RemoteError
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.cli.remote.video import QUEUED, RemoteVideo
from wan_tpu.errors import InputError
from wan_tpu.pipeline.progress import Progress

REFUSED = "invalid_request"
"""The code of a job that the pipeline refused when its turn came."""


def follow(server: RemoteServer, video: RemoteVideo, bars: ProgressBars) -> RemoteVideo:
    """Asks until a video has ended; survives a server that is started again meanwhile.

    Returns:
        The completed video.

    Raises:
        InputError: the server refused it when its turn came, or deleted it.
        RemoteError: it failed, or the server stays away; says that and why.
    """
    shown = _Shown(bars)
    while not video.is_finished:
        shown.show(video)
        time.sleep(server.poll_seconds)
        video = server.retrieve(video.id)
    if video.failure is None:
        shown.finish()
        return video
    error = video.data.get("error")
    is_refused = isinstance(error, dict) and error.get("code") == REFUSED
    kind = InputError if is_refused else RemoteError
    raise kind(f"{video.id} failed: {video.failure}")


class _Shown:
    """What has been shown of one video."""

    def __init__(self, bars: ProgressBars):
        self._bars = bars
        self._last: Progress | None = None
        self._place: str | None = None
        self._said = -QUIET_SECONDS

    def show(self, video: RemoteVideo) -> None:
        """Its place in the queue, or the stage that it is at."""
        if video.status == QUEUED:
            self._last = None
            if video.state != self._place and time.monotonic() - self._said >= QUIET_SECONDS:
                say(f"{video.id} is {video.state}")
                self._place, self._said = video.state, time.monotonic()
            return
        progress = _progress_of(video)
        if progress is None or progress == self._last:
            return
        if self._last is not None and progress.stage != self._last.stage:
            self.finish()
        self._bars.show(progress)
        self._last = progress

    def finish(self) -> None:
        """The stage that was shown last is over, though nobody asked at its end."""
        if self._last is not None and self._last.done < self._last.total:
            stage, total = self._last.stage, self._last.total
            self._bars.show(Progress(stage=stage, done=total, total=total, seconds=0.0))


def _progress_of(video: RemoteVideo) -> Progress | None:
    """What a server says of a running video: stage and steps, or by the protocol percents."""
    step, steps = video.number("step"), video.number("steps")
    if video.text("stage") and step is not None and steps is not None:
        stage = video.text("stage")
        return Progress(stage=stage, done=int(step), total=int(steps), seconds=0.0)
    percent = video.number("progress")
    if "stage" in video.data or percent is None:
        return None
    return Progress(stage="video", done=min(int(percent), 100), total=100, seconds=0.0)
