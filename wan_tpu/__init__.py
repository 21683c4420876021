"""Text to video with the Wan diffusion models on TPU slices.

    from wan_tpu import VideoPipeline, VideoRequest

    pipeline = VideoPipeline.from_pretrained("wan-tiny")
    result = pipeline(VideoRequest(prompt="a red circle moving right on a black background"))

A picture or a clip is named by its digest, and its bytes come beside the request:

    data = pathlib.Path("cat.png").read_bytes()
    request = VideoRequest(prompt="a cat that yawns", image=digest_of(data))
    result = pipeline(request, media=Media.of(data))

What this package exports is its public surface; a name's module is loaded when the name is first
used. So `import wan_tpu` is free, and a server validates requests without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_tpu.checkpoints.models import ModelDescription, describe_model, open_model
    from wan_tpu.errors import (
        AdapterError,
        BadNumbersError,
        Cancelled,
        CheckpointError,
        GeometryError,
        InputError,
        LayoutError,
        MediaError,
        MismatchError,
        MissingPackageError,
        OutOfMemoryError,
        OutputError,
        ProcessLostError,
        PromptError,
        UnknownNameError,
        WanTpuError,
    )
    from wan_tpu.media import Media, digest_of
    from wan_tpu.pipeline.check import check_request
    from wan_tpu.pipeline.options import LoadOptions
    from wan_tpu.pipeline.progress import Progress
    from wan_tpu.pipeline.video_file import VideoWriter, read_frames
    from wan_tpu.pipeline.video_pipeline import VideoPipeline
    from wan_tpu.request import GenerationDefaults, VideoRequest, VideoResult, make_request
    from wan_tpu.sharding.layout import Layout, default_layout, parse_layout

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "BadNumbersError",
    "Cancelled",
    "CheckpointError",
    "GenerationDefaults",
    "GeometryError",
    "InputError",
    "Layout",
    "LayoutError",
    "LoadOptions",
    "Media",
    "MediaError",
    "MismatchError",
    "MissingPackageError",
    "ModelDescription",
    "OutOfMemoryError",
    "OutputError",
    "ProcessLostError",
    "Progress",
    "PromptError",
    "UnknownNameError",
    "VideoPipeline",
    "VideoRequest",
    "VideoResult",
    "VideoWriter",
    "WanTpuError",
    "check_request",
    "default_layout",
    "describe_model",
    "digest_of",
    "make_request",
    "open_model",
    "parse_layout",
    "read_frames",
]

_MODULES = {
    "checkpoints.models": ("ModelDescription", "describe_model", "open_model"),
    "media": ("Media", "digest_of"),
    "pipeline.check": ("check_request",),
    "pipeline.options": ("LoadOptions",),
    "pipeline.progress": ("Progress",),
    "pipeline.video_pipeline": ("VideoPipeline",),
    "pipeline.video_file": ("VideoWriter", "read_frames"),
    "request": ("GenerationDefaults", "VideoRequest", "VideoResult", "make_request"),
    "sharding.layout": ("Layout", "default_layout", "parse_layout"),
}
"""Where the public names are, but for the errors: those are all in `wan_tpu.errors`."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
