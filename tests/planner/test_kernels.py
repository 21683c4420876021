"""The static count of attention kernels: shapes, schedules, the process that counts."""

import dataclasses

import jax
import pytest

from wan_tpu.attention.flash_blocks import Blocks, block_limits
from wan_tpu.planner.hardware import CHIPS
from wan_tpu.planner.kernel_cycles import count_cycles, grid_of
from wan_tpu.planner.kernels import KernelCycles, KernelShape, backward_times, flash_times
from wan_tpu.planner.schedule import (
    KernelCountError,
    Region,
    backward_bundles,
    read_schedule,
    splash_parts,
)


def flash(queries, keys, *, num_keys=None, query_chunks=1, key_chunks=1, implementation="flash"):
    return KernelShape(
        chip="v6e", implementation=implementation, queries=queries, keys=keys,
        num_keys=num_keys or keys, head_dim=128, query_chunks=query_chunks, key_chunks=key_chunks,
    )  # fmt: skip


def test_regions_of_a_schedule_nest(tmp_path):
    lines = ["0x0 { Start region 1", "0x9 { Start region 2 ; Start region 3", "0x12 End region 3"]
    lines += [
        "0x13 { Start region 4",
        "0x76 { End region 4",
        "0x80 { End region 2",
        "0x81 End region 1",
    ]
    (tmp_path / "1-k-1-final_bundles.txt").write_text("\n".join(f" {line}" for line in lines))
    step = read_schedule(tmp_path)
    assert step.bundles == 0x82
    (row,) = step.inside
    assert [region.bundles for region in row.inside] == [0x12 - 0x9 + 1, 0x76 - 0x13 + 1]
    assert splash_parts(step, (2, 3, 4)) == {
        "tile": (0x76 - 0x13 + 1, 24),
        "row": (0x82 - (0x76 - 0x13 + 1), 6),
    }


def test_no_schedule_is_an_error(tmp_path):
    with pytest.raises(KernelCountError, match="no schedule"):
        read_schedule(tmp_path)


def test_the_grid_of_a_kernel_that_is_not_there():
    with pytest.raises(KernelCountError, match="expected one Pallas kernel"):
        grid_of(jax.make_jaxpr(lambda x: x + 1)(1.0))


@pytest.mark.parametrize(
    ("implementation", "tokens", "chunks", "least", "most"),
    [
        ("splash", 512, 1, 1.46e-3, 10e-3),
        # Two blocks of queries; keys in a whole tile and a small one per chunk.
        ("flash", 2 * 1400, 2, 1.46e-3, 4.5e-3),
    ],
)
def test_counting_a_kernel_in_its_own_process(implementation, tokens, chunks, least, most):
    """Cycles per pair are above the matrix unit's floor, and not far."""
    shape = KernelShape(
        chip="v6e", implementation=implementation, queries=tokens, keys=tokens, num_keys=tokens,
        head_dim=128, query_chunks=chunks, key_chunks=chunks,
    )  # fmt: skip
    count = count_cycles(shape)
    assert least * tokens**2 < count.per_head < most * tokens**2
    if implementation == "flash":
        times = {name: part[1] for name, part in count.parts.items()}
        assert times["tile of 1024 keys"] == times["tile of 512 keys"] == 4
        assert times["block of keys"] == 4
        assert times["block of queries"] == 2


def test_counting_a_kernel_with_one_block_of_keys():
    """Red when its schedule, whose branches the compiler resolves, is read."""
    shape = flash(256, 1536)
    count = count_cycles(shape.smallest_alike()).of(shape)
    times = {name: part[1] for name, part in count.parts.items()}
    assert times == {
        "tile of 1024 keys": 1, "tile of 512 keys": 1, "block of keys": 1, "step": 1,
        "block of queries": 1,
    }  # fmt: skip


INT8, SMALL_INT8 = (
    flash(tokens, tokens, num_keys=real, query_chunks=8, key_chunks=8, implementation="flash-int8")
    for tokens, real in ((75_776, 75_600), (32_768, 32_760))
)
INT8_COUNTED = {
    INT8: {
        "block of queries": (7153, 8), "step": (136, 8), "block of keys": (2948, 8),
        "tile of 1024 keys": (10_101, 584), "tile of 512 keys": (5973, 16),
    },
    SMALL_INT8: {
        "block of queries": (3188, 8), "step": (131, 8), "block of keys": (1418, 8),
        "tile of 1024 keys": (4513, 248), "tile of 512 keys": (2749, 16),
    },
}  # fmt: skip
"""Of 720p and 480p as they come on sp8; `tests/aot/test_flash_int8_compile.py` counts them."""

COUNTED = {
    # One compilation each, the first at full length (2026-11-27, jax 0.10.2, libtpu 0.0.42.1).
    flash(75_776, 75_776, num_keys=75_600, query_chunks=8, key_chunks=8): {
        "block of queries": (4579, 8), "step": (139, 16), "block of keys": (2663, 16),
        "tile of 1024 keys": (14_360, 584), "tile of 512 keys": (8123, 16),
    },
    flash(32_768, 32_768, num_keys=32_760, query_chunks=8, key_chunks=8): {
        "block of queries": (2113, 8), "step": (128, 8), "block of keys": (1974, 8),
        "tile of 1024 keys": (6365, 248), "tile of 512 keys": (3634, 16),
    },
    **INT8_COUNTED,
}  # fmt: skip

TEXT, TEXT_COUNT = flash(37_888, 512), {"block of queries": (8268, 4)}
"""A head of cross-attention of the 14B model at 720p on a v6e-8: 1.71 thousandths of a cycle a pair
(benchmarks/results/2026-11-27-one-pass.md)."""


@pytest.mark.parametrize("shape", COUNTED, ids=lambda s: f"{s.implementation}-{s.queries}x{s.keys}")
def test_times_of_the_parts(shape):
    assert flash_times(shape) == {name: times for name, (_, times) in COUNTED[shape].items()}
    assert shape.smallest_alike().blocks.all_keys == shape.blocks.all_keys


@pytest.mark.parametrize(
    ("shape", "cycles"), [(next(iter(COUNTED)), 1.504e-3), (INT8, 1.063e-3)], ids=["flash", "int8"]
)
def test_cycles_of_a_head_at_720p(shape, cycles):
    """A pair: benchmarks/results/2026-11-27-flash-order.md and 2026-11-27-flash-int8.md."""
    count = KernelCycles(parts={name: (n, 1) for name, (n, _) in COUNTED[shape].items()})
    assert count.of(shape).per_head / 75_600**2 == pytest.approx(cycles, rel=1e-3)


def test_the_layouts_of_a_plan_share_their_counts():
    """sp2 of the 14B model fetches one chunk, sp4 two and sp8 four; all its cross-attention."""
    shapes = [
        flash(75_776, 75_776, num_keys=75_600, query_chunks=ways, key_chunks=ways)
        for ways in (2, 4, 8)
    ]
    assert [shape.blocks.key_chunks for shape in shapes] == [1, 2, 4]
    assert len({shape.smallest_alike() for shape in shapes}) == 1
    cross = {flash(75_776 // ways, 512).smallest_alike() for ways in (2, 4, 8)}
    assert len(cross) == 1
    splash = KernelShape(
        chip="v6e", implementation="splash", queries=512, keys=512, num_keys=512, head_dim=128
    )
    assert splash.smallest_alike() is splash
    count = KernelCycles(parts={"tile": (10, 2)})
    assert count.of(splash) is count


def test_tiles_go_by_the_chip():
    """Red when a v7x is counted with blocks that its memory does not hold."""
    shape = next(iter(COUNTED))
    assert dataclasses.replace(shape, chip="v7x").blocks.all_keys == 18_944


@pytest.mark.parametrize("shape", [list(COUNTED)[1], TEXT], ids=lambda shape: f"{shape.keys}")
def test_the_smallest_shape_alike_gives_the_count(shape):
    """Bundle for bundle. Red when the kernel, or how its schedule is read, changes."""
    parts = COUNTED.get(shape, TEXT_COUNT)
    assert count_cycles(shape.smallest_alike()).of(shape).parts == parts


@pytest.mark.parametrize(
    ("chip", "tile"),
    [("v7x", 1474), ("v5p", 4034), pytest.param("v5e", 4021, marks=pytest.mark.slow)],
)
def test_a_tile_of_each_chip(chip, tile):
    """1,024 queries and keys (2026-11-27, jax 0.10.2, libtpu 0.0.42.1); on a v6e it takes 1,724.

    Red when a chip is given another's order: a v7x would take 1,577, a v5p 6,094.
    """
    order = block_limits(CHIPS[chip].device_kind).order
    blocks = Blocks(queries=1024, keys=2048, compute=1024, last_compute=512, order=order)
    shape = dataclasses.replace(
        flash(2048, 4096, num_keys=4095, query_chunks=2, key_chunks=2), chip=chip, tiles=blocks
    )
    assert count_cycles(shape).parts["tile of 1024 keys"] == (tile, 6)


def test_a_count_that_takes_too_long_is_given_up():
    with pytest.raises(KernelCountError, match="took more than"):
        count_cycles(flash(256, 512), timeout=0.05)


def test_the_user_s_flags_stay_and_ours_follow(monkeypatch):
    """A flag that libtpu does not know ends the count: it was given. Red when it is overwritten."""
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_no_such_flag=true")
    with pytest.raises(KernelCountError, match="xla_no_such_flag"):
        count_cycles(flash(256, 512))


BACKWARD = dataclasses.replace(next(iter(COUNTED)), is_backward=True)
"""One head of 720p as it comes on sp8, and the figures of its count."""
BACKWARD_COUNT = {
    "step": (4587, 256), "block of keys": (3575, 16), "sums of a block": (766, 240),
    "block of queries": (702, 16), "tile of 1024 keys": (17_779, 1152),
    "tile of 256 keys": (4786, 128),
}  # fmt: skip


def test_times_of_a_gradient_s_parts():
    """3.94 thousandths of a cycle a pair: benchmarks/results/2026-11-26-attention-backward.md."""
    times = {name: times for name, (_, times) in BACKWARD_COUNT.items()}
    assert backward_times(BACKWARD) == times
    count = KernelCycles(parts={name: (n, 1) for name, (n, _) in BACKWARD_COUNT.items()})
    assert count.of(BACKWARD).per_head / 75_600**2 == pytest.approx(3.94e-3, rel=1e-3)


def test_a_gradient_s_smallest_shape_has_the_same_blocks():
    small = BACKWARD.smallest_alike()
    assert small.backward_blocks == BACKWARD.backward_blocks
    assert (small.query_chunks, small.key_chunks) == (2, 2)
    assert small.keys - small.num_keys == 176, "the padding of the last chunk"


def test_regions_of_a_gradient_s_schedule():
    """As the compiler wrote them (2026-11-26), small ones left out; what is no region is a step."""
    ends = (
        (29_221, 29_677),
        (29_678, 29_986),
        (29_987, 30_688),
        (30_689, 32_070),
        (32_105, 32_111),
    )
    body = Region(24, 32_185, (
        Region(24, 193, (Region(165, 193, ()),)),
        Region(275, 2467, (Region(275, 281, ()),)),
        Region(2468, 24_419, (Region(2468, 6640, ()), Region(6641, 24_419, ()))),
        Region(24_420, 29_220, (Region(24_435, 29_220, ()),)),
        *(Region(*end, ()) for end in ends),
    ))  # fmt: skip
    bundles = backward_bundles(Region(10, 32_204, (body,)), BACKWARD.backward_blocks)
    assert bundles == {name: count for name, (count, _) in BACKWARD_COUNT.items()}
    with pytest.raises(KernelCountError, match="backward"):
        backward_bundles(Region(0, 9, (Region(1, 8, ()),)), BACKWARD.backward_blocks)


def test_counting_a_gradient_in_its_own_process():
    """Above the floor of the matrix unit, and not far: tiles here are a fifth of the largest."""
    shape = dataclasses.replace(
        flash(2 * 1400, 2 * 1400, query_chunks=2, key_chunks=2), is_backward=True
    )
    count = count_cycles(shape)
    assert 3.2e-3 * 2800**2 < count.per_head < 7e-3 * 2800**2
