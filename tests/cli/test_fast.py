"""`--sigmas`, `--fast`, `--fast-preset`: of generate, plan and inspect."""

import argparse
import json

import pytest
from PIL import Image

from tests.adapters.small import STYLES, linears, make_factors, save
from tests.checkpoints.fake_hub import FakeHub, environment_of, serving
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.cli import plan
from wan_tpu.planner import find_slice, make_job

PROMPT = "a red circle moving right on a black background"


def test_fast_brings_wan_tinys_adapter_and_says_so(run_here, tmp_path):
    """Red when the adapter is not added, or the preset not told."""
    code, _, error = run_here("generate", PROMPT, "--fast", "--frames", "1", "-o", "fast.npy")
    assert code == 0, error
    told = json.loads((tmp_path / "fast.json").read_text())
    assert told["fast"]["name"] == "wan-tiny-4"
    assert told["fast"]["sigmas"] == told["request"]["sigmas"] == [1, 0.9375, 5 / 6, 0.625]
    assert told["request"]["guidance_scale"] == 1
    assert told["steps"] == {"transformer": 4}
    assert [adapter["file"] for adapter in told["adapters"]] == ["wan-tiny-4.safetensors"]


REFUSED = {
    "steps beside sigmas": (["--sigmas", "1,0.5", "--steps", "3"], "num_inference_steps is 3 and"),
    "a shift beside sigmas": (["--sigmas", "1,0.5", "--flow-shift", "3"], "flow_shift is 3.0 and"),
    "sigmas that rise": (["--sigmas", "0.5,1"], "sigmas must be numbers that fall"),
    "no numbers": (["--sigmas", "much"], "sigmas must be numbers joined by commas"),
    "guidance beside fast": (["--fast", "--guidance-scale", "5"], "guidance_scale is 5 and the"),
    "a preset that is not there": (["--fast-preset", "x"], "unknown preset of few steps for wan-t"),
    "a model without": (
        ["--fast", "--model", "wan2.1-t2v-1.3b"],
        "not distilled to few steps; with weights distilled to it one can be named: fastwan-3, rcm",
    ),
}


def test_a_models_distilled_adapters_come_from_the_hub(run, tmp_path):
    """Red when a user has to name them, or they are asked for after the model's gigabytes."""
    adapter = save(tmp_path / "a.safetensors", STYLES["B ComfyUI"].tensors(make_factors(linears())))
    files = "wan2.2_i2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1022.safetensors"
    names = [files.format(noise) for noise in ("high", "low")]
    hub = FakeHub("lightx2v/Wan2.2-Distill-Loras", dict.fromkeys(names, adapter.read_bytes()))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    command = ["generate", "a fox", "--model", "wan2.2-i2v-a14b", "--image", "a.png", "--fast"]
    with serving(hub) as address:
        done = run(*command, env=environment_of(address, tmp_path / "hub"))
    assert sorted(hub.fetched()) == names
    assert done.returncode == 1, done.stderr
    assert "Wan-AI/Wan2.2-I2V-A14B-Diffusers" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line_before_anything_starts(refused, case):
    options, message = REFUSED[case]
    assert message in refused("generate", PROMPT, *options)


def planned(*options):
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    parsed = parser.parse_args(["--topology", "v6e-8", *options])
    request = plan.read_request(parsed)
    return make_job(describe_model(parsed.model), request, find_slice("v6e-8"))


def test_a_plan_counts_the_few_steps_and_their_single_branch():
    job = planned("--fast", "--model", "wan2.2-t2v-a14b")
    assert job.batches == [1]
    assert job.runs()["step"] == 4
    assert job.runs()["context"] == 2
    assert job.num_noises == 0
    given = planned("--sigmas", "1,0.9,0.5", "--model", "wan2.1-t2v-1.3b")
    assert given.batches == [2]
    assert given.runs()["step"] == 3
    dmd = planned("--fast-preset", "fastwan-3", "--model", "wan2.1-t2v-1.3b")
    assert (dmd.batches, dmd.runs()["step"], dmd.num_noises) == ([1], 3, 3)


def test_inspect_lists_a_models_presets(run_here):
    code, output, _ = run_here("inspect", "wan2.1-t2v-1.3b")
    assert code == 0
    assert "fast: fastwan-3: renoise at timesteps 1000, 757, 522" in output
    assert "fast: rcm-4: renoise at timesteps 987.65, 933.78, 852.9, 608.98" in output
