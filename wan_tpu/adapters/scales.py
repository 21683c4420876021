"""What is said about an adapter's scale outside its tensors: PEFT's and diffusers' JSON."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wan_tpu.adapters.files import PEFT_CONFIG, PEFT_FILE
from wan_tpu.adapters.keys import ALPHA, DOWN, HADAMARD, KRONECKER, MAGNITUDE, Key
from wan_tpu.checkpoints.files import read_json
from wan_tpu.errors import CheckpointError

DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""Of the file's header: diffusers' JSON of PEFT's configuration, names prefixed."""

_KINDS = {
    "LORA": ("lora_alpha", (DOWN,)),
    "LOHA": ("alpha", HADAMARD),
    "LOKR": ("alpha", KRONECKER),
}
"""PEFT's `peft_type`, what it calls alpha, and the parts that the keys have."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What PEFT's JSON says.

    Attributes:
        alpha: of all modules; None for the rank.
        alphas: those of single modules, by PEFT's regular expressions.
        rank: of all modules; None where nothing says one.
        ranks: those of single modules, likewise.
        by_root: whether alpha is divided by the root of the rank.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rank: int | None = None
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    by_root: bool = False

    def alpha_of(self, module: str, rank: int | None) -> float | None:
        """The alpha that makes alpha / rank the scale; None for the rank."""
        alpha = _by_pattern(self.alphas, module, self.alpha)
        if alpha is None or rank is None or not self.by_root:
            return alpha
        return alpha * math.sqrt(rank)

    def rank_of(self, module: str) -> int | None:
        """What is said; the factors of LoKr do not always tell."""
        return _by_pattern(self.ranks, module, self.rank)


def read_scales(path: pathlib.Path, header: Mapping[str, str], keys: Sequence[Key]) -> Scales:
    """What is said of a file's scales.

    Args:
        path: of the file; PEFT's has its configuration beside it.
        header: of the file.
        keys: all of them.

    Raises:
        CheckpointError: a file of PEFT's has nothing beside it, so that nobody knows alpha; what is
            said cannot be meant, or is not what the keys are.
    """
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_FILE and beside.is_file():
        return _read_config(read_json(beside), str(beside), keys)
    if DIFFUSERS_CONFIG in header:
        where = f"{path}'s {DIFFUSERS_CONFIG}"
        try:
            values = json.loads(header[DIFFUSERS_CONFIG])
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise CheckpointError(f"{where} is no JSON object")
        plain = {name.removeprefix("transformer."): value for name, value in values.items()}
        return _read_config(plain, where, keys)
    if keys[0].style == "PEFT" and not any(key.part == ALPHA for key in keys):
        raise CheckpointError(
            f"{path} is of PEFT, which keeps alpha in {PEFT_CONFIG}, and there is none beside it; "
            "give the folder with both"
        )
    return Scales()


def is_alpha(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _read_config(values: Mapping[str, Any], where: str, keys: Sequence[Key]) -> Scales:
    kind, parts = values.get("peft_type", "LORA"), {key.part for key in keys}
    if kind not in _KINDS:
        raise CheckpointError(
            f"{where} is of peft_type {kind!r}, which is not implemented; known: "
            f"{', '.join(_KINDS)}"
        )
    called, of_kind = _KINDS[kind]
    if not parts & {*of_kind}:
        raise CheckpointError(f"{where} is of peft_type {kind!r}, and the keys are of another form")
    if values.get("use_dora") and MAGNITUDE not in parts:
        raise CheckpointError(
            f"{where} says use_dora, and no key ends in lora_magnitude_vector: the file has lost "
            "what makes it a DoRA"
        )
    alpha, rank = values.get(called), values.get("r")
    alphas = _read_patterns(values, "alpha_pattern", where)
    ranks = _read_patterns(values, "rank_pattern", where)
    for name, value in {called: alpha, **alphas}.items():
        if value is not None and not is_alpha(value):
            raise CheckpointError(f"{where}: {name} is {value!r}, expected a number above 0")
    for name, value in {"r": rank, **ranks}.items():
        if value is not None and not (is_alpha(value) and isinstance(value, int)):
            raise CheckpointError(f"{where}: {name} is {value!r}, expected a whole number above 0")
    return Scales(
        alpha=alpha, alphas=alphas, rank=rank, ranks=ranks, by_root=bool(values.get("use_rslora"))
    )


def _read_patterns(values: Mapping[str, Any], called: str, where: str) -> dict[str, Any]:
    patterns = values.get(called) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{where}: {called} is {patterns!r}, expected an object")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{where}: {called} has {pattern!r}: {error}") from None
    return patterns


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # as peft's `get_pattern_key`
            return value
    return otherwise
