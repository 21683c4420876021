"""The engine's process from the service's end: none is left, whatever is cut short or stuck."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from server.engine import child
from server.engine.client import EngineClient
from server.engine.failure import EngineFailure
from server.engine.patience import Patience
from tests.server.running import SCRIPTED

TRACER = """
import ctypes, signal, sys
PTRACE_SEIZE = 0x4206
ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None)
signal.pause()
"""


@pytest.fixture
def client(monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_TPU_ENGINE", SCRIPTED)
    monkeypatch.setenv("WAN_TPU_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    # Its output goes where this process's goes, which pytest has made no file of.
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    return EngineClient(lambda: Patience(stall_seconds=60, compile_seconds=60))


def engines():
    return [p for p in psutil.Process().children() if "server.engine.process" in p.cmdline()]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10, 50, 500])
def test_a_start_that_is_cut_short_leaves_no_process(client, turns):
    """At every moment: before the process is there, before it is held, before it is ready."""

    async def cut():
        starting = asyncio.create_task(client.start(lambda _: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled() or starting.exception() is None
        await client.stop()

    asyncio.run(cut())
    assert engines() == []
    assert not client.is_alive


def test_stopping_twice_and_before_it_starts(client):
    async def stop():
        await client.stop()
        await client.kill()
        await client.start(lambda _: None)
        await asyncio.gather(client.stop(), client.stop(), client.kill())
        await client.stop()

    asyncio.run(stop())
    assert engines() == []


def test_a_process_that_survives_its_killing_holds_nobody_up(client, monkeypatch):
    """As one does that waits for a device. A tracer has the kernel do the same to its parent: a
    dead process is none until the tracer has looked."""
    monkeypatch.setattr(child, "KILL_SECONDS", 0.5)

    async def survive():
        await client.start(lambda _: None)
        (engine,) = engines()
        tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(engine.pid)])
        try:
            while str(tracer.pid) != _tracer_of(engine.pid):
                await asyncio.sleep(0.01)
            async with asyncio.timeout(30):
                await client.kill()
            assert not client.is_alive
            with pytest.raises(EngineFailure, match=r"was killed .* and does not end"):
                await client.start(lambda _: None)
        finally:
            tracer.kill()
            tracer.wait()
        while True:  # the tracer is gone: now it can end, and we may learn of it a little later
            try:
                await client.start(lambda _: None)
                break
            except EngineFailure:
                await asyncio.sleep(0.01)
        assert not engine.is_running()
        await client.stop()

    asyncio.run(survive())
    assert engines() == []


def _tracer_of(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(line.split()[1] for line in status if line.startswith("TracerPid"))


def test_a_process_that_talks_nonsense_is_ended(client):
    async def listen():
        await client.start(lambda _: None)
        (engine,) = engines()
        line = client._line
        assert line is not None
        line.child._reader.feed_data(b"what?\n")
        await asyncio.wait_for(client.ended(), 30)
        assert "makes no sense" in client.how_it_ended
        assert not engine.is_running()
        await client.stop()

    asyncio.run(listen())
