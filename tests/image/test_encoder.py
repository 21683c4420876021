"""Our CLIP tower against transformers' at a small size."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.tolerances import PARITY, relative_error
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.errors import CheckpointError
from wan_tpu.image.encoder import ImageEncoder, ImageEncoderConfig
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh

CONFIG = ImageEncoderConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=8,
    image_size=28,
    patch_size=14,
    hidden_act="gelu",
)
WAN_JSON = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "intermediate_size": 5120,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
}
"""ViT-H/14 of Wan's image-to-video models; what is left out has transformers' default."""


@functools.cache
def make_original(activation: str) -> CLIPVisionModelWithProjection:
    """Random weights; the norm after the layers is far from doing nothing."""
    torch.manual_seed(0)
    sizes = dataclasses.asdict(CONFIG) | {"hidden_act": activation, "projection_dim": 16}
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    model.vision_model.post_layernorm.weight.data.uniform_(2, 3)
    model.vision_model.post_layernorm.bias.data.uniform_(1, 2)
    return model


def make_pixels():
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def run(activation: str, layout: str, dtype=jnp.float32) -> np.ndarray:
    layout = parse_layout(layout)
    mesh = make_mesh(layout, jax.devices()[: layout.num_devices])
    config = dataclasses.replace(CONFIG, hidden_act=activation)
    encoder = ImageEncoder(config=config, mesh=mesh, dtype=dtype)
    state = make_original(activation).state_dict()
    unused = ("post_layernorm", "encoder.layers.2.", "visual_projection")
    tensors = {
        name.removeprefix("vision_model."): tensor.numpy()
        for name, tensor in state.items()
        if not any(part in name for part in unused)
    }
    params = load_weights("image encoder", encoder.weights(), ArraySource(tensors), mesh)
    assert params["encoder.layers.*.mlp.fc1.weight"].shape == (2, 256, 128)
    shards = {p.sharding.shard_shape(p.shape) for n, p in params.items() if "fc1.weight" in n}
    assert shards == {(2, 256 // mesh.size, 128)}
    with jax.set_mesh(mesh):
        pixels = jnp.asarray(make_pixels().numpy().transpose(0, 2, 3, 1))
        return np.asarray(jax.jit(encoder.encode)(params, pixels), np.float32)


@pytest.mark.parametrize("layout", ["single", "dp2-sp2-tp2"])
def test_equals_the_states_before_the_last_layer(layout, devices):
    """Neither the last layer nor the norm after it takes part; its tensors are not even read."""
    with torch.no_grad():
        outputs = make_original("gelu")(make_pixels(), output_hidden_states=True)
    expected = outputs.hidden_states[-2].numpy()
    ours = run("gelu", layout)
    assert ours.shape == (2, CONFIG.num_tokens, 128)
    assert relative_error(ours, expected) <= PARITY
    assert relative_error(ours, outputs.hidden_states[-1].numpy()) > 0.1


def test_the_activation_is_the_configurations(devices):
    """Red when quick_gelu stands for gelu: far more than rounding lies between them."""
    with torch.no_grad():
        outputs = make_original("quick_gelu")(make_pixels(), output_hidden_states=True)
    expected = outputs.hidden_states[-2].numpy()
    assert relative_error(run("quick_gelu", "single"), expected) <= PARITY
    assert relative_error(run("gelu", "single"), expected) > 100 * PARITY


def test_bfloat16_is_as_near_as_torchs(devices):
    """Red when a norm subtracts the mean in bfloat16, which costs a third more; torch does not."""
    model, pixels = make_original("gelu"), make_pixels()
    with torch.no_grad():
        exact = model(pixels, output_hidden_states=True).hidden_states[-2].numpy()
        rounded = copy.deepcopy(model).bfloat16()
        states = rounded(pixels.bfloat16(), output_hidden_states=True).hidden_states[-2]
    theirs = np.std(states.float().numpy() - exact)
    assert np.std(run("gelu", "single", jnp.bfloat16) - exact) < 1.15 * theirs


def test_the_configuration_of_wans_tower():
    config = ImageEncoderConfig.from_json(WAN_JSON)
    assert config.num_tokens == 257
    assert (config.hidden_size, config.num_hidden_layers, config.hidden_act) == (1280, 32, "gelu")
    assert ImageEncoderConfig.from_json({"vision_config": WAN_JSON, "hidden_size": 1}) == config


def test_what_a_configuration_leaves_out_has_transformers_default():
    theirs = CLIPVisionConfig()
    ours = ImageEncoderConfig.from_json({})
    assert dataclasses.asdict(ours) == {
        field.name: getattr(theirs, field.name) for field in dataclasses.fields(ours)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; implemented: gelu, quick_gelu"),
        (
            {"num_attention_heads": 7},
            "hidden_size 1280 is no multiple of its num_attention_heads 7",
        ),
        ({"num_hidden_layers": 1}, "has 1 layer"),
        ({"num_channels": 4}, "4 channels"),
        ({"patch_size": 300}, "patches of 300"),
        ({"hidden_size": "large"}, "hidden_size must be a whole number of at least 1, got 'large'"),
    ],
)
def test_configurations_that_cannot_be(change, message):
    with pytest.raises(CheckpointError, match=message):
        ImageEncoderConfig.from_json(WAN_JSON | change)


def test_weights_of_the_real_tower_split_over_eight(devices):
    """601 million parameters of the 631 in the checkpoint; the products' are split eight ways."""
    mesh = make_mesh(parse_layout("sp8"), jax.devices())
    config = ImageEncoderConfig.from_json(WAN_JSON)
    weights = ImageEncoder(config=config, mesh=mesh, dtype=jnp.bfloat16).weights()
    sizes = [np.prod(w.tensor_shape) * len(w.tensors) for w in weights]
    whole = sum(s for s, w in zip(sizes, weights, strict=True) if not any(w.spec))
    assert sum(sizes) == 630_766_080 - 19_677_440 - 2_560
    assert whole < sum(sizes) / 500
    names = {tensor for weight in weights for tensor in weight.tensors}
    assert "embeddings.class_embedding" in names
    assert "encoder.layers.30.mlp.fc2.bias" in names
    assert not any("layers.31." in name or "post_layernorm" in name for name in names)
