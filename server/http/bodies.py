"""What the routes that make videos take in their bodies, as types that check and document it."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from server.http import reference
from server.http.lists import LORA_EXPECTED, SIGMAS_EXPECTED, read_lora, read_sigmas
from server.http.schemas import VIDEO_ID, Number, Whole
from wan_tpu.request import MAX_SEED, MOST_STEPS

SECONDS = r"^([1-9][0-9]{0,2}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])$"
"""Text that is surely seconds; what else reads as a number is taken, too."""

MOST_VARIATIONS = 10
"""`n`, at most: as OpenAI's image API has it."""

_STEP_CACHE = r"^[a-z]+(:[0-9]+(\.[0-9]+)?)*$"
"""A name and numbers: no file of the server can be named."""

_NAME = r"^[A-Za-z0-9_.:-]{1,64}$"
_LORA_OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "strength": {"type": "number", "default": 1, "minimum": -100, "maximum": 100},
        "expert": {"enum": ["high", "low", None]},
    },
    "required": ["name"],
    "additionalProperties": False,
}

_DATA_URL = {"type": "string", "pattern": "^(data:[^,]*;base64,.*)?$"}


def _read_fast(value: object) -> object:
    """A form has `true` as text."""
    if isinstance(value, str):
        value = {"true": True, "false": False, "": None}.get(value, value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(_NAME, value):
        return value
    raise ValueError("neither a truth nor a name")


def _read_empty(value: object) -> object:
    """Of a form, an input that nobody filled in."""
    return None if value == "" else value


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
        NESTED: which brackets may be open inside of the others, within them.
    """

    model_config = ConfigDict(extra="forbid")

    FILES: ClassVar[dict[str, bool]] = {}
    NESTED: ClassVar[dict[str, frozenset[str]]] = {
        "sigmas": frozenset({"["}),
        "lora": frozenset({"[", "[{", "{"}),
    }

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
    scheduler: Literal["unipc", "euler", "renoise"] | None = Field(
        default=None, description="`unipc` or `euler`; with `sigmas` `euler` or `renoise`"
    )
    sigmas: Annotated[tuple[float, ...] | None, BeforeValidator(read_sigmas)] = Field(
        default=None,
        description="the noise level of each step, falling from at most 1, as a list or text; "
        "instead of `num_inference_steps` and `flow_shift`",
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "maxItems": MOST_STEPS},
                {"type": "string", "pattern": "^[0-9.,]*$"},
                {"type": "null"},
            ]
        },
    )
    fast: Annotated[bool | str | None, BeforeValidator(_read_fast)] = Field(
        default=None,
        description="the few steps that the model or its adapters were distilled to: true, or the "
        "name of one of the model's `presets`; it decides steps, sigmas, scheduler and guidance",
        json_schema_extra={
            "anyOf": [{"type": "boolean"}, {"type": "string", "pattern": _NAME}, {"type": "null"}]
        },
    )
    step_cache: Annotated[str | None, BeforeValidator(_read_empty)] = Field(
        default=None,
        pattern=_STEP_CACHE,
        max_length=64,
        description="what is reused between steps, for example `magcache:0.12`; every step is "
        "computed when left out",
    )
    lora: Annotated[tuple[str, ...] | None, BeforeValidator(read_lora)] = Field(
        default=None,
        description="adapters of the model, of the names that `GET /v1/models` lists, in the order "
        "in which they are added: objects, or text `NAME[:STRENGTH][@high|@low]`, several joined "
        "by commas",
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"anyOf": [_LORA_OBJECT, {"type": "string"}]}},
                _LORA_OBJECT,
                {"type": "string"},
                {"type": "null"},
            ]
        },
    )
    n: Whole | None = Field(
        default=None,
        ge=1,
        le=MOST_VARIATIONS,
        description="so many jobs, with the seeds `seed`, `seed + 1`, ...",
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

    @field_validator("n", mode="after")
    @classmethod
    def _one_is_usual(cls, n: int | None) -> int | None:
        """Said or not, so that a repetition is known for one."""
        return None if n == 1 else n


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
    "scheduler": "unipc, euler or renoise",
    "sigmas": SIGMAS_EXPECTED,
    "fast": "true, false or the name of a preset",
    "step_cache": "the name of a cache and its number, for example magcache:0.12",
    "lora": LORA_EXPECTED,
    "n": f"a whole number between 1 and {MOST_VARIATIONS}",
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
