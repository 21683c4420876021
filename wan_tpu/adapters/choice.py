"""An adapter as a user names it: a file or folder, how much of it, and of two experts which.

No arrays and no JAX: the command line reads it before anything else.
"""

import dataclasses
import math
import pathlib
import re

from wan_tpu.errors import InputError
from wan_tpu.family import TRANSFORMER, TRANSFORMER_2

EXPERTS = {"high": TRANSFORMER, "low": TRANSFORMER_2}
"""What a user calls them, by the noise that they remove."""

_TEXT = re.compile(r"(?P<path>.+?)(?::(?P<strength>[^:@/\\]*))?(?:@(?P<expert>high|low))?", re.S)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice:
    """What `--lora FILE_OR_FOLDER[:STRENGTH][@high|@low]` says.

    Attributes:
        path: of a file or folder; a hub id `owner/name`, or `owner/name/FILE` of its files.
        strength: factor of all that is added; 0 is the base, less than 0 the opposite.
        expert: `high` or `low`, of a model of two; None leaves it to the file.

    Raises:
        InputError: a value is out of range.
    """

    path: str
    strength: float = 1.0
    expert: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("an adapter has no name; expected a file, for example fox.safetensors")
        if not math.isfinite(self.strength):
            raise InputError(
                f"the strength of {self.path} is {self.strength:g}; expected a number, for example "
                "0.8"
            )
        if self.expert is not None and self.expert not in EXPERTS:
            raise InputError(f"unknown expert {self.expert!r} of {self.path}; known: high, low")

    @classmethod
    def parse(cls, text: str) -> "AdapterChoice":
        """The same from a command line; a file whose name is the whole text is that file.

        Raises:
            InputError: the strength is no number.
        """
        return cls(path=text) if _is_there(text) else cls.parse_name(text)

    @classmethod
    def parse_name(cls, text: str) -> "AdapterChoice":
        """The same, whatever files there are: `path` is the name that the text begins with.

        Raises:
            InputError: the strength is no number.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            return cls(path=text)
        path, strength, expert = match.group("path", "strength", "expert")
        if strength is None:
            return cls(path=path, expert=expert)
        try:
            return cls(path=path, strength=float(strength), expert=expert)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the strength of {path} is {strength!r}; expected a number, for example {path}:0.8"
            ) from None

    def __str__(self) -> str:
        at = "" if self.expert is None else f"@{self.expert}"
        return f"{self.path}:{self.strength:g}{at}"


def _is_there(text: str) -> bool:
    try:
        return pathlib.Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, ~nobody, a zero byte
        return False
