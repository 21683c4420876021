"""The denoiser: noisy latent tokens, a timestep, a text, pictures in, predicted velocity out.

The parts of diffusers' block run through torchax with our attention, scanned over stacked weights.
Around the blocks everything works on tokens: the scheduler keeps latents in token form for the
whole run, so no step folds or unfolds patches, and patch embedding is one product.
"""

import copy
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wan_tpu.attention.sequence_parallel import padded_tokens
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.geometry import TEXT_TOKENS, Geometry, ceil_to_multiple
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.rules import CONTEXT, KEY_TOKENS, LATENT_TOKENS, RESIDUAL
from wan_tpu.torch_bridge import Params, call_module
from wan_tpu.torch_module import LayeredModule, Remat, named_linear, replace_linears
from wan_tpu.transformer.block import TransformerBlock
from wan_tpu.transformer.conditions import (
    ChannelCondition,
    Condition,
    FirstFrameCondition,
    row_of_each_token,
    with_first_frame,
)
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.context import (
    CONTEXT_WEIGHTS,
    OF_IMAGE,
    OF_TEXT,
    TEXT_EMBEDDER,
    embed_image,
    keys_values,
)
from wan_tpu.transformer.gathering import AHEAD, GatherAhead, Gathered, gather_ahead, gather_layer
from wan_tpu.transformer.lora import LoraShape, lora_weights
from wan_tpu.transformer.patches import rows_of_tokens
from wan_tpu.transformer.processors import (
    AttentionSetting,
    Context,
    CrossAttention,
    Positions,
    SelfAttention,
    linear_split,
    projection_of,
)
from wan_tpu.transformer.rotary import rotary_tables
from wan_tpu.transformer.weights import denoiser_module, denoiser_weights

BLOCK_INPUT = "block_input"
"""What a block's input is called by policies of `jax.checkpoint`."""

PATCH_KERNEL, PATCH_BIAS = "patch_embedding.weight", "patch_embedding.bias"

Hidden = Float[Array, "batch tokens dim"]
"""The residual stream."""

_Carry = tuple[Hidden, Gathered | None]


class _Begun(NamedTuple):
    """What the blocks begin with, and what modulates them and the last norm."""

    hidden: Hidden
    time_embedding: Float[Array, "samples timesteps dim"]
    modulation: Float[Array, "samples timesteps 6 dim"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Denoiser:
    """Wan's transformer on a mesh: pure functions of its parameters.

    Attributes:
        config: sizes of the model.
        setting: mesh, layout and attention.
        dtype: of weights and activations; float32 stays where diffusers keeps it.
        lora: what is trained beside the blocks' linears; None for nothing.
        remat: what a backward pass finds kept of each block; everything when not given.
        recompute_cross: it does not find results of cross-attention to few keys, whatever `remat`
            names.
        quantize: `int8` where the blocks' linears are; None where all is of `dtype`.
        gathers_ahead: layers gather weights for the next one; a gradient would keep them all.
    """

    config: TransformerConfig
    setting: AttentionSetting
    dtype: DTypeLike
    lora: LoraShape | None = None
    remat: Remat | None = None
    recompute_cross: bool = False
    quantize: str | None = None
    gathers_ahead: bool = False

    @property
    def module(self) -> LayeredModule:
        """diffusers' model: names, shapes and code."""
        return denoiser_module(self.config, self.quantize)

    def weights(self) -> list[Weight]:
        """The parameters, in the order they are loaded."""
        return denoiser_weights(self.config, self.setting.layout, self.dtype, self.quantize)

    def lora_weights(self) -> list[Weight]:
        """The two matrices of every target of `lora`, in float32."""
        return [] if self.lora is None else lora_weights(self.weights(), self.lora, self.layout)

    def exact(self) -> "Denoiser":
        """The same with exact attention in every layer."""
        return dataclasses.replace(self, setting=self.setting.exact())

    @property
    def layout(self) -> Layout:
        """How it is split over the devices."""
        return self.setting.layout

    def context_weights(self) -> list[Weight]:
        """Those of `weights` that `text_context` needs."""
        return [w for w in self.weights() if w.name.startswith(CONTEXT_WEIGHTS)]

    def condition_weights(self) -> list[Weight]:
        """Those of `weights` that `embed_condition` needs; a step needs them, too."""
        return [w for w in self.weights() if w.name == PATCH_KERNEL]

    def step_weights(self) -> list[Weight]:
        """Those of `weights` that `predict` needs."""
        return [w for w in self.weights() if not w.name.startswith(CONTEXT_WEIGHTS)]

    def context_shape(self, batch: int, keys: int = TEXT_TOKENS) -> tuple[int, ...]:
        """Shape of the keys (and of the values) of `text_context` for a padded batch.

        Args:
            batch: padded.
            keys: of the text; or as many as there are image tokens, for `Context.image`.
        """
        heads = self.setting.layout.padded_heads(self.config.num_attention_heads)
        channels = heads * self.config.attention_head_dim
        return (self.config.num_layers, batch, keys, channels)

    def padded_tokens(self, geometry: Geometry) -> int:
        """Length of the sequence on the mesh: every device holds the same number of tokens."""
        setting = self.setting
        return padded_tokens(
            geometry.num_tokens,
            setting.layout.sp * setting.layout.tp,
            mesh=setting.concrete_mesh,
            layout=setting.layout,
            implementation=setting.implementation,
        )

    def padded_batch(self, batch: int) -> int:
        """Batch on the mesh; what dp adds repeats the first entries and is thrown away."""
        return ceil_to_multiple(batch, self.setting.layout.dp)

    def text_context(
        self,
        params: Params,
        text: Float[Array, "batch text text_dim"],
        image: Float[Array, "images image_tokens image_dim"] | None = None,
    ) -> Context:
        """Keys and values of cross-attention for every layer, once per request.

        Args:
            params: the parameters named in `context_weights`.
            text: `[batch, 512, text_dim]`, embeddings, zero past each prompt's end.
            image: `[1 or batch, image tokens, image_dim]`, the image encoder's output, of several
                pictures one after the other; for a model with `image_dim`, and for no other.

        Returns:
            keys and values of all layers.
        """
        assert (image is None) == (self.config.image_dim is None), self.config
        embedded = self.module.call(TEXT_EMBEDDER, params, text.astype(self.dtype))
        embedded = self.setting.constrain(embedded, KEY_TOKENS)  # [batch, 512, dim]
        embedded_image = None
        if image is not None:
            image = image.astype(self.dtype)
            embedded_image = embed_image(self.module, self.config, params, image)

        def layer(_: None, weights: Params, __: None) -> tuple[None, Context]:
            weights, how = self._gather(weights), (self.config, self.dtype)
            context = Context(*keys_values(embedded, weights, OF_TEXT, *how))
            if embedded_image is None:
                return None, context
            of_image = keys_values(embedded_image, weights, OF_IMAGE, *how)
            return None, context._replace(image=of_image)

        _, context = self.module.scan(layer, None, params, remat=self.remat)
        batch = text.shape[0]

        def on_mesh(x: jax.Array) -> jax.Array:
            """For the whole batch: both branches of guidance have the same image tokens."""
            x = jnp.broadcast_to(x, (x.shape[0], batch, *x.shape[2:]))
            return self.setting.constrain(x, CONTEXT)

        return jax.tree.map(on_mesh, context)

    def embed_condition(
        self, params: Params, tokens: Float[Array, "samples tokens condition_channels"]
    ) -> Float[Array, "samples tokens dim"]:
        """What the condition's channels add to the patch embedding, once per request.

        Args:
            params: the parameters named in `condition_weights`.
            tokens: `[samples, padded tokens, condition channels]`: mask and encoded pictures, in
                the form that `patchify` gives.
        """
        kernel = params[PATCH_KERNEL][:, self.config.out_channels :]
        embedded = tokens.astype(self.dtype) @ rows_of_tokens(kernel).T
        return self.setting.constrain(embedded, RESIDUAL if len(tokens) > 1 else LATENT_TOKENS)

    def predict(
        self,
        params: Params,
        latents: Float32[Array, "samples tokens channels"],
        timestep: Float32[Array, "*samples"],
        context: Context,
        geometry: Geometry,
        condition: Condition | None = None,
    ) -> Float32[Array, "batch tokens channels"]:
        """Predicted velocity for each entry of the context's batch.

        Args:
            params: the parameters named in `step_weights`.
            latents: `[samples, padded tokens, token channels]`, float32; one for each entry of the
                batch, or one for all of them.
            timestep: `[samples]`, float32, or a scalar for all of them.
            context: from `text_context`.
            geometry: sizes of the video.
            condition: what pictures add; of channels where the model has channels for it.

        Returns:
            `[batch, padded tokens, token channels]`, float32.
        """
        how = (params, latents, timestep, context, geometry, condition)
        return self.predict_with_residual(*how)[0]

    def predict_with_residual(
        self,
        params: Params,
        latents: Float32[Array, "samples tokens channels"],
        timestep: Float32[Array, "*samples"],
        context: Context,
        geometry: Geometry,
        condition: Condition | None = None,
    ) -> tuple[Float32[Array, "batch tokens channels"], Hidden]:
        """`predict`, and what all blocks together added to the tokens, for `predict_reusing`.

        Returns:
            The velocity, and `[batch, padded tokens, dim]` of the model's dtype, split as the
            residual stream is.
        """
        begun = self._begin(params, latents, timestep, context.key.shape[1], geometry, condition)
        hidden = self._blocks(params, begun.hidden, context, begun.modulation, geometry)
        residual = self.setting.constrain(hidden - begun.hidden, RESIDUAL)
        return self._project_out(params, hidden, begun.time_embedding, geometry), residual

    def predict_reusing(
        self,
        params: Params,
        latents: Float32[Array, "samples tokens channels"],
        timestep: Float32[Array, "*samples"],
        residual: Hidden,
        geometry: Geometry,
        condition: Condition | None = None,
    ) -> Float32[Array, "batch tokens channels"]:
        """`predict` without its blocks: these tokens with another step's residual, projected out.

        Args:
            params: as of `predict`; those of the blocks are not read.
            latents: as of `predict`. timestep: likewise. condition: likewise.
            residual: of `predict_with_residual`, for the batch.
            geometry: sizes of the video.
        """
        begun = self._begin(params, latents, timestep, residual.shape[0], geometry, condition)
        hidden = self.setting.constrain(begun.hidden + residual, RESIDUAL)
        return self._project_out(params, hidden, begun.time_embedding, geometry)

    def _begin(
        self,
        params: Params,
        latents: Float32[Array, "samples tokens channels"],
        timestep: Float32[Array, "*samples"],
        batch: int,
        geometry: Geometry,
        condition: Condition | None,
    ) -> "_Begun":
        """Everything ahead of the blocks."""
        with_channels = isinstance(condition, ChannelCondition)
        assert with_channels == (self.config.condition_channels > 0), self.config
        samples, tokens, _ = latents.shape
        assert samples in (1, batch), (latents.shape, batch)
        timesteps = timestep.reshape(-1, 1)  # one where all samples share it
        if isinstance(condition, FirstFrameCondition):
            latents, timesteps = with_first_frame(latents, timesteps, condition, geometry)
        time_embedding, modulation = self._time(params, timesteps)
        # The convolution as a product; its channels are those of the latents, then all others.
        kernel = rows_of_tokens(params[PATCH_KERNEL][:, : self.config.out_channels])
        hidden = latents.astype(self.dtype) @ kernel.T + params[PATCH_BIAS]
        if isinstance(condition, ChannelCondition):
            hidden += condition.embedded
        hidden = jnp.broadcast_to(hidden, (batch, tokens, self.config.dim))
        return _Begun(hidden, time_embedding, modulation)

    def _blocks(
        self,
        params: Params,
        hidden: Hidden,
        context: Context,
        modulation: Float[Array, "samples timesteps 6 dim"],
        geometry: Geometry,
    ) -> Hidden:
        """All transformer blocks, `[batch, tokens, dim]` -> the same."""
        cos, sin = rotary_tables(geometry.grid, self.config.attention_head_dim, hidden.shape[1])
        positions = Positions(cos=cos, sin=sin, num_tokens=geometry.num_tokens)
        ahead = self._ahead(params, hidden)
        next_weights = None if ahead is None else ahead.gather(ahead.parts(0))

        def layer(
            block: TransformerBlock, carry: _Carry, weights: Params, inputs: tuple[Context, Any]
        ) -> tuple[_Carry, None]:
            (hidden, ready), (context, number) = carry, inputs
            hidden = self.setting.constrain(hidden, RESIDUAL)
            hidden = checkpoint_name(hidden, BLOCK_INPUT)
            arguments = hidden, context, modulation, positions
            if ahead is None or ready is None:
                hidden = call_module(block, self._gather(weights), *arguments)
            else:
                others = {name: weights[name] for name in weights if name not in AHEAD}
                weights = {**self._gather(others), **ahead.by_name(ready)}
                hidden, ready = call_module(block, weights, *arguments, ahead.parts(number + 1))
            return (self.setting.constrain(hidden, RESIDUAL), ready), None

        carry, inputs = (hidden, next_weights), (context, jnp.arange(self.config.num_layers))
        # A loop for each: a condition inside of one loop would be a wall for what overlaps.
        for setting, layers in self.setting.runs(self.config.num_layers):
            step = functools.partial(layer, self._block(geometry, setting, ahead))
            carry, _ = self.module.scan(step, carry, params, inputs, self.remat, layers)
        return carry[0]

    def _ahead(self, params: Params, hidden: Hidden) -> GatherAhead | None:
        """How layers gather for the next one; None where they do not."""
        if not self.gathers_ahead or self.quantize is not None:
            return None
        projection = projection_of(self.config, self.setting, grouped=True)
        of_model = self.weights(), self.module.stacked_prefix
        return gather_ahead(params, *of_model, self.setting, projection, hidden)

    def _block(
        self, geometry: Geometry, setting: AttentionSetting, ahead: GatherAhead | None
    ) -> TransformerBlock:
        """diffusers' transformer block with our attention, its products split by the layout."""
        block: Any = copy.deepcopy(self.module.layer)
        block.attn1.set_processor(SelfAttention(self.config, setting))
        block.attn2.set_processor(
            CrossAttention(self.config, setting, recompute=self.recompute_cross)
        )
        ranks = {} if self.lora is None else self.lora.ranks()
        replace_linears(block, lambda name: linear_split(name, self.setting), ranks)
        return TransformerBlock(block, geometry, setting, ahead)

    def _gather(self, weights: Params) -> Params:
        """One layer's weights split over tp alone, as its products use them."""
        known = *self.weights(), *self.lora_weights()
        return gather_layer(weights, known, self.module.stacked_prefix, self.setting)

    def _time(
        self, params: Params, timesteps: Float32[Array, "samples timesteps"]
    ) -> tuple[Float[Array, "samples timesteps dim"], Float[Array, "samples timesteps 6 dim"]]:
        """Embeds timesteps, and makes of them what modulates the blocks."""
        call, embedder = self.module.call, "condition_embedder"
        frequencies = call(f"{embedder}.timesteps_proj", params, timesteps.reshape(-1))
        embedding = call(f"{embedder}.time_embedder", params, frequencies).astype(self.dtype)
        projected = call(f"{embedder}.time_proj", params, jax.nn.silu(embedding))
        shape = (*timesteps.shape, self.config.dim)
        return embedding.reshape(shape), projected.reshape(*timesteps.shape, 6, self.config.dim)

    def _project_out(
        self,
        params: Params,
        hidden: Hidden,
        time_embedding: Float[Array, "samples timesteps dim"],
        geometry: Geometry,
    ) -> Float32[Array, "batch tokens channels"]:
        """Last norm, modulation and projection: `[batch, tokens, token channels]`, float32."""
        rows = params["scale_shift_table"] + time_embedding[:, :, None]
        # [samples, timesteps, 2, dim]
        tokens = hidden.shape[1]
        shift, scale = (row_of_each_token(rows[:, :, i], tokens, geometry) for i in (0, 1))
        normed = self.module.call("norm_out", params, hidden.astype(jnp.float32))
        normed = normed * (1 + scale) + shift
        out = named_linear(normed.astype(self.dtype), params, "proj_out")
        return out.astype(jnp.float32)
