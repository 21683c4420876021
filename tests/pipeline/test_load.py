"""A model on its devices before its weights come, and where those are read from."""

import jax.numpy as jnp
import numpy as np

from tests.checkpoint_factory import make_random_model
from wan_tpu.adapters.chosen import open_adapters
from wan_tpu.adapters.form import Factors
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.pipeline.load import checked_parts, on_one_branch, place_model
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


def same(one, other):
    return one.tobytes() == other.tobytes()
