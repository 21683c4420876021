"""Which expert runs at each step: equal to the loop of diffusers' pipelines."""

import collections
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from diffusers import WanPipeline

from tests.checkpoint_factory import PROMPT, make_random_model
from tests.pipeline.originals import load_original
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.family import TRANSFORMER, TRANSFORMER_2
from wan_tpu.media import digest_of
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.run import Run, plan_run
from wan_tpu.pipeline.step_plan import plan_steps
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh

EXPERTS = (TRANSFORMER, TRANSFORMER_2)


def plan(devices, name: str, **fields: Any) -> Run:
    """What is decided about a request; the model has no weights."""
    mesh = make_mesh(Layout(), devices[:1])
    model = make_video_model(describe_model(name), mesh, Layout(), dtype=jnp.bfloat16)
    return plan_run(VideoRequest(prompt=PROMPT, **fields), model, model, Watch())


@pytest.mark.parametrize(
    ("name", "fields", "high", "low", "scales"),
    [
        ("wan2.2-t2v-a14b", {}, 26, 14, {4.0, 3.0}),
        ("wan2.2-i2v-a14b", {"image": digest_of(b"a picture")}, 15, 25, {3.5}),
    ],
)
def test_the_default_request_of_wan_splits_as_wan_does(devices, name, fields, high, low, scales):
    """Red with a flow shift of the hub's scheduler folder, 3: 13 and 27 of the first."""
    steps = plan(devices, name, **fields).steps
    assert [step.component for step in steps] == [TRANSFORMER] * high + [TRANSFORMER_2] * low
    assert {step.guidance_scale for step in steps} == scales
    assert steps[0].guidance_scale == max(scales)


def test_the_first_guidance_that_is_given_is_for_both_and_the_second_for_one(devices):
    name = "wan2.2-t2v-a14b"
    for fields, scales in (
        ({"guidance_scale": 6.0}, (6.0, 6.0)),
        ({"guidance_scale_2": 1.0}, (4.0, 1.0)),
        ({"guidance_scale": 1.0, "guidance_scale_2": 2.0}, (1.0, 2.0)),
    ):
        steps = plan(devices, name, **fields).steps
        assert (steps[0].guidance_scale, steps[-1].guidance_scale) == scales


def test_a_late_start_may_leave_one_expert_out(devices):
    clip = digest_of(b"a clip")
    late = plan(devices, "wan2.2-t2v-a14b", video=clip, strength=0.3)
    assert [step.component for step in late.steps] == [TRANSFORMER_2] * 12
    assert late.components == [TRANSFORMER_2]
    early = plan(devices, "wan2.2-t2v-a14b", video=clip, strength=0.5)
    counts = collections.Counter(step.component for step in early.steps)
    assert counts == {TRANSFORMER: 6, TRANSFORMER_2: 14}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return load_original(
        str(make_random_model(tmp_path_factory.mktemp("a14b"), "t2v-a14b")), WanPipeline
    )


@pytest.mark.parametrize(
    ("steps", "shift", "boundary"),
    [
        (40, 12.0, 875), (40, 5.0, 900), (20, 12.0, 875), (5, 3.0, 875), (1, 1.0, 875),
        # A timestep is the boundary itself: the step is still the first expert's.
        (12, 5.0, 875), (10, 3.0, 875), (14, 5.0, 900), (8, 3.0, 900),
    ],
)  # fmt: skip
def test_the_experts_are_those_of_diffusers_loop(original, monkeypatch, steps, shift, boundary):
    """Its own loop, with transformers that predict nothing and say that they ran."""
    ran = []
    for name in EXPERTS:

        def predict(hidden_states, name=name, **_):
            ran.append(name)
            return (torch.zeros_like(hidden_states),)

        monkeypatch.setattr(getattr(original, name), "forward", predict)
    original.register_to_config(boundary_ratio=boundary / 1000)
    original.scheduler.register_to_config(flow_shift=shift)
    original(
        prompt_embeds=torch.zeros(1, 4, 40), width=16, height=16, num_frames=1,
        num_inference_steps=steps, guidance_scale=1.0, output_type="latent",
    )  # fmt: skip
    schedule = make_schedule("unipc", num_inference_steps=steps, flow_shift=shift)
    request = VideoRequest(prompt=PROMPT, guidance_scale=1.0)
    planned = plan_steps(request, schedule, experts=EXPERTS, boundary=boundary / 1000 * 1000)
    assert [step.component for step in planned] == ran
