"""Compares layouts with one device: the transformer alone, a whole run, the decoded frames.

The same request runs on every layout from the same weights. What differs may differ by rounding
only; `Tolerances` says how much that is for a dtype.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wan_tpu.pipeline.text_to_video import TextToVideo
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import SEQUENCE_PARALLEL, WEIGHTS, Layout, factorisations


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
    # A layout reorders float32 sums over devices; 1e-4 is about 1,000 roundings, and the run
    # multiplies the first step's difference by a few.
    "float32": Tolerances(relative=1e-3, psnr=50.0),
    # bfloat16 keeps 8 bits: 0.4 % a rounding, some tens of them in a row.
    "bfloat16": Tolerances(relative=0.15, psnr=28.0),
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
        """The comparison as a JSON object; infinite PSNR is null."""
        values = dataclasses.asdict(self)
        values["name"] = str(self.layout)
        values["psnr"] = None if np.isinf(self.psnr) else self.psnr
        return values


def all_layouts(num_devices: int) -> list[Layout]:
    """Every layout of 2, 4, ... up to `num_devices` devices with every choice that matters."""
    found = []
    for count in range(2, num_devices + 1):
        if num_devices % count:
            continue
        for layout in factorisations(count):
            modes = SEQUENCE_PARALLEL if layout.sp > 1 else SEQUENCE_PARALLEL[:1]
            kinds = WEIGHTS if layout.dp * layout.sp > 1 else WEIGHTS[:1]
            found += [
                dataclasses.replace(layout, sequence_parallel=mode, weights=weights)
                for mode in modes
                for weights in kinds
            ]
    return found


def compare_layouts(
    model: str,
    layouts: Sequence[Layout],
    request: VideoRequest,
    *,
    dtype: str = "float32",
    attention: str = "auto",
    load: Callable[..., TextToVideo] = TextToVideo.from_pretrained,
) -> Iterator[Comparison]:
    """Runs a request on one device and on every layout, and yields how each differs.

    Args:
        model: any name that `from_pretrained` takes.
        layouts: those to compare; each uses the first devices that are here.
        request: what to run.
        dtype: a key of `TOLERANCES`.
        attention: implementation on the layouts and on the one device.
        load: makes the pipeline of a layout.
    """
    tolerances = TOLERANCES[dtype]

    def run(layout: Layout) -> tuple[str, dict[str, np.ndarray]]:
        pipeline = load(
            model,
            layout=layout,
            devices=jax.devices()[: layout.num_devices],
            dtype=jnp.dtype(dtype),
            attention=attention,
        )
        return pipeline.model.denoiser.setting.implementation, pipeline.intermediate(request)

    _, expected = run(Layout())
    for layout in layouts:
        implementation, actual = run(layout)
        velocity = difference(actual["velocity"], expected["velocity"])
        latents = difference(actual["latents"], expected["latents"])
        psnr = frames_psnr(actual["frames"], expected["frames"])
        yield Comparison(
            layout=layout,
            attention=implementation,
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
