"""The table of a fleet: who may have it, how it is made, what KEDA reads in it."""

import asyncio
import concurrent.futures
import contextlib
import pathlib
import re

import pytest

from server.fleet.store import FleetStore
from server.jobs.database import StoreError, StoreUnavailable
from server.jobs.job import State
from server.jobs.store import Store
from tests.server.fleet.api import MODEL
from tests.server.postgres import new_database
from tests.server.running import wait_for

SCALING = pathlib.Path(__file__).parents[3] / "deploy/kubernetes/base/slices/scaling.yaml"
QUERY = re.search(r'query: "(SELECT .* AND model = )', SCALING.read_text())[1] + f"'{MODEL}'"
"""That KEDA asks of the table."""


@pytest.fixture
def fleet(api_fleet):
    return api_fleet


def open_store(url):
    return contextlib.closing(FleetStore(url, timeout_seconds=4))


def test_several_servers_make_one_schema(postgres):
    """They start together on an empty database."""
    with new_database(postgres) as url, concurrent.futures.ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: FleetStore(url, timeout_seconds=10), range(4)))
        assert len({store.database_id for store in stores}) == 1
        for store in stores:
            store.check()
            store.close()


def test_a_fleet_and_a_server_of_one_slice_never_have_one_database(postgres):
    with new_database(postgres) as url:
        with open_store(url), pytest.raises(StoreError, match="another server uses"):
            Store(url, timeout_seconds=4)
        with (
            contextlib.closing(Store(url, timeout_seconds=4)),
            pytest.raises(StoreError, match="another server uses"),
        ):
            FleetStore(url, timeout_seconds=4)


def test_a_fleet_that_has_lost_its_lock_writes_nothing_beside_another(postgres):
    """Red when the lock of the start is all that there is: here its line was cut."""
    with new_database(postgres) as url, open_store(url) as store:
        store._lock.close()
        with contextlib.closing(Store(url, timeout_seconds=4)):
            for write in (lambda: store.delete(["x"]), lambda: store.cancel("x", None)):
                with pytest.raises(StoreError, match="a server of one slice uses"):
                    write()
        wait_for(lambda: checks(store))  # the other's line may not have ended yet
        assert store.delete(["x"]) == []


def checks(store):
    try:
        store.check()
    except StoreUnavailable:
        return False
    return True


def test_a_fleet_is_no_sqlite():
    with pytest.raises(StoreError, match="postgresql://"):
        FleetStore("sqlite:////nowhere.sqlite", timeout_seconds=4)


def test_a_bucket_and_a_database_belong_together(fleet, postgres):
    async def run(fleet):
        async with fleet.api() as a:
            await a.create()

    async def refused(fleet):
        with pytest.raises(StoreError, match="do not belong together"):
            await run(fleet)

    asyncio.run(run(fleet))
    asyncio.run(run(fleet))
    ours = fleet.bucket
    fleet.bucket = fleet.folder / "typo"
    asyncio.run(refused(fleet))
    fleet.bucket = ours
    with new_database(postgres) as typo:
        fleet.database = typo
        asyncio.run(refused(fleet))


def test_keda_counts_what_waits_and_what_runs_and_nothing_else(fleet):
    wanted = {State.QUEUED: 1, State.IN_PROGRESS: 1, State.COMPLETED: 0, State.FAILED: 0}

    async def run():
        async with fleet.api() as a:
            (job,) = await a.create()
            for state, count in wanted.items():
                fleet.sql("UPDATE jobs SET state = :state WHERE id = :id", state=state, id=job.id)
                assert fleet.sql(QUERY)[0]["count"] == count
            fleet.sql("UPDATE jobs SET state = 'queued', model = 'another'")
            assert fleet.sql(QUERY)[0]["count"] == 0

    assert wanted.keys() == set(State)
    asyncio.run(run())
