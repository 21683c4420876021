"""The real engine: the library's pipeline. It loads JAX: for the engine process only."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from server.engine.failure import Failure
from server.engine.samples import sample_media, sample_requests
from server.settings import Settings, parse_warm_up
from wan_tpu import runtime
from wan_tpu.errors import BadNumbersError, Cancelled, InputError, OutOfMemoryError
from wan_tpu.media import Media
from wan_tpu.multihost.group import Joined
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest, make_request

PROBE_STEPS = 2


class PipelineEngine:
    """`VideoPipeline` behind the seam."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._warm_up_requests: list[VideoRequest] = []
        self._pipeline: VideoPipeline | None = None

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

    def failure_of(self, error: Exception) -> Failure:
        """See `Engine.failure_of`."""
        match error:
            case Cancelled():
                return Failure.CANCELLED
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
