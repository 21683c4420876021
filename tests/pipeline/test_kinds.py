"""Every kind of model against diffusers' pipeline of its class: float32, the same seed.

The models are small and random, and every input matters in them. What has to turn this red is
named at each case.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.checkpoint_factory import PROMPT, make_random_model
from tests.pipeline.media import draw, make_clip, make_png
from tests.pipeline.originals import run_original
from tests.tolerances import LAYOUT, psnr, relative_error
from wan_tpu.checkpoints.models import open_model
from wan_tpu.image.video import read_video
from wan_tpu.media import Media, digest_of
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
        usual: the layout of the ordinary set; the slow one tries all of `LAYOUTS`.
        fields: of the request.
    """

    kind: str
    roles: str = ""
    usual: str
    fields: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}, {self.roles or 'text'}"


def case(kind: str, roles: str = "", *, usual: str, **fields: float) -> Case:
    return Case(kind=kind, roles=roles, usual=usual, fields=tuple(fields.items()))


LAYOUTS = ("single", "dp2-sp2-tp2", "sp8")


# Three steps of each expert, the second without guidance: swapped scales, one expert's context for
# both, or a history that is cleared between them are other latents.
EXPERTS = {"num_inference_steps": 6, "flow_shift": 5.0, "guidance_scale": 4.0}
EXPERTS |= {"guidance_scale_2": 1.0}

CASES = [
    case("t2v-a14b", usual="sp8", **EXPERTS),
    case("i2v-a14b", "image", usual="dp2-sp2-tp2", **EXPERTS),
    case("i2v-a14b", "image last_image", usual="single", **EXPERTS),
    case("i2v", "image", usual="dp2-sp2-tp2"),
    case("flf2v", "image last_image", usual="sp8"),
    case("ti2v", usual="single"),
    case("ti2v", "image", usual="dp2-sp2-tp2"),
    case("t2v", "video", usual="sp8", strength=0.6, num_inference_steps=5),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where the model of a kind lies, made on first use."""
    made = {}

    def folder_of(kind: str) -> str:
        if kind not in made:
            made[kind] = str(make_random_model(tmp_path_factory.mktemp(kind), kind))
        return made[kind]

    return folder_of


PNGS = {"image": make_png(WIDTH, HEIGHT, 1), "last_image": make_png(WIDTH, HEIGHT, 2)}
CLIP = make_clip(WIDTH, HEIGHT, frames=FRAMES)


def inputs_of(roles: str) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files by role, and the pixels that diffusers gets."""
    files = {role: CLIP if role == "video" else PNGS[role] for role in roles.split()}
    pixels = {
        role: read_video(CLIP, 16, FRAMES)
        if role == "video"
        else draw(WIDTH, HEIGHT, 1 if role == "image" else 2)
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_diffusers(case, folders, devices):
    assert_equals_diffusers(case, case.usual, folders(case.kind), devices)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_diffusers_on_every_layout(case, layout, folders, devices):
    assert_equals_diffusers(case, layout, folders(case.kind), devices)


def assert_equals_diffusers(case: Case, layout_name: str, folder: str, devices) -> None:
    files, pixels = inputs_of(case.roles)
    request = request_for(folder, files, **dict(case.fields))
    layout = parse_layout(layout_name)
    pipeline = VideoPipeline.from_pretrained(
        folder, layout=layout, devices=devices[: layout.num_devices], dtype="float32"
    )
    ours = pipeline.intermediate(request, media=Media.of(*files.values()))
    expected = run_original(folder, request, pixels)
    latents = pipeline.model.vae.denormalise(ours["latents"])
    assert relative_error(latents, expected.latents) <= LAYOUT
    assert expected.frames.std() > 5, "a flat picture would prove nothing"
    assert psnr(ours["frames"], expected.frames) >= PARITY_PSNR
