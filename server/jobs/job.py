"""A job, its states and their legal moves. Knows nothing of HTTP, databases or JAX.

A `Job` is a value: every move makes a new one, or raises `IllegalMove`.
"""

import dataclasses
import enum
import secrets
import time
from typing import Any

from server.engine.failure import Failure
from wan_tpu.request import VideoRequest


class State(enum.StrEnum):
    """The words that clients of the video API know; their poll loops take any other for an end."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.IN_PROGRESS, State.FAILED}),
    State.IN_PROGRESS: frozenset({State.QUEUED, State.COMPLETED, State.FAILED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
}
"""From each state, where a job may go. Queued fails by being cancelled or tried too often."""

FINISHED = frozenset(state for state, moves in MOVES.items() if not moves)

UNREADABLE = "unreadable"
"""`error.code` of a job that this version cannot read; no job of ours ends with it."""


class IllegalMove(Exception):
    """A job was to go where its state does not lead: our own mistake, never the client's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """The clip that a job's video begins with: the request makes what follows its last frame.

    Attributes:
        video: its digest.
        num_frames: that it has at the request's frame rate.
    """

    video: str
    num_frames: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted request.

    Attributes:
        id: `video_` and 32 hexadecimal digits; ids sort by the time of their making.
        owner: name of the API key; empty where there are none.
        model: as clients call it.
        request: complete, with the seed.
        source_id: of the video that it was made from, which may be gone.
        first_id: of the first of several that one request asked for; None for that one itself.
        extended: the clip that it continues; None where the request makes the whole video.
        attempts: times it was started.
        created_at: unix seconds, like every `_at`.
        idempotency_key: the client's, with the digest of what came with it.
        expires_at: None for never.
        metadata: what the engine said about the finished video, and the size and digest of each
            of its files. A running job has it once its files are about to get their place.
        is_unreadable: its row holds what this version does not know, and stays as it is.
        unread_media: digests in such a row, of files that its request may name.
    """

    id: str
    owner: str
    model: str
    request: VideoRequest
    source_id: str | None = None
    first_id: str | None = None
    extended: Extended | None = None
    state: State = State.QUEUED
    attempts: int = 0
    created_at: float
    finished_at: float | None = None
    expires_at: float | None = None
    error_code: Failure | str | None = None
    error_message: str | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    request_digest: str | None = None
    is_unreadable: bool = False
    unread_media: frozenset[str] = frozenset()

    @property
    def media(self) -> frozenset[str]:
        """Digests of the pictures and clips that it is made from."""
        extended = () if self.extended is None else (self.extended.video,)
        return self.unread_media.union(self.request.media.values(), extended)

    @property
    def num_frames(self) -> int | None:
        """Of the whole video, whose frame where two parts meet is there once."""
        if self.extended is None or self.request.num_frames is None:
            return self.request.num_frames
        return self.extended.num_frames + self.request.num_frames - 1

    @property
    def is_finished(self) -> bool:
        """Whether it stays as it is until it expires."""
        return self.state in FINISHED

    def started(self) -> "Job":
        """The engine takes it up."""
        return self._move(State.IN_PROGRESS, attempts=self.attempts + 1)

    def requeued(self, *, counts: bool) -> "Job":
        """It goes back to the queue.

        Args:
            counts: whether the attempt counts; one that was ended in good order does not.
        """
        return self._move(State.QUEUED, attempts=self.attempts - (not counts), metadata=None)

    def made(self, metadata: dict[str, Any]) -> "Job":
        """Its files are complete and about to be put in their place; it runs still."""
        if self.state != State.IN_PROGRESS:
            raise IllegalMove(f"{self.id} is {self.state} and has no files")
        return dataclasses.replace(self, metadata=metadata)

    def completed(self, metadata: dict[str, Any], *, keep_seconds: float | None) -> "Job":
        """Its files are in their place, and kept for so long; None keeps them."""
        return self._finish(State.COMPLETED, keep_seconds, metadata=metadata)

    def failed(self, code: Failure, message: str, *, keep_seconds: float | None) -> "Job":
        """It ends without a video."""
        return self._finish(
            State.FAILED, keep_seconds, error_code=code, error_message=message, metadata=None
        )

    def set_aside(self) -> "Job":
        """The database takes no change of it: it is shown as failed, and its row stays."""
        words = "the database refuses to change this job; the server's log says more"
        return dataclasses.replace(
            self,
            state=State.FAILED,
            error_code=UNREADABLE,
            error_message=words,
            is_unreadable=True,
        )

    def _finish(self, state: State, keep_seconds: float | None, **changes: Any) -> "Job":
        now = time.time()
        expires_at = None if keep_seconds is None else now + keep_seconds
        return self._move(state, finished_at=now, expires_at=expires_at, **changes)

    def _move(self, state: State, **changes: Any) -> "Job":
        if state not in MOVES[self.state]:
            raise IllegalMove(f"{self.id} is {self.state} and cannot become {state}")
        return dataclasses.replace(self, state=state, **changes)


def make_id(newest: str | None = None) -> str:
    """A new job's id, unguessable, that sorts after `newest`: lists need no other order."""
    microseconds = time.time_ns() // 1000
    if newest is not None:
        microseconds = max(microseconds, int(newest.removeprefix("video_")[:16], 16) + 1)
    return f"video_{microseconds:016x}{secrets.token_hex(8)}"


def variations_of(first: Job, number: int) -> list[Job]:
    """The jobs after the first of so many that one request asked for; ids and seeds follow it."""
    found: list[Job] = []
    newest = first.id
    for step in range(1, number):
        newest = make_id(newest)
        request = dataclasses.replace(first.request, seed=first.request.seed + step)
        changes = {"id": newest, "request": request, "first_id": first.id, "idempotency_key": None}
        found.append(dataclasses.replace(first, **changes))
    return found
