"""Dataclasses as lines of JSON: how processes of wan-tpu speak to each other."""

import dataclasses
import json
from typing import Any


class JsonLines:
    """Writes and reads messages of some kinds, one a line."""

    def __init__(self, *kinds: type):
        self._kinds = {kind.__name__: kind for kind in kinds}

    def encode(self, message: Any) -> bytes:
        """The message as one line."""
        kind = type(message).__name__
        assert kind in self._kinds, f"{kind} is not among {sorted(self._kinds)}"
        fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
        return json.dumps({"kind": kind, **fields}).encode() + b"\n"

    def decode(self, line: bytes) -> Any:
        """The message of one line.

        Raises:
            ValueError: it is none of these messages.
        """
        try:
            fields = json.loads(line)
            return self._kinds[fields.pop("kind")](**fields)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not a message: {line[:80]!r}") from error
