"""Which size and length each window becomes, and a table of what went where and what was left.

Every bucket is a program to compile, so they are few and named: wanted sizes times wanted lengths.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from wan_tpu.dataset.decode import Measured
from wan_tpu.dataset.entry import Entry
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.sampling import Sampling, Window, sample_windows
from wan_tpu.errors import InputError
from wan_tpu.geometry import WAN_COMPRESSION, Compression, Geometry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The sizes and lengths that are wanted, and the rate.

    Attributes:
        sizes: widths and heights in pixels.
        lengths: numbers of frames.
        fps: the model's frame rate.
        compression: of the model.

    Raises:
        GeometryError: a size or length that the model cannot make; names the nearest that it can.
    """

    sizes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    fps: float | Fraction
    compression: Compression = WAN_COMPRESSION

    def __post_init__(self) -> None:
        if not self.sizes or not self.lengths:
            raise InputError("at least one size and one number of frames is needed")
        if not self.fps > 0:
            raise InputError(f"frames per second must be above 0, got {self.fps}")
        for width, height in self.sizes:
            for length in self.lengths:
                self.geometry((width, height), length)

    def geometry(self, size: tuple[int, int], length: int) -> Geometry:
        """Of a bucket."""
        return Geometry(
            width=size[0], height=size[1], num_frames=length, compression=self.compression
        )

    def size_for(self, width: int, height: int) -> tuple[int, int] | None:
        """The size for a clip: of those that it covers without being made larger, the one that is
        nearest in ratio, and of several the largest; None if it covers none.
        """
        covered = [size for size in self.sizes if size[0] <= width and size[1] <= height]

        def rank(size: tuple[int, int]) -> tuple[Fraction, int]:
            change = Fraction(width * size[1], height * size[0])
            return max(change, 1 / change), -size[0] * size[1]

        return min(covered, key=rank, default=None)

    def length_for(self, num_frames: int) -> int | None:
        """The longest length that a clip of so many frames fills; None if it fills none."""
        return max((length for length in self.lengths if length <= num_frames), default=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One window and its bucket: what `wan_tpu.dataset.decode.read_window` reads."""

    entry: Entry
    window: Window
    geometry: Geometry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where everything went.

    Attributes:
        placed: windows, in the order of the entries.
        left: for each entry of which nothing is learnt, why.
    """

    placed: tuple[Placed, ...]
    left: tuple[Finding, ...]

    def counts(self) -> list[tuple[Geometry, int, int]]:
        """Of each bucket the windows and the files that they are of; most windows first."""
        windows = Counter(each.geometry for each in self.placed)
        files = Counter(
            geometry for _, geometry in {(p.entry.name, p.geometry) for p in self.placed}
        )
        by_count = sorted(windows.items(), key=lambda item: (-item[1], describe(item[0])))
        return [(geometry, count, files[geometry]) for geometry, count in by_count]

    def to_json(self) -> list[dict[str, int]]:
        """`counts` with names."""
        return [
            {
                "width": geometry.width,
                "height": geometry.height,
                "num_frames": geometry.num_frames,
                "windows": windows,
                "files": files,
            }
            for geometry, windows, files in self.counts()
        ]

    def table(self) -> str:
        """Lines: a bucket each, and what was left."""
        lines = [f"{'bucket':<24}{'windows':>8}{'files':>8}"]
        for geometry, windows, files in self.counts():
            lines.append(f"{describe(geometry):<24}{windows:>8}{files:>8}")
        if self.left:
            lines.append(f"{'left out':<24}{'':>8}{len(self.left):>8}")
            lines += [f"  {finding.name}: {finding.words}" for finding in self.left]
        return "\n".join(lines) + "\n"


def describe(geometry: Geometry) -> str:
    """A bucket in words: `832x480, 81 frames`."""
    frames = "1 frame" if geometry.num_frames == 1 else f"{geometry.num_frames} frames"
    return f"{geometry.width}x{geometry.height}, {frames}"


def place(files: Iterable[Measured], buckets: Buckets, sampling: Sampling) -> Placement:
    """Chooses windows and gives each its bucket.

    A clip has the longest length that it fills, a picture always one frame, also where no such
    length is wanted: it has nothing else to give.

    Args:
        files: measured by `wan_tpu.dataset.decode.measure`.
        buckets: that there are.
        sampling: of the windows.
    """
    placed: list[Placed] = []
    left: list[Finding] = []
    for file in files:
        faults = misfits(file, buckets)
        if faults:
            left.append(faults[0])
            continue
        size = buckets.size_for(file.width, file.height)
        assert size is not None
        if file.duration is None:
            windows: tuple[Window, ...] = (Window(start=Fraction(0), num_frames=1),)
        else:
            length = buckets.length_for(file.frames_at(buckets.fps))
            assert length is not None
            windows = sample_windows(
                sampling,
                name=file.entry.name,
                duration=file.duration,
                num_frames=length,
                fps=buckets.fps,
                keyframes=file.keyframes,
            )
        placed += [
            Placed(entry=file.entry, window=w, geometry=buckets.geometry(size, w.num_frames))
            for w in windows
        ]
    return Placement(placed=tuple(placed), left=tuple(left))


def misfits(file: Measured, buckets: Buckets) -> list[Finding]:
    """Why a file has no bucket: too short, too small; nothing where it has one."""
    found = []
    num_frames = file.frames_at(buckets.fps)
    if file.duration is not None and buckets.length_for(num_frames) is None:
        step, wanted = buckets.compression.temporal, min(buckets.lengths)
        fits = (num_frames - 1) // step * step + 1
        frames = "1 frame" if num_frames == 1 else f"{num_frames} frames"
        words = (
            f"it has {frames} at {float(buckets.fps):g} frames per second "
            f"({float(file.duration):.2f} s) and {wanted} are wanted; {fits} would fit"
        )
        found.append(Finding(name=file.entry.name, kind="too-short", words=words))
    if buckets.size_for(file.width, file.height) is None:
        found.append(_too_small(file, buckets))
    return found


def _too_small(file: Measured, buckets: Buckets) -> Finding:
    """With the size in the ratio of the nearest one that would do."""
    width, height = file.width, file.height

    def loss(size: tuple[int, int]) -> Fraction:
        return max(Fraction(size[0], width), Fraction(size[1], height))

    nearest = min(buckets.sizes, key=loss)
    multiples = buckets.compression.width_multiple, buckets.compression.height_multiple
    scale = 1 / loss(nearest)
    sides = [int(side * scale) // m * m for side, m in zip(nearest, multiples, strict=True)]
    would = f"; {sides[0]}x{sides[1]} would fit" if min(sides) else ""
    wanted = " or ".join(f"{size[0]}x{size[1]}" for size in buckets.sizes)
    words = f"its {width}x{height} pixels do not cover {wanted}, and nothing is made larger{would}"
    return Finding(name=file.entry.name, kind="too-small", words=words)
