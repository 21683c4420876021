"""What comes over the wire from clients that err or attack, byte by byte over raw sockets."""

import json
import re
import socket

import pytest

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
