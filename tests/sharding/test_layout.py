"""Layouts: their text form, which ones fit, and what an error proposes."""

import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_tpu.errors import InputError, LayoutError, UnknownNameError
from wan_tpu.sharding.layout import (
    MOST_PROPOSED,
    Layout,
    default_layout,
    default_weights,
    factorisations,
    parse_layout,
    variants,
    with_fitting_heads,
)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("single", Layout()),
        ("tp8", Layout(tp=8)),
        ("dp2-sp4", Layout(dp=2, sp=4)),
        ("dp2-sp2-tp2", Layout(dp=2, sp=2, tp=2)),
        ("sp64", Layout(sp=64)),
        ("dp2-sp8 allgather", Layout(dp=2, sp=8, sequence_parallel="allgather")),
        ("dp2 replicated", Layout(dp=2, weights="replicated")),
        ("sp4 ring replicated", Layout(sp=4, sequence_parallel="ring", weights="replicated")),
        ("dp2-sp16 ulysses8", Layout(dp=2, sp=16, head_ways=8)),
    ],
)
def test_text_form(text, layout):
    assert str(layout) == text
    assert parse_layout(text) == layout


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("SINGLE", "single"),
        ("TP8", "tp8"),
        ("sp4-dp2", "dp2-sp4"),
        ("dp1", "single"),
        ("dp2-sp4 ulysses sharded", "dp2-sp4"),
        ("SP4 Replicated RING", "sp4 ring replicated"),
        ("tp8 ring replicated", "tp8"),
        ("sp8 Ulysses8", "sp8"),
        ("sp8 ulysses1", "sp8 allgather"),
    ],
)
def test_other_spellings_are_read(text, same):
    assert str(parse_layout(text)) == same


def test_every_layout_round_trips():
    """Red when the text leaves out a choice that makes a difference: what is printed, kept in a
    video's metadata or given to another process would be another layout."""
    for num_devices in range(1, 257):
        for shape in factorisations(num_devices):
            for layout in variants(shape):
                assert parse_layout(str(layout)) == layout


def test_layouts_that_trade_among_a_part_round_trip():
    for sp in range(1, 65):
        for ways in (ways for ways in range(1, sp + 1) if sp % ways == 0):
            layout = Layout(dp=2, sp=sp, head_ways=ways)
            assert parse_layout(str(layout)) == layout
            assert layout.head_groups == ways


@pytest.mark.parametrize("text", ["sp8 ulysses3", "sp4 ulysses8", "dp2 ulysses2"])
def test_traders_that_do_not_divide_sp_are_refused(text):
    """Red when groups of unequal size come to the compiler."""
    with pytest.raises(LayoutError, match="ulysses4 fits sp8"):
        parse_layout(text)


def test_what_a_text_says_goes_before_what_it_is_given():
    found = parse_layout("sp4 allgather", sequence_parallel="ring", weights="replicated")
    assert found == Layout(sp=4, sequence_parallel="allgather", weights="replicated")


def test_layouts_of_one_program_are_equal():
    assert Layout(tp=8, sequence_parallel="ring", weights="replicated") == Layout(tp=8)
    assert Layout(dp=2, sequence_parallel="ring") == Layout(dp=2)
    assert Layout(dp=2, weights="replicated") != Layout(dp=2)


@given(st.text(alphabet="dpst-0123456789 ring", max_size=12))
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
        *(
            "ring",
            "sp4 rings",
            "sp4 ring ulysses",
            "sp4  ring",
            "sp4 ring ring",
            "ring sp4",
            "sp4-ring",
            "sp4 ulysses0",
            "sp4 ring2",
            "sp4 ulysses2 ring",
        ),
    ],
)
def test_what_is_not_a_layout_is_refused_with_the_form(text):
    with pytest.raises(LayoutError, match="write single, or dpN, spN and tpN joined by") as caught:
        parse_layout(text)
    assert repr(text) in str(caught.value)
    assert "for example dp2-sp4 or tp8; after it" in str(caught.value)
    assert "one of ulysses, allgather, ring and one of sharded, replicated" in str(caught.value)


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


def test_what_is_proposed_keeps_the_choices():
    with pytest.raises(
        LayoutError, match="layouts for 2: sp2 ring replicated, tp2, dp2 replicated"
    ):
        parse_layout("sp4 ring replicated").require_devices(2)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("tp8", ["tp8"]),
        ("dp2", ["dp2", "dp2 replicated"]),
        (
            "sp2",
            [
                *("sp2", "sp2 replicated"),
                *("sp2 allgather", "sp2 allgather replicated"),
                *("sp2 ring", "sp2 ring replicated"),
            ],
        ),
    ],
)
def test_variants_are_the_choices_that_make_a_difference(layout, names):
    assert [str(variant) for variant in variants(parse_layout(layout))] == names


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
        ("sp16 ulysses4", 12, 12),
        ("sp16 ulysses8", 12, 16),
        ("sp4-tp4 ulysses2", 40, 40),
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


HEADS = {"1.3B": 12, "5B": 24, "14B": 40}
EVERY_COUNT = range(1, 257)


@functools.cache
def every_layout(num_devices):
    return [v for layout in factorisations(num_devices) for v in variants(layout)]


@pytest.mark.parametrize("num_heads", [*HEADS.values(), 1, 7, 16])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_default_layout_pads_no_heads_that_another_does_not(num_heads, batch):
    """Red when sp alone is held against the heads, while padding goes by sp times tp: 1.3B on 16
    chips came to 16 heads for 12, 14B on 64 to 64 for 40."""
    for num_devices in EVERY_COUNT:
        layout = default_layout(num_devices, num_heads, batch=batch)
        layout.require_devices(num_devices)
        least = min(other.padded_heads(num_heads) for other in every_layout(num_devices))
        assert layout.padded_heads(num_heads) == least, f"{num_devices}: {layout}"


@given(num_devices=st.integers(1, 512), num_heads=st.integers(1, 128), batch=st.integers(1, 4))
def test_the_default_layout_computes_nothing_twice(num_devices, num_heads, batch):
    layout = default_layout(num_devices, num_heads, batch=batch)
    layout.require_devices(num_devices)
    assert batch % layout.dp == 0
    assert layout.padded_heads(num_heads) == num_heads
    assert parse_layout(str(layout)) == layout


@pytest.mark.parametrize("num_heads", HEADS.values())
def test_the_guidance_pair_is_on_dp_wherever_it_divides(num_heads):
    for num_devices in EVERY_COUNT:
        layout = default_layout(num_devices, num_heads)
        assert layout.dp == (2 if num_devices % 2 == 0 else 1), f"{num_devices}: {layout}"


@pytest.mark.parametrize("num_heads", [*HEADS.values(), 7])
@pytest.mark.parametrize("batch", [1, 2])
def test_heads_are_traded_among_as_many_as_divide_them(num_heads, batch):
    """Ulysses moves least; all keys come to the queries only where no heads can be traded."""
    for num_devices in EVERY_COUNT:
        layout = default_layout(num_devices, num_heads, batch=batch)
        ways = num_devices // layout.dp
        assert (layout.sequence_parallel == "ulysses") == (
            ways == 1 or math.gcd(num_heads, ways) > 1
        )
        if layout.sequence_parallel == "ulysses":
            assert layout.tp == 1, f"{num_devices}: {layout}"
            assert layout.head_groups == math.gcd(num_heads, ways)


@pytest.mark.parametrize(
    ("layout", "num_heads", "fitting"),
    [
        ("dp2-sp16", 40, "dp2-sp16 ulysses8"),
        ("sp8", 12, "sp8 ulysses4"),
        ("sp8", 40, "sp8"),
        ("sp3", 40, "sp3 allgather"),
        ("sp4-tp4", 40, "sp4-tp4 ulysses2"),
        ("sp16 ring", 40, "sp16 ring"),
        ("dp2 replicated", 12, "dp2 replicated"),
    ],
)
def test_heads_fit_without_padding(layout, num_heads, fitting):
    assert str(with_fitting_heads(parse_layout(layout), num_heads)) == fitting


@pytest.mark.parametrize(
    ("num_devices", "num_heads", "batch", "expected"),
    [
        (1, 40, 2, "single"),
        (2, 40, 2, "dp2"),
        (3, 40, 2, "sp3 allgather"),
        (6, 12, 2, "dp2-sp3"),
        (8, 40, 2, "dp2-sp4"),
        (8, 24, 2, "dp2-sp4"),
        (8, 12, 2, "dp2-sp4"),
        (8, 40, 1, "sp8"),
        (8, 12, 1, "sp8 ulysses4"),
        (12, 12, 2, "dp2-sp6"),
        (16, 40, 2, "dp2-sp8"),
        (16, 24, 2, "dp2-sp8"),
        (16, 12, 2, "dp2-sp8 ulysses4"),
        (16, 40, 1, "sp16 ulysses8"),
        (32, 40, 2, "dp2-sp16 ulysses8"),
        (64, 40, 2, "dp2-sp32 ulysses8"),
        (256, 40, 2, "dp2-sp128 ulysses8"),
        (16, 7, 2, "dp2-sp8 ring"),
    ],
)
def test_default_layouts(num_devices, num_heads, batch, expected):
    assert str(default_layout(num_devices, num_heads, batch=batch)) == expected


@pytest.mark.parametrize(
    ("num_devices", "tokens", "way"),
    [
        (16, 32_760, "ring"),
        (16, 75_600, "allgather"),  # 38 MB of results: they go to HBM and back every turn
        (32, 75_600, "ring"),
        (32, 32_760, "allgather"),  # attention to 2,048 keys is over before they are sent
    ],
)
def test_a_ring_is_the_default_where_no_heads_can_be_traded_and_it_hides(num_devices, tokens, way):
    """Eleven heads. Red when a ring is chosen by the heads alone. Figures in the results page of
    the rules."""
    layout = default_layout(num_devices, 11, tokens=tokens)
    assert (layout.sequence_parallel, layout.tp) == (way, 1)


@pytest.mark.parametrize(
    ("model_gib", "device_gib", "expected"),
    [
        (2.64, 31.25, "replicated"),  # 1.3B, v6e
        (2.64, 15.75, "sharded"),  # v5e
        (9.3, 31.25, "sharded"),  # 5B, v6e
        (26.6, 31.25, "sharded"),  # 14B
        (26.6, 94.75, "sharded"),  # v7x
        (0.01, None, "sharded"),  # a CPU does not say
    ],
)
def test_small_models_are_copied_where_memory_is_plenty(model_gib, device_gib, expected):
    device_bytes = None if device_gib is None else int(device_gib * 2**30)
    assert default_weights(int(model_gib * 2**30), device_bytes) == expected
