"""How a fleet prepares clips: an activity for each shard, then one that writes down what there is.

Temporal runs this again from its history on any worker: what it decides follows from that alone. A
plan may be longer than a release lives: a change of which activities are started goes behind
`workflow.patched`.
"""

import asyncio
import dataclasses
import enum
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

PREPARE_SHARD, FINISH = "prepare_shard", "finish_dataset"
"""Names of the activities."""


class Outcome(enum.StrEnum):
    """Types of their errors."""

    GIVEN_BACK = "GivenBack"
    """The worker leaves."""
    AWAY = "BucketAway"
    REFUSED = "Refused"
    """No other try would help."""
    INCOMPLETE = "Incomplete"
    """Of the workflow: not all shards could be made."""


MAX_ATTEMPTS = 3
"""Of a shard; those that were given back, or that found the bucket away, do not count."""

RUN_SHARDS = 1000
"""Of one run of the workflow, all of them offered to the workers at once: Temporal takes 2,000
activities at a time, and some 50,000 events in a history."""

AWAY_SECONDS = 15.0
HEARTBEAT_SECONDS = 10.0
"""How long a worker may be silent before its shard is another's."""

SHARD_SECONDS = 6 * 3600.0
"""That one shard may take; a worker that stands still ends itself before."""

Result = TypeVar("Result")

ONCE = RetryPolicy(maximum_attempts=1)


def queue_of(model: str) -> str:
    """The task queue of those who prepare for a model."""
    return f"prepare-{model}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """What a workflow begins with.

    Attributes:
        plan: id of the plan.
        output: URL of the bucket in which it lies, and the result will.
        num_shards: of it.
        shards: keys of those that are made, in order; "" for one that could not be.
        failed: what was wrong with these, some of them.
        heartbeat_seconds: how long a worker may be silent before its shard is another's.
    """

    plan: str
    output: str
    num_shards: int
    shards: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    heartbeat_seconds: float = HEARTBEAT_SECONDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """What an activity begins with.

    Attributes:
        plan: see `Prepare`.
        output: see `Prepare`.
        number: of the shard, from 0.
    """

    plan: str
    output: str
    number: int


SHOWN_FAILED = 20


@workflow.defn(name="Prepare")
class PrepareWorkflow:
    """One plan; its id is the workflow's. Its memo says how many shards are done."""

    @workflow.run
    async def run(self, order: Prepare) -> dict[str, int]:
        """Has all shards made, whatever becomes of some, and the result written down.

        Returns:
            What `finish_dataset` counted.
        """
        first, self._done = len(order.shards), len(order.shards)
        end = min(first + RUN_SHARDS, order.num_shards)
        failed = list(order.failed)
        shards = [self._shard(order, number, failed) for number in range(first, end)]
        found = [*order.shards, *await asyncio.gather(*shards)]
        order = dataclasses.replace(order, shards=found, failed=failed[:SHOWN_FAILED])
        if end < order.num_shards:
            workflow.continue_as_new(order)
        if not all(found):
            count = found.count("")
            raise ApplicationError(
                f"{count} of {order.num_shards} shards could not be made, such as {failed[0]}",
                type=Outcome.INCOMPLETE,
            )
        return await _make(FINISH, order, dict[str, int], "dataset.json", order.heartbeat_seconds)

    async def _shard(self, order: Prepare, number: int, failed: list[str]) -> str:
        """A shard's key, once it is made; "" where it cannot be, and `failed` says why."""
        task = ShardOrder(plan=order.plan, output=order.output, number=number)
        key = ""
        try:
            key = await _make(PREPARE_SHARD, task, str, f"shard {number}", order.heartbeat_seconds)
        except ApplicationError as error:
            failed.append(f"shard {number}: {error.message}")
        self._done += 1
        workflow.upsert_memo({"done": self._done, "shards": order.num_shards})
        return key


async def _make(
    name: str, order: Any, result: type[Result], summary: str, heartbeat_seconds: float
) -> Result:
    """What an activity returns; it is started until it has ended well, or too often otherwise.

    Raises:
        ApplicationError: it has not; says why.
        ActivityError: the workflow was cancelled.
    """
    attempts = 0
    while True:
        try:
            return await workflow.execute_activity(
                name,
                order,
                result_type=result,
                heartbeat_timeout=timedelta(seconds=heartbeat_seconds),
                start_to_close_timeout=timedelta(seconds=SHARD_SECONDS),
                retry_policy=ONCE,
                summary=summary,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            match error.cause:
                case ApplicationError(type=Outcome.GIVEN_BACK):
                    continue
                case ApplicationError(type=Outcome.AWAY) as cause:
                    workflow.upsert_memo({"trouble": cause.message})
                    await workflow.sleep(AWAY_SECONDS)
                    continue
                case ApplicationError(type=Outcome.REFUSED) as cause:
                    raise cause from None
                case ApplicationError() as cause:
                    words = cause.message
                case _:
                    words = "a worker ended, or stood still, while it made this"
        attempts += 1
        workflow.upsert_memo({"trouble": f"{summary}: {words}"})
        if attempts == MAX_ATTEMPTS:
            raise ApplicationError(words, type=Outcome.INCOMPLETE)
