"""Servers of a fleet's API inside the test's process, and a slice by a script; the rest is real."""

import asyncio
import contextlib
import dataclasses
import json
from datetime import timedelta

import sqlalchemy as sa
from temporalio import activity
from temporalio.worker import Worker

from server.engine.messages import Progress
from server.files.job_files import JobFiles
from server.files.media import FILE_NAMES
from server.fleet.connection import connect
from server.fleet.jobs import FleetJobs
from server.fleet.messages import Order, slice_queue
from server.fleet.workflow import Video
from server.jobs.job import State
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings
from tests.server.fleet.stand_in import eventually
from tests.server.running import PATIENCE_SECONDS
from wan_tpu.media import NO_MEDIA
from wan_tpu.request import VideoRequest
from wan_tpu.storage.bucket import open_bucket

MODEL = "wan-tiny"


class ApiFleet:
    """Where a fleet's jobs are held."""

    def __init__(self, url, database, folder):
        self.url, self.database, self.folder = url, database, folder
        self.bucket = folder / "bucket"

    def settings(self, role="api", **settings):
        given = {"fleet": self.url, "role": role, "files": str(self.bucket)}
        given["data_dir"] = self.folder / "data"
        if role == "api":
            given["database_url"] = self.database
        return Settings(**(given | settings))

    def sql(self, text, **values):
        """What a statement returns, as dictionaries."""
        engine = sa.create_engine(self.database, poolclass=sa.NullPool)
        with engine.begin() as connection:
            found = connection.execute(sa.text(text), values)
            return found.mappings().all() if found.returns_rows else []

    def rows(self, table="jobs"):
        return self.sql(f"SELECT * FROM {table} ORDER BY 1")

    def files_of(self, job):
        """What the bucket has of a job."""
        folder = self.bucket / "videos" / job.id
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    @contextlib.asynccontextmanager
    async def api(self, **settings):
        """A server of the API at work."""
        given, metrics = self.settings(**settings), Metrics()
        jobs = FleetJobs(given, metrics)
        async with jobs.running(), asyncio.timeout(PATIENCE_SECONDS):
            yield Api(Service(given, jobs, jobs.files, metrics, None, None, jobs.slices))

    @contextlib.asynccontextmanager
    async def slice(self, name="slice-a"):
        """A slice at work."""
        client = await connect(self.settings("slice"), identity=name)
        scripted = ScriptedSlice(client, JobFiles(open_bucket(str(self.bucket))), name, self.folder)
        worker = Worker(
            client,
            task_queue=slice_queue(MODEL),
            activities=[scripted.generate],
            max_concurrent_activities=1,
            max_heartbeat_throttle_interval=timedelta(seconds=0.2),
            default_heartbeat_throttle_interval=timedelta(seconds=0.2),
        )
        async with worker:
            yield scripted


class Api:
    """A server, and what clients ask of it."""

    def __init__(self, service):
        self.service, self.jobs = service, service.jobs

    async def create(self, prompt="make", *, owner="ann", key=None, number=1, media=NO_MEDIA, **of):
        """The jobs of a request."""
        request = VideoRequest(
            prompt=prompt, width=16, height=16, num_frames=1, fps=8, num_inference_steps=4, seed=1,
            **of,
        )  # fmt: skip
        return await self.service.accept(
            owner, request, media=media, model=MODEL, request_digest=prompt, idempotency_key=key,
            number=number,
        )  # fmt: skip

    async def wait(self, job, *states, owner="ann"):
        """The job once its state is one of these."""
        while True:
            now = await self.jobs.find_owned(owner, job.id)
            if now is not None and now.state in states:
                return now
            assert now is None or not now.is_finished, now
            await asyncio.sleep(0.02)

    async def finish(self, job):
        return await self.wait(job, State.COMPLETED, State.FAILED)

    async def body(self, job, owner="ann"):
        """The job's object, as a client reads it now."""
        now = await self.jobs.find_owned(owner, job.id)
        return json.loads(self.jobs.bodies([now])[0])

    async def sees(self, job, **fields):
        """The job's object once its fields are these."""
        while True:
            body = await self.body(job)
            if all(body[name] == value for name, value in fields.items()):
                return body
            await asyncio.sleep(0.02)

    async def look(self, job):
        return await self.jobs.workflows.look(job.id)


class ScriptedSlice:
    """What becomes of a start its prompt says.

    Attributes:
        starts: (job, start) in order.
        ended: jobs in the order in which their making ended.
        go: set when jobs that wait are to be made.
    """

    def __init__(self, client, files, name, folder):
        self._client, self._files, self._name, self._folder = client, files, name, folder
        self.starts, self.ended = [], []
        self.go = asyncio.Event()

    @activity.defn
    async def generate(self, order: Order) -> dict:
        self.starts.append((order.id, order.start))
        await self._client.get_workflow_handle(order.id).signal(
            Video.started, args=[order.start, self._name]
        )
        prompt = order.request["prompt"]
        try:
            await self._wait(order)
        except asyncio.CancelledError:
            if "stubborn" not in prompt:
                raise
        self.ended.append(order.id)
        return {"seconds": {"denoise": 2.0, "decode": 1.0}, **await self.publish(order)}

    async def _wait(self, order):
        progress = Progress(job=order.id, stage="denoise", done=2, total=4, seconds=1.0)
        fields = dataclasses.asdict(progress)
        del fields["job"]
        while order.request["prompt"].startswith("wait") and not self.go.is_set():
            activity.heartbeat(fields)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.go.wait(), 0.1)

    async def publish(self, order):
        """Writes the files of a start, as a slice does."""
        folder = self._folder / f"{order.id}-{order.start}"
        folder.mkdir()
        for name in FILE_NAMES.values():
            (folder / name).write_bytes(f"{order.id} {order.start}".encode())
        files = await self._files.publish(order.id, order.start, folder)
        return {"start": order.start, "files": files}


async def connected(*apis):
    """Returns once Temporal answers all of them."""
    for api in apis:
        await eventually(lambda api=api: api.jobs.workflows.trouble is None)
