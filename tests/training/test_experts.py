"""Both experts of a model in one run: each learns inside its own noise levels, and it goes on."""

import dataclasses

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.training.runs import config_of, make_model_and_data, place_on_first_devices, run
from wan_tpu.training.config import LoraConfig, ModelConfig
from wan_tpu.training.export import export
from wan_tpu.training.metrics import Step
from wan_tpu.training.trainer import Trainer

BOUNDARY, HIGH, LOW = 0.875, "transformer", "transformer_2"
STEPS, STOP = 8, 3
EXPERTS = [LOW, LOW, LOW, HIGH, LOW, LOW, HIGH, LOW]
"""Of the steps: with shift 3 the high one has 0.3 of all draws."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model_and_data(tmp_path_factory.mktemp("made"), "t2v-a14b")


@pytest.fixture
def drawn(monkeypatch):
    """(transformer, noise levels) of every step of this process's runs."""
    found, plain = [], Trainer.run

    def noted(self, states, batch, step, empty_text):
        states, metrics = plain(self, states, batch, step, empty_text)
        found.append((self.expert_of(step), np.asarray(metrics.sigma)))
        return states, metrics

    monkeypatch.setattr(Trainer, "run", noted)
    monkeypatch.setattr("wan_tpu.training.run.place_for_training", place_on_first_devices)
    return found


def tensors_of(trains, folder):
    """What each transformer has become, by its name."""
    if trains == "lora":
        files = {HIGH: "result_high_noise.safetensors", LOW: "result_low_noise.safetensors"}
    else:
        weights = "diffusion_pytorch_model.safetensors"
        files = {name: f"result/{name}/{weights}" for name in (HIGH, LOW)}
    return {
        name: {key: tensor.float().numpy() for key, tensor in load_file(folder / file).items()}
        for name, file in files.items()
    }


@pytest.mark.parametrize("trains", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_each_expert_learns_inside_its_own_noise_levels(made, drawn, tmp_path, trains):
    config = config_of(*made, trains=trains, steps=STEPS, lora=LoraConfig(rank=2))
    config = dataclasses.replace(config, model=ModelConfig(name=config.model.name, expert="both"))
    halted, first = run(config, tmp_path / "parts", stop_after=STOP)
    assert (halted.step, halted.is_finished) == (STOP, False)
    if trains == "lora":  # B is zero until its transformer has had a step
        paths = export(tmp_path / "parts", tmp_path / "early.safetensors", style="diffusers")
        assert [path.name for path in paths] == [
            "early_high_noise.safetensors",
            "early_low_noise.safetensors",
        ]
        moved = [
            max(tensor.abs().max().item() for key, tensor in load_file(path).items() if "_B" in key)
            for path in paths
        ]
        assert moved[0] == 0 < moved[1]
    outcome, second = run(config, tmp_path / "parts")
    assert outcome.is_finished
    steps = [line for line in first + second if isinstance(line, Step)]
    names = {HIGH: "high", LOW: "low"}
    assert [list(line.loss_by_expert) for line in steps] == [[names[name]] for name in EXPERTS]
    assert [name for name, _ in drawn] == EXPERTS
    for name, sigmas in drawn:
        assert np.all(sigmas >= BOUNDARY if name == HIGH else sigmas <= BOUNDARY), name

    run(config, tmp_path / "whole")
    found, expected = (tensors_of(trains, tmp_path / name) for name in ("parts", "whole"))
    for name in (HIGH, LOW):
        assert found[name].keys() == expected[name].keys()
        for key, tensor in expected[name].items():
            assert np.array_equal(found[name][key], tensor), (name, key)
    some = next(key for key in expected[HIGH] if "ffn" in key and "lora_A" not in key)
    assert not np.array_equal(expected[HIGH][some], expected[LOW][some])
