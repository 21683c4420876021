"""What the API answers, as types: they are checked and documented by them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.engine.failure import Failure
from server.slices import SliceState


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

EXPECTED_PARAMETERS = {
    "after": "the id of a video",
    "limit": f"a whole number between 1 and {LARGEST_PAGE}",
    "order": "asc or desc",
    "variant": "video, thumbnail or spritesheet",
    "Idempotency-Key": "text of 1 to 255 characters",
}
"""What queries and headers take, in words for people; `server.http.bodies` has it of fields."""


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
    remixed_from_video_id: str | None = Field(
        description="the video that this one was made from, by `remix`, `edits` or `extensions`"
    )
    error: VideoError | None
    metadata: dict[str, Any] = Field(
        description="`request`: the resolved fields, the seed, digests of pictures and clips; of "
        "an extension also `extended` {video, num_frames}; when completed also layout, attention, "
        "versions, `seconds` by stage, and `spritesheet` {columns, rows, frames}"
    )
    queue_position: int | None = Field(description="1 is next; null unless queued")
    stage: str | None = Field(
        description="encode, image, text, denoise, decode or compile ...; null unless it runs"
    )
    step: int | None
    steps: int | None
    seconds_left: float | None


class VideoCreated(Video):
    """The first job that a request asked for, and with `n` all of them."""

    videos: list[Video] | None = Field(
        default=None, description="where `n` is more than 1: all of them, the first one, too"
    )


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
    guidance_scale_2: float | None = Field(description="null for a model of one transformer")
    strength: float | None = Field(description="null for a model that takes no video")


class ModelLimits(BaseModel):
    """What a request may ask for.

    `max_work` bounds pixels x frames x steps.
    """

    size_multiple: list[int]
    frame_multiple: int
    max_prompt_characters: int
    max_num_inference_steps: int
    max_work: int
    max_upload_bytes: int
    max_n: int


class Adapter(BaseModel):
    """An adapter of the server's folder, that a request may name in `lora`."""

    name: str
    summary: str = Field(description="rank, how much it changes, style and size")
    description: str | None = Field(description="what its file says")
    trigger: str | None = Field(description="words that a prompt needs for it, if its file says so")
    expert: Literal["high", "low"] | None = Field(description="of a model of two, if it is for one")
    fault: str | None = Field(description="why it cannot be used; null for one that can")


class Preset(BaseModel):
    """Few steps that a request may name in `fast`."""

    name: str
    label: str
    sigmas: list[float]
    timesteps: list[float]
    update: str
    guidance_scale: float
    adapters: list[str] = Field(description="files that make the model so fast")
    source: str
    own: bool = Field(description="whether `fast: true` may take it, the first of these")
    needs_lora: bool = Field(description="whether a request must name the adapters")


class StepCache(BaseModel):
    """What a request may name in `step_cache`; another threshold does as well."""

    name: str = Field(description="with the threshold and what else it has")
    label: str


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    defaults: ModelDefaults
    limits: ModelLimits
    inputs: list[list[Literal["image", "last_image", "video"]]] = Field(
        description="what a request may give beside its prompt, each list a possibility; an empty "
        "one is text alone"
    )
    sizes: list[str] = Field(description="compiled at start, so without waiting")
    schedulers: list[str]
    experts: int = Field(description="transformers: 1, or 2 that take turns")
    adapters: list[Adapter]
    presets: list[Preset]
    step_caches: list[StepCache]
    example_prompts: list[str]


class Slice(BaseModel):
    """A slice of the fleet, as it said of itself a moment ago."""

    id: str
    object: Literal["slice"]
    model: str = Field(description="that it serves")
    state: SliceState
    words: str = Field(description="more of that, for people; may be empty")
    since: int = Field(description="unix seconds at which the state began")
    layout: str | None = Field(description="split over devices, once it is ready")


class SliceList(BaseModel):
    """The slices that are there, by name."""

    object: Literal["list"]
    data: list[Slice]


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
