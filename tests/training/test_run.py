"""A run: goes on to the bit, on any layout to rounding, and leaves what others read."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from tests.tolerances import LAYOUT, relative_error
from tests.training.runs import (
    config_of,
    make_model_and_data,
    place_on_first_devices,
    run,
    with_steps,
)
from wan_tpu.errors import BadNumbersError, InputError
from wan_tpu.training.checkpoint import Checkpoints
from wan_tpu.training.config import LoraConfig, OptimiserConfig, SaveConfig
from wan_tpu.training.metrics import Saved, Step
from wan_tpu.training.run_folder import read_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model_and_data(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def few_devices(monkeypatch):
    """A layout of fewer than the eight devices takes the first ones."""
    monkeypatch.setattr("wan_tpu.training.run.place_for_training", place_on_first_devices)


def results(folder):
    tensors = load_file(folder / "result.safetensors")
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def losses(lines):
    return [line.loss for line in lines if isinstance(line, Step)]


def test_a_stopped_run_goes_on_to_the_bit(made, tmp_path):
    """Red when a step's draws, its batch, the moments, or the rate begin again."""
    config = config_of(
        *made,
        optimiser=OptimiserConfig(learning_rate=1e-3, schedule="cosine", ema_decay=0.9),
        lora=LoraConfig(rank=2, dropout=0.2),
    )
    outcome, whole = run(config, tmp_path / "whole")
    assert (outcome.step, outcome.is_finished) == (8, True)
    halted, first = run(config, tmp_path / "parts", stop_after=3)
    assert (halted.step, halted.is_finished, halted.result) == (3, False, None)
    outcome, second = run(config, tmp_path / "parts")
    assert losses(first) + losses(second) == losses(whole)
    expected, found = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert np.array_equal(tensor, found[name]), name
    text = (tmp_path / "parts" / "log.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in log if line["kind"] == "Step"] == list(range(1, 9))


@pytest.mark.parametrize(
    ("trains", "layout"),
    [
        ("lora", "dp2-sp2-tp2"),
        pytest.param("full", "tp8", marks=pytest.mark.slow),
        pytest.param("lora", "tp8", marks=pytest.mark.slow),
        pytest.param("full", "dp2-sp2-tp2", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_on_another_layout(made, tmp_path, trains, layout):
    """Three heads: both pad, and the checkpoint is of neither. And back onto one device."""
    config = config_of(*made, trains=trains, steps=6)
    _, whole = run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop_after=2)
    moved = dataclasses.replace(config, machine=dataclasses.replace(config.machine, layout=layout))
    run(moved, tmp_path / "parts", stop_after=4)
    _, last = run(config, tmp_path / "parts")
    assert losses(last) == pytest.approx(losses(whole)[4:], rel=LAYOUT)
    assert_same_states(tmp_path / "whole", tmp_path / "parts")


def assert_same_states(one, other):
    """What is trained and its moments, at the last step: the difference's norm over the norm.

    Not number by number: Adam divides each by its own size, so a number whose gradient is a
    thousandth of the others' carries a thousand times their relative rounding.
    """
    found = []
    for folder in (one, other):
        with Checkpoints(folder / "checkpoints", keep=100) as checkpoints:
            restored = checkpoints._manager.restore(checkpoints.steps[-1])
            found.append(restored["state"]["transformer"])
    flat = [dict(jax.tree_util.tree_flatten_with_path(state)[0]) for state in found]
    assert flat[0].keys() == flat[1].keys()
    for path, array in flat[0].items():
        expected, actual = np.asarray(array, np.float64), np.asarray(flat[1][path], np.float64)
        norm = max(float(np.linalg.norm(expected)), 1e-12)
        assert np.linalg.norm(expected - actual) <= LAYOUT * norm, path


def test_a_folder_of_all_weights_is_a_model(made, tmp_path):
    """diffusers loads it, and it holds what was trained, in the checkpoint's order."""
    model, data = made
    config = config_of(model, data, trains="full", steps=2)
    outcome, _ = run(config, tmp_path / "run")
    loaded = WanTransformer3DModel.from_pretrained(outcome.result / "transformer")
    base = WanTransformer3DModel.from_pretrained(model / "transformer")
    assert loaded.config["num_layers"] == base.config["num_layers"]
    moved = [
        (new - old).abs().max().item()
        for (_, new), (_, old) in zip(
            loaded.state_dict().items(), base.state_dict().items(), strict=True
        )
    ]
    # Two updates of Adam move each number by at most twice the rate.
    assert 1e-3 <= max(moved) <= 2.5e-3
    assert (outcome.result / "vae" / "config.json").exists()
    assert (outcome.result / "model_index.json").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(made, tmp_path):
    config = config_of(*made, steps=4, save=SaveConfig(every_minutes=0, every_steps=2, keep=9))
    run(config, tmp_path / "run", stop_after=2)
    broken = dataclasses.replace(config, optimiser=OptimiserConfig(learning_rate=1e30))
    with pytest.raises(InputError, match=r"optimiser\.learning_rate was 0\.001, is 1e\+30"):
        run(broken, tmp_path / "run")
    with pytest.raises(BadNumbersError, match="training step"):
        run(with_steps(broken, 12), tmp_path / "other")


def test_checkpoints_by_steps_are_kept_as_many_as_asked(made, tmp_path):
    config = config_of(*made, steps=7, save=SaveConfig(every_minutes=0, every_steps=2, keep=2))
    _, lines = run(config, tmp_path / "run")
    assert [line.step for line in lines if isinstance(line, Saved)] == [2, 4, 6, 7]
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps == [6, 7]
    assert read_run(tmp_path / "run")["data_digest"]


@pytest.fixture(scope="module")
def on_one_device(made, tmp_path_factory):
    """(folder, losses) of twenty steps on one device, made once for each kind of training."""

    @functools.cache
    def make(trains):
        folder = tmp_path_factory.mktemp("one") / trains
        _, lines = run(config_of(*made, trains=trains, steps=20), folder)
        return folder, losses(lines)

    return make


@pytest.mark.parametrize(
    ("layout", "trains"),
    [
        ("sp8", "lora"),
        *(
            pytest.param(layout, trains, marks=pytest.mark.slow)
            for layout in ("dp2-sp2-tp2", "sp8", "sp8 ring", "tp8")
            for trains in ("lora", "full")
            if (layout, trains) != ("sp8", "lora")
        ),
    ],
)
def test_twenty_steps_are_the_same_on_a_mesh(made, on_one_device, tmp_path, layout, trains):
    """Three heads, which no layout divides: all of them pad."""
    config = config_of(*made, trains=trains, layout=layout, steps=20)
    folder, expected = on_one_device(trains)
    _, found = run(config, tmp_path / "other")
    assert relative_error(losses(found), expected) <= LAYOUT
    assert_same_states(folder, tmp_path / "other")
