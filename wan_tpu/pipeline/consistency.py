"""Compares layouts with one device: the transformer alone, a whole run, the decoded frames.

The same request runs on every layout from the same weights. What differs may differ by rounding
only; `Tolerances` says how much that is for a dtype, and for products of int8.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """Largest differences that rounding explains.

    Attributes:
        relative: of velocity and latents, largest difference over largest value.
        psnr: of the frames, dB.
    """

    relative: float
    psnr: float


TOLERANCES = {
    # A layout reorders float32 sums over devices: at most 1e-6 alone, a few times that after a run
    # (every layout of 8, wan-tiny, 2026-11-21). 1e-4 leaves room for 40 layers and 50 steps.
    "float32": Tolerances(relative=1e-4, psnr=50.0),
    # bfloat16 keeps 8 bits: 0.4 % a rounding, some tens of them in a row.
    "bfloat16": Tolerances(relative=0.15, psnr=28.0),
    # int8 keeps a number to 1/127 of its token's largest. Products and sums of the same whole
    # numbers are exact on every layout; but where float32 sums before them differ by 1e-7 a number
    # half way between two may go to the other one, 0.8 % of the largest away, and what follows is
    # rounded anew. 0.034 and 49 dB at worst (21 layouts of 2 to 8, wan-tiny, 4 steps, float32
    # around it, 2026-11-27), which is what quantising itself costs; many velocities are at 5e-7.
    "int8": Tolerances(relative=0.1, psnr=40.0),
    # Scores of 8 bits: keys are the same whole numbers on every layout, but an exponent is rounded
    # to bfloat16, 2^-9 of it, beside a reference that depends on the block of keys. 0.023 and 49 dB
    # at worst (6 layouts of 4, wan-tiny, 4 steps, every layer in 8 bits, float32 around it,
    # 2026-11-27).
    "flash-int8": Tolerances(relative=0.1, psnr=40.0),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far an array is from the one device's.

    Attributes:
        max_absolute: largest absolute difference.
        max_relative: the same over the largest absolute value.
        cosine: similarity of the two as vectors.
    """

    max_absolute: float
    max_relative: float
    cosine: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a layout made of a request (`VideoPipeline.intermediate`).

    Attributes:
        layout: where it ran. attention: what ran. dtype: a key of `TOLERANCES`.
        quantize: likewise, or None.
        velocity: of the transformer alone at the first step, float32.
        latents: after the whole run, float32.
        frames: `[frames, height, width, 3]`, uint8.
    """

    layout: Layout
    attention: str
    dtype: str
    velocity: np.ndarray
    latents: np.ndarray
    frames: np.ndarray
    quantize: str | None = None

    @property
    def tolerances(self) -> Tolerances:
        """What the roundings of its numbers explain: the coarsest of them decide."""
        names = (self.dtype, self.quantize, self.attention)
        found = [TOLERANCES[name] for name in names if name in TOLERANCES]
        return Tolerances(
            relative=max(each.relative for each in found), psnr=min(each.psnr for each in found)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One layout against one device.

    Attributes:
        layout: what was compared. attention: what ran.
        velocity: of the transformer alone. latents: after the run.
        psnr: of the frames, dB; infinite when equal.
        consistent: whether all are within the tolerances.
    """

    layout: Layout
    attention: str
    velocity: Difference
    latents: Difference
    psnr: float
    consistent: bool

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object; what is not finite (PSNR of equal frames) is null."""
        return {
            "name": str(self.layout),
            "layout": dataclasses.asdict(self.layout),
            "attention": self.attention,
            "velocity": _finite(dataclasses.asdict(self.velocity)),
            "latents": _finite(dataclasses.asdict(self.latents)),
            **_finite({"psnr": self.psnr}),
            "consistent": self.consistent,
        }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def compare_layouts(
    model: ModelDescription,
    options: LoadOptions,
    layouts: Sequence[Layout],
    request: VideoRequest,
    *,
    media: Media = NO_MEDIA,
    on_start: Callable[[Layout], None] = lambda layout: None,
) -> Iterator[Comparison]:
    """Runs a request on one device and on every layout, and yields how each differs.

    Args:
        model: what `options.open_model` gave.
        options: what it is loaded with on the layouts and on the one device; their layout is not
            looked at; their dtype, and what they quantise to, are keys of `TOLERANCES`.
        layouts: those to compare; each uses the first devices that are here.
        request: what to run.
        media: the pictures and clips that it names.
        on_start: told the layout, the one device's first, when its turn comes.
    """

    def run(layout: Layout) -> Run:
        on_start(layout)
        return run_layout(model, dataclasses.replace(options, layout=layout), request, media)

    expected = run(Layout())
    for layout in layouts:
        yield compare(run(layout), expected)


def run_layout(
    model: ModelDescription,
    options: LoadOptions,
    request: VideoRequest,
    media: Media = NO_MEDIA,
) -> Run:
    """Runs a request on the options' layout; arguments as of `compare_layouts`."""
    assert options.layout is not None
    assert options.dtype is not None
    devices = jax.devices()[: options.layout.num_devices]
    pipeline = options.load(model, devices=devices)
    return Run(
        layout=options.layout,
        attention=pipeline.model.denoiser.setting.implementation,
        dtype=options.dtype,
        quantize=options.quantize,
        **pipeline.intermediate(request, media=media),
    )


def compare(actual: Run, expected: Run) -> Comparison:
    """Measures a run against another one, by the tolerances of its numbers."""
    tolerances = actual.tolerances
    velocity = difference(actual.velocity, expected.velocity)
    latents = difference(actual.latents, expected.latents)
    psnr = frames_psnr(actual.frames, expected.frames)
    return Comparison(
        layout=actual.layout,
        attention=actual.attention,
        velocity=velocity,
        latents=latents,
        psnr=psnr,
        consistent=bool(
            velocity.max_relative <= tolerances.relative
            and latents.max_relative <= tolerances.relative
            and psnr >= tolerances.psnr
        ),
    )


def difference(actual: np.ndarray, expected: np.ndarray) -> Difference:
    """Measures two arrays of one shape; NaN anywhere makes every figure NaN."""
    actual, expected = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    largest = float(np.abs(actual - expected).max())
    norms = np.linalg.norm(actual) * np.linalg.norm(expected)
    return Difference(
        max_absolute=largest,
        max_relative=largest / float(np.abs(expected).max()),
        cosine=float(actual @ expected / norms),
    )


def frames_psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames, dB; infinite when they are equal."""
    error = float(np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))
