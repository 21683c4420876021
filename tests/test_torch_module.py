"""Stacked layers of a torch module: a vision tower with embeddings around its layers, and Linears.

The denoiser and the text encoder are the other users; `tests/transformer` and `tests/text` hold
them to diffusers and transformers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.tolerances import PARITY, relative_error
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.sharding.rules import WHOLE, split_over_all
from wan_tpu.torch_bridge import call_module
from wan_tpu.torch_module import LayeredModule, Linear, Placement, Split, replace_linears

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "image_size": 28,
    "patch_size": 14,
    "hidden_act": "gelu",
    "attn_implementation": "eager",
}
LAYERS = 3
SECOND_OF_A_PAIR = ("out_proj.weight", "fc2.weight")


@functools.cache
def make_original() -> CLIPVisionModel:
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(**SIZES, num_hidden_layers=LAYERS)).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    return model


def vision_module(*, own_linears: bool) -> LayeredModule:
    with torch.device("meta"):
        template = CLIPVisionModel(CLIPVisionConfig(**SIZES, num_hidden_layers=1)).eval()
    if own_linears:
        replace_linears(template)
    return LayeredModule(
        template=template,
        layers="encoder.layers",
        num_layers=LAYERS,
        tensor_prefix="vision_model.",
    )


def hidden_states(module: LayeredModule, mesh, params, pixels: jax.Array) -> jax.Array:
    """What Wan's image-to-video models take: the tower's states after its last layer."""

    def layer(hidden, weights, _):
        hidden = call_module(module.layer, weights, hidden, None)
        return jax.lax.with_sharding_constraint(hidden, NamedSharding(mesh, WHOLE)), None

    buffers = {"embeddings.position_ids": jnp.arange(5)[None]}  # in no checkpoint
    hidden = module.call("embeddings", {**params, **buffers}, pixels)
    hidden = module.call("pre_layrnorm", params, hidden)
    return module.scan(layer, hidden, params)[0]


@pytest.mark.parametrize("own_linears", [False, True])
@pytest.mark.parametrize("layout", ["single", "dp2-sp2-tp2"])
def test_vision_tower_equals_transformers(layout, own_linears, devices):
    """Red when a layer's weights are stacked in another order, or an embedding takes part in it."""
    layout = parse_layout(layout)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    module = vision_module(own_linears=own_linears)

    def placement(name, shape):
        dim = 1 if name.endswith(SECOND_OF_A_PAIR) else 0
        return Placement(dtype=jnp.float32, spec=split_over_all(shape, mesh.size, dim=dim))

    weights = module.weights(placement)
    state = make_original().state_dict()
    source = ArraySource({f"vision_model.{name}": t.numpy() for name, t in state.items()})
    params = load_weights("image encoder", weights, source, mesh)
    assert params["encoder.layers.*.mlp.fc1.weight"].shape == (LAYERS, 256, 128)
    shards = {p.sharding.shard_shape(p.shape) for n, p in params.items() if "fc1.weight" in n}
    assert shards == {(LAYERS, 256 // mesh.size, 128)}

    pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = make_original()(pixels).last_hidden_state.numpy()
    with jax.set_mesh(mesh):
        forward = jax.jit(functools.partial(hidden_states, module, mesh))
        ours = np.asarray(forward(params, jnp.asarray(pixels.numpy())))
    assert relative_error(ours, expected) <= PARITY


def test_every_linear_of_a_template_goes_through_one_function(monkeypatch):
    """Red when a module keeps a product of its own, which an adapter would not reach."""
    seen = []

    def counted(x, weight, bias=None, scale=None):
        assert scale is None
        seen.append(weight.shape)
        return x @ weight.T + bias

    monkeypatch.setattr("wan_tpu.torch_module.linear", counted)
    module = vision_module(own_linears=True)
    params = {
        name: jnp.asarray(parameter.detach().numpy())
        for name, parameter in make_original().encoder.layers[0].named_parameters()
    }
    call_module(module.layer, params, jnp.ones((1, 5, 128)), None)
    assert sorted(seen) == sorted([(128, 128)] * 4 + [(256, 128), (128, 256)])


def test_what_a_linear_takes_and_gives_is_split_as_its_place_says():
    """Input before the product, output after it; a Linear replaced twice has the last splits."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 4))
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in block.named_parameters()}
    seen = []

    def note(name, side):
        def constrain(x):
            seen.append((name, side, x.shape))
            return x

        return constrain

    replace_linears(block)
    replace_linears(block, lambda name: Split(note(name, "input"), note(name, "output")))
    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    call_module(block, params, x)
    assert seen == [
        ("0", "input", (2, 4)),
        ("0", "output", (2, 6)),
        ("2", "input", (2, 6)),
        ("2", "output", (2, 4)),
    ]
    assert isinstance(block[0], Linear)
    assert [name for name, _ in block.named_parameters()] == list(params)
