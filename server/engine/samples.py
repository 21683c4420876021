"""Requests of the service's own: what is compiled at the start, and what shows that it works."""

import dataclasses
import functools
import io

from PIL import Image

from wan_tpu.family import ModelKind
from wan_tpu.media import Media, digest_of
from wan_tpu.request import VideoRequest

SAMPLE_PIXELS = 64
"""Of each side of the picture that stands for any: it is scaled to the video."""


@functools.cache
def sample_picture() -> bytes:
    """A grey PNG."""
    file = io.BytesIO()
    Image.new("RGB", (SAMPLE_PIXELS, SAMPLE_PIXELS), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def sample_requests(kind: ModelKind, request: VideoRequest) -> list[VideoRequest]:
    """A request in each way that a model can be asked, the first its most usual one.

    Args:
        kind: of the model.
        request: of text alone.
    """
    digest = digest_of(sample_picture())
    return [
        dataclasses.replace(request, **dict.fromkeys(sorted(roles), digest))
        for roles in kind.inputs
    ]


def sample_media(request: VideoRequest) -> Media:
    """The bytes that the first of `sample_requests` names: no model needs a clip."""
    assert request.video is None, "a picture stands for no clip"
    return Media.of(sample_picture()) if request.media else Media()
