"""Evaluation: fixed clips, noise levels and noise; the same to the bit, and diffusers' numbers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.tolerances import LAYOUT, PARITY
from tests.training.cases import torch_loss
from tests.training.runs import (
    SAMPLES_IN_DATA,
    config_of,
    make_model_and_data,
    place_on_first_devices,
    run,
)
from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.loader import open_dataset
from wan_tpu.errors import InputError
from wan_tpu.pipeline.video_file import read_frames
from wan_tpu.training.asked import Asked
from wan_tpu.training.config import LoraConfig, ModelConfig, OptimiserConfig, SampleConfig
from wan_tpu.training.evaluate import (
    evaluate,
    levels_of,
    with_batch,
    without_chance,
)
from wan_tpu.training.evaluation_page import page_of
from wan_tpu.training.trainer import Trainer

GRID = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
PROMPTS = ('a "red" fox & <b>two</b> circles',)
SMALL = SampleConfig(steps=2, size="32x16", num_frames=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model_and_data(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def few_devices(monkeypatch):
    """A layout of fewer than the eight devices takes the first ones."""
    for module in ("run", "evaluate"):
        monkeypatch.setattr(f"wan_tpu.training.{module}.place_for_training", place_on_first_devices)


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """(folder, configuration) of a run of three steps with everything that is random in it."""
    config = config_of(
        *made,
        steps=3,
        optimiser=OptimiserConfig(learning_rate=0.03, ema_decay=0.5),
        lora=LoraConfig(rank=2, dropout=0.2),
        samples=SMALL,
    )
    folder = tmp_path_factory.mktemp("runs") / "fox"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wan_tpu.training.run.place_for_training", place_on_first_devices)
        run(config, folder)
    return folder, config


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    """(report, folder) of an evaluation with a video."""
    folder, config = finished
    output = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wan_tpu.training.evaluate.place_for_training", place_on_first_devices)
        page = evaluate(folder, config, Asked(clips=100, prompts=PROMPTS), output)
    assert page == output / "index.html"
    return json.loads((output / "evaluation.json").read_text()), output


def test_the_report_has_every_level_and_every_clip(report):
    told, output = report
    assert [row["sigma"] for row in told["losses"]] == GRID
    assert len(told["data"]["clips"]) == SAMPLES_IN_DATA
    for row in told["losses"]:
        assert len(row["base"]["clips"]) == len(row["trained"]["clips"]) == SAMPLES_IN_DATA
        assert row["base"]["mean"] != row["trained"]["mean"]
    (video,) = told["videos"]
    base, trained = (read_frames(output / video[which]) for which in ("base", "trained"))
    assert base.shape == trained.shape == (5, 16, 32, 3)
    assert np.abs(base.astype(int) - trained).mean() > 1
    assert (told["step"], told["ema"], told["trains"]) == (3, False, "lora")


def test_the_base_loses_what_diffusers_model_loses(report, made, finished):
    """Red when noise, clips, captions or noise levels are others than those that are fixed."""
    told, _ = report
    model, data = made
    config = with_batch(without_chance(finished[1]), SAMPLES_IN_DATA, 1)
    trainer = Trainer(config, place_on_first_devices(config, open_model(str(model))))
    dataset = open_dataset(data)
    batch = dataset.batch_of(range(SAMPLES_IN_DATA))
    original = WanTransformer3DModel.from_pretrained(model / "transformer").eval()
    for row in told["losses"][::3]:
        sigma = row["sigma"]
        trainer.sigmas_of = lambda expert, sigma=sigma: (sigma, sigma)
        with torch.no_grad():
            expected = torch_loss(original, trainer, batch, 0, dataset.empty_text)
        np.testing.assert_allclose(row["base"]["mean"], expected.item(), rtol=PARITY)


def test_twice_is_the_same_to_the_bit_and_another_layout_to_rounding(report, finished, tmp_path):
    """Seven clips on dp2: the last is computed twice and counts once."""
    told, _ = report
    folder, config = finished
    evaluate(folder, config, Asked(clips=100), tmp_path / "again")
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["losses"] == told["losses"]
    assert again["videos"] == []
    machine = dataclasses.replace(config.machine, layout="dp2")
    split = dataclasses.replace(config, machine=machine)
    evaluate(folder, split, Asked(clips=100), tmp_path / "split")
    split = json.loads((tmp_path / "split" / "evaluation.json").read_text())
    for row, other in zip(told["losses"], split["losses"], strict=True):
        for which in ("base", "trained"):
            np.testing.assert_allclose(row[which]["clips"], other[which]["clips"], rtol=LAYOUT)


def test_the_average_and_an_unknown_step(report, finished, tmp_path):
    told, _ = report
    folder, config = finished
    with pytest.raises(InputError, match=r"no checkpoint of step 2; it has 3"):
        evaluate(folder, config, Asked(step=2), tmp_path / "two")
    evaluate(folder, config, Asked(clips=2, ema=True), tmp_path / "ema")
    ema = json.loads((tmp_path / "ema" / "evaluation.json").read_text())
    assert ema["data"]["clips"] == [told["data"]["clips"][number] for number in (0, 3)]
    whole, average = (each["losses"][0] for each in (told, ema))
    np.testing.assert_allclose(average["base"]["clips"][0], whole["base"]["clips"][0], rtol=PARITY)
    difference = average["trained"]["clips"][0] / whole["trained"]["clips"][0] - 1
    assert abs(difference) > 10 * PARITY


def test_each_expert_is_judged_inside_its_own_range(tmp_path):
    from tests.checkpoint_factory import make_random_model

    model = make_random_model(tmp_path / "model", "i2v-a14b")
    config = config_of(model, tmp_path)
    config = dataclasses.replace(config, model=ModelConfig(name=str(model), expert="both"))
    trainer = Trainer(config, place_on_first_devices(config, open_model(str(model))))
    high, low = (levels_of(trainer, expert) for expert in trainer.experts)
    assert high == tuple(np.round(0.9 + 0.1 * np.arange(1, 8) / 8, 6))
    assert low == tuple(np.round(0.9 * np.arange(1, 8) / 8, 6))


def test_clips_of_several_sizes_are_grouped(made, monkeypatch):
    from wan_tpu.training import evaluate as module

    data = open_dataset(made[1])
    sizes = [(48, 32, 9), (32, 32, 9)]
    samples = [
        dataclasses.replace(each, size=sizes[number % 2])
        for number, each in enumerate(data.manifest.samples)
    ]
    monkeypatch.setattr(data, "manifest", dataclasses.replace(data.manifest, samples=samples))
    assert module._by_size(data, [0, 1, 2, 5]) == [[0, 2], [1, 5]]


def test_the_page_quotes_what_others_wrote(report):
    told, output = report
    page = (output / "index.html").read_text()
    assert page == page_of(told)
    assert "a &quot;red&quot; fox &amp; &lt;b&gt;two&lt;/b&gt; circles" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "http" not in page
    nothing = {**told["losses"][0], "trained": {"mean": None, "clips": [None]}}
    assert "no number" in page_of({**told, "losses": [nothing, *told["losses"][1:]]})
