"""Tensor names and shapes against diffusers' own, and what loading refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.cases import CONFIGS, make_case
from wan_tpu.errors import CheckpointError
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import abstract_params
from wan_tpu.vae.weights import DECODER, expected_tensors, vae_parameters, vae_state_from_tensors


@pytest.fixture
def tensors():
    model = make_case("narrow top").model
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_diffusers(name):
    case = make_case(name)
    state = case.model.state_dict()
    assert expected_tensors(case.config) == {key: tuple(t.shape) for key, t in state.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_used_once(name):
    case = make_case(name)
    used = [tensor for p in vae_parameters(case.config) for tensor in p.tensors]
    assert len(used) == len(set(used)) == len(case.model.state_dict())


def test_arrays_have_the_shapes_that_are_promised(tensors):
    config = make_case("narrow top").config
    state = vae_state_from_tensors(config, tensors, np.float32)
    promised = abstract_params(config, np.float32)
    assert {n: a.shape for n, a in state.items()} == {n: a.shape for n, a in promised.items()}
    total = sum(array.size for array in state.values())
    assert total == sum(tensor.size for tensor in tensors.values())


def test_a_part_of_the_model(tensors):
    config = make_case("narrow top").config
    state = vae_state_from_tensors(config, tensors, np.float32, parts=(DECODER,))
    assert state
    assert all(name.startswith(DECODER) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.conv_in.bias"), "missing decoder.conv_in.bias"),
        (lambda t: t.update({"decoder.extra": t["quant_conv.bias"]}), "unexpected decoder.extra"),
        (
            lambda t: t.update({"quant_conv.bias": t["quant_conv.bias"][:3]}),
            r"misshapen quant_conv.bias is \[3\], expected \[8\]",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message, tensors):
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        vae_state_from_tensors(make_case("narrow top").config, tensors, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_residual": True}, "encoder cannot add a level's 32 channels to its output's 48"),
        ({"is_residual": True, "dim_mult": [1, 1, 8, 8]}, "decoder cannot add .* 128 .* 16,"),
        ({"is_residual": 1}, "is_residual must be true or false, got 1"),
        ({"in_channels": 12}, "in_channels = 12, expected 3: .* patch_size = None"),
        ({"patch_size": 2}, "in_channels = 3, expected 12: .* patch_size = 2"),
        ({"patch_size": 2, "in_channels": 12}, "out_channels = 3, expected 12"),
        ({"patch_size": 0}, "patch_size must be a whole number of at least 1"),
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"latents_mean": [0.0]}, "latents_mean of the autoencoder has 1 values, expected"),
        ({"temperal_downsample": [True]}, "1 entries, expected 3"),
        ({"temperal_downsample": [True, True, True]}, "at most twice"),
        ({"dim_mult": [1]}, "at least two long"),
        ({"z_dim": 0}, "at least 1"),
        ({"latents_std": None}, "latents_std"),
    ],
)
def test_other_autoencoders_are_refused(change, message):
    config = dict(make_case("narrow top").model.config)
    with pytest.raises(CheckpointError, match=message):
        VaeConfig.from_json(config | change)


@pytest.mark.parametrize(
    ("name", "spatial", "temporal"),
    [("time halved once", 8, 2), ("wan 2.2", 16, 4), ("patches alone", 8, 2)],
)
def test_compression_follows_from_levels_and_patches(name, spatial, temporal):
    config = make_case(name).config
    assert (config.spatial_compression, config.temporal_compression) == (spatial, temporal)


def test_latents_are_normalised_as_diffusers_pipelines_do():
    """And back; float32 in, float32 out, of NumPy as of JAX."""
    config = make_case("wan 2.2").config
    mean, std = (np.reshape(x, (1, -1)) for x in (config.latents_mean, config.latents_std))
    moments = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for array in (moments, jnp.asarray(moments)):
        latents = config.normalise(array)
        assert latents.dtype == np.float32
        np.testing.assert_allclose(latents, (moments - mean) / std, rtol=1e-6)
        np.testing.assert_allclose(config.denormalise(latents), moments, atol=1e-6)
