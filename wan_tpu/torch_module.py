"""A torch module of many equal layers as stacked weights and pure functions of them.

The module stands on torch's meta device with one of its layers: names, shapes and code. What is
said about each parameter (dtype, order of rows, split) comes from the model as a function of its
name; what is done with the arrays (call a part, scan over the layers) is the same for every model:
the denoiser, the text encoder, or a vision tower with embeddings before its layers.

Knows nothing of a particular model, of meshes or of attention.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8

from wan_tpu.checkpoints.quantized import SCALE
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.int8 import int8_linear
from wan_tpu.torch_bridge import Params, call_module, to_jax, to_torch, with_prefix

Carry = TypeVar("Carry")
Inputs = TypeVar("Inputs")
Output = TypeVar("Output")

Remat = Callable[..., Any]
"""A policy of `jax.checkpoint`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a model says about one of its parameters, of one layer where layers are stacked.

    Attributes:
        dtype: on the device.
        rows: per dimension, the checkpoint row that each row takes (`Weight.rows`).
        spec: how the array is split, without the layer dimension; empty is whole.
    """

    dtype: DTypeLike
    rows: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    spec: PartitionSpec = dataclasses.field(default_factory=PartitionSpec)


PlacementRule = Callable[[str, tuple[int, ...]], Placement]
"""Of a parameter's name, `*` for the layer, and the shape that the checkpoint has it in."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayeredModule:
    """A torch module whose equal layers are stacked.

    Attributes:
        template: the module with one layer, on the meta device, in eval mode.
        layers: dotted name of its list of layers.
        num_layers: layers of the model that it stands for.
        tensor_prefix: what the checkpoint puts before the module's names.
        aliases: parameters that are others under a second name; they are left out.
    """

    template: torch.nn.Module
    layers: str
    num_layers: int
    tensor_prefix: str = ""
    aliases: frozenset[str] = frozenset()

    @property
    def layer(self) -> torch.nn.Module:
        """The one layer of the template."""
        return self.template.get_submodule(f"{self.layers}.0")

    @property
    def stacked_prefix(self) -> str:
        """What the names of stacked parameters begin with: `blocks.*.`."""
        return f"{self.layers}.*."

    def weights(self, rule: PlacementRule) -> list[Weight]:
        """Every parameter, those of equal layers stacked, in the order of the module."""
        return [
            self._weight(name, tuple(parameter.shape), rule)
            for name, parameter in self.template.named_parameters()
            if name not in self.aliases
        ]

    def _weight(self, name: str, shape: tuple[int, ...], rule: PlacementRule) -> Weight:
        first = f"{self.layers}.0."
        stacked = name.startswith(first)
        pattern = self.stacked_prefix + name.removeprefix(first) if stacked else name
        placement = rule(pattern, shape)
        layers = range(self.num_layers) if stacked else (0,)
        spec = PartitionSpec(None, *placement.spec) if stacked else placement.spec
        return Weight(
            name=pattern,
            tensors=tuple(self.tensor_prefix + pattern.replace("*", str(i)) for i in layers),
            tensor_shape=shape,
            dtype=placement.dtype,
            stacked=stacked,
            rows=placement.rows,
            spec=spec,
        )

    def call(self, name: str, params: Params, *args: Any) -> Any:
        """Calls the part of the template called `name`, which is not in a layer, with its params.

        Args:
            name: dotted name of the part.
            params: by the names of `weights`, at least those of the part; its buffers, which the
                template has no numbers of, likewise by their names.
            *args: positional arguments; arrays among them are seen as torch tensors.
        """
        part = self.template.get_submodule(name)
        return call_module(part, with_prefix(params, f"{name}."), *args)

    def scan(
        self,
        function: Callable[[Carry, Params, Inputs], tuple[Carry, Output]],
        carry: Carry,
        params: Params,
        inputs: Inputs = None,
        remat: Remat | None = None,
        layers: range | None = None,
    ) -> tuple[Carry, Output]:
        """Runs `function` once per layer in one compiled loop.

        Args:
            function: of the carry, the parameters of one layer by their names within it, and this
                layer's entry of `inputs`; returns the next carry and an output.
            carry: of the first layer.
            params: by the names of `weights`, at least the stacked ones that are used.
            inputs: a pytree of arrays with the layer first; None for none.
            remat: which of a layer's values a backward pass finds kept; it computes the others
                again. All are kept when not given.
            layers: these alone; all when not given. They are taken out of the stacks one by one, as
                the loop over all does: a part of a stack would be a copy of it.

        Returns:
            the carry of the last layer, and all outputs with the layer first.
        """

        def step(carry: Carry, entry: tuple[Params, Inputs]) -> tuple[Carry, Output]:
            weights, layer_inputs = entry
            return function(carry, weights, layer_inputs)

        if remat is not None:
            # A loop cannot share what it computes twice, so nothing needs to be kept apart.
            step = jax.checkpoint(step, policy=remat, prevent_cse=False)
        stacks = (with_prefix(params, self.stacked_prefix), inputs)
        if layers is None or layers == range(self.num_layers):
            return jax.lax.scan(step, carry, stacks)

        def numbered(state: tuple[Carry, jax.Array], _: None) -> tuple[Any, Output]:
            carry, layer = state
            entry = jax.tree.map(
                lambda stack: jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False), stacks
            )
            carry, output = step(carry, entry)
            return (carry, layer + 1), output

        start = (carry, jnp.int32(layers.start))
        (carry, _), outputs = jax.lax.scan(numbered, start, length=len(layers))
        return carry, outputs


def linear(
    x: Float[Array, "*batch in_features"],
    weight: Float[Array, "out_features in_features"] | Int8[Array, "out_features in_features"],
    bias: Float[Array, " out_features"] | None = None,
    scale: Float32[Array, " out_features"] | None = None,
) -> Float[Array, "*batch out_features"]:
    """`torch.nn.Linear`: the one place where a projection's weights meet its input.

    Args:
        x: `[..., in_features]`.
        weight: `[out_features, in_features]`; quantised where it has a scale.
        bias: `[out_features]`; None for none.
        scale: of each row of a quantised weight; None of another.

    Returns:
        `[..., out_features]`.
    """
    if scale is not None:
        return int8_linear(x, weight, scale, bias)
    product = x @ weight.T
    return product if bias is None else product + bias


def named_linear(
    x: Float[Array, "*batch in_features"], params: Params, name: str
) -> Float[Array, "*batch out_features"]:
    """The `torch.nn.Linear` of this name, with its bias and what is trained beside it.

    `[..., in]` -> `[..., out]`.
    """
    weight, bias, scale = f"{name}.weight", f"{name}.bias", f"{name}.{WEIGHT_SCALE}"
    out = linear(x, params[weight], params[bias], params.get(scale))
    down, up = (params.get(f"{name}.{part}") for part in (LORA_DOWN, LORA_UP))
    return out if down is None or up is None else out + low_rank(x, down, up)


LORA_DOWN, LORA_UP = "lora_down", "lora_up"
"""The two matrices of what is trained beside a linear, by their names within it."""

WEIGHT_SCALE = f"weight{SCALE}"
"""The scales of a quantised weight's rows, by their name within a linear."""


def low_rank(
    x: Float[Array, "*batch in_features"],
    down: Float[Array, "rank in_features"],
    up: Float[Array, "out_features rank"],
) -> Float[Array, "*batch out_features"]:
    """Two thin products, up down x (Hu et al. 2021, arXiv:2106.09685): what a LoRA adds.

    Args:
        x: `[..., in_features]`.
        down: `[rank, in_features]`.
        up: `[out_features, rank]`, the scale in it.

    Returns:
        `[..., out_features]`.
    """
    return (x @ down.T) @ up.T


Constrain = Callable[[jax.Array], jax.Array]


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


class Linear(torch.nn.Linear):
    """A `torch.nn.Linear` of a template whose product is `linear`, with its splits on a mesh.

    Takes the place of the original and has its parameters, by their names.
    """

    def __init__(self, original: torch.nn.Linear, split: "Split", rank: int):
        """`split` says how its arrays are split; a `rank` above 0 gives it a LoRA's parameters."""
        torch.nn.Module.__init__(self)  # torch.nn.Linear's would make parameters of its own
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight, self.bias = original.weight, original.bias
        self.register_parameter(WEIGHT_SCALE, getattr(original, WEIGHT_SCALE, None))
        self._split, self._rank = split, rank
        if rank:
            with torch.device("meta"):
                shapes = {LORA_DOWN: (rank, self.in_features), LORA_UP: (self.out_features, rank)}
                for name, shape in shapes.items():
                    self.register_parameter(name, torch.nn.Parameter(torch.empty(shape)))

    @property
    def is_plain(self) -> bool:
        """Whether weight and bias, unquantised, are all there is of it."""
        return self.weight_scale is None and not self._rank

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        x = self._split.before(to_jax(input))
        out = linear(x, to_jax(self.weight), to_jax(self.bias), to_jax(self.weight_scale))
        if self._rank:
            thin = self._split.between(x @ to_jax(self.lora_down).T)
            out = out + thin @ to_jax(self.lora_up).T
        return to_torch(self._split.after(out))


class Split(NamedTuple):
    """How the arrays of a linear are split.

    Attributes:
        before: its input.
        after: its output.
        between: what the two matrices of a LoRA hand over, `[..., rank]`.
    """

    before: Constrain = _as_it_is
    after: Constrain = _as_it_is
    between: Constrain = _as_it_is


def replace_linears(
    module: torch.nn.Module,
    splits: Callable[[str], Split] = lambda name: Split(),
    ranks: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Puts a `Linear` in the place of every `torch.nn.Linear` of a module, in place.

    Args:
        module: a template, or a copy of its layer.
        splits: of the name within the module: how arrays of this one are split; left to the
            compiler when not given.
        ranks: by such a name: of the LoRA beside it; none beside the others.
    """
    found = [(n, m) for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)]
    for name, original in found:
        module.set_submodule(name, Linear(original, splits(name), ranks.get(name, 0)))


def quantize_linears(module: torch.nn.Module) -> None:
    """Makes the weights of a template's `Linear`s int8, with a scale for each row, in place."""
    for found in [m for m in module.modules() if isinstance(m, Linear)]:
        whole = torch.empty(found.weight.shape, dtype=torch.int8, device="meta")
        found.weight = torch.nn.Parameter(whole, requires_grad=False)
        scale = torch.empty(found.out_features, device="meta")
        found.register_parameter(WEIGHT_SCALE, torch.nn.Parameter(scale, requires_grad=False))
