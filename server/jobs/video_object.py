"""A job as clients see it: the `Video` object of the video API, and what it has beyond that."""

import dataclasses
import json
from typing import Any

from server.jobs.estimate import Running
from server.jobs.job import Job, State
from server.jobs.lora import lora_objects

REQUEST_FIELDS = (
    "negative_prompt",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "seed",
    "scheduler",
)
"""Fields beyond the API's own, in requests and in `metadata.request`."""

OPTIONAL_FIELDS = ("guidance_scale_2", "strength", "sigmas", "fast", "step_cache")
"""The same, where the model or the request has what they are about."""


def video_object(
    job: Job,
    *,
    running: Running | None = None,
    damage: str | None = None,
) -> dict[str, Any]:
    """The object of a job, without the place in the queue that it may have: see `encode_place`.

    Args:
        job: as it stands.
        running: where it is, if it runs.
        damage: what is wrong with its files, if it is completed and they are not.
    """
    request = job.request
    seconds_left = running.seconds_left if running is not None else None
    fields = {name: getattr(request, name) for name in REQUEST_FIELDS}
    fields |= {
        name: value for name in OPTIONAL_FIELDS if (value := getattr(request, name)) is not None
    }
    if request.adapters:
        fields["lora"] = lora_objects(request.adapters)
    metadata: dict[str, Any] = {"request": fields | request.media}
    if job.extended is not None:
        metadata["extended"] = dataclasses.asdict(job.extended)
    if job.metadata is not None:
        metadata = {**job.metadata, **metadata}
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": str(job.state),
        "progress": _progress(job, running),
        "created_at": int(job.created_at),
        "completed_at": _whole(job.finished_at) if job.state == State.COMPLETED else None,
        "expires_at": _whole(job.expires_at),
        "prompt": request.prompt,
        "size": "unknown" if request.width is None else f"{request.width}x{request.height}",
        "seconds": "0" if job.num_frames is None else format_seconds(job.num_frames, request.fps),
        "remixed_from_video_id": job.source_id,
        "error": _error(job, damage),
        "metadata": metadata,
        "queue_position": None,
        "stage": running.stage if running is not None else None,
        "step": running.step if running is not None else None,
        "steps": running.steps if running is not None else None,
        "seconds_left": None if seconds_left is None else round(seconds_left, 1),
    }


def encode_video(video: dict[str, Any]) -> bytes:
    """The object as JSON."""
    return json.dumps(video, separators=(",", ":")).encode()


_PLACE = ',"queue_position":{},"stage":null,"step":null,"steps":null,"seconds_left":{}}}'
_NO_PLACE = _PLACE.format("null", "null").encode()


def encode_place(encoded: bytes, queue_position: int, seconds_left: float | None) -> bytes:
    """The JSON of a waiting job that was encoded without its place in the queue, with it.

    Every poll of every waiting job comes here: with a long queue, places change all the time.
    """
    assert encoded.endswith(_NO_PLACE)
    seconds = "null" if seconds_left is None else round(seconds_left, 1)
    return encoded.removesuffix(_NO_PLACE) + _PLACE.format(queue_position, seconds).encode()


def format_seconds(num_frames: int | None, fps: int | None) -> str:
    """From the first frame to the last, as the API writes it: `5` for 81 frames at 16."""
    assert num_frames is not None
    assert fps is not None
    return f"{(num_frames - 1) / fps:.3f}".rstrip("0").rstrip(".")


def _progress(job: Job, running: Running | None) -> int:
    if job.state == State.COMPLETED:
        return 100
    return running.percent if running is not None else 0


FILES_LOST = "files_lost"
"""`error.code` of a completed job whose files are gone or damaged."""


def _error(job: Job, damage: str | None) -> dict[str, str] | None:
    if damage is not None:
        return {"code": FILES_LOST, "message": damage}
    if job.state != State.FAILED:
        return None
    return {"code": str(job.error_code), "message": job.error_message or ""}


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
