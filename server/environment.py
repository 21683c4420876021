"""The environment of a server: what its variables mean, and which of them mean nothing."""

from collections.abc import Iterable

from server.settings import Settings

CLIENT_VARIABLES = frozenset({"WAN_TPU_SERVER", "WAN_TPU_API_KEY"})
"""Those of `wan-tpu remote`, which a shell may have for both."""


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Variables with our prefix that mean nothing here: most likely misspelt."""
    known = CLIENT_VARIABLES | {f"WAN_TPU_{name}".upper() for name in Settings.model_fields}
    ours = (name for name in environment if name.upper().startswith("WAN_TPU_"))
    return sorted(name for name in ours if name.upper() not in known)


def describe_settings() -> str:
    """Every variable with its default and meaning, one per line."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f" (default {field.default})"
        lines.append(f"  WAN_TPU_{name.upper():<34}{field.description}{default}")
    return "\n".join(lines)
