"""The seam: what the service needs of whatever makes videos. Runs in the engine process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from server.engine.failure import Failure
from wan_tpu.media import Media
from wan_tpu.multihost.group import Joined
from wan_tpu.pipeline.progress import Calls, Progress
from wan_tpu.request import VideoRequest


class Engine(Protocol):
    """Makes videos, one at a time. It is made with the server's `Settings`.

    With several processes each has one, and `server.engine.lockstep` keeps them in step: an engine
    asks `should_cancel` at the same places in all of them.
    """

    def start(self, joined: Joined | None = None) -> None:
        """Loads the model onto the devices.

        Args:
            joined: the processes that share the model; None for this one alone.

        Raises:
            WanTpuError: it cannot; the message says why.
        """
        ...

    def warm_up(self, on_progress: Callable[[Progress], None]) -> None:
        """Compiles what the configured sizes need."""
        ...

    def measure(
        self, on_progress: Callable[[Progress], None], should_cancel: Callable[[], bool]
    ) -> None:
        """Measures what `describe` says of making jobs together, where that is configured.

        All processes have compiled by then. It asks and tells as `generate` does.

        Raises:
            Cancelled: `should_cancel` said so.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Layout, attention, devices; JSON-ready.

        `together`, where jobs may be made so: for each kind of step (`alike.step_kind`) that was
        compiled at the start, `{"kind": [...], "seconds": {"1": ..., "2": ...}}`, a step's seconds
        by the size of the batch.
        """
        ...

    def probe_request(self) -> tuple[VideoRequest, Media]:
        """A complete request that shows whether the engine works: small, and already compiled.

        With the pictures that it names. The request is the same in every process of several.
        """
        ...

    def generate(
        self,
        request: VideoRequest,
        *,
        media: Media,
        on_frames: Callable[[np.ndarray], None] | None,
        on_progress: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
    ) -> dict[str, Any]:
        """Makes one video.

        Args:
            request: complete and checked.
            media: the bytes of the pictures and clips that it names.
            on_frames: takes frames `[n, height, width, 3]`, uint8, in order; None where nobody
                wants them, and none need leave the devices.
            on_progress: told at every step.
            should_cancel: asked at every step.

        Returns:
            What ran: layout, attention, versions, seconds by stage; JSON-ready.

        Raises:
            Cancelled: `should_cancel` said so.
        """
        ...

    def generate_together(self, requests: Sequence[VideoRequest], calls: Calls) -> None:
        """Makes several videos in one run, each as `generate` would.

        Args:
            requests: complete and checked; alike in what `wan_tpu.pipeline.alike` says.
            calls: told of each one's progress, frames and end, and asked at every step which are
                to be stopped. Without frames none need leave the devices.
        """
        ...

    def failure_of(self, error: Exception) -> Failure:
        """Which kind of failure an exception of this engine is."""
        ...
