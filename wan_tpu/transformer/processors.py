"""Our attention inside diffusers' transformer block: two processors for `WanAttention`.

A block passes what it is given as `rotary_emb`, `encoder_hidden_states` and `attention_mask` on to
its processors and looks at none, so those arguments carry what ours need.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import torch
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Shaped

from wan_tpu.attention.choice import AttentionChoice, Gate
from wan_tpu.attention.names import TOKEN_MAJOR
from wan_tpu.attention.residuals import recomputed
from wan_tpu.attention.sequence_parallel import cross_attend, sharded_attend, ungroup_heads
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.rules import RESIDUAL, SPLIT_FEATURES, WHOLE_FEATURES
from wan_tpu.torch_bridge import to_jax, to_torch
from wan_tpu.torch_module import Constrain, Linear, Split
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.norms import Norm, layer_norm, rms_norm_across_heads
from wan_tpu.transformer.projection import HeadNorm, Projection, project, project_groups
from wan_tpu.transformer.rotary import rotate, split_heads

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
    def is_token_major(self) -> bool:
        """Whether attention takes tokens as the products around it leave them."""
        return self.implementation in TOKEN_MAJOR

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
        norm: Norm,
        positions: Positions,
    ) -> TorchTokens:
        """diffusers' processor protocol; hidden_states `[batch, tokens, dim]`, to be normalised."""
        setting, hidden = self._setting, to_jax(hidden_states)
        attended = sharded_attend(
            self._project(hidden, norm, attn.to_q, attn.norm_q, positions),
            self._project(hidden, norm, attn.to_k, attn.norm_k, positions),
            self._project(hidden, norm, attn.to_v, None, positions),
            head_dim=self._config.attention_head_dim,
            mesh=setting.concrete_mesh,
            layout=setting.layout,
            implementation=setting.implementation,
            num_keys=positions.num_tokens,
        )
        out = attn.to_out[0]
        if out.is_plain and setting.layout.tp == 1:
            return to_torch(project_groups(attended, to_jax(out.weight), to_jax(out.bias)))
        return out(to_torch(ungroup_heads(attended, mesh=setting.concrete_mesh)))

    def _project(
        self,
        hidden: Float[Array, "batch tokens dim"],
        norm: Norm,
        linear: Linear,
        head_norm: Any,
        positions: Positions,
    ) -> Float[Array, "groups batch tokens group_channels"]:
        """Tokens normalised and projected, heads normalised and rotated where they have a norm."""
        setting, config = self._setting, self._config
        projection = projection_of(config, setting, grouped=True)
        heads = None
        if head_norm is not None:
            heads = HeadNorm(to_jax(head_norm.weight), (positions.cos, positions.sin))
        if in_one_pass(setting, projection, hidden, linear):
            weights = to_jax(linear.weight), to_jax(linear.bias)
            return project(hidden, norm, *weights, heads, projection=projection)
        normed = setting.constrain(layer_norm(hidden, norm), WHOLE_FEATURES)
        product = to_jax(linear(to_torch(normed)))
        if heads is None or setting.is_token_major:
            return projection.arranged(product, heads)
        # diffusers rounds here too, before it rotates
        normed = rms_norm_across_heads(product, heads.weight, config.dim, config.eps)
        rotated = rotate(
            split_heads(normed.astype(product.dtype), config.attention_head_dim),
            positions.cos,
            positions.sin,
        )
        return projection.arranged(rotated.reshape(product.shape), None)


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
        norm: Norm | None,
        _positions: None,
    ) -> TorchTokens:
        """diffusers' processor protocol; hidden_states `[batch, tokens, dim]`, to be normalised.

        Args:
            attn: diffusers' attention.
            hidden_states: `[batch, tokens, dim]`.
            context: of a layer, from `text_context`.
            norm: None of a model that has none here.
        """
        config, setting, hidden = self._config, self._setting, to_jax(hidden_states)
        projection = projection_of(config, setting, grouped=False)
        heads, linear = HeadNorm(to_jax(attn.norm_q.weight)), attn.to_q
        if in_one_pass(setting, projection, hidden, linear):
            weights = to_jax(linear.weight), to_jax(linear.bias)
            query = project(hidden, norm, *weights, heads, projection=projection)[0]
        else:
            normed = hidden if norm is None else layer_norm(hidden, norm)
            query = projection.arranged(to_jax(linear(to_torch(normed))), heads)[0]
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


def projection_of(
    config: TransformerConfig, setting: AttentionSetting, *, grouped: bool
) -> Projection:
    """Of queries, keys and values; `grouped` as self-attention exchanges them."""
    return Projection(
        head_dim=config.attention_head_dim,
        real_channels=config.dim,
        head_eps=config.eps,
        mesh=setting.concrete_mesh,
        layout=setting.layout,
        grouped=grouped,
    )


def in_one_pass(
    setting: AttentionSetting,
    projection: Projection,
    hidden: Float[Array, "batch tokens dim"],
    linear: Linear,
) -> bool:
    """Whether a kernel makes a projection: of weights as they are."""
    channels = to_jax(linear.weight).shape[0]
    return linear.is_plain and has_kernel(setting, projection, hidden, channels)


def has_kernel(
    setting: AttentionSetting,
    projection: Projection,
    hidden: Float[Array, "batch tokens dim"],
    channels: int,
) -> bool:
    """Whether there is a kernel for plain weights of so many output channels: beside our own
    attention's, where the chip has room."""
    return setting.is_token_major and projection.block(hidden, channels) > 0
