"""Slices as real processes that take jobs from a real Temporal, and what may happen to them."""

import asyncio
import json

import pytest
from temporalio.client import WorkflowExecutionStatus

from server.engine.failure import Failure
from server.files.job_files import JobFiles
from server.fleet.showing import Shown
from tests.server.fleet.stand_in import eventually, make_order, stand_in
from tests.server.pictures import picture
from tests.server.running import PATIENCE_SECONDS
from wan_tpu.media import Media, digest_of
from wan_tpu.storage.bucket import open_bucket

HEARTBEAT_SECONDS = 4.0
"""Of jobs whose slice is lost: long enough for a machine with other work."""


def run(fleet, what):
    """The result of a coroutine function of a stand-in for the API."""

    async def with_api():
        async with stand_in(fleet.url) as api, asyncio.timeout(PATIENCE_SECONDS):
            return await what(api)

    return asyncio.run(with_api())


def ends(notes):
    """The last note, as (state, starts that count, code)."""
    return notes[-1].state, notes[-1].attempts, notes[-1].code


def test_a_job_is_made_and_its_files_lie_in_the_bucket(fleet):
    fleet.slice("a")
    order = make_order()
    notes = run(fleet, lambda api: api.finish(order))
    assert [(note.state, note.slice) for note in notes] == [
        ("in_progress", "a"), ("completed", None),
    ]  # fmt: skip
    metadata = notes[-1].metadata
    assert metadata["start"] == 1
    assert metadata["seconds"].keys() == {"denoise", "decode"}
    assert "request" not in metadata
    folder = fleet.bucket / "videos" / order.id / "1"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes == {
        "video.mp4": metadata["files"]["video"]["bytes"],
        "thumbnail.webp": metadata["files"]["thumbnail"]["bytes"],
        "spritesheet.jpg": metadata["files"]["spritesheet"]["bytes"],
    }
    assert not list((fleet.slices["a"].data_dir / "scratch").iterdir())


def test_pictures_come_from_the_bucket(fleet):
    fleet.slice("a")
    data = picture()
    digest = digest_of(data)
    order = make_order()
    order.request["image"] = digest

    async def work(api):
        await JobFiles(open_bucket(str(fleet.bucket))).put_uploads(
            [order.id], Media({digest: data})
        )
        return await api.finish(order)

    assert ends(run(fleet, work)) == ("completed", 1, None)
    got = json.loads((fleet.marks / "media-0.json").read_text())
    assert got["digests"] == [digest]

    lost = make_order()
    lost.request["image"] = digest
    assert ends(run(fleet, lambda api: api.finish(lost))) == ("failed", 1, Failure.UPLOAD_LOST)


def test_progress_is_seen_and_a_running_job_is_cancelled(fleet):
    fleet.slice("a")

    async def work(api):
        order = make_order("slow", steps=1000)
        waiting = make_order()
        handle, other = await api.start(order), await api.start(waiting)
        await other.cancel()
        assert await other.result() == "failed"

        progress = await eventually_progress(handle)
        assert progress["stage"] == "denoise"
        assert progress.keys() == {"stage", "done", "total", "seconds"}
        assert progress["total"] == 1000
        await handle.cancel()
        await handle.result()
        return api.notes_of(order), api.notes_of(waiting)

    running, waiting = run(fleet, work)
    assert ends(running) == ends(waiting) == ("failed", 0, Failure.CANCELLED)
    assert [note.state for note in waiting] == ["failed"]
    assert "is killed" not in fleet.slices["a"].log()


async def eventually_progress(handle):
    """What the slice has said of a job in its heartbeats."""
    while True:
        pending = (await handle.describe()).raw_description.pending_activities
        for activity in pending:
            for payload in activity.heartbeat_details.payloads:
                return json.loads(payload.data)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("prompt", "code", "words"),
    [
        ("boom", Failure.ENGINE_ERROR, "the engine failed with RuntimeError"),
        ("oom", Failure.OUT_OF_MEMORY, "the accelerator ran out of memory"),
        ("nan", Failure.BAD_NUMBERS, "the latents of step 2"),
        ("full", Failure.DISK_FULL, "the server's disk is full"),
    ],
)
def test_what_the_engine_says_is_the_jobs_failure(fleet, prompt, code, words):
    fleet.slice("a")
    notes = run(fleet, lambda api: api.finish(make_order(prompt)))
    assert ends(notes) == ("failed", 1, code)
    assert words in notes[-1].message


def test_a_job_that_takes_too_long_is_stopped(fleet):
    fleet.slice("a")
    order = make_order("slow", steps=1000, job_seconds=0.5)
    assert ends(run(fleet, lambda api: api.finish(order))) == ("failed", 1, Failure.TIMEOUT)


def test_keys_alternate(fleet):
    """One has queued many jobs before the other comes with two: it does not wait for them."""
    fleet.slice("a")

    async def work(api):
        first = make_order("slow", steps=10)
        handles = [await api.start(first)]
        await api.wait_note(first, "in_progress")
        for owner in ["ann"] * 6 + ["bob"] * 2:
            handles.append(await api.start(make_order(owner=owner)))
        owners = {handle.id: "ann" for handle in handles[:7]}
        await asyncio.gather(*(handle.result() for handle in handles))
        started = [note.id for note in api.notes if note.state == "in_progress"]
        return [owners.get(job_id, "bob") for job_id in started]

    started = run(fleet, work)
    assert len(started) == 9
    assert started[5:].count("ann") >= 3, started  # what is left at the end is the longer line


def test_an_engine_that_crashes_ends_its_job_the_second_time(fleet):
    slice_ = fleet.slice("a")

    async def work(api):
        once, always, neighbour = make_order("crashonce"), make_order("crash"), make_order()
        return await asyncio.gather(*(api.finish(each) for each in (once, always, neighbour)))

    once, always, neighbour = run(fleet, work)
    assert ends(once) == ("completed", 2, None)
    assert ends(always) == ("failed", 2, Failure.ENGINE_CRASHED)
    assert ends(neighbour) == ("completed", 1, None)
    assert slice_.process.poll() is None


def test_a_broken_engine_takes_no_jobs_until_it_has_proved_itself(fleet):
    fleet.slice("a")
    (fleet.marks / "broken-probe").touch()

    async def work(api):
        await api.finish(make_order())  # what failed before it does not count
        for _ in range(3):
            await api.finish(make_order("boom"))
        order = make_order()
        handle = await api.start(order)
        await eventually(lambda: shown(fleet, "a").state == "broken")
        assert "jobs wait until a small one" in shown(fleet, "a").words
        assert api.notes_of(order) == []
        (fleet.marks / "broken-probe").unlink()
        await handle.result()
        return api.notes_of(order)

    assert ends(run(fleet, work)) == ("completed", 1, None)


def shown(fleet, name):
    return Shown.from_json((fleet.bucket / "slices" / f"{name}.json").read_bytes())


def test_a_slice_shows_itself_as_long_as_it_is_there(fleet):
    fleet.slice("a")

    async def work(api):
        order = make_order("slow a secret", steps=1000, owner="zebedee")
        handle = await api.start(order)
        await eventually(lambda: shown(fleet, "a").state == "busy")
        text = (fleet.bucket / "slices" / "a.json").read_text()
        await handle.cancel()
        await handle.result()
        await eventually(lambda: shown(fleet, "a").state == "ready")
        return text, order

    text, order = run(fleet, work)
    assert all(word not in text for word in ("secret", order.id, order.owner))
    found = shown(fleet, "a")
    assert (found.model, found.processes, found.warm_sizes) == ("wan-tiny", 1, ("64x64",))
    assert found.engine["layout"] == "single"
    assert found.description.defaults.num_frames == 17


def test_a_slice_that_is_told_to_end_gives_its_job_back_at_once(fleet):
    first = fleet.slice("a")

    async def work(api):
        order = make_order("slow", steps=1000)
        handle = await api.start(order)
        await api.wait_note(order, "in_progress")
        await asyncio.to_thread(fleet.slice, "b")
        first.terminate()
        await eventually(lambda: "b" in [note.slice for note in api.notes_of(order)])
        await handle.cancel()
        await handle.result()
        return api.notes_of(order)

    notes = run(fleet, work)
    assert [(note.state, note.attempts, note.slice) for note in notes] == [
        ("in_progress", 1, "a"), ("queued", 0, None), ("in_progress", 1, "b"), ("failed", 0, None),
    ]  # fmt: skip
    assert first.process.wait() == 0
    assert not (fleet.bucket / "slices" / "a.json").exists()


def test_a_slice_that_is_killed_has_had_its_turn(fleet):
    fleet.slice("b")

    async def work(api):
        order = make_order("slow", steps=5, heartbeat_seconds=HEARTBEAT_SECONDS)
        handle = await api.start(order)
        await api.wait_note(order, "in_progress")
        fleet.slices["b"].kill()
        await asyncio.to_thread(fleet.slice, "a")
        await handle.result()
        return api.notes_of(order)

    notes = run(fleet, work)
    assert [(note.state, note.attempts, note.slice) for note in notes] == [
        ("in_progress", 1, "b"), ("queued", 1, None), ("in_progress", 2, "a"),
        ("completed", 2, None),
    ]  # fmt: skip
    assert notes[-1].metadata["start"] == 2


def test_a_job_that_kills_its_slice_each_time_ends_and_harms_no_other(fleet):
    fleet.slice("a")
    fleet.slice("b")

    async def work(api):
        poison = make_order(
            "murder", max_attempts=2, heartbeat_seconds=HEARTBEAT_SECONDS, owner="bob"
        )
        handle = await api.start(poison)
        await api.wait_note(poison, "in_progress", attempts=2)
        neighbour = await api.start(make_order())
        await eventually(lambda: all(s.process.poll() for s in two))
        await asyncio.to_thread(fleet.slice, "a")
        await neighbour.result()
        await handle.result()
        return api.notes_of(poison), await neighbour.describe()

    two = [fleet.slices[name] for name in "ab"]
    notes, neighbour = run(fleet, work)
    assert ends(notes) == ("failed", 2, Failure.INTERRUPTED)
    assert neighbour.status == WorkflowExecutionStatus.COMPLETED


def test_a_slice_that_was_away_past_its_lease_spoils_nothing(fleet):
    frozen = fleet.slice("a")

    async def work(api):
        order = make_order("slow", steps=10, heartbeat_seconds=HEARTBEAT_SECONDS)
        handle = await api.start(order)
        await api.wait_note(order, "in_progress")
        frozen.freeze()
        await asyncio.to_thread(fleet.slice, "b")
        await handle.result()
        frozen.thaw()
        fleet.slices["b"].terminate()
        assert ends(await api.finish(make_order())) == ("completed", 1, None)
        return order, api.notes_of(order)

    order, notes = run(fleet, work)
    assert [(note.state, note.slice) for note in notes if note.slice] == [
        ("in_progress", "a"), ("in_progress", "b"),
    ]  # fmt: skip
    assert ends(notes) == ("completed", 2, None)
    starts = {key.split("/")[2] for key in fleet.files() if order.id in key}
    assert starts == {"2"}
    assert fleet.slices["b"].process.wait() == 0


def test_a_bucket_that_is_away_is_waited_for(fleet):
    slice_ = fleet.slice("a")
    aside = fleet.bucket.with_name("aside")

    async def work(api):
        order = make_order("slow", steps=5, heartbeat_seconds=HEARTBEAT_SECONDS)
        handle = await api.start(order)
        await api.wait_note(order, "in_progress")
        fleet.bucket.rename(aside)
        fleet.bucket.touch()
        seen = len(slice_.log())
        await eventually(lambda: slice_.log()[seen:].count("trying again") >= 2)
        fleet.bucket.unlink()
        aside.rename(fleet.bucket)
        await handle.result()
        return api.notes_of(order)

    assert ends(run(fleet, work)) == ("completed", 1, None)


def test_a_job_outlives_temporal(fleet, temporal):
    fleet.slice("a")

    async def work(api):
        order = make_order("slow", steps=15)
        handle = await api.start(order)
        await api.wait_note(order, "in_progress")
        await asyncio.to_thread(temporal.restart)
        await handle.result()
        return api.notes_of(order)

    assert ends(run(fleet, work)) == ("completed", 1, None)
