"""A projection of tokens with the norms around it, in one pass of a kernel for TPU.

In steps XLA reads a token twice for its layer norm and normalises it in each of the products that
read it; a pass more normalises and rotates queries and keys, one puts values in groups. Those steps
are what the kernel must give, and what a training runs: its forward keeps what a rematerialisation
policy names, and its gradient is theirs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from wan_tpu.attention.arrays import Grouped
from wan_tpu.attention.flash_blocks import block_limits
from wan_tpu.attention.sequence_parallel import group_heads
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.rules import (
    GROUPED_HEADS,
    POSITIONS,
    WHOLE,
    WHOLE_FEATURES,
    vectors_of,
)
from wan_tpu.torch_module import linear
from wan_tpu.transformer.norm_rotate import norm_rotate
from wan_tpu.transformer.norms import (
    Norm,
    Tokens,
    Vectors,
    first_of_shard,
    layer_norm,
    rms_norm_across_heads,
)
from wan_tpu.transformer.projection_kernel import (
    Heads,
    Layer,
    Sizes,
    fitting_block,
    project_tokens,
)

Table = Float32[Array, "tokens head_dim"]


class HeadNorm(NamedTuple):
    """The norm over all heads of a query or a key, and its rotation.

    Attributes:
        weight: `[heads * head_dim]`.
        tables: cosines and signed sines (`rotary.rotary_tables`); None where nothing is rotated.
    """

    weight: Float[Array, " channels"]
    tables: tuple[Table, Table] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What is no array of a projection; hashable, as `jax.custom_vjp` asks.

    Attributes:
        head_dim: output channels of a head.
        real_channels: of the heads that are no padding: the norm's mean is over these.
        head_eps: added to the heads' mean square.
        mesh: decides the platform; elsewhere than on a TPU the kernel is interpreted.
        layout: decides the groups.
        grouped: whether the heads come out in the groups of self-attention, or in one.
    """

    head_dim: int
    real_channels: int
    head_eps: float
    mesh: Mesh
    layout: Layout
    grouped: bool

    @property
    def groups(self) -> int:
        """That the heads come out in."""
        return self.layout.head_groups if self.grouped else 1

    def block(self, x: Tokens, channels: int) -> int:
        """Tokens that the kernel works on at a time; 0 where it does not take them.

        Args:
            x: `[batch, tokens, dim]`, the global view.
            channels: that come out of the product.

        With heads split over tp their norm needs a sum over devices; and the whole weight must fit
        in a chip's VMEM.
        """
        if self.layout.tp > 1:
            return 0
        tokens = x.shape[1] // self.layout.sp
        limits = block_limits(self.mesh.devices.flat[0].device_kind)
        return fitting_block(tokens, x.shape[2], channels, x.dtype.itemsize, limits.vmem_bytes)

    def arranged(self, product: Tokens, heads: HeadNorm | None) -> Grouped:
        """What comes out of the product, its heads normalised, rotated and in groups."""
        where = {"mesh": self.mesh, "layout": self.layout}
        if heads is not None and heads.tables is not None:
            assert self.grouped, "queries and keys of self-attention"
            how = {"dim": self.real_channels, "eps": self.head_eps}
            return norm_rotate(product, heads.weight, *heads.tables, **how, **where)
        if heads is not None:
            how = (heads.weight, self.real_channels, self.head_eps)
            product = rms_norm_across_heads(product, *how).astype(product.dtype)
        return group_heads(product, **where) if self.groups > 1 else product[None]


def project(
    x: Tokens,
    norm: Norm | None,
    weight: Float[Array, "channels dim"],
    bias: Float[Array, " channels"],
    heads: HeadNorm | None,
    *,
    projection: Projection,
) -> Grouped:
    """Layer norm, `torch.nn.Linear`, norm over heads, rotation and groups; global view.

    The same as these one after the other, rounded where they round.

    Args:
        x: `[batch, tokens, dim]`, dp splits the batch and sp the tokens.
        norm: the layer norm and what modulates it; None for none.
        weight: `[channels, dim]`, such that `projection.block` is not 0.
        bias: `[channels]`.
        heads: what is done to queries and keys; None for values.
        projection: everything else.

    Returns:
        `[groups, batch, tokens, heads of a group * head_dim]`, in `x`'s dtype.
    """
    vectors = None if norm is None else (norm.scale, norm.shift)
    eps, first_tokens = (0.0, 0) if norm is None else (norm.eps, norm.first_tokens)
    where = _Where(projection=projection, eps=eps, first_tokens=first_tokens)
    return _in_one_pass(x, vectors, weight, bias, heads, where)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """A projection, and what is no array of its layer norm."""

    projection: Projection
    eps: float
    first_tokens: int

    def in_steps(
        self,
        x: Tokens,
        vectors: tuple[Vectors, Vectors] | None,
        weight: Float[Array, "channels dim"],
        bias: Float[Array, " channels"],
        heads: HeadNorm | None,
    ) -> Grouped:
        """What the kernel must give."""
        if vectors is not None:
            scale, shift = vectors
            norm = Norm(scale=scale, shift=shift, eps=self.eps, first_tokens=self.first_tokens)
            x = layer_norm(x, norm)
        return self.projection.arranged(linear(x, weight, bias), heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _in_one_pass(
    x: Tokens,
    vectors: tuple[Vectors, Vectors] | None,
    weight: Float[Array, "channels dim"],
    bias: Float[Array, " channels"],
    heads: HeadNorm | None,
    where: _Where,
) -> Grouped:
    projection, device = where.projection, where.projection.mesh.devices.flat[0]
    sizes = Sizes(
        head_dim=projection.head_dim,
        real_channels=projection.real_channels,
        groups=projection.groups,
        eps=where.eps,
        head_eps=projection.head_eps,
        block=projection.block(x, weight.shape[0]),
        vmem_bytes=block_limits(device.device_kind).vmem_bytes,
    )

    def per_device(
        x: Tokens,
        vectors: tuple[Vectors, Vectors] | None,
        weight: Float[Array, "channels dim"],
        bias: Float[Array, " channels"],
        heads: HeadNorm | None,
    ) -> Grouped:
        layer, of_heads = None, None
        if vectors is not None:
            layer = Layer(*vectors, first_of_shard(where.first_tokens, x.shape[1]))
        if heads is not None:
            of_heads = Heads(heads.weight.astype(jnp.float32), heads.tables)
        interpret = device.platform != "tpu"
        return project_tokens(x, layer, weight, bias, of_heads, sizes=sizes, interpret=interpret)

    of_vectors = None if vectors is None else (vectors_of(vectors[0].shape[0]),) * 2
    of_heads = None
    if heads is not None:
        tables = None if heads.tables is None else (POSITIONS, POSITIONS)
        of_heads = HeadNorm._make((WHOLE, tables))
    return jax.shard_map(
        per_device,
        mesh=projection.mesh,
        in_specs=(WHOLE_FEATURES, of_vectors, WHOLE, WHOLE, of_heads),
        out_specs=GROUPED_HEADS,
        check_vma=False,
    )(x, vectors, weight, bias, heads)


def _forward(
    x: Tokens,
    vectors: tuple[Vectors, Vectors] | None,
    weight: Float[Array, "channels dim"],
    bias: Float[Array, " channels"],
    heads: HeadNorm | None,
    where: _Where,
) -> tuple[Grouped, Callable[..., tuple]]:
    return jax.vjp(where.in_steps, x, vectors, weight, bias, heads)


def _backward(_where: _Where, backward: Callable[..., tuple], d_out: Grouped) -> tuple:
    return backward(d_out)


_in_one_pass.defvjp(_forward, _backward)


def project_groups(
    x: Grouped, weight: Float[Array, "dim channels"], bias: Float[Array, " dim"]
) -> Tokens:
    """`torch.nn.Linear` of tokens whose heads are in groups: they need not be put together first.

    Args:
        x: `[groups, batch, tokens, heads of a group * head_dim]`, heads not split over tp.
        weight: `[dim, heads * head_dim]`.
        bias: `[dim]`.

    Returns:
        `[batch, tokens, dim]`.
    """
    in_groups = weight.reshape(weight.shape[0], x.shape[0], x.shape[3])
    return jnp.einsum("gbtc,dgc->btd", x, in_groups) + bias
