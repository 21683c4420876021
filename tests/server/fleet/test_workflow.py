"""What becomes of a job, by what its starts come to; Temporal's server is real, slices are not."""

import asyncio
import contextlib
import json
import pathlib
import sys
from datetime import timedelta

import pytest
from temporalio import activity
from temporalio.client import WorkflowHistory
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    RetryState,
    TimeoutError,
    TimeoutType,
)
from temporalio.worker import Replayer, Worker

from server.engine.failure import Failure
from server.fleet.messages import Note, Outcome, slice_queue
from server.fleet.workflow import Video
from tests.server.fleet.servers import TemporalServer
from tests.server.fleet.stand_in import eventually, make_order, stand_in

HISTORIES = pathlib.Path(__file__).parent / "histories"
"""What real runs left; `python -m tests.server.fleet.test_workflow DATE` adds those of today."""

KEPT = ("crashed once", "silent", "failed", "cancelled")
"""Of these scripts, which differ in what the workflow does."""

HEARTBEAT_SECONDS = 1.0

SCRIPTS = {
    "made": ["made"],
    "given back": ["back", "back", "back", "back", "made"],
    "lost twice": ["lost", "lost", "made"],
    "lost thrice": ["lost", "lost", "lost"],
    "silent": ["silent", "made"],
    "silent before it began": ["unseen", "unseen", "unseen", "made"],
    "crashed once": ["crashed", "back", "made"],
    "crashed twice": ["crashed", "crashed"],
    "crashed and lost": ["lost", "lost", "crashed"],
    "failed": ["out_of_memory"],
    "a fault of the slice": ["fault"],
    "unwanted": ["wait"],
    "cancelled": ["wait"],
    "cancelled though made": ["stubborn"],
    "cancelled in the queue": ["made"],
}

TIMES = "the server ended 3 times while it made this video"

ENDS = {
    "made": ("completed", 1, None, None),
    "given back": ("completed", 1, None, None),
    "lost twice": ("completed", 3, None, None),
    "lost thrice": ("failed", 3, Failure.INTERRUPTED, TIMES),
    "silent": ("completed", 2, None, None),
    "silent before it began": ("completed", 1, None, None),
    "crashed once": ("completed", 2, None, None),
    "crashed twice": ("failed", 2, Failure.ENGINE_CRASHED, "signal 9"),
    "crashed and lost": ("failed", 3, Failure.ENGINE_CRASHED, "signal 9"),
    "failed": ("failed", 1, Failure.OUT_OF_MEMORY, "no room"),
    "a fault of the slice": (
        "failed", 1, Failure.ENGINE_ERROR, "the slice failed with KeyError; its log says more",
    ),
    "unwanted": ("failed", 0, Failure.CANCELLED, "the job was cancelled"),
    "cancelled": ("failed", 0, Failure.CANCELLED, "the job was cancelled"),
    "cancelled though made": ("completed", 1, None, None),
    "cancelled in the queue": ("failed", 0, Failure.CANCELLED, "the job was cancelled"),
}  # fmt: skip
"""State, starts that count, code and message of the last note."""


class Slice:
    """A slice by a script: what each start of a job comes to."""

    def __init__(self, client):
        self.client = client
        self.starts: list[str] = []

    @activity.defn(name="generate")
    async def generate(self, order):
        step = order["request"]["prompt"].split(",")[order["start"] - 1]
        self.starts.append(order["id"])
        if step not in ("unseen", "mute"):
            job = self.client.get_workflow_handle(order["id"])
            await job.signal(Video.started, args=[order["start"], f"slice-{order['start']}"])
        match step:
            case "made":
                return {"start": order["start"]}
            case "back":
                raise ApplicationError("the slice ends", type=Outcome.GIVEN_BACK)
            case "lost":
                raise ApplicationError("a process was lost", type=Outcome.LOST)
            case "crashed":
                raise ApplicationError("signal 9", type=Outcome.CRASHED)
            case "mute":
                raise ApplicationError("no room", Failure.DISK_FULL, type=Outcome.FAILED)
            case "fault":
                raise KeyError("a secret of the inside")
            case "silent" | "unseen":
                await asyncio.Event().wait()
            case "stubborn" | "wait":
                return await self._wait(order, is_stubborn=step == "stubborn")
            case code:
                raise ApplicationError("no room", code, type=Outcome.FAILED)

    async def _wait(self, order, *, is_stubborn):
        try:
            while True:
                activity.heartbeat({"done": 1})
                await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            if is_stubborn:
                return {"start": order["start"]}
            raise


async def run_scripts(fleet_url):
    """Runs all scripts at once; returns notes and history by name."""
    names = {}
    async with stand_in(fleet_url) as api:
        slice_ = Slice(api.client)
        worker = Worker(
            api.client,
            task_queue=slice_queue("scripted"),
            activities=[slice_.generate],
            max_heartbeat_throttle_interval=timedelta(seconds=0.2),
        )
        async with worker:
            for name, steps in SCRIPTS.items():
                model = "nobody" if name == "cancelled in the queue" else "scripted"
                names[name] = order = make_order(
                    ",".join(steps), model=model, heartbeat_seconds=HEARTBEAT_SECONDS
                )
                if name == "unwanted":
                    api.unwanted.add(order.id)
            handles = {name: await api.start(order) for name, order in names.items()}
            for name in ("cancelled", "cancelled though made"):
                await api.wait_note(names[name], "in_progress")
                await handles[name].cancel()
            await handles["cancelled in the queue"].cancel()
            await asyncio.gather(*(handle.result() for handle in handles.values()))
        histories = {name: await handle.fetch_history() for name, handle in handles.items()}
        return {name: api.notes_of(order) for name, order in names.items()}, histories


@pytest.fixture(scope="module")
def ran(temporal):
    return asyncio.run(run_scripts(temporal.new_fleet()))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_job_ends_by_what_its_starts_came_to(ran, name):
    last = ran[0][name][-1]
    assert (last.state, last.attempts, last.code, last.message) == ENDS[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_is_decided_again_from_the_history(ran, name):
    replay(ran[1][name])


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
def test_jobs_of_earlier_releases_go_on(path):
    replay(WorkflowHistory.from_json(path.stem, path.read_text()))


def replay(history):
    """Raises if the workflow would do anything else now."""
    asyncio.run(Replayer(workflows=[Video]).replay_workflow(history))


def test_who_makes_it_is_written_down_at_every_start(ran):
    notes = [note for note in ran[0]["crashed once"] if note.state == "in_progress"]
    assert [(note.attempts, note.slice) for note in notes] == [
        (1, "slice-1"), (2, "slice-2"), (2, "slice-3"),
    ]  # fmt: skip


def test_a_job_that_goes_back_is_queued_with_the_starts_that_count(ran):
    assert [(note.state, note.attempts) for note in ran[0]["lost twice"]] == [
        ("in_progress", 1), ("queued", 1), ("in_progress", 2), ("queued", 2), ("in_progress", 3),
        ("completed", 3),
    ]  # fmt: skip
    assert [note.attempts for note in ran[0]["given back"] if note.state == "queued"] == [0] * 4


def test_what_the_slice_says_of_the_video_is_written_down(ran):
    assert ran[0]["lost twice"][-1].metadata == {"start": 3}


def test_the_last_note_waits_for_a_database_that_is_away_whoever_cancels(fleet_url):
    async def run():
        async with stand_in(fleet_url) as api:
            api.is_away = True
            slice_ = Slice(api.client)
            queue = slice_queue("scripted")
            async with Worker(api.client, task_queue=queue, activities=[slice_.generate]):
                handle = await api.start(make_order("mute", model="scripted"))
                await eventually(lambda: api.refused >= 1)
                await handle.cancel()
                before = api.refused
                await eventually(lambda: api.refused > before)
                assert api.notes == []
                api.is_away = False
                assert await handle.result() == "failed"
            return api.notes

    assert [note.code for note in asyncio.run(run())] == [Failure.DISK_FULL]


def test_a_start_that_never_ends_is_a_timeout():
    """Its bound is minutes past the job's own, so it is told here, and not waited for."""
    cause = TimeoutError("", type=TimeoutType.START_TO_CLOSE, last_heartbeat_details=[])
    error = ActivityError(
        "", scheduled_event_id=1, started_event_id=2, identity="", activity_type="generate",
        activity_id="1", retry_state=RetryState.TIMEOUT,
    )  # fmt: skip
    error.__cause__ = cause
    order = make_order(job_seconds=7)
    assert Video()._after(order, error) == Note(
        id=order.id, state="failed", attempts=1, code=Failure.TIMEOUT,
        message="the video took longer than 7 seconds",
    )  # fmt: skip


def without_traces(value):
    """A history without the places of code that it was at, which are nobody's business."""
    if isinstance(value, dict):
        return {name: without_traces(v) for name, v in value.items() if name != "stackTrace"}
    return [without_traces(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    with contextlib.closing(TemporalServer().start()) as server:
        _, ran_now = asyncio.run(run_scripts(server.new_fleet()))
    for name in KEPT:
        path = HISTORIES / f"{sys.argv[1]}-{name.replace(' ', '-')}.json"
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(without_traces(json.loads(ran_now[name].to_json())))
        path.write_text(text + "\n")
