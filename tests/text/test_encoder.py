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
