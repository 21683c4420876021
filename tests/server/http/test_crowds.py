"""Crowds, slow readers and greedy keys: each hurts only itself."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time

import pytest

from server.http.connections import allow_descriptors
from server.keys import add_key
from tests.server.http.test_access import bearer
from tests.server.http.test_errors import check_shape
from tests.server.http.test_wire import connect, post, read_response, request, send
from tests.server.running import wait_for

LONG_ANSWER = request(b"GET", b"/docs/swagger-ui-bundle.js")
LONG_BYTES = 1_500_000


def connect_from(server, address):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30, source_address=(address, 0))


def ask(connection, path):
    connection.sendall(request(b"GET", path))
    return read_response(connection)


@pytest.fixture
def crowd():
    """Opens connections that ask for much and read nothing; closes them in the end."""
    allow_descriptors(2000)
    with contextlib.ExitStack() as stack:

        def gather(server, count, asked, *, address="127.0.0.1"):
            connections = []
            for _ in range(count):
                connection = stack.enter_context(connect_from(server, address))
                connections.append(connection)
                with contextlib.suppress(ConnectionError):
                    connection.sendall(asked)
            return connections

        yield gather


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"], ids=["from here", "elsewhere"])
def test_a_thousand_connections_that_do_not_read(start_server, crowd, address):
    """The others are served meanwhile, from the same address too: no time-out helps them."""
    server = start_server(max_connections=1000, write_timeout_seconds=3600).wait_ready()
    server.client.close()
    crowd(server, 1000, request(b"GET", b"/openapi.json") * 20, address=address)
    wait_for(lambda: send(server, request(b"GET", b"/livez"))[0] == 200)  # all are answered once
    for path in (b"/livez", b"/readyz") * 3:
        assert send(server, request(b"GET", path))[0] == 200
    fields = b'{"prompt": "x", "num_inference_steps": 1}'
    wait_for(lambda: send(server, post(fields))[0] == 200)
    assert send(server, request(b"GET", b"/v1/videos"))[0] == 200


def test_as_many_files_may_be_open_as_connections_need():
    code = """
import resource
from server.http.connections import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1500))
for count in (100, 1000, 5000):
    allow_descriptors(count)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["256", "1000", "1500"]
    assert "1500 open files are allowed, 5000 may be needed" in done.stderr


def test_who_does_not_read_makes_room_for_others(start_server, crowd):
    """Long before the time is over that they have."""
    server = start_server(max_connections=30, write_timeout_seconds=3600).wait_ready()
    server.client.close()
    crowd(server, 30, LONG_ANSWER * 10)
    wait_for(lambda: len(server.open_sockets()) >= 30)
    for path in (b"/v1/models", b"/v1/videos", b"/metrics"):
        wait_for(lambda path=path: send(server, request(b"GET", path))[0] == 200)
    assert len(server.open_sockets()) >= 25  # no more of them than was needed


def test_who_does_not_read_is_hung_up_on(start_server, crowd):
    server = start_server(write_timeout_seconds=3)
    connections = crowd(server, 10, LONG_ANSWER * 10)
    wait_for(lambda: len(server.open_sockets()) >= 10)
    wait_for(lambda: len(server.open_sockets()) < 5)
    for connection in connections:
        received = 0
        while part := connection.recv(65536):
            received += len(part)
        assert received < 10 * LONG_BYTES


def test_a_slow_reader_that_goes_on_reading_is_served(start_server):
    """Slower than the timeout as a whole, but it takes some all the time."""
    server = start_server(write_timeout_seconds=1)
    with connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(LONG_ANSWER)
        received, begun = 0, time.monotonic()
        while received < LONG_BYTES:
            part = connection.recv(40_000)
            assert part, received
            received += len(part)
            time.sleep(0.1)
        assert time.monotonic() - begun > 2


def test_one_address_has_some_of_the_places_alone(start_server):
    server = start_server(max_connections=100, max_connections_per_address=10)
    server.client.close()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect_from(server, "127.0.0.2")) for _ in range(10)]
        for connection in held:
            assert ask(connection, b"/livez")[0] == 200
        one_more = stack.enter_context(connect_from(server, "127.0.0.2"))
        status, head, body = ask(one_more, b"/v1/models")
        assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
        assert "retry-after" in head
        with connect_from(server, "127.0.0.2") as probe:
            assert ask(probe, b"/readyz")[0] in (200, 503)
        with connect_from(server, "127.0.0.3") as other:
            assert ask(other, b"/v1/models")[0] == 200


def test_strangers_have_a_rate_of_their_own(start_server, tmp_path):
    path = tmp_path / "keys"
    key = add_key(path, "ada")
    server = start_server(api_keys_file=path, max_anonymous_requests_per_second=5)
    strangers = [server.client.get("/v1/models", headers=bearer("wt-no")) for _ in range(20)]
    check_shape(strangers[0], 401, "invalid_api_key")
    check_shape(strangers[-1], 429, "rate_limited")
    assert strangers[-1].headers["connection"] == "close"  # and what was sent ahead is dropped
    assert strangers[-1].headers["retry-after"] == "1"
    for url in ("/openapi.json", "/metrics", "/web/main.js", "/docs"):
        check_shape(server.client.get(url), 429, "rate_limited")
    assert server.client.get("/livez").status_code == 200
    for _ in range(20):
        assert server.client.get("/v1/models", headers=bearer(key)).status_code == 200
    lines = [line for line in server.log().splitlines() if "status=401" in line]
    assert 1 <= len(lines) <= 6


def test_streams_of_one_key_leave_places_for_others(start_server, tmp_path):
    path = tmp_path / "keys"
    keys = {name: add_key(path, name) for name in ("ada", "bob")}
    server = start_server(api_keys_file=path, max_event_streams_per_key=3).wait_ready()
    videos = {
        name: server.client.post(
            "/v1/videos", json={"prompt": "slow", "num_inference_steps": 90}, headers=bearer(key)
        ).json()["id"]
        for name, key in keys.items()
    }

    def follow(name):
        return server.client.stream(
            "GET", f"/v1/videos/{videos[name]}/events", headers=bearer(keys[name])
        )

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(follow("ada")).status_code == 200
        refused = stack.enter_context(follow("ada"))
        refused.read()
        check_shape(refused, 429, "too_many_streams")
        assert stack.enter_context(follow("bob")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "a": [' + b"{}," * 40_000 + b"{}]}",
        b'{"prompt": "x", "seed": ' + b"[" * 120_000,
        b'{"prompt": "x", "seed": ' + b'{"a":' * 20_000,
        b'{"prompt": "x", "a": ' + b'"\\"' * 30_000,
        b'{"prompt": "x"' + b', "": 1' * 12_000 + b"}",
        b'{"prompt": "' + b'\\"' * 60_000,
    ],
    ids=["objects", "lists", "depth", "quotes", "fields", "no end"],
)
def test_a_body_that_is_not_flat_is_refused_cheaply(quick, body):
    """The bound holds for what two hundred of them take of the server's one thread."""
    assert len(body) < 131_072
    before = quick.cpu_seconds()
    for _ in range(100):
        response = quick.client.post(
            "/v1/videos", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400
    assert (quick.cpu_seconds() - before) / 100 < 0.02


def test_prompts_of_full_length_fit_however_they_are_escaped(quick):
    prompt = "\U0001f98a" * 4000
    body = json.dumps({"prompt": prompt, "negative_prompt": prompt, "num_inference_steps": 1})
    assert len(body) > 90_000
    response = quick.client.post(
        "/v1/videos", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.json()["prompt"] == prompt


def test_a_full_queue_says_no_before_it_reads(start_server):
    """What it would say of the body does not matter; a repetition gets its job all the same."""
    server = start_server(max_queued_jobs=1).wait_ready()
    server.create("slow", num_inference_steps=90)
    wait_for(lambda: server.metric("wan_tpu_queue_length") == 0)
    headers = {"Idempotency-Key": "one"}
    fields = {"prompt": "slow", "num_inference_steps": 90}
    waiting = server.client.post("/v1/videos", json=fields, headers=headers).json()
    check_shape(server.client.post("/v1/videos", content=b"no body"), 429, "queue_full")
    again = server.client.post("/v1/videos", json=fields, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, waiting["id"])
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("POST", "/v1/videos")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()  # and nothing of it is sent
    assert connection.getresponse().status == 429
    connection.close()
