"""Which requests can be made together, by the requests alone. No JAX: the service asks, too."""

import dataclasses
from collections.abc import Hashable

from wan_tpu.errors import InputError
from wan_tpu.request import VideoRequest

SAMPLES = (1, 2, 4, 8)
"""Sizes of a batch for which there are programs; others are filled up to the next one."""

OWN = ("prompt", "negative_prompt", "seed")
"""What each of several requests that are made together has for itself."""


def alike(request: VideoRequest) -> dict[str, Hashable]:
    """What requests must have in common to be made together: all fields but `OWN`.

    Args:
        request: complete.
    """
    fields = (field.name for field in dataclasses.fields(request) if field.name not in OWN)
    return {name: getattr(request, name) for name in fields}


def can_be_together(request: VideoRequest) -> bool:
    """Whether a request can be made with others like it at all.

    Pictures are conditions of one video, a step cache decides by one video what it leaves out, and
    adapters are merged for one request.
    """
    return not request.media and request.step_cache is None and not request.adapters


def step_kind(request: VideoRequest) -> tuple[Hashable, ...]:
    """What decides the program of a request's steps: equal for those whose steps take as long.

    Args:
        request: complete.
    """
    size = (request.width, request.height, request.num_frames)
    scales = (request.guidance_scale, request.guidance_scale_2)
    return (*size, request.scheduler, *(scale is not None and scale > 1 for scale in scales))


def samples_for(count: int) -> int:
    """The size of the batch in which so many are made.

    Raises:
        InputError: more than the largest has.
    """
    for samples in SAMPLES:
        if count <= samples:
            return samples
    raise InputError(f"{count} videos together are too many; {SAMPLES[-1]} are the most")


def check_alike(requests: list[VideoRequest]) -> None:
    """Refuses complete requests that cannot be made together.

    Raises:
        InputError: one is made alone always, or names in what they differ.
    """
    first = alike(requests[0])
    for request in requests:
        if not can_be_together(request):
            raise InputError("a request with pictures, adapters or a step cache is made alone")
        differing = [name for name, value in alike(request).items() if value != first[name]]
        if differing:
            raise InputError(
                f"requests that are made together differ in {', '.join(differing)}; they may "
                f"differ in {', '.join(OWN)}"
            )
