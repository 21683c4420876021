"""Which steps are computed: the published plans, what text and files say, and what is refused."""

import dataclasses
import json
from typing import Any

import pytest

from wan_tpu.errors import InputError
from wan_tpu.request import VideoRequest
from wan_tpu.step_cache import (
    Curve,
    StepCache,
    easycache_plan,
    known_curves,
    magcache_plan,
    read_curve,
    split_file,
)

CURVE = Curve(
    name="a model",
    flow_shift=5.0,
    threshold=0.1,
    most_in_a_row=3,
    retention=0.25,
    conditional=(1.0, 0.99, 0.98, 0.97),
    unconditional=(1.0, 0.98, 0.97, 0.96),
    source="a test",
    transformer={"layers": 2},
)


def letters(plan):
    return "".join("X" if computed else "." for computed in plan)


def plan_of(name, text, *turns):
    curve = known_curves()[name]
    cache = StepCache.parse(text).resolved(curve)
    names = ("threshold", "most_in_a_row", "retention")
    how: dict[str, Any] = {name: getattr(cache, name) for name in names}
    return letters(magcache_plan(curve.ratios(sum(turns), 2), turns, **how))


PUBLISHED = [
    ("wan2.1-t2v-14b", "magcache", (50,), "XXXXXXXXXX..X..X..X..X..X..X..X..X..X..X..X.X.X.XX"),
    ("wan2.1-t2v-1.3b", "magcache", (50,), "XXXXXXXXXX..X..X..X..X..X..X..X..X..X..X..X.X.X.XX"),
    ("wan2.1-t2v-14b", "magcache:0.12:4", (50,),
     "XXXXXXXXXX....X....X....X....X....X...X..X..X.X.XX"),
    ("wan2.1-t2v-1.3b", "magcache:0.12:4", (50,),
     "XXXXXXXXXX....X....X....X....X....X...X..X..X.X.XX"),
    ("wan2.1-t2v-14b", "magcache:.24:6:.2", (50,),
     "XXXXXXXXXX......X......X......X.....X....X..X..X.X"),
    ("wan2.1-i2v-14b-720p", "magcache", (40,), "XXXXXXXX..X..X..X..X..X..X..X..X..X.X.XX"),
    ("wan2.2-ti2v-5b", "magcache", (50,), "XXXXXXXXXX..X..X..X..X..X..X..X..X..X.X.X.X.X.X.X."),
    ("wan2.2-ti2v-5b-image", "magcache", (50,),
     "XXXXXXXXXX..X..X..X..X..X..X..X..X..X.X.X.X.X.XXX."),
    ("wan2.2-t2v-a14b", "magcache", (26, 14), "XXXXX..X..X..X..X..X..X..XXXX.X.X.XXXXXX"),
    ("wan2.2-i2v-a14b", "magcache", (15, 25), "XXX..X..X..X..XXXXXXX..X..X.X.X.X.XXXXXX"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "turns", "expected"), PUBLISHED)
def test_published_curves_give_their_plans(name, text, turns, expected):
    """Red when the ratios are off by one, an error is added before the change, or of two
    transformers the retained steps are counted over the run."""
    assert plan_of(name, text, *turns) == expected


def test_the_published_curves_are_all_there_as_they_were_measured():
    curves = known_curves()
    lengths = {name: len(curve.conditional) for name, curve in curves.items()}
    assert lengths == {
        "wan2.1-t2v-14b": 50, "wan2.1-t2v-1.3b": 50, "wan2.1-i2v-14b-480p": 40,
        "wan2.1-i2v-14b-720p": 40, "wan2.1-vace-1.3b": 50, "wan2.2-t2v-a14b": 40,
        "wan2.2-ti2v-5b": 50, "wan2.2-ti2v-5b-image": 50, "wan2.2-i2v-a14b": 40,
        "wan-tiny": 12, "wan-tiny-ti2v": 12, "wan-tiny-ti2v-image": 12,
    }  # fmt: skip
    for curve in curves.values():
        assert curve.conditional[0] == curve.unconditional[0] == 1
        assert len(curve.conditional) == len(curve.unconditional)
        assert all(0.6 < ratio < 1.04 for ratio in (*curve.conditional, *curve.unconditional))
        assert curve.source
    assert curves["wan2.2-t2v-a14b"].conditional[26] == 0.65523, "the switch is at step 26"
    assert curves["wan2.1-t2v-14b"].unconditional[1] == 1.03017


def test_another_number_of_steps_takes_the_nearest_ratio():
    assert CURVE.ratios(4, 2) == [(1, 1), (0.99, 0.98), (0.98, 0.97), (0.97, 0.96)]
    assert [row[0] for row in CURVE.ratios(7, 1)] == [1, 1, 0.99, 0.98, 0.98, 0.98, 0.97]
    assert CURVE.ratios(2, 2) == [(1, 1), (0.97, 0.96)]
    assert CURVE.ratios(1, 1) == [(0.97,)]


def test_both_branches_decide():
    """The prompt's alone would reuse the second step, the negative one's alone the third."""
    ratios = [(1.0, 1.0), (1.0, 0.8), (1.0, 1.0), (0.8, 1.0), (1.0, 1.0)]
    how: dict[str, Any] = {"threshold": 0.1, "most_in_a_row": 2, "retention": 0.2}
    assert letters(magcache_plan(ratios, [5], **how)) == "XX.X."


def test_each_transformer_begins_anew():
    """The first step of each is computed, whatever is asked for, and what is borne starts at 0."""
    ratios = [(0.96,)] * 8
    how: dict[str, Any] = {"threshold": 0.2, "most_in_a_row": 9, "retention": 0.0}
    assert letters(magcache_plan(ratios, [8], **how)) == "X..X..X."
    assert letters(magcache_plan(ratios, [4, 4], **how)) == "X..XX..X"
    assert letters(magcache_plan(ratios, [4, 4], **{**how, "retention": 0.5})) == "XX..XXX."


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((50,), "XXXXXXXXXX.......................................X"),
        ((12,), "XX.........X"),
        ((20, 20), "XXXXXXXX............XX.................X"),
        ((1,), "X"),
        ((3, 1), "XX.X"),
    ],
)
def test_easycache_computes_the_first_steps_and_the_last(turns, expected):
    assert letters(easycache_plan(turns)) == expected


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("magcache", ("magcache", None, None, None)),
        ("magcache:0.12", ("magcache", 0.12, None, None)),
        ("magcache:.24:6:0.1", ("magcache", 0.24, 6, 0.1)),
        ("easycache:0.05", ("easycache", 0.05, None, None)),
    ],
)
def test_text_says_what_it_leaves_open(text, fields):
    cache = StepCache.parse(text)
    assert dataclasses.astuple(cache) == fields
    assert StepCache.parse(str(cache)) == cache
    assert VideoRequest(prompt="a fox", step_cache=text).step_cache == text


def test_what_is_open_is_the_curves():
    assert str(StepCache.parse("magcache:0.3").resolved(CURVE)) == "magcache:0.3:3:0.25"
    assert str(StepCache.parse("easycache").resolved(None)) == "easycache:0.05"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacache", "unknown step cache 'teacache'; known: magcache, easycache"),
        ("", "unknown step cache"),
        ("magcache:much", r"must be magcache\[:THRESHOLD"),
        ("magcache:0.1:2:0.2:1", r"must be magcache\[:THRESHOLD"),
        ("magcache:0.1:2.5", r"must be magcache\[:THRESHOLD"),
        ("easycache:0.1:2", r"must be magcache\[:THRESHOLD"),
        ("magcache:0", "must lie above 0 and be at most 1, got 0; its authors take 0.12"),
        ("easycache:nan", "must lie above 0 and be at most 1, got nan; its authors take 0.05"),
        ("magcache:0.1:0", "may reuse from 1 to 100 steps in a row, got 0"),
        ("magcache:0.1:2:1", "must lie from 0 to below 1, got 1"),
        ("magcache@/etc/passwd", "a request names no file; leave '@/etc/passwd' out"),
        (3, "step_cache must be text"),
    ],
)
def test_what_is_none_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        VideoRequest(prompt="a fox", step_cache=text)


def test_few_steps_leave_none_out():
    with pytest.raises(InputError, match="step_cache is magcache and sigmas names 2 noise levels"):
        VideoRequest(prompt="a fox", step_cache="magcache", sigmas=(1.0, 0.5))


def test_the_command_line_names_a_file():
    assert split_file("magcache:0.1") == ("magcache:0.1", None)
    cache, path = split_file("magcache:0.1@a/b@c.json")
    assert (cache, str(path)) == ("magcache:0.1", "a/b@c.json")
    for text in ("easycache@a.json", "magcache@"):
        with pytest.raises(InputError, match="a file of ratios is magcache's"):
            split_file(text)


def test_a_file_gives_the_curve_back(tmp_path):
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps(CURVE.to_json()))
    assert read_curve(path) == CURVE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (b"{", "it is not JSON"),
        (b"[]", "its format is not 'wan-tpu step cache ratios 1'"),
        ({"format": "other"}, "its format is not"),
        ({"conditional": []}, "must be of one length"),
        ({"conditional": [1, 1, 1, "a"]}, "must be positive numbers"),
        ({"conditional": [1, 1, 1, -1]}, "must be positive numbers"),
        ({"unconditional": [1]}, "must be of one length"),
        ({"threshold": 7}, "the threshold of magcache must lie above 0"),
        ({"transformer": None}, "does not say the transformer's sizes"),
        ({"surprise": 1}, "surprise"),
        (b" " * 2_000_000, "it has more than 1048576 bytes"),
    ],
)
def test_another_file_is_refused(tmp_path, changed, message):
    path = tmp_path / "ratios.json"
    data = changed if isinstance(changed, bytes) else json.dumps(CURVE.to_json() | changed).encode()
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_curve(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.json: No such file"):
        read_curve(tmp_path / "none.json")
