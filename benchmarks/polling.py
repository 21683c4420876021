"""Many clients that poll at a fixed rate, in one light process; and a server that only answers.

`python -m benchmarks.polling poll HOST PORT CLIENTS HERTZ` reads a line of JSON, the paths to poll,
and starts; at the next line it stops and writes what it saw. `... null BYTES` serves an answer of
that size to every request: what polling costs a machine whatever is polled.
"""

import asyncio
import json
import resource
import sys
import time
from typing import Any

import uvloop

PATIENCE_SECONDS = 5.0
"""After the stop; an answer that takes longer is an error."""


class Client(asyncio.Protocol):
    """One connection. A poll is due at a fixed time, whether or not the one before is answered."""

    def __init__(self, requests: list[bytes], *, first_due: float, period: float):
        self._requests = requests
        self._due, self._period = first_due, period
        self._sent = 0.0
        self._count = 0
        self._left: int | None = None  # bytes of the answer that are still to come
        self._stopping = False
        self.waiting = False
        self.from_due: list[float] = []
        self.from_sending: list[float] = []
        self.errors: list[str] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._loop.call_at(self._due, self._send)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self._stopping:
            self.errors.append(f"the connection was lost: {exc}")

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`; the head of an answer comes in one piece."""
        if self._left is None:
            head, _, body = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                self.errors.append(head.partition(b"\r\n")[0].decode("latin-1"))
            self._left = _content_length(head) - len(body)
        else:
            self._left -= len(data)
        if self._left == 0:
            self._note_answer()

    def stop(self) -> None:
        """Sends no more."""
        self._stopping = True

    def close(self) -> None:
        """Ends the connection."""
        if self.waiting:
            self.errors.append("no answer")
        self._transport.close()

    def _send(self) -> None:
        if self._stopping:
            return
        self._sent = time.monotonic()
        self.waiting, self._left = True, None
        self._transport.write(self._requests[self._count % len(self._requests)])
        self._count += 1

    def _note_answer(self) -> None:
        now = time.monotonic()
        self.waiting = False
        self.from_due.append(now - self._due)
        self.from_sending.append(now - self._sent)
        self._due += self._period
        self._loop.call_at(max(self._due, now), self._send)


def _content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.index(b"content-length:") + len(b"content-length:")
    return int(lower[start:].partition(b"\r")[0])


async def poll(host: str, port: int, num_clients: int, hertz: float) -> None:
    """Polls from one line of stdin to the next, again and again."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        requests = [
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
            for path in json.loads(line)
        ]
        begun, cpu = time.monotonic(), _cpu_seconds()
        clients = []
        for index in range(num_clients):
            own = requests[index::num_clients] or requests
            # Spread over the period, as clients that know nothing of each other are.
            due = begun + 0.2 + index / num_clients / hertz
            _, client = await loop.create_connection(
                lambda own=own, due=due: Client(own, first_due=due, period=1 / hertz), host, port
            )
            clients.append(client)
        await loop.run_in_executor(None, sys.stdin.readline)
        seconds, cpu = time.monotonic() - begun, _cpu_seconds() - cpu
        _write(await _end(clients) | {"seconds": seconds, "cpu_seconds": cpu})


async def _end(clients: list[Client]) -> dict[str, Any]:
    for client in clients:
        client.stop()
    async with asyncio.timeout(PATIENCE_SECONDS + 1):
        for _ in range(int(PATIENCE_SECONDS / 0.05)):
            if not any(client.waiting for client in clients):
                break
            await asyncio.sleep(0.05)
    for client in clients:
        client.close()
    return {
        "from_due": [seconds for client in clients for seconds in client.from_due],
        "from_sending": [seconds for client in clients for seconds in client.from_sending],
        "errors": [error for client in clients for error in client.errors],
    }


def _write(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


class NullServer(asyncio.Protocol):
    """Answers every request, each of which comes in one piece, with the same bytes."""

    def __init__(self, answer: bytes):
        self._answer = answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._transport.write(self._answer)


async def serve_nothing(num_bytes: int) -> None:
    """Serves until it is killed; writes its port first."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % num_bytes + b"x" * num_bytes
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: NullServer(answer), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["poll", host, port, num_clients, hertz]:
            uvloop.run(poll(host, int(port), int(num_clients), float(hertz)))
        case ["null", num_bytes]:
            uvloop.run(serve_nothing(int(num_bytes)))
