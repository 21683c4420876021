"""`--attention flash-int8` over a run: which steps and layers are exact, by which programs, and
what is told of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_factory import make_random_checkpoint
from tests.consistency.conftest import SMALL_VAE
from tests.pipeline.test_together import latents_together, make_requests
from wan_tpu.attention.choice import Gate, parse_attention
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.cli import main as command
from wan_tpu.pipeline import together as making
from wan_tpu.pipeline.consistency import TOLERANCES, Run
from wan_tpu.pipeline.load import on_one_branch, place_model
from wan_tpu.pipeline.progress import Calls, Watch
from wan_tpu.pipeline.run import compile_order, int8_attention_of, plan_run
from wan_tpu.pipeline.step_plan import StepProgram
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.planner import FactsCache, Planner, find_slice, make_job
from wan_tpu.planner.costs import Attention
from wan_tpu.request import VideoRequest, make_request
from wan_tpu.sharding.layout import Layout, parse_layout


def plan(devices, name, attention, **fields):
    """What is decided about a request; the model has no weights."""
    model = place_model(describe_model(name), devices=devices[:1], attention=attention)
    return plan_run(VideoRequest(prompt="a fox", **fields), model, model, Watch())


@pytest.mark.parametrize(
    ("name", "attention", "fields", "steps"),
    [
        ("wan-tiny", "flash-int8", {}, "X" + "8" * 10 + "X"),
        ("wan-tiny", "flash-int8:3+1", {}, "XXX" + "8" * 8 + "X"),
        ("wan-tiny", "flash-int8:0", {"num_inference_steps": 3}, "888"),
        # Few steps have ends, too.
        ("wan-tiny", "flash-int8", {"fast": True}, "X88X"),
        ("wan-tiny", "flash-int8:5", {"fast": True}, "XXXX"),
        # Steps that a cache leaves out attend to nothing, and count as steps all the same.
        (
            "wan2.1-t2v-1.3b", "flash-int8:9",
            {"step_cache": "magcache", "num_inference_steps": 24},
            "XXXX..X..8..8..X..X..X.X",
        ),
        # Two transformers are one row.
        ("wan2.2-t2v-a14b", "flash-int8:2", {}, "XX" + "8" * 36 + "XX"),
    ],
)  # fmt: skip
def test_the_ends_of_a_run_are_exact(name, attention, fields, steps, devices):
    run = plan(devices, name, attention, **fields)
    told = int8_attention_of(run)
    assert told is not None
    assert told["steps"] == steps
    assert told["layers"] == "8" * run.model.denoiser.config.num_layers


def test_a_run_has_a_program_for_each_kind_of_step(devices):
    """Those with guidance and without, exact and not; all of them are warmed up."""
    run = plan(devices, "wan2.2-t2v-a14b", "flash-int8:1", guidance_scale_2=1.0)
    programs = [StepProgram(1), StepProgram(2), StepProgram(1, exact=True)]
    programs += [StepProgram(2, exact=True)]
    assert sorted({step.program for step in run.steps}) == sorted(programs)
    names = [stage.name for stage in run.stages() if stage.name.startswith("step")]
    assert names == ["step", "step", "step-exact", "step-exact"]
    assert len({stage.key for stage in run.stages()}) == len(run.stages())
    assert [compile_order(stage) for stage in run.stages() if stage.name in names] == [0, 0, 1, 1]
    plain = plan(devices, "wan-tiny", "flash")
    assert int8_attention_of(plain) is None
    assert {step.program for step in plain.steps} == {StepProgram(2)}


def test_a_mesh_for_other_batches_keeps_what_is_exact(devices):
    model = place_model(
        describe_model("wan-tiny"), layout=parse_layout("dp2-sp2"), devices=devices[:4],
        attention="flash-int8:2:1+0",
    )  # fmt: skip
    found = on_one_branch(model)
    assert found.layout != model.layout
    assert found.denoiser.setting.gate == parse_attention("flash-int8:2:1+0").gate != Gate()


def test_a_plan_counts_both_programs():
    """And each kernel by its own count. A video that is exact all over has one step program."""
    where, model = find_slice("v6e-8"), describe_model("wan2.1-t2v-14b")
    job = make_job(model, make_request("p"), where, attention="flash-int8:5+1")
    runs = job.runs()
    assert (runs["step"], runs["step-exact"]) == (44, 6)
    assert [name for name in job.stages if name.startswith("step")] == ["step", "step-exact"]
    counter = Planner(job, FactsCache(None), lambda _: None)._counter
    shapes = [
        Attention(heads=1, queries=9_472, keys=512, head_dim=128, is_int8=i) for i in (False, True)
    ]
    assert [counter._shape(s).implementation for s in shapes] == ["flash", "flash-int8"]
    exact = make_job(model, make_request("p"), where, attention="flash-int8:50")
    assert (exact.runs()["step"], "step-exact" in exact.runs()) == (50, False)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, devices):
    """Two layers of five heads on one device."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"num_attention_heads": 5, "attention_head_dim": 12, "num_layers": 2}
    return VideoPipeline.from_pretrained(
        str(make_random_checkpoint(folder, sizes, SMALL_VAE)),
        layout=Layout(), devices=devices[:1], dtype="float32", attention="flash-int8",
    )  # fmt: skip


@pytest.mark.slow
def test_steps_run_their_own_programs(pipeline, monkeypatch):
    """Of two videos made together; what one step leaves, the other program takes.

    Red when all steps run the first program. A video alone, which runs them by the same plan, is
    `test_the_story_tells`.
    """
    seen, run_calls = [], making.denoise

    def recorded(calls, *arguments, **keywords):
        seen.extend(calls)
        return run_calls(calls, *arguments, **keywords)

    monkeypatch.setattr(making, "denoise", recorded)
    requests = make_requests(2, num_inference_steps=3, guidance_scale=1.0)
    made, _ = latents_together(pipeline, requests)
    first, second, third = (call.program for call in seen)
    assert first is third
    assert first is not second
    assert np.isfinite(made).all()


def test_videos_made_together_have_both_programs(pipeline):
    stages = pipeline._together(make_requests(2, num_inference_steps=3), Calls()).stages()
    names = [stage.name for stage in stages]
    assert names == ["context", "start", "step", "step-exact", "latents"]
    assert len({stage.key for stage in stages}) == len(stages)


def test_the_loosest_rounding_decides_what_a_layout_may_differ():
    ones, frames = np.ones((1, 2), np.float32), np.zeros((1, 16, 16, 3), np.uint8)
    run = Run(
        layout=Layout(), attention="flash-int8", dtype="float32",
        velocity=ones, latents=ones, frames=frames,
    )  # fmt: skip
    assert run.tolerances == TOLERANCES["flash-int8"]
    assert run.tolerances.relative > TOLERANCES["float32"].relative


@pytest.mark.slow
def test_the_story_tells(tmp_path, capfd):
    """From the command line to the file, in three steps of one frame."""
    path: Path = tmp_path / "out.npy"
    words = ("--steps", "3", "--frames", "1", "--no-cache", "-o", str(path))
    prompt = "a red circle moving right on a black background"
    assert command.main(["generate", prompt, *words, "--attention", "flash-int8:1:2+0"]) == 0
    story = json.loads(path.with_suffix(".json").read_text())
    assert story["attention"] == "flash-int8"
    assert story["int8_attention"] == {"steps": "X8X", "layers": "XX8888"}
    assert "attention flash-int8" in capfd.readouterr().err
