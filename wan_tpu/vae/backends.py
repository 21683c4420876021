"""Whole decoders behind one interface: our own Flax autoencoder, and maxdiffusion's.

A back end is loaded once for a mesh and hands out finished frames, a chunk at a time, while the
next chunk is already being decoded. Both have two programs, whatever the number of frames.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from wan_tpu.checkpoints.source import SafetensorsSource, check_tensors
from wan_tpu.errors import BadNumbersError, MissingPackageError, UnknownNameError
from wan_tpu.sharding.mesh import named, place
from wan_tpu.stage import Stage, abstract_like
from wan_tpu.vae import maxdiffusion
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import make_decode_stages
from wan_tpu.vae.weights import DECODER, expected_tensors, vae_parameters

Programs = Sequence[Callable[..., Any]]
"""Compiled stages."""


class VaeBackend(Protocol):
    """What the pipeline needs of a decoder."""

    name: str

    def stages(self, latent_height: int, latent_width: int) -> tuple[Stage, ...]:
        """The programs that decode latents of this size.

        Raises:
            GeometryError: the back end cannot decode this size on this mesh.
        """
        ...

    def frames(self, latents: jax.Array | np.ndarray, programs: Programs) -> Iterator[np.ndarray]:
        """Decodes a video.

        Args:
            latents: `[1, latent frames, latent height, latent width, z_dim]`, float32, normalised,
                whole on every process.
            programs: the compiled `stages` of this size, in their order.

        Yields:
            `[n, height, width, 3]`, uint8, in order: one frame, then four at a time.

        Raises:
            BadNumbersError: instead of a chunk that was NaN or infinite before it became bytes.
        """
        ...


class _StreamingBackend:
    """A `VaeBackend` of two programs: `(params, latents)`, and `(params, latents, cache)`.

    Both return the frames, whether all numbers they were made of are finite, and the cache.
    """

    def __init__(
        self,
        name: str,
        params: Mapping[str, jax.Array],
        make_stages: Callable[[int, int, Any], tuple[Stage, Stage]],
    ):
        """Arguments of `make_stages`: latent height, latent width, abstract parameters."""
        self.name = name
        self._params = params
        self._make_stages = make_stages
        self._stages: dict[tuple[int, int], tuple[Stage, Stage]] = {}

    def stages(self, latent_height: int, latent_width: int) -> tuple[Stage, Stage]:
        """See `VaeBackend.stages`."""
        size = (latent_height, latent_width)
        if size not in self._stages:  # finding the cache's shapes traces the model
            self._stages[size] = self._make_stages(*size, abstract_like(self._params))
        return self._stages[size]

    def frames(self, latents: jax.Array | np.ndarray, programs: Programs) -> Iterator[np.ndarray]:
        """See `VaeBackend.frames`; a chunk is fetched while the next one decodes."""
        first, following = programs
        sharding = self.stages(*latents.shape[2:4])[0].arguments[1].sharding
        # Cut on the host: cutting a device array compiles a program for each position.
        chunks = np.split(np.asarray(latents), latents.shape[1], axis=1)
        *decoded, cache = first(self._params, place(chunks[0], sharding))
        done = 0
        for chunk in chunks[1:]:
            *coming, cache = following(self._params, place(chunk, sharding), cache)
            yield (frames := _fetched(*decoded, number=done + 1))
            done += len(frames)
            decoded = coming
        yield _fetched(*decoded, number=done + 1)


def _fetched(frames: jax.Array, is_finite: jax.Array, *, number: int) -> np.ndarray:
    """A chunk on the host; `number` is that of its first frame."""
    if not np.asarray(is_finite):
        raise BadNumbersError(f"decode, from frame {number} on")
    return np.asarray(frames)


def _load_flax(config: VaeConfig, folder: Path, *, mesh: Mesh, dtype: Any) -> VaeBackend:
    """Our own decoder; every device holds its parameters whole."""
    source = _checked_source(config, folder)
    params = {
        parameter.name: place(
            parameter.convert({name: source.read(name) for name in parameter.tensors}, dtype),
            named(mesh),
        )
        for parameter in vae_parameters(config)
        if parameter.name.startswith(DECODER)
    }

    def make_stages(height: int, width: int, params_abstract: Any) -> tuple[Stage, Stage]:
        return make_decode_stages(config, mesh, height, width, dtype, params_abstract)

    return _StreamingBackend("flax", params, make_stages)


def _load_maxdiffusion(config: VaeConfig, folder: Path, *, mesh: Mesh, dtype: Any) -> VaeBackend:
    """maxdiffusion's decoder; every device holds its parameters whole."""
    if importlib.util.find_spec("maxdiffusion") is None:
        raise MissingPackageError(maxdiffusion.INSTALL)
    vae = maxdiffusion.MaxdiffusionVae(config=config, mesh=maxdiffusion.row_of(mesh), dtype=dtype)
    source = _checked_source(config, folder)
    params = {
        name: place(maxdiffusion.convert(source.read(tensor), dtype), named(vae.mesh))
        for name, tensor in vae.tensor_names().items()
    }
    return _StreamingBackend("maxdiffusion", params, vae.decode_stages)


BACKENDS: dict[str, Callable[..., VaeBackend]] = {
    "flax": _load_flax,
    "maxdiffusion": _load_maxdiffusion,
}
"""By name: what loads a decoder from a checkpoint's folder onto a mesh."""


def load_vae(name: str, config: VaeConfig, folder: Path, *, mesh: Mesh, dtype: Any) -> VaeBackend:
    """Loads a decoder.

    Args:
        name: one of `BACKENDS`.
        config: sizes of the model.
        folder: with the checkpoint's safetensors.
        mesh: the picture is split over all of it that fits.
        dtype: of weights and activations.

    Raises:
        UnknownNameError: there is no such back end.
        MissingPackageError: its package is not installed.
        CheckpointError: the weights are not those of the model.
    """
    if name not in BACKENDS:
        raise UnknownNameError("VAE", name, tuple(BACKENDS))
    return BACKENDS[name](config, folder, mesh=mesh, dtype=dtype)


def _checked_source(config: VaeConfig, folder: Path) -> SafetensorsSource:
    """The checkpoint, whose tensors are exactly the model's."""
    source = SafetensorsSource(folder, plain_name="diffusion_pytorch_model")
    check_tensors("VAE", expected_tensors(config), source)
    return source
