"""Every kind of model against diffusers' pipeline of its class: float32, the same seed.

The models are small and random, and every input matters in them. What has to turn this red is
named at each case.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from tests.checkpoint_factory import PROMPT, make_random_model
from tests.pipeline.media import make_clip, make_png
from tests.pipeline.originals import run_original
from tests.tolerances import LAYOUT, psnr, relative_error
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import InputError, MediaError
from wan_tpu.image.video import read_video
from wan_tpu.media import Media, digest_of
from wan_tpu.pipeline.drawn import draw
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.pipeline.run import Run
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout

PARITY_PSNR = 50.0
"""dB; a difference of one level in every pixel is 48."""

WIDTH, HEIGHT, FRAMES = 96, 64, 9
"""Multiples of 32, which every kind takes; three latent frames: a first, a last, one between."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of model with some pictures.

    Attributes:
        kind: of `make_random_model`.
        roles: of the pictures, joined by a blank.
        usual: the layout of the ordinary set; None for the slow set alone, which tries all of
            `LAYOUTS`.
        fields: of the request.
    """

    kind: str
    roles: str = ""
    usual: str | None
    fields: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        scale = dict(self.fields).get("guidance_scale")
        return f"{self.kind}, {self.roles or 'text'}" + (", unguided" if scale == 1 else "")


def case(kind: str, roles: str = "", *, usual: str | None, **fields: float) -> Case:
    return Case(kind=kind, roles=roles, usual=usual, fields=tuple(fields.items()))


LAYOUTS = ("single", "dp2-sp2-tp2", "sp8")


# Three steps of each expert, the second without guidance: swapped scales, one expert's context for
# both, or a history that is cleared between them are other latents.
EXPERTS = {"num_inference_steps": 6, "flow_shift": 5.0, "guidance_scale": 4.0}
EXPERTS |= {"guidance_scale_2": 1.0}

CASES = [
    case("t2v-a14b", usual="sp8", **EXPERTS),
    case("i2v-a14b", "image", usual=None, **EXPERTS),
    case("i2v-a14b", "image last_image", usual="dp2-sp2-tp2", **EXPERTS),
    case("i2v", "image", usual="single"),
    case("i2v", "image", usual=None, guidance_scale=1.0),
    case("flf2v", "image last_image", usual="sp8"),
    case("ti2v", usual="dp2-sp2-tp2"),
    case("ti2v", "image", usual="dp2-sp2-tp2"),
    case("t2v", "video", usual="sp8", strength=0.6, num_inference_steps=5),
]


class Models:
    """Models of every kind, made and loaded on first use: compiling is nearly all of the time."""

    def __init__(self, make_folder):
        self._make_folder = make_folder
        self._folders: dict[str, str] = {}
        self._pipelines: dict[tuple[str, str], VideoPipeline] = {}

    def folder(self, kind: str) -> str:
        if kind not in self._folders:
            self._folders[kind] = str(make_random_model(self._make_folder(kind), kind))
        return self._folders[kind]

    def pipeline(self, kind: str, layout_name: str) -> VideoPipeline:
        """In float32."""
        key = kind, layout_name
        if key not in self._pipelines:
            layout = parse_layout(layout_name)
            devices = jax.devices()[: layout.num_devices]
            self._pipelines[key] = VideoPipeline.from_pretrained(
                self.folder(kind), layout=layout, devices=devices, dtype="float32"
            )
        return self._pipelines[key]


@pytest.fixture(scope="module")
def models(tmp_path_factory, devices):
    return Models(tmp_path_factory.mktemp)


PNGS = {"image": make_png(WIDTH, HEIGHT, 1), "last_image": make_png(WIDTH, HEIGHT, 2)}
CLIP = make_clip(WIDTH, HEIGHT, frames=FRAMES)


def inputs_of(roles: str) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files by role, and the pixels that diffusers gets."""
    files = {role: CLIP if role == "video" else PNGS[role] for role in roles.split()}
    pixels = {
        role: read_video(CLIP, 16, FRAMES)
        if role == "video"
        else draw(WIDTH, HEIGHT, seed=1 if role == "image" else 2)
        for role in files
    }
    return files, pixels


def request_for(folder: str, files: dict[str, bytes], **fields: Any) -> VideoRequest:
    digests: dict[str, Any] = {role: digest_of(data) for role, data in files.items()}
    usual: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "flow_shift": 3.0}
    request = VideoRequest(
        prompt=PROMPT,
        negative_prompt="moving left",
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        fps=16,
        seed=11,
        **(usual | fields | digests),
    )
    return request.resolved(open_model(folder).defaults)


@pytest.mark.parametrize("case", [each for each in CASES if each.usual], ids=str)
def test_it_equals_diffusers(case, models):
    assert_equals_diffusers(case, case.usual, models)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_diffusers_on_every_layout(case, layout, models):
    assert_equals_diffusers(case, layout, models)


def assert_equals_diffusers(case: Case, layout: str, models: Models) -> None:
    """After warming up without the pictures, which compiles every program that they need."""
    folder, pipeline = models.folder(case.kind), models.pipeline(case.kind, layout)
    files, pixels = inputs_of(case.roles)
    request = request_for(folder, files, **dict(case.fields))
    pipeline.warm_up(request)
    reports: list[Progress] = []
    latents, frames = run_ours(pipeline, request, files, on_progress=reports.append)
    assert not [report.stage for report in reports if report.stage.startswith("compile")]
    expected = run_original(folder, request, pixels)
    assert relative_error(latents, expected.latents) <= LAYOUT
    assert expected.frames.std() > 5, "a flat picture would prove nothing"
    assert psnr(frames, expected.frames) >= PARITY_PSNR


def run_ours(
    pipeline: VideoPipeline, request: VideoRequest, files: dict[str, bytes], **others: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The latents as the decoder takes them, and the frames."""
    decoded, decode = [], pipeline._executor.decode

    def watched(run: Run, latents: np.ndarray) -> Any:
        decoded.append(latents)
        return decode(run, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._executor, "decode", watched)
        result = pipeline(request, media=Media.of(*files.values()), **others)
    return pipeline.model.vae.denormalise(decoded[0]), result.frames


def test_both_experts_run_one_program_for_each_batch(models):
    """With guidance and without: two programs of the step, and two of the context."""
    pipeline = models.pipeline("t2v-a14b", "sp8")
    request = request_for(models.folder("t2v-a14b"), {}, **EXPERTS)
    pipeline.warm_up(request)
    run = pipeline._plan(request, Watch())
    assert run.contexts == [("transformer", 2), ("transformer_2", 1)]
    kept = [key[0] for programs in pipeline._executor.programs._sizes.values() for key in programs]
    assert (kept.count("step"), kept.count("context")) == (2, 2)


def test_pictures_that_change_places_make_another_video(models):
    """Red when a position of the image tokens, or the mask, is that of one picture alone."""
    pipeline, folder = models.pipeline("flf2v", "sp8"), models.folder("flf2v")
    files, _ = inputs_of("image last_image")
    swapped = dict(zip(files, reversed(files.values()), strict=True))
    latents = [run_ours(pipeline, request_for(folder, each), each)[0] for each in (files, swapped)]
    assert relative_error(*latents) > 0.05


def test_what_pictures_add_does_not_depend_on_the_seed(models):
    """Red when latents are drawn from the encoder's posterior."""
    pipeline, folder = models.pipeline("flf2v", "sp8"), models.folder("flf2v")
    files, _ = inputs_of("image last_image")
    media = Media.of(*files.values())
    first, second = (
        pipeline._executor.encode_pictures(
            pipeline._plan(
                dataclasses.replace(request_for(folder, files), seed=seed), Watch(), media
            )
        )
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(first, second)


def test_the_first_frame_is_the_picture(models):
    """As it is encoded and decoded, whatever the steps did: red when it is not put back."""
    pipeline = models.pipeline("ti2v", "dp2-sp2-tp2")
    files, _ = inputs_of("image")
    request = request_for(models.folder("ti2v"), files)
    media = Media.of(*files.values())
    result = pipeline(request, media=media)
    run = pipeline._plan(request, Watch(), media)
    programs = [
        pipeline._executor.program(run, stage)
        for stage in run.decode_stages(pipeline._executor.vae)
    ]
    encoded = pipeline._executor.encode_pictures(run)
    (frame,) = (np.asarray(frames) for frames in pipeline._executor.vae.frames(encoded, programs))
    np.testing.assert_array_equal(result.frames[:1], frame)


def test_a_run_without_guidance_sees_both_experts_on_the_other_mesh(models):
    """The same memory, split over sp alone; nothing is held twice."""
    pipeline = models.pipeline("i2v-a14b", "dp2-sp2-tp2")
    for name in ("transformer", "transformer_2"):
        weights = pipeline._executor.weights
        both = [weights.of(name, None, on_one_branch=is_one) for is_one in (False, True)]
        for weight, array in both[0].items():
            pointers = [
                [shard.data.unsafe_buffer_pointer() for shard in each.addressable_shards]
                for each in (array, both[1][weight])
            ]
            assert pointers[0] == pointers[1], weight


def test_a_missing_picture_is_named_before_anything_runs(models):
    pipeline = models.pipeline("i2v-a14b", "dp2-sp2-tp2")
    files, _ = inputs_of("image")
    with pytest.raises(MediaError, match="the request's image is sha256"):
        pipeline(request_for(models.folder("i2v-a14b"), files))


def test_a_decoder_alone_takes_no_clip(models, monkeypatch):
    """As maxdiffusion's; said before anything runs."""
    pipeline = models.pipeline("t2v", "sp8")
    monkeypatch.setattr(pipeline._executor.vae, "encodes", False)
    files, _ = inputs_of("video")
    request = request_for(models.folder("t2v"), files)
    with pytest.raises(InputError, match=r"only decodes, .* with the VAE flax"):
        pipeline(request, media=Media.of(*files.values()))
    pipeline.prepare(dataclasses.replace(request, video=None, strength=None))
