"""Weights gathered a layer before they are used: the same numbers, only earlier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transformer import originals
from tests.transformer.test_denoiser import CONFIGS, TIMESTEP, make_inputs
from wan_tpu.sharding.layout import parse_layout

CONFIG, GEOMETRY = CONFIGS["odd sizes"]
"""Three layers."""


@pytest.fixture(scope="module")
def model():
    return originals.make_original(CONFIG)


def traced(model, layout, attention, gathers_ahead):
    """A prediction of ours, not compiled, and its arguments."""
    layout = parse_layout(layout)
    denoiser, params = originals.make_ours(model, CONFIG, layout, attention)
    denoiser = dataclasses.replace(denoiser, gathers_ahead=gathers_ahead)
    latents, text = make_inputs(CONFIG, GEOMETRY)
    tokens = originals.padded(latents, denoiser, GEOMETRY)
    text = jnp.asarray(text.numpy())

    def forward(params, tokens, text):
        context = denoiser.text_context(params, text)
        return denoiser.predict(params, tokens, jnp.float32(TIMESTEP), context, GEOMETRY)

    with jax.set_mesh(denoiser.setting.concrete_mesh):
        return jax.jit(forward).trace(params, tokens, text), (params, tokens, text)


@pytest.mark.parametrize(
    "attention", ["flash", pytest.param("flash-int8:1:1", marks=pytest.mark.slow)]
)
def test_the_numbers_are_the_same_to_the_bit(model, attention, devices):
    """Red when a layer gets another one's weights, also in a loop that begins further on."""
    found = []
    for ahead in (False, True):
        program, arguments = traced(model, "dp2-sp2", attention, ahead)
        found.append(np.asarray(program.lower().compile()(*arguments)))
    np.testing.assert_array_equal(*found)


def handed_on(*how):
    """Whether a loop over layers hands weights from one layer to the next."""
    program, _ = traced(*how)
    return "optimization_barrier" in str(program.jaxpr)


@pytest.mark.parametrize(
    ("layout", "attention", "expected"),
    [
        ("dp2-sp2", "flash", True),
        ("dp2-sp2", "chunked", False),  # the products are XLA's, and gathers ride in them
        ("tp2", "flash", False),  # likewise
        ("dp2-sp2 replicated", "flash", False),  # nothing is gathered
        ("single", "flash", False),
    ],
)
def test_where_layers_gather_for_the_next_one(model, layout, attention, expected, devices):
    assert handed_on(model, layout, attention, True) is expected


def test_a_training_hands_nothing_on(model, devices):
    """Its gradient would keep every layer's gathered weights."""
    assert not handed_on(model, "dp2-sp2", "flash", False)
