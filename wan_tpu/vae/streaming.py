"""Decodes and encodes chunk by chunk, split over a mesh: pure functions and their stages.

Two programs decode any number of frames. The first latent frame becomes one video frame and starts
the cache, every later one becomes four (`temporal_compression`) and passes the cache on. The cache
is the past of every causal convolution, so memory does not grow with the video.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wan_tpu.errors import GeometryError
from wan_tpu.sharding.mesh import platform_of
from wan_tpu.stage import Stage, abstract
from wan_tpu.vae.autoencoder import Decoder, Encoder, Past
from wan_tpu.vae.config import FRAMES_PER_CHUNK, VaeConfig
from wan_tpu.vae.convolution import convolution_for
from wan_tpu.vae.spatial import SpatialSplit, spatial_split
from wan_tpu.vae.weights import DECODER, ENCODER, vae_parameters

Params = Mapping[str, jax.Array]
"""Parameters by name, as `weights.vae_state_from_tensors` gives them."""

Cache = Any
"""A pytree of `[..., frames, height, width, channels]`, split as the picture is."""

TPU_COMPILER_OPTIONS = {"xla_tpu_scoped_vmem_limit_kib": "8192"}
"""XLA makes a convolution's window as large as this memory allows and writes it out instruction by
instruction: by default the 720p chunk takes minutes to compile (docs/decisions/0002)."""


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
    dtype: Any
    convolution: str | None = None

    def decode_first(
        self, params: Params, latents: jax.Array
    ) -> tuple[jax.Array, jax.Array, Cache]:
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
        self, params: Params, latents: jax.Array, cache: Cache
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """Decodes a later latent frame, likewise: `temporal_compression` frames."""
        return self._decode_chunk(params, latents, cache)

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """Decodes a whole video in one pass without a cache: memory grows with its length.

        Args:
            params: at least those of the decoder.
            latents: `[1, latent_frames, latent_height, latent_width, z_dim]`, normalised.

        Returns:
            `[1, frames, height, width, 3]`, in [-1, 1], float32.
        """
        split = self._split(*latents.shape[2:4])

        def body(params: Params, latents: jax.Array) -> jax.Array:
            frames, _ = self._decoder(params, split)(
                denormalised(self.config, latents[0]).astype(self.dtype), None
            )
            return jnp.clip(frames.astype(jnp.float32), -1, 1)[None]

        return self._per_device(split, body, out_specs=split.spec(5))(
            _part(params, DECODER), latents
        )

    def encode(self, params: Params, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of a video's latents, four frames at a time after the first.

        Args:
            params: at least those of the encoder.
            video: `[1, frames, height, width, 3]` in [-1, 1], frames 4n + 1, height and width
                multiples of `spatial_compression`.

        Returns:
            mean and log variance, each `[1, latent_frames, latent_height, latent_width, z_dim]`
            float32, not normalised; the log variance within [-30, 20], as diffusers keeps it.

        Raises:
            GeometryError: another number of frames, or a size that does not divide.
        """
        height, width = self._latent_size(video)
        split = self._split(height, width)

        def body(params: Params, video: jax.Array) -> jax.Array:
            encoder = self._encoder(params, split)
            video = video[0].astype(self.dtype)
            first, past = encoder(video[:1], None)
            chunks = video[1:].reshape(-1, FRAMES_PER_CHUNK, *video.shape[1:])

            def chunk(past: Past, frames: jax.Array) -> tuple[Past, jax.Array]:
                moments, past = self._encoder(params, split)(frames, past)
                return past, moments

            _, rest = jax.lax.scan(chunk, past, chunks)
            rest = rest.reshape(-1, *first.shape[1:])
            return jnp.concatenate([first, rest])[None].astype(jnp.float32)

        moments = self._per_device(split, body, out_specs=split.spec(5))(
            _part(params, ENCODER), video
        )
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode_stages(
        self, latent_height: int, latent_width: int, params_abstract: Any
    ) -> tuple[Stage, Stage]:
        """The two decode programs as values. See `make_decode_stages`."""
        split = self._split(latent_height, latent_width)
        shape = (1, 1, latent_height, latent_width, self.config.z_dim)
        latents = abstract(shape, jnp.float32, NamedSharding(self.mesh, split.spec(5)))
        cache = jax.tree.map(
            lambda x: abstract(x.shape, x.dtype, NamedSharding(self.mesh, split.spec(x.ndim))),
            self._cache_shapes(latent_height, latent_width),
        )
        # Every process of a slice may read the frames, so every device gets all of them.
        whole = NamedSharding(self.mesh, PartitionSpec())
        out_shardings = (whole, whole, jax.tree.map(lambda x: x.sharding, cache))
        make = functools.partial(
            Stage,
            mesh=self.mesh,
            size=(latent_height, latent_width),
            closes_over=(self.config, str(jnp.dtype(self.dtype))),
            out_shardings=out_shardings,
            tpu_compiler_options=TPU_COMPILER_OPTIONS,
        )
        return (
            make(
                name="decode-first",
                function=self.decode_first,
                arguments=(params_abstract, latents),
            ),
            make(
                name="decode-next",
                function=self.decode_next,
                arguments=(params_abstract, latents, cache),
                donate=(2,),
            ),
        )

    def _decode_chunk(
        self, params: Params, latents: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, jax.Array, Cache]:
        height, width = latents.shape[2:4]
        split = self._split(height, width)
        specs = jax.tree.map(lambda x: split.spec(x.ndim), self._cache_shapes(height, width))

        def body(
            params: Params, latents: jax.Array, past: Past
        ) -> tuple[jax.Array, jax.Array, Past]:
            frames, past = self._decoder(params, split)(
                denormalised(self.config, latents[0]).astype(self.dtype), past
            )
            # Bytes hide NaN: it becomes black.
            is_finite = jnp.isfinite(frames).all()[None, None, None]  # one per part of the picture
            return to_uint8(frames), is_finite, past

        decode = self._per_device(
            split,
            body,
            in_specs=(None if cache is None else specs,),
            out_specs=(split.spec(4), split.spec(3), specs),
        )
        frames, is_finite, cache = decode(_part(params, DECODER), latents, cache)
        return frames, is_finite.all(), cache

    def _per_device(
        self, split: SpatialSplit, body: Callable, *, out_specs: Any, in_specs: tuple = ()
    ) -> Callable:
        """`body(params, picture, ...)` on each device's part of the picture."""
        return jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), split.spec(5), *in_specs),
            out_specs=out_specs,
            check_vma=False,  # axes that cut nothing repeat the work
        )

    def _split(self, latent_height: int, latent_width: int) -> SpatialSplit:
        convolution = self.convolution or convolution_for(platform_of(self.mesh))
        return spatial_split(self.mesh, latent_height, latent_width, convolution=convolution)

    def _latent_size(self, video: jax.Array) -> tuple[int, int]:
        _, frames, height, width, _ = video.shape
        factor = self.config.spatial_compression
        if (frames - 1) % FRAMES_PER_CHUNK or height % factor or width % factor:
            raise GeometryError(
                f"a video to encode must have {FRAMES_PER_CHUNK}n + 1 frames and a height and "
                f"width that are multiples of {factor}, got {frames} frames of {width}x{height}"
            )
        return height // factor, width // factor

    def _decoder(self, params: Params, split: SpatialSplit) -> Decoder:
        return with_params(Decoder, self.config, split, params)

    def _encoder(self, params: Params, split: SpatialSplit) -> Encoder:
        return with_params(Encoder, self.config, split, params)

    def _cache_shapes(self, latent_height: int, latent_width: int) -> Cache:
        """Shapes of the whole cache, all devices' parts together."""
        params = abstract_params(self.config, self.dtype, parts=(DECODER,))
        shape = (1, latent_height, latent_width, self.config.z_dim)
        latents = jax.ShapeDtypeStruct(shape, self.dtype)

        def past(params: Params, latents: jax.Array) -> Past:
            return self._decoder(_part(params, DECODER), SpatialSplit())(latents, None)[1]

        return jax.eval_shape(past, params, latents)


def make_decode_stages(
    config: VaeConfig,
    mesh: Mesh,
    latent_height: int,
    latent_width: int,
    dtype: Any,
    params_abstract: Any,
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


def abstract_params(
    config: VaeConfig,
    dtype: Any,
    *,
    mesh: Mesh | None = None,
    parts: tuple[str, ...] = (DECODER, ENCODER),
) -> dict[str, jax.ShapeDtypeStruct]:
    """What stands for the parameters: by name, whole on every device of `mesh` when given."""
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return {
        parameter.name: jax.ShapeDtypeStruct(parameter.shape, dtype, sharding=sharding)
        for parameter in vae_parameters(config)
        if parameter.name.startswith(parts)
    }


def denormalised(config: VaeConfig, latents: jax.Array) -> jax.Array:
    """`[..., z_dim]` as the transformer works on them to what the decoder takes, float32."""
    mean = jnp.asarray(config.latents_mean, jnp.float32)
    std = jnp.asarray(config.latents_std, jnp.float32)
    return latents.astype(jnp.float32) * std + mean


def to_uint8(frames: jax.Array) -> jax.Array:
    """[-1, 1] to bytes as diffusers' `VaeImageProcessor` does: clipped, rounded half to even."""
    scaled = jnp.clip(frames.astype(jnp.float32) * 0.5 + 0.5, 0, 1) * 255
    return jnp.round(scaled).astype(jnp.uint8)


def _part(params: Params, prefix: str) -> Params:
    """The parameters of one part, named within it."""
    return {
        name.removeprefix(prefix): value
        for name, value in params.items()
        if name.startswith(prefix)
    }


def with_params(make: Callable, config: VaeConfig, split: SpatialSplit, params: Params) -> Any:
    """`Encoder` or `Decoder` with parameters, which are named within it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(config, split=split, rngs=nnx.Rngs(0))))
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    assert paths.keys() == params.keys(), paths.keys() ^ params.keys()
    flat = [(path, nnx.Param(params[name])) for name, path in paths.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))
