"""A model on its devices before its weights come, and where those are read from."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint_factory import make_random_model
from wan_tpu.adapters.chosen import open_adapters
from wan_tpu.adapters.form import Factors
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.pipeline.load import checked_parts, choose_layout, on_one_branch, place_model
from wan_tpu.sharding.layout import REPLICATED_SHARE, parse_layout


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


def test_each_expert_has_its_own_adapters_and_nothing_else_has_any(tmp_path, devices):
    """Red when both experts are given one's, or one's is added to the other."""
    folder = make_random_model(tmp_path / "model", "t2v-a14b")
    model = place_model(open_model(str(folder)), devices=devices[:1])
    name = "blocks.0.attn1.to_q.weight"
    factors = {name: Factors(down=np.ones((2, 72), "f4"), up=np.ones((72, 2), "f4"))}
    path = tmp_path / "fox.safetensors"
    write_adapter(path, factors, metadata=AdapterMetadata(base_model="random"))
    base, _ = checked_parts(model)
    chosen = open_adapters([f"{path}:3@high", f"{path}:0.25@low"])
    merged, added = checked_parts(model, adapters=chosen)
    assert [each["components"] for each in added] == [["transformer"], ["transformer_2"]]
    other = "blocks.1.attn1.to_q.weight"
    for part, expected in (("transformer", 6.0), ("transformer_2", 0.5)):
        difference = merged[part].source.read(name) - base[part].source.read(name)
        assert np.allclose(difference, expected, atol=1e-5), part
        assert same(merged[part].source.read(other), base[part].source.read(other))
    text = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert same(merged["text_encoder"].source.read(text), base["text_encoder"].source.read(text))


@pytest.mark.parametrize("kind", ["one merged", "plain"])
def test_adapters_are_added_before_weights_are_quantised(tmp_path, devices, kind):
    """Red when they are added to whole numbers, or the scales are those of the base: with this one
    the largest of a row is another."""
    model = open_model("wan-tiny")
    placed = place_model(model, devices=devices[:1], quantize="int8")
    name = "blocks.0.attn1.to_q.weight"
    base = np.asarray(model.source("transformer").read(name), np.float32)
    factors = {name: Factors(down=np.ones((2, 128), "f4"), up=np.full((128, 2), 0.5, "f4"))}
    path = tmp_path / "fox.safetensors"
    write_adapter(path, factors, metadata=AdapterMetadata(base_model="wan-tiny"))
    merged = kind == "one merged"
    chosen = open_adapters([f"{path}:3"] if merged else [])
    source = checked_parts(placed, adapters=chosen)[0]["transformer"].source
    whole, scales = source.read(name), source.read(f"{name}_scale")
    assert whole.dtype == np.int8
    expected = base + (3 if merged else 0)
    np.testing.assert_allclose(scales, np.abs(expected).max(1) / 127, rtol=1e-5)
    assert np.abs(whole * scales[:, None] - expected).max() <= 0.501 * scales.max()


def test_the_layout_is_chosen_for_what_the_weights_weigh():
    """Of a device that has room for a copy of half of the 1.3B's bfloat16 weights."""
    model, four = describe_model("wan2.1-t2v-1.3b"), [types.SimpleNamespace(platform="tpu")] * 4
    device_bytes = int(0.6 * 2.64 * 2**30 / REPLICATED_SHARE)
    for quantize, weights in ((None, "sharded"), ("int8", "replicated")):
        layout = choose_layout(model, four, None, device_bytes, quantize=quantize)
        assert layout.weights == weights


def same(one, other):
    return one.tobytes() == other.tobytes()
