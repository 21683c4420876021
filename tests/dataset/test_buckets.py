"""Buckets: nothing made larger, the nearest ratio, the longest length, and nothing lost."""

import math
import pathlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_tpu.dataset.buckets import Buckets, describe, place
from wan_tpu.dataset.decode import Measured
from wan_tpu.dataset.entry import Entry, Kind
from wan_tpu.dataset.sampling import Sampling
from wan_tpu.errors import GeometryError, InputError
from wan_tpu.geometry import Compression

SIZES = ((832, 480), (480, 832), (624, 624), (416, 240))
BUCKETS = Buckets(sizes=SIZES, lengths=(81, 17, 49), fps=16)


def file(name, width, height, seconds):
    kind = Kind.PICTURE if seconds is None else Kind.CLIP
    entry = Entry(path=pathlib.Path(name), name=name, caption="x", kind=kind)
    duration = None if seconds is None else Fraction(seconds)
    return Measured(entry=entry, width=width, height=height, duration=duration)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((832, 480), (832, 480)),
        ((1920, 1080), (832, 480)),
        ((1080, 1920), (480, 832)),
        ((1000, 1000), (624, 624)),
        ((1000, 620), (832, 480)),  # the square would fit, but for four rows
        ((831, 480), (416, 240)),
        ((640, 640), (624, 624)),
        ((600, 600), (416, 240)),  # the only one that it covers
        ((8000, 5000), (832, 480)),
        ((416, 239), None),
        ((479, 2000), (416, 240)),
    ],
)
def test_the_nearest_ratio_that_is_covered(given, size):
    assert BUCKETS.size_for(*given) == size


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_nothing_is_made_larger_and_nothing_nearer_is_passed_over(width, height):
    size = BUCKETS.size_for(width, height)
    covered = [s for s in SIZES if s[0] <= width and s[1] <= height]
    if size is None:
        assert not covered
        return
    assert size in covered

    def distance(size):
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert distance(size) <= min(map(distance, covered)) + 1e-12


def test_of_two_of_a_ratio_the_larger_one():
    buckets = Buckets(sizes=((416, 240), (832, 480)), lengths=(17,), fps=16)
    assert buckets.size_for(1664, 960) == (832, 480)


@pytest.mark.parametrize(
    ("num_frames", "length"),
    [(16, None), (17, 17), (48, 17), (49, 49), (80, 49), (81, 81), (999, 81)],
)
def test_the_longest_length_that_is_filled(num_frames, length):
    assert BUCKETS.length_for(num_frames) == length


def test_everything_is_placed_or_named():
    files = [
        file("long.mp4", 1920, 1080, "6"),
        file("upright.mp4", 720, 1280, "3.1"),
        file("short.mp4", 1920, 1080, "0.9"),
        file("small.mp4", 320, 180, "6"),
        file("picture.png", 700, 700, None),
    ]
    placement = place(files, BUCKETS, Sampling(method="chunks"))
    assert [
        (p.entry.name, float(p.window.start), describe(p.geometry)) for p in placement.placed
    ] == [
        ("long.mp4", 0.0, "832x480, 81 frames"),
        ("upright.mp4", 0.0, "480x832, 49 frames"),
        ("picture.png", 0.0, "624x624, 1 frame"),
    ]
    assert [(f.name, f.kind, f.words) for f in placement.left] == [
        (
            "short.mp4",
            "too-short",
            "it has 15 frames at 16 frames per second (0.90 s) and 17 are wanted; 13 would fit",
        ),
        (
            "small.mp4",
            "too-small",
            "its 320x180 pixels do not cover 832x480 or 480x832 or 624x624 or 416x240, and nothing "
            "is made larger; 304x176 would fit",
        ),
    ]
    assert placement.table().splitlines() == [
        "bucket                   windows   files",
        "480x832, 49 frames             1       1",
        "624x624, 1 frame               1       1",
        "832x480, 81 frames             1       1",
        "left out                               2",
        f"  short.mp4: {placement.left[0].words}",
        f"  small.mp4: {placement.left[1].words}",
    ]


@given(
    st.lists(
        st.tuples(st.integers(100, 2000), st.integers(100, 2000), st.none() | st.integers(1, 90)),
        max_size=8,
    ),
    st.sampled_from(["head", "uniform", "chunks"]),
)
def test_no_file_is_lost(sizes, method):
    files = [
        file(f"{n}", w, h, None if tenths is None else Fraction(tenths, 10))
        for n, (w, h, tenths) in enumerate(sizes)
    ]
    placement = place(files, BUCKETS, Sampling(method=method))
    names = {p.entry.name for p in placement.placed}
    left = {f.name for f in placement.left}
    assert names | left == {each.entry.name for each in files}
    assert not names & left
    assert sum(windows for _, windows, _ in placement.counts()) == len(placement.placed)
    for each in placement.placed:
        assert each.window.num_frames == each.geometry.num_frames


def test_a_size_that_the_model_cannot_make_is_refused():
    with pytest.raises(GeometryError, match="multiple of 16, got 850; nearest: 848 or 864"):
        Buckets(sizes=((850, 480),), lengths=(81,), fps=16)
    with pytest.raises(GeometryError, match="must be 4n \\+ 1, got 80; nearest: 77 or 81"):
        Buckets(sizes=((832, 480),), lengths=(80,), fps=16)
    with pytest.raises(GeometryError, match="multiple of 32, got 720"):
        Buckets(sizes=((1280, 720),), lengths=(81,), fps=24, compression=Compression(spatial=16))
    with pytest.raises(InputError, match="at least one size"):
        Buckets(sizes=(), lengths=(81,), fps=16)
    with pytest.raises(InputError, match="above 0, got nan"):
        Buckets(sizes=((832, 480),), lengths=(81,), fps=math.nan)
