"""Checks a request against a model, from its configuration alone. No JAX: a server uses it, too."""

import dataclasses
import math

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import GeometryError, InputError
from wan_tpu.family import TRANSFORMER
from wan_tpu.geometry import Compression, Geometry
from wan_tpu.media import NO_MEDIA, ROLES, Media
from wan_tpu.pipeline.fast import with_preset
from wan_tpu.pipeline.pictures import Pictures, decode, sized
from wan_tpu.pipeline.step_cache import find_cache
from wan_tpu.request import VideoRequest
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.vae.config import VaeConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckedRequest:
    """A request that a model can carry out.

    Attributes:
        request: complete.
        geometry: its sizes.
        pictures: what it names, decoded; empty where no bytes were given.
    """

    request: VideoRequest
    geometry: Geometry
    pictures: Pictures


def compression_of(description: ModelDescription) -> Compression:
    """How the model maps pixels to latents and latents to tokens.

    Raises:
        CheckpointError: the configuration is of a model that is not implemented.
    """
    vae = VaeConfig.from_json(description.configs["vae"])
    transformer = TransformerConfig.from_json(description.configs[TRANSFORMER])
    return Compression(
        spatial=vae.spatial_compression,
        temporal=vae.temporal_compression,
        patch=transformer.patch_size,
    )


def media_roles(description: ModelDescription) -> tuple[str, ...]:
    """Which pictures and clips the model takes, in the order of `wan_tpu.media.ROLES`."""
    return tuple(role for role in ROLES if role in description.kind.takes)


def check_request(
    description: ModelDescription, request: VideoRequest, media: Media = NO_MEDIA
) -> tuple[VideoRequest, Geometry]:
    """Fills a request in and checks it against the model; arguments and errors as of `check`.

    Returns:
        The complete request, and its sizes.
    """
    checked = check(description, request, media)
    return checked.request, checked.geometry


def check(
    description: ModelDescription, request: VideoRequest, media: Media = NO_MEDIA
) -> CheckedRequest:
    """Fills a request in from its pictures and the model's defaults, and checks it.

    Args:
        description: of the model.
        request: what to make.
        media: the bytes that it names. Without any, what a picture would decide is the model's
            default: a complete request needs no bytes to be planned or compiled for.

    Raises:
        MediaError: the request names a picture or clip that the model does not take, or lacks one,
            or names bytes that are not what it says.
        GeometryError: the model cannot make this size or length.
        InputError: a field that means nothing for this model or without another field, or that
            contradicts a preset of few steps; or the model has no such preset, or no curve for the
            step cache.
    """
    description.kind.check_inputs(request.media.keys(), description.name)
    _check_fields(description, request)
    request = with_preset(description, request)
    compression = compression_of(description)
    if media:
        media = media.only(request.media)
        request = sized(description, request, media, compression)
    request = request.resolved(description.defaults)
    find_cache(description, request)  # says where there is no curve
    _check_steps(request)
    geometry = request.geometry(compression)
    _check_frames(request)
    positions = TransformerConfig.from_json(description.configs[TRANSFORMER]).rope_max_seq_len
    if max(geometry.grid) > positions:
        raise GeometryError(
            f"{geometry.width}x{geometry.height} with {geometry.num_frames} frames gives a token "
            f"grid of {geometry.grid}; the model knows {positions} positions"
        )
    pictures = decode(request, media, geometry) if media else {}
    return CheckedRequest(request=request, geometry=geometry, pictures=pictures)


def _check_fields(description: ModelDescription, request: VideoRequest) -> None:
    """Refuses what would change nothing."""
    if request.guidance_scale_2 is not None and len(description.kind.experts) == 1:
        raise InputError(
            f"guidance_scale_2 is {request.guidance_scale_2:g}, of a second transformer, and "
            f"{description.name} has one; leave it out"
        )
    if request.strength is not None and request.video is None:
        raise InputError(
            f"strength is {request.strength:g} and there is no video that it could be of; "
            "give one, or leave it out"
        )


def _check_frames(request: VideoRequest) -> None:
    """Refuses two pictures for one frame."""
    if request.num_frames == 1 and request.image is not None and request.last_image is not None:
        raise GeometryError(
            "a video of one frame cannot begin with one picture and end with another; leave one "
            "of them out, or take at least 5 frames"
        )


def _check_steps(request: VideoRequest) -> None:
    """Refuses a strength that leaves no step to run."""
    if request.num_steps >= 1:
        return
    steps, strength = request.num_inference_steps, request.strength
    assert steps is not None
    assert strength is not None
    raise InputError(
        f"strength {strength:g} of {steps} steps leaves none to run; with {steps} steps take a "
        f"strength of at least {math.ceil(100 / steps) / 100:g}"
    )
