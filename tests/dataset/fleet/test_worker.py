"""A worker's activities: what is given back, what is tried again, when a worker leaves."""

import asyncio
import contextlib
import dataclasses
import threading
import time

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.dataset.fleet import worker
from wan_tpu.dataset.fleet.command import make_plan
from wan_tpu.dataset.fleet.order import cut
from wan_tpu.dataset.fleet.result import plan_key, shard_key
from wan_tpu.dataset.fleet.worker import Preparing, WorkerFailed
from wan_tpu.dataset.fleet.workflow import Outcome, Prepare, ShardOrder
from wan_tpu.dataset.jobs import PrepareOptions
from wan_tpu.errors import InputError, OutputError
from wan_tpu.storage.bucket import BucketError, open_bucket

OPTIONS = PrepareOptions(sizes=((48, 32),), lengths=(5,), fps=16.0, dtype="float32")


class Maker:
    """Makes an archive of some bytes, or what a test wants instead."""

    description = describe_model("wan-tiny")

    def __init__(self, folder):
        self.archive = folder / "shard.tar"
        self.archive.write_bytes(b"archive")
        self.keys = ["a" * 40]
        self.makes = []
        self.instead = lambda watch: None

    def key(self, entries, options):
        return self.keys.pop(0) if len(self.keys) > 1 else self.keys[0]

    def make(self, entries, options, watch):
        self.makes.append([entry.name for entry in entries])
        self.instead(watch)
        return self.archive


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path)


@pytest.fixture
def bucket(tmp_path):
    return tmp_path / "bucket"


def do(clips, bucket, maker, tmp_path, meanwhile=None, *, source=None, number=0):
    """What shard 0 of the clips comes to, and the worker it was given to."""

    async def work():
        opened = open_bucket(str(bucket))
        plan = await make_plan(str(clips), str(bucket), maker.description, OPTIONS)
        plan = dataclasses.replace(plan, bucket=source)
        if source is not None:
            plan = dataclasses.replace(plan, clips=tuple(map(relative, plan.clips)))
        plan = cut(plan, 2, None)
        await opened.put(plan_key("plan"), plan.to_bytes())
        preparing = Preparing(maker, tmp_path)
        order = ShardOrder(plan="plan", output=str(bucket), number=number)
        doing = asyncio.create_task(
            ActivityEnvironment().run(preparing.prepare_shard, order)  # pyright: ignore
        )
        if meanwhile is not None:
            await asyncio.to_thread(meanwhile, preparing, asyncio.get_running_loop(), doing)
        with contextlib.suppress(ApplicationError, asyncio.CancelledError):
            await doing
        return preparing, doing

    return asyncio.run(work())


def relative(clip):
    return dataclasses.replace(
        clip, entry=dataclasses.replace(clip.entry, path=clip.entry.path.relative_to("/"))
    )


def error_of(task):
    error = task.exception()
    return error.type, error.message


def test_a_shard_is_made_once(clips, bucket, maker, tmp_path):
    _, done = do(clips, bucket, maker, tmp_path)
    assert done.result() == "a" * 40
    assert (bucket / shard_key("a" * 40)).read_bytes() == b"archive"
    _, done = do(clips, bucket, maker, tmp_path)
    assert done.result() == "a" * 40
    assert maker.makes == [["0.mp4", "1.mp4"]]


def test_clips_of_a_bucket_are_brought_and_removed(clips, bucket, maker, tmp_path):
    seen = []

    def key(entries, options):
        seen.extend((entry.path, entry.path.read_bytes()) for entry in entries)
        return "a" * 40

    maker.key = key
    _, done = do(clips, bucket, maker, tmp_path, source="/")
    assert done.result() == "a" * 40
    assert [data for _, data in seen[:2]] == [
        (clips / name).read_bytes() for name in ("0.mp4", "1.mp4")
    ]
    assert all(path.is_relative_to(tmp_path) and not path.exists() for path, _ in seen)


def test_a_clip_that_changes_meanwhile_has_the_shard_made_anew(clips, bucket, maker, tmp_path):
    """Red when what was made of the new content gets the name of the old."""
    maker.keys = ["a" * 40, "b" * 40]
    _, done = do(clips, bucket, maker, tmp_path)
    assert done.result() == "b" * 40
    assert len(maker.makes) == 2
    assert [path.stem for path in (bucket / "shards").iterdir()] == ["b" * 40]


def test_told_to_leave_it_gives_the_shard_back_at_once(clips, bucket, maker, tmp_path):
    """Also in the middle of what cannot be interrupted: a program that compiles."""
    begun, ended = threading.Event(), threading.Event()

    def compile_long(watch):
        begun.set()
        ended.wait()

    def leave(preparing, loop, doing):
        begun.wait()
        loop.call_soon_threadsafe(preparing.leaving.set)
        while not doing.done():
            time.sleep(0.005)
        ended.set()

    maker.instead = compile_long
    preparing, doing = do(clips, bucket, maker, tmp_path, leave)
    assert error_of(doing)[0] == Outcome.GIVEN_BACK
    assert preparing.failure is None
    assert not (bucket / "shards").exists()


def test_cancelled_it_stops_between_two_clips(clips, bucket, maker, tmp_path):
    begun = threading.Event()

    def encode(watch):
        begun.set()
        while True:
            watch.check()
            time.sleep(0.005)

    def cancel(preparing, loop, doing):
        begun.wait()
        loop.call_soon_threadsafe(doing.cancel)

    maker.instead = encode
    preparing, doing = do(clips, bucket, maker, tmp_path, cancel)
    assert doing.cancelled()
    assert not preparing.leaving.is_set()


def failing(error):
    def fail(watch):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "kind", "leaves"),
    [
        (InputError("not these"), Outcome.REFUSED, False),
        (BucketError("away"), Outcome.AWAY, False),
        (OutputError("disk full"), "OutputError", True),
    ],
)
def test_what_an_error_means(clips, bucket, maker, tmp_path, error, kind, leaves):
    """A worker that can make nothing leaves, before it has spoilt every shard."""
    maker.instead = failing(error)
    preparing, doing = do(clips, bucket, maker, tmp_path)
    assert error_of(doing) == (kind, str(error))
    assert preparing.leaving.is_set() == leaves
    assert (preparing.failure is not None) == leaves


def test_a_worker_on_which_nothing_moves_leaves(clips, bucket, maker, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(worker, "STALL_SECONDS", 0.02)
    ended = threading.Event()
    maker.instead = lambda watch: ended.wait()

    def wait(preparing, loop, doing):
        while not doing.done():
            time.sleep(0.005)
        ended.set()

    preparing, doing = do(clips, bucket, maker, tmp_path, wait)
    assert error_of(doing)[0] == "WorkerFailed"
    assert isinstance(preparing.failure, WorkerFailed)
    assert "nothing moved" in str(preparing.failure)


def test_a_plan_that_is_gone_is_refused(bucket, maker, tmp_path):
    async def work():
        preparing = Preparing(maker, tmp_path)
        order = Prepare(plan="gone", output=str(bucket), num_shards=1, shards=["a" * 40])
        await ActivityEnvironment().run(preparing.finish_dataset, order)

    with pytest.raises(ApplicationError, match=r"has no plans/gone\.json any more") as caught:
        asyncio.run(work())
    assert caught.value.type == Outcome.REFUSED
