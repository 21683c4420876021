"""A video of a server, as far as the protocol says what it is."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from wan_tpu.cli.remote.answers import RemoteError, plain

QUEUED, RUNNING, COMPLETED = "queued", "in_progress", "completed"

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
"""Of a video, on any server; nothing that means something in a path."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RemoteVideo:
    """One answer about one video.

    Attributes:
        id: its name on the server.
        status: `queued`, `in_progress`, `completed`; every other one is a failure.
        data: the whole object, as it came. Beyond the protocol, servers of wan-tpu say in it
            `queue_position`, `stage`, `step`, `steps`, `seconds_left` and `metadata`.
    """

    id: str
    status: str
    data: Mapping[str, Any]

    @classmethod
    def read(cls, data: Any) -> "RemoteVideo":
        """The video that a server's answer is about.

        Raises:
            RemoteError: the answer is about none.
        """
        if isinstance(data, dict) and is_id(data.get("id")) and isinstance(data.get("status"), str):
            return cls(id=data["id"], status=plain(data["status"]), data=data)
        raise RemoteError("the server's answer is no video: it has no id, or no status")

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status not in (QUEUED, RUNNING)

    @property
    def failure(self) -> str | None:
        """Why there is no video, or none any more; None while there may be one."""
        error = self.data.get("error")
        if not self.is_finished or (self.status == COMPLETED and not error):
            return None
        if not isinstance(error, dict):
            return plain(error or self.status)
        words = [plain(error[name]) for name in ("code", "message") if error.get(name)]
        return ": ".join(words) or self.status

    def number(self, name: str) -> float | None:
        """A field that is a number; None where there is none."""
        value = self.data.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number else None

    def text(self, name: str) -> str:
        """A field as text on one line; empty where there is none."""
        value = self.data.get(name)
        return "" if value is None else plain(value)

    @property
    def metadata(self) -> dict[str, Any]:
        """How it was made, as far as the server says it."""
        metadata = self.data.get("metadata")
        return dict(metadata) if isinstance(metadata, dict) else {}

    @property
    def state(self) -> str:
        """Where it is, in a few words: `queued, place 3`, `denoise 6/12, 4 s left`."""
        if self.is_finished:
            return f"failed: {self.failure}" if self.failure else self.status
        left = self.number("seconds_left")
        rest = "" if left is None else f", {left:.0f} s left"
        if self.status == QUEUED:
            place = self.number("queue_position")
            return "queued" + ("" if place is None else f", place {place:.0f}") + rest
        step, steps = self.number("step"), self.number("steps")
        if self.text("stage") and step is not None and steps is not None:
            return f"{self.text('stage')} {step:.0f}/{steps:.0f}{rest}"
        percent = self.number("progress")
        return self.status + ("" if percent is None else f", {percent:.0f} %") + rest


def is_id(text: object) -> bool:
    """Whether a text can be the id of a video."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None
