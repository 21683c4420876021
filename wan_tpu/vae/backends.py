"""Whole decoders behind one interface: our own Flax autoencoder, and maxdiffusion's.

A back end is loaded once for a mesh and hands out finished frames, a chunk at a time, while the
next chunk is already being decoded.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from wan_tpu.checkpoints.source import SafetensorsSource, check_tensors
from wan_tpu.errors import MissingPackageError, UnknownNameError
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import abstract_params, make_decode_stages
from wan_tpu.vae.weights import DECODER, expected_tensors, vae_parameters

Programs = Sequence[Callable[..., Any]]
"""Compiled stages."""


class VaeBackend(Protocol):
    """What the pipeline needs of a decoder."""

    name: str

    def stages(self, latent_height: int, latent_width: int) -> tuple[Stage, ...]:
        """The programs that decode latents of this size."""
        ...

    def frames(self, latents: jax.Array, programs: Programs) -> Iterator[np.ndarray]:
        """Decodes a video.

        Args:
            latents: `[1, latent frames, latent height, latent width, z_dim]`, float32, normalised.
            programs: the compiled `stages` of this size, in their order.

        Yields:
            `[n, height, width, 3]`, uint8, in order: one frame, then four at a time.
        """
        ...


class FlaxVae:
    """Our own streaming decoder: two programs for any number of frames."""

    name = "flax"

    def __init__(self, config: VaeConfig, folder: Path, *, mesh: Mesh, dtype: Any):
        """Reads the decoder's weights; every device holds them whole.

        Raises:
            CheckpointError: tensors are missing, unexpected or misshapen.
        """
        self._config, self._mesh, self._dtype = config, mesh, dtype
        source = SafetensorsSource(folder)
        check_tensors("VAE", expected_tensors(config), source)
        self._params = {}
        for parameter in vae_parameters(config):
            if parameter.name.startswith(DECODER):
                array = parameter.convert({n: source.read(n) for n in parameter.tensors}, dtype)
                self._params[parameter.name] = _place(array, mesh)

    def stages(self, latent_height: int, latent_width: int) -> tuple[Stage, Stage]:
        """See `VaeBackend.stages`."""
        params = abstract_params(self._config, self._dtype, mesh=self._mesh, parts=(DECODER,))
        return make_decode_stages(
            self._config, self._mesh, latent_height, latent_width, self._dtype, params
        )

    def frames(self, latents: jax.Array, programs: Programs) -> Iterator[np.ndarray]:
        """See `VaeBackend.frames`; a chunk is fetched while the next one decodes."""
        first, following = programs
        sharding = self.stages(latents.shape[2], latents.shape[3])[0].arguments[1].sharding
        decoded, cache = first(self._params, jax.device_put(latents[:, :1], sharding))
        for index in range(1, latents.shape[1]):
            chunk = jax.device_put(latents[:, index : index + 1], sharding)
            coming, cache = following(self._params, chunk, cache)
            yield np.asarray(decoded)
            decoded = coming
        yield np.asarray(decoded)


def _load_maxdiffusion(config: VaeConfig, folder: Path, *, mesh: Mesh, dtype: Any) -> VaeBackend:
    """maxdiffusion's decoder.

    Raises:
        MissingPackageError: the package is not importable.
    """
    if importlib.util.find_spec("maxdiffusion") is None:
        raise MissingPackageError(
            "the maxdiffusion VAE needs the package maxdiffusion, which is on no package index: clone "
            "AI-Hypercomputer/maxdiffusion from GitHub, `pip install chex` and put its src folder on "
            "PYTHONPATH (its own installation wants Python 3.12); or use --vae flax"
        )
    from wan_tpu.vae.maxdiffusion import MaxdiffusionVae

    return MaxdiffusionVae(config, folder, mesh=mesh, dtype=dtype)


BACKENDS: dict[str, Callable[..., VaeBackend]] = {
    "flax": FlaxVae,
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


def _place(array: np.ndarray, mesh: Mesh) -> jax.Array:
    return jax.make_array_from_callback(array.shape, named(mesh), lambda index: array[index])
