"""Imports torchax, also where the installed torch no longer has the operators that it names.

torchax 0.0.13 lists named-tensor overloads (`aten.prod.dim_Dimname` and others) in its tables;
torch 2.13 removed them, so `import torchax` fails with AttributeError. Nothing ever calls those
overloads. While torchax is imported, and only then, a look-up of a missing named-tensor overload
answers a placeholder. Where torchax imports by itself this module changes nothing; it can go once
a torchax release does.
"""

import contextlib
import functools
import importlib
import types
from collections.abc import Iterator

from torch._ops import OpOverloadPacket

_NAMED_TENSOR_MARKS = ("dimname", "names")


@functools.cache
def import_torchax() -> types.ModuleType:
    """The torchax package, imported whole (its operator tables load lazily otherwise)."""
    with _missing_named_tensor_overloads_answered():
        torchax = importlib.import_module("torchax")
        importlib.import_module("torchax.decompositions")
        torchax.default_env()
    return torchax


@contextlib.contextmanager
def _missing_named_tensor_overloads_answered() -> Iterator[None]:
    """Within the block, a removed named-tensor overload is a placeholder, not an error."""
    original = OpOverloadPacket.__getattr__

    def answer(packet: OpOverloadPacket, key: str) -> object:
        try:
            return original(packet, key)
        except AttributeError:
            if any(mark in key.lower() for mark in _NAMED_TENSOR_MARKS):
                return f"{packet}.{key}"  # hashable, equal to no operator: a dead table entry
            raise

    OpOverloadPacket.__getattr__ = answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        OpOverloadPacket.__getattr__ = original
