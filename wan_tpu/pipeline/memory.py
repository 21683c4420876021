"""Out of memory in one sentence: what was needed, what is there, and what would fit."""

import contextlib
import math
import re
from collections.abc import Iterator

import jax

from wan_tpu.errors import GeometryError, OutOfMemoryError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.sharding.mesh import memory_bytes

GIB = 2**30
SIZES = ((1280, 720), (832, 480), (640, 352), (480, 272))
"""Sizes that Wan is asked for, largest first; those that are proposed."""

HEADROOM = 0.95
"""Of the memory that is left for a video: parts of it do not shrink with its length."""

BLIND_GUESS = 0.5
"""Of a video, where the message does not say how much was missing."""

_AMOUNT = r"([0-9][0-9.]*) ?([KMGT]?)i?B?"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED_OF = (
    # While compiling for a TPU, in two forms.
    re.compile(rf"[Uu]sed {_AMOUNT} of {_AMOUNT}"),
    re.compile(rf"required for .*\({_AMOUNT}\) exceeds available \w+ \({_AMOUNT}\)"),
)
_WANTED = re.compile(rf"[Aa]llocat\w+ (?:device buffer: Attempting to allocate )?{_AMOUNT}")
"""While running: how much more was asked for."""


@contextlib.contextmanager
def reporting_memory(
    what: str, model: VideoModel, geometry: Geometry | None = None
) -> Iterator[None]:
    """Turns JAX's RESOURCE_EXHAUSTED, pages of buffers, into one sentence with a way out.

    Args:
        what: is being done, for the message.
        model: what is or would be on the devices.
        geometry: of the video; None while none is made.

    Raises:
        OutOfMemoryError: a device or the host has not enough memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
            raise
        raise OutOfMemoryError(describe(text, what, model, geometry)) from error


def describe(text: str, what: str, model: VideoModel, geometry: Geometry | None) -> str:
    """The sentence for an error of JAX; arguments as of `reporting_memory`."""
    needed, limit, shortage = _amounts(text, model)
    weights = sum(component.bytes_per_device for component in model.components.values())
    devices = model.mesh.devices
    where = f"{devices.size} x {devices.flat[0].device_kind}, layout {model.layout}"
    told = [f"out of memory: {what} on {where}{shortage}, weights {weights / GIB:.2f} GiB a device"]
    if limit is not None and weights >= limit:
        times = 2 * math.ceil(weights / limit)
        told.append(f"the weights alone do not fit; take {times} times as many devices")
        return "; ".join(told)
    if geometry is not None:
        ratio = BLIND_GUESS
        if needed is not None and limit is not None and needed > weights:
            ratio = HEADROOM * (limit - weights) / (needed - weights)
        told.append(_ways_out(geometry, ratio, is_guess=needed is None))
    told.append("more devices need less each; wan-tpu plan --topology TYPE shows what fits a slice")
    return "; ".join(told)


def _amounts(text: str, model: VideoModel) -> tuple[float | None, float | None, str]:
    """Bytes that a device needed, bytes that it has, and both in words."""
    for pattern in _NEEDED_OF:
        if match := pattern.search(text):
            needed, limit = (_bytes(*match.groups()[i : i + 2]) for i in (0, 2))
            return needed, limit, f": {needed / GIB:.2f} GiB of {limit / GIB:.2f} on a device"
    limit = memory_bytes(list(model.mesh.devices.flat))
    has = "" if limit is None else f" of {limit / GIB:.2f}"
    if match := _WANTED.search(text):
        wanted = _bytes(*match.groups())
        return None, limit, f": no place for {wanted / GIB:.2f} GiB more{has}"
    return None, limit, ""


def _ways_out(geometry: Geometry, ratio: float, *, is_guess: bool) -> str:
    """Shorter or smaller videos of at most `ratio` times the tokens."""
    most = ratio * geometry.num_tokens
    ways = []
    step = geometry.compression.temporal
    frames = [n for n in range(1, geometry.num_frames, step) if _tokens(geometry, frames=n) <= most]
    if frames:
        ways.append(f"--frames {frames[-1]}")
    is_portrait = geometry.height > geometry.width
    for width, height in ((h, w) if is_portrait else (w, h) for w, h in SIZES):
        if 0 < _tokens(geometry, width=width, height=height) <= most:
            ways.append(f"--size {width}x{height}")
            break
    if not ways:
        return "no length of this size would fit"
    return f"{'try' if is_guess else 'what would fit, about:'} {' or '.join(ways)}"


def _tokens(
    geometry: Geometry,
    *,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
) -> int:
    """Tokens of another video; 0 where the model cannot make it."""
    try:
        return Geometry(
            width=width or geometry.width,
            height=height or geometry.height,
            num_frames=frames or geometry.num_frames,
            compression=geometry.compression,
        ).num_tokens
    except GeometryError:
        return 0


def _bytes(number: str, unit: str) -> float:
    return float(number.rstrip(".")) * _UNITS[unit]
