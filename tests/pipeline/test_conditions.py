"""What becomes of a request's pictures, against diffusers' `prepare_latents`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

from tests.checkpoint_factory import VAE
from tests.tolerances import PARITY, relative_error
from wan_tpu import family
from wan_tpu.geometry import Compression, Geometry
from wan_tpu.pipeline.conditions import (
    FurtherChannels,
    KeptFirstFrame,
    NoisedClip,
    NoPictures,
    way_of_pictures,
)
from wan_tpu.pipeline.drawn import draw
from wan_tpu.pipeline.latents import make_noise, to_tokens
from wan_tpu.pipeline.pictures import Picture
from wan_tpu.transformer.patches import unpatchify
from wan_tpu.vae.config import VaeConfig

WIDTH, HEIGHT = 32, 16
SMALL = {**VAE, "dim_mult": [1, 1, 1], "temperal_downsample": [True, True]}
COMPRESSION = Compression(spatial=4, temporal=4)


def geometry_of(num_frames: int) -> Geometry:
    return Geometry(width=WIDTH, height=HEIGHT, num_frames=num_frames, compression=COMPRESSION)


def picture(seed: int) -> Picture:
    pixels = draw(WIDTH, HEIGHT, seed=seed)
    return Picture(given=(WIDTH, HEIGHT), whole=pixels, fitted=pixels[None])


PICTURES = {"image": picture(1), "last_image": picture(2)}


@pytest.fixture(scope="module")
def vae():
    """diffusers' autoencoder: it encodes for both; ours is compared with it elsewhere."""
    torch.manual_seed(0)
    return AutoencoderKLWan(**SMALL).eval()


def to_torch(frames: np.ndarray) -> torch.Tensor:
    """`[..., height, width, 3]` bytes to `[..., 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.moveaxis(frames, -1, -3) / np.float32(255)) * 2 - 1


def prepare_latents(vae: Any, num_frames: int, *, last: bool) -> np.ndarray:
    """What diffusers gives the transformer beside the noise, `[1, frames, height, width, 10]`."""
    pipeline: Any = WanImageToVideoPipeline.__new__(WanImageToVideoPipeline)
    pipeline.register_to_config(expand_timesteps=False)
    pipeline.vae = vae
    pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial = 4, 4
    pixels = {role: to_torch(each.fitted) for role, each in PICTURES.items()}
    with torch.no_grad():
        _, condition = pipeline.prepare_latents(
            pixels["image"], 1, 6, HEIGHT, WIDTH, num_frames, torch.float32, torch.device("cpu"),
            last_image=pixels["last_image"] if last else None,
        )  # fmt: skip
    return condition.numpy().transpose(0, 2, 3, 4, 1)


def encode(vae: Any, video: np.ndarray) -> np.ndarray:
    """Normalised latents of a video in [-1, 1], channels last."""
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(video.transpose(0, 4, 1, 2, 3))).latent_dist.mode()
    return VaeConfig.from_json(vae.config).normalise(mean.numpy().transpose(0, 2, 3, 4, 1))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("num_frames", [1, 5, 81])
def test_further_channels_equal_diffusers(vae, num_frames, last):
    """Grey between the pictures, the mask before the video, the last picture at the last frame."""
    if num_frames == 1 and last:
        return  # refused: `test_check`
    geometry = geometry_of(num_frames)
    roles = frozenset({"image", "last_image"} if last else {"image"})
    way = FurtherChannels(roles=roles)
    video = way.video(PICTURES, geometry)
    assert video.shape == (1, way.num_frames(geometry), HEIGHT, WIDTH, 3)
    tokens = way.tokens(encode(vae, video), geometry)
    got = np.asarray(unpatchify(jnp.asarray(tokens), geometry))
    assert relative_error(got, prepare_latents(vae, num_frames, last=last)) <= PARITY


@pytest.mark.parametrize(
    ("num_frames", "roles", "first", "last"),
    [
        (1, "image", (1, 1, 1, 1), (1, 1, 1, 1)),
        (1, "last_image", (1, 1, 1, 1), (1, 1, 1, 1)),
        (5, "image", (1, 1, 1, 1), (0, 0, 0, 0)),
        (5, "image last_image", (1, 1, 1, 1), (0, 0, 0, 1)),
        (5, "last_image", (0, 0, 0, 0), (0, 0, 0, 1)),
        (81, "image", (1, 1, 1, 1), (0, 0, 0, 0)),
        (81, "image last_image", (1, 1, 1, 1), (0, 0, 0, 1)),
        (81, "last_image", (0, 0, 0, 0), (0, 0, 0, 1)),
    ],
)
def test_the_mask_of_first_and_last_latent_frame(num_frames, roles, first, last):
    geometry = geometry_of(num_frames)
    mask = FurtherChannels(roles=frozenset(roles.split())).mask(geometry)
    assert mask.shape == (1, (num_frames + 3) // 4, HEIGHT // 4, WIDTH // 4, 4)
    assert (mask[0, 0] == first).all()
    assert (mask[0, -1] == last).all()
    assert not mask[0, 1:-1].any()


def test_a_last_picture_alone_leaves_the_first_frame_grey():
    video = FurtherChannels(roles=frozenset({"last_image"})).video(PICTURES, geometry_of(9))
    assert not video[:, :-1].any()
    assert np.abs(video[0, -1] - (PICTURES["last_image"].fitted[0] / 127.5 - 1)).max() < 1e-6


def test_a_kept_first_frame_is_its_tokens_and_comes_back(vae):
    geometry, way = geometry_of(9), KeptFirstFrame(roles=frozenset({"image"}))
    assert way.num_frames(geometry) == 1
    encoded = encode(vae, way.video(PICTURES, geometry))
    latents = make_noise(3, geometry, 6)
    tokens = way.tokens(encoded, geometry)
    _, rows, columns = geometry.grid
    assert tokens.shape == (1, rows * columns, 24)
    whole = to_tokens(np.concatenate([encoded, latents[:, 1:]], axis=1), geometry)
    np.testing.assert_array_equal(tokens, whole[:, : rows * columns])
    finished = way.finish(latents, encoded)
    np.testing.assert_array_equal(finished[:, :1], encoded)
    np.testing.assert_array_equal(finished[:, 1:], latents[:, 1:])


@pytest.mark.parametrize(
    ("kind", "roles", "expected"),
    [
        (family.TEXT_TO_VIDEO, "", NoPictures),
        (family.TEXT_TO_VIDEO, "video", NoisedClip),
        (family.TEXT_TO_VIDEO_A14B, "video", NoisedClip),
        (family.IMAGE_TO_VIDEO, "image", FurtherChannels),
        (family.FIRST_LAST_FRAME_TO_VIDEO, "image last_image", FurtherChannels),
        (family.IMAGE_TO_VIDEO_A14B, "last_image", FurtherChannels),
        (family.TEXT_IMAGE_TO_VIDEO, "", NoPictures),
        (family.TEXT_IMAGE_TO_VIDEO, "image", KeptFirstFrame),
        (family.TEXT_IMAGE_TO_VIDEO, "video", NoisedClip),
    ],
)
def test_each_kind_has_its_way(kind, roles, expected):
    assert type(way_of_pictures(kind, frozenset(roles.split()))) is expected
