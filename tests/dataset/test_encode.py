"""What is encoded for training, against diffusers' pipelines on the same weights."""

import json
import math
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image

from tests.checkpoint_factory import make_random_model
from tests.tolerances import LAYOUT, PARITY, relative_error
from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.encode import encoders_of, load_encoders
from wan_tpu.dataset.jobs import PrepareOptions
from wan_tpu.dataset.loader import open_dataset
from wan_tpu.dataset.prepare import open_or_prepare
from wan_tpu.errors import InputError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.conditions import FurtherChannels
from wan_tpu.pipeline.drawn import draw
from wan_tpu.transformer.config import TransformerConfig

CAPTION = "a red circle moving right on a black background"
NUM_FRAMES = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of random models, by kind."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_random_model(folder / kind, kind) for kind in ("i2v", "flf2v", "ti2v")}


@pytest.fixture(scope="module")
def encoders(models):
    """Ours on one device, with the geometry of a clip, by kind."""

    def load(folder):
        description = open_model(str(folder))
        geometry = Geometry(
            width=64, height=32, num_frames=NUM_FRAMES, compression=compression_of(description)
        )
        return load_encoders(description, devices=jax.devices()[:1]), geometry

    return {kind: load(folder) for kind, folder in models.items()}


@pytest.fixture(scope="module")
def originals(models):
    """diffusers' pipelines, by kind."""
    made = {}
    for kind, folder in models.items():
        pipeline: Any = WanPipeline if kind == "ti2v" else WanImageToVideoPipeline
        made[kind] = pipeline.from_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def frames():
    """`[frames, height, width, 3]`, uint8, each another."""
    return np.stack([draw(64, 32, seed=number) for number in range(NUM_FRAMES)])


def to_torch(frames: np.ndarray) -> torch.Tensor:
    """`[n, height, width, 3]` bytes to `[n, 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.moveaxis(frames, -1, 1) / np.float32(255)) * 2 - 1


def original_latents(pipeline: Any, frames: np.ndarray) -> np.ndarray:
    """The mean, normalised as diffusers' pipelines do, channels last."""
    config = pipeline.vae.config
    with torch.no_grad():
        video = to_torch(frames).permute(1, 0, 2, 3)[None]
        mean = pipeline.vae.encode(video).latent_dist.mode()[0].permute(1, 2, 3, 0).numpy()
    return (mean - np.array(config.latents_mean)) / np.array(config.latents_std)


@pytest.mark.parametrize("kind", ["i2v", "ti2v"])
def test_latents_are_the_normalised_mean(encoders, originals, frames, kind):
    ours, geometry = encoders[kind]
    inputs = frozenset({"image"} if kind == "i2v" else ())
    encoded = ours.clip(frames, geometry, inputs)
    expected = original_latents(originals[kind], frames)
    assert encoded.latents.dtype == np.float32
    assert relative_error(encoded.latents, expected) <= PARITY
    if kind == "ti2v":  # its first frame is the latents' own
        assert encoded.condition is None
        assert encoded.image is None


@pytest.mark.parametrize(("kind", "inputs"), [("i2v", "image"), ("flf2v", "image last_image")])
def test_pictures_are_the_clips_own_frames(encoders, originals, frames, kind, inputs):
    """Condition and image tokens are those of a request with the first and the last frame."""
    ours, geometry = encoders[kind]
    encoded = ours.clip(frames, geometry, frozenset(inputs.split()))
    pipeline = originals[kind]
    given = [frames[0], frames[-1]][: len(inputs.split())]
    last = to_torch(frames[-1:]) if len(given) == 2 else None
    with torch.no_grad():
        _, expected = pipeline.prepare_latents(
            to_torch(frames[:1]), 1, 6, geometry.height, geometry.width, NUM_FRAMES,
            torch.float32, torch.device("cpu"), last_image=last,
        )  # fmt: skip
        tokens = pipeline.encode_image([Image.fromarray(each) for each in given])
    expected = expected[0].permute(1, 2, 3, 0).numpy()[..., 4:]  # without the mask
    assert relative_error(encoded.condition, expected) <= PARITY
    tokens = tokens.reshape(-1, tokens.shape[-1]).numpy()
    assert relative_error(encoded.image, tokens) <= PARITY


def test_captions_are_cleaned_and_have_their_real_tokens_alone(encoders, originals):
    ours, _ = encoders["i2v"]
    with torch.no_grad():
        expected, _ = originals["i2v"].encode_prompt(CAPTION, do_classifier_free_guidance=False)
    got = ours.text(f"  {CAPTION.replace(' ', chr(10), 1)} ")
    num_tokens = int((expected[0].abs().sum(-1) > 0).sum())
    assert got.shape == (num_tokens, expected.shape[-1])
    assert relative_error(got, expected[0, :num_tokens].numpy()) <= PARITY
    assert ours.text("").shape == (1, expected.shape[-1])  # the end token


@pytest.mark.slow  # the same stages are compared between layouts in tests/consistency
def test_several_devices_encode_as_one(models, encoders, frames):
    one, geometry = encoders["i2v"]
    two = load_encoders(open_model(str(models["i2v"])), devices=jax.devices()[:2])
    assert two.model.mesh.size == 2
    got, expected = (each.clip(frames, geometry, frozenset({"image"})) for each in (two, one))
    for name in ("latents", "condition", "image"):
        assert relative_error(getattr(got, name), getattr(expected, name)) <= LAYOUT


def test_prepared_batches_have_what_the_model_sees(models, encoders, frames, tmp_path, monkeypatch):
    """From the list to the batch: mask, encoded pictures, their tokens; one frame is too few."""
    ours, geometry = encoders["flf2v"]
    monkeypatch.setattr("wan_tpu.dataset.prepare.load_encoders", lambda *_, **__: ours)
    np.savez(tmp_path / "a.npz", frames=frames)
    Image.fromarray(frames[0]).save(tmp_path / "b.png")
    lines = ({"path": name, "caption": CAPTION} for name in ("a.npz", "b.png"))
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = PrepareOptions(sizes=((64, 32),), lengths=(NUM_FRAMES,), workers=0)
    description = open_model(str(models["flf2v"]))
    dataset = open_or_prepare(
        tmp_path / "list.jsonl", tmp_path / "data", description, options, devices=jax.devices()[:1]
    )
    assert dataset.manifest.inputs == ("image", "last_image")
    assert [(refusal.name, refusal.kind) for refusal in dataset.manifest.refused] == [
        ("b.png", "too-short")
    ]
    batch = next(dataset.batches(2, seed=0))
    inputs = frozenset(dataset.manifest.inputs)
    encoded = ours.clip(frames, geometry, inputs)
    mask = FurtherChannels(roles=inputs).mask(geometry)[0]
    for got, expected in (
        (batch.latents, encoded.latents),
        (batch.condition, np.concatenate([mask, encoded.condition], axis=-1)),
        (batch.image, encoded.image),
    ):
        rounded = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(got, np.stack([rounded] * 2))
    config = TransformerConfig.from_json(description.configs["transformer"])
    assert batch.condition is not None
    per_token = batch.condition.shape[-1] * math.prod(config.patch_size)
    assert per_token == config.condition_channels

    with pytest.raises(InputError, match=r"with image and last_image as inputs; .* needs image;"):
        open_dataset(dataset.folder, open_model(str(models["i2v"])))


def test_only_what_is_asked_for_is_read(models):
    """No transformer ever: its file is not even opened."""
    for path in (models["flf2v"] / "transformer").glob("*.safetensors"):
        path.write_bytes(b"not weights")
    description = open_model(str(models["flf2v"]))
    assert encoders_of(description) == (TEXT_ENCODER, IMAGE_ENCODER, VAE)
    loaded = load_encoders(description, (TEXT_ENCODER,), devices=jax.devices()[:1])
    assert list(loaded._params) == [TEXT_ENCODER]
    assert loaded._vae is None
