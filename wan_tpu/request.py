"""What a user asks for and what comes back: frozen, validated, no JAX.

A field left `None` takes the model's default; `VideoRequest.resolved` fills them in, so that the
rest of the library sees complete requests only.
"""

import dataclasses
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from wan_tpu.errors import InputError, PromptError, UnknownNameError
from wan_tpu.geometry import Compression, Geometry, parse_size
from wan_tpu.media import DIGEST, ROLES
from wan_tpu.step_cache import StepCache

SCHEDULERS = ("unipc", "euler")
"""Those that place their noise levels by a number of steps and a flow shift."""

SIGMA_SCHEDULERS = ("euler", "renoise")
"""Those that take given noise levels, where a request has `sigmas`."""

ALL_SCHEDULERS = tuple(dict.fromkeys(SCHEDULERS + SIGMA_SCHEDULERS))
MOST_STEPS = 1000
"""Denoising steps of one video."""

MOST_ADAPTERS = 8
MAX_SEED = 2**63 - 1

RANDOM_SEED = -1
"""For `make_request`: draw one."""

LARGEST_DRAWN_SEED = 2**32 - 1
"""Of every seed that is drawn: what other programs take, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What a model uses where a request says nothing.

    Attributes:
        flow_shift_by_area: flow shift for frames of at least so many pixels, as (pixels, shift),
            largest first; by the area, because a video of a picture may have any ratio.
        guidance_scale_2: guidance of the second transformer; None for a model of one.
        strength: how much of a given clip is replaced by noise.
    """

    width: int = 832
    height: int = 480
    num_frames: int = 81
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    flow_shift_by_area: tuple[tuple[int, float], ...] = ((0, 5.0),)
    negative_prompt: str = ""
    scheduler: str = SCHEDULERS[0]
    guidance_scale_2: float | None = None
    strength: float = 0.8

    def flow_shift(self, width: int, height: int) -> float:
        """The flow shift for a video of this size in pixels."""
        area = width * height
        return next(shift for pixels, shift in self.flow_shift_by_area if area >= pixels)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """One video to make.

    Attributes:
        prompt: what the video shows; not empty.
        negative_prompt: what it shall not show; empty for nothing.
        width: pixels. height: pixels. num_frames: 4n + 1. fps: frames per second of the file.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; at 1 or below the negative prompt is not used.
        guidance_scale_2: the same for the second transformer of a model that has two; with only
            the first given they are equal, as in diffusers.
        flow_shift: shift of the noise schedule towards high noise.
        scheduler: one of `SCHEDULERS`; the model's own when not given. With `sigmas` one of
            `SIGMA_SCHEDULERS`, and `euler` when not given.
        seed: of the noise; the same request with the same seed gives the same video.
        image: digest of the picture that the video begins with, `sha256:` and 64 hexadecimal
            digits; the bytes travel beside the request (`wan_tpu.media.Media`).
        last_image: digest of the picture that it ends with.
        video: digest of the clip that it is made from.
        strength: with a clip: the share of the steps that run, from 0 (above it) to 1; at 1 nothing
            of the clip is left.
        sigmas: the noise level of each step, falling, each above 0 and at most 1; the last step
            leads to 0. They take the place of a number of steps and a flow shift.
        fast: the name of a preset of few steps (`wan_tpu.fast`), or True for the model's own;
            None or False for none. It decides sigmas, scheduler and guidance.
        adapters: added to the transformers' weights for this video, in this order, each
            `NAME[:STRENGTH][@high|@low]`; the names are those of the loaded model's folder
            (`wan_tpu.adapters.library`), and at most `MOST_ADAPTERS`.
        step_cache: what is reused between steps, such as `magcache:0.12`
            (`wan_tpu.step_cache`); None to compute every step.

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
    scheduler: str | None = None
    seed: int = 0
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    guidance_scale_2: float | None = None
    strength: float | None = None
    sigmas: tuple[float, ...] | None = None
    fast: bool | str | None = None
    adapters: tuple[str, ...] = ()
    step_cache: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError("the prompt is empty; say what the video shall show")
        if self.scheduler is not None and self.scheduler not in ALL_SCHEDULERS:
            raise UnknownNameError("scheduler", self.scheduler, ALL_SCHEDULERS)
        for name, low, high in (
            ("fps", 1, 240),
            ("num_inference_steps", 1, MOST_STEPS),
            ("guidance_scale", 0, 100),
            ("guidance_scale_2", 0, 100),
            ("flow_shift", 1e-3, 100),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN, too, is not between
                raise InputError(f"{name} must lie between {low} and {high}, got {value}")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise InputError(f"strength must lie above 0 and be at most 1, got {self.strength}")
        for name in ("width", "height", "num_frames", "fps", "num_inference_steps", "seed"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise InputError(f"{name} must be a whole number, got {value}")
        for role, digest in self.media.items():
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise InputError(
                    f"{role} must be the digest of a file, sha256: and 64 hexadecimal digits, got "
                    f"{str(digest)[:80]!r}"
                )
        if not isinstance(self.fast, bool | str | None):
            raise InputError(f"fast must be true or the name of a preset, got {self.fast!r}")
        self._check_adapters()
        self._check_sigmas()
        self._check_step_cache()

    def _check_adapters(self) -> None:
        """Takes a list as well, where it comes from JSON."""
        adapters = self.adapters
        if not isinstance(adapters, list | tuple) or not all(
            isinstance(each, str) and each.strip() for each in adapters
        ):
            raise InputError(
                "adapters must be names, each with a strength where it is not 1, for example "
                f"fox.safetensors:0.8; got {str(adapters)[:80]!r}"
            )
        if len(adapters) > MOST_ADAPTERS:
            raise InputError(f"{len(adapters)} adapters are too many; at most {MOST_ADAPTERS} go")
        object.__setattr__(self, "adapters", tuple(adapters))

    def _check_step_cache(self) -> None:
        """Refuses text that is none, and steps that are too few to leave any out."""
        if self.step_cache is None:
            return
        StepCache.parse(self.step_cache)
        if self.sigmas is not None:
            raise InputError(
                f"step_cache is {self.step_cache} and sigmas names {len(self.sigmas)} noise levels "
                "that a model was distilled for, each of which is needed; leave one of them out"
            )

    def _check_sigmas(self) -> None:
        """Refuses levels that lead nowhere, and what says something else than they do."""
        if self.sigmas is None:
            if self.scheduler not in (None, *SCHEDULERS) and not self.fast:
                raise InputError(
                    f"scheduler {self.scheduler} needs the noise levels that the model was "
                    "distilled for; give sigmas, for example 1,0.757,0.522"
                )
            return
        sigmas = tuple(self.sigmas)
        object.__setattr__(self, "sigmas", sigmas)  # a list, where it comes from JSON
        are_numbers = all(isinstance(sigma, int | float) for sigma in sigmas)
        falls = are_numbers and all(high > low for high, low in itertools.pairwise((*sigmas, 0.0)))
        if not (sigmas and falls and sigmas[0] <= 1 and len(sigmas) <= MOST_STEPS):
            raise InputError(
                "sigmas must be numbers that fall, each above 0 and at most 1, for example "
                f"1,0.9375,0.8333,0.625; got {','.join(map(str, sigmas))[:80] or 'none'}"
            )
        contradictions = {
            "num_inference_steps": self.num_inference_steps not in (None, len(sigmas)),
            "flow_shift": self.flow_shift is not None,
            "scheduler": self.scheduler not in (None, *SIGMA_SCHEDULERS),
        }
        for name in (name for name, contradicts in contradictions.items() if contradicts):
            raise InputError(
                f"{name} is {getattr(self, name)} and sigmas names {len(sigmas)} noise levels, "
                "which decide that; leave one of them out"
            )

    @property
    def media(self) -> dict[str, str]:
        """The digests of the pictures and clips that it names, by role; empty for text alone."""
        given = ((role, getattr(self, role)) for role in ROLES)
        return {role: digest for role, digest in given if digest is not None}

    @property
    def prompts(self) -> list[str]:
        """What it shows, and what it shall not; the latter empty where that is open."""
        return [self.prompt, self.negative_prompt or ""]

    def resolved(self, defaults: GenerationDefaults) -> "VideoRequest":
        """This request with every open field filled from the model's defaults.

        With sigmas the flow shift stays open: nothing asks for it.
        """
        names = ("negative_prompt", "width", "height", "num_frames", "fps")
        names += ("num_inference_steps", "guidance_scale", "scheduler")
        if self.sigmas is not None:
            given = {"num_inference_steps": len(self.sigmas), "scheduler": SIGMA_SCHEDULERS[0]}
            defaults = dataclasses.replace(defaults, **given)
        filled = {n: getattr(defaults, n) for n in names if getattr(self, n) is None}
        request = dataclasses.replace(self, **filled)
        if request.flow_shift is None and request.sigmas is None:
            assert request.width is not None
            assert request.height is not None
            shift = defaults.flow_shift(request.width, request.height)
            request = dataclasses.replace(request, flow_shift=shift)
        if request.guidance_scale_2 is None and defaults.guidance_scale_2 is not None:
            given = self.guidance_scale
            scale = defaults.guidance_scale_2 if given is None else given
            request = dataclasses.replace(request, guidance_scale_2=scale)
        if request.strength is None and request.video is not None:
            request = dataclasses.replace(request, strength=defaults.strength)
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
    def num_steps(self) -> int:
        """Denoising steps that run: all, or with a clip as many of the last as `strength` says.

        As diffusers counts them: cut off, so that a small share of few steps is none.
        """
        assert self.num_inference_steps is not None, "resolve the request first"
        share = 1.0 if self.strength is None else self.strength
        return int(self.num_inference_steps * share)

    @property
    def uses_guidance(self) -> bool:
        """Whether the negative prompt is evaluated at all (diffusers: guidance_scale > 1)."""
        assert self.guidance_scale is not None, "resolve the request first"
        return max(self.guidance_scale, self.guidance_scale_2 or 0) > 1


def make_request(
    prompt: str,
    *,
    size: str | tuple[int, int] | None = None,
    frames: int | None = None,
    fps: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_scale_2: float | None = None,
    flow_shift: float | None = None,
    negative_prompt: str | None = None,
    scheduler: str | None = None,
    seed: int = 0,
    image: str | None = None,
    last_image: str | None = None,
    video: str | None = None,
    strength: float | None = None,
    sigmas: Sequence[float] | str | None = None,
    fast: bool | str | None = None,
    adapters: Sequence[str] = (),
    step_cache: str | None = None,
) -> VideoRequest:
    """A request from what a user writes, by the names that the command line has for it.

    Args:
        prompt: what the video shows.
        size: `WxH`, for example `832x480`, or (width, height) in pixels; None for the model's.
        frames: of the video, 4n + 1; None for the model's, as with every field below.
        fps: frames per second of the file.
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 or below turns it off.
        guidance_scale_2: of the second transformer, where a model has two.
        flow_shift: shift of the noise schedule towards high noise.
        negative_prompt: what the video shall not show.
        scheduler: one of `ALL_SCHEDULERS`.
        seed: of the noise; `RANDOM_SEED` draws one, which the request then holds.
        image: digest of the first frame (`wan_tpu.media.digest_of`). last_image: of the last one.
        video: of a clip. strength: with a clip, how much of it is replaced by noise.
        sigmas: the noise level of each step, falling, or the same as text, joined by commas.
        fast: the name of a preset of few steps, or True for the model's own.
        adapters: of the loaded model's folder, each `NAME[:STRENGTH][@high|@low]`.
        step_cache: what is reused between steps, such as `magcache:0.12`.

    Raises:
        InputError: a value outside its range; says which and what would do.
    """
    width, height = parse_size(size) if isinstance(size, str) else size or (None, None)
    return VideoRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        num_frames=frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        flow_shift=flow_shift,
        seed=secrets.randbelow(LARGEST_DRAWN_SEED + 1) if seed == RANDOM_SEED else seed,
        image=image,
        last_image=last_image,
        video=video,
        strength=strength,
        sigmas=None if sigmas is None else parse_sigmas(sigmas),
        fast=fast,
        adapters=tuple(adapters),
        step_cache=step_cache,
        **({} if scheduler is None else {"scheduler": scheduler}),
    )


def parse_sigmas(text: str | Sequence[float]) -> tuple[float, ...]:
    """Noise levels, from text as `1,0.9375,0.8333,0.625`; `VideoRequest` says what they must be.

    Raises:
        InputError: a part of the text is no number.
    """
    if not isinstance(text, str):
        return tuple(text)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"sigmas must be numbers joined by commas, for example 1,0.9375,0.8333,0.625; got "
            f"{text[:80]!r}"
        ) from None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoResult:
    """One finished video.

    Attributes:
        frames: `[frames, height, width, 3]`, uint8, RGB; none where they were not asked for.
        metadata: JSON-ready: the whole request, layout, attention, versions, seconds per stage.
    """

    frames: np.ndarray
    metadata: dict[str, Any]
