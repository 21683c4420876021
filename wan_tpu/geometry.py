"""Pixels and frames <-> latent grid <-> tokens. Integers only, no JAX: the server uses it, too.

Wan's autoencoders compress space by 8 (Wan 2.1) or 16 (TI2V-5B) and time by 4, the first frame
alone; the transformer then groups latents into patches. All ranges are those of `docs/glossary.md`.
"""

import dataclasses
import re

from wan_tpu.errors import GeometryError

TEXT_TOKENS = 512
"""Tokens of every prompt, padding included, in all Wan models."""


def ceil_to_multiple(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How a model family maps pixels to latents and latents to tokens.

    Attributes:
        spatial: pixels per latent along height and width.
        temporal: frames per latent frame, after the first.
        patch: latents per token along (frames, height, width).
    """

    spatial: int = 8
    temporal: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)

    @property
    def height_multiple(self) -> int:
        """Heights in pixels must be multiples of this."""
        return self.spatial * self.patch[1]

    @property
    def width_multiple(self) -> int:
        """Widths in pixels must be multiples of this."""
        return self.spatial * self.patch[2]


WAN_COMPRESSION = Compression()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of one video, checked: what a user asks for and what each stage sees of it.

    Attributes:
        width: pixels.
        height: pixels.
        num_frames: frames of the video, 4n + 1 for Wan.
        compression: the model family's factors.

    Raises:
        GeometryError: a size the model cannot make; names the nearest that it can.
    """

    width: int
    height: int
    num_frames: int
    compression: Compression = WAN_COMPRESSION

    def __post_init__(self) -> None:
        for name, multiple in (
            ("width", self.compression.width_multiple),
            ("height", self.compression.height_multiple),
        ):
            value = getattr(self, name)
            if value < 1 or value % multiple:
                raise GeometryError(
                    f"{name} must be a positive multiple of {multiple}, got {value}; "
                    f"nearest: {_nearest(value, multiple, 0)}"
                )
        temporal = self.compression.temporal
        if self.num_frames < 1 or (self.num_frames - 1) % temporal:
            raise GeometryError(
                f"the number of frames must be {temporal}n + 1, got {self.num_frames}; "
                f"nearest: {_nearest(self.num_frames, temporal, 1)}"
            )
        if self.latent_frames % self.compression.patch[0]:
            raise GeometryError(
                f"{self.num_frames} frames give {self.latent_frames} latent frames, not a multiple "
                f"of the model's temporal patch {self.compression.patch[0]}"
            )

    @property
    def latent_frames(self) -> int:
        """Frames of the latent video: the first frame alone, then one for every four."""
        return (self.num_frames - 1) // self.compression.temporal + 1

    @property
    def latent_height(self) -> int:
        """Rows of the latent video."""
        return self.height // self.compression.spatial

    @property
    def latent_width(self) -> int:
        """Columns of the latent video."""
        return self.width // self.compression.spatial

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (frames, height, width)."""
        frames, rows, columns = self.compression.patch
        return (
            self.latent_frames // frames,
            self.latent_height // rows,
            self.latent_width // columns,
        )

    @property
    def num_tokens(self) -> int:
        """Length of the transformer's sequence, before any padding."""
        frames, rows, columns = self.grid
        return frames * rows * columns


def parse_size(text: str) -> tuple[int, int]:
    """Reads `WxH`, for example `1280x720`, as (width, height) in pixels.

    An x of either case joins the two, or `*` as Wan's own programs write it, or the sign for times.

    Raises:
        GeometryError: the text is not two positive integers joined so.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})[xX*×]([1-9][0-9]{0,5})", text)
    if match is None:
        raise GeometryError(
            f"size must be WIDTHxHEIGHT in pixels, for example 832x480, got {text!r}"
        )
    return int(match[1]), int(match[2])


def _nearest(value: int, multiple: int, offset: int) -> str:
    """The one or two nearest allowed values `n * multiple + offset`, smaller first, as words."""
    smallest = offset or multiple
    below = (value - offset) // multiple * multiple + offset
    nearest = sorted({max(below, smallest), max(below + multiple, smallest)})
    return " or ".join(str(v) for v in nearest)
