"""Out of memory, by the real errors of JAX: one sentence, with a size that would fit."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.checkpoint_factory import PROMPT
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import OutOfMemoryError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.memory import describe, reporting_memory
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout, parse_layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.stage import Stage, abstract

LARGE = Geometry(width=1280, height=720, num_frames=81)
WAY_OUT = re.compile(r"--frames (\d+) or --size (\d+)x(\d+)")


def model_on(mesh, layout, name="wan2.1-t2v-14b"):
    return make_video_model(
        describe_model(name), mesh, layout, dtype=jnp.bfloat16, attention="reference"
    )


def test_a_program_that_a_tpu_cannot_hold():
    """The TPU compiler's own message; what is proposed has the tokens that fit."""
    layout = parse_layout("dp2-sp2")
    mesh = make_mesh(layout, slice_devices(find_slice("v6e-4")))
    stage = Stage(
        name="large",
        function=lambda x: (jnp.sin(x).T @ x).sum(),
        arguments=(abstract((200_000, 200_000), jnp.bfloat16, named(mesh)),),
        mesh=mesh,
    )
    with (
        pytest.raises(OutOfMemoryError, match=r"7\d\.\d+ GiB of 31\.25 on a device") as caught,
        reporting_memory("1280x720, 81 frames", model_on(mesh, layout), LARGE),
    ):
        stage.compile()
    message = str(caught.value)
    assert "1280x720, 81 frames on 4 x TPU v6 lite, layout dp2-sp2" in message
    assert "\n" not in message
    assert len(message) < 400
    frames, width, height = map(int, WAY_OUT.search(message).groups())  # pyright: ignore
    assert 1 < frames < 81
    assert (frames - 1) % 4 == 0
    assert (width, height) == (640, 352)


def test_an_array_that_the_host_cannot_hold(devices):
    """What happens while it runs: JAX says what it asked for, not what is there."""
    mesh = make_mesh(Layout(), devices[:1])
    with (
        pytest.raises(OutOfMemoryError, match=r"no place for 3[67]\d{5}\.\d+ GiB more") as caught,
        reporting_memory("a video", model_on(mesh, Layout()), LARGE),
    ):
        jnp.zeros(10**15, jnp.float32, device=devices[0]).block_until_ready()
    assert "try --frames 37 or --size 832x480" in str(caught.value)
    assert "RESOURCE_EXHAUSTED" in str(caught.value.__cause__), "for whoever must know more"


def test_weights_that_do_not_fit_want_more_devices(devices):
    mesh = make_mesh(Layout(), devices[:1])
    text = "RESOURCE_EXHAUSTED: Used 40.00G of 15.75G hbm. Exceeded hbm capacity by 24.25G."
    said = describe(text, "loading the model", model_on(mesh, Layout()), None)
    assert "weights 37." in said
    assert "the weights alone do not fit; take 6 times as many devices" in said
    assert "--frames" not in said


def test_portrait_sizes_are_proposed_for_portraits(devices):
    mesh = make_mesh(Layout(), devices[:1])
    portrait = Geometry(width=720, height=1280, num_frames=81)
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 123456789 bytes."
    said = describe(text, "a video", model_on(mesh, Layout(), "wan2.1-t2v-1.3b"), portrait)
    assert "--size 480x832" in said


@pytest.mark.parametrize("message", ["INTERNAL: something", "INVALID_ARGUMENT: else"])
def test_other_errors_pass(devices, message):
    mesh = make_mesh(Layout(), devices[:1])
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match=message),
        reporting_memory("a video", model_on(mesh, Layout()), LARGE),
    ):
        raise jax.errors.JaxRuntimeError(message)


def test_a_pipeline_says_it_and_makes_the_next_video(monkeypatch, devices):
    """The step asks for more than any machine has; a later request is made as if nothing was."""
    pipeline = VideoPipeline.from_pretrained("wan-tiny", devices=devices[:1])
    request = VideoRequest(prompt=PROMPT, num_inference_steps=1)
    program = pipeline._executor.program

    def greedy(run, stage):
        if stage.name == "step":
            return lambda *_: jnp.zeros(10**15, jnp.float32).block_until_ready()
        return program(run, stage)

    monkeypatch.setattr(pipeline._executor, "program", greedy)
    with pytest.raises(OutOfMemoryError, match=r"out of memory: 64x64, 17 frames on 1 x cpu"):
        pipeline(request)
    monkeypatch.undo()
    assert pipeline(request).frames.shape == (17, 64, 64, 3)
