"""The messages between the service and its own engine process, one JSON object a line.

Over a pipe inside one machine; what process 0 and the followers of a slice send each other is in
`wan_tpu.multihost.messages`.
"""

import dataclasses
from typing import Any

from wan_tpu.json_lines import JsonLines


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """To the engine: make this video.

    Attributes:
        folder: where its files are left.
        uploads: folder of the pictures and clips that the request names (`server.files.uploads`).
        extended: the clip whose frames come first, `server.jobs.job.Extended` as a dictionary.
    """

    job: str
    request: dict[str, Any]
    folder: str
    uploads: str
    extended: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerateTogether:
    """To the engine: make these videos in one run; `Done` or `Failed` comes for each by itself.

    Attributes:
        jobs: the fields of a `Generate` for each, alike in what `wan_tpu.pipeline.alike` says.
    """

    jobs: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """To the engine: show that you work, with a video that nobody asked for; then throw it away."""

    job: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """To the engine: stop at the next step; an answer about the job still comes."""

    job: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """To the engine: record a profile into this folder; `Cancel` by its name ends it early.

    Attributes:
        steps: denoising steps of the job that runs or comes; None for `seconds` from now on.
    """

    profile: str
    folder: str
    steps: int | None
    seconds: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """From the engine: the profile lies in the folder, complete, or there is none.

    Attributes:
        problem: why there is none.
    """

    profile: str
    problem: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """From the engine: what it is at before it is ready, as words."""

    what: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """From the engine: everything is loaded and compiled.

    Attributes:
        description: layout, attention and devices.
    """

    description: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """From the engine: units of a stage that are done.

    Attributes:
        seconds: since the stage began.
    """

    job: str
    stage: str
    done: int
    total: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """From the engine, once in a while: the process lives. Whether it works, progress tells."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """From the engine: the files lie in the folder, complete."""

    job: str
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """From the engine: no video. Without a job: it could not start.

    Attributes:
        code: one of `server.engine.failure.Failure`.
    """

    job: str | None
    code: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """To the engine: end now, in good order, whatever runs."""


Message = (
    Generate | GenerateTogether | Probe | Cancel | Record | Stop
    | Loading | Ready | Progress | Beat | Recorded | Done | Failed
)  # fmt: skip

_LINES = JsonLines(
    Generate, GenerateTogether, Probe, Cancel, Record, Stop,
    Loading, Ready, Progress, Beat, Recorded, Done, Failed,
)  # fmt: skip


def encode(message: Message) -> bytes:
    """The message as one line."""
    return _LINES.encode(message)


def decode(line: bytes) -> Message:
    """The message of one line."""
    return _LINES.decode(line)
