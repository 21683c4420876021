"""maxdiffusion's Flax autoencoder as two decode programs like our own, where it can be imported.

Its modules are called chunk by chunk with their own cache. That cache has three shapes (none, one
frame, two frames) and a marker for "no frame yet"; here it always has two frames, zeros where
there was none, which its causal convolutions pad with anyway: so two programs are enough.

Its attention is mended (`FrameAttention`), and bytes are made by our rule: maxdiffusion's own
pipeline cuts fractions off, diffusers rounds.
"""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wan_tpu.errors import GeometryError, MissingPackageError
from wan_tpu.sharding.rules import picture
from wan_tpu.stage import Stage, abstract
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.stages import AbstractParams, chunk_stages
from wan_tpu.vae.streaming import (
    Cache,
    IsFinite,
    Latents,
    Params,
    Pictures,
    to_uint8,
)

MODULE = "maxdiffusion.models.wan.autoencoder_kl_wan"

INSTALL = (
    "the VAE maxdiffusion needs the package maxdiffusion, which is on no package index: with "
    "Python 3.12 run pip install git+https://github.com/AI-Hypercomputer/maxdiffusion, or clone "
    "it, put its src folder on PYTHONPATH and pip install chex; the VAE flax needs neither"
)

_AXES = ("redundant", "vae_spatial")
"""The mesh axes that maxdiffusion's modules name; the second splits the width."""


class FrameAttention(nnx.Module):
    """maxdiffusion's attention block over the positions of a frame.

    The block itself (seen at commit 7cfb880) hands `jax.nn.dot_product_attention` arrays of
    `[frames, 1, positions, channels]`; that function reads positions as heads, so each position
    attends to itself alone, and pictures differ from diffusers'.
    """

    def __init__(self, block: Any):
        self.block = block

    def __call__(
        self,
        x: Float[Array, "batch frames height width channels"],
        feat_cache: Any = None,
        feat_idx: int = 0,
    ) -> tuple[Float[Array, "batch frames height width channels"], Any, int]:
        """`[batch, frames, height, width, channels]`; the cache passes by."""
        batch, frames, height, width, channels = x.shape
        y = self.block.norm(x.reshape(batch * frames, height, width, channels))
        qkv = self.block.to_qkv(y).reshape(batch * frames, height * width, 1, 3 * channels)
        y = jax.nn.dot_product_attention(*jnp.split(qkv, 3, axis=-1))
        y = self.block.proj(y.reshape(batch * frames, height, width, channels))
        return x + y.reshape(x.shape), feat_cache, feat_idx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaxdiffusionVae:
    """maxdiffusion's decoder on a mesh: pure functions of its parameters.

    Attributes:
        config: sizes of the model.
        mesh: one row of all devices, from `row_of`; the width is split over it.
        dtype: of activations; parameters come in it.
    """

    config: VaeConfig
    mesh: Mesh
    dtype: DTypeLike

    def __post_init__(self) -> None:
        self._skeleton()  # now, not when a stage traces: under a mesh flax reads axis names here

    def decode_first(self, params: Params, latents: Latents) -> tuple[Pictures, IsFinite, Cache]:
        """See `StreamingVae.decode_first`."""
        frames, is_finite, cache = self._decode_chunk(params, latents, None)
        # The next chunk's cache is what this one's should look like.
        *_, full = jax.eval_shape(self._decode_chunk, params, latents, cache)
        marker = _import_maxdiffusion().RepSentinel

        def padded(x: Any, like: jax.ShapeDtypeStruct | None) -> jax.Array | None:
            if like is None:
                return None
            if isinstance(x, marker):
                return jnp.zeros(like.shape, like.dtype)
            missing = like.shape[1] - x.shape[1]
            return jnp.pad(x, [(0, 0), (missing, 0), *[(0, 0)] * 3])

        return frames, is_finite, tuple(map(padded, cache, full))

    def decode_next(
        self, params: Params, latents: Latents, cache: Cache
    ) -> tuple[Pictures, IsFinite, Cache]:
        """See `StreamingVae.decode_next`."""
        return self._decode_chunk(params, latents, cache)

    def decode_stages(
        self, latent_height: int, latent_width: int, params: AbstractParams
    ) -> tuple[Stage, Stage]:
        """The two decode programs as values, as `streaming.make_decode_stages` makes them.

        Raises:
            GeometryError: the width does not divide by the devices.
        """
        ways, factor = self.mesh.devices.size, self.config.spatial_compression
        if latent_width % ways:
            raise GeometryError(
                f"the VAE maxdiffusion splits the width over all {ways} devices: it must be a "
                f"multiple of {ways * factor}, got {latent_width * factor}; the VAE flax takes any"
            )
        split = NamedSharding(self.mesh, picture(5, width_axes=(_AXES[1],)))
        shape = (1, 1, latent_height, latent_width, self.config.z_dim)
        latents = abstract(shape, jnp.float32, split)
        cache = jax.tree.map(
            lambda x: abstract(x.shape, x.dtype, split),
            jax.eval_shape(self.decode_first, params, latents)[-1],
        )
        return chunk_stages(
            "decode",
            self.decode_first,
            self.decode_next,
            mesh=self.mesh,
            params=params,
            chunk_shapes=(shape, shape),
            chunk_sharding=split,
            cache=cache,
            cache_shardings=split,
            num_results=2,
            closes_over=("maxdiffusion", self.config, str(jnp.dtype(self.dtype))),
        )

    def tensor_names(self) -> dict[str, str]:
        """The checkpoint's name of every parameter, by its path in maxdiffusion's modules."""
        return {name: _torch_name(name) for name in self._skeleton()[1]}

    def _skeleton(self) -> tuple[Any, dict[str, tuple[Any, ...]]]:
        return _skeleton(self.config, self.mesh, jnp.dtype(self.dtype))

    def _decode_chunk(
        self, params: Params, latents: Latents, cache: Cache | None
    ) -> tuple[Pictures, IsFinite, Any]:
        graph, paths = self._skeleton()
        flat = [(path, nnx.Param(params[name])) for name, path in paths.items()]
        parts = nnx.merge(graph, nnx.from_flat_state(flat))
        attentions = parts.decoder.mid_block.attentions
        for index, block in enumerate(attentions):
            attentions[index] = FrameAttention(block)
        if cache is None:
            cache = _import_maxdiffusion().AutoencoderKLWanCache(parts)._feat_map
        x = parts.post_quant_conv(self.config.denormalise(latents).astype(self.dtype))
        frames, cache, _ = parts.decoder(x, cache, 0)
        return to_uint8(frames[0]), jnp.isfinite(frames).all(), cache


def row_of(mesh: Mesh) -> Mesh:
    """The same devices under the axes that maxdiffusion's modules name."""
    return Mesh(mesh.devices.reshape(1, -1), _AXES)


def convert(tensor: Float[np.ndarray, "..."], dtype: DTypeLike) -> Float[np.ndarray, "..."]:
    """torch's [out, in, *window] to [*window, in, out]; a norm's dimensions of one dropped."""
    if set(tensor.shape[1:]) <= {1}:
        return tensor.reshape(-1).astype(dtype)
    return np.moveaxis(tensor, (0, 1), (-1, -2)).astype(dtype)


@functools.cache
def _import_maxdiffusion() -> Any:
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise MissingPackageError(f"{INSTALL} ({error})") from None


@functools.cache
def _skeleton(
    config: VaeConfig, mesh: Mesh, dtype: DTypeLike
) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """The decoder's modules without parameters, and each parameter's path by its name."""
    make = functools.partial(
        _import_maxdiffusion().AutoencoderKLWan,
        base_dim=config.decoder_base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temperal_downsample),
        mesh=mesh,
        dtype=dtype,
        weights_dtype=dtype,
    )
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    del model.quant_conv
    model.encoder = nnx.Dict()  # stays, empty, because the cache counts its convolutions
    graph, state = nnx.split(model, nnx.Param)
    return graph, {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}


def _torch_name(name: str) -> str:
    """diffusers' name of a parameter of maxdiffusion's decoder.

    There a causal convolution holds an inner `conv`, and a resampling's convolution is the second
    of a sequence.
    """
    name = name.replace(".resample.layers.1.", ".resample.1.").replace(".conv.", ".")
    return name.replace(".kernel", ".weight")
