"""What becomes of shards that are made, given back, lost or refused: Temporal's own server."""

import asyncio
import dataclasses

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from wan_tpu.dataset.fleet import workflow
from wan_tpu.dataset.fleet.workflow import (
    FINISH,
    PREPARE_SHARD,
    Outcome,
    Prepare,
    PrepareWorkflow,
    ShardOrder,
)
from wan_tpu.fleet.address import parse_fleet


class Script:
    """Workers that do as they are told.

    Attributes:
        ends: by the number of a shard: how its tries end, the last one for all further ones.
        tries: numbers of shards in the order in which they were taken.
        finished: what the last activity was given.
    """

    def __init__(self, ends=None, finish="ok"):
        self.ends = ends or {}
        self.end_of_all = finish
        self.tries = []
        self.finished = None

    @activity.defn(name=PREPARE_SHARD)
    async def prepare_shard(self, order: ShardOrder) -> str:
        self.tries.append(order.number)
        ends = self.ends.get(order.number, ["ok"])
        end = ends[min(self.tries.count(order.number), len(ends)) - 1]
        if end == "silent":
            await asyncio.sleep(60)
        if end != "ok":
            raise ApplicationError(f"shard is {end}", type=end)
        return f"key-{order.number}"

    @activity.defn(name=FINISH)
    async def finish(self, order: Prepare) -> dict[str, int]:
        self.finished = order
        if self.end_of_all != "ok":
            raise ApplicationError("nothing to learn from", type=self.end_of_all)
        return {"samples": 3}


@pytest.fixture(scope="module")
def fleet(temporal):
    return temporal.new_fleet()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(workflow, "AWAY_SECONDS", 0.01)


def run(fleet, script, *, num_shards=3, name="plan", **fields):
    """How a workflow ends, and what its memo says then."""

    async def work():
        address = parse_fleet(fleet)
        client = await Client.connect(address.target, namespace=address.namespace)
        worker = Worker(
            client, task_queue=name, workflows=[PrepareWorkflow],
            activities=[script.prepare_shard, script.finish],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )  # fmt: skip
        async with worker:
            order = Prepare(plan=name, output="s3://b", num_shards=num_shards, **fields)
            handle = await client.start_workflow(
                PrepareWorkflow.run, order, id=name, task_queue=name
            )
            try:
                result = await handle.result()
            except WorkflowFailureError as error:
                result = error.cause
            handle = client.get_workflow_handle(name)
            return result, await (await handle.describe()).memo()

    return asyncio.run(work())


def test_all_shards_in_their_order_over_several_runs(fleet, monkeypatch):
    """Red when a run forgets what the runs before it have made."""
    monkeypatch.setattr(workflow, "RUN_SHARDS", 2)
    script = Script()
    result, memo = run(fleet, script, num_shards=5, name="runs")
    assert result == {"samples": 3}
    assert script.finished.shards == [f"key-{number}" for number in range(5)]
    assert sorted(script.tries) == list(range(5))
    assert memo == {"done": 5, "shards": 5}


def test_what_was_given_back_or_found_the_bucket_away_does_not_count(fleet):
    ends = {1: [Outcome.GIVEN_BACK, Outcome.AWAY] * 2 + ["Broken", "ok"]}
    script = Script(ends)
    result, memo = run(fleet, script, name="given-back")
    assert result == {"samples": 3}
    assert script.tries.count(1) == 6
    assert memo["trouble"] == "shard 1: shard is Broken"


def test_a_shard_that_fails_does_not_stop_the_others(fleet):
    """Three tries of one that breaks, one of one that is refused; all others are made."""
    script = Script({0: ["Broken"], 2: [Outcome.REFUSED]})
    error, memo = run(fleet, script, num_shards=4, name="failing")
    assert error.type == Outcome.INCOMPLETE
    assert error.message.startswith("2 of 4 shards could not be made, such as shard ")
    assert [script.tries.count(number) for number in range(4)] == [3, 1, 1, 1]
    assert script.finished is None
    assert memo["done"] == 4


def test_a_worker_that_falls_silent_is_replaced(fleet):
    script = Script({0: ["silent", "ok"]})
    result, _ = run(fleet, script, num_shards=1, name="silent", heartbeat_seconds=1.0)
    assert result == {"samples": 3}
    assert script.tries == [0, 0]


def test_a_result_that_is_refused_is_the_end(fleet):
    error, _ = run(fleet, Script(finish=Outcome.REFUSED), name="refused")
    assert (error.type, error.message) == (Outcome.REFUSED, "nothing to learn from")


def test_what_is_carried_from_run_to_run_stays_small():
    """Temporal takes 2 MB: a million clips, 32 a shard."""
    order = Prepare(plan="p", output="s3://b", num_shards=32_000, shards=["0" * 40] * 32_000)
    assert len(str(dataclasses.asdict(order))) < 2_000_000
