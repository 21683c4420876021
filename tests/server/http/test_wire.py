"""What comes over the wire from clients that err or attack, byte by byte over raw sockets."""

import json
import re
import socket

import pytest

from tests.server.running import wait_for

HOST = b"Host: localhost\r\n"


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def send(server, data):
    """Everything that the server answers to these bytes until it closes or says no more."""
    with connect(server) as connection:
        connection.sendall(data)
        return read_response(connection)


def read_response(connection):
    """(status, headers as one text, body) of the next response."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        assert part, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split(b" ")[1]), head.decode("latin-1").lower(), body[:length]


def request(method, path, *headers, body=b""):
    lines = [b"%s %s HTTP/1.1\r\n" % (method, path), HOST, *(h + b"\r\n" for h in headers)]
    return b"".join(lines) + b"\r\n" + body


def post(body, *headers, content_type=b"application/json"):
    length = b"Content-Length: %d" % len(body)
    return request(
        b"POST", b"/v1/videos", b"Content-Type: " + content_type, length, *headers, body=body
    )


def code(response):
    status, head, body = response
    assert "content-type: application/json" in head
    return status, json.loads(body)["error"]["code"]


@pytest.mark.parametrize("origin", [b"http://[", b"null", b"http://localhost@evil", b"\xff"])
def test_a_malformed_origin_is_another_site(quick, origin):
    assert code(send(quick, post(b"{}", b"Origin: " + origin))) == (403, "cross_origin")


@pytest.mark.parametrize("second", [b"localhost", b"evil.example"])
def test_two_hosts_are_refused(quick, second):
    answer = send(quick, request(b"GET", b"/v1/models", b"Host: " + second))
    assert code(answer) == (400, "invalid_host")


def field(name, value):
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name, value)


FORM = b"multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, field(b"prompt", b"caf\xe9") + b"--b--\r\n"),
        (FORM + b"; charset=latin-1", field(b"prompt", b"caf\xe9") + b"--b--\r\n"),
        (FORM + b"; charset=nothing", field(b"prompt", b"x") + b"--b--\r\n"),
        (FORM, field(b"prompt", b"x") + field(b"seed", b"1")),
        (FORM, field(b"prompt", b"x") + field(b"seed", b"1")[:-4]),
    ],
    ids=["not UTF-8", "latin-1", "unknown charset", "no end", "cut short"],
)
def test_a_form_is_never_read_in_part_or_mangled(quick, content_type, body):
    assert code(send(quick, post(body, content_type=content_type))) == (400, "invalid_form")


def test_a_form_in_utf_8(quick):
    body = field(b"prompt", "ein grüner Kreis".encode()) + b"--b--\r\n"
    status, _, answer = send(quick, post(body, content_type=FORM + b"; charset=UTF-8"))
    assert (status, json.loads(answer)["prompt"]) == (200, "ein grüner Kreis")


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "seed": 1, "seed": 2}',
        b'{"prompt": "x", "seed": 1, "prompt": "y"}',
        b'{"prompt": "x"' + b"".join(b', "k%d": 1' % i for i in range(6_000)) + b"}",
    ],
    ids=["twice", "twice and apart", "six thousand"],
)
def test_json_has_each_field_once_and_few_of_them(quick, body):
    assert code(send(quick, post(body))) == (400, "invalid_json")


def test_a_name_that_is_no_text_is_described(quick):
    status, _, answer = send(quick, post(b'{"prompt": "x", "\\ud800": 1}'))
    assert status == 400
    assert json.loads(answer)["error"]["message"].startswith("the name of a field ")


def test_a_client_that_goes_away_is_no_failure(quick):
    meter = 'wan_tpu_http_request_seconds_count{method="POST",route="/v1/videos",status="400"}'
    before = quick.metric(meter)
    with connect(quick) as connection:
        connection.sendall(post(b'{"prompt": "x"}')[:-5])
    wait_for(lambda: quick.metric(meter) == before + 1)
    assert "Traceback" not in quick.log()


def test_too_many_connections_are_turned_away_and_the_others_served(start_server):
    server = start_server(max_connections=20)
    server.client.close()
    held = [connect(server) for _ in range(20)]
    for connection in held:
        connection.sendall(request(b"GET", b"/livez"))
        assert read_response(connection)[0] == 200
    with connect(server) as one_more:
        one_more.sendall(request(b"GET", b"/v1/models"))
        answer = read_response(one_more)
        assert code(answer) == (503, "too_many_connections")
        assert "retry-after: 5" in answer[1]
    for connection in held:
        connection.sendall(request(b"GET", b"/v1/models"))
        assert read_response(connection)[0] == 200
    for connection in held:
        connection.close()
    wait_for(lambda: send(server, request(b"GET", b"/v1/models"))[0] == 200)


def test_an_endless_second_request_ends_the_connection(quick):
    """Its first one is a stream that goes on; what follows must not fill the memory meanwhile."""
    video = quick.create("slow", num_inference_steps=20)
    with connect(quick) as connection:
        path = f"/v1/videos/{video['id']}/events".encode()
        connection.sendall(request(b"GET", path))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"X: " * 50_000_000)
    quick.client.delete(f"/v1/videos/{video['id']}")


@pytest.mark.parametrize("header", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_get_with_a_body_is_refused(quick, header):
    """It would be waited for beside the answer, which for a stream goes on for long."""
    path = f"/v1/videos/{quick.create()['id']}/events".encode()
    answer = send(quick, request(b"GET", path, header))
    assert code(answer) == (400, "unexpected_body")
    assert "connection: close" in answer[1]


def test_an_empty_body_is_none(quick):
    assert send(quick, request(b"GET", b"/livez", b"Content-Length: 0"))[0] == 200
