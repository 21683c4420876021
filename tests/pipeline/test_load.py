"""A model on its devices before its weights come."""

import jax.numpy as jnp

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.pipeline.load import on_one_branch, place_model
from wan_tpu.sharding.layout import parse_layout


def test_without_guidance_the_autoencoder_keeps_its_dtype(devices):
    """Red when the story of a video without guidance tells the transformer's dtype for both."""
    model = place_model(
        describe_model("wan-tiny"),
        layout=parse_layout("dp2-sp2"),
        devices=devices[:4],
        dtype="bfloat16",
        vae_dtype="float32",
    )
    alone = on_one_branch(model)
    assert alone.layout != model.layout
    assert (alone.dtype, alone.vae_dtype) == (jnp.bfloat16, jnp.float32)
