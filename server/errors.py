"""Errors of the API, in the one shape that every route answers with."""

import json
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        message: what came, what was expected, a value that works.
        param: the field that is to blame.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {...}}`, as OpenAI's clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": _type_of(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """As HTTP."""
        return Response(
            json.dumps(self.body),
            self.status,
            headers=self.headers,
            media_type="application/json",
        )


def _type_of(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come again."""
    return {"Retry-After": str(max(1, round(seconds)))}


DO_NOT_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients repeat every 409 and 503 by themselves unless told not to."""

SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """A value of the client's in quotes, as much of it as a message bears."""
    text = ascii(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
