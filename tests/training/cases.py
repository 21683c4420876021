"""Small models and batches for training, and the same loss in PyTorch through diffusers' model."""

import dataclasses

import jax
import numpy as np
import torch
from diffusers import WanTransformer3DModel

from tests.checkpoint_factory import make_random_model
from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.dataset.sample import Batch
from wan_tpu.family import Conditioning
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.load import place_model
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.training.config import DataConfig, TrainConfig, TrainingConfig
from wan_tpu.training.objective import SigmaRange, draw, step_key, weight_of
from wan_tpu.training.trainer import Trainer

SAMPLES = 4
CAPTION_TOKENS = 7


def config_of(trains="lora", **tables) -> TrainingConfig:
    """A run of four samples a step with everything that is random in it."""
    values = {
        "train": TrainConfig(trains=trains, batch=SAMPLES, steps=20, seed=3),
        "data": DataConfig(caption_dropout=0.3),
        **tables,
    }
    return TrainingConfig(**values)


def model_on(folder, layout: str, attention: str = "reference", **kwargs):
    """A checkpoint on the first devices, in float32, without weights."""
    parsed = parse_layout(layout, **kwargs)
    return place_model(
        open_model(str(folder)),
        layout=parsed,
        devices=jax.devices()[: parsed.num_devices],
        attention=attention,
    )


def geometry_of(model, width=48, height=32, num_frames=9) -> Geometry:
    """A small video: 2 x 3 x 3 tokens with Wan 2.1's autoencoder, which no layout divides."""
    compression = compression_of(model.description)
    return Geometry(width=width, height=height, num_frames=num_frames, compression=compression)


def batch_of(model, geometry: Geometry, seed=0, samples=SAMPLES) -> Batch:
    """Random samples; captions of a few tokens."""
    numbers = np.random.default_rng(seed)
    size = (geometry.latent_frames, geometry.latent_height, geometry.latent_width)

    def normal(*shape):
        return numbers.normal(size=(samples, *shape)).astype(np.float32)

    config = model.denoiser.config
    text = np.zeros((samples, TEXT_TOKENS, config.text_dim), np.float32)
    text[:, :CAPTION_TOKENS] = normal(CAPTION_TOKENS, config.text_dim)
    kind, condition, image = model.description.kind, None, None
    if kind.conditioning is Conditioning.CHANNELS:
        condition = normal(*size, config.in_channels - config.out_channels)
    if kind.has_image_encoder:
        pictures = min(len(roles) for roles in kind.inputs)
        image = normal(model.image_tokens(pictures), config.image_dim)
    return Batch(
        geometry=geometry,
        names=tuple(map(str, range(samples))),
        latents=normal(*size, config.out_channels),
        text=text,
        condition=condition,
        image=image,
    )


def empty_text(model) -> np.ndarray:
    """Something else than zeros, so that it shows where it is used."""
    text = np.zeros((TEXT_TOKENS, model.denoiser.config.text_dim), np.float32)
    text[0] = 0.5
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A model of a kind, its folder and diffusers' transformer."""

    folder: object
    original: WanTransformer3DModel


def make_case(folder, kind="t2v") -> Case:
    """A random model whose weights all matter."""
    make_random_model(folder, kind)
    original = WanTransformer3DModel.from_pretrained(folder / "transformer").eval()
    return Case(folder, original)


def torch_loss(
    transformer, trainer: Trainer, batch: Batch, step: int, empty, text: torch.Tensor | None = None
) -> torch.Tensor:
    """The step's loss through diffusers' transformer, with the same draws.

    `text` takes the place of the batch's embeddings, with what it was computed from.
    """
    config, model = trainer.config, trainer.model
    geometry, latents = batch.geometry, np.moveaxis(batch.latents, -1, 1)
    patch = geometry.compression.patch
    channels = model.denoiser.config.token_channels
    low, high = trainer.sigmas_of(trainer.expert_of(step))
    draws = draw(
        step_key(config.train.seed, np.int32(step)),
        np.arange(len(latents)),
        config.train.batch,
        (geometry.num_tokens, channels),
        config.flow,
        SigmaRange(np.float32(low), np.float32(high)),
        caption_dropout=config.data.caption_dropout,
        image_probability=config.data.image_probability,
    )
    x = torch.from_numpy(latents)
    noise = torch.from_numpy(_from_tokens(np.asarray(draws.noise), geometry, patch))
    sigma = torch.tensor(np.asarray(draws.sigma))
    text = torch.from_numpy(batch.text) if text is None else text
    left_out = torch.tensor(np.asarray(draws.without_caption))[:, None, None]
    text = torch.where(left_out, torch.from_numpy(empty), text)
    level = sigma[:, None, None, None, None]
    seen = (1 - level) * x + level * noise
    counted = torch.ones_like(x)
    timestep = 1000 * sigma
    if trainer.step.conditioning is Conditioning.FIRST_FRAME:
        given = torch.tensor(np.asarray(draws.with_picture))
        first = torch.zeros_like(x, dtype=torch.bool)
        first[:, :, 0] = given[:, None, None, None]
        seen = torch.where(first, x, seen)
        counted = (~first).float()
        tokens_a_frame = geometry.grid[1] * geometry.grid[2]
        timestep = timestep[:, None].repeat(1, geometry.num_tokens)
        timestep[:, :tokens_a_frame] *= (~given[:, None]).float()
    if batch.condition is not None:
        condition = torch.from_numpy(np.moveaxis(batch.condition, -1, 1))
        seen = torch.cat([seen, condition], dim=1)
    image = None if batch.image is None else torch.from_numpy(batch.image)
    if image is not None and transformer.config.pos_embed_seq_len is not None:
        image = image.reshape(2 * len(image), -1, image.shape[-1])
    predicted = transformer(
        hidden_states=seen.contiguous(),
        timestep=timestep,
        encoder_hidden_states=text,
        encoder_hidden_states_image=image,
        return_dict=False,
    )[0]
    squares = (predicted - (noise - x)) ** 2 * counted
    losses = squares.flatten(1).sum(1) / counted.flatten(1).sum(1)
    weights = torch.tensor(np.asarray(weight_of(np.asarray(draws.sigma), config.flow)))
    return (weights * losses).mean()


def _from_tokens(tokens: np.ndarray, geometry: Geometry, patch) -> np.ndarray:
    """`[batch, tokens, token channels]` to `[batch, channels, frames, height, width]`."""
    frames, rows, columns = geometry.grid
    x = tokens.reshape(len(tokens), frames, rows, columns, *patch, -1)
    x = x.transpose(0, 7, 1, 4, 2, 5, 3, 6)
    batch, channels = x.shape[:2]
    sizes = (geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    return np.ascontiguousarray(x.reshape(batch, channels, *sizes))


def as_tensors(weights: list[Weight], arrays) -> dict[str, np.ndarray]:
    """Arrays of a mesh by the checkpoint's names, in its order."""
    return {n: t for w in weights for n, t in w.to_tensors(arrays[w.name])}
