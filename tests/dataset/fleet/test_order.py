"""Plans: what makes them the same, how they are cut, and what of an earlier result stays."""

import dataclasses
import pathlib

import pytest

from wan_tpu.dataset.entry import Entry, Kind
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.fleet.order import Clip, Index, PreparePlan, Shard, cut
from wan_tpu.dataset.jobs import PrepareOptions
from wan_tpu.dataset.sampling import Sampling
from wan_tpu.errors import InputError

OPTIONS = PrepareOptions(
    sizes=((48, 32), (32, 48)), lengths=(5,), fps=16.0, sampling=Sampling(method="chunks"),
    inputs=("image",), dtype="float32",
)  # fmt: skip


def clip(name, caption="words", state=(3, "1")):
    entry = Entry(
        path=pathlib.Path("/clips") / name, name=name, caption=caption, kind=Kind.CLIP, fps=None
    )
    return Clip(entry=entry, state=state)


def plan_of(*clips, **fields):
    found = (Finding(name="x", kind="passed-over", words="no clip"),)
    plan = PreparePlan(
        model="wan-tiny", source="clips", bucket=None, output="s3://b/data", options=OPTIONS,
        findings=found, clips=clips,
    )  # fmt: skip
    return dataclasses.replace(plan, **fields)


SEVEN = tuple(clip(f"{number}.mp4") for number in range(7))


def groups(plan):
    return [shard.clips for shard in plan.shards]


def index_of(plan):
    """What is there once all shards are made."""
    clips = [tuple(plan.clips[place].digest for place in shard.clips) for shard in plan.shards]
    shards = tuple((f"key-{number}", each) for number, each in enumerate(clips))
    return Index(plan=plan.id, settings=plan.settings_digest, dataset="d", shards=shards)


def test_a_plan_is_read_as_it_was_written():
    plan = cut(plan_of(*SEVEN), 3, None)
    assert PreparePlan.from_bytes(plan.to_bytes()) == plan
    assert PreparePlan.from_bytes(plan.to_bytes()).id == plan.id
    with pytest.raises(InputError, match="another version"):
        PreparePlan.from_bytes(b'{"format": 0}')
    index = index_of(plan)
    assert Index.from_bytes(index.to_bytes()) == index
    for data in (b"[]", b"{}", b"\xff", b'{"format": 1, "shards": [1]}'):
        with pytest.raises(InputError, match=r"shards\.json"):
            Index.from_bytes(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"clips": SEVEN[:6]},
        {"clips": (*SEVEN[:6], clip("6.mp4", caption="other words"))},
        {"clips": (*SEVEN[:6], clip("6.mp4", state=(3, "2")))},
        {"output": "s3://b/other"},
        {"model": "wan2.1-t2v-14b"},
        {"options": dataclasses.replace(OPTIONS, dtype="bfloat16")},
        {"options": dataclasses.replace(OPTIONS, sampling=Sampling(method="random", seed=1))},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_another_plan_has_another_id(fields):
    plan = plan_of(*SEVEN)
    assert dataclasses.replace(plan, **fields).id != plan.id


def test_how_it_is_cut_is_no_part_of_the_id():
    plan = plan_of(*SEVEN)
    assert cut(plan, 2, None).id == cut(plan, 3, None).id == plan.id


def test_clips_go_in_order_and_a_file_is_in_one_shard():
    assert groups(cut(plan_of(*SEVEN), 3, None)) == [(0, 1, 2), (3, 4, 5), (6,)]
    twice = (SEVEN[0], SEVEN[1], clip("0.mp4", caption="other words"), SEVEN[2])
    assert groups(cut(plan_of(*twice), 2, None)) == [(0, 2), (1, 3)]
    assert groups(cut(plan_of(*twice), 1, None)) == [(0, 2), (1,), (3,)]


def test_of_an_earlier_result_the_shards_stay_whose_clips_all_do():
    """Red when a clip more, in front of all others, has everything made anew."""
    before = cut(plan_of(*SEVEN), 3, None)
    new = plan_of(clip("-1.mp4"), *SEVEN[:4], clip("4.mp4", caption="new"), *SEVEN[5:])
    found = cut(new, 3, index_of(before))
    assert found.shards == (
        Shard(clips=(1, 2, 3), made="key-0"),
        Shard(clips=(7,), made="key-2"),
        Shard(clips=(0, 4, 5)),
        Shard(clips=(6,)),
    )


def test_nothing_stays_of_other_settings_or_in_another_order():
    before = index_of(cut(plan_of(*SEVEN), 7, None))
    other = plan_of(*SEVEN, options=dataclasses.replace(OPTIONS, lengths=(9,)))
    assert [shard.made for shard in cut(other, 7, before).shards] == [None]
    # Of two equal files the first one is taken, and the shard has made that one alone.
    assert [shard.made for shard in cut(plan_of(*SEVEN[::-1]), 7, before).shards] == [None]
    moved = plan_of(*SEVEN, output="s3://b/other", source="elsewhere")
    assert [shard.made for shard in cut(moved, 7, before).shards] == ["key-0"]


def test_a_caption_more_for_a_file_is_another_shard():
    before = index_of(cut(plan_of(*SEVEN[:2]), 2, None))
    found = cut(plan_of(*SEVEN[:2], clip("0.mp4", caption="more")), 3, before)
    assert found.shards == (Shard(clips=(0, 1, 2)),)
