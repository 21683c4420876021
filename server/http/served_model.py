"""The model that is served, as requests are checked against it. From its configuration: no JAX."""

import dataclasses
import pathlib
import re
import secrets

from server.errors import ApiError, shown
from server.http import reference
from server.http.reference import Reference
from server.http.schemas import Model, ModelDefaults, ModelLimits, VideoCreate
from server.jobs.estimate import work_of
from server.jobs.video_object import format_seconds
from server.settings import Settings, parse_warm_up
from wan_tpu.checkpoints.models import WAN_TINY, ModelDescription, describe_model
from wan_tpu.errors import GeometryError, MediaError, PromptError
from wan_tpu.geometry import Compression, parse_size
from wan_tpu.pipeline.check import check_request, compression_of, media_roles
from wan_tpu.request import SCHEDULERS, VideoRequest, make_request
from wan_tpu.text.prompt import check_prompt

OWNER = "wan-tpu"
LARGEST_CHOSEN_SEED = 2**31 - 1
MAX_STEPS = 1000

TINY_PROMPTS = (
    "a red circle moving right on a black background",
    "a yellow square moving down on a navy background",
    "a green triangle moving left on a gray background",
    "a white circle moving up on a navy background",
)
WAN_PROMPTS = (
    "a fox runs through snow at dusk, cinematic",
    "waves break on a rocky shore, seen from above",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model by the name that clients use.

    Attributes:
        id: that name.
        description: configurations and defaults.
        max_work: pixels x frames x steps that a request may ask for.
        max_prompt_characters: of a prompt, and of a negative prompt.
        warm_sizes: `WxH` that are compiled at start.
        media_roles: pictures and clips that it takes, of `wan_tpu.media.ROLES`.
        max_upload_bytes: of each of them.
    """

    id: str
    description: ModelDescription
    max_work: int
    max_prompt_characters: int
    warm_sizes: tuple[str, ...]
    media_roles: tuple[str, ...]
    max_upload_bytes: int

    @property
    def compression(self) -> Compression:
        """Pixels to latents to tokens."""
        return compression_of(self.description)

    def as_object(self, created: int) -> Model:
        """The model as `GET /v1/models` shows it."""
        defaults = self.description.defaults
        compression = self.compression
        return Model(
            id=self.id,
            object="model",
            created=created,
            owned_by=OWNER,
            defaults=ModelDefaults(
                size=f"{defaults.width}x{defaults.height}",
                seconds=format_seconds(defaults.num_frames, defaults.fps),
                num_frames=defaults.num_frames,
                fps=defaults.fps,
                num_inference_steps=defaults.num_inference_steps,
                guidance_scale=defaults.guidance_scale,
                flow_shift=defaults.flow_shift(defaults.width, defaults.height),
                negative_prompt=defaults.negative_prompt,
                scheduler=defaults.scheduler,
            ),
            limits=ModelLimits(
                size_multiple=[compression.width_multiple, compression.height_multiple],
                frame_multiple=compression.temporal,
                max_prompt_characters=self.max_prompt_characters,
                max_num_inference_steps=MAX_STEPS,
                max_work=self.max_work,
            ),
            sizes=list(self.warm_sizes),
            schedulers=list(SCHEDULERS),
            example_prompts=list(
                TINY_PROMPTS if self.description.name == WAN_TINY else WAN_PROMPTS
            ),
        )

    def check_takes_files(self) -> None:
        """Refuses a picture or clip, whatever is in it, where the model takes none.

        Raises:
            ApiError: it takes none.
        """
        if not self.media_roles:
            message = f"{self.id} is a text-to-video model and takes no image"
            raise ApiError(400, "unknown_field", message, param=reference.FIELD)

    def request(self, create: VideoCreate, sent: Reference | None = None) -> VideoRequest:
        """The complete request of what a client sent.

        Args:
            create: the fields.
            sent: the picture or clip that came with them.

        Raises:
            ApiError: it cannot be made; names the field.
        """
        if create.model not in (None, self.id):
            raise ApiError(
                404,
                "model_not_found",
                f"there is no model {shown(create.model)} here; known: {self.id}",
                param="model",
            )
        self._check_text("prompt", create.prompt)
        self._check_text("negative_prompt", create.negative_prompt or "")
        try:
            check_prompt(create.prompt)
        except PromptError as error:
            raise ApiError(400, "invalid_value", str(error), param="prompt") from None
        width, height = self._size(create)
        field, num_frames = self._num_frames(create)
        seed = create.seed
        request = make_request(
            create.prompt,
            negative_prompt=create.negative_prompt,
            size=(width, height),
            frames=num_frames,
            fps=create.fps,
            steps=create.num_inference_steps,
            guidance_scale=create.guidance_scale,
            flow_shift=create.flow_shift,
            scheduler=create.scheduler,
            seed=secrets.randbelow(LARGEST_CHOSEN_SEED + 1) if seed is None else seed,
            **({} if sent is None else {sent.role: sent.digest}),
        )
        self._check("size", dataclasses.replace(request, num_frames=1))
        complete = self._check(field, request)
        self._check_work(complete, create)
        return complete

    def _check_text(self, field: str, text: str) -> None:
        if len(text) > self.max_prompt_characters:
            raise ApiError(
                400,
                "too_long",
                f"{field} has {len(text)} characters, at most {self.max_prompt_characters} are "
                "taken",
                param=field,
            )
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            message = f"{field} holds a NUL or half of a surrogate pair, which is no text"
            raise ApiError(400, "invalid_value", message, param=field)

    def _size(self, create: VideoCreate) -> tuple[int, int]:
        defaults = self.description.defaults
        if create.size is None:
            return defaults.width, defaults.height
        try:
            return parse_size(create.size)
        except GeometryError as error:
            raise ApiError(400, "invalid_value", str(error), param="size") from None

    def _num_frames(self, create: VideoCreate) -> tuple[str, int]:
        """The field that decides the frames, and their number."""
        defaults = self.description.defaults
        if create.seconds is None:
            return "num_frames", create.num_frames or defaults.num_frames
        step = self.compression.temporal
        num_frames = step * round(create.seconds * (create.fps or defaults.fps) / step) + 1
        if create.num_frames not in (None, num_frames):
            raise ApiError(
                400,
                "conflict",
                f"seconds {create.seconds:g} at {create.fps or defaults.fps} fps are {num_frames} "
                f"frames, but num_frames is {create.num_frames}; leave one of them out",
                param="seconds",
            )
        return "seconds", num_frames

    def _check(self, field: str, request: VideoRequest) -> VideoRequest:
        try:
            complete, _ = check_request(self.description, request)
        except MediaError as error:
            raise ApiError(400, "unknown_field", str(error), param=reference.FIELD) from None
        except GeometryError as error:
            raise ApiError(400, "invalid_value", str(error), param=field) from None
        return complete

    def _check_work(self, request: VideoRequest, create: VideoCreate) -> None:
        work = work_of(request)
        if work > self.max_work:
            raise ApiError(
                400,
                "too_much_work",
                f"{request.width}x{request.height} pixels x {request.num_frames} frames x "
                f"{request.num_inference_steps} steps are {work}, at most {self.max_work} are "
                "taken; ask for a smaller size, fewer frames or fewer steps",
                param=self._to_blame(request, create),
            )

    def _to_blame(self, request: VideoRequest, create: VideoCreate) -> str | None:
        """Of the fields that were sent, the one that asks for the most beyond the default."""
        defaults = self.description.defaults
        assert request.num_frames is not None
        assert request.num_inference_steps is not None
        assert request.width is not None
        assert request.height is not None
        frames = request.num_frames / defaults.num_frames
        times = {
            "size": request.width * request.height / (defaults.width * defaults.height),
            "num_frames": frames,
            "seconds": frames,
            "num_inference_steps": request.num_inference_steps / defaults.num_inference_steps,
        }
        sent = create.model_dump(exclude_none=True)
        return max((name for name in times if name in sent), key=times.__getitem__, default=None)


def serve_model(settings: Settings) -> ServedModel:
    """The model that the settings name.

    Raises:
        WanTpuError: nothing is called so, or a size to warm up does not fit it.
    """
    description = describe_model(settings.model)
    defaults = description.defaults
    complete, _ = check_request(description, VideoRequest(prompt="default"))
    warm = [parse_warm_up(text) for text in settings.warm_up]
    warm = warm or [(defaults.width, defaults.height, defaults.num_frames)]
    for width, height, num_frames in warm:
        size = VideoRequest(prompt="x", width=width, height=height, num_frames=num_frames)
        try:
            check_request(description, size)
        except GeometryError as error:
            raise GeometryError(f"WAN_TPU_WARM_UP={width}x{height}x{num_frames}: {error}") from None
    return ServedModel(
        id=settings.served_model_name or name_of(settings.model),
        description=description,
        max_work=int(settings.max_work * work_of(complete)),
        max_prompt_characters=settings.max_prompt_characters,
        warm_sizes=tuple(dict.fromkeys(f"{width}x{height}" for width, height, _ in warm)),
        media_roles=media_roles(description),
        max_upload_bytes=settings.max_upload_bytes,
    )


def name_of(model: str) -> str:
    """What clients call a model: its own name, its folder's, or the one that it has on the hub."""
    folder = pathlib.Path(model).expanduser()
    if model == WAN_TINY or not folder.is_dir():
        return model.partition("@")[0]  # of which commit it is, is no part of its name
    folder = folder.resolve()
    cached = re.fullmatch("models--(.+)", folder.parent.parent.name)
    if folder.parent.name == "snapshots" and cached is not None:
        return cached[1].replace("--", "/")
    return folder.name or model
