"""Presets of few steps in the pipeline: which a model takes, and a run of fresh noise."""

import dataclasses
import json
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.checkpoint_factory import PROMPT, make_random_checkpoint
from tests.tolerances import LAYOUT, relative_error
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.family import TRANSFORMER, TRANSFORMER_2
from wan_tpu.media import digest_of
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.fast import embedded_adapters, find_preset, presets_of
from wan_tpu.pipeline.load import choose_layout, load_words
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.run import largest_batch, metadata_of, plan_run, schedule_steps
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest, make_request
from wan_tpu.sharding.layout import Layout, default_layout, parse_layout
from wan_tpu.sharding.mesh import make_mesh

PICTURE = digest_of(b"a picture")


def names(description):
    return [preset.name for preset in presets_of(description)]


def test_each_model_has_the_presets_of_its_kind_and_size():
    assert names(describe_model("wan-tiny"))[0] == "wan-tiny-4"
    a14b = ["lightx2v-a14b-4", "lightx2v-a14b-8"]
    assert names(describe_model("wan2.2-t2v-a14b")) == a14b
    assert names(describe_model("wan2.2-i2v-a14b")) == [*a14b, "rcm-i2v-4"]
    assert names(describe_model("wan2.1-t2v-14b")) == ["lightx2v-14b-4", "fastwan-3", "rcm-4"]
    assert names(describe_model("wan2.1-t2v-1.3b")) == ["fastwan-3", "rcm-4"]
    assert names(describe_model("wan2.1-flf2v-14b-720p")) == []


def test_the_experts_of_an_a14b_take_two_steps_each():
    """By the timestep: 937.5 is above both boundaries, 875 and 900, and 833.3 below."""
    for name, fields in (("wan2.2-t2v-a14b", {}), ("wan2.2-i2v-a14b", {"image": PICTURE})):
        description = describe_model(name)
        request, _ = check_request(description, make_request(PROMPT, fast=True, **fields))
        _, steps = schedule_steps(description, request)
        assert [step.component for step in steps] == [TRANSFORMER] * 2 + [TRANSFORMER_2] * 2
        assert {step.batch for step in steps} == {1}
        assert largest_batch(description, request) == 1


def test_a_model_so_called_takes_the_preset_by_itself():
    """Names are all that tells such weights from those of a model that is not distilled."""
    description = dataclasses.replace(describe_model("wan2.1-t2v-1.3b"), name="me/TurboWan2.1-1.3B")
    preset = find_preset(description, True)
    assert preset is not None
    assert preset.name == "rcm-4"


@pytest.mark.parametrize(
    ("model", "fast", "error", "message"),
    [
        ("wan2.1-t2v-1.3b", True, InputError, "not distilled to few steps; with weights distilled "
         "to it one can be named: fastwan-3, rcm-4"),
        ("wan2.1-flf2v-14b-720p", True, InputError, "not distilled to few steps; there are "
         "wan-tiny-4, lightx2v-a14b-4, .*, for other models"),
        ("wan2.1-t2v-1.3b", "slow", UnknownNameError, "for wan2.1-t2v-1.3b 'slow'; known: fastw"),
    ],
)  # fmt: skip
def test_a_preset_that_is_not_there_is_refused_with_those_that_are(model, fast, error, message):
    with pytest.raises(error, match=message):
        find_preset(describe_model(model), fast)
    assert find_preset(describe_model(model), None) is None
    assert find_preset(describe_model(model), False) is None


def test_the_layout_that_is_chosen_without_guidance_splits_no_batch(devices):
    """Red where the choice is made for a pair: dp2-sp4, half of which would be merged back."""
    description = describe_model("wan2.1-t2v-14b")
    for batch in (1, 2):
        chosen = choose_layout(description, devices, None, batch=batch)
        expected = default_layout(8, 40, batch=batch)
        assert (chosen.dp, chosen.shape) == (batch, expected.shape)
    assert largest_batch(description, make_request(PROMPT, fast=True)) == 1
    assert largest_batch(description, make_request(PROMPT)) == 2


def test_metadata_say_which_preset_decided_and_what(devices):
    mesh = make_mesh(Layout(), devices[:1])
    model = make_video_model(describe_model("wan2.2-t2v-a14b"), mesh, Layout(), dtype=jnp.bfloat16)
    request = make_request(PROMPT, fast=True)
    run = plan_run(request, model, model, Watch())
    told = metadata_of(run, "flax", ())
    json.dumps(told)
    assert told["fast"]["name"] == told["request"]["fast"] == "lightx2v-a14b-4"
    assert told["fast"]["update"] == told["request"]["scheduler"] == "euler"
    assert told["fast"]["timesteps"] == [1000, 937.5, 833.33, 625]
    assert told["steps"] == {TRANSFORMER: 2, TRANSFORMER_2: 2}
    assert (
        metadata_of(plan_run(make_request(PROMPT), model, model, Watch()), "", ())["fast"] is None
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_random_checkpoint(tmp_path_factory.mktemp("random-wan")))


def make_pipeline(checkpoint, devices, layout="single"):
    layout = parse_layout(layout)
    return VideoPipeline.from_pretrained(
        checkpoint, layout=layout, devices=devices[: layout.num_devices], dtype="float32"
    )


@pytest.fixture(scope="module")
def pipeline(checkpoint, devices):
    return make_pipeline(checkpoint, devices)


def latents_of(pipeline, request):
    """After the last step; nothing is decoded."""
    run = pipeline._plan(request, Watch())
    contexts = pipeline._executor.encode_text(run, None)
    return pipeline._executor.denoise(
        run, contexts, pipeline._executor.conditions(run, None), pipeline._executor.start(run, None)
    ).latents


def small(**fields):
    return make_request(PROMPT, size="80x48", frames=5, guidance_scale=1, seed=11, **fields)


def renoising(*sigmas):
    return small(sigmas=sigmas, scheduler="renoise")


def test_the_noise_of_each_step_is_the_seeds_next_draw(pipeline):
    """A model that predicts nothing: what is left after the run is a sum of the draws.

    Red where two steps have the same noise, or the first latents are not scaled.
    """
    request = renoising(0.75, 0.5, 0.25)
    params = dict(pipeline._executor.weights.base[TRANSFORMER])
    still = {n: jnp.zeros_like(p) if n.startswith("proj_out") else p for n, p in params.items()}
    pipeline.set_weights({**pipeline._executor.weights.base, TRANSFORMER: still})
    got = latents_of(pipeline, request)
    pipeline.set_weights({**pipeline._executor.weights.base, TRANSFORMER: params})
    generator = torch.Generator().manual_seed(11)
    shape = (1, 6, 2, 6, 10)
    first, second, third = (torch.randn(shape, generator=generator).numpy() for _ in range(3))
    expected = 0.75 * first
    expected = 0.5 * expected + 0.5 * second
    expected = 0.75 * expected + 0.25 * third
    assert np.abs(got - np.moveaxis(expected, 1, -1)).max() <= 1e-6


@pytest.fixture(scope="module")
def expected_latents(pipeline):
    return latents_of(pipeline, renoising(1, 0.757, 0.522))


def test_another_number_of_steps_needs_no_other_program(pipeline, expected_latents):
    compiled = len(pipeline._executor.programs)
    again = latents_of(pipeline, renoising(1, 0.757, 0.522))
    np.testing.assert_array_equal(again, expected_latents)
    latents_of(pipeline, renoising(1, 0.9, 0.8, 0.7, 0.6))
    assert len(pipeline._executor.programs) == compiled
    other = latents_of(pipeline, dataclasses.replace(renoising(1, 0.757, 0.522), seed=12))
    assert relative_error(other, expected_latents) > 0.1


@pytest.mark.parametrize("layout", ["dp2-sp2 ring", "sp2-tp2 allgather"])
def test_fresh_noise_is_the_same_on_every_layout(layout, checkpoint, devices, expected_latents):
    got = latents_of(make_pipeline(checkpoint, devices, layout), renoising(1, 0.757, 0.522))
    assert relative_error(got, expected_latents) <= LAYOUT


def test_euler_over_the_grid_of_a_model_is_its_own_euler(pipeline):
    """Given the levels of four steps, the run is that of four steps, bit for bit."""
    request = small(steps=4, flow_shift=3.0, scheduler="euler")
    levels = schedule_steps(pipeline.model.description, _whole(pipeline, request))[0].sigmas[:-1]
    given = small(sigmas=tuple(levels.tolist()))
    np.testing.assert_array_equal(latents_of(pipeline, given), latents_of(pipeline, request))


def _whole(pipeline, request: VideoRequest) -> VideoRequest:
    return check_request(pipeline.model.description, request)[0]


def test_a_run_without_the_adapters_of_its_preset_is_refused(devices):
    """The check is made when the run is planned, before anything is compiled."""
    bare = bare_pipeline("wan2.2-i2v-a14b", devices)
    request = make_request(PROMPT, fast=True, image=f"sha256:{'0' * 64}")
    with pytest.raises(InputError, match=r"the preset .* needs wan2\.2-i2v-a14b with"):
        bare.prepare(request)


def test_what_a_preset_brings_along_is_added_by_itself(devices):
    bare = bare_pipeline("wan-tiny", devices)
    run = bare._plan(make_request(PROMPT, fast=True), Watch())
    assert run.adapters is not None
    (added,) = run.adapters.described
    assert (added["file"], added["components"]) == ("wan-tiny-4.safetensors", [TRANSFORMER])
    bare.adapters = [added]  # as when it was loaded with it
    assert bare._plan(make_request(PROMPT, fast=True), Watch()).adapters is None
    (path,) = embedded_adapters(find_preset(open_model("wan-tiny"), True))
    assert path.endswith("demo/wan-tiny-4.safetensors")
    assert embedded_adapters(None) == ()


def bare_pipeline(name, devices):
    """Of a model without its weights; with wan-tiny's tokenizer."""
    mesh = make_mesh(Layout(), devices[:1])
    tiny, model = (
        make_video_model(description, mesh, Layout(), dtype=jnp.float32)
        for description in (open_model("wan-tiny"), describe_model(name))
    )
    return VideoPipeline(model, load_words(tiny), cast(Any, None))
