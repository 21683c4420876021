"""What decides a Wan autoencoder: diffusers' configuration, and the layers that follow from it.

`encoder_plan` and `decoder_plan` are the one list of layers: the modules are built from it and the
checkpoint's tensor names are read off it, so the two cannot drift apart. No JAX here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.errors import CheckpointError

FRAMES_PER_CHUNK = 4
"""Frames that the encoder takes at once after the first, as diffusers' `AutoencoderKLWan` does."""

_SINGLE_VALUED = {"is_residual": False, "patch_size": None, "in_channels": 3, "out_channels": 3}
"""What the Wan 2.2 5B autoencoder sets otherwise."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Sizes of a Wan 2.1 autoencoder, by the names of diffusers' `AutoencoderKLWan`.

    Attributes:
        base_dim: channels at full resolution.
        decoder_base_dim: the same for the decoder.
        z_dim: channels of the latents.
        dim_mult: channels of each level over `base_dim`, full resolution first.
        num_res_blocks: residual blocks per level; the decoder has one more.
        temperal_downsample: for each step between levels, whether it halves time too (the
            spelling is diffusers').
        latents_mean: per channel; the transformer works on (latents - mean) / std.
        latents_std: per channel.
    """

    base_dim: int = 96
    decoder_base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = len(self.dim_mult) - 1
        if min(self.base_dim, self.decoder_base_dim, self.z_dim, steps, self.num_res_blocks) < 1:
            raise CheckpointError(
                "base_dim, z_dim and num_res_blocks of the autoencoder must be at least 1 and "
                f"dim_mult at least two long, got {self}"
            )
        if len(self.temperal_downsample) != steps:
            raise CheckpointError(
                f"temperal_downsample of the autoencoder has {len(self.temperal_downsample)} "
                f"entries, expected {steps}: one less than dim_mult"
            )
        if FRAMES_PER_CHUNK % self.temporal_compression:
            raise CheckpointError(
                "the autoencoder takes 4 frames at a time and can halve them at most twice, "
                f"got temperal_downsample {list(self.temperal_downsample)}"
            )
        for name, values in (
            ("latents_mean", self.latents_mean),
            ("latents_std", self.latents_std),
        ):
            if len(values) != self.z_dim:
                raise CheckpointError(
                    f"{name} of the autoencoder has {len(values)} values, "
                    f"expected z_dim = {self.z_dim}"
                )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "VaeConfig":
        """Reads the contents of diffusers' `vae/config.json`.

        Raises:
            CheckpointError: not a Wan 2.1 autoencoder, or a value that cannot be.
        """
        for name, expected in _SINGLE_VALUED.items():
            if data.get(name, expected) != expected:
                raise CheckpointError(
                    f"the autoencoder has {name} = {data[name]!r}, as Wan 2.2's 5B model has; only "
                    f"the Wan 2.1 autoencoder ({name} = {expected!r}) can be used, which Wan 2.1 "
                    "and the Wan 2.2 A14B models share"
                )
        if data.get("attn_scales"):
            raise CheckpointError(
                f"the autoencoder has attn_scales = {data['attn_scales']!r}, with which diffusers' "
                "own encoder does not run; expected []"
            )
        values = read_fields(cls, data, "autoencoder")
        if "base_dim" in values:
            values.setdefault("decoder_base_dim", values["base_dim"])
        missing = [name for name in ("latents_mean", "latents_std") if name not in values]
        if missing:
            raise CheckpointError(f"the autoencoder's configuration has no {missing[0]}")
        return cls(**values)

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** sum(self.temperal_downsample)


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


Layer = ResidualBlocks | FrameAttention | Resampling


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


def encoder_plan(config: VaeConfig) -> Plan:
    """Layers of diffusers' `WanEncoder3d`."""
    channels = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
    layers: list[Layer] = []
    number = 0  # of the layer within diffusers' flat list

    def name() -> str:
        nonlocal number
        number += 1
        return f"encoder.down_blocks.{number - 1}"

    for level, width in enumerate(channels[1:]):
        for block in range(config.num_res_blocks):
            before = channels[level] if block == 0 else width
            layers.append(ResidualBlocks(names=(name(),), in_channels=before, channels=width))
        if level < len(config.temperal_downsample):
            temporal = config.temperal_downsample[level]
            layers.append(
                Resampling(
                    name=name(), in_channels=width, channels=width, up=False, temporal=temporal
                )
            )
    layers += _middle("encoder", channels[-1])
    return Plan(
        name="encoder",
        in_channels=3,
        first_channels=channels[0],
        layers=_joined(layers),
        last_channels=channels[-1],
        out_channels=2 * config.z_dim,
    )


def decoder_plan(config: VaeConfig) -> Plan:
    """Layers of diffusers' `WanDecoder3d`."""
    widths = [config.decoder_base_dim * multiple for multiple in reversed(config.dim_mult)]
    temporal = config.temperal_downsample[::-1]
    layers = _middle("decoder", widths[0])
    before = widths[0]
    for level, width in enumerate(widths):
        prefix = f"decoder.up_blocks.{level}"
        for block in range(config.num_res_blocks + 1):
            name = f"{prefix}.resnets.{block}"
            layers.append(ResidualBlocks(names=(name,), in_channels=before, channels=width))
            before = width
        if level < len(temporal):
            before = width // 2
            layers.append(
                Resampling(
                    name=f"{prefix}.upsamplers.0",
                    in_channels=width,
                    channels=before,
                    up=True,
                    temporal=temporal[level],
                )
            )
    return Plan(
        name="decoder",
        in_channels=config.z_dim,
        first_channels=widths[0],
        layers=_joined(layers),
        last_channels=widths[-1],
        out_channels=3,
    )


def _middle(part: str, channels: int) -> list[Layer]:
    """Diffusers' `WanMidBlock`."""

    def block(number: int) -> ResidualBlocks:
        name = f"{part}.mid_block.resnets.{number}"
        return ResidualBlocks(names=(name,), in_channels=channels, channels=channels)

    return [
        block(0),
        FrameAttention(name=f"{part}.mid_block.attentions.0", channels=channels),
        block(1),
    ]


def _joined(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The same layers with neighbouring equal residual blocks joined into one run."""
    joined: list[Layer] = []
    for layer in layers:
        last = joined[-1] if joined else None
        if (
            isinstance(layer, ResidualBlocks)
            and isinstance(last, ResidualBlocks)
            and last.in_channels == last.channels == layer.in_channels == layer.channels
        ):
            joined[-1] = dataclasses.replace(last, names=last.names + layer.names)
        else:
            joined.append(layer)
    return tuple(joined)
