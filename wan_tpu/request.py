"""What a user asks for and what comes back: frozen, validated, no JAX.

A field left `None` takes the model's default; `VideoRequest.resolved` fills them in, so that the
rest of the library sees complete requests only.
"""

import dataclasses
from typing import Any

import numpy as np

from wan_tpu.errors import InputError, PromptError, UnknownNameError
from wan_tpu.geometry import Compression, Geometry

SCHEDULERS = ("unipc", "euler")
MAX_SEED = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What a model uses where a request says nothing.

    Attributes:
        flow_shift_by_height: flow shift for videos of at least so many pixels in the shorter side,
            as (pixels, shift), largest first; Wan shifts 5 at 720p and 3 at 480p.
    """

    width: int = 832
    height: int = 480
    num_frames: int = 81
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    flow_shift_by_height: tuple[tuple[int, float], ...] = ((720, 5.0), (0, 3.0))
    negative_prompt: str = ""

    def flow_shift(self, width: int, height: int) -> float:
        """The flow shift for a video of this size in pixels."""
        shorter = min(width, height)
        return next(shift for pixels, shift in self.flow_shift_by_height if shorter >= pixels)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """One video to make.

    Attributes:
        prompt: what the video shows; not empty.
        negative_prompt: what it shall not show; empty for nothing.
        width: pixels. height: pixels. num_frames: 4n + 1. fps: frames per second of the file.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; at 1 or below the negative prompt is not used.
        flow_shift: shift of the noise schedule towards high noise.
        scheduler: one of `SCHEDULERS`.
        seed: of the noise; the same request with the same seed gives the same video.

    Raises:
        InputError: a field outside its range; says which and what would do.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    scheduler: str = "unipc"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError("the prompt is empty; say what the video shall show")
        if self.scheduler not in SCHEDULERS:
            raise UnknownNameError("scheduler", self.scheduler, SCHEDULERS)
        for name, low, high in (
            ("fps", 1, 240),
            ("num_inference_steps", 1, 1000),
            ("guidance_scale", 0, 100),
            ("flow_shift", 1e-3, 100),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN, too, is not between
                raise InputError(f"{name} must lie between {low} and {high}, got {value}")
        for name in ("width", "height", "num_frames", "fps", "num_inference_steps", "seed"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise InputError(f"{name} must be a whole number, got {value}")

    def resolved(self, defaults: GenerationDefaults) -> "VideoRequest":
        """This request with every open field filled from the model's defaults."""
        names = ("negative_prompt", "width", "height", "num_frames", "fps")
        names += ("num_inference_steps", "guidance_scale")
        filled = {n: getattr(defaults, n) for n in names if getattr(self, n) is None}
        request = dataclasses.replace(self, **filled)
        if request.flow_shift is None:
            assert request.width is not None
            assert request.height is not None
            shift = defaults.flow_shift(request.width, request.height)
            request = dataclasses.replace(request, flow_shift=shift)
        return request

    def geometry(self, compression: Compression) -> Geometry:
        """The checked sizes of a resolved request.

        Raises:
            GeometryError: the model cannot make this size or length.
        """
        assert self.width is not None, "resolve the request first"
        assert self.height is not None, "resolve the request first"
        assert self.num_frames is not None, "resolve the request first"
        return Geometry(
            width=self.width,
            height=self.height,
            num_frames=self.num_frames,
            compression=compression,
        )

    @property
    def uses_guidance(self) -> bool:
        """Whether the negative prompt is evaluated at all (diffusers: guidance_scale > 1)."""
        assert self.guidance_scale is not None, "resolve the request first"
        return self.guidance_scale > 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoResult:
    """One finished video.

    Attributes:
        frames: `[frames, height, width, 3]`, uint8, RGB; none where they were not asked for.
        metadata: JSON-ready: the whole request, layout, attention, versions, seconds per stage.
    """

    frames: np.ndarray
    metadata: dict[str, Any]
