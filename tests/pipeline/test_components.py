"""The parts of a model, by its kind, and which of them do not fit each other; no weights."""

import dataclasses

import jax.numpy as jnp
import pytest

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import CheckpointError
from wan_tpu.pipeline.components import tree_bytes
from wan_tpu.pipeline.model import VideoModel, make_video_model
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import abstract_mesh
from wan_tpu.vae.weights import DECODER, ENCODER


def model_of(description: ModelDescription) -> VideoModel:
    layout = parse_layout("dp2-sp4")
    return make_video_model(
        description, abstract_mesh(layout), layout, dtype=jnp.bfloat16, attention="reference"
    )


def changed(name: str, component: str, **fields) -> ModelDescription:
    """A model with other fields in a component's configuration."""
    model = describe_model(name)
    configs = {**model.configs, component: {**model.configs[component], **fields}}
    return dataclasses.replace(model, configs=configs)


@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("wan2.1-t2v-14b", ["text_encoder", "transformer", "vae"]),
        ("wan2.1-i2v-14b-480p", ["text_encoder", "image_encoder", "transformer", "vae"]),
        ("wan2.2-t2v-a14b", ["text_encoder", "transformer", "transformer_2", "vae"]),
        ("wan2.2-ti2v-5b", ["text_encoder", "transformer", "vae"]),
    ],
)
def test_a_model_has_the_parts_of_its_kind(name, components):
    """Both experts in full, and both halves of the autoencoder where a picture can be encoded."""
    model = model_of(describe_model(name))
    assert list(model.components) == components
    if "transformer_2" in components:
        experts = [model.components[each] for each in ("transformer", "transformer_2")]
        assert experts[0].bytes_per_device == experts[1].bytes_per_device > 3 * 2**30
        assert experts[0].module is experts[1].module, "one program for both"
    parts = {name.partition(".")[0] + "." for name in model.components["vae"].weights}
    assert parts == {ENCODER, DECODER}
    assert tree_bytes(dict(model.components["vae"].weights)) > 2**26


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layers", 39, "transformer_2 has num_layers 39 and transformer has 40"),
        ("in_channels", 36, "transformer_2 has in_channels 36 and transformer has 16"),
        ("eps", 1e-5, "transformer_2 has eps"),
    ],
)
def test_experts_of_different_sizes_are_refused(field, value, message):
    with pytest.raises(CheckpointError, match=message):
        model_of(changed("wan2.2-t2v-a14b", "transformer_2", **{field: value}))


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("wan2.1-t2v-14b", "in_channels", 36, "in_channels is 36; 16 are expected of a text-to-"),
        ("wan2.1-i2v-14b-480p", "in_channels", 32, "in_channels is 32; 36 are expected of an im"),
        ("wan2.2-ti2v-5b", "out_channels", 16, "out_channels is 16; 48 are expected"),
    ],
)
def test_latents_that_do_not_fit_are_refused(name, field, value, message):
    with pytest.raises(CheckpointError, match=message):
        model_of(changed(name, "transformer", **{field: value}))
