"""What each store takes for what a thousand slices would ask of it, beside nothing else."""

import asyncio
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    RecordActivityTaskHeartbeatRequest,
)
from temporalio.client import Client

from benchmarks.fleet.running import LAG_SECONDS, NAMESPACE, MeasuredFleet, difference, total
from server.fleet.messages import slice_queue
from server.fleet.mirror import Mirror
from server.fleet.showing import FOLDER, Shown
from server.fleet.slices import Slices
from server.fleet.store import UNFINISHED, FleetStore, read_jobs
from server.fleet.upkeep import Upkeep
from server.jobs.job import Job, State, make_id
from server.jobs.tables import jobs
from wan_tpu.storage.bucket import Bucket, open_bucket

SLICES = 1000
QUEUED, KEPT = 10_000, 10_000
TIMES = 20
CALLS, AT_ONCE = 2000, 32
SPARE = 8
"""More jobs than are asked for: a slice that was ended may have been given one."""
OWNER, MODEL = "a thousand slices", "wan-tiny"
ROWS_AT_ONCE = 1000


def measure(fleet: MeasuredFleet) -> dict[str, float]:
    """Figures by name; seconds unless the name says what else.

    Ends APIs and slices, whose jobs it takes for itself.
    """
    if not fleet.num_slices:
        fleet.have(1)
        fleet.wait_finished(fleet.post(1, 1))
    fleet.stop_slices()
    waiting = fleet.post(AT_ONCE + SPARE, 1)
    fleet.wait(lambda: all(asyncio.run(fleet.is_waiting(job_id)) for job_id in waiting))
    fleet.stop_apis()
    found = asyncio.run(_ask_temporal(fleet))
    with _variables(fleet.fleet.s3.environment):
        found |= asyncio.run(_read_slices(open_bucket(fleet.fleet.s3.url)))
    return found | _ask_database(fleet.fleet.postgres.url)


def report(found: dict[str, float]) -> list[str]:
    """A line for each figure."""
    return ["stores, each alone:", *(f"  {name}: {value:.4g}" for name, value in found.items()), ""]


async def _ask_temporal(fleet: MeasuredFleet) -> dict[str, float]:
    client = await Client.connect(fleet.fleet.temporal.address)
    service = client.workflow_service
    poll = PollActivityTaskQueueRequest(
        namespace=NAMESPACE, task_queue=TaskQueue(name=slice_queue(MODEL)), identity="benchmark"
    )
    wait = timedelta(seconds=10)
    tasks = [await service.poll_activity_task_queue(poll, timeout=wait) for _ in range(AT_ONCE)]

    async def beat(number: int) -> None:
        token = tasks[number % AT_ONCE].task_token
        request = RecordActivityTaskHeartbeatRequest(namespace=NAMESPACE, task_token=token)
        await service.record_activity_task_heartbeat(request)

    async def look(number: int) -> None:
        job_id = tasks[number % AT_ONCE].workflow_execution.workflow_id
        await client.get_workflow_handle(job_id).describe()

    found = {}
    for name, call in (("heartbeat", beat), ("look", look)):
        await asyncio.sleep(LAG_SECONDS)
        before = fleet.counts()
        rate = CALLS / await _all_of(call)
        await asyncio.sleep(LAG_SECONDS)
        asked = total(difference(before, fleet.counts()), "persistence")
        found |= {f"{name}s a second": rate, f"persistence of a {name}": asked / CALLS}
    return found


async def _all_of(call: Callable[[int], Awaitable[None]]) -> float:
    """Seconds that all calls take, so many at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await call(number)

    begun = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(CALLS)))
    return time.monotonic() - begun


async def _read_slices(bucket: Bucket) -> dict[str, float]:
    """As an API does every three seconds; between two readings a share of the objects is new."""
    stat, *_ = await bucket.list(f"{FOLDER}/")
    like = Shown.from_json(await bucket.get(stat.key))
    await bucket.delete_all(f"{FOLDER}/")
    shown = [dataclasses.replace(like, name=f"slice-{number:04}") for number in range(SLICES)]

    async def show(each: list[Shown]) -> None:
        for begin in range(0, len(each), AT_ONCE):
            some = each[begin : begin + AT_ONCE]
            await asyncio.gather(
                *(bucket.put(one.key, one.to_json(), create=False) for one in some)
            )

    slices = Slices(bucket, model_seconds=600)
    found: dict[str, float] = {}
    await show(shown)
    for name, number in (("first", 0), ("with none new", 0), ("with 150 new", 150)):
        await show([dataclasses.replace(each, since=1.0) for each in shown[:number]])
        begun, cpu = time.monotonic(), time.process_time()
        await slices.read()
        found[f"reading {SLICES} slices, {name}"] = time.monotonic() - begun
        found[f"reading {SLICES} slices, {name}, processor"] = time.process_time() - cpu
    return found


def _ask_database(url: str) -> dict[str, float]:
    """Its own tables, with as many jobs as a fleet of that size may have."""
    with contextlib.closing(FleetStore(url, timeout_seconds=60)) as store:
        with store.writing() as connection:
            made = sa.select(jobs).where(jobs.c.state == State.COMPLETED).limit(1)
            row = connection.execute(made).mappings().one()
            connection.execute(sa.delete(jobs))
            for state, number in (
                (State.COMPLETED, KEPT),
                (State.IN_PROGRESS, SLICES),
                (State.QUEUED, QUEUED),
            ):
                _fill(connection, dict(row), state, number)
        with store.reading() as connection:
            connection.execute(sa.text("ANALYZE jobs"))
            newest = connection.execute(sa.select(sa.func.max(jobs.c.id))).scalar_one()
            ids = list(connection.execute(sa.select(jobs.c.id).limit(250)).scalars())
            unfinished = read_jobs(connection, sa.select(jobs).where(UNFINISHED))
        upkeep = Upkeep(store)
        return {
            f"states of {SLICES + QUEUED} jobs": _median(upkeep.states),
            f"places of {QUEUED} jobs": _median(_places(upkeep, unfinished)),
            "250 jobs by id": _median(lambda: store.find(ids)),
            "a page of 20": _median(
                lambda: store.page(OWNER, after=None, limit=20, newest_first=True)
            ),
            "a page of 100": _median(
                lambda: store.page(OWNER, after=None, limit=100, newest_first=True)
            ),
            f"accepting, one key with {KEPT + SLICES + QUEUED} jobs": _median(
                lambda: _accept(store, newest)
            ),
        }


class Direct:
    """Calls the database from this thread."""

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What it returns."""
        return function(*arguments)


def _places(upkeep: Upkeep, unfinished: list[Job]) -> Callable[[], object]:
    """What the first poll of a second computes for all of them, in the loop of all requests."""
    direct: Any = Direct()
    mirror = Mirror(direct, upkeep, direct, count_slices=lambda model: SLICES)
    asyncio.run(mirror.learn())
    mirror.add(unfinished)
    last = max(unfinished, key=lambda job: job.id)
    assert mirror.place(last)[1] is not None, "no job was learned from"

    def compute() -> object:
        mirror.add([last])  # any change has them computed anew
        return mirror.place(last)

    return compute


def _fill(connection: sa.Connection, row: dict[str, Any], state: State, number: int) -> None:
    is_over = state == State.COMPLETED
    like = row | {
        "owner": OWNER,
        "state": str(state),
        "attempts": 0 if state == State.QUEUED else 1,
        "finished_at": row["created_at"] if is_over else None,
        "expires_at": None,
        "idempotency_key": None,
        "workflow_at": row["created_at"],
    }
    for begin in range(0, number, ROWS_AT_ONCE):
        many = range(min(ROWS_AT_ONCE, number - begin))
        connection.execute(sa.insert(jobs), [like | {"id": make_id()} for _ in many])


def _accept(store: FleetStore, newest: str) -> None:
    (like,) = store.find([newest]).values()

    def make(before: Any, standing: Any, last: str | None) -> list[Job]:
        return [dataclasses.replace(like, id=make_id(last), owner=OWNER)]

    store.accept(OWNER, None, make)


def _median(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TIMES):
        begun = time.monotonic()
        call()
        seconds.append(time.monotonic() - begun)
    return statistics.median(seconds)


@contextlib.contextmanager
def _variables(given: dict[str, str]) -> Iterator[None]:
    """Of the environment, in which a bucket's credentials are looked for."""
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
