"""What is known of every request afterwards: its id in the answer and in the log, its figures.

Stands in front of everything else that can answer, so that no answer goes unseen.
"""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.guard import PROBES, SAFE_METHODS
from server.http.limits import RequestRate, address_of
from server.logs import request_id
from server.metrics import Metrics

access_log = logging.getLogger("server.access")
logger = logging.getLogger(__name__)

KNOWN_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
CLIENTS_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
RETRY_AFTER = "5"
"""Of a 503 that says nothing else."""

REFUSALS_LOGGED_PER_SECOND = 5
"""Of one address: who is refused a thousand times a second must not fill the disk."""


class Observed:
    """Notes requests and their answers; what nobody foresaw becomes a 500 here."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics):
        self._app = app
        self._metrics = metrics
        self._refusals = RequestRate(REFUSALS_LOGGED_PER_SECOND)
        self._unlogged = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # servers that hand on no state of the lifespan leave it out
        started = time.monotonic()
        identity = _identity(scope)
        token = request_id.set(identity)
        has_begun = False

        async def noting_send(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-Id"] = identity
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                if message["status"] == 503:
                    headers.setdefault("Retry-After", RETRY_AFTER)
                self._note(scope, message["status"], time.monotonic() - started)
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception:
            # The boundary: a fault of ours is an answer like any other. The log has the traceback.
            logger.exception("a request failed", extra={"path": scope["path"]})
            if has_begun:
                self._metrics.broken_answers.inc()
                return  # uvicorn closes the connection, so that half an answer is not taken for one
            message = f"the server failed to answer; its log says more about {identity}"
            error = ApiError(500, "internal_error", message, headers={"Connection": "close"})
            await error.response()(scope, receive, noting_send)
        finally:
            request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        route = _route(scope)
        self._metrics.request_seconds.labels(method, str(status), route).observe(seconds)
        if method in SAFE_METHODS and status < 400:
            return  # polls would drown everything else
        if status == 503 and scope["path"] in PROBES:
            return  # a probe a second while the model loads
        if 400 <= status < 500 and self._refusals.take(address_of(scope)):
            self._unlogged += 1
            return
        extra = {
            "method": method,
            "path": scope["path"],
            "status": status,
            "seconds": seconds,
            "client": (scope.get("client") or ("unknown",))[0],
            "owner": scope["state"].get("owner", ""),
        }
        if self._unlogged:
            extra["unlogged"], self._unlogged = self._unlogged, 0
        access_log.info("request", extra=extra)


def _identity(scope: Scope) -> str:
    """The id that a proxy or the client gave the request, if it is one, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if CLIENTS_ID.fullmatch(given) else new_identity()


def new_identity() -> str:
    """An id for a request that brings none."""
    return f"req_{secrets.token_hex(8)}"


def _route(scope: Scope) -> str:
    """The path with its parameters' names, so that there are few of them; others are one."""
    route = scope["state"].get("route")
    return getattr(route, "path", "other")
