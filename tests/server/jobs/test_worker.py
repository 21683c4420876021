"""The worker goes on when something around the engine fails that nobody has thought of."""

import asyncio
import os
import sys

import pytest

from server.jobs.job import State
from server.service import open_service
from server.settings import Settings
from tests.server.running import SCRIPTED
from wan_tpu.request import VideoRequest

QUICK = VideoRequest(
    prompt="x",
    width=16,
    height=16,
    num_frames=1,
    fps=8,
    num_inference_steps=2,
    seed=1,
    guidance_scale=1.0,
    flow_shift=1.0,
)


@pytest.fixture
def service(monkeypatch, tmp_path):
    """A real one, in this process, with an engine process of its own."""
    monkeypatch.setenv("WAN_TPU_ENGINE", SCRIPTED)
    monkeypatch.setenv("WAN_TPU_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WAN_TPU_MIN_FREE_BYTES", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    return open_service(Settings())


async def accept(service, request=QUICK):
    (job,) = await service.accept("", request, model="m", request_digest="d", idempotency_key=None)
    return job


async def ended(service, job):
    async with asyncio.timeout(60):
        while not (now := service.jobs.board.find(job.id)).is_finished:
            await service.jobs.board.next_change().wait()
    return now


def test_a_job_that_cannot_be_claimed_does_not_stop_the_others(service):
    async def work():
        async with service.running():
            claim, bad = service.jobs.board.claim, []

            async def refuse(job_id):
                if job_id in bad:
                    raise RuntimeError("a fault of ours")
                return await claim(job_id)

            service.jobs.board.claim = refuse
            first = await accept(service)
            bad.append(first.id)
            second = await accept(service)
            assert (await ended(service, second)).state == State.COMPLETED
            assert service.jobs.board.find(first.id).state == State.QUEUED
            async with asyncio.timeout(30):
                while service.missing:
                    await asyncio.sleep(0.05)
        return service.metrics.registry.get_sample_value("wan_tpu_worker_failures_total")

    assert asyncio.run(work()) == 3


def test_a_service_that_always_fails_around_the_engine_is_not_ready(service):
    async def work():
        async with service.running():
            claim = service.jobs.board.claim

            async def refuse(job_id):
                raise RuntimeError("a fault of ours")

            service.jobs.board.claim = refuse
            job = await accept(service)
            async with asyncio.timeout(60):
                while not any("around the engine" in reason for reason in service.missing):
                    await asyncio.sleep(0.05)
            service.jobs.board.claim = claim
            service.jobs.worker._skipped_until.clear()  # a minute, which a test need not wait
            service.jobs.board.wake()
            assert (await ended(service, job)).state == State.COMPLETED
            while service.missing:
                await asyncio.sleep(0.05)

    asyncio.run(work())


def test_a_job_that_fails_around_the_engine_ends(service):
    """Also with an error that is none of the disk's: the next one is made."""

    async def work():
        async with service.running():
            begin = service.jobs.media.begin

            def refuse(job_id):
                service.jobs.media.begin = begin
                raise RuntimeError("a fault of ours")

            service.jobs.media.begin = refuse
            first, second = await accept(service), await accept(service)
            assert (await ended(service, first)).error_code == "engine_error"
            assert (await ended(service, second)).state == State.COMPLETED

    asyncio.run(work())


def test_what_was_abandoned_is_not_written(service):
    """The jobs belong to another server: no outcome, no requeue, and no engine is left."""
    slow = VideoRequest(**{**_fields(QUICK), "prompt": "slow", "num_inference_steps": 90})

    async def work():
        async with service.running():
            job = await accept(service, slow)
            async with asyncio.timeout(60):
                while service.jobs.board.find(job.id).state != State.IN_PROGRESS:
                    await asyncio.sleep(0.01)
            service.jobs.abandon()
            async with asyncio.timeout(20):
                await service.jobs.drain()
            assert service.jobs.board.find(job.id).state == State.IN_PROGRESS
            assert not service.jobs.worker._engine.is_alive

    asyncio.run(work())


def _fields(request):
    return {name: getattr(request, name) for name in request.__dataclass_fields__}
