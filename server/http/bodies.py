"""What the routes that make videos take in their bodies, as types that check and document it."""

import re
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from server.http import reference
from server.http.schemas import VIDEO_ID, Number, Whole
from wan_tpu.request import MAX_SEED

SECONDS = r"^([1-9][0-9]{0,2}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])$"
"""Text that is surely seconds; what else reads as a number is taken, too."""

_DATA_URL = {"type": "string", "pattern": "^(data:[^,]*;base64,.*)?$"}


def _file_field(description: str, *, takes_id: bool = False, is_needed: bool = False) -> Any:
    """A picture or clip: its digest, or the id of a video, once the body was read."""
    objects: list[dict[str, Any]] = [{"image_url": _DATA_URL}]
    if takes_id:
        objects.append({"id": {"type": "string", "pattern": f"^{VIDEO_ID}$"}})
    any_of: list[Any] = [_DATA_URL]
    for properties in objects:
        shape = {"type": "object", "properties": properties, "additionalProperties": False}
        any_of.append({**shape, "required": list(properties)})
    if not is_needed:
        any_of.append({"type": "null"})
    return Field(
        ... if is_needed else None, description=description, json_schema_extra={"anyOf": any_of}
    )


class Making(BaseModel):
    """What every such body takes; what is left out comes from the model's defaults.

    Attributes:
        FILES: fields that take a picture or clip, and whether also a video by its id.
    """

    model_config = ConfigDict(extra="forbid")

    FILES: ClassVar[dict[str, bool]] = {}

    prompt: str = Field(
        min_length=1,
        description="what the video shows",
        json_schema_extra={"pattern": r"\S"},
    )
    model: str | None = Field(default=None, description="one of `GET /v1/models`")
    size: str | None = Field(
        default=None,
        pattern="^[1-9][0-9]{0,5}[xX*×][1-9][0-9]{0,5}$",
        description="`WIDTHxHEIGHT`, pixels; `X`, `*` and `×` do as well; left out, by a picture "
        "or clip that is given",
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
    guidance_scale_2: Number | None = Field(
        default=None,
        ge=0,
        le=100,
        description="that of the second transformer, for a model that has two",
    )
    flow_shift: Number | None = Field(
        default=None, ge=1e-3, le=100, description="shift of the schedule to high noise"
    )
    strength: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="how much of a given video is replaced by noise; at 1 nothing is left of it",
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


class VideoCreate(Making):
    """What `POST /v1/videos` takes."""

    FILES: ClassVar[dict[str, bool]] = {"input_reference": False, "last_image": False}

    input_reference: str | None = _file_field(
        "a picture or clip to begin with, PNG, JPEG, WebP, MP4, MOV, WebM or Matroska: a file of a "
        "form, or a data URL, also as `image_url` of an object; `inputs` of the model says what it "
        "takes"
    )
    last_image: str | None = _file_field("a picture to end with, as `input_reference`")


class VideoRemix(Making):
    """What `POST /v1/videos/{video_id}/remix` takes; the rest is as it was for that video."""


class VideoEdit(Making):
    """What `POST /v1/videos/edits` takes."""

    FILES: ClassVar[dict[str, bool]] = {"video": True}

    video: str = _file_field(
        "what is made anew: a clip as a file of a form or a data URL, or `{id}` of a completed "
        "video, whose settings then hold where none are given",
        takes_id=True,
        is_needed=True,
    )


class VideoExtend(Making):
    """What `POST /v1/videos/extensions` takes; `seconds` and `num_frames` are of what comes new."""

    FILES: ClassVar[dict[str, bool]] = {"video": True, "last_image": False}

    video: str = _file_field(
        "what is continued: a clip as a file of a form or a data URL, or `{id}` of a completed "
        "video, whose settings then hold where none are given",
        takes_id=True,
        is_needed=True,
    )
    last_image: str | None = _file_field("a picture to end with, for a model that takes one")


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
    "guidance_scale_2": "a number between 0 and 100",
    "flow_shift": "a number between 0.001 and 100",
    "strength": "a number above 0 and at most 1",
    "seed": f"a whole number between 0 and {MAX_SEED}, or -1 for any",
    "scheduler": "unipc or euler",
    "input_reference": reference.EXPECTED,
    "last_image": reference.EXPECTED,
    "video": reference.EXPECTED_VIDEO,
}
"""What each field takes, in words for people; a test holds it to the fields."""

JSON, FORM = "application/json", "multipart/form-data"


def request_body(kind: type[Making]) -> dict[str, Any]:
    """`openapi_extra=` of a route that takes such a body."""
    as_json = kind.model_json_schema()
    as_form = kind.model_json_schema()
    for name in kind.FILES:
        as_form["properties"][name]["anyOf"].insert(0, {"type": "string", "format": "binary"})
    content = {JSON: {"schema": as_json}, FORM: {"schema": as_form}}
    return {"requestBody": {"required": True, "content": content}}
