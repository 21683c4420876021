"""What stands in front of every route: Host, origin, key, rate, size and speed of bodies; the log.

Plain ASGI, because it runs for every poll.
"""

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, retry_after
from server.http.limits import RequestRate
from server.keys import Keys
from server.metrics import Metrics
from server.settings import Settings

access_log = logging.getLogger("server.access")

API_PREFIX = "/v1/"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
NO_OWNER = ""
CLOSE = {"Connection": "close"}
"""Sent when a body is not read to its end, since what follows it could not be told apart."""


class Guard:
    """Refuses what must not come in, and notes who asks: `scope["state"]["owner"]`."""

    def __init__(self, app: ASGIApp, *, settings: Settings, keys: Keys | None, metrics: Metrics):
        self._app = app
        self._settings = settings
        self._hosts = settings.hosts
        self._keys = keys
        self._rate = RequestRate(settings.max_requests_per_second)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                self._note(scope, message["status"], time.monotonic() - started)
            await send(message)

        try:
            self._check(scope)
            limited = self._limited(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, watched_send)
            return
        await self._app(scope, limited, watched_send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        if scope["method"] not in SAFE_METHODS:
            _check_origin(headers)
        if scope["path"].startswith(API_PREFIX):
            owner = self._owner(headers)
            scope["state"]["owner"] = owner
            wait = self._rate.take(owner)
            if wait:
                rate = self._settings.max_requests_per_second
                message = f"more than {rate:g} requests a second; wait {wait:.2g} seconds"
                raise ApiError(429, "rate_limited", message, headers=retry_after(wait))

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise ApiError(400, "invalid_host", "there is more than one Host header")
        if "*" in self._hosts:
            return
        host = _host_name(hosts[0] if hosts else "")
        if host not in self._hosts:
            raise ApiError(
                400,
                "invalid_host",
                f"this server does not go by the name {host!r}; "
                "names are added with WAN_TPU_ALLOWED_HOSTS",
            )

    def _owner(self, headers: Headers) -> str:
        if self._keys is None:
            return NO_OWNER
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "an API key is needed: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, "missing_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        owner = self._keys.find(key.strip())
        if owner is None:
            message = "this API key is not known here"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        return owner

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, but of a body that is not too large and comes in time."""
        settings = self._settings
        limit = settings.max_body_bytes
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if scope["method"] in SAFE_METHODS and (
            length not in ("", "0") or "transfer-encoding" in headers
        ):
            message = f"{scope['method']} takes no body"
            raise ApiError(400, "unexpected_body", message, headers=CLOSE)
        too_large = ApiError(
            413, "body_too_large", f"the body is larger than {limit} bytes", headers=CLOSE
        )
        if length.isdecimal() and int(length) > limit:
            raise too_large
        deadline = time.monotonic() + settings.body_timeout_seconds
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # only whether the client is still there
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                seconds = settings.body_timeout_seconds
                words = f"the body did not arrive within {seconds:g} seconds"
                raise ApiError(408, "body_too_slow", words, headers=CLOSE) from None
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            complete = not message.get("more_body", False)
            return message

        return limited

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        self._metrics.request_seconds.labels(method, str(status)).observe(seconds)
        if method in SAFE_METHODS and status < 400:
            return  # polls would drown everything else
        access_log.info(
            "request",
            extra={
                "method": method,
                "path": scope["path"],
                "status": status,
                "seconds": seconds,
                "client": (scope.get("client") or ("unknown",))[0],
            },
        )


KNOWN_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def _check_origin(headers: Headers) -> None:
    """Refuses what a page of another site sends through its visitor's browser."""
    origin = headers.get("origin")
    if origin is None:
        return
    if origin.partition("://")[2].lower() != headers.get("host", "").lower():
        message = f"requests from pages of {origin[:100]} are not taken"
        raise ApiError(403, "cross_origin", message)


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case; brackets of IPv6 stay."""
    if host.startswith("["):
        return (host.partition("]")[0] + "]").lower()
    return host.partition(":")[0].lower()
