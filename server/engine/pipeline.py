"""The real engine: the library's pipeline. It loads JAX: for the engine process only."""

import dataclasses
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from server.engine.failure import Failure
from server.engine.samples import sample_media, sample_requests
from server.settings import Settings, parse_warm_up
from wan_tpu import runtime
from wan_tpu.errors import (
    AdapterError,
    BadNumbersError,
    Cancelled,
    CheckpointError,
    InputError,
    OutOfMemoryError,
)
from wan_tpu.media import Media
from wan_tpu.multihost.group import Joined
from wan_tpu.pipeline.alike import SAMPLES, can_be_together, samples_for, step_kind
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.progress import Calls, Progress
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest, make_request

logger = logging.getLogger("server.engine")

PROBE_STEPS = 2

MEASURED_STEPS = 3
"""A step begins while the one before it runs: the first of a run alone waits for nothing."""


class PipelineEngine:
    """`VideoPipeline` behind the seam."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._warm_up_requests: list[VideoRequest] = []
        self._pipeline: VideoPipeline | None = None
        self._together: dict[tuple[Hashable, ...], dict[int, float]] = {}

    def start(self, joined: Joined | None = None) -> None:
        """See `Engine.start`: check, load."""
        settings, options = self._settings, self._settings.load_options
        model = options.open_model()
        self._warm_up_requests = [
            check_request(model, each)[0]
            for size in _sizes_of(settings)
            for each in sample_requests(model.kind, size)
        ]
        runtime.start(
            host_devices=options.host_devices,
            cache_folder=settings.cache_dir or runtime.default_cache_folder(),
            joined=joined,
        )
        self._pipeline = options.load(model, compile_for=self._warm_up_requests[0])

    def warm_up(self, on_progress: Callable[[Progress], None]) -> None:
        """See `Engine.warm_up`."""
        for each in self._warm_up_requests:
            self._loaded.warm_up(each, on_progress=on_progress)
        for each in self._measured_requests:
            self._together[step_kind(each)] = {1: 0.0}
            for samples in self._batches:
                try:
                    self._loaded.warm_up_together(each, samples, on_progress=on_progress)
                except OutOfMemoryError as error:  # in all processes: it is their compilers' word
                    logger.warning("%d videos are never made together: %s", samples, error)
                    break
                self._together[step_kind(each)][samples] = 0.0

    def measure(
        self, on_progress: Callable[[Progress], None], should_cancel: Callable[[], bool]
    ) -> None:
        """See `Engine.measure`."""
        for each in self._measured_requests:
            short = dataclasses.replace(each, num_inference_steps=MEASURED_STEPS)
            seconds = self._together[step_kind(each)]
            for samples in seconds:
                for _ in range(2):  # the first run of a program is no measure of it
                    seconds[samples] = self._loaded.step_seconds(
                        short, samples, on_progress=on_progress, should_cancel=should_cancel
                    )

    @property
    def _batches(self) -> list[int]:
        """Sizes of a batch in which several jobs may be made."""
        return [n for n in SAMPLES if 1 < n <= samples_for(self._settings.batch)]

    @property
    def _measured_requests(self) -> list[VideoRequest]:
        return [each for each in self._warm_up_requests if self._batches and can_be_together(each)]

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        model = self._loaded.model
        devices = model.mesh.devices
        return {
            "layout": str(model.layout),
            "attention": model.denoiser.setting.implementation,
            "dtype": str(np.dtype(model.dtype)),
            "device_kind": devices.flat[0].device_kind,
            "num_devices": int(devices.size),
            "together": [
                {"kind": list(kind), "seconds": {str(n): each[n] for n in each}}
                for kind, each in self._together.items()
            ],
        }

    def probe_request(self) -> tuple[VideoRequest, Media]:
        """See `Engine.probe_request`; one program serves every number of steps."""
        request = dataclasses.replace(
            self._warm_up_requests[0], num_inference_steps=PROBE_STEPS, seed=0
        )
        return request, sample_media(request)

    def generate(
        self,
        request: VideoRequest,
        *,
        media: Media,
        on_frames: Callable[[np.ndarray], None] | None,
        on_progress: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
    ) -> dict[str, Any]:
        """See `Engine.generate`."""
        result = self._loaded(
            request,
            media=media,
            on_frames=on_frames,
            on_progress=on_progress,
            should_cancel=should_cancel,
            keep_frames=False,
        )
        return result.metadata

    def generate_together(self, requests: Sequence[VideoRequest], calls: Calls) -> None:
        """See `Engine.generate_together`."""
        self._loaded.make_together(requests, calls)

    def failure_of(self, error: Exception) -> Failure:
        """See `Engine.failure_of`."""
        match error:
            case Cancelled():
                return Failure.CANCELLED
            case AdapterError():
                return Failure.ADAPTER_LOST
            case CheckpointError() if self._pipeline is not None:  # all other files are read
                return Failure.ADAPTER_LOST
            case InputError():
                return Failure.INVALID_REQUEST
            case BadNumbersError():
                return Failure.BAD_NUMBERS
            case OutOfMemoryError() | MemoryError():
                return Failure.OUT_OF_MEMORY
            case _:
                return Failure.ENGINE_ERROR

    @property
    def _loaded(self) -> VideoPipeline:
        assert self._pipeline is not None, "start the engine first"
        return self._pipeline


def _sizes_of(settings: Settings) -> list[VideoRequest]:
    """A request of each size that is compiled at the start, at least one."""
    sizes = [parse_warm_up(text) for text in settings.warm_up]
    return [
        make_request("warm up", size=(width, height), frames=frames)
        for width, height, frames in sizes
    ] or [make_request("warm up")]
