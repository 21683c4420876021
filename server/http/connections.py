"""Bounds on connections: how many there are, whose, how slowly a head comes and an answer goes.

uvicorn bounds none of these per address or in time, and its `limit_concurrency` turns probes away
with everybody else; a reverse proxy in front does, but need not be there. h11 is taken and not
httptools, which is faster and drops the body of a request that offers `Upgrade` (curl --http2,
Java's client), and with which uvicorn sends chunks to clients of HTTP/1.0.
"""

import asyncio
import collections
import logging
import resource
import sys
import time
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from server.errors import ApiError
from server.http.guard import PROBES_ONLY
from server.http.limits import RequestRate, address_group
from server.http.observed import REFUSALS_LOGGED_PER_SECOND, new_identity
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)
access_log = logging.getLogger("server.access")

MAX_HEAD_BYTES = 65_536
PLACES_FOR_PROBES = 32
EVICTABLE_SECONDS = 1.0
"""A connection that asks for nothing, or takes nothing, for so long makes room for a new one."""

SWEEP_SECONDS = 0.5
OTHER_DESCRIPTORS = 256
"""Files that are sent, the database, the engine."""


class Places:
    """The connections of one server, and who may have another."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._metrics = metrics
        self._logged = RequestRate(REFUSALS_LOGGED_PER_SECOND)
        self.head_seconds = settings.body_timeout_seconds
        self.write_seconds = settings.write_timeout_seconds
        self._most = settings.max_connections
        self._most_per_address = settings.max_connections_per_address
        self._taken: dict[BoundedProtocol, str | None] = {}  # oldest first
        self._probing: dict[BoundedProtocol, None] = {}  # oldest first
        self._per_address: collections.Counter[str] = collections.Counter()
        self._sweep: asyncio.TimerHandle | None = None

    def note(self, status: int, client: tuple[str, int] | None, identity: str) -> None:
        """Notes an answer to what never became a request."""
        self._metrics.request_seconds.labels("other", str(status), "none").observe(0)
        host = client[0] if client else "unix"
        if not self._logged.take(address_group(host)):
            extra = {"status": status, "client": host, "request": identity}
            access_log.info("no request", extra=extra)

    def enter(self, connection: "BoundedProtocol", address: str | None) -> bool:
        """Gives a place to a new connection; False if it may do no more than probe.

        Args:
            connection: the new one.
            address: where it comes from; None for a Unix socket, where a proxy is likely.
        """
        if self._sweep is None:
            self._sweep = connection.loop.call_later(SWEEP_SECONDS, self._look, connection.loop)
        if self._is_full(address):
            self._make_room(address)
        if len(self._taken) >= self._most:
            self._make_room(None)
        if len(self._taken) >= self._most or self._is_full(address):
            if len(self._probing) >= PLACES_FOR_PROBES:
                oldest = next(iter(self._probing))
                self.leave(oldest)
                oldest.abort()
            self._probing[connection] = None
            return False
        self._taken[connection] = address
        if address is not None:
            self._per_address[address] += 1
        return True

    def leave(self, connection: "BoundedProtocol") -> None:
        """Frees the place of a connection."""
        self._probing.pop(connection, None)
        address = self._taken.pop(connection, None)
        if address is not None:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def _is_full(self, address: str | None) -> bool:
        return address is not None and self._per_address[address] >= self._most_per_address

    def _make_room(self, address: str | None) -> None:
        """Ends the connection that has been of no use for the longest, of this address if given."""
        now = time.monotonic()
        useless = [
            (since, id(connection), connection)
            for connection, whose in self._taken.items()
            if address in (None, whose)
            and (since := connection.useless_since()) is not None
            and now - since >= EVICTABLE_SECONDS
        ]
        if useless:
            connection = min(useless)[2]
            self.leave(connection)
            connection.abort()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends connections whose answers nobody takes; looks again for as long as there are any."""
        now = time.monotonic()
        for connection in [*self._taken, *self._probing]:
            stuck_since = connection.stuck_since()
            if stuck_since is not None and now - stuck_since >= self.write_seconds:
                connection.abort()
        anybody = self._taken or self._probing
        self._sweep = loop.call_later(SWEEP_SECONDS, self._look, loop) if anybody else None


class TimedFlow(FlowControl):
    """uvicorn's flow control, which knows since when the other side takes nothing.

    The answers that wait for a client are bounded by uvicorn, the time for which they wait is not.
    """

    def __init__(self, transport: asyncio.Transport):
        super().__init__(transport)
        self.paused_since: float | None = None

    def pause_writing(self) -> None:
        """See `FlowControl`."""
        self.paused_since = self.paused_since or time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """See `FlowControl`."""
        self.paused_since = None
        super().resume_writing()


class BoundedProtocol(H11Protocol):
    """uvicorn's connection with a place among the others, and with bounds in time."""

    places: Places  # of the server: set by `make_protocol`
    flow: TimedFlow

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.flow = TimedFlow(transport)
        self._idle_since = time.monotonic()
        if not self.places.enter(self, address_group(self.client[0]) if self.client else None):
            self.app_state = {**self.app_state, PROBES_ONLY: True}
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_timer()
        self.places.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._head_timer is None and not self._is_answering():
            self._expect_head()
        super().data_received(data)

    def handle_events(self) -> None:
        """See `H11Protocol`: here a request's head is complete."""
        super().handle_events()
        if self._is_answering():
            self._idle_since = None
            self._stop_timer()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """See `H11Protocol`: the errors of this server have another shape."""
        error = sys.exception()  # uvicorn says the same of each, h11 what it is
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            words = f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"
            self._refuse(ApiError(431, "head_too_large", words))
        elif "Host: header" in str(error):
            self._refuse(ApiError(400, "invalid_host", f"a request has one Host header: {error}"))
        else:
            self._refuse(ApiError(400, "invalid_http", f"this is not HTTP/1.1: {error}"))

    def useless_since(self) -> float | None:
        """Since when it asks for nothing, or takes nothing of what it asked for."""
        return self._idle_since or self.flow.paused_since or self._closing_since

    def stuck_since(self) -> float | None:
        """Since when an answer waits for the other side to take it; asked now and then."""
        is_closing = self.transport.is_closing()
        self._closing_since = (self._closing_since or time.monotonic()) if is_closing else None
        return self.flow.paused_since or self._closing_since

    def abort(self) -> None:
        """Ends it at once, whatever was still to be sent."""
        self.transport.abort()

    def _should_upgrade(self) -> bool:
        """No: an offer to speak something else may be ignored (RFC 9110, 7.8).

        uvicorn would write two warnings for each.
        """
        return False

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        seconds = self.places.head_seconds
        error = ApiError(
            408, "head_too_slow", f"the request did not arrive within {seconds:g} seconds"
        )
        self._head_timer = self.loop.call_later(seconds, self._refuse, error)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: ApiError) -> None:
        """Answers without a request and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and self._is_answering():
            self.transport.close()  # an answer is under way: another inside it would be garbage
            return
        identity = new_identity()
        response = error.response()
        response.headers["connection"] = "close"
        response.headers["x-request-id"] = identity
        self.places.note(error.status, self.client, identity)
        head = b"".join(b"%s: %s\r\n" % pair for pair in response.raw_headers)
        status = b"HTTP/1.1 %d %s\r\n" % (error.status, STATUS_PHRASES[error.status])
        self.transport.write(status + head + b"\r\n" + bytes(response.body))
        self.transport.close()


def make_protocol(settings: Settings, metrics: Metrics) -> type[BoundedProtocol]:
    """`http=` of a `uvicorn.Config`."""
    allow_descriptors(settings.max_connections + PLACES_FOR_PROBES + OTHER_DESCRIPTORS)
    return type("Protocol", (BoundedProtocol,), {"places": Places(settings, metrics)})


def allow_descriptors(count: int) -> None:
    """Lets this process have so many open files; 1024 is what most systems give it by default.

    With less no connection could be accepted any more, not even a probe's.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < count:
        logger.warning("%d open files are allowed, %d may be needed: see ulimit -n", allowed, count)
