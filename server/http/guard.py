"""What stands in front of every route: Host, origin, strangers' rate, size and speed of bodies.

Plain ASGI, because it runs for every poll; what a route needs to know is a dependency.
"""

import asyncio
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, retry_after
from server.http.limits import RequestRate, check_address
from server.settings import Settings

API_PREFIX = "/v1/"
PROBES = frozenset(("/livez", "/readyz", "/health"))
PROBES_ONLY = "probes_only"
"""In the state of a request that came in over one of the places that are kept for probes."""

FILES_PATHS = ("/v1/videos", "/v1/videos/edits", "/v1/videos/extensions")
MOST_FILES = 2
"""Where a body may hold pictures and clips, and how many: the first and the last picture."""

_POST_ONLY = re.compile(r"/v1/videos/(edits|extensions|[^/]+/(remix|cancel|ticket))")
"""Where a GET is refused for its method, whether or not it has a body."""

MOST_LARGE_BODIES, LARGE_BODY_RETRY_SECONDS = 8, 2.0
"""With a file at a time: each is in memory some three times until its job is accepted."""

SLOWEST_UPLOAD_BYTES_PER_SECOND = 250_000

CONNECTIONS_RETRY_SECONDS = 5.0
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


class Guard:
    """Refuses what must not come in."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        strangers: RequestRate,
        takes_files: Callable[[], bool],
    ):
        """Stands in front of an application.

        Args:
            app: the application.
            settings: of the server.
            strangers: how many requests a second come without a key.
            takes_files: asked whether the body of a new job may hold a picture or clip.
        """
        self._app = app
        self._settings = settings
        self._large = LargeBodies()
        self._takes_files = takes_files
        self._hosts = settings.hosts
        self._domains = tuple(name[1:] for name in self._hosts if name.startswith("*."))
        self._origins = frozenset(origin.lower() for origin in settings.cors_origins)
        self._strangers = strangers
        self._probes = RequestRate(settings.max_anonymous_requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner = _normal(scope)
        may_be_large = (
            self._takes_files() and scope["method"] == "POST" and inner["path"] in FILES_PATHS
        )
        body = Body(inner, receive, self._settings, self._large if may_be_large else None)

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["state"]["route"] = inner.get("route")
                if not body.is_complete or PROBES_ONLY in scope["state"]:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            self._check(inner)
            if scope["method"] not in SAFE_METHODS or not _POST_ONLY.fullmatch(inner["path"]):
                body.check_head()
        except ApiError as error:
            await error.response()(inner, receive, guarded_send)
            return
        try:
            await self._app(inner, body.receive, guarded_send)
        finally:
            body.end()
            scope["state"]["route"] = inner.get("route")  # where it failed before it answered

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if PROBES_ONLY in scope["state"] and scope["path"] not in PROBES:
            words = "as many connections are open as may, from this address or altogether"
            later = retry_after(CONNECTIONS_RETRY_SECONDS)
            raise ApiError(503, "too_many_connections", words, headers=later)
        self._check_host(headers)
        if scope["method"] not in SAFE_METHODS:
            self._check_origin(headers)
        if scope["path"] in PROBES:
            check_address(self._probes, scope)
        elif not scope["path"].startswith(API_PREFIX):
            check_address(self._strangers, scope)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise ApiError(400, "invalid_host", "there is more than one Host header")
        if "*" in self._hosts:
            return
        host = _host_name(hosts[0] if hosts else "")
        if host not in self._hosts and not host.endswith(self._domains):
            raise ApiError(
                400,
                "invalid_host",
                f"this server does not go by the name {host[:100]!r}; "
                "names are added with WAN_TPU_ALLOWED_HOSTS",
            )

    def _check_origin(self, headers: Headers) -> None:
        """Refuses what a page of another site sends through its visitor's browser."""
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        if origin.partition("://")[2].lower() != headers.get("host", "").lower():
            message = f"requests from pages of {origin[:100]} are not taken"
            raise ApiError(403, "cross_origin", message)


class LargeBodies:
    """How many bodies with a picture or clip are in memory; there is no room for many."""

    def __init__(self) -> None:
        self.number = 0


class Body:
    """The body of one request, which must not be too large and must come in time.

    Where it was not read to its end the connection is closed, since what follows could not be told
    apart.
    """

    def __init__(
        self, scope: Scope, receive: Receive, settings: Settings, large: LargeBodies | None
    ):
        self._headers = Headers(scope=scope)
        self._method = scope["method"]
        self._receive = receive
        self._small = self._limit = settings.max_body_bytes
        self._seconds = settings.body_timeout_seconds
        self._large = large
        self._is_large = False
        if large is not None:
            in_base64 = MOST_FILES * -(-settings.max_upload_bytes * 4 // 3)
            self._limit += in_base64
        self._started = time.monotonic()
        self._received = 0
        self._has_length = self._headers.get("content-length", "") not in ("", "0")
        self._is_chunked = "transfer-encoding" in self._headers
        self.is_complete = not (self._has_length or self._is_chunked)

    def check_head(self) -> None:
        """Refuses by what the head says of the body.

        Raises:
            ApiError: there must be none, it is too large, or its end is uncertain.
        """
        if self.is_complete:
            return
        if self._method in SAFE_METHODS:
            raise ApiError(400, "unexpected_body", f"{self._method} takes no body")
        if self._has_length and self._is_chunked:
            message = "there are both Content-Length and Transfer-Encoding"
            raise ApiError(400, "invalid_http", message)
        if self._has_length and int(self._headers["content-length"]) > self._limit:
            raise self._too_large()

    def end(self) -> None:
        """The request is answered: its body is not in memory any more."""
        if self._large is not None and self._is_large:
            self._large.number -= 1
            self._is_large = False

    async def receive(self) -> Message:
        """See ASGI.

        Raises:
            ApiError: it is too large or too slow.
        """
        if self.is_complete:
            return await self._receive()  # only whether the client is still there
        # What has come buys time for what follows: a file may take minutes, its first byte may not.
        seconds = self._seconds + self._received / SLOWEST_UPLOAD_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(self._started + seconds - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            words = f"of the body {self._received} bytes came within {seconds:.3g} seconds"
            raise ApiError(408, "body_too_slow", words) from None
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise self._too_large()
        if self._received > self._small and not self._is_large:
            self._begin_large()
        self.is_complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"the body is larger than {self._limit} bytes")

    def _begin_large(self) -> None:
        """Takes a place among the bodies that need much memory; the key was asked for before."""
        assert self._large is not None
        if self._large.number >= MOST_LARGE_BODIES:
            words = f"{MOST_LARGE_BODIES} pictures or clips are being received already"
            later = retry_after(LARGE_BODY_RETRY_SECONDS)
            raise ApiError(503, "too_many_uploads", words, headers=later)
        self._large.number += 1
        self._is_large = True


def _normal(scope: Scope) -> Scope:
    """The request as routes know it: HEAD is a GET without its body, and no slash is at the end.

    The server leaves the body out, since it looks at what was really asked.
    """
    scope["state"]["is_head"] = scope["method"] == "HEAD"
    path = scope["path"]
    if path.endswith("/") and len(path) > 1 and not path.startswith("/web/"):
        path = path.rstrip("/") or "/"
    elif scope["method"] != "HEAD":
        return scope
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "path": path}


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case; brackets of IPv6 stay."""
    if host.startswith("["):
        return (host.partition("]")[0] + "]").lower()
    return host.partition(":")[0].lower().removesuffix(".")
