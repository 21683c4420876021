"""Samples on the way: what generating with the result gives, and the training is as without."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.tolerances import MERGED, relative_error
from tests.training.runs import config_of, make_model_and_data, place_on_first_devices, run
from wan_tpu.adapters.choice import AdapterChoice
from wan_tpu.adapters.chosen import open_adapters
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import InputError
from wan_tpu.pipeline.video_file import VideoWriter, read_frames
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import named, place
from wan_tpu.text.embedding_file import read_embedding
from wan_tpu.torch_module import LORA_DOWN, LORA_UP
from wan_tpu.training.config import (
    EmbeddingConfig,
    LoraConfig,
    OptimiserConfig,
    SampleConfig,
)
from wan_tpu.training.metrics import Sampled, Saved, Stage, Step
from wan_tpu.training.run import train
from wan_tpu.training.run_folder import open_run
from wan_tpu.training.sample_requests import read_prompts, sample_requests
from wan_tpu.training.samples import BASE, Sampler, file_of, folder_of_step, model_for_samples
from wan_tpu.training.trainer import Trainer

SAMPLES = SampleConfig(
    every_steps=2, prompts=("caption 3", "a fox"), seed=7, steps=2, size="32x16", num_frames=5
)
ONE = dataclasses.replace(SAMPLES, prompts=("caption 3",))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model_and_data(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def few_devices(monkeypatch):
    """A layout of fewer than the eight devices takes the first ones."""
    monkeypatch.setattr("wan_tpu.training.run.place_for_training", place_on_first_devices)


def run_of(made, trains, **tables):
    """Five steps that are seen in pixels."""
    return config_of(
        *made,
        trains=trains,
        steps=5,
        optimiser=OptimiserConfig(learning_rate=0.03),
        lora=LoraConfig(rank=2, dropout=0.2),
        embedding=EmbeddingConfig(word="caption", vectors=2, start="red circle"),
        **tables,
    )


def losses(lines):
    return [line.loss for line in lines if isinstance(line, Step)]


def generated(model, requests, folder, **choices):
    """What `generate` writes of the same requests, read back."""
    layout = parse_layout("single")
    pipeline = VideoPipeline.load(
        open_model(str(model)),
        layout=layout,
        devices=jax.devices()[:1],
        attention="reference",
        **choices,
    )
    found = []
    for number, request in enumerate(requests):
        path, frames = folder / f"{number}.mp4", pipeline(request).frames
        with VideoWriter(path, fps=request.fps, width=32, height=16) as writer:
            writer.write(frames)
        found.append(read_frames(path))
    return found


def sampled(folder, count=2):
    return [read_frames(folder / file_of(number)) for number in range(count)]


def choices_of(trains, result):
    if trains == "lora":
        return {"adapters": open_adapters((AdapterChoice.parse(str(result)),))}
    return {"embeddings": (read_embedding(str(result)),)} if trains == "embedding" else {}


@pytest.mark.parametrize(
    "trains", ["lora", "embedding", pytest.param("full", marks=pytest.mark.slow)]
)
def test_samples_show_what_the_result_makes(made, tmp_path, trains):
    """Red when a sample is of other parameters, or the training is not as it is without."""
    config = run_of(made, trains, samples=SAMPLES)
    outcome, lines = run(config, tmp_path / "with")
    files = [(line.step, list(line.files)) for line in lines if isinstance(line, Sampled)]
    assert files == [
        (step, [f"samples/{name}/{file_of(number)}" for number in range(2)])
        for step, name in [(0, BASE), *((step, folder_of_step(step)) for step in (2, 4, 5))]
    ]
    requests = sample_requests(SAMPLES, open_model(str(made[0])))
    assert [request.seed for request in requests] == [7, 8]
    samples = tmp_path / "with" / "samples"
    model = outcome.result if trains == "full" else made[0]
    found, last = sampled(samples / BASE), sampled(samples / folder_of_step(5))
    expected = generated(model, requests, tmp_path, **choices_of(trains, outcome.result))
    changed = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, last, strict=True)]
    for frames, other in zip(last, expected, strict=True):
        assert frames.shape == (5, 16, 32, 3)
        away = np.abs(frames.astype(int) - other).mean()
        # A LoRA's file is bfloat16 and the state float32; the others' files are as the state.
        assert away < (changed[0] / 5 if trains == "lora" else 0.5), (away, changed)
    assert changed[0] > 1  # the second prompt has no word that is trained
    if trains == "embedding":
        assert np.array_equal(found[1], last[1])
    if trains == "lora":
        _, without = run(dataclasses.replace(config, samples=SampleConfig()), tmp_path / "without")
        assert losses(lines) == losses(without)
        _, lines = run(config, tmp_path / "with")
        assert not [line for line in lines if isinstance(line, Sampled)]  # they are there
        base = generated(made[0], requests, tmp_path)
        assert all(np.array_equal(a, b) for a, b in zip(found, base, strict=True))


@pytest.mark.parametrize("layout", ["single", "dp2-sp2-tp2"])
def test_a_lora_is_added_to_the_weights_that_it_stands_beside(made, layout):
    """W + scale B A in double precision; red when factors, scale or layers are mixed up."""
    tables = {"lora": LoraConfig(rank=2, alpha=6.0, targets=("attn1.to_q", "ffn.net.2"))}
    config = config_of(*made, layout=layout, **tables)
    trainer = Trainer(config, place_on_first_devices(config, open_model(str(made[0]))))
    trainer.load_frozen()
    frozen, of_step = trainer.frozen("transformer"), trainer.step.trained
    draws = np.random.default_rng(0)
    state = {
        weight.name: place(
            draws.normal(size=weight.shape).astype(np.float32), named(trainer.model.mesh)
        )
        for weight in of_step.weights()
    }
    merged, changed = of_step.merged(frozen, state), []
    assert merged.keys() == frozen.keys()
    for name, array in merged.items():
        assert array.sharding == frozen[name].sharding
        if array is not frozen[name]:
            changed.append(name)
            stem = name.removesuffix("weight")
            up, down = (np.float64(state[f"{stem}{end}"]) for end in (LORA_UP, LORA_DOWN))
            expected = np.float64(frozen[name]) + 3 * np.einsum("lor,lri->loi", up, down)
            assert relative_error(np.asarray(array), expected) < MERGED
    assert sorted(name.split(".*.")[1] for name in changed) == [
        "attn1.to_q.weight",
        "ffn.net.2.weight",
    ]


def test_videos_are_there_once_all_of_them_are_of_these_requests(made, tmp_path, monkeypatch):
    """And dp4, which is no way to split guidance: the same devices share the tokens."""
    monkeypatch.setattr("wan_tpu.training.samples.file_of", lambda number: f"{number}.npy")
    description = open_model(str(made[0]))
    requests, frames = sample_requests(ONE, description), []
    for layout in ("dp4", "single"):
        config = run_of(made, "lora", layout=layout)
        trainer = Trainer(config, place_on_first_devices(config, description))
        trainer.load_frozen()
        sampler, folder = Sampler(trainer, requests), tmp_path / layout
        assert not sampler.has(folder)
        (path,) = sampler.trained(trainer.begin(), folder)
        assert sampler.has(folder)
        frames.append(np.load(path).astype(int))
    assert str(model_for_samples(trainer.model).layout) == "single"
    assert np.abs(frames[0] - frames[1]).max() <= 1  # a rounding of a pixel
    sampler.requests = sample_requests(dataclasses.replace(ONE, seed=8), description)
    assert not sampler.has(folder)
    sampler.requests = requests
    path.unlink()
    assert not sampler.has(folder)


def test_who_stops_in_a_sample_has_a_whole_checkpoint(made, tmp_path):
    """The sample is given up and the state is saved."""
    config, lines = run_of(made, "lora", samples=ONE), []

    def is_in_sample() -> bool:
        return any(isinstance(line, Stage) and line.name == "samples" for line in lines)

    with open_run(tmp_path / "run", config) as folder:
        outcome = train(config, folder, on_progress=lines.append, should_stop=is_in_sample)
    assert (outcome.step, outcome.result) == (2, None)
    assert [line.step for line in lines if isinstance(line, Sampled)] == [0]
    assert [line.step for line in lines if isinstance(line, Saved)] == [2]
    assert not list((folder.samples / folder_of_step(2)).iterdir())


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "no prompt"), (b"\xff\xfe", "UTF-8")])
def test_prompts_that_are_none(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "p.txt")


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("a fox\n\n  two foxes \n")
    assert read_prompts(tmp_path / "p.txt") == ("a fox", "two foxes")
