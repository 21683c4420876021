"""The static count of attention kernels: shapes, schedules, the process that counts."""

import dataclasses

import jax
import pytest

from wan_tpu.planner.kernel_cycles import count_cycles, grid_of
from wan_tpu.planner.kernels import KernelCycles, KernelShape, backward_times, flash_times
from wan_tpu.planner.schedule import (
    KernelCountError,
    Region,
    backward_bundles,
    read_schedule,
    splash_parts,
)


def flash(queries, keys, *, num_keys=None, query_chunks=1, key_chunks=1):
    return KernelShape(
        chip="v6e", implementation="flash", queries=queries, keys=keys, num_keys=num_keys or keys,
        head_dim=128, query_chunks=query_chunks, key_chunks=key_chunks,
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
        # Two blocks of queries; keys in a whole tile, a small one and a partial one per chunk.
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
        assert times["tile of 1024 keys"] == times["tile of 256 keys"] == 4
        assert times["partial tile"] == times["block of keys"] == 4
        assert times["block of queries"] == 2


def test_counting_a_kernel_with_one_block_of_keys():
    """Cross-attention: red when its schedule, whose branches the compiler resolves, is read."""
    shape = flash(256, 512)
    count = count_cycles(shape.smallest_alike()).of(shape)
    times = {name: part[1] for name, part in count.parts.items()}
    assert times["tile of 256 keys"] == 2
    assert times["block of keys"] == 1
    assert times["partial tile"] == 0


COUNTED = {
    # Counted at full length, one compilation each (2026-11-26, jax 0.10.2, libtpu 0.0.42.1).
    flash(75_776, 75_776, num_keys=75_600, query_chunks=4, key_chunks=4): {
        "block of queries": (2894, 16), "step": (210, 128), "block of keys": (1336, 128),
        "tile of 1024 keys": (7825, 1152), "tile of 256 keys": (2656, 112),
        "partial tile": (2715, 16),
    },
    flash(32_768, 32_768, num_keys=32_760, query_chunks=8, key_chunks=8): {
        "block of queries": (2489, 8), "step": (128, 64), "block of keys": (1161, 64),
        "tile of 1024 keys": (6478, 248), "tile of 256 keys": (2148, 24),
        "partial tile": (2220, 8),
    },
    flash(9472, 75_776, num_keys=75_600, key_chunks=8): {
        "block of queries": (2894, 2), "step": (171, 16), "block of keys": (1336, 16),
        "tile of 1024 keys": (7825, 144), "tile of 256 keys": (2656, 14),
        "partial tile": (2715, 2),
    },
    flash(37_888, 512): {
        "block of queries": (2894, 8), "step": (164, 8), "block of keys": (1316, 8),
        "tile of 256 keys": (2653, 16), "partial tile": (2715, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", COUNTED, ids=lambda shape: f"{shape.queries}x{shape.keys}")
def test_times_of_the_parts(shape):
    assert flash_times(shape) == {name: times for name, (_, times) in COUNTED[shape].items()}
    assert shape.smallest_alike().blocks == shape.blocks


def test_the_layouts_of_a_plan_share_their_counts():
    """sp2 and sp4 of the 14B model, and all its cross-attention; sp8 has one block a chunk."""
    self_attention = [
        flash(75_776, 75_776, num_keys=75_600, query_chunks=ways, key_chunks=ways)
        for ways in (2, 4, 8)
    ]
    sp2, sp4, sp8 = (shape.smallest_alike() for shape in self_attention)
    assert sp2 == sp4 != sp8
    cross = {flash(75_776 // ways, 512).smallest_alike() for ways in (2, 4, 8)}
    assert len(cross) == 1
    splash = KernelShape(
        chip="v6e", implementation="splash", queries=512, keys=512, num_keys=512, head_dim=128
    )
    assert splash.smallest_alike() is splash
    count = KernelCycles(parts={"tile": (10, 2)})
    assert count.of(splash) is count


def test_a_chunk_that_is_cut_off_keeps_its_end():
    """Red when the shortest shape has whole blocks, or blocks of another size."""
    shape = flash(4725, 75_600, key_chunks=16)
    small = shape.smallest_alike()
    assert (small.key_chunk, small.key_chunks) == (4725, 2)
    longer = flash(20_001, 20_001)
    small = longer.smallest_alike()
    assert small.blocks == longer.blocks
    assert (20_001 - small.keys) % longer.blocks.keys == 0
    assert small.query_chunk == 20_001, "5 blocks of 4096; 2 of them would be cut otherwise"


@pytest.mark.parametrize(
    "shape", [list(COUNTED)[1], list(COUNTED)[3]], ids=lambda shape: f"{shape.queries}x{shape.keys}"
)
def test_the_smallest_shape_alike_gives_the_count_of_the_whole(shape):
    """Bundle for bundle. Red when the shapes' schedules differ in any part."""
    assert count_cycles(shape.smallest_alike()).of(shape).parts == COUNTED[shape]


def test_a_count_that_takes_too_long_is_given_up():
    with pytest.raises(KernelCountError, match="took more than"):
        count_cycles(flash(256, 512), timeout=0.05)


def test_the_user_s_flags_stay_and_ours_follow(monkeypatch):
    """A flag that libtpu does not know ends the count: it was given. Red when it is overwritten."""
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_no_such_flag=true")
    with pytest.raises(KernelCountError, match="xla_no_such_flag"):
        count_cycles(flash(256, 512))


BACKWARD = dataclasses.replace(next(iter(COUNTED)), query_chunks=8, key_chunks=8, is_backward=True)
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
