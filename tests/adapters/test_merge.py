"""A merged model's parameters: the same bits on every layout, the base's where nothing is added."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import (
    CONFIG,
    base_source,
    exactly,
    linears,
    make_factors,
    merged,
    normal,
    pair,
)
from tests.tolerances import MERGED, relative_error
from wan_tpu.adapters import products
from wan_tpu.adapters.form import Adapter, Hadamard, Kronecker, factors_of
from wan_tpu.adapters.merge import MergedSource, Strengthened
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import checkpoint_tensors, place_weights
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.lora import LoraShape, lora_weights
from wan_tpu.transformer.weights import denoiser_weights

LAYOUTS = ["dp2-sp2-tp2", "tp8", "sp4 replicated", "tp4"]
"""Three heads on tp8 and tp4 are padded, as are the 100 channels of the feed-forward on tp8."""


@pytest.fixture(scope="module")
def adapters():
    """Three that overlap: ranks, alphas, whole differences, and what is more than a product."""
    rng = np.random.default_rng(5)
    shapes = base_source().shapes
    names = ("blocks.1.norm2.bias", "blocks.2.scale_shift_table", "blocks.0.attn1.norm_q.weight",
             "patch_embedding.weight")  # fmt: skip
    differences = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in names}
    first = make_factors(linears(embedders=True), ranks=(2, 5), alphas=(None, 1.0))
    second = make_factors(linears()[::2], seed=1)
    return [
        Strengthened(adapter=Adapter(factors=first, differences=differences), strength=0.75),
        Strengthened(adapter=Adapter(factors=second), strength=-1.5),
        Strengthened(adapter=other_forms(), strength=0.4),
    ]


def other_forms():
    """LoHa, LoKr and DoRA, of rows and of columns, where rows and columns are split and padded."""
    return Adapter(
        factors={
            "blocks.0.attn1.to_q.weight": Hadamard(
                first=pair(72, 72, 3), second=pair(72, 72, 3, seed=1), alpha=2.0
            ),
            "blocks.1.attn1.to_out.0.weight": Kronecker(
                left=normal(6, 8), right=pair(12, 9, 2), alpha=1.0
            ),
            "blocks.1.ffn.net.0.proj.weight": Kronecker(left=pair(4, 6, 2), right=pair(25, 12, 2)),
            "blocks.1.ffn.net.2.weight": pair(72, 100, 4),
            "blocks.0.attn1.to_k.weight": pair(72, 72, 4),
            "blocks.0.attn2.to_v.weight": Kronecker(left=normal(8, 8), right=normal(9, 9)),
        },
        magnitudes={
            "blocks.1.ffn.net.2.weight": 9 + normal(72, 1),
            "blocks.0.attn1.to_k.weight": 8 + normal(1, 72),
            "blocks.0.attn2.to_v.weight": 8 + normal(72),
        },
    )


@pytest.fixture
def small_tiles(monkeypatch):
    """The matrices have some hundred rows; with small tiles each has several."""
    monkeypatch.setattr(products, "TILE", 32)


def parameters(layout, dtype, adapters, devices):
    layout = parse_layout(layout)
    weights = denoiser_weights(TransformerConfig.from_json(CONFIG), layout, dtype)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    params = place_weights(weights, MergedSource(base_source(), adapters), mesh)
    return weights, params


@pytest.mark.usefixtures("small_tiles")
def test_every_layout_has_the_same_bits_as_one_device(devices, adapters):
    """Red when rows of `up` are not those of the stored weight, or a part is multiplied alone."""
    one = dict(checkpoint_tensors(*parameters("single", jnp.float32, adapters, devices)))
    assert one.keys() == base_source().shapes.keys()
    for layout in LAYOUTS:
        many = dict(checkpoint_tensors(*parameters(layout, jnp.float32, adapters, devices)))
        assert one.keys() == many.keys()
        for name, tensor in one.items():
            assert tensor.tobytes() == many[name].tobytes(), (layout, name)


@pytest.mark.usefixtures("small_tiles")
def test_padding_stays_zero(devices, adapters):
    _, params = parameters("tp8", jnp.float32, adapters, devices)
    rows = np.asarray(params["blocks.*.attn1.to_q.weight"])
    assert rows.shape[1] == 8 * 24
    assert not rows[:, 3 * 24 :].any()


@pytest.mark.parametrize("layout", ["single", "dp2-sp2-tp2", "tp8"])
def test_what_a_training_holds_is_what_is_merged(devices, layout):
    """Red when a trained B's rows are put back in another order than the weight's.

    The stored weights with the stored B A added, as a training computes with them, against those
    of the adapter that is made of the stored A and B.
    """
    targets = ("attn1.to_q", "attn1.to_out.0", "attn2.to_v", "ffn.net.0.proj", "ffn.net.2")
    weights, base = parameters(layout, jnp.float32, [], devices)
    shape = LoraShape(rank=3, targets=targets)
    matrices = lora_weights(weights, shape, parse_layout(layout))
    rng = np.random.default_rng(7)
    drawn = ArraySource({
        tensor: rng.normal(0, 0.3, weight.tensor_shape).astype(np.float32)
        for weight in matrices for tensor in weight.tensors
    })  # fmt: skip
    parsed = parse_layout(layout)
    mesh = make_mesh(parsed, devices[: parsed.num_devices])
    trained = place_weights(matrices, drawn, mesh)
    factors = factors_of(checkpoint_tensors(matrices, trained), alpha=1.5)
    added = [Strengthened(adapter=Adapter(factors=factors), strength=1.0)]
    _, params = parameters(layout, jnp.float32, added, devices)
    for target in targets:
        name = f"blocks.*.{target}.weight"
        down, up = (np.asarray(trained[w.name]) for w in matrices if w.name.startswith(name[:-6]))
        expected = np.asarray(base[name]) + 0.5 * up @ down
        assert relative_error(np.asarray(params[name]), expected) <= MERGED, target


def test_several_add_up_and_are_rounded_once(devices, adapters):
    """Red when the base's dtype rounds between two adapters, or an adapter is left out."""
    apart = [exactly(each.adapter, each.strength) for each in adapters]
    base, source = exactly(Adapter()), MergedSource(base_source(), adapters)
    loaded = dict(checkpoint_tensors(*parameters("single", jnp.bfloat16, adapters, devices)))
    for name, tensor in base.items():
        expected = tensor + sum(each[name] - tensor for each in apart)
        merged_all = source.read(name)
        assert relative_error(merged_all, expected) <= MERGED, name
        assert loaded[name].tobytes() == merged_all.astype(loaded[name].dtype).tobytes(), name
    assert {tensor.dtype for tensor in loaded.values()} == set(
        map(jnp.dtype, ("bfloat16", "float32"))
    )


@pytest.mark.parametrize("tiles", [7, 16, 256])
def test_any_part_is_the_part_of_the_whole(adapters, monkeypatch, tiles):
    """Whichever rows and columns are read, of matrices, vectors and a kernel of five dimensions."""
    monkeypatch.setattr(products, "TILE", tiles)
    rng = np.random.default_rng(6)
    source = MergedSource(base_source(), adapters)
    for name in ("blocks.0.ffn.net.0.proj.weight", "blocks.1.attn2.add_k_proj.weight",
                 "patch_embedding.weight", "blocks.1.norm2.bias", "proj_out.weight",
                 *other_forms().factors):  # fmt: skip
        whole = source.read(name)
        assert whole.dtype == np.float32
        for _ in range(12):
            bounds = [sorted(rng.integers(0, size + 1, 2)) for size in source.shapes[name]]
            index = tuple(slice(int(start), int(stop)) for start, stop in bounds)
            index = index[: rng.integers(0, len(index) + 1)]
            assert source.read(name, index).tobytes() == whole[index].tobytes(), (name, index)


@pytest.mark.parametrize("strength", [0.0, -0.0])
def test_at_strength_0_it_is_the_base_bit_for_bit(adapters, strength):
    base = base_source()
    negative = ArraySource({"blocks.0.attn1.to_q.weight": np.full((72, 72), -0.0, np.float32)})
    for source in (base, negative):
        same = MergedSource(
            source, [Strengthened(adapter=each.adapter, strength=strength) for each in adapters]
        )
        assert same.dtypes == source.dtypes
        for name in source.shapes:
            assert same.read(name).tobytes() == source.read(name).tobytes()


def test_another_strength_is_another_model(adapters):
    one, other = (merged(adapters[1].adapter, strength) for strength in (0.5, 0.6))
    name = next(iter(adapters[1].adapter.factors))
    assert relative_error(one[name], other[name]) > 1e-3


def test_the_base_is_not_changed(adapters):
    before = base_source().read("blocks.0.attn1.to_q.weight").copy()
    merged(adapters[0].adapter)
    assert np.array_equal(base_source().read("blocks.0.attn1.to_q.weight"), before)
