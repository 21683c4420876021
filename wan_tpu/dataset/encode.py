"""Clips and captions to what a training step takes: the pipeline's own encoders, without the rest.

Only the text encoder, the image encoder and the autoencoder's first half are loaded, and of these
only what is asked for. Every process encodes on its own devices.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, UInt8

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.weights import load_parts
from wan_tpu.errors import BadNumbersError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE, Conditioning
from wan_tpu.geometry import Geometry
from wan_tpu.image.preprocess import for_image_encoder
from wan_tpu.pipeline.conditions import way_of_pictures
from wan_tpu.pipeline.load import checked_parts, load_vae_of, place_model
from wan_tpu.pipeline.memory import reporting_memory
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.pictures import FIRST, LAST, Picture, to_floats
from wan_tpu.pipeline.programs import Programs
from wan_tpu.pipeline.progress import Watch
from wan_tpu.sharding.mesh import named, place
from wan_tpu.text.prompt import tokenize
from wan_tpu.text.tokenizer import Tokenizer, load_tokenizer
from wan_tpu.torch_bridge import Params
from wan_tpu.vae.backends import VaeBackend
from wan_tpu.vae.weights import ENCODER

logger = logging.getLogger(__name__)

Frames = UInt8[np.ndarray, "frames height width 3"]
Latents = Float[np.ndarray, "latent_frames latent_height latent_width channels"]

VAE_BACKEND = "flax"
"""The one that encodes, of `wan_tpu.pipeline.names.VAES`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedClip:
    """What is made of a clip's frames; float32.

    Attributes:
        latents: normalised mean, `[frames, height, width, channels]`.
        condition: in models that see pictures as channels: the given frames and grey, encoded
            likewise; else None.
        image: in models with an image encoder: tokens of the given frames, one frame's after the
            other's, `[tokens, width]`; else None.
    """

    latents: Latents
    condition: Latents | None = None
    image: Float[np.ndarray, "tokens width"] | None = None


class Encoders:
    """A model's encoders on devices of this process.

    Attributes:
        model: whose they are; its transformers are not loaded.
    """

    def __init__(
        self,
        model: VideoModel,
        tokenizer: Tokenizer,
        vae: VaeBackend | None,
        params: Mapping[str, Params],
    ):
        """What `load_encoders` read."""
        self.model = model
        self._tokenizer = tokenizer
        self._vae = vae
        self._params = params
        self._programs = Programs()

    def clip(
        self,
        frames: Frames,
        geometry: Geometry,
        inputs: frozenset[str] = frozenset(),
        watch: Watch | None = None,
    ) -> EncodedClip:
        """Encodes a clip, as a request for it with these pictures would have them encoded.

        Args:
            frames: `[frames, height, width, 3]`, in the sizes of `geometry`.
            geometry: of the clip.
            inputs: `image`, `last_image`: which frames the model is given, where it takes such as
                channels; empty in other models.
            watch: told of programs that compile.

        Raises:
            BadNumbersError: NaN or infinite numbers.
            OutOfMemoryError: the size does not fit.
        """
        watch = watch or Watch()
        sizes = geometry.num_frames, geometry.height, geometry.width, 3
        assert frames.shape == sizes, (frames.shape, sizes)
        what = f"encoding {geometry.width}x{geometry.height} with {geometry.num_frames} frames"
        with reporting_memory(what, self.model, geometry):
            latents = self._encode(to_floats(frames)[None], geometry, watch)
            way = way_of_pictures(self.model.description.kind, inputs)
            if way.in_steps is not Conditioning.CHANNELS:
                return EncodedClip(latents=latents)
            pictures = _pictures_of(frames, inputs)
            return EncodedClip(
                latents=latents,
                condition=self._encode(way.video(pictures, geometry), geometry, watch),
                image=self._image_tokens(pictures, watch),
            )

    def text(self, caption: str, watch: Watch | None = None) -> Float[np.ndarray, "tokens dim"]:
        """Embeddings of a caption's tokens, its end token last, float32.

        Args:
            caption: cleaned here; the empty one has its end token alone.
            watch: told of the program that compiles.

        Raises:
            BadNumbersError: NaN or infinite numbers.
        """
        ids, mask = tokenize(self._tokenizer, [caption])
        stage = self.model.text_stage(1)
        with reporting_memory("encoding captions", self.model):
            encode = self._programs.get(stage, watch or Watch())
            tokens = (place(x, named(self.model.mesh)) for x in (ids, mask))
            embeddings, is_finite = encode(self._params[TEXT_ENCODER], *tokens)
            if not np.asarray(is_finite):
                raise BadNumbersError("text, the caption's embeddings")
            return np.asarray(embeddings[0, : int(mask.sum())], np.float32)

    def _encode(self, video: np.ndarray, geometry: Geometry, watch: Watch) -> Latents:
        """Normalised latents of `[1, frames, height, width, 3]` in [-1, 1]."""
        assert self._vae is not None, "loaded for captions alone"
        sizes = geometry.height, geometry.width, geometry.num_frames
        programs = [self._programs.get(s, watch) for s in self._vae.encode_stages(*sizes)]
        mean = self._vae.moments(video, programs).mean
        return np.asarray(self.model.vae.normalise(mean), np.float32)[0]

    def _image_tokens(
        self, pictures: Mapping[str, Picture], watch: Watch
    ) -> Float[np.ndarray, "tokens width"] | None:
        if not self.model.description.kind.has_image_encoder:
            return None
        size = self.model.image_encoder.config.image_size
        wholes = [picture.whole for picture in pictures.values()]
        pixels = [for_image_encoder(whole, size) for whole in wholes if whole is not None]
        encode = self._programs.get(self.model.image_stage(len(pixels)), watch)
        placed = place(np.stack(pixels), named(self.model.mesh))
        tokens, is_finite = encode(self._params[IMAGE_ENCODER], placed)
        if not np.asarray(is_finite):
            raise BadNumbersError("image, the picture's tokens")
        return np.asarray(tokens[0], np.float32)


def _pictures_of(frames: Frames, inputs: frozenset[str]) -> dict[str, Picture]:
    """A clip's own first and last frame in the places of a request's pictures."""
    given = frames.shape[2], frames.shape[1]
    return {
        role: Picture(given=given, whole=frames[place], fitted=frames[place][None])
        for role, place in ((FIRST, 0), (LAST, -1))
        if role in inputs
    }


def encoders_of(description: ModelDescription) -> tuple[str, ...]:
    """The components that make samples: all but the transformers."""
    kind = description.kind
    return tuple(name for name in kind.components if name not in kind.experts)


def load_encoders(
    description: ModelDescription,
    components: Collection[str] | None = None,
    *,
    devices: Sequence[Any] | None = None,
    dtype: DTypeLike | None = None,
    vae_dtype: DTypeLike | None = None,
) -> Encoders:
    """Loads a model's encoders onto devices.

    Args:
        description: from `open_model`.
        components: of `encoders_of`, those that are needed; None for all.
        devices: those to use, all of this process when not given; pictures and weights are split
            over all of them.
        dtype: of weights and activations; bfloat16, on a CPU float32, when not given.
        vae_dtype: of the autoencoder, where it differs.

    Raises:
        UnknownNameError: there is no such dtype.
        CheckpointError: files are missing, damaged or not those of the model.
        OutOfMemoryError: the weights do not fit.
    """
    wanted = encoders_of(description) if components is None else tuple(components)
    model = place_model(
        description,
        devices=jax.local_devices() if devices is None else devices,
        dtype=dtype,
        vae_dtype=vae_dtype,
    )
    parts, _ = checked_parts(model, wanted)
    tokenizer = load_tokenizer(
        description.component_folder("tokenizer"), model.text_encoder.config.vocab_size
    )
    with reporting_memory("loading the encoders", model):
        vae = load_vae_of(model, VAE_BACKEND, (ENCODER,)) if VAE in wanted else None
        # What is said of memory counts what is loaded.
        found = {name: model.components[name] for name in wanted}
        model = dataclasses.replace(model, components=MappingProxyType(found))
        encoders = Encoders(model, tokenizer, vae, load_parts(parts))
    logger.info("%s: loaded %s on %d devices", description.name, ", ".join(wanted), model.mesh.size)
    return encoders
