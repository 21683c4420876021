"""One that prepares: takes a shard, makes it, puts it into the bucket, takes the next.

It may end at any moment. Told to, it gives its shard back at once; ended without a word, the shard
goes to another one when its heartbeats stay away.
"""

import asyncio
import concurrent.futures
import functools
import logging
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from wan_tpu.dataset.entry import Entry
from wan_tpu.dataset.fleet.clips import bring, check_there
from wan_tpu.dataset.fleet.order import PreparePlan
from wan_tpu.dataset.fleet.result import finish, read_plan, shard_key
from wan_tpu.dataset.fleet.shard import ShardMaker
from wan_tpu.dataset.fleet.workflow import (
    FINISH,
    PREPARE_SHARD,
    Outcome,
    Prepare,
    PrepareWorkflow,
    ShardOrder,
    queue_of,
)
from wan_tpu.errors import Cancelled, InputError, WanTpuError
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.storage.bucket import Bucket, BucketError, open_bucket

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
STALL_SECONDS = 1800.0
"""Without any progress: longer than the largest program compiles."""

Result = TypeVar("Result")


class WorkerFailed(WanTpuError):
    """This worker makes nothing; another one may."""


class Pulse:
    """What of a shard is being done; its heartbeats carry it."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.words: dict[str, Any] = {}
        self.moved_at = time.monotonic()

    def show(self, progress: Progress) -> None:
        """As `wan_tpu.pipeline.progress.Watch` reports."""
        self.tell(progress.stage, progress.done, progress.total)

    def tell(self, stage: str, done: int, total: int) -> None:
        """How far a stage is."""
        self.words = {"stage": stage, "done": done, "total": total}
        self.moved_at = time.monotonic()


class Preparing:
    """The activities of a worker.

    Attributes:
        leaving: set when it is to take nothing more, and to give back what it has.
        failure: why it left by itself; None where it did not.
    """

    def __init__(self, maker: ShardMaker, folder: pathlib.Path):
        """Prepares; nothing is taken yet.

        Args:
            maker: of shards.
            folder: for clips of buckets while they are prepared.
        """
        self.leaving = asyncio.Event()
        self.failure: WorkerFailed | None = None
        self._maker, self._folder = maker, folder
        self._buckets: dict[str, Bucket] = {}
        self._plan: tuple[str, PreparePlan] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "prepare")

    @activity.defn(name=PREPARE_SHARD)
    async def prepare_shard(self, order: ShardOrder) -> str:
        """Sees to it that a shard is in the bucket; returns its key."""
        return await self._guarded(lambda pulse: self._shard(order, pulse))

    @activity.defn(name=FINISH)
    async def finish_dataset(self, order: Prepare) -> dict[str, int]:
        """Writes down what all shards together are; returns how many samples, how many refused."""

        async def write(pulse: Pulse) -> dict[str, int]:
            bucket = self._bucket(order.output)
            plan = await self._read_plan(bucket, order.plan)
            model = self._maker.description
            on_shard = functools.partial(pulse.tell, "shards")
            manifest = await finish(bucket, plan, order.shards, model, on_shard)
            return {"samples": len(manifest.samples), "refused": len(manifest.refused)}

        return await self._guarded(write)

    async def _shard(self, order: ShardOrder, pulse: Pulse) -> str:
        bucket = self._bucket(order.output)
        plan = await self._read_plan(bucket, order.plan)
        shard = plan.shards[order.number]
        if shard.made is not None and await bucket.head(shard_key(shard.made)) is not None:
            return shard.made
        entries = plan.entries(order.number)
        pulse.tell("clips", 0, len(entries))
        if plan.bucket is None:
            check_there([plan.clips[place] for place in shard.clips])
            return await self._make(bucket, plan, entries, pulse)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            there = await bring(self._bucket(plan.bucket), entries, pathlib.Path(folder))
            return await self._make(bucket, plan, there, pulse)

    async def _make(
        self, bucket: Bucket, plan: PreparePlan, entries: Sequence[Entry], pulse: Pulse
    ) -> str:
        """Makes what is not there of entries whose files are; returns its key."""
        watch = Watch(pulse.show, lambda: pulse.is_stopped)
        make = functools.partial(self._maker.make, entries, plan.options, watch)
        key = await self._key(entries, plan)
        while await bucket.head(shard_key(key)) is None:
            archive = await self._in_thread(make)
            again = await self._key(entries, plan)
            if again == key:
                await bucket.put(shard_key(key), archive, create=True)
                break
            key = again  # a clip was changed meanwhile
        return key

    async def _key(self, entries: Sequence[Entry], plan: PreparePlan) -> str:
        try:
            return await self._in_thread(functools.partial(self._maker.key, entries, plan.options))
        except OSError as error:
            raise WorkerFailed(f"cannot read {error.filename}: {error.strerror}") from None

    def _in_thread(self, work: Callable[[], Result]) -> Awaitable[Result]:
        """JAX's work, one after the other."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _bucket(self, url: str) -> Bucket:
        if url not in self._buckets:
            self._buckets[url] = open_bucket(url)
        return self._buckets[url]

    async def _read_plan(self, bucket: Bucket, plan: str) -> PreparePlan:
        if self._plan is None or self._plan[0] != plan:
            self._plan = plan, await read_plan(bucket, plan)
        return self._plan[1]

    async def _guarded(self, work: Callable[[Pulse], Awaitable[Result]]) -> Result:
        """Does a work with heartbeats, and says of its end what the workflow is to make of it.

        Raises:
            ApplicationError: of a type of `Outcome`, or of this worker's own failure.
        """
        pulse = Pulse()
        doing = asyncio.ensure_future(work(pulse))
        beating = asyncio.create_task(self._beat(pulse))
        leaving = asyncio.create_task(self.leaving.wait())
        try:
            await asyncio.wait({doing, leaving, beating}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            if beating.done():
                beating.result()
            raise ApplicationError("the worker leaves", type=Outcome.GIVEN_BACK)
        except asyncio.CancelledError:
            pulse.is_stopped = True
            await asyncio.wait({doing})
            raise
        except InputError as error:
            raise ApplicationError(str(error), type=Outcome.REFUSED) from None
        except BucketError as error:
            raise ApplicationError(str(error), type=Outcome.AWAY) from None
        except Cancelled:
            raise ApplicationError("the worker leaves", type=Outcome.GIVEN_BACK) from None
        except WanTpuError as error:
            self._fail(str(error))
            raise ApplicationError(str(error), type=type(error).__name__) from None
        finally:
            pulse.is_stopped = True
            for task in (beating, leaving):
                task.cancel()

    async def _beat(self, pulse: Pulse) -> None:
        """Tells Temporal how far it is; ends when nothing moves any more.

        Raises:
            WorkerFailed: nothing has for long.
        """
        while True:
            activity.heartbeat(pulse.words)
            await asyncio.sleep(BEAT_SECONDS)
            if time.monotonic() - pulse.moved_at > STALL_SECONDS:
                raise WorkerFailed(f"nothing moved for {STALL_SECONDS:g} s in {pulse.words}")

    def _fail(self, words: str) -> None:
        """Takes nothing more: what is wrong here would be wrong with every other shard."""
        logger.error("%s", words)
        self.failure = WorkerFailed(words)
        self.leaving.set()


async def work(client: Client, preparing: Preparing, model: str) -> None:
    """Takes shards until the worker is to leave.

    Args:
        client: connected to the fleet.
        preparing: what it does.
        model: name of the one that it prepares for.

    Raises:
        WorkerFailed: it left because it can make nothing.
    """
    worker = Worker(
        client,
        task_queue=queue_of(model),
        workflows=[PrepareWorkflow],
        activities=[preparing.prepare_shard, preparing.finish_dataset],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_concurrent_activities=1,
        graceful_shutdown_timeout=timedelta(seconds=10),
        default_heartbeat_throttle_interval=timedelta(seconds=BEAT_SECONDS),
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT_SECONDS),
    )
    async with worker:
        await preparing.leaving.wait()
    if preparing.failure is not None:
        raise preparing.failure


def identity() -> str:
    """As Temporal's pages call this process."""
    return f"prepare-{socket.gethostname()}-{os.getpid()}"
