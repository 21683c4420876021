"""The API as types: requests are checked by them, responses documented."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from server.engine.failure import Failure
from server.http import reference
from wan_tpu.request import MAX_SEED


def _no_boolean(value: object) -> object:
    """JSON's true is not the number 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]

VIDEO_ID = "video_[0-9a-f]{32}"
LARGEST_PAGE = 100


def _plain_digits(value: object) -> object:
    """Text of a query that is surely a number: no sign, no blanks, no digits of other scripts."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ValueError("must be a number")
    return value


PageLimit = Annotated[int, BeforeValidator(_plain_digits), Field(ge=1, le=LARGEST_PAGE)]

SECONDS = r"^([1-9][0-9]{0,2}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])$"
"""Text that is surely seconds; what else reads as a number is taken, too."""


class VideoCreate(BaseModel):
    """What `POST /v1/videos` takes; what is left out comes from the model's defaults."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(
        min_length=1,
        description="what the video shows",
        json_schema_extra={"pattern": r"\S"},
    )
    model: str | None = Field(default=None, description="one of `GET /v1/models`")
    size: str | None = Field(
        default=None,
        pattern="^[1-9][0-9]{0,5}[xX*×][1-9][0-9]{0,5}$",
        description="`WIDTHxHEIGHT`, pixels; `X`, `*` and `×` do as well",
    )
    seconds: Number | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="from the first frame to the last, also as text; rounded to the nearest 4n + 1 "
        "frames; not together with `num_frames`",
        json_schema_extra={
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
                {"type": "string", "pattern": SECONDS},
                {"type": "null"},
            ]
        },
    )
    negative_prompt: str | None = Field(default=None, description="what it shall not show")
    num_frames: Whole | None = Field(default=None, ge=1, description="4n + 1")
    fps: Whole | None = Field(
        default=None, ge=1, le=240, description="frames per second of the file"
    )
    num_inference_steps: Whole | None = Field(
        default=None, ge=1, le=1000, description="denoising steps"
    )
    guidance_scale: Number | None = Field(
        default=None, ge=0, le=100, description="1 or less turns guidance off"
    )
    flow_shift: Number | None = Field(
        default=None, ge=1e-3, le=100, description="shift of the schedule to high noise"
    )
    seed: Whole | None = Field(
        default=None,
        ge=-1,
        le=MAX_SEED,
        description="of the noise; chosen and reported when left out, null or -1",
    )
    scheduler: Literal["unipc", "euler"] | None = Field(
        default=None, description="`unipc` or `euler`"
    )
    input_reference: str | None = Field(
        default=None,
        description="a picture or clip to begin with, PNG, JPEG, WebP or MP4: a file of a form, or "
        "a data URL, also as `image_url` of an object; refused by a model that makes videos from "
        "text only",
        json_schema_extra={
            "anyOf": [
                {"type": "string", "pattern": "^(data:[^,]*;base64,.*)?$"},
                {
                    "type": "object",
                    "properties": {"image_url": {"type": "string"}},
                    "required": ["image_url"],
                    "additionalProperties": False,
                },
                {"type": "null"},
            ]
        },
    )

    @field_validator("size", mode="after")
    @classmethod
    def _write_size(cls, size: str | None) -> str | None:
        """However it was written, so that a repetition is known for one."""
        return None if size is None else re.sub("[X*×]", "x", size)

    @field_validator("seed", mode="after")
    @classmethod
    def _choose_seed(cls, seed: int | None) -> int | None:
        """Other programs write -1 for any seed."""
        return None if seed == -1 else seed


EXPECTED = {
    "prompt": "text that is not empty",
    "model": "text, the id of a model",
    "size": "WIDTHxHEIGHT in pixels, for example 832x480",
    "seconds": "a number above 0 and at most 3600",
    "negative_prompt": "text",
    "num_frames": "a whole number, 4n + 1, for example 81",
    "fps": "a whole number between 1 and 240",
    "num_inference_steps": "a whole number between 1 and 1000",
    "guidance_scale": "a number between 0 and 100",
    "flow_shift": "a number between 0.001 and 100",
    "seed": f"a whole number between 0 and {MAX_SEED}, or -1 for any",
    "scheduler": "unipc or euler",
    "input_reference": reference.EXPECTED,
}
"""What each field takes, in words for people; a test holds it to the fields."""

EXPECTED_PARAMETERS = {
    "after": "the id of a video",
    "limit": f"a whole number between 1 and {LARGEST_PAGE}",
    "order": "asc or desc",
    "variant": "video, thumbnail or spritesheet",
    "Idempotency-Key": "text of 1 to 255 characters",
}
"""The same of queries and headers."""


class VideoError(BaseModel):
    """Why a job failed."""

    code: str = Field(description=f"one of {', '.join(Failure)}")
    message: str


class Video(BaseModel):
    """A job: the `Video` object of the video API, and beyond it `metadata` and where it is."""

    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="percent")
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: None
    error: VideoError | None
    metadata: dict[str, Any] = Field(
        description="`request`: the resolved fields and the seed; when completed also layout, "
        "attention, versions, `seconds` by stage, and `spritesheet` {columns, rows, frames}"
    )
    queue_position: int | None = Field(description="1 is next; null unless queued")
    stage: str | None = Field(
        description="text, denoise, decode or compile ...; null unless it runs"
    )
    step: int | None
    steps: int | None
    seconds_left: float | None


class VideoList(BaseModel):
    """One page of jobs."""

    object: Literal["list"]
    data: list[Video]
    has_more: bool
    first_id: str | None
    last_id: str | None


class VideoDeleted(BaseModel):
    """What `DELETE` answers."""

    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]


class ModelDefaults(BaseModel):
    """What a request leaves open."""

    size: str
    seconds: str
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    negative_prompt: str
    scheduler: str


class ModelLimits(BaseModel):
    """What a request may ask for.

    `max_work` bounds pixels x frames x steps.
    """

    size_multiple: list[int]
    frame_multiple: int
    max_prompt_characters: int
    max_num_inference_steps: int
    max_work: int


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    defaults: ModelDefaults
    limits: ModelLimits
    sizes: list[str] = Field(description="compiled at start, so without waiting")
    schedulers: list[str]
    example_prompts: list[str]


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


MAX_PROFILE_STEPS, MAX_PROFILE_SECONDS = 20, 60


class ProfileCreate(BaseModel):
    """What `POST /v1/profiles` takes: one of the two, or 3 steps."""

    model_config = ConfigDict(extra="forbid")

    steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_PROFILE_STEPS,
        description="denoising steps of the job that runs, or of the next one, after its first",
    )
    seconds: Number | None = Field(
        default=None, gt=0, le=MAX_PROFILE_SECONDS, description="from now on, whatever runs"
    )


class ProfileError(BaseModel):
    """Why there is no profile."""

    code: Literal["profile_failed"]
    message: str


class Profile(BaseModel):
    """A trace of what the engine did."""

    id: str
    object: Literal["profile"]
    status: Literal["in_progress", "completed", "failed"]
    created_at: int
    bytes: int | None = Field(description="of the archive; null unless completed")
    error: ProfileError | None


class ProfileList(BaseModel):
    """All profiles that are kept."""

    object: Literal["list"]
    data: list[Profile]


class ProfileDeleted(BaseModel):
    """What `DELETE` answers."""

    id: str
    object: Literal["profile.deleted"]
    deleted: Literal[True]


class Live(BaseModel):
    """What `/livez` answers."""

    status: Literal["live"]


class Readiness(BaseModel):
    """Whether requests are answered with work."""

    status: Literal["ready", "not_ready"]
    missing: list[str]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every error of every route."""

    error: ErrorDetail


class NotReady(Readiness, ErrorBody):
    """What `/readyz` answers while something is missing."""

    retry_seconds: int = Field(description="when to ask again")
