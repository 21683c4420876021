"""Annotations of arrays are checked in the tests: a wrong shape is an error where it enters.

Outside the tests nothing checks them: users pay for no check.
"""

import importlib
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import wan_tpu
from tests.type_checks import PACKAGES
from wan_tpu.attention.reference import reference_attention
from wan_tpu.schedulers import make_schedule
from wan_tpu.transformer.processors import Positions
from wan_tpu.transformer.rotary import rotary_tables, rotate
from wan_tpu.vae.spatial import SpatialSplit


def test_a_dimension_has_one_size_in_a_call():
    x = jnp.zeros((2, 3, 4, 8))
    with pytest.raises(TypeCheckError, match="head_dim"):
        reference_attention(x, jnp.zeros((2, 5, 4, 6)), jnp.zeros((2, 5, 4, 8)))


def test_shapes_are_checked_while_jax_traces():
    """Where sharding bugs live: inside jit there are only tracers."""
    cos, sin = rotary_tables((1, 2, 3), 8, 6)
    with pytest.raises(TypeCheckError, match="tokens=5"):
        jax.jit(rotate)(jnp.zeros((1, 5, 2, 8)), cos, sin)


def test_dtypes_are_checked():
    with pytest.raises(TypeCheckError, match="Float32"):
        Positions(cos=jnp.zeros((6, 8), jnp.bfloat16), sin=jnp.zeros((6, 8)), num_tokens=6)


def test_methods_are_checked():
    schedule = make_schedule("unipc", num_inference_steps=2, flow_shift=1.0)
    with pytest.raises(TypeCheckError, match="sample"):
        schedule.init_state(jnp.zeros((1, 4), jnp.int32))


def test_results_are_checked(monkeypatch):
    monkeypatch.setattr(jax.nn, "logsumexp", lambda scores, axis: scores)
    with pytest.raises(TypeCheckError, match="return value"):
        reference_attention(*[jnp.zeros((1, 2, 1, 4))] * 3)


def test_every_package_with_arrays_is_checked():
    """Red when a package is imported before the hook stands, or its name is misspelt."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        inside = pkgutil.iter_modules(getattr(package, "__path__", ()), f"{name}.")
        for module in [name, *(info.name for info in inside)]:
            loader = importlib.import_module(module).__spec__.loader
            assert type(loader).__module__.startswith("jaxtyping"), module


def test_users_pay_for_no_check():
    code = (
        "import sys, jax.numpy as jnp; from wan_tpu.vae.spatial import SpatialSplit; "
        "SpatialSplit().pad_rows(jnp.zeros((2, 2, 3), int), 1, 1); "
        "assert 'beartype' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=wan_tpu.__path__[0] + "/..")
    with pytest.raises(TypeCheckError):
        SpatialSplit().pad_rows(jnp.zeros((2, 2, 3), int), 1, 1)


def test_numpy_is_no_jax_array():
    with pytest.raises(TypeCheckError, match="numpy"):
        reference_attention(*[np.zeros((1, 2, 1, 4), np.float32)] * 3)
