"""The two decode programs: on every layout the same video, two compilations, no waiting."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.vae.cases import assert_same_bytes, make_case, quick_jit, to_bytes
from wan_tpu.errors import GeometryError
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.streaming import StreamingVae, abstract_params, make_decode_stages
from wan_tpu.vae.weights import DECODER, ENCODER

TOLERANCE = 1e-4


def make_vae(case, layout: str, convolution: str | None = None) -> StreamingVae:
    split = parse_layout(layout)
    mesh = make_mesh(split, jax.devices()[: split.num_devices])
    return StreamingVae(config=case.config, mesh=mesh, dtype=jnp.float32, convolution=convolution)


@pytest.mark.parametrize(
    ("name", "layout", "height", "width", "convolution"),
    [
        ("three levels", "single", 4, 6, None),
        ("three levels", "tp8", 4, 8, "folded"),
        ("three levels", "dp2-sp2-tp2", 4, 6, None),
        ("three levels", "dp2-sp2-tp2", 5, 8, None),
        ("three levels", "sp8", 5, 7, None),
        ("wan 2.2", "dp2-sp2-tp2", 4, 6, None),
    ],
)
def test_every_layout_decodes_what_diffusers_decodes(
    name, layout, height, width, convolution, devices
):
    """Sizes that divide by all, by some and by none of the devices."""
    case = make_case(name, height, width)
    vae = make_vae(case, layout, convolution)
    first, following = quick_jit(vae.decode_first), quick_jit(vae.decode_next)
    frames, _, cache = first(case.params, case.latents[:, :1])
    chunks = [np.asarray(frames)]
    for index in range(1, 3):
        frames, _, cache = following(case.params, case.latents[:, index : index + 1], cache)
        chunks.append(np.asarray(frames))
    assert_same_bytes(np.concatenate(chunks), to_bytes(case.decoded[: case.frames(3)]))


@pytest.mark.parametrize(
    ("name", "layout", "height", "width"),
    [
        ("three levels", "dp2-sp2-tp2", 4, 6),
        ("three levels", "dp2-sp4", 4, 6),
        ("wan 2.2", "tp4", 3, 4),  # split over the width alone
        ("wan 2.2", "tp4", 4, 3),  # over the height alone
        ("wan 2.2", "dp2-sp2-tp2", 4, 6),  # over both
    ],
)
def test_every_layout_decodes_the_same_floats(name, layout, height, width, devices):
    """Before bytes hide it: a column from the wrong neighbour is an error of order one."""
    case = make_case(name, height, width)
    frames = quick_jit(make_vae(case, layout).decode)(case.params, case.latents)
    error = np.abs(np.asarray(frames)[0] - case.decoded).max()  # measured: 3e-6
    assert error <= TOLERANCE * 2


@pytest.mark.parametrize(
    ("name", "height", "width"), [("three levels", 4, 6), ("wan 2.2", 4, 3), ("wan 2.2", 1, 4)]
)
def test_every_layout_encodes_the_same(name, height, width, devices):
    """Over both, over the height alone, over the width alone; one chunk after the first frame."""
    case = make_case(name)
    factor = case.config.spatial_compression
    shape = (1, 5, height * factor, width * factor, 3)
    video = np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)
    with torch.no_grad():
        encoded = case.model.encode(torch.tensor(np.moveaxis(video, -1, 1)), return_dict=False)
    expected = np.moveaxis(encoded[0].mean.numpy(), 1, -1)
    mean, _ = quick_jit(make_vae(case, "dp2-tp2").encode)(case.params, video)
    assert np.abs(np.asarray(mean) - expected).max() <= TOLERANCE * np.ptp(expected)


@pytest.mark.parametrize("shape", [(1, 4, 32, 32, 3), (1, 5, 33, 32, 3), (1, 5, 32, 30, 3)])
def test_what_cannot_be_encoded_is_refused(shape):
    case = make_case("three levels")
    with pytest.raises(GeometryError, match=r"4n \+ 1 frames .* multiples of 4"):
        make_vae(case, "single").encode(case.params, jnp.zeros(shape))


def test_two_programs_compile(devices, caplog):
    """Red when the second chunk differs from the third, or a chunk's position is compiled in."""
    case = make_case("three levels")
    vae = make_vae(case, "dp2-tp2")
    params = abstract_params(case.config, jnp.float32, mesh=vae.mesh, parts=(DECODER,))
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        stages = make_decode_stages(case.config, vae.mesh, 4, 6, jnp.float32, params)
        first, following = (stage.compile() for stage in stages)
        placed = {name: jax.device_put(case.params[name], params[name].sharding) for name in params}
        where = stages[0].arguments[1].sharding
        chunks = [jax.device_put(x, where) for x in np.split(case.latents, 5, axis=1)]
        frames, is_finite, cache = first(placed, chunks[0])
        outputs = [frames]
        for chunk in chunks[1:]:
            frames, is_finite, cache = following(placed, chunk, cache)
            assert is_finite.is_fully_replicated
            outputs.append(frames)
    messages = [record.getMessage() for record in caplog.records]
    compiled = [message for message in messages if "Finished XLA compilation" in message]
    assert len(compiled) == 2, compiled
    assert all(frames.is_fully_replicated for frames in outputs), "every process can read them"
    assert_same_bytes(np.concatenate(outputs), to_bytes(case.decoded))


def test_two_programs_encode_what_one_does(devices):
    """Red when a later chunk needs a third program, or a chunk starts from an empty past."""
    case = make_case("three levels")
    vae = make_vae(case, "dp2-tp2")
    video = np.random.default_rng(2).uniform(-1, 1, (1, 13, 16, 24, 3)).astype(np.float32)
    expected = quick_jit(vae.encode)(case.params, video)
    first, following = quick_jit(vae.encode_first), quick_jit(vae.encode_next)
    mean, log_variance, _, cache = first(case.params, video[:, :1])
    parts = [(mean, log_variance)]
    for start in range(1, 13, 4):
        mean, log_variance, _, cache = following(case.params, video[:, start : start + 4], cache)
        parts.append((mean, log_variance))
    assert (first._cache_size(), following._cache_size()) == (1, 1)
    for ours, whole in zip(zip(*parts, strict=True), expected, strict=True):
        error = np.abs(np.concatenate(ours, axis=1) - np.asarray(whole)).max()
        assert error <= TOLERANCE * np.ptp(whole)


@pytest.mark.parametrize("name", ["three levels", "wan 2.2"])
@pytest.mark.parametrize("part", [DECODER, ENCODER])
def test_cache_keeps_its_shape_and_split(part, name, devices):
    """What a later chunk's program returns can be given to it again, whatever the number."""
    case = make_case(name)
    vae = dataclasses.replace(make_vae(case, "dp2-tp2"), dtype=jnp.bfloat16)
    params = abstract_params(case.config, jnp.bfloat16, mesh=vae.mesh, parts=(part,))
    if part == DECODER:
        first, following = make_decode_stages(case.config, vae.mesh, 4, 8, jnp.bfloat16, params)
    else:
        factor = case.config.spatial_compression
        first, following = vae.encode_stages(4 * factor, 8 * factor, params)
    *_, started = jax.eval_shape(first.function, *first.arguments)
    *_, continued = jax.eval_shape(following.function, *following.arguments)
    for leaf, after, argument in zip(
        *map(jax.tree.leaves, (started, continued, following.arguments[2])), strict=True
    ):
        assert leaf.shape == after.shape == argument.shape
        assert leaf.dtype == after.dtype == argument.dtype == jnp.bfloat16
        assert argument.sharding.spec[-2] == ("dp", "tp")
    assert following.donate == (2,)
