"""Checks a request against a model, from its configuration alone. No JAX: a server uses it, too."""

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import GeometryError
from wan_tpu.geometry import Compression, Geometry
from wan_tpu.media import ROLES
from wan_tpu.request import VideoRequest
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.vae.config import VaeConfig


def compression_of(description: ModelDescription) -> Compression:
    """How the model maps pixels to latents and latents to tokens.

    Raises:
        CheckpointError: the configuration is of a model that is not implemented.
    """
    vae = VaeConfig.from_json(description.configs["vae"])
    transformer = TransformerConfig.from_json(description.configs["transformer"])
    return Compression(
        spatial=vae.spatial_compression,
        temporal=vae.temporal_compression,
        patch=transformer.patch_size,
    )


def media_roles(description: ModelDescription) -> tuple[str, ...]:
    """Which pictures and clips the model takes, in the order of `wan_tpu.media.ROLES`."""
    return tuple(role for role in ROLES if role in description.kind.takes)


def check_request(
    description: ModelDescription, request: VideoRequest
) -> tuple[VideoRequest, Geometry]:
    """Fills a request in from the model's defaults and checks it against the model.

    Raises:
        MediaError: the request names a picture or clip that the model does not take, or lacks one.
        GeometryError: the model cannot make this size or length.
    """
    description.kind.check_inputs(request.media.keys(), description.name)
    request = request.resolved(description.defaults)
    geometry = request.geometry(compression_of(description))
    positions = TransformerConfig.from_json(description.configs["transformer"]).rope_max_seq_len
    if max(geometry.grid) > positions:
        raise GeometryError(
            f"{geometry.width}x{geometry.height} with {geometry.num_frames} frames gives a token "
            f"grid of {geometry.grid}; the model knows {positions} positions"
        )
    return request, geometry
