"""A video that another one is made from: stored here, or just sent."""

import asyncio
import dataclasses
from typing import Any

from server.errors import DO_NOT_RETRY, ApiError
from server.files.media import FilesLost
from server.http.bodies import Making
from server.http.content import check_finished
from server.http.dependencies import video_not_found
from server.http.reference import Reference
from server.http.served_model import ServedModel
from server.jobs.job import Job
from server.jobs.shelf import files_of
from server.service import Service
from wan_tpu.media import MAX_MEDIA_BYTES, digest_of

_FROM_REQUEST = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "scheduler",
    "seed",
)
"""Settings of a video that hold for those made from it; its flow shift, too, at the same size."""


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
    job = service.board.find_owned(owner, video_id)
    if job is None:
        raise video_not_found(video_id, field)
    check_finished(job)
    data = await asyncio.to_thread(_read, service, job, field)
    reference = Reference(field=field, role="video", data=data, digest=digest_of(data))
    return Source(job=job, reference=reference)


def _read(service: Service, job: Job, field: str) -> bytes:
    try:
        file = service.media.open(job.id, "video", files_of(job))
        if file.status.st_size > MAX_MEDIA_BYTES:
            message = (
                f"the video of {job.id} has {file.status.st_size} bytes, and one that another is "
                f"made from at most {MAX_MEDIA_BYTES}"
            )
            raise ApiError(400, "too_long", message, param=field)
        data = file.path.read_bytes()
    except (FilesLost, OSError) as error:
        words = str(error) if isinstance(error, FilesLost) else f"the video of {job.id} is gone"
        raise ApiError(410, "files_lost", words, headers=DO_NOT_RETRY) from None
    if file.digest is not None and digest_of(data) != f"sha256:{file.digest}":
        message = f"the video of {job.id} is damaged: it is not what was written"
        raise ApiError(410, "files_lost", message, headers=DO_NOT_RETRY)
    return data


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
        filled |= {name: getattr(before, name) for name in _FROM_REQUEST}
        if body.size in (None, filled["size"]):
            filled["flow_shift"] = before.flow_shift
    fps = body.fps or before.fps
    if length and body.seconds is None and job.num_frames and fps and before.fps:
        step = model.compression.temporal
        # At its own rate all of it; at another one as long, and no frame more than there is.
        filled["num_frames"] = (job.num_frames - 1) * fps // before.fps // step * step + 1
    if "seed" in body.model_fields_set:
        filled.pop("seed", None)  # null and -1 are another one
    unset = {name: value for name, value in filled.items() if getattr(body, name) is None}
    return body.model_copy(update=unset)
