"""Decodes and encodes chunk by chunk, split over a mesh: pure functions and their stages.

Two programs decode any number of frames, and two encode them. The first latent frame becomes one
video frame and starts the cache, every later one becomes four (`temporal_compression`) and passes
the cache on; encoding takes one frame and then four at a time. The cache is the past of every
causal convolution, so memory does not grow with the video.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, PyTree, UInt8

from wan_tpu.errors import GeometryError
from wan_tpu.sharding.mesh import platform_of
from wan_tpu.sharding.rules import WHOLE
from wan_tpu.stage import Stage, abstract
from wan_tpu.vae.autoencoder import Decoder, Encoder, with_params
from wan_tpu.vae.config import FRAMES_PER_CHUNK, VaeConfig
from wan_tpu.vae.convolution import convolution_for
from wan_tpu.vae.layers import Past
from wan_tpu.vae.spatial import SpatialSplit, spatial_split
from wan_tpu.vae.stages import AbstractParams, chunk_stages
from wan_tpu.vae.weights import DECODER, ENCODER, abstract_params, of_part

Params = Mapping[str, jax.Array]
"""Parameters by name, as `weights.vae_state_from_tensors` gives them."""

Cache = PyTree[Float[Array, "..."]]
"""A tree of `[..., frames, height, width, channels]`, split as the picture is."""

Specs = PyTree[PartitionSpec]

AbstractCache = PyTree[jax.ShapeDtypeStruct]

Latents = Float[Array, "1 latent_frames latent_height latent_width z_dim"]
Frames = Float[Array, "1 frames height width 3"]
Moment = Float32[Array, "1 latent_frames latent_height latent_width z_dim"]
Pictures = UInt8[Array, "frames height width 3"]
IsFinite = Bool[Array, ""]

CODERS = {DECODER: Decoder, ENCODER: Encoder}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamingVae:
    """The autoencoder on a mesh: pure functions of its parameters.

    Attributes:
        config: sizes of the model.
        mesh: the picture is split over all of it that fits, whatever the layout.
        dtype: of activations; parameters come in it.
        convolution: one of `convolution.CONVOLUTIONS`; the platform's own when not given.
    """

    config: VaeConfig
    mesh: Mesh
    dtype: DTypeLike
    convolution: str | None = None

    def decode_first(self, params: Params, latents: Latents) -> tuple[Pictures, IsFinite, Cache]:
        """Decodes the first latent frame.

        Args:
            params: at least those of the decoder.
            latents: `[1, 1, latent_height, latent_width, z_dim]`, float32, normalised.

        Returns:
            `[1, height, width, 3]` uint8; whether all numbers were finite before they became
            bytes; the cache for the next chunk.
        """
        return self._decode_chunk(params, latents, None)

    def decode_next(
        self, params: Params, latents: Latents, cache: Cache
    ) -> tuple[Pictures, IsFinite, Cache]:
        """Decodes a later latent frame, likewise: `temporal_compression` frames."""
        return self._decode_chunk(params, latents, cache)

    def decode(self, params: Params, latents: Latents) -> Float32[Array, "1 frames height width 3"]:
        """Decodes a whole video in one pass without a cache: memory grows with its length.

        Args:
            params: at least those of the decoder.
            latents: `[1, latent_frames, latent_height, latent_width, z_dim]`, normalised.

        Returns:
            `[1, frames, height, width, 3]`, in [-1, 1], float32.
        """
        split = self._split(*latents.shape[2:4])

        def body(params: Params, latents: Latents) -> Float32[Array, "1 frames height width 3"]:
            decoder = with_params(Decoder, self.config, split, params)
            frames, _ = decoder(self.config.denormalise(latents[0]).astype(self.dtype), None)
            return jnp.clip(frames.astype(jnp.float32), -1, 1)[None]

        decode = self._per_device(split, body, out_specs=split.spec(5))
        return decode(of_part(params, DECODER), latents)

    def encode_first(
        self, params: Params, frames: Frames
    ) -> tuple[Moment, Moment, IsFinite, Cache]:
        """Encodes the first frame.

        Args:
            params: at least those of the encoder.
            frames: `[1, 1, height, width, 3]`, float32 in [-1, 1].

        Returns:
            mean and log variance, each `[1, latent frames, latent height, latent width, z_dim]`
            float32, not normalised, the log variance within [-30, 20] as diffusers keeps it;
            whether all numbers were finite; the cache for the next chunk.
        """
        return self._encode_chunk(params, frames, None)

    def encode_next(
        self, params: Params, frames: Frames, cache: Cache
    ) -> tuple[Moment, Moment, IsFinite, Cache]:
        """Encodes the next `FRAMES_PER_CHUNK` frames, likewise."""
        return self._encode_chunk(params, frames, cache)

    def encode(self, params: Params, video: Frames) -> tuple[Moment, Moment]:
        """Encodes a whole video in one pass without a cache: memory grows with its length.

        Args:
            params: at least those of the encoder.
            video: `[1, frames, height, width, 3]` in [-1, 1], frames 4n + 1, height and width
                multiples of `spatial_compression`.

        Returns:
            mean and log variance of all latent frames, as of `encode_first`.

        Raises:
            GeometryError: another number of frames, or a size that does not divide.
        """
        split = self._split(*self._latent_size(*video.shape[1:4]))

        def body(params: Params, video: Frames) -> Moment:
            encoder = with_params(Encoder, self.config, split, params)
            moments, _ = encoder(video[0].astype(self.dtype), None)
            return moments[None].astype(jnp.float32)

        encode = self._per_device(split, body, out_specs=split.spec(5))
        return _mean_and_log_variance(encode(of_part(params, ENCODER), video))

    def decode_stages(
        self, latent_height: int, latent_width: int, params: AbstractParams
    ) -> tuple[Stage, Stage]:
        """The two decode programs as values. See `make_decode_stages`."""
        shape = (1, 1, latent_height, latent_width, self.config.z_dim)
        split = self._split(latent_height, latent_width)
        cache = self._abstract_cache(DECODER, shape, split)
        return chunk_stages(
            "decode",
            self.decode_first,
            self.decode_next,
            mesh=self.mesh,
            params=params,
            chunk_shapes=(shape, shape),
            chunk_sharding=NamedSharding(self.mesh, split.spec(5)),
            cache=cache,
            cache_shardings=jax.tree.map(lambda x: x.sharding, cache),
            num_results=2,
            closes_over=(self.config, str(jnp.dtype(self.dtype))),
        )

    def encode_stages(self, height: int, width: int, params: AbstractParams) -> tuple[Stage, Stage]:
        """The programs for the first frame and for every later four.

        Args:
            height: of the pictures, a multiple of `spatial_compression`.
            width: likewise.
            params: what stands for the parameters, at least the encoder's.

        Returns:
            stages of `(params, frames)` and `(params, frames, cache)`, the cache donated; frames
            `[1, 1 or 4, height, width, 3]` float32; results as of `encode_first`, whole on every
            device.

        Raises:
            GeometryError: the size does not divide.
        """
        split = self._split(*self._latent_size(1, height, width))
        first, following = ((1, frames, height, width, 3) for frames in (1, FRAMES_PER_CHUNK))
        cache = self._abstract_cache(ENCODER, first, split)
        return chunk_stages(
            "encode",
            self.encode_first,
            self.encode_next,
            mesh=self.mesh,
            params=params,
            chunk_shapes=(first, following),
            chunk_sharding=NamedSharding(self.mesh, split.spec(5)),
            cache=cache,
            cache_shardings=jax.tree.map(lambda x: x.sharding, cache),
            num_results=3,
            closes_over=(self.config, str(jnp.dtype(self.dtype))),
        )

    def _decode_chunk(
        self, params: Params, latents: Latents, cache: Cache | None
    ) -> tuple[Pictures, IsFinite, Cache]:
        split = self._split(*latents.shape[2:4])

        def body(
            params: Params, latents: Latents, past: Past
        ) -> tuple[Pictures, Bool[Array, "1 1 1"], Past]:
            decoder = with_params(Decoder, self.config, split, params)
            latents = self.config.denormalise(latents[0]).astype(self.dtype)
            frames, past = decoder(latents, past)
            # Bytes hide NaN: it becomes black.
            return to_uint8(frames), _is_finite(frames), past

        decode = self._per_chunk(DECODER, split, body, latents, cache, split.spec(4))
        frames, is_finite, cache = decode(of_part(params, DECODER), latents, cache)
        return frames, is_finite.all(), cache

    def _encode_chunk(
        self, params: Params, frames: Frames, cache: Cache | None
    ) -> tuple[Moment, Moment, IsFinite, Cache]:
        split = self._split(*self._latent_size(1, *frames.shape[2:4]))

        def body(
            params: Params, frames: Frames, past: Past
        ) -> tuple[Moment, Bool[Array, "1 1 1"], Past]:
            encoder = with_params(Encoder, self.config, split, params)
            moments, past = encoder(frames[0].astype(self.dtype), past)
            return moments[None].astype(jnp.float32), _is_finite(moments), past

        encode = self._per_chunk(ENCODER, split, body, frames, cache, split.spec(5))
        moments, is_finite, cache = encode(of_part(params, ENCODER), frames, cache)
        return *_mean_and_log_variance(moments), is_finite.all(), cache

    def _per_chunk(
        self,
        part: str,
        split: SpatialSplit,
        body: Callable[..., Any],
        chunk: Float[Array, "1 _ _ _ _"],
        cache: Cache | None,
        out_spec: PartitionSpec,
    ) -> Callable[..., Any]:
        """`body(params, chunk, cache)` per device; gives a result, finite or not, and the cache."""
        like = self._cache_shapes(part, chunk.shape) if cache is None else cache
        specs = jax.tree.map(lambda x: split.spec(x.ndim), like)
        return self._per_device(
            split,
            body,
            in_specs=(None if cache is None else specs,),
            out_specs=(out_spec, split.spec(3), specs),
        )

    def _per_device(
        self,
        split: SpatialSplit,
        body: Callable[..., Any],
        *,
        out_specs: Specs,
        in_specs: tuple[Specs, ...] = (),
    ) -> Callable[..., Any]:
        """`body(params, picture, ...)` on each device's part of the picture."""
        return jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=(WHOLE, split.spec(5), *in_specs),
            out_specs=out_specs,
            check_vma=False,  # axes that cut nothing repeat the work
        )

    def _split(self, latent_height: int, latent_width: int) -> SpatialSplit:
        convolution = self.convolution or convolution_for(platform_of(self.mesh))
        return spatial_split(self.mesh, latent_height, latent_width, convolution=convolution)

    def _latent_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        factor = self.config.spatial_compression
        if (frames - 1) % FRAMES_PER_CHUNK or height % factor or width % factor:
            raise GeometryError(
                f"a video to encode must have {FRAMES_PER_CHUNK}n + 1 frames and a height and "
                f"width that are multiples of {factor}, got {frames} frames of {width}x{height}"
            )
        return height // factor, width // factor

    def _abstract_cache(
        self, part: str, chunk: tuple[int, ...], split: SpatialSplit
    ) -> AbstractCache:
        """The stage argument that stands for the cache after a first chunk of this shape."""
        return jax.tree.map(
            lambda x: abstract(x.shape, x.dtype, NamedSharding(self.mesh, split.spec(x.ndim))),
            self._cache_shapes(part, chunk),
        )

    def _cache_shapes(self, part: str, chunk: tuple[int, ...]) -> AbstractCache:
        """Shapes of the whole cache after a first chunk, all devices' parts together."""
        params = abstract_params(self.config, self.dtype, parts=(part,))

        def past(params: Params, chunk: Float[Array, "frames height width channels"]) -> Past:
            coder = with_params(CODERS[part], self.config, SpatialSplit(), of_part(params, part))
            return coder(chunk, None)[1]

        return jax.eval_shape(past, params, jax.ShapeDtypeStruct(chunk[1:], self.dtype))


def make_decode_stages(
    config: VaeConfig,
    mesh: Mesh,
    latent_height: int,
    latent_width: int,
    dtype: DTypeLike,
    params_abstract: AbstractParams,
) -> tuple[Stage, Stage]:
    """The programs for the first and for every later latent frame.

    Args:
        config: sizes of the model.
        mesh: the picture is split over all of it that fits.
        latent_height: rows of the latents.
        latent_width: columns of the latents.
        dtype: of activations and cache.
        params_abstract: what stands for the parameters, at least the decoder's.

    Returns:
        stages of `(params, latents)` and `(params, latents, cache)`, the cache donated; latents
        `[1, 1, latent_height, latent_width, z_dim]` float32; results are
        `[frames, height, width, 3]` uint8 and whether they were finite, whole on every device, and
        the cache.
    """
    vae = StreamingVae(config=config, mesh=mesh, dtype=dtype)
    return vae.decode_stages(latent_height, latent_width, params_abstract)


def to_uint8(frames: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to bytes as diffusers' `VaeImageProcessor` does: clipped, rounded half to even."""
    scaled = jnp.clip(frames.astype(jnp.float32) * 0.5 + 0.5, 0, 1) * 255
    return jnp.round(scaled).astype(jnp.uint8)


def _is_finite(x: Float[Array, "..."]) -> Bool[Array, "1 1 1"]:
    """Whether a device's part of a picture is finite, `[1, 1, 1]`: one entry per part."""
    return jnp.isfinite(x).all()[None, None, None]


def _mean_and_log_variance(
    moments: Float32[Array, "1 latent_frames latent_height latent_width moments"],
) -> tuple[Moment, Moment]:
    """`[..., 2 * z_dim]` to two of `[..., z_dim]`; the second as diffusers keeps it."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30, 20)
