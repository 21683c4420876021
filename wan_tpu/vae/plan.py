"""The kinds of layers that an encoder or a decoder is planned of. No JAX here.

`config.encoder_plan` and `config.decoder_plan` put them together, `layers.py` builds modules from
them, `weights.py` reads the checkpoint's tensor names off them.
"""

import dataclasses

from wan_tpu.errors import CheckpointError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResidualBlocks:
    """Residual blocks that follow each other; more than one only where all are equal.

    Attributes:
        names: of each block in the checkpoint.
        in_channels: of the first block's input.
        channels: of every output.
    """

    names: tuple[str, ...]
    in_channels: int
    channels: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameAttention:
    """Attention over the positions of each frame; `name` in the checkpoint."""

    name: str
    channels: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """A step between levels; `name` in the checkpoint.

    Attributes:
        name: in the checkpoint.
        in_channels: channels of the input.
        channels: channels of the output.
        up: doubles height and width, else halves them.
        temporal: doubles or halves the frames after the first, too.
    """

    name: str
    in_channels: int
    channels: int
    up: bool
    temporal: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResidualLevel:
    """Layers whose input is added to their output, rearranged to the output's shape.

    Nothing is learned on that way: going down, neighbouring values are averaged; going up, they
    are repeated. `channels` of the one is a whole number of times that of the other, counting all
    positions that become one or come from one.

    Attributes:
        layers: in order, residual blocks and where there is a next level a resampling.
        in_channels: of the input.
        channels: of the output.
        up: the layers enlarge the picture, else they shrink it.
        frames: by how much they lengthen or shorten the video, 1 or 2.
        size: by how much they enlarge or shrink height and width, 1 or 2.
    """

    layers: tuple["Layer", ...]
    in_channels: int
    channels: int
    up: bool
    frames: int
    size: int

    def __post_init__(self) -> None:
        values = self.frames * self.size**2 * (self.channels if self.up else self.in_channels)
        if values % (self.in_channels if self.up else self.channels):
            raise CheckpointError(
                f"the autoencoder's {'decoder' if self.up else 'encoder'} cannot add a level's "
                f"{self.in_channels} channels to its output's {self.channels}, {self.size} times "
                f"the size and {self.frames} times the frames {'more' if self.up else 'less'}: "
                f"{values} values do not divide by them; Wan 2.2's dim_mult is [1, 2, 4, 4]"
            )


Layer = ResidualBlocks | FrameAttention | Resampling | ResidualLevel


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An encoder or a decoder: a convolution, layers in order, a norm and a convolution.

    Attributes:
        name: `encoder` or `decoder`, as in the checkpoint.
        in_channels: of the input.
        first_channels: what the first convolution makes of it.
        layers: in order.
        last_channels: what the layers end with.
        out_channels: of the output.
    """

    name: str
    in_channels: int
    first_channels: int
    layers: tuple[Layer, ...]
    last_channels: int
    out_channels: int
