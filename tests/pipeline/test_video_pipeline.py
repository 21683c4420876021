"""The whole pipeline against diffusers' `WanPipeline`, and what a caller can rely on."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest

from tests.checkpoint_factory import PROMPT, make_random_checkpoint
from tests.pipeline.originals import run_original
from tests.tolerances import psnr
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import Cancelled, GeometryError, LayoutError, UnknownNameError
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout

PARITY_PSNR = 50.0
"""dB; a difference of one level in every pixel is 48."""


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory):
    return str(make_random_checkpoint(tmp_path_factory.mktemp("random-wan")))


@functools.cache
def generate_original(folder, request: VideoRequest):
    """diffusers' frames, uint8, in float32 on the CPU."""
    return run_original(folder, request, {}).frames


def make_request(name, **kwargs):
    return VideoRequest(prompt=PROMPT, **kwargs).resolved(open_model(name).defaults)


@pytest.mark.parametrize("layout", ["single", "dp2-sp2-tp2"])
def test_wan_tiny_equals_diffusers(layout, devices, compiled_as_users_do):
    request = make_request("wan-tiny", seed=3)
    folder = open_model("wan-tiny").folder
    layout = parse_layout(layout)
    pipeline = VideoPipeline.from_pretrained(
        "wan-tiny", layout=layout, devices=devices[: layout.num_devices], dtype="float32"
    )
    ours = pipeline(request)
    assert ours.frames.shape == (17, 64, 64, 3)
    assert psnr(ours.frames, generate_original(folder, request)) >= PARITY_PSNR


@pytest.fixture(scope="module")
def random_pipeline(random_checkpoint, devices):
    """One for both guidances: they differ in the step's program alone."""
    return VideoPipeline.from_pretrained(random_checkpoint, devices=devices[:1], dtype="float32")


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_random_checkpoint_equals_diffusers(random_checkpoint, random_pipeline, guidance_scale):
    """Sizes that divide by nothing; with guidance and without."""
    request = make_request(
        random_checkpoint,
        width=80,
        height=48,
        num_frames=9,
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        flow_shift=3.0,
        negative_prompt="moving left",
        seed=11,
    )
    ours = random_pipeline(request).frames
    expected = generate_original(random_checkpoint, request)
    assert expected.std() > 5, "a flat picture would prove nothing"
    assert psnr(ours, expected) >= PARITY_PSNR


@pytest.fixture(scope="module")
def pipeline(devices):
    """One pipeline, many calls."""
    return VideoPipeline.from_pretrained(
        "wan-tiny", layout=parse_layout("dp2"), devices=devices[:2]
    )


def test_same_seed_same_video_another_seed_another(pipeline):
    first = pipeline(VideoRequest(prompt=PROMPT, seed=1, num_inference_steps=2)).frames
    again = pipeline(VideoRequest(prompt=PROMPT, seed=1, num_inference_steps=2)).frames
    other = pipeline(VideoRequest(prompt=PROMPT, seed=2, num_inference_steps=2)).frames
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_steps_guidance_and_shift_need_no_new_program(pipeline):
    pipeline(VideoRequest(prompt=PROMPT, num_inference_steps=2))
    seen = []
    pipeline(
        VideoRequest(
            prompt="a blue square", num_inference_steps=3, guidance_scale=2.0, flow_shift=2.0
        ),
        on_progress=lambda p: seen.append(p.stage),
    )
    assert not [stage for stage in seen if stage.startswith("compile")]


def test_progress_frames_and_metadata(pipeline):
    reports, chunks = [], []
    result = pipeline(
        VideoRequest(prompt=PROMPT, seed=5, num_inference_steps=3),
        on_progress=reports.append,
        on_frames=chunks.append,
    )
    steps = [p.done for p in reports if p.stage == "denoise"]
    assert steps == [0, 1, 2, 3]
    assert [p.done for p in reports if p.stage == "decode"][-1] == 17
    assert [len(c) for c in chunks] == [1, 4, 4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(chunks), result.frames)
    data = json.loads(json.dumps(result.metadata))
    assert data["request"]["prompt"] == PROMPT
    assert data["request"]["num_inference_steps"] == 3
    assert (data["layout"], data["attention"], data["vae"]) == ("dp2", "chunked", "flax")
    assert {"text", "denoise", "decode"} <= data["seconds"].keys()
    assert data["versions"]["jax"] == jax.__version__


def test_cancel_between_steps_leaves_the_next_request_whole(pipeline):
    request = VideoRequest(prompt=PROMPT, seed=7, num_inference_steps=6)
    expected = pipeline(request).frames
    done = []

    def note(progress):
        if progress.stage == "denoise":
            done.append(progress.done)

    with pytest.raises(Cancelled):
        pipeline(request, on_progress=note, should_cancel=lambda: bool(done and done[-1] >= 2))
    assert done[-1] == 2
    np.testing.assert_array_equal(pipeline(request).frames, expected)


def test_wrong_geometry_is_refused_before_compiling(pipeline):
    with pytest.raises(GeometryError, match="13 or 17"):
        pipeline(VideoRequest(prompt=PROMPT, num_frames=16))


def test_equal_prompts_are_encoded_once(pipeline):
    seen = []
    pipeline(
        VideoRequest(prompt=PROMPT, negative_prompt=PROMPT, num_inference_steps=1),
        on_progress=lambda p: seen.append((p.stage, p.total)),
    )
    assert ("text", 1) in seen


def test_other_sizes_and_one_frame(pipeline):
    result = pipeline(
        VideoRequest(prompt=PROMPT, width=80, height=48, num_frames=1, num_inference_steps=1)
    )
    assert result.frames.shape == (1, 48, 80, 3)


def test_unknown_model_names_what_exists():
    with pytest.raises(UnknownNameError, match=r"wan-tiny.*wan2\.1-t2v-14b"):
        VideoPipeline.from_pretrained("wan-huge")


def test_layout_of_other_size_than_the_devices(devices):
    with pytest.raises(LayoutError, match=r"needs 4 devices, 8 are here.*dp2-tp4"):
        VideoPipeline.from_pretrained("wan-tiny", layout=parse_layout("tp4"))


def test_programs_of_other_sizes_are_not_mixed_up(pipeline):
    """Red when a program is found again by its arguments' shapes alone: tall and wide videos have
    equally many tokens, and equal prompts make one row with guidance and without."""
    common: dict[str, Any] = {"prompt": PROMPT, "num_frames": 1, "num_inference_steps": 1}
    for width, height in ((48, 80), (80, 48)):
        frames = pipeline(VideoRequest(**common, width=width, height=height)).frames
        assert frames.shape == (1, height, width, 3)
    small: dict[str, Any] = common | {"width": 48, "height": 80}
    equal = pipeline(VideoRequest(**small, negative_prompt=PROMPT, guidance_scale=3.0)).frames
    alone = pipeline(VideoRequest(**small, guidance_scale=1.0)).frames
    assert np.abs(equal.astype(int) - alone.astype(int)).max() <= 1


def test_frames_that_nobody_asks_for_stay_on_the_devices(monkeypatch, pipeline):
    """The processes of a slice that write no file."""
    request = VideoRequest(prompt=PROMPT, num_inference_steps=1)
    expected, chunks = pipeline(request).frames, []
    streamed = pipeline(request, on_frames=chunks.append, keep_frames=False)
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    assert streamed.frames.shape == (0, 64, 64, 3)

    copied = []

    class OnDevice:
        """A chunk that tells when it is copied to the host."""

        def __init__(self, frames):
            self.frames = frames

        def __len__(self):
            return len(self.frames)

        def __array__(self, dtype=None, copy=None):
            copied.append(len(self.frames))
            return np.asarray(self.frames)

    decode = pipeline._executor.vae.frames
    monkeypatch.setattr(
        pipeline._executor.vae, "frames", lambda *arguments: map(OnDevice, decode(*arguments))
    )
    assert pipeline(request, keep_frames=False).metadata["seed"] == 0
    assert not copied
    pipeline(request)
    assert sum(copied) == 17


def test_without_guidance_all_devices_work_on_one_branch(pipeline):
    """dp2 with guidance, sp2 without, on the same devices; the video is that of one device."""
    request = VideoRequest(prompt=PROMPT, seed=9, num_inference_steps=3, guidance_scale=1.0)
    result = pipeline(request)
    assert (result.metadata["layout"], result.metadata["num_devices"]) == ("sp2", 2)
    alone = VideoPipeline.from_pretrained(
        "wan-tiny",
        layout=parse_layout("single"),
        devices=list(pipeline.model.mesh.devices.flat)[:1],
    )
    assert psnr(result.frames, alone(request).frames) >= PARITY_PSNR


def test_without_guidance_a_step_is_half_the_work(pipeline):
    """FLOPs of each device's program, counted by the compiler."""
    flops = {}
    for scale in (5.0, 1.0):
        run = pipeline._plan(VideoRequest(prompt=PROMPT, guidance_scale=scale), Watch())
        stage = run.model.step_stage(run.geometry, run.schedule, run.batch)
        flops[scale] = stage.compile().cost_analysis()["flops"]
    assert flops[1.0] / flops[5.0] == pytest.approx(0.5, rel=0.05)


def test_weights_are_held_once(pipeline):
    """The mesh without guidance sees the memory of the one with it."""
    both = (
        pipeline._executor.weights.of("transformer", None, on_one_branch=False),
        pipeline._executor.weights.of("transformer", None, on_one_branch=True),
    )
    for name, array in both[0].items():
        for first, second in zip(
            array.addressable_shards, both[1][name].addressable_shards, strict=True
        ):
            assert first.data.unsafe_buffer_pointer() == second.data.unsafe_buffer_pointer(), name


def test_one_frame_compiles_one_program_of_the_decoder(pipeline):
    seen = []
    pipeline(
        VideoRequest(prompt=PROMPT, width=96, height=64, num_frames=1, num_inference_steps=1),
        on_progress=lambda p: seen.append(p.stage),
    )
    assert {stage for stage in seen if "decode-" in stage} == {"compile decode-first"}


def test_compiling_beside_loading_changes_nothing(devices):
    request = VideoRequest(prompt=PROMPT, seed=4, num_inference_steps=2)
    seen, frames = [], []
    for compile_for in (None, request):
        made = VideoPipeline.from_pretrained(
            "wan-tiny", layout=parse_layout("sp2"), devices=devices[:2], compile_for=compile_for
        )
        reports: list[Any] = []
        frames.append(made(request, on_progress=reports.append).frames)
        seen.append([(report.stage, report.done) for report in reports])
    np.testing.assert_array_equal(*frames)
    assert seen[0] == seen[1], "processes in lock-step count the reports"
