"""torchax imports beside torch 2.13, and a torch module is a pure function of its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch._ops import OpOverloadPacket

from wan_tpu.torch_bridge import call_module, to_jax, to_torch, with_prefix
from wan_tpu.torch_compat import import_torchax


def test_torchax_imports_and_leaves_torch_as_it_was():
    before = OpOverloadPacket.__getattr__
    torchax = import_torchax()
    assert torchax.default_env() is not None
    assert OpOverloadPacket.__getattr__ is before
    with pytest.raises(AttributeError):
        _ = torch.ops.aten.prod.dim_Dimname


def test_other_missing_overloads_are_still_errors():
    from wan_tpu.torch_compat import _missing_named_tensor_overloads_answered

    with _missing_named_tensor_overloads_answered():
        assert torch.ops.aten.prod.dim_Dimname
        with pytest.raises(AttributeError):
            _ = torch.ops.aten.prod.no_such_overload


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(6)
        self.linear = torch.nn.Linear(6, 6)
        self.unused = torch.nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.nn.functional.gelu(self.linear(self.norm(x)), approximate="tanh")


def test_layers_scanned_over_stacked_parameters_equal_torch():
    torch.manual_seed(0)
    layers = [Block().eval() for _ in range(3)]
    with torch.device("meta"):
        template = Block().eval()
    names = [name for name, _ in layers[0].named_parameters() if not name.startswith("unused")]
    stacked = {
        name: np.stack([layer.get_parameter(name).detach().numpy() for layer in layers])
        for name in names
    }
    x = torch.randn(4, 6)
    expected = x
    for layer in layers:
        expected = layer(expected)

    @jax.jit
    def run(x, stacked):
        def step(x, params):
            return call_module(template, params, x), None

        return jax.lax.scan(step, x, stacked)[0]

    np.testing.assert_allclose(run(x.numpy(), stacked), expected.detach().numpy(), atol=1e-6)


def test_views_copy_nothing_and_pass_other_values():
    x = jnp.arange(3.0)
    assert to_jax(to_torch(x)) is x
    assert to_torch("text") == "text"
    assert to_jax((to_torch(x), 3))[1] == 3
    assert with_prefix({"a.b": 1, "c.b": 2}, "a.") == {"b": 1}
