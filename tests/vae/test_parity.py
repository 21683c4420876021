"""Our autoencoder against diffusers' own: decode and encode, streamed and whole."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from tests.vae.cases import CONFIGS, make_case, quick_jit
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae import convolution
from wan_tpu.vae.autoencoder import Decoder, with_params
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.convolution import CONVOLUTIONS, by_frame, folded
from wan_tpu.vae.spatial import SpatialSplit
from wan_tpu.vae.streaming import StreamingVae, to_uint8
from wan_tpu.vae.weights import DECODER

TOLERANCE = 1e-4
"""Of the range, float32."""

DECODED_RANGE = 2.0

CHUNKED = [(name, "by_frame", 5) for name in CONFIGS] + [
    ("narrow top", "folded", 2),
    ("wan 2.2", "folded", 2),
]


def make_vae(config: VaeConfig, convolution: str = "by_frame") -> StreamingVae:
    mesh = make_mesh(Layout(), jax.devices()[:1])
    return StreamingVae(config=config, mesh=mesh, dtype=jnp.float32, convolution=convolution)


def decode_in_chunks(case, convolution: str, latent_frames: int) -> np.ndarray:
    """Frames before they become bytes, `[frames, height, width, 3]`."""
    split = SpatialSplit(convolution=convolution)
    params = {
        name.removeprefix(DECODER): value
        for name, value in case.params.items()
        if name.startswith(DECODER)
    }

    @quick_jit
    def decode(params, latents, past):
        return with_params(Decoder, case.config, split, params)(latents, past)

    config = case.config
    latents = config.denormalise(jnp.asarray(case.latents[0]))
    chunks, past = [], None
    for index in range(latent_frames):
        frames, past = decode(params, latents[index : index + 1], past)
        chunks.append(np.asarray(frames))
    return np.concatenate(chunks).clip(-1, 1)


@pytest.mark.parametrize(("name", "convolution", "most"), CHUNKED)
def test_chunks_equal_diffusers(name, convolution, most):
    """1, 5, 9, 13 and 17 frames: time is causal, so shorter videos are the start of the longest.

    Red when the second chunk's convolution over time starts from the first frame, not from zeros.
    """
    case = make_case(name)
    ours = decode_in_chunks(case, convolution, most)
    assert ours.shape == (case.frames(most), *case.decoded.shape[1:])
    for latent_frames in range(1, most + 1):
        upto = case.frames(latent_frames)
        error = np.abs(ours[:upto] - case.decoded[:upto]).max()  # measured: up to 4e-6
        assert error <= TOLERANCE * DECODED_RANGE, f"{upto} frames: {error:.1e}"


@pytest.mark.parametrize("name", ["narrow top", "time halved once", "wan 2.2"])
def test_whole_equals_diffusers_chunks(name):
    """One pass over all frames without any cache: what the caches must amount to."""
    case = make_case(name)
    whole = quick_jit(make_vae(case.config).decode)(case.params, case.latents)
    assert whole.dtype == jnp.float32
    assert np.abs(np.asarray(whole)[0] - case.decoded).max() <= TOLERANCE * DECODED_RANGE


def test_bfloat16_loses_no_more_than_diffusers_does():
    """Root mean square distance from float32 with the same weights; norms are float32 in both."""
    case = make_case("three levels")
    model = copy.deepcopy(case.model).bfloat16()
    params = {name: value.astype(jnp.bfloat16) for name, value in case.params.items()}
    vae = dataclasses.replace(make_vae(case.config), dtype=jnp.bfloat16)
    ours = np.asarray(quick_jit(vae.decode)(params, case.latents), np.float32)[0]
    latents = np.moveaxis(case.config.denormalise(case.latents), -1, 1)
    with torch.no_grad():
        decoded = model.decode(torch.tensor(latents).to(torch.bfloat16), return_dict=False)[0]
    theirs = np.moveaxis(decoded[0].float().numpy(), 0, -1)

    def distance(video: np.ndarray) -> float:
        return float(np.sqrt(np.mean((video - case.decoded) ** 2)))

    assert distance(ours) <= 1.2 * distance(theirs)  # measured: 0.98 times


@pytest.mark.parametrize(
    ("name", "convolution", "frames"),
    [
        ("wan", "by_frame", 9),
        ("three levels", "folded", 5),
        ("time halved once", "by_frame", 1),
        ("wan 2.2", "by_frame", 17),
        ("wan 2.2", "folded", 1),
        ("shortcuts alone", "by_frame", 9),
        ("patches alone", "by_frame", 5),
    ],
)
def test_encode_equals_diffusers(name, convolution, frames):
    case = make_case(name)
    factor = case.config.spatial_compression
    rng = np.random.default_rng(2)
    video = rng.uniform(-1, 1, (1, frames, 4 * factor, 3 * factor, 3)).astype(np.float32)
    with torch.no_grad():
        encoded = case.model.encode(torch.tensor(np.moveaxis(video, -1, 1)), return_dict=False)
    (posterior,) = encoded
    ours = quick_jit(make_vae(case.config, convolution).encode)(case.params, video)
    for mine, theirs in zip(ours, (posterior.mean, posterior.logvar), strict=True):
        expected = np.moveaxis(theirs.numpy(), 1, -1)
        assert mine.shape == expected.shape
        error = np.abs(np.asarray(mine) - expected).max()  # measured: up to 2e-6 of the range
        assert error <= TOLERANCE * np.ptp(expected)


@pytest.mark.parametrize(
    ("window", "frame_stride", "stride"),
    [((3, 3, 3), 1, 1), ((1, 3, 3), 1, 2), ((3, 1, 1), 2, 1), ((1, 1, 1), 1, 1)],
)
def test_convolutions_are_the_same(window, frame_stride, stride):
    """Every shape the autoencoder uses, against `jax.lax`'s own three-dimensional convolution."""
    frames, rows, columns = window
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (5, 9, 7, 6))
    kernel = jax.random.normal(keys[1], (frames, columns, rows, 6, 4))
    expected = jax.lax.conv_general_dilated(
        x[None],
        jnp.swapaxes(kernel, 1, 2),
        (frame_stride, stride, stride),
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )[0]
    assert set(CONVOLUTIONS.values()) == {folded, by_frame}
    for convolve in CONVOLUTIONS.values():
        np.testing.assert_allclose(
            convolve(x, kernel, frame_stride, stride, (0, 0)), expected, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    ("size", "stride", "limit"), [(3, 1, 2**13), (3, 2, 2**13), (3, 2, 1), (1, 2, 1)]
)
def test_a_picture_convolved_in_strips_is_the_picture(size, stride, limit, monkeypatch):
    """Of 11 columns the last strip takes one of the strip before again; and one by one."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (5, 7, 24, 6))
    kernel = jax.random.normal(keys[1], (3, size, size, 6, 4))
    around = (1, 1) if size > 1 else (0, 0)
    whole = folded(jnp.pad(x, [(0, 0), around, (0, 0), (0, 0)]), kernel, 1, stride, (0, 0))
    monkeypatch.setattr(convolution, "FOLDED_BYTES", limit)
    in_strips = jax.jit(folded, static_argnums=(2, 3, 4))
    assert ("while" in in_strips.lower(x, kernel, 1, stride, around).as_text()) == (size > 1)
    np.testing.assert_allclose(in_strips(x, kernel, 1, stride, around), whole, atol=1e-4, rtol=0)


def test_bytes_by_diffusers_rule():
    """Both sides of every half, and beyond both ends."""
    halves = (np.arange(255) + 0.5) / 255 * 2 - 1
    values = np.concatenate([halves - 1e-4, halves + 1e-4, [-3, -1, 0, 1 / 255, 1, 3]])
    values = np.resize(values, (516, 1, 3)).astype(np.float32)
    picture = np.asarray(VaeImageProcessor.denormalize(torch.tensor(values)))
    expected = np.asarray(VaeImageProcessor.numpy_to_pil(picture)[0])
    np.testing.assert_array_equal(to_uint8(jnp.asarray(values)), expected)
