"""Whole autoencoders behind one interface: our own in Flax, and maxdiffusion's.

A back end is loaded once for a mesh and hands out finished frames, a chunk at a time, while the
next chunk is already being decoded. Both have two programs for any number of frames, and one for a
single frame. Our own encodes the same way, where its encoder was loaded.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float32, UInt8

from wan_tpu.checkpoints.source import TensorSource, check_tensors
from wan_tpu.errors import BadNumbersError, InputError, MissingPackageError, UnknownNameError
from wan_tpu.sharding.mesh import named, place
from wan_tpu.stage import Stage, abstract_like
from wan_tpu.vae import maxdiffusion
from wan_tpu.vae.config import FRAMES_PER_CHUNK, VaeConfig
from wan_tpu.vae.stages import AbstractParams, Programs, results_of_chunks
from wan_tpu.vae.streaming import StreamingVae
from wan_tpu.vae.weights import DECODER, ENCODER, expected_tensors, vae_parameters

Latents = Float32[Array | np.ndarray, "1 latent_frames latent_height latent_width z_dim"]
Video = Float32[np.ndarray, "1 frames height width 3"]
Chunk = Float32[np.ndarray, "1 _ _ _ _"]
Pictures = UInt8[Array, "n height width 3"]


class Moments(NamedTuple):
    """What a video's latents are drawn from, not normalised.

    Attributes:
        mean: `[1, latent frames, latent height, latent width, z_dim]`, float32.
        log_variance: likewise.
    """

    mean: Float32[np.ndarray, "1 latent_frames latent_height latent_width z_dim"]
    log_variance: Float32[np.ndarray, "1 latent_frames latent_height latent_width z_dim"]


@runtime_checkable
class VaeBackend(Protocol):
    """What the pipeline needs of an autoencoder.

    Attributes:
        name: a key of `BACKENDS`.
        encodes: whether its encoder was loaded.
    """

    name: str
    encodes: bool

    def stages(
        self, latent_height: int, latent_width: int, latent_frames: int
    ) -> tuple[Stage, ...]:
        """The programs that decode latents of this size: one for a single frame, else two.

        Raises:
            GeometryError: the back end cannot decode this size on this mesh.
        """
        ...

    def frames(self, latents: Latents, programs: Programs) -> Iterator[Pictures]:
        """Decodes a video.

        Args:
            latents: `[1, latent frames, latent height, latent width, z_dim]`, float32, normalised,
                whole on every process.
            programs: the compiled `stages` of this size, in their order.

        Yields:
            `[n, height, width, 3]`, uint8, in order: one frame, then four at a time; on every
            device, while the next ones decode. Whoever wants them on the host copies them.

        Raises:
            BadNumbersError: instead of a chunk that was NaN or infinite before it became bytes.
        """
        ...

    def encode_stages(self, height: int, width: int, num_frames: int) -> tuple[Stage, ...]:
        """The programs that encode pictures of this size: one for a single frame, else two.

        The encoder must have been loaded.

        Raises:
            GeometryError: the size does not divide.
        """
        ...

    def moments(self, video: Video, programs: Programs) -> Moments:
        """Encodes a video.

        Args:
            video: `[1, frames, height, width, 3]`, float32 in [-1, 1], frames 4n + 1.
            programs: the compiled `encode_stages` of this size, in their order.

        Raises:
            BadNumbersError: NaN or infinite numbers.
        """
        ...


class LoadedPart(NamedTuple):
    """A decoder or an encoder with its parameters on the mesh.

    Attributes:
        params: by name.
        make_stages: of height, width and what stands for the parameters.
    """

    params: Mapping[str, jax.Array]
    make_stages: Callable[[int, int, AbstractParams], tuple[Stage, Stage]]


class _StreamingBackend:
    """A `VaeBackend` whose programs take chunks and a cache, as `chunk_stages` makes them.

    Their last result but the cache is whether all numbers they were made of are finite.
    """

    def __init__(self, name: str, parts: Mapping[str, LoadedPart]):
        """`parts` by `DECODER` and `ENCODER`: what was loaded of the two."""
        self.name = name
        self.encodes = ENCODER in parts
        self._parts = parts
        self._stages: dict[tuple[str, int, int], tuple[Stage, Stage]] = {}

    def stages(
        self, latent_height: int, latent_width: int, latent_frames: int
    ) -> tuple[Stage, ...]:
        """See `VaeBackend.stages`."""
        both = self._both_stages(DECODER, latent_height, latent_width)
        return both if latent_frames > 1 else both[:1]

    def encode_stages(self, height: int, width: int, num_frames: int) -> tuple[Stage, ...]:
        """See `VaeBackend.encode_stages`."""
        both = self._both_stages(ENCODER, height, width)
        return both if num_frames > 1 else both[:1]

    def frames(self, latents: Latents, programs: Programs) -> Iterator[Pictures]:
        """See `VaeBackend.frames`."""
        # Cut on the host: cutting a device array compiles a program for each position.
        chunks = np.split(np.asarray(latents), latents.shape[1], axis=1)
        done = 0
        for frames, is_finite in self._results(DECODER, programs, chunks):
            if not np.asarray(is_finite):
                raise BadNumbersError(f"decode, from frame {done + 1} on")
            yield frames
            done += len(frames)

    def moments(self, video: Video, programs: Programs) -> Moments:
        """See `VaeBackend.moments`."""
        starts = range(1, video.shape[1], FRAMES_PER_CHUNK)
        chunks = [video[:, :1], *(video[:, i : i + FRAMES_PER_CHUNK] for i in starts)]
        parts = []
        for mean, log_variance, is_finite in self._results(ENCODER, programs, chunks):
            if not np.asarray(is_finite):
                raise BadNumbersError(f"encode, chunk {len(parts) + 1} of {len(chunks)}")
            parts.append(Moments(np.asarray(mean), np.asarray(log_variance)))
        mean, log_variance = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return Moments(mean, log_variance)

    def _results(
        self, part: str, programs: Programs, chunks: list[Chunk]
    ) -> Iterator[tuple[Array, ...]]:
        first = self._both_stages(part, *chunks[0].shape[2:4])[0]
        params, sharding = self._parts[part].params, first.arguments[1].sharding
        return results_of_chunks(programs, params, chunks, sharding)

    def _both_stages(self, part: str, height: int, width: int) -> tuple[Stage, Stage]:
        key = (part, height, width)
        if key not in self._stages:  # finding the cache's shapes traces the model
            params, make_stages = self._parts[part]
            self._stages[key] = make_stages(height, width, abstract_like(params))
        return self._stages[key]


def _load_flax(
    config: VaeConfig, source: TensorSource, *, mesh: Mesh, dtype: DTypeLike, parts: Sequence[str]
) -> VaeBackend:
    """Our own autoencoder; every device holds its parameters whole."""
    check_tensors("VAE", expected_tensors(config), source)
    vae = StreamingVae(config=config, mesh=mesh, dtype=dtype)
    make_stages = {DECODER: vae.decode_stages, ENCODER: vae.encode_stages}

    def load(part: str) -> LoadedPart:
        params = {
            parameter.name: place(
                parameter.convert({name: source.read(name) for name in parameter.tensors}, dtype),
                named(mesh),
            )
            for parameter in vae_parameters(config)
            if parameter.name.startswith(part)
        }
        return LoadedPart(params, make_stages[part])

    return _StreamingBackend("flax", {part: load(part) for part in parts})


def _load_maxdiffusion(
    config: VaeConfig, source: TensorSource, *, mesh: Mesh, dtype: DTypeLike, parts: Sequence[str]
) -> VaeBackend:
    """maxdiffusion's decoder; every device holds its parameters whole."""
    if tuple(parts) != (DECODER,):
        raise InputError("the VAE maxdiffusion only decodes; the VAE flax encodes, too")
    if config.is_residual or config.patch_size > 1:
        raise InputError(
            "the VAE maxdiffusion decodes Wan 2.1's latents, not those of Wan 2.2's 5B model "
            f"(is_residual {config.is_residual}, patch_size {config.patch_size}); use the VAE flax"
        )
    if importlib.util.find_spec("maxdiffusion") is None:
        raise MissingPackageError(maxdiffusion.INSTALL)
    vae = maxdiffusion.MaxdiffusionVae(config=config, mesh=maxdiffusion.row_of(mesh), dtype=dtype)
    check_tensors("VAE", expected_tensors(config), source)
    params = {
        name: place(maxdiffusion.convert(source.read(tensor), dtype), named(vae.mesh))
        for name, tensor in vae.tensor_names().items()
    }
    return _StreamingBackend("maxdiffusion", {DECODER: LoadedPart(params, vae.decode_stages)})


BACKENDS: dict[str, Callable[..., VaeBackend]] = {
    "flax": _load_flax,
    "maxdiffusion": _load_maxdiffusion,
}
"""By name: what loads an autoencoder from a checkpoint's tensors onto a mesh."""


def load_vae(
    name: str,
    config: VaeConfig,
    source: TensorSource,
    *,
    mesh: Mesh,
    dtype: DTypeLike,
    parts: Sequence[str] = (DECODER,),
) -> VaeBackend:
    """Loads an autoencoder, or the half of it that is needed.

    Args:
        name: one of `BACKENDS`.
        config: sizes of the model.
        source: the checkpoint's tensors, by diffusers' names.
        mesh: the picture is split over all of it that fits.
        dtype: of weights and activations; latents and log variances are float32 whatever it is.
        parts: of `weights.DECODER` and `weights.ENCODER`.

    Raises:
        UnknownNameError: there is no such back end.
        InputError: it has no encoder, or not for this kind of autoencoder.
        MissingPackageError: its package is not installed.
        CheckpointError: the weights are not those of the model.
    """
    if name not in BACKENDS:
        raise UnknownNameError("VAE", name, tuple(BACKENDS))
    return BACKENDS[name](config, source, mesh=mesh, dtype=dtype, parts=parts)
