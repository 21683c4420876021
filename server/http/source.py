"""A video that another one is made from: stored here, or just sent."""

import dataclasses
from typing import Any

from server.answered import answered
from server.errors import DO_NOT_RETRY, ApiError
from server.files.media import FilesLost
from server.files.seam import FileTooLarge
from server.http.bodies import Making
from server.http.content import check_finished
from server.http.dependencies import video_not_found
from server.http.reference import Reference
from server.http.served_model import ServedModel
from server.jobs.job import Job
from server.service import Service
from wan_tpu.media import MAX_MEDIA_BYTES, digest_of
from wan_tpu.request import VideoRequest

_FROM_REQUEST = ("negative_prompt", "seed", "step_cache")
"""Settings of a video that hold for those made from it."""

_STEPS = ("num_inference_steps", "scheduler", "sigmas")
"""How it gets from noise to a video; its flow shift, too, at the same size."""

_GUIDANCE = ("guidance_scale", "guidance_scale_2")

_LEFT_OUT = ("seed", "sigmas", "fast", "step_cache", "lora")
"""Fields that are not as they were where they are sent as null, or as text that is empty."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A completed video of this server.

    Attributes:
        job: that made it.
        reference: its file.
    """

    job: Job
    reference: Reference


async def read_source(service: Service, owner: str, video_id: str, *, field: str) -> Source:
    """A completed video as what another one is made from.

    Args:
        service: that has it.
        owner: who asks.
        video_id: as the client wrote it.
        field: that it came in: `video_id` of the path, or one of the body.

    Raises:
        ApiError: there is none, it is another key's, not completed, lost, or too large.
    """
    with answered():
        job = await service.jobs.find_owned(owner, video_id)
    if job is None:
        raise video_not_found(video_id, field)
    check_finished(job)
    data = await _read(service, job, field)
    reference = Reference(field=field, role="video", data=data, digest=digest_of(data))
    return Source(job=job, reference=reference)


async def _read(service: Service, job: Job, field: str) -> bytes:
    try:
        with answered():
            return await service.files.read(job, "video", most=MAX_MEDIA_BYTES)
    except FileTooLarge as error:
        message = (
            f"the video of {job.id} has {error.size} bytes, and one that another is made from at "
            f"most {MAX_MEDIA_BYTES}"
        )
        raise ApiError(400, "too_long", message, param=field) from None
    except FilesLost as error:
        raise ApiError(410, "files_lost", str(error), headers=DO_NOT_RETRY) from None


def inherit(body: Making, job: Job, model: ServedModel, *, length: bool) -> Making:
    """A body whose open fields are those of the video that it is made from.

    Args:
        body: of the client.
        job: that made the other video; of another model, only what is seen of it holds.
        model: that makes the new one.
        length: whether the new one is as long.
    """
    before = job.request
    filled: dict[str, Any] = {"size": f"{before.width}x{before.height}", "fps": before.fps}
    if job.model == model.id:
        filled |= _settings_of(before, body, is_same_size=body.size in (None, filled["size"]))
    fps = body.fps or before.fps
    if length and body.seconds is None and job.num_frames and fps and before.fps:
        step = model.compression.temporal
        # At its own rate all of it; at another one as long, and no frame more than there is.
        filled["num_frames"] = (job.num_frames - 1) * fps // before.fps // step * step + 1
    for name in _LEFT_OUT:
        if name in body.model_fields_set:
            filled.pop(name, None)
    unset = {name: value for name, value in filled.items() if getattr(body, name) is None}
    return body.model_copy(update=unset)


def _settings_of(before: VideoRequest, body: Making, *, is_same_size: bool) -> dict[str, Any]:
    """What holds of a video's settings beside those that the client sent.

    A preset decides steps and guidance: it holds as a whole, or not at all. So do noise levels and
    a number of steps, of which each says what the other does.
    """
    filled = {name: getattr(before, name) for name in _FROM_REQUEST}
    filled["lora"] = before.adapters or None
    said = body.model_fields_set
    has_own_way = bool(body.fast) or body.sigmas is not None
    if before.fast:
        return filled if has_own_way else filled | {"fast": before.fast}
    if not body.fast:
        filled |= {name: getattr(before, name) for name in _GUIDANCE}
    steps = body.num_inference_steps, body.flow_shift
    if before.sigmas is not None and ("sigmas" in said or steps != (None, None)):
        has_own_way = True
    if not has_own_way:
        filled |= {name: getattr(before, name) for name in _STEPS}
        if is_same_size:
            filled["flow_shift"] = before.flow_shift
    return filled


def explained(error: ApiError, sent: Making, body: Making, source: Job) -> ApiError:
    """A refusal that says what it is about that the client did not send.

    Args:
        error: of the body with what it inherits.
        sent: by the client.
        body: with what it inherits.
        source: that it inherits from.
    """
    held = [
        name
        for name in ("fast", "sigmas", "step_cache", "lora")
        if getattr(sent, name) is None and getattr(body, name) is not None
    ]
    is_about = {*held, *_STEPS, *_GUIDANCE, "flow_shift"}
    if not held or error.code != "invalid_value" or error.param not in is_about:
        return error
    words = f"{' and '.join(held)} {'is' if len(held) == 1 else 'are'} as for {source.id}"
    message = f"{error.message}; {words}: null, or empty text, does without"
    return ApiError(error.status, error.code, message, param=error.param)
