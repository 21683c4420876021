"""Jobs as rows of the database and back. A row that cannot be read is a job all the same.

Rows may come from a newer release, after one went back, or from a hand at the database. What is
finished is shown as far as it is understood; what is not, and cannot be made from what is
understood, is shown as failed. Neither is written again: the newer release finds it as it was.
"""

import dataclasses
import functools
import json
import math
import re
from typing import Any

from server.engine.failure import Failure
from server.jobs.job import FINISHED, UNREADABLE, Extended, Job, State
from server.jobs.shelf import file_bytes
from server.jobs.tables import JOB_VERSION, TEXT_JOB_VERSION
from wan_tpu.errors import WanTpuError
from wan_tpu.media import DIGEST, ROLES
from wan_tpu.request import VideoRequest

ID = re.compile(r"video_[0-9a-f]{32}")
"""What `server.jobs.job.make_id` makes."""

REQUEST_FIELDS = {field.name for field in dataclasses.fields(VideoRequest)}
MADE_FROM = ("source_id", "first_id", "extended")
"""Fields of a job that lie among those of its request."""

NEW_FIELDS = (
    *ROLES,
    "guidance_scale_2",
    "strength",
    "sigmas",
    "fast",
    "adapters",
    "step_cache",
    *MADE_FROM,
)
"""What requests had not when `TEXT_JOB_VERSION` was the only one."""

WHOLE_FIELDS = ("width", "height", "num_frames", "fps", "num_inference_steps")
"""What a stored request must say: it was completed before it was stored."""

UNREADABLE_WORDS = "this job was written by a newer version of the service, which can still use it"


class _NotUnderstoodError(Exception):
    """A row holds what this version does not know."""


def to_row(job: Job) -> dict[str, Any]:
    """The columns of a job."""
    row = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    for name in ("is_unreadable", "unread_media", *MADE_FROM):
        del row[name]
    fields = dataclasses.asdict(job.request)
    for name in MADE_FROM:
        value = getattr(job, name)
        fields[name] = dataclasses.asdict(value) if isinstance(value, Extended) else value
    new = {name: fields.pop(name) for name in NEW_FIELDS}
    new = {name: value for name, value in new.items() if value not in (None, ())}
    # A request that says nothing new is written as releases before wrote it, which can read it.
    row["request"] = json.dumps(fields | new)
    row["metadata"] = None if job.metadata is None else json.dumps(job.metadata)
    row["first_id"], row["file_bytes"] = job.first_id, file_bytes(job)
    row["version"] = JOB_VERSION if new else TEXT_JOB_VERSION
    return row


def from_row(row: dict[str, Any]) -> Job | None:
    """The job of a row; None where not even its id is one."""
    job_id = row["id"]
    if not isinstance(job_id, str) or not ID.fullmatch(job_id):
        return None
    try:
        return _read(row)
    except (_NotUnderstoodError, WanTpuError, ValueError, TypeError, KeyError, OverflowError):
        return _unreadable(row)


def _read(row: dict[str, Any]) -> Job:
    state = State(row["state"])
    fields = json.loads(row["request"])
    if not isinstance(fields, dict):
        raise _NotUnderstoodError
    source_id, first_id, extended = (fields.pop(name, None) for name in MADE_FROM)
    unknown = fields.keys() - REQUEST_FIELDS
    # What is made already stays as it is, whatever else the request said.
    if state not in FINISHED and (unknown or int(row["version"]) > JOB_VERSION):
        raise _NotUnderstoodError
    for name in ("prompt", "negative_prompt"):
        if fields.get(name) is not None:
            fields[name] = _shared(fields[name])
    request = VideoRequest(**{name: fields[name] for name in fields.keys() & REQUEST_FIELDS})
    if any(getattr(request, name) is None for name in WHOLE_FIELDS):
        raise _NotUnderstoodError
    return Job(
        id=row["id"],
        owner=str(row["owner"]),
        model=str(row["model"]),
        request=request,
        source_id=_text(source_id),
        first_id=_text(first_id),
        extended=None if extended is None else _extended(extended),
        state=state,
        attempts=int(row["attempts"]),
        created_at=_finite(row["created_at"]) or 0.0,
        finished_at=_finite(row["finished_at"]),
        expires_at=_finite(row["expires_at"]),
        error_code=_failure(row["error_code"]),
        error_message=_text(row["error_message"]),
        metadata=_metadata(row["metadata"]),
        idempotency_key=_text(row["idempotency_key"]),
        request_digest=_text(row["request_digest"]),
    )


def _unreadable(row: dict[str, Any]) -> Job:
    """A job whose row stays as it is, until its owner deletes it or a newer release reads it."""
    try:
        created_at = _finite(row["created_at"]) or 0.0
    except (ValueError, TypeError):
        created_at = 0.0
    return Job(
        id=row["id"],
        owner=str(row["owner"]),
        model=str(row["model"]),
        request=VideoRequest(prompt="(not readable)"),
        state=State.FAILED,
        created_at=created_at,
        error_code=UNREADABLE,
        error_message=UNREADABLE_WORDS,
        idempotency_key=_text(row["idempotency_key"]),
        request_digest=_text(row["request_digest"]),
        is_unreadable=True,
        unread_media=frozenset(DIGEST.findall(str(row["request"]))),
    )


def _extended(fields: dict[str, Any]) -> Extended:
    extended = Extended(**fields)
    if not DIGEST.fullmatch(extended.video) or extended.num_frames < 1:
        raise _NotUnderstoodError
    return extended


@functools.lru_cache(64)
def _shared(text: str) -> str:
    """The same object for the same text: thousands of jobs share a model's negative prompt."""
    return text


def _finite(seconds: Any) -> float | None:
    """Unix seconds; None for never, which earlier releases wrote as infinity."""
    if seconds is None or not math.isfinite(float(seconds)):
        return None
    return float(seconds)


def _failure(code: Any) -> Failure | str | None:
    """The code, also one that a newer release knows."""
    try:
        return None if code is None else Failure(code)
    except ValueError:
        return str(code)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _metadata(text: Any) -> dict[str, Any] | None:
    """What is said about the video, if it is what it should be; NaN has no place in JSON."""
    try:
        value = None if text is None else json.loads(text, parse_constant=lambda _: None)
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, dict) else None
