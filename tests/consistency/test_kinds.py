"""Every kind of model, with its pictures, gives the video of one device on every layout.

The layouts are those of the cover: each shape of the split meets each way to share tokens and to
keep weights somewhere in it. In the ordinary set `tests/pipeline/test_kinds.py` compares three
layouts with diffusers to the same tolerance.
"""

import functools

import pytest

from tests.checkpoint_factory import PROMPT, make_random_model
from tests.consistency.cases import covering_cases
from wan_tpu.checkpoints.models import open_model
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.consistency import Run, compare, run_layout
from wan_tpu.pipeline.drawn import draw_media
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout

KINDS = [
    ("t2v", "video"),
    ("t2v-a14b", ""),
    ("i2v", "image"),
    ("flf2v", "image last_image"),
    ("i2v-a14b", "image"),
    ("i2v-a14b", "last_image"),
    ("ti2v", ""),
    ("ti2v", "image"),
]
LAYOUTS = list(dict.fromkeys(case.layout for case in covering_cases()))


@pytest.fixture(scope="module")
def run_on(tmp_path_factory, devices):
    """Runs a kind's request on a layout, once."""

    @functools.cache
    def folder_of(kind: str) -> str:
        return str(make_random_model(tmp_path_factory.mktemp(kind), kind))

    @functools.cache
    def run(kind: str, roles: str, layout: Layout) -> Run:
        model = open_model(folder_of(kind))
        compression = compression_of(model)
        geometry = Geometry(  # five by three tokens in three latent frames: divide by nothing
            width=5 * compression.width_multiple,
            height=3 * compression.height_multiple,
            num_frames=9,
            compression=compression,
        )
        digests, media = draw_media(frozenset(roles.split()), geometry, fps=16)
        request = VideoRequest(
            prompt=PROMPT,
            width=geometry.width,
            height=geometry.height,
            num_frames=9,
            fps=16,
            num_inference_steps=4,  # of two experts two each
            flow_shift=5.0,
            guidance_scale=3.0,
            seed=1,
            **digests,  # pyright: ignore[reportArgumentType]
        )
        options = LoadOptions(model=model.name, layout=layout, dtype="float32")
        return run_layout(model, options, request, media)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("kind", "roles"), KINDS)
def test_every_kind_on_the_layouts_of_the_cover(kind, roles, layout, run_on):
    comparison = compare(run_on(kind, roles, layout), run_on(kind, roles, Layout()))
    assert comparison.consistent, comparison
