"""The estimate's arithmetic, by hand."""

import pytest

from wan_tpu.planner.costs import Attention, Collective
from wan_tpu.planner.estimate import estimate, link_seconds, share_of_peak
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.program import Operation, ProgramCosts

V6E = find_slice("v6e-8")
PEAK, BANDWIDTH, LINK = 918e12, 1640e9, 100e9


def collective(kind="all-gather", size=4, sent=10**9, asynchronous=False):
    return Collective(kind=kind, group_size=size, link_bytes=sent, asynchronous=asynchronous)


def run(*operations, cycles=None):
    return estimate(ProgramCosts(operations=operations), V6E, cycles or {})


def test_an_operation_takes_the_larger_of_compute_and_memory():
    busy = Operation(name="a", kind="matmul", times=3, flops=918 * 10**12, hbm_bytes=164 * 10**9)
    slow = Operation(name="b", kind="fusion", times=2, hbm_bytes=1640 * 10**9)
    seconds = run(busy, slow)
    assert (seconds.compute, seconds.memory, seconds.links) == pytest.approx((3.0, 2.0, 0.0))
    assert seconds.total == pytest.approx(5.0)
    costs = ProgramCosts(operations=(busy, slow))
    assert share_of_peak(costs, seconds, V6E.chip) == pytest.approx(0.6)


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


@pytest.mark.parametrize(
    ("kind", "size", "sent", "expected"),
    [
        ("all-gather", 4, 3e9, 3e9 / LINK),  # a line of four: one link feeds its end
        ("all-gather", 8, 7e9, 7e9 / (2 * LINK)),  # the whole slice: a ring
        ("all-reduce", 2, 1e9, 1e9 / LINK),
        # Four chips with an operand of 1e9: each half sends 2 chips x half of it over the middle.
        ("all-to-all", 4, 0.75e9, 1e9 / LINK),
        ("all-to-all", 2, 0.5e9, 0.5e9 / LINK),
        ("all-to-all", 8, 0.875e9, 1e9 / LINK),
        ("collective-permute", 2, 1e9, 1e9 / LINK),
    ],
)
def test_link_seconds(kind, size, sent, expected):
    assert link_seconds(collective(kind, size, int(sent)), V6E) == pytest.approx(expected)


def test_a_long_axis_closes_to_a_ring():
    where = find_slice("v6e-256")
    assert link_seconds(collective("all-gather", 16), where) == pytest.approx(1e9 / (2 * LINK))
    assert link_seconds(collective("all-gather", 8), where) == pytest.approx(1e9 / LINK)


def test_waiting_adds_and_overlapping_does_not():
    work = Operation(name="a", kind="matmul", flops=int(PEAK))  # one second
    waits = Operation(name="b", kind="all-gather", collectives=(collective(sent=int(50e9)),))
    hidden = Operation(
        name="c",
        kind="collective-permute",
        collectives=(collective(sent=int(50e9), asynchronous=True),),
    )
    longer = Operation(
        name="d",
        kind="collective-permute",
        collectives=(collective(sent=int(150e9), asynchronous=True),),
    )
    assert run(work, waits).links == pytest.approx(0.5)
    assert run(work, hidden).total == pytest.approx(1.0)
    assert run(work, longer).total == pytest.approx(1.5)


def test_the_chip_s_own_side_of_a_transfer_is_not_counted_twice():
    gather = Operation(
        name="g",
        kind="all-gather",
        hbm_bytes=int(BANDWIDTH),
        collectives=(collective(sent=int(LINK)),),
    )
    assert run(gather).total == pytest.approx(1.0)
