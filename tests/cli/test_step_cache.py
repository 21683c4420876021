"""`--step-cache` of generate and plan, and `wan-tpu calibrate`."""

import argparse
import json

import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.cli import generate, plan
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.run import schedule_steps
from wan_tpu.planner import find_slice, make_job
from wan_tpu.planner.table import format_table, to_json
from wan_tpu.step_cache import FORMAT, known_curves

PROMPT = "a red circle moving right on a black background"


def test_a_calibrated_curve_plans_the_video_that_it_was_measured_for(run_here, tmp_path):
    """Red when the file is not read, or the curve in the package is not of wan-tiny any more."""
    code, output, error = run_here("calibrate", "wan-tiny", "-o", "ratios.json", "--prompt", PROMPT)
    assert (code, output) == (0, "ratios.json\n"), error
    told = json.loads((tmp_path / "ratios.json").read_text())
    assert (told["format"], told["name"], told["steps"]) == (FORMAT, "wan-tiny", 12)
    assert (told["flow_shift"], told["scheduler"]) == (5.0, "unipc")
    assert told["transformer"]["layers"] == 6
    ours = known_curves()["wan-tiny"]
    assert told["conditional"] == pytest.approx(ours.conditional, abs=2e-3)
    assert told["unconditional"] == pytest.approx(ours.unconditional, abs=2e-3)

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    words = (PROMPT, "--step-cache", "magcache:0.3:5@ratios.json", "-o", "own.npy")
    order = generate._read(parser.parse_args(words))
    assert order.request.step_cache == "magcache:0.3:5"
    model = order.options.open_model()
    request, _ = check_request(model, order.request)
    steps = schedule_steps(model, request)[1]
    assert "".join(step.blocks.value for step in steps) == "XX...X..X.X."
    ours = json.loads(json.dumps(order.options.identity()["ratios"]))
    assert ours == told, "every process has the same ones"


REFUSED = {
    "no such cache": (["--step-cache", "teacache"], "known: magcache, easycache"),
    "no number": (["--step-cache", "magcache:a"], "step_cache must be magcache[:THRESHOLD"),
    "few steps": (["--step-cache", "magcache", "--fast"], "the preset wan-tiny-4 has none"),
    "levels": (["--step-cache", "easycache", "--sigmas", "1,0.5"], "names 2 noise levels"),
    "no file": (["--step-cache", "magcache@none.json"], "cannot read none.json: No such file"),
    "a file of the other": (["--step-cache", "easycache@a.json"], "a file of ratios is magcache's"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line_before_anything_starts(refused, case):
    options, message = REFUSED[case]
    assert message in refused("generate", PROMPT, *options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "a/b.json"), "cannot write a/b.json: there is no folder a"),
        (("-o", "a.json", "--steps", "0"), "must be a whole number of at least 1"),
        (("-o", "a.json", "--image", "none.png"), "--image none.png cannot be read"),
    ],
)
def test_calibrate_says_what_is_wrong_before_it_loads(run_here, tmp_path, words, message):
    code, _, error = run_here("calibrate", "wan-tiny", *words)
    assert code in (1, 2)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_plan_says_how_many_steps_are_computed():
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)

    def job(cache):
        parsed = parser.parse_args(["--topology", "v6e-8", "--step-cache", cache])
        return make_job(
            describe_model(parsed.model), plan.read_request(parsed), find_slice("v6e-8")
        )

    static, decided = job("magcache"), job("easycache:0.1")
    assert "50 steps, 25 computed by magcache:0.12:2:0.2" in format_table(static, [])
    assert "50 steps, easycache:0.1 (at most: it decides as it runs)" in format_table(decided, [])
    told = to_json(static, [])
    assert (told["step_cache"], told["step_plan"].count("X")) == ("magcache:0.12:2:0.2", 25)
