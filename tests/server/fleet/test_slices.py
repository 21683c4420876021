"""Which slices are there and which models they serve, by what lies in the bucket."""

import asyncio
import dataclasses

import pytest

from server.fleet.showing import Shown
from server.fleet.slices import Slices
from wan_tpu.checkpoints.models import KNOWN_MODELS, WAN_TINY, describe_model
from wan_tpu.storage.bucket import BucketError, open_bucket

SHOWN = Shown(
    name="slice-a",
    model="tiny",
    description=describe_model(WAN_TINY),
    warm_sizes=("64x48",),
    state="ready",
    words="",
    since=1.5,
    engine={"layout": "dp2-sp2", "attention": "splash"},
    processes=2,
)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def bucket(tmp_path):
    return open_bucket(str(tmp_path))


def read(bucket, slices, *shown):
    async def run():
        for each in shown:
            await bucket.put(each.key, each.to_json(), create=False)
        await slices.read()

    asyncio.run(run())


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_every_model_comes_through_the_bucket_as_it_is(name):
    description = describe_model(name)
    there = Shown.from_json(dataclasses.replace(SHOWN, description=description).to_json())
    assert there.description == dataclasses.replace(description, folder=None, files={})


def test_slices_and_models_are_as_they_say(bucket):
    slices = Slices(bucket, model_seconds=600)
    other = dataclasses.replace(SHOWN, name="b", state="busy")
    broken = dataclasses.replace(SHOWN, name="c", state="broken", words="the engine is broken")
    read(bucket, slices, SHOWN, other, broken)
    assert [(each.name, each.state) for each in slices.shown()] == [
        ("b", "busy"), ("c", "broken"), ("slice-a", "ready"),
    ]  # fmt: skip
    assert slices.shown()[2].layout == "dp2-sp2"
    assert slices.count("tiny") == 2
    before = slices.models()["tiny"]
    assert before.warm == ((64, 48, before.description.defaults.num_frames),)
    read(bucket, slices, dataclasses.replace(SHOWN, state="busy"))
    assert slices.models()["tiny"] is before
    changed = dataclasses.replace(SHOWN, warm_sizes=("32x32",))
    read(bucket, slices, changed)
    assert slices.models()["tiny"].warm[0][:2] == (32, 32)


def test_a_slice_that_is_silent_goes_and_its_model_later(bucket):
    """By the clock of this server, however wrong the bucket's is, once it was heard twice."""
    steady = Clock()
    slices = Slices(bucket, model_seconds=600, steady=steady)
    read(bucket, slices, SHOWN)
    for seconds, is_there, is_served in ((89, True, True), (2, False, True), (510, False, False)):
        steady.now += seconds
        read(bucket, slices)
        assert (bool(slices.shown()), bool(slices.models())) == (is_there, is_served)
    read(bucket, slices, dataclasses.replace(SHOWN, state="busy"))
    assert slices.shown()
    asyncio.run(bucket.delete(SHOWN.key))
    read(bucket, slices)
    assert (slices.shown(), list(slices.models())) == ([], ["tiny"])


def test_an_old_object_is_no_slice(bucket):
    wall = Clock()
    slices = Slices(bucket, model_seconds=600, wall=wall)

    async def run():
        await bucket.put(SHOWN.key, SHOWN.to_json())
        (stat,) = await bucket.list("slices/")
        wall.now = stat.modified + 91
        await slices.read()

    asyncio.run(run())
    assert (slices.shown(), slices.models()) == ([], {})


def test_an_object_that_cannot_be_read_is_left_out_and_read_once(bucket, caplog):
    slices = Slices(bucket, model_seconds=600)
    asyncio.run(bucket.put("slices/newer.json", b'{"shape": "round"}'))
    read(bucket, slices, SHOWN)
    read(bucket, slices)
    assert [each.name for each in slices.shown()] == ["slice-a"]
    assert caplog.text.count("newer.json") == 1


def test_a_bucket_that_is_away_changes_nothing(tmp_path):
    steady, folder = Clock(), tmp_path / "bucket"
    bucket = open_bucket(str(folder))
    slices = Slices(bucket, model_seconds=600, steady=steady)
    read(bucket, slices, SHOWN)
    folder.rename(tmp_path / "elsewhere")
    folder.write_bytes(b"no folder")
    steady.now += 10_000
    with pytest.raises(BucketError):
        read(bucket, slices)
    assert slices.shown()
    assert slices.models()


def test_a_server_that_starts_without_slices_knows_their_models(bucket):
    """Red when a fleet that has gone to nothing can only be woken by a hand."""
    wall = Clock()
    slices = Slices(bucket, model_seconds=600, wall=wall)
    shown = dataclasses.replace(SHOWN, model="Wan-AI/tiny")

    async def run(seconds):
        stat = await bucket.head(shown.model_key)
        wall.now = stat.modified + seconds
        await slices.read()

    asyncio.run(bucket.put(shown.model_key, shown.to_json()))
    asyncio.run(run(599))
    assert (slices.shown(), slices.count("Wan-AI/tiny")) == ([], 0)
    assert list(slices.models()) == ["Wan-AI/tiny"]
    slices = Slices(bucket, model_seconds=600, wall=wall)
    asyncio.run(run(601))
    assert not slices.models()
