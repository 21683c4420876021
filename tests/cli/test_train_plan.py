"""`wan-tpu train plan`: what it refuses before it starts, and one plan to the end."""

import json

import pytest


def test_one_plan_to_the_end(run_here, tmp_path):
    """A LoRA of wan-tiny for one chip; no data, no weights, no TPU."""
    words = ("--preset", "lora-wan-tiny", "--steps", "3600", "--batch", "1", "--topology", "v5e-1")
    code, output, errors = run_here("train", "plan", *words, "--no-cache", "--json", "plan.json")
    assert code == 0, errors
    assert output.splitlines()[-1] == "use: single"
    assert "compiling single" in errors
    plan = json.loads((tmp_path / "plan.json").read_text())
    (row,) = plan["layouts"]
    assert (plan["trains"], plan["steps"], plan["batch"]) == ("lora", 3600, 1)
    assert row["fits"]
    assert row["hours"] == pytest.approx(row["step_seconds"])
    assert row["resident_bytes"]["frozen"] > row["resident_bytes"]["parameters"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topology", "v6e-7"), "v6e-7"),
        (("--topology", "v6e-4", "--layouts", "dp8"), "dp8"),
        (("--topology", "v6e-4", "--layouts", "pp4"), "pp4"),
        (("--topology", "v6e-4", "--set", "train.stepz=1"), "stepz"),
        (("--topology", "v6e-4", "--set", "model.expert='high'"), "model.expert"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said_before_anything_is_compiled(run_here, words, said):
    code, output, errors = run_here("train", "plan", "--preset", "lora-wan-tiny", *words)
    assert code == 2
    assert not output
    assert said in errors
    assert "compiling" not in errors


def test_something_has_to_say_what_is_trained(run_here):
    code, _, errors = run_here("train", "plan", "--topology", "v6e-4")
    assert code == 2
    assert "--preset" in errors


def test_a_file_that_cannot_be_written_is_said_before_anything_is_compiled(run_here):
    words = ("--preset", "lora-wan-tiny", "--topology", "v6e-4", "--json", "nowhere/plan.json")
    code, _, errors = run_here("train", "plan", *words)
    assert code == 1
    assert "nowhere" in errors
    assert "compiling" not in errors
