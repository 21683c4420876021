"""What uvicorn does with a connection, and bounds on it: none is held open for ever."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import ApiError, retry_after

MAX_HEAD_BYTES = 65_536


class WholeWrites:
    """A transport that sends what is written in one go of the loop in one piece.

    uvicorn writes the head of an answer and its body apart: two system calls, and two times that
    the client is woken.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport`."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pieces and not self._transport.is_closing():
            self._transport.write(b"".join(self._pieces))
        self._pieces.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's connection with bounds on a request's head: its size and its time of arrival."""

    head_timeout_seconds = 10.0
    max_connections = 1000

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(cast(asyncio.Transport, WholeWrites(transport, self.loop)))
        if len(self.connections) > self.max_connections:
            words = f"{self.max_connections} connections are open, which is as many as may"
            error = ApiError(503, "too_many_connections", words, headers=retry_after(5))
            self._refuse(error)
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.more_body:
            self._head_bytes += len(data)
            if self._head_timer is None:
                self._expect_head()
            if self._head_bytes > MAX_HEAD_BYTES and not self._head_is_complete(data):
                words = f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"
                self._refuse(ApiError(431, "head_too_large", words))
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        self._stop_timer()
        self._head_bytes = 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """See `HttpToolsProtocol`."""
        self._refuse(ApiError(400, "invalid_http", "this is not HTTP/1.1"))

    def _head_is_complete(self, data: bytes) -> bool:
        return b"\r\n\r\n" in data

    def _expect_head(self) -> None:
        words = f"the request did not arrive within {self.head_timeout_seconds:g} seconds"
        error = ApiError(408, "head_too_slow", words)
        self._head_timer = self.loop.call_later(self.head_timeout_seconds, self._refuse, error)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: ApiError) -> None:
        """Answers without a request and closes."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # an answer is under way: another inside it would be garbage
            return
        response = error.response()
        response.headers["connection"] = "close"
        head = b"".join(b"%s: %s\r\n" % pair for pair in response.raw_headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(response.body))
        self.transport.close()
