"""A PyTorch module as a pure JAX function of its parameters.

The module stands on torch's meta device: it has shapes and code, no numbers. Its parameters are
JAX arrays handed in at each call, so a layer can be called inside `jax.lax.scan`, traced, sharded
and differentiated like any other JAX code.
"""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import torch

from wan_tpu.torch_compat import import_torchax

Params = Mapping[str, jax.Array]
"""Parameters by name."""

Entry = TypeVar("Entry")


def call_module(module: torch.nn.Module, params: Params, *args: Any) -> Any:
    """Calls `module` with these parameters; arrays in, arrays out.

    Args:
        module: on the meta device, in eval mode.
        params: by the module's own parameter names; those that this call does not touch may lack.
        *args: positional arguments; arrays among them are seen as torch tensors.
    """
    torchax = import_torchax()
    with torch.no_grad(), torchax.default_env(), warnings.catch_warnings():
        # torch's integers are 64 bits wide and JAX's 32: positions and buckets fit either.
        warnings.filterwarnings("ignore", "Explicitly requested dtype int64")
        result = torch.func.functional_call(
            module,
            {name: to_torch(value) for name, value in params.items()},
            tuple(to_torch(a) for a in args),
            tie_weights=False,
        )
    return to_jax(result)


def to_torch(value: Any) -> Any:
    """A JAX array seen as a torch tensor (no copy); anything else unchanged."""
    return import_torchax().interop.torch_view(value) if isinstance(value, jax.Array) else value


def to_jax(value: Any) -> Any:
    """A torch tensor seen as the JAX array that it is (no copy); tuples element by element."""
    if isinstance(value, tuple | list):
        return type(value)(to_jax(v) for v in value)
    return import_torchax().interop.jax_view(value) if isinstance(value, torch.Tensor) else value


def with_prefix(params: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    """The entries under `prefix`, which is dropped from their names."""
    return {name.removeprefix(prefix): v for name, v in params.items() if name.startswith(prefix)}
