"""The estimate's arithmetic, by hand."""

import pytest

from wan_tpu.planner.collectives import Collective
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.estimate import estimate
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.program import Operation, ProgramCosts

V6E = find_slice("v6e-8")
PEAK, BANDWIDTH, LINK = 918e12, 1640e9, 100e9


CHIPS = tuple((x, y, 0) for y in range(4) for x in range(2))


def collective(kind="all-gather", sent=10**9):
    """Between two neighbours."""
    return Collective(kind=kind, groups=((0, 1),), link_bytes=sent)


def run(*operations, cycles=None):
    return estimate(ProgramCosts(operations=operations), V6E, CHIPS, cycles or {})


def test_an_operation_takes_the_larger_of_compute_and_memory():
    busy = Operation(name="a", kind="matmul", times=3, flops=918 * 10**12, hbm_bytes=164 * 10**9)
    slow = Operation(name="b", kind="fusion", times=2, hbm_bytes=1640 * 10**9)
    seconds = run(busy, slow)
    assert (seconds.compute, seconds.memory, seconds.exposed) == pytest.approx((3.0, 2.0, 0.0))
    assert seconds.total == pytest.approx(5.0)


def test_products_of_int8_go_by_their_own_peak():
    """Half of these FLOPs are of int8, at twice the rate: three quarters of the time."""
    half = round(PEAK) // 2
    mixed = Operation(name="a", kind="matmul", flops=2 * half, int8_flops=half)
    seconds = run(mixed)
    assert seconds.compute == pytest.approx(0.75)


def test_the_compiler_s_count_takes_the_place_of_everything_but_attention_and_links():
    shape = Attention(heads=10, queries=75_776, keys=75_776, head_dim=128)
    seconds = run(
        Operation(name="k", kind="kernel", attention=shape),
        Operation(name="p", kind="matmul", flops=918 * 10**12, compiler_cycles=round(2.5 * 1.75e9)),
        Operation(name="g", kind="all-gather", collectives=(collective(sent=int(50e9)),)),
        cycles={shape: 175_000_000},
    )
    assert seconds.total == pytest.approx(1.0 + 1.0 + 0.5)
    assert seconds.by_compiler == pytest.approx(1.0 + 2.5 + 0.5)


def test_attention_goes_by_cycles_where_they_were_counted():
    shape = Attention(heads=10, queries=75_776, keys=75_776, head_dim=128)
    kernel = Operation(name="k", kind="kernel", times=40, flops=shape.flops, attention=shape)
    counted = run(kernel, cycles={shape: 1_750_000})
    assert counted.compute == counted.attention == pytest.approx(40 * 10 * 1e-3)
    by_flops = run(kernel)
    assert by_flops.compute == pytest.approx(40 * 4 * 10 * 75_776**2 * 128 / PEAK)


def test_the_published_kernel_of_facts_section_3():
    """75,600^2 pairs x 40 heads x 40 layers x 2 branches / 8 chips x 1.537e-3 / 1.75e9 = 2.01 s."""
    shape = Attention(heads=10, queries=75_600, keys=75_600, head_dim=128)
    kernel = Operation(name="k", kind="kernel", times=40, attention=shape)
    seconds = run(kernel, cycles={shape: round(75_600**2 * 1.537e-3)})
    assert seconds.total == pytest.approx(2.01, abs=0.005)


def product(seconds, times=1):
    """By the compiler's count; half of it by the peaks."""
    return Operation(
        name="p",
        kind="matmul",
        times=times,
        flops=round(seconds / 2 * PEAK),
        compiler_cycles=round(seconds * 1.75e9),
    )


def transfer(seconds, *, times=1, waited_at=None):
    return Operation(
        name="t",
        kind="all-gather",
        times=times,
        collectives=(collective(sent=round(seconds * LINK)),),
        waited_at=waited_at,
    )


@pytest.mark.parametrize(
    ("operations", "exposed", "hidden"),
    [
        # What the program waits for at once is exposed, whatever stands around it.
        ([product(1), transfer(0.5), product(1)], 0.5, 0),
        # What stands between start and end hides it, at most its own time ...
        ([transfer(0.5, waited_at=2), product(1)], 0, 0.5),
        ([transfer(1.5, waited_at=2), product(1), product(1)], 0.5, 1),
        # ... what stands before or after does not ...
        ([product(9), transfer(0.5, waited_at=2), product(9)], 0.5, 0),
        # ... and one product does not hide two transfers that share the links.
        ([transfer(1, waited_at=3), transfer(1, waited_at=3), product(1)], 1, 1),
        ([transfer(1, waited_at=3), transfer(1), product(1)], 2, 0),
        ([transfer(1, waited_at=3), transfer(1, waited_at=4), product(1), product(1)], 0, 2),
        # In a loop each turn hides its own; a loop inside counts with all its turns.
        ([transfer(1, times=4, waited_at=2), product(0.25, times=4)], 3, 1),
        ([transfer(1, times=4, waited_at=2), product(0.25, times=16)], 0, 4),
    ],
)
def test_links_are_exposed_or_hidden(operations, exposed, hidden):
    """Red when a transfer is hidden by what does not stand between its start and its end."""
    seconds = run(*operations)
    assert (seconds.exposed, seconds.hidden) == pytest.approx((exposed, hidden))
    assert seconds.total == pytest.approx(seconds.compute + exposed)
    assert seconds.by_compiler == pytest.approx(2 * seconds.compute + exposed)
    assert seconds.range == (seconds.total, seconds.by_compiler)


def test_an_attention_kernel_hides_by_its_own_count():
    shape = Attention(heads=10, queries=75_776, keys=75_776, head_dim=128)
    kernel = Operation(name="k", kind="kernel", attention=shape)
    seconds = run(transfer(1.5, waited_at=2), kernel, cycles={shape: 175_000_000})
    assert (seconds.exposed, seconds.hidden) == pytest.approx((0.5, 1.0))


def test_a_kernel_of_which_the_compiler_says_nothing_goes_by_the_rules():
    """Red when the upper end of the range leaves it out."""
    kernel = Operation(name="norm_rotate", kind="kernel", hbm_bytes=int(BANDWIDTH))
    copied = Operation(name="copy", kind="copy", hbm_bytes=int(BANDWIDTH))
    assert run(kernel).by_compiler == run(kernel).kernels == pytest.approx(1.0)
    assert run(copied).by_compiler == 0.0, "fetched beside the program"


@pytest.mark.parametrize("waited_at", [None, 1])
def test_the_chip_s_own_side_of_a_transfer_is_not_counted_twice(waited_at):
    gather = Operation(
        waited_at=waited_at,
        name="g",
        kind="all-gather",
        hbm_bytes=int(BANDWIDTH),
        collectives=(collective(sent=int(LINK)),),
    )
    assert run(gather).total == pytest.approx(1.0)
