"""Jobs by id: polls share queries."""

import asyncio

from server.fleet import calls
from server.fleet.calls import Reads


class Store:
    """Answers every query, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def find(self, job_ids):
        self.asked.append(sorted(job_ids))
        return {job_id: f"the job {job_id}" for job_id in job_ids if job_id != "gone"}

    async def call(self, function, *arguments):
        await asyncio.sleep(0)
        return function(*arguments)


def test_polls_that_come_hard_upon_a_query_share_the_next_one(monkeypatch):
    monkeypatch.setattr(calls, "APART_SECONDS", 0.5)
    store = Store()

    async def poll():
        reads = Reads(store, store)
        assert await reads.find("a") == "the job a"
        asking = []
        for job_id in ("b", "c", "b", "gone"):
            asking.append(asyncio.create_task(reads.find(job_id)))
            for _ in range(20):  # each comes by itself
                await asyncio.sleep(0)
        return await asyncio.gather(*asking)

    assert asyncio.run(poll()) == ["the job b", "the job c", "the job b", None]
    assert store.asked == [["a"], ["b", "c", "gone"]]


def test_a_poll_that_comes_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(calls, "APART_SECONDS", 1e9)
    store = Store()
    assert asyncio.run(Reads(store, store).find("a")) == "the job a"
    assert store.asked == [["a"]]
