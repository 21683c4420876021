"""wan-tiny learns a new word by textual inversion, judged on pixels."""

from typing import Any

import numpy as np
import pytest

from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.sample import Batch
from wan_tpu.demo import data
from wan_tpu.demo.recognition import judge_frames
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.load import load_vae_of, place_model
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout
from wan_tpu.text.embedding_file import read_embedding
from wan_tpu.training.config import (
    DataConfig,
    EmbeddingConfig,
    FlowConfig,
    OptimiserConfig,
    TrainConfig,
    TrainingConfig,
)
from wan_tpu.training.embedding import VECTORS, write_embedding
from wan_tpu.training.trainer import Trainer

WORD, COLOUR, SHAPE = "zork", "purple", "triangle"
"""What the word comes to mean; it begins as a red circle."""

CLIPS, SIDE, SEED = 24, 64, 0
CONFIG = TrainingConfig(
    data=DataConfig(caption_dropout=0.0),
    train=TrainConfig(trains="embedding", steps=120, batch=6, seed=SEED),
    # What a shape is and its colour are decided where there is much noise.
    flow=FlowConfig(shift=5.0, min_sigma=0.3),
    optimiser=OptimiserConfig(learning_rate=0.1, schedule="cosine", clip_norm=0.0),
    embedding=EmbeddingConfig(word=WORD, vectors=2, start="red circle"),
)


def caption_of(scene: data.Scene, word: str = WORD) -> str:
    return scene.prompt.replace(f"{COLOUR} {SHAPE}", word)


def make_samples(model, scenes, numbers):
    """Captions with the word and the encoded clips."""
    vae: Any = load_vae_of(model, "flax")
    programs = [stage.compile() for stage in vae.encode_stages(SIDE, SIDE, 17)]
    captions, latents = [], []
    for number in range(CLIPS):
        scene = scenes[number % len(scenes)]
        clip = data.make_clip(scene, numbers, data.SIDES_WORLD) * 2 - 1
        mean = vae.moments(clip[None].astype(np.float32), programs).mean
        latents.append(model.vae.normalise(mean)[0])
        captions.append(caption_of(scene))
    return captions, np.stack(latents)


def share_right(pipeline, scenes, word, draws) -> float:
    """Of fresh draws, those whose every word is right, the new one with its colour and shape."""
    numbers, right = np.random.default_rng(SEED + 1), 0
    for _ in range(draws):
        scene = scenes[numbers.integers(len(scenes))]
        seed = int(numbers.integers(2**31))
        frames = pipeline(VideoRequest(prompt=caption_of(scene, word), seed=seed)).frames
        right += all(judge_frames(frames).right_words(scene).values())
    return right / draws


@pytest.mark.slow
def test_wan_tiny_learns_a_word(tmp_path, devices):
    description = open_model("wan-tiny")
    model = place_model(description, layout=Layout(), devices=devices[:1])
    geometry = Geometry(
        width=SIDE, height=SIDE, num_frames=17, compression=compression_of(description)
    )
    numbers = np.random.default_rng(SEED)
    scenes = [s for s in data.all_scenes() if (s.color, s.shape) == (COLOUR, SHAPE)]
    captions, latents = make_samples(model, scenes, numbers)

    trainer = Trainer(CONFIG, model)
    states = trainer.load()
    before = {name: np.array(x) for name, x in trainer.frozen("transformer").items()}
    start = np.array(states["embedding"].trained[VECTORS])
    nothing = np.zeros((512, 64), np.float32)  # no caption is left out
    for step in range(CONFIG.train.steps):
        picked = numbers.permutation(CLIPS)[: CONFIG.train.batch]
        batch = Batch(
            geometry=geometry,
            names=tuple(map(str, picked)),
            captions=tuple(captions[n] for n in picked),
            latents=latents[picked],
            text=np.zeros((CONFIG.train.batch, 512, 64), np.float32),
        )
        states, _ = trainer.run(states, batch, step, nothing)
    for name, array in trainer.frozen("transformer").items():
        np.testing.assert_array_equal(np.array(array), before[name], err_msg=name)

    learnt = np.array(states["embedding"].trained[VECTORS])
    files = [
        write_embedding(tmp_path / f"{name}.safetensors", CONFIG.embedding, vectors, {})
        for name, vectors in ((WORD, learnt), ("begun", start))
    ]
    pipeline = VideoPipeline.load(
        description,
        layout=Layout(),
        devices=devices[:1],
        embeddings=[read_embedding(f"{path}:{path.stem}") for path in files],
    )
    assert share_right(pipeline, scenes, WORD, draws=24) >= 0.8
    assert share_right(pipeline, scenes, "begun", draws=4) == 0
