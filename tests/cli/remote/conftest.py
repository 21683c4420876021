"""`wan-tpu remote` against a real service with a scripted engine, and lines to it that break."""

import os
import pathlib
import shutil
import socket
import subprocess

import pytest

import wan_tpu
from tests.cli.conftest import COMMAND
from tests.server.running import PATIENCE_SECONDS, SCRIPTED, RunningServer

ADAPTER = pathlib.Path(wan_tpu.__file__).parent / "demo" / "wan-tiny-4.safetensors"


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """A service without keys, ready, with an adapter; its port stays when it is started again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = tmp_path_factory.mktemp("remote")
    adapters = root / "adapters"
    adapters.mkdir()
    shutil.copy(ADAPTER, adapters / "fox.safetensors")
    (adapters / "bad.safetensors").write_bytes(b"no tensors at all")
    server = RunningServer(root / "data", engine=SCRIPTED, port=port, adapters=adapters)
    yield server.wait_ready()
    server.stop()


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    """What a user's shell names is not asked."""
    for name in ("WAN_TPU_SERVER", "WAN_TPU_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        os.environ.pop(name, None)


@pytest.fixture
def remote(run_here, service):
    """(exit code, standard output, standard error) of an action in this process."""

    def remote(action, *arguments, server=None):
        url = service.url if server is None else server
        return run_here("remote", action, *arguments, "--server", url)

    return remote


@pytest.fixture
def begin(environment, tmp_path):
    """Starts an action as a process of its own, and waits until it says some words."""
    started = []

    def begin(words, *arguments):
        environment["PYTHONUNBUFFERED"] = "1"
        process = subprocess.Popen(
            [*COMMAND, "remote", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=tmp_path, env=environment, start_new_session=True,
        )  # fmt: skip
        process.said = ""
        started.append(process)
        hear(process, words)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def hear(process, words):
    """Reads standard error until the words are there."""
    while words not in process.said:
        line = process.stderr.readline()
        assert line, f"ended before {words!r}: {process.said}"
        process.said += line
    return process.said


def end(process, *signals):
    """(exit code, standard output, all of standard error) after some signals."""
    for each in signals:
        process.send_signal(each)
    out, rest = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, process.said + rest


def jobs(server):
    return server.client.get("/v1/videos?limit=100").json()["data"]
