"""What a server's answers mean: one line of what is wrong, whoever wrote the server."""

import email.utils
import json
import time
from typing import Any

from wan_tpu.errors import InputError, WanTpuError

BUSY = (408, 429, 502, 503, 504)
"""Statuses after which the same request may well succeed."""

FOR_GOOD = ("quota_exceeded",)
"""Codes of the same statuses that only the user can change."""

NO_ACCESS = (401, 403)

WRONG_REQUEST = (400, 404, 413, 415, 422)
"""Statuses that blame what was asked for: exit code 2, as when `wan-tpu generate` refuses it."""

SHOWN_CHARACTERS = 500
"""Of what a server says."""


class RemoteError(WanTpuError):
    """A server cannot be reached, does not take the key, or did not do what it was asked."""


class AwayError(RemoteError):
    """A server that was there did not answer for too long; its jobs go on."""


class NotThereError(InputError):
    """A server knows no such video, or shows it to other keys alone."""


class NotCancellableError(RemoteError):
    """A video that has ended already."""


def plain(text: object) -> str:
    """A text of somebody else's on one line; it moves no cursor, and is not endless."""
    words = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + "..."


def read_json(body: bytes) -> Any:
    """The value that a body holds; None if it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def is_worth_another_try(status: int, headers: Any, body: bytes) -> bool:
    """Whether the same request may succeed later.

    `x-should-retry` is how servers of this protocol tell OpenAI's clients.
    """
    if status not in BUSY or _error_of(read_json(body)).get("code") in FOR_GOOD:
        return False
    return headers.get("x-should-retry", "true").lower() != "false"


def seconds_to_wait(headers: Any) -> float | None:
    """What `Retry-After` says, in seconds or as a date; None where it says nothing."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def refusal(address: str, path: str, status: int, headers: Any, body: bytes) -> WanTpuError:
    """The error that an answer stands for."""
    data = read_json(body)
    message = words_of(data)
    if 300 <= status < 400:
        where = plain(headers.get("location", "nowhere"))
        return RemoteError(f"{address} sends its callers to {where}: name the server that is there")
    if status in NO_ACCESS:
        said = message or f"status {status}"
        return RemoteError(
            f"{address} does not let you in: {said}; the key is what WAN_TPU_API_KEY or the file "
            "of --api-key-file holds"
        )
    if message is None or (status == 404 and message == "Not Found"):
        what = "no service of videos" if status == 404 else "no answer that can be used"
        return RemoteError(f"{address} has {what} at {path}: status {status}")
    if status == 404:
        return NotThereError(message)
    if status in WRONG_REQUEST:
        return InputError(message)
    if _error_of(data).get("code") == "not_cancellable":
        return NotCancellableError(message)
    return RemoteError(f"{address}: {message} (status {status})")


def words_of(data: Any) -> str | None:
    """What an error says, in OpenAI's shape, FastAPI's or a plain message; None for no error."""
    if not isinstance(data, dict):
        return None
    message = _error_of(data).get("message") or data.get("message")
    detail = data.get("detail")
    if message is None and isinstance(detail, list) and detail and isinstance(detail[0], dict):
        place = ".".join(str(part) for part in detail[0].get("loc", ()) if part != "body")
        message = f"{place}: {detail[0].get('msg')}" if place else detail[0].get("msg")
    elif message is None:
        message = detail
    return plain(message) if message else None


def _error_of(data: Any) -> dict[str, Any]:
    error = data.get("error") if isinstance(data, dict) else None
    return error if isinstance(error, dict) else {"message": error}
