"""Fields of a body that are lists: noise levels, and adapters; however clients write them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from server.jobs.lora import lora_text
from wan_tpu.adapters.choice import EXPERTS
from wan_tpu.request import MOST_ADAPTERS, VideoRequest, parse_sigmas

MOST_STRENGTH = 100
"""Of one adapter, in either direction: beyond it there is no picture."""

MOST_NAME_CHARACTERS = 255
MOST_CHARACTERS = 1 << 15
"""Of a list as text: parsing a longer one would hold everybody up."""

LORA_EXPECTED = (
    f"at most {MOST_ADAPTERS} adapters, each {{name, strength, expert}} or text "
    f"NAME[:STRENGTH][@high|@low], the strength from -{MOST_STRENGTH} to {MOST_STRENGTH}"
)
SIGMAS_EXPECTED = (
    "numbers that fall, each above 0 and at most 1, as a list or joined by commas, for example "
    "1,0.9375,0.8333,0.625"
)

STRENGTHS = ("strength", "scale")
"""How the factor of an adapter is called here, and by vLLM-Omni."""

_KEYS = frozenset({"name", "expert", *STRENGTHS})


def read_sigmas(value: object) -> tuple[float, ...] | None:
    """Noise levels.

    Args:
        value: a list of numbers, or of texts as a form has them; or all as one text.

    Raises:
        ValueError: it is something else, or no levels.
    """
    if value is None or value in ("", []):
        return None
    _check_length(value)
    if isinstance(value, str):
        sigmas = parse_sigmas(value)
    elif isinstance(value, list | tuple):
        sigmas = tuple(_number(each) for each in value)
    else:
        raise ValueError("neither a list nor text")
    return VideoRequest(prompt="sigmas", sigmas=sigmas).sigmas


def read_lora(value: object) -> tuple[str, ...] | None:
    """Adapters, each as `NAME:STRENGTH` or `NAME:STRENGTH@EXPERT`; None where there are none.

    Args:
        value: a list of objects or texts; one of either; or text of JSON that is one of these.

    Raises:
        ValueError: it is something else.
    """
    _check_length(value)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except RecursionError as error:
            raise ValueError("no list of adapters") from error
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    elif isinstance(value, Mapping):
        value = [value]
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) > MOST_ADAPTERS:
        raise ValueError("no list, or a longer one")
    found: list[str] = []
    for each in value:
        if isinstance(each, str) and each.lstrip()[:1] in ("[", "{"):
            found += read_lora(each) or ()
        else:
            found.append(_of_object(each) if isinstance(each, Mapping) else _of_text(each))
    if len(found) > MOST_ADAPTERS:
        raise ValueError("too many")
    return tuple(found) or None


def objects_of(columns: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The objects of a list in a form: OpenAI's clients send all of one key, then of the next.

    Raises:
        ValueError: not all objects have the same keys, so that nobody knows what belongs together.
    """
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError("not all have the same keys")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _of_object(each: Mapping[str, Any]) -> str:
    given = [name for name in STRENGTHS if each.get(name) is not None]
    if not each.keys() <= _KEYS or len(given) > 1:
        raise ValueError("an object with other keys")
    strength = _number(each[given[0]]) if given else 1.0
    return _checked(each.get("name"), strength, each.get("expert") or None)


def _of_text(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError("neither an object nor text")
    text, expert = text.strip(), None
    for each in EXPERTS:
        if text.endswith(f"@{each}"):
            text, expert = text.removesuffix(f"@{each}"), each
    name, colon, strength = text.rpartition(":")
    return _checked(name, _number(strength), expert) if colon else _checked(text, 1.0, expert)


def _checked(name: object, strength: float, expert: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME_CHARACTERS:
        raise ValueError("no name")
    if not name.isprintable() or abs(strength) > MOST_STRENGTH:
        raise ValueError("no name that can be shown, or a strength beyond reason")
    if not (expert is None or (isinstance(expert, str) and expert in EXPERTS)):
        raise ValueError("no such expert")
    return lora_text(name, strength, expert)


def _check_length(value: object) -> None:
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise ValueError("a text without end")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("no number")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("too large a number") from error
    if not math.isfinite(number):
        raise ValueError("no number")
    return number
