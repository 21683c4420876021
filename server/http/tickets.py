"""Lets a browser's player read one video: a `<video>` sends cookies, but no key.

A ticket is good for the files of one video, for a quarter of an hour, and as long as the key it
was given for is known. Nothing is kept: the cookie says until when and for which key's hash, signed
with a secret that the process drew when it began.
"""

import hashlib
import hmac
import re
import secrets
import time

from starlette.requests import Request
from starlette.responses import Response

from server.keys import hash_key

COOKIE = "wan_tpu_ticket"
SECONDS = 900

_CONTENT = re.compile(r"/v1/videos/([^/]+)/content")
_TICKET = re.compile(r"(\d{1,12})\.([0-9a-f]{64})\.([0-9a-f]{64})")


class Tickets:
    """Gives tickets out and reads them."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def give(self, request: Request, video_id: str, key: str) -> Response:
        """The answer that leaves a ticket in the browser, 204.

        The cookie has no path of its own, so that it is sent below the address of the video alone,
        whatever a proxy has put in front of it; no script and no other site's page can use it.
        """
        until, owner = int(time.time()) + SECONDS, hash_key(key)
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE,
            f"{until}.{owner}.{self._sign(video_id, until, owner)}",
            max_age=SECONDS,
            path=None,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    def key_hash(self, request: Request) -> str | None:
        """The hash of the key whose ticket a request carries, where it reads that video's files."""
        content = _CONTENT.fullmatch(request.scope["path"])
        ticket = _TICKET.fullmatch(request.cookies.get(COOKIE, ""))
        if content is None or ticket is None or request.method not in ("GET", "HEAD"):
            return None
        until, owner, signature = int(ticket[1]), ticket[2], ticket[3]
        is_ours = hmac.compare_digest(signature, self._sign(content[1], until, owner))
        return owner if is_ours and time.time() < until else None

    def _sign(self, video_id: str, until: int, owner: str) -> str:
        words = f"{video_id} {until} {owner}".encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, words, hashlib.sha256).hexdigest()
