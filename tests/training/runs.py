"""Small runs: a random model, prepared samples of it, and a run that is done in this process."""

import dataclasses
import pathlib

import jax
import numpy as np

from tests.checkpoint_factory import make_random_model
from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.cache import LATENTS, SAMPLES, TEXT, TEXTS, Cache, Made
from wan_tpu.dataset.digests import Digests, encoder_digests
from wan_tpu.dataset.manifest import Manifest, Prepared, write_manifest
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.load import place_model
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.training.config import (
    DataConfig,
    MachineConfig,
    ModelConfig,
    OptimiserConfig,
    SaveConfig,
    TrainConfig,
    TrainingConfig,
)
from wan_tpu.training.run import train
from wan_tpu.training.run_folder import open_run

SIZE = (48, 32, 9)
SAMPLES_IN_DATA = 7


def place_on_first_devices(config, description):
    """In place of `place_for_training`: a layout of fewer than all devices takes the first ones."""
    layout = parse_layout(config.machine.layout)
    return place_model(
        description,
        layout=layout,
        devices=jax.devices()[: layout.num_devices],
        attention=config.machine.attention,
    )


def make_model_and_data(folder: pathlib.Path, kind: str = "t2v") -> tuple[pathlib.Path, ...]:
    """A random model's folder, and samples as `prepare` makes them for it."""
    model = make_random_model(folder / "model", kind)
    return model, write_samples(folder / "data", model)


def write_samples(folder: pathlib.Path, model: pathlib.Path) -> pathlib.Path:
    """Random latents and texts."""
    description, cache, draws = open_model(str(model)), Cache(folder), np.random.default_rng(0)
    folder.mkdir()
    cache.make_folders()
    digests = encoder_digests(description, Digests(folder))
    made = Made(encoders=digests, dtype="float32", vae_dtype="float32", inputs=())
    compression = compression_of(description)
    width, height, num_frames = SIZE
    channels = description.configs["transformer"]["out_channels"]
    text_dim = description.configs["transformer"]["text_dim"]
    shape = (
        (num_frames - 1) // compression.temporal + 1,
        height // compression.spatial,
        width // compression.spatial,
        channels,
    )

    def text(caption: str, num_tokens: int) -> str:
        return cache.write(
            TEXTS, made.text(caption), {TEXT: draws.normal(size=(num_tokens, text_dim))}
        )

    def latents(number: int) -> str:
        what = made.sample(media=str(number), clip={})
        return cache.write(SAMPLES, what, {LATENTS: draws.normal(size=shape)})

    samples = [
        Prepared(
            name=f"{number}.mp4@0",
            caption=f"caption {number}",
            sample=latents(number),
            text=text(f"caption {number}", 3 + number % 3),
            size=SIZE,
        )
        for number in range(SAMPLES_IN_DATA)
    ]
    manifest = Manifest(
        model=description.name,
        encoders=digests,
        inputs=(),
        compression=compression,
        source="clips",
        settings={},
        empty_text=text("", 1),
        samples=tuple(samples),
        refused=(),
    )
    write_manifest(folder, manifest)
    return folder


def config_of(model, data, *, trains="lora", layout="single", steps=8, **tables) -> TrainingConfig:
    """A run of four samples a step, saved at its end alone."""
    values = {
        "model": ModelConfig(name=str(model)),
        "data": DataConfig(path=str(data), caption_dropout=0.3),
        "train": TrainConfig(trains=trains, batch=4, steps=steps, seed=3),
        "optimiser": OptimiserConfig(learning_rate=1e-3),
        "machine": MachineConfig(layout=layout, attention="reference"),
        "save": SaveConfig(every_minutes=0, keep=100),
        **tables,
    }
    return TrainingConfig(**values)


def with_steps(config: TrainingConfig, steps: int) -> TrainingConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def run(config: TrainingConfig, folder: pathlib.Path, *, stop_after: int | None = None):
    """Trains in `folder`, as the command line does; stops before the step after `stop_after`.

    Returns:
        the outcome, and the lines of the log.
    """
    lines, asked = [], iter(range(1_000_000))
    begin = [None]

    def should_stop() -> bool:
        number = next(asked)
        return stop_after is not None and (begin[0] or 0) + number >= stop_after

    def note(line) -> None:
        if begin[0] is None and type(line).__name__ == "Started":
            begin[0] = line.step
        lines.append(line)

    with open_run(folder, config) as opened:
        outcome = train(config, opened, on_progress=note, should_stop=should_stop)
    return outcome, lines
