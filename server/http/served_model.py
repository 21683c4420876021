"""The model that is served, as requests are checked against it. From its configuration: no JAX."""

import dataclasses
import pathlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from server.engine.samples import sample_requests
from server.errors import ApiError
from server.http.blame import refused
from server.http.bodies import Making
from server.http.reference import Reference
from server.http.served_adapters import ServedAdapters
from server.jobs.estimate import work_of
from server.settings import Settings, parse_warm_up
from wan_tpu import step_cache
from wan_tpu.checkpoints.models import WAN_TINY, ModelDescription, describe_model
from wan_tpu.errors import GeometryError, InputError, MediaError, PromptError
from wan_tpu.geometry import Compression, parse_size
from wan_tpu.image.picture import read_picture
from wan_tpu.image.video import video_info
from wan_tpu.media import ROLES, Media
from wan_tpu.pipeline.check import check_request, compression_of
from wan_tpu.pipeline.fast import embedded_adapters, find_preset
from wan_tpu.pipeline.step_cache import find_cache
from wan_tpu.request import MAX_SEED, VideoRequest, make_request
from wan_tpu.step_cache import StepCache
from wan_tpu.text.prompt import check_prompt

LARGEST_CHOSEN_SEED = 2**31 - 1

FIELD_OF = {"image": "input_reference", "last_image": "last_image", "video": "input_reference"}
"""Where a picture or clip that is missing is to come in, by its role."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model by the name that clients use.

    Attributes:
        id: that name.
        description: configurations and defaults.
        max_work: pixels x frames x steps that a request may ask for.
        max_prompt_characters: of a prompt, and of a negative prompt.
        warm_sizes: `WxH` that are compiled at start.
        max_upload_bytes: of a picture or clip.
        adapters: that requests may name.
        step_caches: that the default video can have, complete.
    """

    id: str
    description: ModelDescription
    max_work: int
    max_prompt_characters: int
    warm_sizes: tuple[str, ...]
    max_upload_bytes: int
    adapters: ServedAdapters
    step_caches: tuple[StepCache, ...]

    @property
    def compression(self) -> Compression:
        """Pixels to latents to tokens."""
        return compression_of(self.description)

    def makes(self, width: int, height: int) -> bool:
        """Whether it makes this size, and it is no larger than the model's own."""
        defaults, compression = self.description.defaults, self.compression
        return (
            width % compression.width_multiple == 0
            and height % compression.height_multiple == 0
            and width * height <= defaults.width * defaults.height
        )

    def request(self, body: Making, references: Iterable[Reference] = ()) -> VideoRequest:
        """The complete request of what a client sent; slow where there is a file or an adapter.

        Args:
            body: the fields.
            references: the pictures and clips that it is made from.

        Raises:
            ApiError: it cannot be made; names the field.
        """
        self._check_text("prompt", body.prompt)
        self._check_text("negative_prompt", body.negative_prompt or "")
        try:
            check_prompt(body.prompt)
        except PromptError as error:
            raise ApiError(400, "invalid_value", str(error), param="prompt") from None
        by_role = {each.role: each for each in references}
        self.check_inputs({role: each.field for role, each in by_role.items()})
        self._check_meaning(body, by_role.keys())
        has_own_length = "video" in by_role
        field, num_frames = self._num_frames(body, has_own_length=has_own_length)
        request = self._make(
            body,
            size=self._size(body, has_own_size=bool(by_role)),
            num_frames=num_frames,
            digests={role: each.digest for role, each in by_role.items()},
        )
        complete = self._check(field, request, by_role)
        self._check_adapters(complete)
        self._check_work(complete, body)
        return complete

    def _make(
        self,
        body: Making,
        *,
        size: tuple[int, int] | None,
        num_frames: int | None,
        digests: Mapping[str, str],
    ) -> VideoRequest:
        """What the client wrote, with a seed."""
        seed = secrets.randbelow(LARGEST_CHOSEN_SEED + 1) if body.seed is None else body.seed
        try:
            return make_request(
                body.prompt,
                negative_prompt=body.negative_prompt,
                size=size,
                frames=num_frames,
                fps=body.fps,
                steps=body.num_inference_steps,
                guidance_scale=body.guidance_scale,
                guidance_scale_2=body.guidance_scale_2,
                flow_shift=body.flow_shift,
                scheduler=body.scheduler,
                strength=body.strength,
                seed=seed,
                sigmas=body.sigmas,
                fast=body.fast or None,
                adapters=body.lora or (),
                step_cache=body.step_cache,
                **digests,
            )
        except InputError as error:  # of what begins with no field's name, a step cache's numbers
            raise refused(error, otherwise="step_cache") from None

    def check_inputs(self, given: Mapping[str, str], why: str = "") -> None:
        """Refuses pictures and clips that the model does not take, or the lack of those it needs.

        Args:
            given: the field of the body by the role that its file has.
            why: the beginning of the sentence that says so.

        Raises:
            ApiError: names the field, and what the model takes.
        """
        kind = self.description.kind
        try:
            kind.check_inputs(given.keys(), self.id)
        except MediaError as error:
            nearest = min(kind.inputs, key=lambda roles: len(roles ^ given.keys()))
            unwanted = [role for role in ROLES if role in given.keys() - nearest]
            missing = [role for role in ROLES if role in nearest - given.keys()]
            code = "invalid_value" if unwanted else "missing_field"
            fields = [given[role] for role in unwanted] or [FIELD_OF[role] for role in missing]
            raise ApiError(400, code, f"{why}{error}", param=fields[0]) from None

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

    def _check_meaning(self, body: Making, given: Set[str]) -> None:
        """Refuses settings of what the request or the model does not have."""
        if body.strength is not None and "video" not in given:
            message = "strength says how much of a video is replaced, and no video is given"
            raise ApiError(400, "invalid_value", message, param="strength")
        if body.n is not None and body.seed is not None and body.seed + body.n - 1 > MAX_SEED:
            message = f"seed {body.seed} and {body.n - 1} after it go beyond {MAX_SEED}"
            raise ApiError(400, "invalid_value", message, param="seed")
        experts = len(self.description.kind.experts)
        if body.guidance_scale_2 is not None and experts < 2:
            message = (
                "guidance_scale_2 is for the second transformer of a model that has two, and "
                f"{self.id} has one; leave it out"
            )
            raise ApiError(400, "invalid_value", message, param="guidance_scale_2")

    def _size(self, body: Making, *, has_own_size: bool) -> tuple[int, int] | None:
        """Width and height; None where a picture or clip says them."""
        defaults = self.description.defaults
        if body.size is None:
            return None if has_own_size else (defaults.width, defaults.height)
        try:
            return parse_size(body.size)
        except GeometryError as error:
            raise ApiError(400, "invalid_value", str(error), param="size") from None

    def _num_frames(self, body: Making, *, has_own_length: bool) -> tuple[str, int | None]:
        """The field that decides the frames, and their number; None where a clip says it."""
        defaults = self.description.defaults
        if body.seconds is None:
            default = None if has_own_length else defaults.num_frames
            return "num_frames", body.num_frames or default
        step = self.compression.temporal
        num_frames = step * round(body.seconds * (body.fps or defaults.fps) / step) + 1
        if body.num_frames not in (None, num_frames):
            raise ApiError(
                400,
                "conflict",
                f"seconds {body.seconds:g} at {body.fps or defaults.fps} fps are {num_frames} "
                f"frames, but num_frames is {body.num_frames}; leave one of them out",
                param="seconds",
            )
        return "seconds", num_frames

    def _check(
        self, field: str, request: VideoRequest, references: Mapping[str, Reference]
    ) -> VideoRequest:
        """The complete request.

        Args:
            field: to blame where the model cannot make so many frames.
            request: as the client wrote it.
            references: by role.
        """
        if request.width is not None:
            field = self._blamed_for_geometry(request, field)
        media = Media({each.digest: each.data for each in references.values()})
        try:
            return check_request(self.description, request, media)[0]
        except MediaError as error:
            raise ApiError(
                400, "invalid_value", str(error), param=_blamed(references, request, field)
            ) from None
        except GeometryError as error:
            raise ApiError(400, "invalid_value", str(error), param=field) from None
        except InputError as error:  # a strength that leaves no step to run, a preset, a cache
            raise refused(error, otherwise=self._blamed(request)) from None

    def _blamed(self, request: VideoRequest) -> str:
        """`step_cache` where the request can be made without one, else `fast`."""
        if request.step_cache is None:
            return "fast"
        try:
            check_request(self.description, dataclasses.replace(request, step_cache=None))
        except InputError:
            return "fast"
        return "step_cache"

    def _blamed_for_geometry(self, request: VideoRequest, field: str) -> str:
        """`size` where the model cannot make one frame of it, else the field of its frames."""
        try:
            check_request(self.description, dataclasses.replace(request, num_frames=1))
        except GeometryError:
            return "size"
        except InputError:  # said when it is checked whole
            pass
        return field

    def _check_adapters(self, request: VideoRequest) -> None:
        """Refuses adapters that are not there, and a preset that lacks its own."""
        given = self.adapters.check(request.adapters)
        preset = find_preset(self.description, request.fast)
        if preset is None or embedded_adapters(preset):
            return
        try:
            preset.check_adapters(given, self.description.kind, self.id)
        except InputError as error:
            message = str(error).replace("by --lora", "by lora")
            raise ApiError(400, "missing_field", message, param="lora") from None

    def _check_work(self, request: VideoRequest, body: Making) -> None:
        work = work_of(request)
        if work > self.max_work:
            raise ApiError(
                400,
                "too_much_work",
                f"{request.width}x{request.height} pixels x {request.num_frames} frames x "
                f"{request.num_steps} steps are {work}, at most {self.max_work} are "
                "taken; ask for a smaller size, fewer frames or fewer steps",
                param=self._to_blame(request, body),
            )

    def _to_blame(self, request: VideoRequest, body: Making) -> str | None:
        """Of the fields that were sent, the one that asks for the most beyond the default."""
        defaults = self.description.defaults
        assert request.num_frames is not None
        assert request.width is not None
        assert request.height is not None
        frames = request.num_frames / defaults.num_frames
        times = {
            "size": request.width * request.height / (defaults.width * defaults.height),
            "num_frames": frames,
            "seconds": frames,
            "num_inference_steps": request.num_steps / defaults.num_inference_steps,
            "sigmas": request.num_steps / defaults.num_inference_steps,
        }
        sent = body.model_dump(exclude_none=True)
        return max((name for name in times if name in sent), key=times.__getitem__, default=None)


def _blamed(references: Mapping[str, Reference], request: VideoRequest, field: str) -> str:
    """Of what a request is made from, the field of the first that cannot be decoded.

    Where all can be, a clip is shorter than the frames that were asked for.
    """
    for each in references.values():
        try:
            video_info(each.data) if each.role == "video" else read_picture(each.data)
        except MediaError:
            return each.field
    if "video" in references and request.num_frames is not None:
        return field
    return next(each.field for each in references.values())


def serve_model(settings: Settings) -> ServedModel:
    """The model that the settings name.

    Raises:
        WanTpuError: nothing is called so, or a size to warm up does not fit it.
    """
    name = settings.served_model_name or name_of(settings.model)
    warm = [parse_warm_up(text) for text in settings.warm_up]
    return serve(settings, name, describe_model(settings.model), warm)


def serve(
    settings: Settings,
    model_id: str,
    description: ModelDescription,
    warm: Sequence[tuple[int, int, int]],
) -> ServedModel:
    """A model, within the bounds of the settings.

    Args:
        settings: of this server.
        model_id: as clients call it.
        description: of the model.
        warm: (width, height, frames) that are compiled at start; empty for the model's own.

    Raises:
        WanTpuError: a size to warm up does not fit it.
    """
    defaults = description.defaults
    default = VideoRequest(prompt="default")
    complete, _ = check_request(description, sample_requests(description.kind, default)[0])
    warm = warm or [(defaults.width, defaults.height, defaults.num_frames)]
    for width, height, num_frames in warm:
        size = dataclasses.replace(default, width=width, height=height, num_frames=num_frames)
        try:
            check_request(description, sample_requests(description.kind, size)[0])
        except GeometryError as error:
            raise GeometryError(f"WAN_TPU_WARM_UP={width}x{height}x{num_frames}: {error}") from None
    return ServedModel(
        id=model_id,
        description=description,
        max_work=int(settings.max_work * work_of(complete)),
        max_prompt_characters=settings.max_prompt_characters,
        warm_sizes=tuple(dict.fromkeys(f"{width}x{height}" for width, height, _ in warm)),
        max_upload_bytes=settings.max_upload_bytes,
        adapters=ServedAdapters(settings.adapters, description),
        step_caches=tuple(_step_caches(description, complete)),
    )


def _step_caches(description: ModelDescription, complete: VideoRequest) -> Iterator[StepCache]:
    """Those that a request of the model can have."""
    for name in step_cache.NAMES:
        try:
            found = find_cache(description, dataclasses.replace(complete, step_cache=name))
        except InputError:  # nobody has measured this model
            continue
        assert found is not None
        yield found[0]


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
