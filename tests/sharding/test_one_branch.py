"""Meshes for batches of another size: nobody computes a copy, and no weight moves."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from wan_tpu.sharding.layout import Layout, factorisations, parse_layout, variants
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.sharding.one_branch import batch_layout, merged_mesh, one_branch_layout, seen_on
from wan_tpu.sharding.rules import split_weight

HEADS = (3, 12, 24, 40)


@pytest.mark.parametrize("num_devices", [2, 6, 8, 16, 64])
@pytest.mark.parametrize("num_heads", HEADS)
def test_dp_goes_into_sp_and_weights_stay_as_they_are(num_devices, num_heads):
    for shape in factorisations(num_devices):
        for layout in variants(shape):
            found = one_branch_layout(layout, num_heads)
            if found == layout:
                continue
            assert found.shape == (1, layout.dp * layout.sp, layout.tp)
            assert found.weights == layout.weights
            assert found.padded_heads(num_heads) == layout.padded_heads(num_heads)


def test_every_layout_that_pads_no_heads_has_one():
    """Wan's models on the usual slices: without guidance no device computes a copy."""
    for num_devices in (2, 4, 8, 16, 32, 64, 128, 256):
        for num_heads in (12, 24, 40):
            for shape in factorisations(num_devices):
                for layout in variants(shape, weights=("sharded",)):
                    if layout.padded_heads(num_heads) == num_heads:
                        assert one_branch_layout(layout, num_heads).dp == 1


@pytest.mark.parametrize(
    ("text", "mode", "num_heads", "expected"),
    [
        ("dp2-sp4", "ulysses", 40, "sp8"),
        ("dp2-sp4", "ulysses", 12, "sp8 ulysses4"),  # over 8 it would pad 12 heads to 16
        ("dp2-sp4", "ring", 12, "sp8 ring"),
        ("dp2-sp2-tp2", "ulysses", 12, "sp4-tp2 ulysses2"),
        ("dp2-sp16 ulysses8", "ulysses", 40, "sp32 ulysses8"),
        ("sp8", "ulysses", 40, "sp8"),
        ("dp2-tp8", "ulysses", 12, "sp2-tp8"),  # 16 heads in both
    ],
)
def test_the_way_tokens_are_shared(text, mode, num_heads, expected):
    layout = parse_layout(text, sequence_parallel=mode)
    assert str(one_branch_layout(layout, num_heads)) == expected


@pytest.mark.parametrize(
    ("text", "num_heads", "batch", "expected"),
    [
        ("sp8", 40, 4, "dp4-sp2"),
        ("dp2-sp4", 12, 8, "dp8"),
        ("dp2-sp4", 12, 16, "dp8"),
        ("dp2-sp4 ring", 12, 2, "dp2-sp4 ring"),
        ("sp8", 12, 8, "sp8"),  # 16 heads, which no other share of sp pads so
        ("dp2-sp4", 12, 1, "sp8 ulysses4"),
        ("dp2-sp16 ulysses8", 40, 4, "dp4-sp8"),
        ("dp2-sp2-tp2 replicated", 12, 4, "dp4-tp2 replicated"),
        ("dp3-sp2", 7, 4, "sp6 ulysses2"),  # eight heads in both; dp3 would compute two copies
    ],
)
def test_a_batch_takes_as_much_of_sp_as_it_fills(text, num_heads, batch, expected):
    assert str(batch_layout(parse_layout(text), num_heads, batch)) == expected


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("tp_dim", [None, 0, 1])
@pytest.mark.parametrize("weights", ["sharded", "replicated"])
@pytest.mark.parametrize("text", ["dp2-sp4", "dp2-sp2-tp2", "dp4-sp2", "dp2-tp4"])
def test_the_same_memory_is_seen_on_both_meshes(devices, text, weights, tp_dim, batch):
    layout = parse_layout(text, weights=weights)
    merged = batch_layout(layout, 16, batch)
    mesh = make_mesh(layout, devices)
    shape = (256, 128)
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    placed = jax.device_put(
        numbers, NamedSharding(mesh, split_weight(shape, layout, tp_dim=tp_dim))
    )
    seen = seen_on(
        placed,
        NamedSharding(merged_mesh(mesh, merged), split_weight(shape, merged, tp_dim=tp_dim)),
    )
    np.testing.assert_array_equal(seen, numbers)
    for before, after in zip(placed.addressable_shards, seen.addressable_shards, strict=True):
        assert before.data.unsafe_buffer_pointer() == after.data.unsafe_buffer_pointer()


def test_another_split_is_made_where_memory_cannot_be_shared(devices):
    mesh = make_mesh(Layout(dp=2, sp=4), devices)
    numbers = np.arange(16.0, dtype=np.float32)
    seen = seen_on(jax.device_put(numbers, named(mesh, "dp")), named(mesh, "sp"))
    assert seen.sharding == named(mesh, "sp")
    np.testing.assert_array_equal(seen, numbers)
