"""Configurations that a training can begin from: TOML files in this folder, by name. No JAX.

A preset says what differs from the defaults, and in comments why. Its first line is its summary.
"""

import functools
from importlib import resources

from wan_tpu.errors import InputError
from wan_tpu.training.config_keys import nearest

_SUFFIX = ".toml"


@functools.cache
def preset_names() -> tuple[str, ...]:
    """All of them, in the order of their names."""
    names = [entry.name for entry in resources.files(__name__).iterdir()]
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def preset_text(name: str) -> str:
    """A preset's file.

    Raises:
        InputError: there is none of that name; names the nearest, or all.
    """
    if name not in preset_names():
        raise InputError(f"unknown preset {name!r}; {nearest(name, preset_names())}")
    return (resources.files(__name__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """What it is for, in one line; errors as of `preset_text`."""
    return preset_text(name).split("\n", 1)[0].removeprefix("#").strip()
