"""What decides a Wan autoencoder: diffusers' configuration, and the layers that follow from it.

`encoder_plan` and `decoder_plan` are the one list of layers: the modules are built from it and the
checkpoint's tensor names are read off it, so the two cannot drift apart. No JAX here.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.errors import CheckpointError
from wan_tpu.vae.plan import (
    FrameAttention,
    Layer,
    Plan,
    Resampling,
    ResidualBlocks,
    ResidualLevel,
)

FRAMES_PER_CHUNK = 4
"""Frames that the encoder takes at once after the first, as diffusers' `AutoencoderKLWan` does."""

COLOURS = 3
"""Red, green, blue."""

Values = TypeVar("Values")
"""A NumPy or a JAX array."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Sizes of an autoencoder, by the names of diffusers' `AutoencoderKLWan`.

    Wan 2.1's, which the Wan 2.2 A14B models share, has neither shortcuts around its levels nor
    patches; the Wan 2.2 5B model's has both.

    Attributes:
        base_dim: channels at full resolution.
        decoder_base_dim: the same for the decoder.
        z_dim: channels of the latents.
        dim_mult: channels of each level over `base_dim`, full resolution first.
        num_res_blocks: residual blocks per level; the decoder has one more.
        temperal_downsample: for each step between levels, whether it halves time too (the
            spelling is diffusers').
        is_residual: each level's input is added to its output (`ResidualLevel`).
        patch_size: height and width of the squares of pixels that become one position's channels
            before the first layer, and are taken apart after the last.
        latents_mean: per channel; the transformer works on (latents - mean) / std.
        latents_std: per channel.
    """

    base_dim: int = 96
    decoder_base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    is_residual: bool = False
    patch_size: int = 1
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
        for plan in (encoder_plan, decoder_plan):
            plan(self)  # refuses shortcuts whose channels do not divide

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "VaeConfig":
        """Reads the contents of diffusers' `vae/config.json`.

        Raises:
            CheckpointError: not Wan's autoencoder, or a value that cannot be.
        """
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
        config = cls(**values)
        for name in ("in_channels", "out_channels"):
            channels = COLOURS if data.get(name) is None else data[name]
            if channels != config.patch_channels:
                raise CheckpointError(
                    f"the autoencoder has {name} = {channels!r}, expected {config.patch_channels}: "
                    f"three colours of each pixel of a patch, with patch_size = "
                    f"{data.get('patch_size')!r}; Wan 2.1 has 3 and patch_size null, Wan 2.2's 5B "
                    "model 12 and patch_size 2"
                )
        return config

    @property
    def patch_channels(self) -> int:
        """Channels of a patch of pixels, as the first layer takes them and the last makes them."""
        return COLOURS * self.patch_size**2

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent along height and width."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** sum(self.temperal_downsample)

    def normalise(self, mean: Values) -> Values:
        """What an encoder gives, as the transformer works on it.

        Args:
            mean: `[..., z_dim]`, float32, the mean of a posterior or a draw from it.

        Returns:
            `(mean - latents_mean) / latents_std`, float32.
        """
        shift, scale = self._statistics
        return (mean - shift) / scale  # pyright: ignore[reportOperatorIssue]

    def denormalise(self, latents: Values) -> Values:
        """What the transformer gives, `[..., z_dim]` float32, as a decoder takes it."""
        shift, scale = self._statistics
        return latents * scale + shift  # pyright: ignore[reportOperatorIssue]

    @property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latents, `[z_dim]` each."""
        return np.asarray(self.latents_mean, np.float32), np.asarray(self.latents_std, np.float32)


def encoder_plan(config: VaeConfig) -> Plan:
    """Layers of diffusers' `WanEncoder3d`."""
    widths = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
    layers: list[Layer] = []
    for level, (before, width) in enumerate(itertools.pairwise(widths)):
        block_names, resampling_name = _down_names(config, level)
        in_level = _residual_blocks(block_names, before, width)
        temporal = False
        is_last = level == len(config.temperal_downsample)
        if not is_last:
            temporal = config.temperal_downsample[level]
            in_level.append(
                Resampling(
                    name=resampling_name,
                    in_channels=width,
                    channels=width,
                    up=False,
                    temporal=temporal,
                )
            )
        size = 1 if is_last else 2
        layers += _level(config, in_level, before, width, up=False, temporal=temporal, size=size)
    layers += _middle("encoder", widths[-1])
    return Plan(
        name="encoder",
        in_channels=config.patch_channels,
        first_channels=widths[0],
        layers=_joined(layers),
        last_channels=widths[-1],
        out_channels=2 * config.z_dim,
    )


def decoder_plan(config: VaeConfig) -> Plan:
    """Layers of diffusers' `WanDecoder3d`."""
    widths = [config.decoder_base_dim * multiple for multiple in reversed(config.dim_mult)]
    layers = _middle("decoder", widths[0])
    before = widths[0]
    for level, width in enumerate(widths):
        prefix = f"decoder.up_blocks.{level}"
        names = [f"{prefix}.resnets.{block}" for block in range(config.num_res_blocks + 1)]
        in_level = _residual_blocks(names, before, width)
        if level == len(config.temperal_downsample):
            layers += in_level
            break
        temporal = config.temperal_downsample[-1 - level]
        after = width if config.is_residual else width // 2
        in_level.append(
            Resampling(
                name=f"{prefix}.upsampler" + ("" if config.is_residual else "s.0"),
                in_channels=width,
                channels=after,
                up=True,
                temporal=temporal,
            )
        )
        layers += _level(config, in_level, before, after, up=True, temporal=temporal, size=2)
        before = after
    return Plan(
        name="decoder",
        in_channels=config.z_dim,
        first_channels=widths[0],
        layers=_joined(layers),
        last_channels=widths[-1],
        out_channels=config.patch_channels,
    )


def _level(
    config: VaeConfig,
    layers: list[Layer],
    in_channels: int,
    channels: int,
    *,
    up: bool,
    temporal: bool,
    size: int,
) -> list[Layer]:
    """A level's layers, with a shortcut around them where the autoencoder is residual.

    Args:
        config: of the autoencoder.
        layers: of the level.
        in_channels: of the first one's input.
        channels: of the last one's output.
        up: whether the level makes pictures larger.
        temporal: whether it changes the number of frames, too.
        size: by how much it changes height and width.
    """
    if not config.is_residual:
        return layers
    level = ResidualLevel(
        layers=_joined(layers),
        in_channels=in_channels,
        channels=channels,
        up=up,
        frames=2 if temporal else 1,
        size=size,
    )
    return [level]


def _down_names(config: VaeConfig, level: int) -> tuple[list[str], str]:
    """Names in the checkpoint of an encoder level's residual blocks, and of its resampling."""
    path, blocks = "encoder.down_blocks", range(config.num_res_blocks)
    if config.is_residual:
        names = [f"{path}.{level}.resnets.{block}" for block in blocks]
        return names, f"{path}.{level}.downsampler"
    first = level * (len(blocks) + 1)  # diffusers keeps all levels in one flat list
    return [f"{path}.{first + block}" for block in blocks], f"{path}.{first + len(blocks)}"


def _residual_blocks(names: Sequence[str], in_channels: int, channels: int) -> list[Layer]:
    """A level's blocks, of which the first may change the channels."""
    return [
        ResidualBlocks(
            names=(name,), in_channels=channels if number else in_channels, channels=channels
        )
        for number, name in enumerate(names)
    ]


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
