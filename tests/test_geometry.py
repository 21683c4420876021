"""Sizes: the numbers of Wan, diffusers' own arithmetic, and errors that name what works."""

import inspect
import re
import types
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_tpu.errors import GeometryError, InputError
from wan_tpu.geometry import (
    TEXT_TOKENS,
    WAN_COMPRESSION,
    Compression,
    Geometry,
    ceil_to_multiple,
    parse_size,
)

WAN_22_5B = Compression(spatial=16, temporal=4, patch=(1, 2, 2))

with torch.device("meta"):
    PATCHIFY = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8
    ).patch_embedding


@pytest.mark.parametrize(
    ("width", "height", "num_frames", "grid", "num_tokens"),
    [
        (1280, 720, 81, (21, 45, 80), 75_600),
        (832, 480, 81, (21, 30, 52), 32_760),
        (64, 64, 17, (5, 4, 4), 80),
        (16, 16, 1, (1, 1, 1), 1),
    ],
)
def test_known_sizes(width, height, num_frames, grid, num_tokens):
    geometry = Geometry(width=width, height=height, num_frames=num_frames)
    assert geometry.grid == grid
    assert geometry.num_tokens == num_tokens


def test_other_compressions_have_other_multiples():
    geometry = Geometry(width=1280, height=704, num_frames=121, compression=WAN_22_5B)
    assert (geometry.latent_frames, geometry.latent_height, geometry.latent_width) == (31, 44, 80)
    assert geometry.grid == (31, 22, 40)
    with pytest.raises(GeometryError, match="multiple of 32, got 720; nearest: 704 or 736"):
        Geometry(width=1280, height=720, num_frames=121, compression=WAN_22_5B)


@given(
    width=st.integers(1, 30).map(lambda n: 16 * n),
    height=st.integers(1, 30).map(lambda n: 16 * n),
    num_frames=st.integers(0, 20).map(lambda n: 4 * n + 1),
)
@settings(max_examples=50)
def test_latents_and_tokens_are_those_of_diffusers(width, height, num_frames):
    geometry = Geometry(width=width, height=height, num_frames=num_frames)
    pipeline: Any = types.SimpleNamespace(vae_scale_factor_temporal=4, vae_scale_factor_spatial=8)
    latents = WanPipeline.prepare_latents(
        pipeline, 1, 16, height, width, num_frames, torch.float32, torch.device("cpu")
    )
    sizes = (geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    assert tuple(latents.shape) == (1, 16, *sizes)
    assert tuple(PATCHIFY(latents.to("meta")).shape[2:]) == geometry.grid


def geometry_with(**sizes: Any) -> Geometry:
    """480p with other sizes."""
    all_sizes: dict[str, Any] = {"width": 832, "height": 480, "num_frames": 81} | sizes
    return Geometry(**all_sizes)


def test_every_prompt_has_as_many_tokens_as_in_diffusers():
    parameters = inspect.signature(WanPipeline.__call__).parameters
    assert parameters["max_sequence_length"].default == TEXT_TOKENS


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 831}, "width must be a positive multiple of 16, got 831; nearest: 816 or 832"),
        ({"height": 8}, "height must be a positive multiple of 16, got 8; nearest: 16"),
        ({"width": 0}, "width must be a positive multiple of 16, got 0; nearest: 16"),
        ({"height": -32}, "height must be a positive multiple of 16, got -32; nearest: 16"),
        ({"num_frames": 80}, "the number of frames must be 4n + 1, got 80; nearest: 77 or 81"),
        ({"num_frames": 2}, "the number of frames must be 4n + 1, got 2; nearest: 1 or 5"),
        ({"num_frames": 0}, "the number of frames must be 4n + 1, got 0; nearest: 1"),
        ({"num_frames": -3}, "the number of frames must be 4n + 1, got -3; nearest: 1"),
    ],
)
def test_errors_name_the_nearest_sizes(sizes, message):
    with pytest.raises(GeometryError) as caught:
        geometry_with(**sizes)
    assert str(caught.value) == message
    assert isinstance(caught.value, InputError)


@given(value=st.integers(-50, 2000), field=st.sampled_from(["width", "height", "num_frames"]))
def test_the_values_an_error_names_work_and_none_is_nearer(value, field):
    try:
        geometry_with(**{field: value})
    except GeometryError as error:
        _, _, words = str(error).partition("nearest: ")
        named = [int(number) for number in re.findall(r"-?\d+", words)]
    else:
        return
    for number in named:
        geometry_with(**{field: number})
    distance = min(abs(number - value) for number in named)
    for number in range(value - distance + 1, value + distance):
        with pytest.raises(GeometryError):
            geometry_with(**{field: number})


def test_a_temporal_patch_must_divide_the_latent_frames():
    compression = Compression(patch=(2, 2, 2))
    assert Geometry(width=64, height=64, num_frames=5, compression=compression).grid == (1, 4, 4)
    with pytest.raises(GeometryError, match="9 frames give 3 latent frames"):
        Geometry(width=64, height=64, num_frames=9, compression=compression)


def test_a_geometry_is_a_value():
    one, other = (Geometry(width=64, height=64, num_frames=5) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one.compression is WAN_COMPRESSION


@pytest.mark.parametrize("sign", ["x", "X", "*", "\u00d7"])
def test_sizes_are_read(sign):
    assert parse_size(f"832{sign}480") == (832, 480)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "832", "832x", "x480", "832x480x3", "832 x 480", "-16x16", "0x480", "832x0"),
        *(
            "8.5x16",
            "\u0668\u0663\u0662x480",
            "832**480",
            "832xX480",
            "832,480",
            "832\u0445480",
            "9" * 5000 + "x480",
            "832x480\n",
        ),
    ],
)
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(GeometryError, match="must be WIDTHxHEIGHT in pixels, for example 832x480"):
        parse_size(text)


@given(width=st.integers(1, 999_999), height=st.integers(1, 999_999))
def test_sizes_round_trip(width, height):
    assert parse_size(f"{width}x{height}") == (width, height)


@given(value=st.integers(0, 10**6), multiple=st.integers(1, 1000))
def test_ceil_to_multiple(value, multiple):
    padded = ceil_to_multiple(value, multiple)
    assert padded % multiple == 0
    assert value <= padded < value + multiple
