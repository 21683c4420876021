"""The API's side of a fleet inside the test's process: it writes into a list, not into a table."""

import asyncio
import contextlib
import dataclasses
import time

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from server.fleet.connection import connect
from server.fleet.messages import API_QUEUE, Note, Order
from server.fleet.workflow import Video
from server.jobs.job import make_id
from server.settings import Settings
from tests.server.running import PATIENCE_SECONDS
from wan_tpu.checkpoints.models import WAN_TINY, describe_model
from wan_tpu.pipeline.check import check_request
from wan_tpu.request import VideoRequest


class StandIn:
    """Starts workflows and takes their notes.

    Attributes:
        notes: what was to be written, in order.
        unwanted: ids of jobs that nobody wants.
        is_away: whether nothing can be written now.
    """

    def __init__(self, client):
        self.client = client
        self.notes: list[Note] = []
        self.unwanted = set()
        self.is_away = False
        self.refused = 0

    @activity.defn
    async def record(self, note: Note) -> bool:
        if self.is_away:
            self.refused += 1
            raise ApplicationError("the database is away")
        self.notes.append(note)
        return note.id not in self.unwanted

    async def start(self, order):
        return await self.client.start_workflow(Video.run, order, id=order.id, task_queue=API_QUEUE)

    async def finish(self, order):
        """Has a job done from beginning to end; returns its notes."""
        handle = await self.start(order)
        await handle.result()
        return self.notes_of(order)

    def notes_of(self, order):
        return [note for note in self.notes if note.id == order.id]

    async def wait_note(self, order, state, attempts=None):
        """The first note of a state."""

        def found():
            for note in self.notes_of(order):
                if note.state == state and attempts in (None, note.attempts):
                    return note
            return None

        return await eventually(found)


@contextlib.asynccontextmanager
async def stand_in(fleet_url, *, cached=0, **activities):
    """A stand-in at work.

    Args:
        fleet_url: of the fleet.
        cached: workflows that are remembered between two moves; without any each is replayed from
            the beginning at each move, which finds out whether it decides the same again.
    """
    settings = Settings(fleet=fleet_url, role="slice", files="/nowhere")
    api = StandIn(await connect(settings, identity="api"))
    worker = Worker(
        api.client,
        task_queue=API_QUEUE,
        workflows=[Video],
        activities=[api.record],
        max_cached_workflows=cached,
        **activities,
    )
    async with worker:
        yield api


def make_order(prompt="a red circle", *, owner="ann", steps=4, seed=1, model=WAN_TINY, **fields):
    """An order of a small video."""
    asked = VideoRequest(
        prompt=prompt, width=16, height=16, num_frames=1, num_inference_steps=steps, seed=seed
    )
    request, _ = check_request(describe_model(WAN_TINY), asked)
    return Order(
        **{
            "id": make_id(),
            "owner": owner,
            "model": model,
            "request": dataclasses.asdict(request),
            "extended": None,
            "max_attempts": 3,
            "job_seconds": 600.0,
            **fields,
        }
    )


async def eventually(condition, seconds=PATIENCE_SECONDS):
    """The first true value of `condition()`."""
    begin = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - begin < seconds, "waited in vain"
        await asyncio.sleep(0.02)
    return value
