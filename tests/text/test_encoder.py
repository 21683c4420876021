"""Our text encoder against transformers' UMT5 and against diffusers' handling of the padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from tests.tolerances import PARITY, relative_error
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.text.encoder import TextConfig, TextEncoder

CONFIG = TextConfig(vocab_size=200, d_model=64, d_kv=16, d_ff=272, num_layers=3, num_heads=8)


def make_original():
    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config(**dataclasses.asdict(CONFIG))).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model


def make_prompts():
    ids = np.random.default_rng(0).integers(2, 200, (2, 512)).astype(np.int32)
    mask = (np.arange(512) < np.array([[7], [512]])).astype(np.int32)
    return ids * mask, mask


@pytest.mark.parametrize("layout", ["single", "tp8", "dp2-sp2-tp2"])
def test_equals_transformers(layout, devices):
    """One prompt with much padding, one with none; zero past the end, as diffusers does it."""
    model, (ids, mask) = make_original(), make_prompts()
    with torch.no_grad():
        expected = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    expected = (expected * torch.tensor(mask)[:, :, None]).numpy()
    layout = parse_layout(layout)
    mesh = make_mesh(layout, jax.devices()[: layout.num_devices])
    encoder = TextEncoder(config=CONFIG, mesh=mesh, dtype=jnp.float32)
    tensors = {n: t.numpy() for n, t in model.state_dict().items() if "embed_tokens" not in n}
    params = load_weights("text encoder", encoder.weights(), ArraySource(tensors), mesh)
    with jax.set_mesh(mesh):
        ours = np.asarray(jax.jit(encoder.encode)(params, ids, mask))
    assert relative_error(ours, expected) <= PARITY
    assert not ours[0, 7:].any()


@pytest.fixture(scope="module")
def encoder_and_params(devices):
    model = make_original()
    mesh = make_mesh(parse_layout("dp2-sp2-tp2"), jax.devices())
    encoder = TextEncoder(config=CONFIG, mesh=mesh, dtype=jnp.float32)
    tensors = {n: t.numpy() for n, t in model.state_dict().items() if "embed_tokens" not in n}
    params = load_weights("text encoder", encoder.weights(), ArraySource(tensors), mesh)
    return encoder, params, jax.jit(encoder.encode)


def test_a_vector_is_what_a_row_of_its_numbers_would_be(encoder_and_params):
    """Bit for bit, for the row that ids above the table would be clamped to, too."""
    encoder, params, encode = encoder_and_params
    ids, mask = make_prompts()
    ids[0, 2:4] = 5, 199
    vectors = np.zeros((16, 64), np.float32)
    vectors[:2] = np.asarray(params["shared.weight"])[[5, 199]]
    slots = np.full_like(ids, -1)
    new_ids = ids.copy()
    new_ids[0, 2:4] = 200, 201
    with jax.set_mesh(encoder.mesh):
        expected = np.asarray(encode(params, ids, mask, vectors, slots))
        ours = np.asarray(encode(params, new_ids, mask, vectors, slots))
        plain = np.asarray(encode(params, ids, mask))
        vectors[0] += 1
        other = np.asarray(encode(params, new_ids, mask, vectors, slots))
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(ours, plain)
    assert np.abs(other[0] - ours[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], ours[1])


def test_a_vector_comes_out_in_its_place_and_nowhere_else(encoder_and_params):
    encoder, params, encode = encoder_and_params
    ids, mask = make_prompts()
    vectors = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)
    none, slots = np.full_like(ids, -1), np.full_like(ids, -1)
    slots[0, 3], slots[1, 511] = 2, 0
    with jax.set_mesh(encoder.mesh):
        expected = np.array(encode(params, ids, mask, vectors, none))
        ours = np.asarray(encode(params, ids, mask, vectors, slots))
    expected[0, 3], expected[1, 511] = vectors[2], vectors[0]
    np.testing.assert_array_equal(ours, expected)


def test_layers_that_are_computed_again_give_the_same_gradient(devices):
    """Of two vectors, one that goes in and one that comes out; none of the others has any."""
    config = dataclasses.replace(CONFIG, d_ff=64, num_layers=2)
    mesh = make_mesh(parse_layout("single"), devices[:1])
    encoder = TextEncoder(config=config, mesh=mesh, dtype=jnp.float32)
    rng = np.random.default_rng(1)
    params = {
        weight.name: jnp.asarray(rng.normal(0, 0.3, weight.shape), jnp.float32)
        for weight in encoder.weights()
    }
    ids, mask = make_prompts()
    ids[0, 2] = 203
    slots = np.full_like(ids, -1)
    slots[1, 0] = 7
    ids, mask, slots = map(jnp.asarray, (ids, mask, slots))
    vectors = rng.normal(size=(16, 64)).astype(np.float32)

    def loss(vectors, remat):
        return jnp.square(encoder.encode(params, ids, mask, vectors, slots, remat=remat)).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        ours, kept = (np.asarray(gradient(vectors, again)) for again in (True, False))
        assert "remat" in str(jax.make_jaxpr(lambda v: loss(v, True))(vectors))
    assert relative_error(ours, kept) <= PARITY
    assert np.flatnonzero(np.abs(ours).sum(1)).tolist() == [3, 7]
