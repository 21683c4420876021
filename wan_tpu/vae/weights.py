"""Where each of the autoencoder's parameters comes from: diffusers' tensor names and layouts.

Read off the plans that the modules are built from. A parameter's name here is its path in the
modules, joined by dots; the blocks of a scanned run are stacked in front.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike
from jaxtyping import Shaped

from wan_tpu.checkpoints.source import ArraySource, check_tensors
from wan_tpu.sharding.mesh import named
from wan_tpu.vae.config import VaeConfig, decoder_plan, encoder_plan
from wan_tpu.vae.plan import (
    FrameAttention,
    Layer,
    Plan,
    Resampling,
    ResidualBlocks,
    ResidualLevel,
)

DECODER, ENCODER = "decoder.", "encoder."
"""What the names of a part's parameters begin with."""

Entry = TypeVar("Entry")

Kind = Literal["kernel", "vector"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VaeParameter:
    """One array of the modules and its way from the checkpoint.

    Attributes:
        name: dotted path in the modules.
        tensors: names in the checkpoint, in the order of the stack.
        tensor_shape: of each, in torch's order.
        kind: `kernel` reorders torch's [out, in, frames, rows, columns] (frames may lack) to
            [frames, columns, rows, in, out]; `vector` drops dimensions of one.
        stack: dimensions in front, whose product is the number of tensors; empty for one tensor.
    """

    name: str
    tensors: tuple[str, ...]
    tensor_shape: tuple[int, ...]
    kind: Kind
    stack: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        if self.kind == "vector":
            return (*self.stack, self.tensor_shape[0])
        out_channels, in_channels, *window = self.tensor_shape
        *frames, rows, columns = window
        return (*self.stack, *(frames or [1]), columns, rows, in_channels, out_channels)

    def convert(
        self, tensors: Mapping[str, np.ndarray], dtype: DTypeLike
    ) -> Shaped[np.ndarray, "..."]:
        """The array, from tensors that have the right shapes."""
        parts = [self._convert_one(np.asarray(tensors[name])) for name in self.tensors]
        return np.stack(parts).astype(dtype).reshape(self.shape)

    def _convert_one(self, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        if self.kind == "vector":
            return tensor.reshape(-1)
        if tensor.ndim == 4:
            tensor = tensor[:, :, None]
        return tensor.transpose(2, 4, 3, 1, 0)  # [frames, columns, rows, in, out]


def vae_parameters(config: VaeConfig) -> list[VaeParameter]:
    """Every parameter of encoder and decoder."""
    z_dim = config.z_dim
    return [
        *_convolution("decoder.post_quant_conv", ["post_quant_conv"], z_dim, z_dim, (1, 1, 1)),
        *_coder(decoder_plan(config)),
        *_coder(encoder_plan(config)),
        *_convolution("encoder.quant_conv", ["quant_conv"], 2 * z_dim, 2 * z_dim, (1, 1, 1)),
    ]


def expected_tensors(
    config: VaeConfig, *, parts: tuple[str, ...] = (DECODER, ENCODER)
) -> dict[str, tuple[int, ...]]:
    """Names and shapes, in torch's layout, of every tensor of the checkpoint, or of a part's."""
    return {
        tensor: parameter.tensor_shape
        for parameter in vae_parameters(config)
        if parameter.name.startswith(parts)
        for tensor in parameter.tensors
    }


def vae_state_from_tensors(
    config: VaeConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: DTypeLike,
    *,
    parts: tuple[str, ...] = (DECODER, ENCODER),
) -> dict[str, np.ndarray]:
    """The parameters by name, from a checkpoint's tensors.

    Args:
        config: sizes of the model.
        tensors: all of the checkpoint, by its names and in torch's layout.
        dtype: of the result.
        parts: which parameters are wanted; `(DECODER,)` is enough for text to video.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; names them.
    """
    check_tensors("VAE", expected_tensors(config), ArraySource(tensors))
    return {
        parameter.name: parameter.convert(tensors, dtype)
        for parameter in vae_parameters(config)
        if parameter.name.startswith(parts)
    }


def abstract_params(
    config: VaeConfig,
    dtype: DTypeLike,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    parts: tuple[str, ...] = (DECODER, ENCODER),
) -> dict[str, jax.ShapeDtypeStruct]:
    """What stands for the parameters: by name, whole on every device of `mesh` when given."""
    sharding = None if mesh is None else named(mesh)
    return {
        parameter.name: jax.ShapeDtypeStruct(parameter.shape, dtype, sharding=sharding)
        for parameter in vae_parameters(config)
        if parameter.name.startswith(parts)
    }


def of_part(params: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    """The parameters of the decoder or the encoder, named within it."""
    return {name.removeprefix(prefix): x for name, x in params.items() if name.startswith(prefix)}


def _coder(plan: Plan) -> Iterator[VaeParameter]:
    """Parameters of an encoder or decoder without its 1x1 convolution."""
    part, path, window = plan.name, f"{plan.name}.coder", (3, 3, 3)
    yield from _convolution(
        f"{path}.conv_in", [f"{part}.conv_in"], plan.in_channels, plan.first_channels, window
    )
    for number, layer in enumerate(plan.layers):
        yield from _layer(f"{path}.layers.{number}", layer)
    yield from _norm(f"{path}.head.norm", [f"{part}.norm_out"], plan.last_channels)
    yield from _convolution(
        f"{path}.head.conv", [f"{part}.conv_out"], plan.last_channels, plan.out_channels, window
    )


def _layer(path: str, layer: Layer) -> Iterator[VaeParameter]:
    match layer:
        case ResidualLevel(layers=layers):
            for number, inner in enumerate(layers):
                yield from _layer(f"{path}.layers.{number}", inner)
        case FrameAttention(name=name, channels=channels):
            yield from _norm(f"{path}.norm", [f"{name}.norm"], channels, trailing=2)
            for conv, outputs in (("to_qkv", 3 * channels), ("proj", channels)):
                yield from _convolution(
                    f"{path}.{conv}", [f"{name}.{conv}"], channels, outputs, (1, 1)
                )
        case Resampling(name=name, in_channels=before, channels=after):
            yield from _convolution(f"{path}.conv", [f"{name}.resample.1"], before, after, (3, 3))
            if layer.temporal:
                frames = 2 * before if layer.up else after
                yield from _convolution(
                    f"{path}.time_conv", [f"{name}.time_conv"], before, frames, (3, 1, 1)
                )
        case ResidualBlocks(names=names, in_channels=before, channels=after) if before == after:
            halves = [(name, half) for name in names for half in (1, 2)]
            stack = (len(names), 2)
            norms = [f"{name}.norm{half}" for name, half in halves]
            convs = [f"{name}.conv{half}" for name, half in halves]
            yield from _norm(f"{path}.halves.norm", norms, after, stack=stack)
            yield from _convolution(
                f"{path}.halves.conv", convs, after, after, (3, 3, 3), stack=stack
            )
        case ResidualBlocks(names=(name,), in_channels=before, channels=after):
            for half, path_half, inputs in ((1, "first", before), (2, "second", after)):
                yield from _norm(f"{path}.{path_half}.norm", [f"{name}.norm{half}"], inputs)
                yield from _convolution(
                    f"{path}.{path_half}.conv", [f"{name}.conv{half}"], inputs, after, (3, 3, 3)
                )
            yield from _convolution(
                f"{path}.shortcut", [f"{name}.conv_shortcut"], before, after, (1, 1, 1)
            )


def _convolution(
    path: str,
    names: list[str],
    in_channels: int,
    out_channels: int,
    window: tuple[int, ...],
    stack: tuple[int, ...] = (),
) -> Iterator[VaeParameter]:
    yield VaeParameter(
        name=f"{path}.kernel",
        tensors=tuple(f"{name}.weight" for name in names),
        tensor_shape=(out_channels, in_channels, *window),
        kind="kernel",
        stack=stack,
    )
    yield VaeParameter(
        name=f"{path}.bias",
        tensors=tuple(f"{name}.bias" for name in names),
        tensor_shape=(out_channels,),
        kind="vector",
        stack=stack,
    )


def _norm(
    path: str, names: list[str], channels: int, *, trailing: int = 3, stack: tuple[int, ...] = ()
) -> Iterator[VaeParameter]:
    """A norm's gamma, which torch keeps with `trailing` dimensions of one behind."""
    yield VaeParameter(
        name=f"{path}.gamma",
        tensors=tuple(f"{name}.gamma" for name in names),
        tensor_shape=(channels, *[1] * trailing),
        kind="vector",
        stack=stack,
    )
