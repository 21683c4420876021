"""Where the server listens: what is taken is found before anything starts, and named."""

import os
import signal
import socket
import stat
import subprocess
import sys

import httpx
import pytest

from tests.server.running import ROOT, SCRIPTED, wait_for


def environment(folder, **settings):
    keep = {n: v for n, v in os.environ.items() if not n.startswith("WAN_TPU_")}
    settings = {"data_dir": folder, "engine": SCRIPTED, "min_free_bytes": 0, **settings}
    ours = {f"WAN_TPU_{name.upper()}": str(value) for name, value in settings.items()}
    return {**keep, **ours, "PYTHONPATH": str(ROOT)}


def run(folder, **settings):
    """A server that cannot start: its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def serve(tmp_path):
    """Starts a server at a socket file."""
    started, clients = [], []

    def start(path, **settings):
        process = subprocess.Popen(
            [sys.executable, "-m", "server"],
            env=environment(tmp_path / "data", unix_socket=path, **settings),
            cwd=ROOT,
        )
        started.append(process)
        client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=60
        )
        clients.append(client)

        def is_open():  # httpx leaves its socket open where nobody listens
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(path)) == 0

        wait_for(is_open)
        assert client.get("/livez").status_code == 200
        return process, client

    yield start
    for client in clients:
        client.close()
    for process in started:
        process.kill()
        process.wait()


def test_a_taken_port_is_said_before_the_engine_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, errors = run(tmp_path, port=port)
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors
    assert "another program listens there; stop it or set WAN_TPU_PORT" in errors
    assert "engine" not in errors
    assert not (tmp_path / "jobs.sqlite").exists()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "this machine has no such address; set WAN_TPU_HOST"),
        ("no such name", "is no name of this machine; WAN_TPU_HOST"),
    ],
)
def test_an_address_of_another_machine(tmp_path, host, words):
    keys = tmp_path / "keys"
    keys.touch()
    code, errors = run(tmp_path / "data", host=host, api_keys_file=keys)
    assert (code, words in errors) == (1, True), errors


def test_a_name_of_several_addresses(start_server):
    server = start_server(host="localhost")
    port = int(server.url.rpartition(":")[2])
    found = {address[4][0] for address in socket.getaddrinfo("localhost", port)}
    for address in found & {"127.0.0.1"}:
        assert httpx.get(f"http://{address}:{port}/livez").status_code == 200


def test_a_socket_file(serve, tmp_path):
    path = tmp_path / "wan.sock"
    process, client = serve(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    created = client.post("/v1/videos", json={"prompt": "x", "num_inference_steps": 2})
    assert created.status_code == 200
    code, errors = run(tmp_path / "other", unix_socket=path)
    assert (code, f"another server listens at {path}" in errors) == (1, True), errors
    assert client.get("/livez").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not path.exists()


def test_a_proxy_at_a_socket_file_is_not_one_client(serve, tmp_path):
    """All of its clients come over it: the bounds on one address would hold for all together."""
    path = tmp_path / "wan.sock"
    _, client = serve(path, max_connections_per_address=1, max_anonymous_requests_per_second=2)
    connections = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for connection in connections:
        connection.connect(str(path))
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    for _ in range(10):
        assert client.get("/metrics").status_code == 200
    for connection in connections:
        connection.close()


def test_a_socket_file_that_a_killed_server_left(serve, tmp_path):
    path = tmp_path / "wan.sock"
    first, _ = serve(path)
    first.kill()
    first.wait()
    assert path.is_socket()
    second, _ = serve(path)
    assert second.poll() is None


def test_a_file_of_the_users_is_not_removed(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    code, errors = run(tmp_path / "data", unix_socket=path)
    assert (code, "is there and is no socket" in errors) == (1, True), errors
    assert path.read_text() == "mine"


def test_a_socket_file_that_cannot_be_made(tmp_path):
    code, errors = run(tmp_path / "data", unix_socket=tmp_path / "absent" / "wan.sock")
    assert (code, "see WAN_TPU_UNIX_SOCKET" in errors) == (1, True), errors
    code, errors = run(tmp_path / "data", unix_socket=tmp_path / ("long" * 40))
    assert (code, "see WAN_TPU_UNIX_SOCKET" in errors) == (1, True), errors


def test_a_socket_file_and_a_port_are_too_much(tmp_path):
    code, errors = run(tmp_path / "data", unix_socket=tmp_path / "wan.sock", port=8000)
    assert (code, "WAN_TPU_UNIX_SOCKET takes the place of" in errors) == (2, True), errors
