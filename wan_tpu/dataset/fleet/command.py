"""What gives a fleet its clips to prepare: lists, cuts, starts the workflow, watches, stops it."""

import asyncio
import dataclasses
import logging
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.fleet.clips import is_bucket, list_bucket, list_folder
from wan_tpu.dataset.fleet.order import PreparePlan, cut
from wan_tpu.dataset.fleet.result import plan_key, read_index, read_plan
from wan_tpu.dataset.fleet.workflow import Outcome, Prepare, PrepareWorkflow, queue_of
from wan_tpu.dataset.jobs import Plan, PrepareOptions
from wan_tpu.dataset.manifest import FILE
from wan_tpu.dataset.prepare import check_any
from wan_tpu.errors import InputError, WanTpuError
from wan_tpu.fleet.connection import words_of
from wan_tpu.storage.bucket import Bucket

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
POLLER_LOOKS = 10
"""Looks between two at whether there is any worker."""


class PreparationFailed(WanTpuError):
    """Not all shards could be made; says which, and of how many."""


class PreparationStopped(WanTpuError):
    """Somebody has stopped it."""


async def make_plan(
    source: str, output: str, description: ModelDescription, options: PrepareOptions
) -> PreparePlan:
    """Lists the clips.

    Args:
        source: a folder or a manifest that every worker sees, or in a bucket.
        output: URL of the result.
        description: of the model.
        options: how clips are prepared; its dtype is given, as workers may differ.

    Raises:
        InputError: nothing is there, or nothing that could be learnt from.
        BucketError: the bucket of the clips cannot be used.
    """
    columns, bucket = options.columns, None
    if is_bucket(source):
        with tempfile.TemporaryDirectory() as folder:
            bucket, listing, clips = await list_bucket(source, columns, pathlib.Path(folder))
    else:
        listing, clips = list_folder(pathlib.Path(source).expanduser(), columns)
    if not clips:
        faults = tuple(finding for finding in listing.findings if finding.is_fault)
        check_any(Plan(jobs=(), refused=faults), source)
    return PreparePlan(
        model=description.name,
        source=source,
        bucket=bucket,
        output=output,
        options=dataclasses.replace(options, columns=None, workers=None),
        findings=listing.findings,
        clips=tuple(clips),
    )


async def begin(
    client: Client, bucket: Bucket, plan: PreparePlan, shard_clips: int
) -> PreparePlan | None:
    """Starts a preparation, or finds it at work.

    Args:
        client: connected to the fleet.
        bucket: of the result.
        plan: of `make_plan`.
        shard_clips: clips of a shard at most.

    Returns:
        The plan with its shards as they are being made; None if all of it is there already.

    Raises:
        BucketError: the bucket cannot be used.
        RPCError: Temporal cannot be asked.
    """
    before = await read_index(bucket)
    if before is not None and before.plan == plan.id and await bucket.head(FILE) is not None:
        return None
    plan = cut(plan, shard_clips, before)
    if not await bucket.put(plan_key(plan.id), plan.to_bytes(), create=True):
        plan = await read_plan(bucket, plan.id)  # begun before, and perhaps cut otherwise
    await client.start_workflow(
        PrepareWorkflow.run,
        Prepare(plan=plan.id, output=plan.output, num_shards=len(plan.shards)),
        id=plan.id,
        task_queue=queue_of(plan.model),
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        memo={"done": 0, "shards": len(plan.shards), "output": plan.output},
        static_summary=f"{len(plan.clips)} clips for {plan.model}",
    )
    return plan


async def watch(
    client: Client,
    plan: PreparePlan,
    *,
    on_shards: Callable[[int, int], None],
    say: Callable[[str], None],
) -> None:
    """Waits for the end of a preparation.

    Args:
        client: connected to the fleet.
        plan: of `begin`.
        on_shards: is told how many are made, of how many.
        say: is told what keeps it from going on.

    Raises:
        InputError: nothing of the clips can be learnt from, or one has changed.
        PreparationFailed: not all shards could be made.
        PreparationStopped: somebody stopped it.
    """
    handle, said, looks = client.get_workflow_handle(plan.id), "", 0
    while True:
        try:
            found = await handle.describe()
            memo = await found.memo()
            words = memo.get("trouble", "")
            if looks % POLLER_LOOKS == 0 and not await _has_worker(client, plan.model):
                words = (
                    f"no worker prepares for {plan.model}; start some: wan-tpu dataset worker "
                    f"--model {plan.model} --fleet ..."
                )
        except RPCError as error:
            found, words = None, f"Temporal does not answer: {words_of(error)}"
        if words and words != said:
            say(words)
        said, looks = words or said, looks + 1
        if found is not None:
            on_shards(memo.get("done", 0), len(plan.shards))
            if found.status is not WorkflowExecutionStatus.RUNNING:
                return await _end(handle)
        await asyncio.sleep(LOOK_SECONDS)


async def stop(client: Client, output: str) -> int:
    """Stops what is being prepared into a bucket; what is made stays. Returns how many."""
    running = client.list_workflows("WorkflowType = 'Prepare' AND ExecutionStatus = 'Running'")
    stopped = 0
    async for found in running:
        if (await found.memo()).get("output") == output:
            await client.get_workflow_handle(found.id).cancel()
            stopped += 1
    return stopped


async def _end(handle: Any) -> None:
    """Says how it ended.

    Raises:
        InputError: see `watch`. PreparationFailed: see `watch`. PreparationStopped: see `watch`.
    """
    try:
        await handle.result()
    except WorkflowFailureError as error:
        match error.cause:
            case ApplicationError(type=Outcome.REFUSED) as cause:
                raise InputError(cause.message) from None
            case ApplicationError() as cause:
                raise PreparationFailed(
                    f"{cause.message}; the same command makes those that are missing"
                ) from None
            case _:
                raise PreparationStopped(
                    "it was stopped; the same command goes on where it was"
                ) from None


async def _has_worker(client: Client, model: str) -> bool:
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=queue_of(model)),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
    )
    return bool(answer.pollers)
