"""What goes through Temporal: plain values that its JSON converter reads and writes.

A field that a later release adds has a default: workflows live through a rolling update.
"""

import dataclasses
import enum
from typing import Any

API_QUEUE = "api"
"""The task queue of those that have the table of jobs."""


def slice_queue(model: str) -> str:
    """The task queue of the slices that serve a model."""
    return f"slices-{model}"


class Outcome(enum.StrEnum):
    """How a start ended without a video: the type of the activity's error."""

    GIVEN_BACK = "GivenBack"
    """The slice ends in good order; does not count."""
    LOST = "Lost"
    """The slice lost what it was at: a follower, the bucket."""
    CRASHED = "Crashed"
    """The engine's process ended at it; the message says how."""
    FAILED = "Failed"
    """There will be no video; the details are a `Failure`, the message is the client's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """A job, as the workflow begins with it; its id is the workflow's.

    Attributes:
        id: of the job.
        owner: whose it is; keys alternate.
        model: as clients call it.
        request: `dataclasses.asdict` of the complete `VideoRequest`.
        extended: of the job's `Extended`; None where the request makes the whole video.
        max_attempts: starts that count before it is given up.
        job_seconds: that one start may take.
        heartbeat_seconds: that a slice may be silent before its start counts as lost.
        start: which start this is, from 1, those that were given back among them; names the folder
            of its files. 0 before the first.
    """

    id: str
    owner: str
    model: str
    request: dict[str, Any]
    extended: dict[str, Any] | None
    max_attempts: int
    job_seconds: float
    heartbeat_seconds: float = 10.0
    start: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """A move of a job that is to be written into the table.

    Attributes:
        state: of `server.jobs.job.State`.
        attempts: starts that count so far.
        slice: that makes it, in progress.
        metadata: of a completed one: what the engine said, `files`, and `start`.
        code: of a failed one.
        message: of a failed one, for the client.
    """

    id: str
    state: str
    attempts: int
    slice: str | None = None
    metadata: dict[str, Any] | None = None
    code: str | None = None
    message: str | None = None
