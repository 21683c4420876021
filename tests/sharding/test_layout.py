"""Layouts: their text form, which ones fit, and what an error proposes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_tpu.errors import InputError, LayoutError, UnknownNameError
from wan_tpu.sharding.layout import (
    MOST_PROPOSED,
    SEQUENCE_PARALLEL,
    WEIGHTS,
    Layout,
    default_layout,
    factorisations,
    parse_layout,
    variants,
)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("single", Layout()),
        ("tp8", Layout(tp=8)),
        ("dp2-sp4", Layout(dp=2, sp=4)),
        ("dp2-sp2-tp2", Layout(dp=2, sp=2, tp=2)),
        ("sp64", Layout(sp=64)),
    ],
)
def test_text_form(text, layout):
    assert str(layout) == text
    assert parse_layout(text) == layout


@pytest.mark.parametrize(
    ("text", "same"),
    [("SINGLE", "single"), ("TP8", "tp8"), ("sp4-dp2", "dp2-sp4"), ("dp1", "single")],
)
def test_other_spellings_are_read(text, same):
    assert str(parse_layout(text)) == same


@pytest.mark.parametrize("sequence_parallel", SEQUENCE_PARALLEL)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_factorisation_round_trips(sequence_parallel, weights):
    for num_devices in range(1, 257):
        for layout in factorisations(num_devices):
            choices = {"sequence_parallel": sequence_parallel, "weights": weights}
            expected = Layout(dp=layout.dp, sp=layout.sp, tp=layout.tp, **choices)
            assert parse_layout(str(layout), **choices) == expected


@given(st.text(alphabet="dpst-0123456789 ", max_size=12))
@settings(max_examples=500)
def test_any_text_is_a_layout_or_refused(text):
    try:
        layout = parse_layout(text)
    except LayoutError:
        return
    assert parse_layout(str(layout)) == layout


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "tp",
            "tp0",
            "tp-2",
            "tp08",
            "8",
            "tp8-",
            "-tp8",
            "tp8 ",
            "tp2-tp4",
            "pp2",
            "tp2,sp4",
        ),
        *("single-tp2", "tp8.0", "tp\u0668", "tp999999"),
    ],
)
def test_what_is_not_a_layout_is_refused_with_the_form(text):
    with pytest.raises(LayoutError, match="write single, or dpN, spN and tpN joined by") as caught:
        parse_layout(text)
    assert repr(text) in str(caught.value)
    assert "for example dp2-sp4 or tp8" in str(caught.value)


def test_choices_are_checked():
    with pytest.raises(UnknownNameError, match="'rings'; known: ulysses, allgather, ring"):
        Layout(sequence_parallel="rings")
    with pytest.raises(UnknownNameError, match="'split'; known: sharded, replicated"):
        parse_layout("tp8", weights="split")
    with pytest.raises(LayoutError, match="dp, sp and tp must be at least 1, got 2, 0, 1"):
        Layout(dp=2, sp=0)


@pytest.mark.parametrize("num_devices", [1, 2, 6, 8, 12, 17, 32, 64])
def test_factorisations_are_all_and_each_once(num_devices):
    found = [layout.shape for layout in factorisations(num_devices)]
    sizes = range(1, num_devices + 1)
    expected = {(d, s, t) for d in sizes for s in sizes for t in sizes if d * s * t == num_devices}
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_layout_needs_exactly_its_devices():
    Layout(dp=2, sp=4).require_devices(8)
    with pytest.raises(LayoutError) as caught:
        Layout(tp=8).require_devices(4)
    assert str(caught.value) == (
        "layout tp8 needs 8 devices, 4 are here; "
        "layouts for 4: tp4, sp2-tp2, dp2-tp2, sp4, dp2-sp2, dp4"
    )
    assert isinstance(caught.value, InputError)
    for text in str(caught.value).partition("layouts for 4: ")[2].split(", "):
        parse_layout(text).require_devices(4)


@pytest.mark.parametrize(
    ("layout", "count", "nearest"),
    [
        ("tp4", 8, "(nearest of 10): tp8, sp2-tp4, dp2-tp4, "),
        ("dp2-sp4", 16, "(nearest of 15): dp2-sp4-tp2, dp2-sp8, dp4-sp4, "),
        ("dp2-sp4", 256, "(nearest of 45): dp4-sp16-tp4, dp8-sp8-tp4, "),
        ("dp2-sp4", 7, "layouts for 7: sp7, dp7, tp7"),
    ],
)
def test_of_many_layouts_that_fit_the_nearest_are_proposed(layout, count, nearest):
    """Red when they come in the order of `factorisations`, or all of them."""
    with pytest.raises(LayoutError) as caught:
        parse_layout(layout).require_devices(count)
    assert nearest in str(caught.value)
    proposed = str(caught.value).rpartition(": ")[2].split(", ")
    assert len(proposed) <= MOST_PROPOSED
    for text in proposed:
        parse_layout(text).require_devices(count)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("tp8", ["tp8"]),
        ("dp2", ["dp2", "dp2 replicated"]),
        (
            "sp2",
            [
                *("sp2 ulysses", "sp2 ulysses replicated"),
                *("sp2 allgather", "sp2 allgather replicated"),
                *("sp2 ring", "sp2 ring replicated"),
            ],
        ),
    ],
)
def test_variants_are_the_choices_that_make_a_difference(layout, names):
    assert [variant.full_name for variant in variants(parse_layout(layout))] == names


def test_variants_of_some_choices():
    found = variants(Layout(sp=2), sequence_parallel=["ring"], weights=["replicated"])
    assert found == [Layout(sp=2, sequence_parallel="ring", weights="replicated")]


@pytest.mark.parametrize(
    ("layout", "num_heads", "padded"),
    [
        ("tp8", 12, 16),
        ("tp8", 40, 40),
        ("sp8", 12, 16),
        ("dp8", 12, 12),
        ("dp2-sp4", 12, 12),
        ("sp2-tp4", 40, 40),
        ("sp4-tp4", 40, 48),
        ("single", 12, 12),
    ],
)
def test_heads_are_padded_to_whole_heads_per_device(layout, num_heads, padded):
    assert parse_layout(layout).padded_heads(num_heads) == padded


def test_gathering_keys_or_passing_them_round_needs_no_heads_per_sp_shard():
    for way in ("allgather", "ring"):
        assert parse_layout("sp8", sequence_parallel=way).padded_heads(12) == 12
        assert parse_layout("sp2-tp8", sequence_parallel=way).padded_heads(12) == 16


@given(
    dp=st.integers(1, 8), sp=st.integers(1, 16), tp=st.integers(1, 16), num_heads=st.integers(1, 64)
)
def test_padding_is_the_least_that_divides(dp, sp, tp, num_heads):
    padded = Layout(dp=dp, sp=sp, tp=tp).padded_heads(num_heads)
    assert padded % (sp * tp) == 0
    assert num_heads <= padded < num_heads + sp * tp


@pytest.mark.parametrize(
    ("num_devices", "num_heads", "batch", "expected"),
    [
        (1, 40, 2, "single"),
        (2, 40, 2, "dp2"),
        (8, 40, 2, "dp2-sp4"),
        (8, 40, 1, "sp8"),
        (8, 12, 2, "dp2-sp4"),
        (8, 12, 1, "sp4-tp2"),
        (16, 40, 2, "dp2-sp8"),
        (16, 12, 2, "dp2-sp4-tp2"),
        (3, 40, 2, "tp3"),
    ],
)
def test_default_layouts(num_devices, num_heads, batch, expected):
    assert str(default_layout(num_devices, num_heads, batch=batch)) == expected


@given(num_devices=st.integers(1, 256), num_heads=st.integers(1, 64), batch=st.sampled_from([1, 2]))
def test_the_default_layout_always_fits(num_devices, num_heads, batch):
    layout = default_layout(num_devices, num_heads, batch=batch)
    layout.require_devices(num_devices)
    assert math.gcd(layout.sp, num_heads) == layout.sp
    assert batch % layout.dp == 0
