"""What systemd is told, over a real datagram socket, by a real server."""

import asyncio
import os
import socket

import pytest

from server.systemd import Notifier
from tests.server.running import wait_for


@pytest.fixture(params=["file", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd has it, and its address for NOTIFY_SOCKET."""
    name = f"wan-tpu-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        path = str(tmp_path / "notify")
        listening.bind(path if request.param == "file" else f"\0{name}")
        listening.setblocking(False)
        yield listening, path if request.param == "file" else f"@{name}"


def everything(listening):
    """What has come so far."""
    found = []
    while True:
        try:
            found.append(listening.recv(4096).decode())
        except BlockingIOError:
            return found


def test_a_server_from_start_to_end(start_server, systemd):
    listening, address = systemd
    server = start_server(
        environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "500000"}
    ).wait_ready()
    heard = []
    wait_for(lambda: heard.extend(everything(listening)) or "STATUS=ready" in heard)
    assert "READY=1" in heard
    assert any("the engine is not ready" in said for said in heard)
    beats = heard.count("WATCHDOG=1")
    assert beats
    wait_for(lambda: heard.extend(everything(listening)) or heard.count("WATCHDOG=1") > beats + 1)
    server.terminate()
    assert server.process.wait(60) == 0
    heard += everything(listening)
    assert "STOPPING=1" in heard
    assert heard.count("READY=1") == 1


def test_a_blocked_event_loop_does_not_say_that_it_lives(systemd):
    listening, address = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"})

    async def serve():
        async with notifier.watched():
            await asyncio.sleep(0.1)
            before = len(everything(listening))
            blocked = socket.socketpair()
            blocked[0].settimeout(0.2)
            with pytest.raises(TimeoutError):
                blocked[0].recv(1)  # as a handler that waits for a disk
            during = everything(listening)
            for each in blocked:
                each.close()
            return before, during

    before, during = asyncio.run(serve())
    notifier.close()
    assert before >= 2
    assert during == []


def test_the_variables_are_not_passed_on(systemd):
    environment = {"NOTIFY_SOCKET": systemd[1], "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}
    notifier = Notifier(environment)
    assert environment == {}
    assert notifier.watchdog_seconds == 0, "that is for another process"
    notifier.close()


def test_without_systemd_nobody_is_told(tmp_path):
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.close()
