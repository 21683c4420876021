"""Adapters as the requests of jobs hold them, and as clients see them."""

from collections.abc import Iterable
from typing import Any


def lora_text(name: str, strength: float, expert: str | None) -> str:
    """An adapter as one text; always with its strength, so that no name can be misread.

    Args:
        name: of the folder of adapters.
        strength: factor of all that it adds.
        expert: `high` or `low`, of a model of two; None leaves it to the file.
    """
    digits = f"{strength:g}" if float(f"{strength:g}") == strength else repr(strength)
    return f"{name}:{digits}" + ("" if expert is None else f"@{expert}")


def lora_object(text: str) -> dict[str, Any]:
    """What such a text says: {name, strength}, and `expert` where there is one."""
    name, _, rest = text.rpartition(":")
    strength, _, expert = rest.partition("@")
    return {"name": name, "strength": float(strength)} | ({"expert": expert} if expert else {})


def lora_objects(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Several of them."""
    return [lora_object(text) for text in texts]
