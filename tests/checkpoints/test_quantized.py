"""Weights quantised while they are read: which, by which scales, in whatever order and parts."""

import concurrent.futures

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.adapters.small import CONFIG, base_source
from wan_tpu.checkpoints import quantized as module
from wan_tpu.checkpoints.quantized import QuantizedSource, quantized, without_scales
from wan_tpu.checkpoints.source import ArraySource, check_tensors
from wan_tpu.checkpoints.weights import checkpoint_tensors, expected_tensors, place_weights
from wan_tpu.errors import CheckpointError
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.weights import denoiser_weights

LAYOUTS = ("tp8", "dp2-sp4", "dp2-sp2-tp2", "sp8 replicated")
SMALL = TransformerConfig.from_json(CONFIG)


def params_on(layout, devices, quantize: str | None = "int8"):
    layout = parse_layout(layout)
    weights = denoiser_weights(SMALL, layout, jnp.float32, quantize)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    return weights, place_weights(weights, quantized(base_source(), weights), mesh)


def test_the_blocks_linears_and_nothing_else():
    """Red when, for example, the patch or condition embedding or the last projection is."""
    weights = denoiser_weights(SMALL, parse_layout("single"), jnp.bfloat16, "int8")
    plain = denoiser_weights(SMALL, parse_layout("single"), jnp.bfloat16)
    attention = [f"attn{n}.{p}" for n in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")]
    image = ["attn2.add_k_proj", "attn2.add_v_proj"]
    linears = {*attention, *image, "ffn.net.0.proj", "ffn.net.2"}
    whole = {w.name for w in weights if w.dtype == jnp.int8}
    scales = {w.name for w in weights if w.name.endswith("_scale")}
    assert whole == {f"blocks.*.{linear}.weight" for linear in linears}
    assert scales == {f"{name}_scale" for name in whole}
    assert {w.dtype for w in weights if w.name in scales} == {jnp.float32}
    others = [w.name for w in weights if w.name not in whole | scales]
    assert others == [w.name for w in plain if w.name not in whole]
    assert without_scales(expected_tensors(weights)) == expected_tensors(plain)


def test_rows_and_their_scales_are_in_one_order(devices):
    """Red when the scales stay in the checkpoint's order: every weight is its own row's again.

    Five heads and a width of 100 on tp8 are padded; queries and keys are in half-split order.
    """
    _, ours = params_on("tp8", devices)
    _, plain = params_on("tp8", devices, quantize=None)
    for name, expected in plain.items():
        if f"{name}_scale" not in ours:
            np.testing.assert_array_equal(ours[name], expected)
            continue
        whole, scales = np.asarray(ours[name]), np.asarray(ours[f"{name}_scale"])
        assert whole.dtype == np.int8
        error = np.abs(whole * scales[..., None] - np.asarray(expected))
        assert (error <= scales[..., None] * 0.501).all(), name
        is_padding = ~np.asarray(expected).any(-1)
        assert not whole[is_padding].any(), name
        assert np.isfinite(scales).all(), name


def test_every_layout_has_the_bits_of_one_device(devices):
    """Red when a device's part of a row is quantised by its own largest magnitude."""
    one = dict(checkpoint_tensors(*params_on("single", devices)))
    for layout in LAYOUTS:
        for name, tensor in checkpoint_tensors(*params_on(layout, devices)):
            assert tensor.tobytes() == one[name].tobytes(), (layout, name)


@pytest.mark.parametrize("at_once", [8, 50, 1 << 20])
def test_any_part_is_the_part_of_the_whole(monkeypatch, at_once):
    """However few rows are looked at together, and however many threads ask."""
    monkeypatch.setattr(module, "ELEMENTS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(13, 24)).astype(ml_dtypes.bfloat16)
    matrix[7] = 0
    floats = matrix.astype(np.float32)
    scales = np.abs(floats).max(1) / np.float32(127)
    steps = np.where(scales == 0, 1, scales)[:, None]
    whole = np.round(floats / steps)
    source = QuantizedSource(ArraySource({"a.weight": matrix}), ["a.weight"])
    assert source.shapes == {"a.weight": (13, 24), "a.weight_scale": (13,)}
    assert source.dtypes == {"a.weight": "I8", "a.weight_scale": "F32"}
    bounds = [((5, 9), (3, 20)), ((0, 13), (0, 24)), ((12, 13), (0, 2))]
    parts = [(slice(*rows), slice(*columns)) for rows, columns in bounds]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda part: source.read("a.weight", part), parts * 8))
    for part, found in zip(parts * 8, read, strict=True):
        np.testing.assert_array_equal(found, whole[part])
    np.testing.assert_allclose(source.read("a.weight_scale", (slice(2, 7),)), scales[2:7])


def test_what_is_not_a_number_is_found_when_it_is_used():
    matrix = np.ones((2, 4), np.float32)
    matrix[1, 2] = np.nan
    source = QuantizedSource(ArraySource({"a.weight": matrix}), ["a.weight"])
    assert np.isnan(source.read("a.weight_scale", (slice(0, 2),))).tolist() == [False, True]


def test_a_source_that_lacks_a_weight_is_refused_by_its_name():
    weights = denoiser_weights(SMALL, parse_layout("single"), jnp.float32, "int8")
    tensors = {name: base_source().read(name) for name in base_source().shapes}
    del tensors["blocks.0.ffn.net.2.weight"]
    with pytest.raises(CheckpointError, match=r"missing blocks\.0\.ffn\.net\.2\.weight"):
        check_tensors(
            "transformer", expected_tensors(weights), quantized(ArraySource(tensors), weights)
        )


def test_nothing_stands_between_where_nothing_is_quantised():
    source = base_source()
    assert quantized(source, denoiser_weights(SMALL, parse_layout("single"), "float32")) is source
