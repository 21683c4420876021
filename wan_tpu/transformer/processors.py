"""Our attention inside diffusers' transformer block: two processors for `WanAttention`.

A block passes what it is given as `rotary_emb` and `encoder_hidden_states` on to its processors
and looks at neither, so those arguments carry what ours need.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Shaped

from wan_tpu.attention.choice import AttentionChoice, Gate
from wan_tpu.attention.names import TOKEN_MAJOR
from wan_tpu.attention.residuals import recomputed
from wan_tpu.attention.sequence_parallel import (
    cross_attend,
    group_heads,
    sharded_attend,
    ungroup_heads,
)
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.rules import RESIDUAL, SPLIT_FEATURES, WHOLE_FEATURES
from wan_tpu.torch_bridge import to_jax, to_torch
from wan_tpu.torch_module import Constrain, Split
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.norm_rotate import norm_rotate
from wan_tpu.transformer.rotary import rotate

TOKENS_A_KEY = 8
"""With so many, cross-attention takes an eighth of self-attention's time, and as much room."""

TorchTokens = Float[torch.Tensor, "batch tokens dim"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSetting:
    """Where and how attention runs: fixed for a model on a mesh.

    Attributes:
        implementation: one of `wan_tpu.attention.api.IMPLEMENTATIONS`, resolved (not `auto`).
        gate: what stays exact of one that is not; None for nothing.
    """

    mesh: Mesh | AbstractMesh  # the latter where only sizes matter
    layout: Layout
    implementation: str
    gate: Gate | None = None

    @property
    def choice(self) -> AttentionChoice:
        """What chose it, resolved."""
        return AttentionChoice(name=self.implementation, gate=self.gate)

    @property
    def exact_implementation(self) -> str:
        """The same where it is exact; what is exact in its place where it is not."""
        return self.choice.exact_name

    def exact(self) -> "AttentionSetting":
        """The same with exact attention everywhere."""
        exact = self.exact_implementation
        return dataclasses.replace(self, implementation=exact, gate=None)

    def runs(self, num_layers: int) -> "list[tuple[AttentionSetting, range]]":
        """The layers in order, cut where what attends changes: each with its setting.

        Args:
            num_layers: of the transformer.
        """
        if self.gate is None:
            return [(self, range(num_layers))]
        first, runs = 0, []
        for is_exact, row in itertools.groupby(self.gate.layers.exact(num_layers)):
            last = first + len(list(row))
            runs.append((self.exact() if is_exact else self, range(first, last)))
            first = last
        return runs

    @property
    def concrete_mesh(self) -> Mesh:
        """The mesh of a model that is traced: attention asks its devices which chip they are."""
        assert isinstance(self.mesh, Mesh)
        return self.mesh

    def constrain(self, x: Shaped[Array, "*shape"], spec: PartitionSpec) -> Shaped[Array, "*shape"]:
        """Asks the compiler to split `x` like this at this point."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """What self-attention knows about the sequence; travels as `rotary_emb`.

    Attributes:
        cos: `[tokens, head_dim]`, float32. sin: likewise, signed (`rotary.rotary_tables`).
        num_tokens: how many of the tokens are real.
    """

    cos: Float32[Array, "tokens head_dim"]
    sin: Float32[Array, "tokens head_dim"]
    num_tokens: int


def linear_split(name: str, setting: AttentionSetting) -> Split:
    """How input and output of a block's projection are split, by its name within the block.

    Megatron's pairs (Shoeybi et al. 2019, arXiv:1909.08053): the first product of a pair makes
    features that tp splits, the second sums over them. What a LoRA hands over between its matrices
    is thin: tp holds all of it.
    """

    def split(spec: PartitionSpec) -> Constrain:
        return lambda x: setting.constrain(x, spec)

    whole = split(WHOLE_FEATURES)
    if name.endswith(("to_out.0", "ffn.net.2")):
        return Split(split(SPLIT_FEATURES), split(RESIDUAL), whole)
    return Split(whole, split(SPLIT_FEATURES), whole)


class KeysValues(NamedTuple):
    """Keys and values that cross-attention takes one softmax over.

    Attributes:
        key: `[layers, batch, keys, padded heads * head_dim]`, without layers inside a block.
        value: likewise.
    """

    key: Float[Array, "*layers batch keys channels"]
    value: Float[Array, "*layers batch keys channels"]


class Context(NamedTuple):
    """Cross-attention's keys and values of every layer, once per request; travels as
    `encoder_hidden_states`, one layer's at a time.

    Attributes:
        key: of the text, `[layers, batch, text, padded heads * head_dim]`, without layers inside a
            block.
        value: likewise.
        image: of the image tokens; None for a model that reads none.
    """

    key: Float[Array, "*layers batch text channels"]
    value: Float[Array, "*layers batch text channels"]
    image: KeysValues | None = None


class SelfAttention:
    """Queries, keys and values of all tokens; rotary positions; split by the layout."""

    def __init__(self, config: TransformerConfig, setting: AttentionSetting):
        self._config = config
        self._setting = setting

    def __call__(
        self,
        attn: Any,
        hidden_states: TorchTokens,
        _context: None,
        _mask: None,
        positions: Positions,
    ) -> TorchTokens:
        """diffusers' processor protocol; hidden_states `[batch, tokens, dim]`."""
        setting, config = self._setting, self._config
        hidden = to_torch(setting.constrain(to_jax(hidden_states), WHOLE_FEATURES))
        query, key, value = (to_jax(p(hidden)) for p in (attn.to_q, attn.to_k, attn.to_v))
        attended = sharded_attend(
            self._arranged(query, attn.norm_q.weight, positions),
            self._arranged(key, attn.norm_k.weight, positions),
            group_heads(value, mesh=setting.concrete_mesh, layout=setting.layout),
            head_dim=config.attention_head_dim,
            mesh=setting.concrete_mesh,
            layout=setting.layout,
            implementation=setting.implementation,
            num_keys=positions.num_tokens,
        )
        merged = ungroup_heads(attended, mesh=setting.concrete_mesh)
        return attn.to_out[0](to_torch(merged))

    def _arranged(
        self,
        x: Float[Array, "batch tokens channels"],
        weight: Float[torch.Tensor, " channels"],
        positions: Positions,
    ) -> Float[Array, "groups batch tokens group_channels"]:
        """[batch, tokens, channels] -> [groups, batch, tokens, ...], normalised and rotated."""
        setting, config = self._setting, self._config
        where = {"mesh": setting.concrete_mesh, "layout": setting.layout}
        if setting.implementation in TOKEN_MAJOR:
            tables = positions.cos, positions.sin
            return norm_rotate(x, to_jax(weight), *tables, dim=config.dim, eps=config.eps, **where)
        # diffusers rounds here too, before it rotates
        normed = rms_norm_across_heads(x, to_jax(weight), config.dim, config.eps).astype(x.dtype)
        heads = split_heads(normed, config.attention_head_dim)
        rotated = rotate(heads, positions.cos, positions.sin).reshape(x.shape)
        return group_heads(rotated, **where)


class CrossAttention:
    """Queries of all tokens against keys and values that are computed once per request.

    The text's and the image's have a softmax each, and the results are added. It is always exact:
    with so few keys there is little to gain.

    Args:
        config: of the model.
        setting: mesh, layout and attention.
        recompute: keep no results of few keys for a backward pass.
    """

    def __init__(self, config: TransformerConfig, setting: AttentionSetting, *, recompute: bool):
        self._config = config
        self._setting = setting
        self._recompute = recompute

    def __call__(
        self,
        attn: Any,
        hidden_states: TorchTokens,
        context: Context,
        _mask: None,
        _positions: None,
    ) -> TorchTokens:
        """diffusers' processor protocol; context: of a layer, from `text_context`."""
        config = self._config
        query = to_jax(attn.to_q(hidden_states))
        dtype = query.dtype
        query = rms_norm_across_heads(query, to_jax(attn.norm_q.weight), config.dim, config.eps)
        query = query.astype(dtype)
        attended = self._attend(query, context.key, context.value)
        if context.image is not None:
            attended += self._attend(query, *context.image)
        return attn.to_out[0](to_torch(attended))

    def _attend(
        self,
        query: Float[Array, "batch tokens channels"],
        key: Float[Array, "batch keys channels"],
        value: Float[Array, "batch keys channels"],
    ) -> Float[Array, "batch tokens channels"]:
        """One softmax over all of the keys."""
        attend = functools.partial(
            cross_attend,
            head_dim=self._config.attention_head_dim,
            mesh=self._setting.concrete_mesh,
            layout=self._setting.layout,
            implementation=self._setting.exact_implementation,
        )
        has_few_keys = key.shape[1] * TOKENS_A_KEY <= query.shape[1]
        attend = recomputed(attend) if self._recompute and has_few_keys else attend
        return attend(query[None], key[None], value[None])[0]


def rms_norm_across_heads(
    x: Float[Array, "batch tokens channels"],
    weight: Float[Array, " channels"],
    dim: int,
    eps: float,
) -> Float32[Array, "batch tokens channels"]:
    """Root-mean-square norm over all heads of a token.

    Args:
        x: `[batch, tokens, padded heads * head_dim]`; padding heads are zero.
        weight: `[padded heads * head_dim]`.
        dim: channels of the real heads: the mean is over these.
        eps: added to the mean square.

    Returns:
        Like `x`, float32 (the caller rounds once, after all that follows).
    """
    x = x.astype(jnp.float32)
    mean_square = jnp.sum(x * x, axis=-1, keepdims=True) / dim
    return x * jax.lax.rsqrt(mean_square + eps) * weight.astype(jnp.float32)


def split_heads(
    x: Float[Array, "batch tokens channels"], head_dim: int
) -> Float[Array, "batch tokens heads {head_dim}"]:
    """`[batch, tokens, heads * head_dim]` -> `[batch, tokens, heads, head_dim]`."""
    return x.reshape(*x.shape[:2], -1, head_dim)
