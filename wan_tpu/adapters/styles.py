"""Reads an adapter's file, of whichever tool, into the one form; every key is used or named.

The scale of factors is alpha / rank. Alpha stands beside the factors, or in the JSON that PEFT and
diffusers write, or nowhere: then it is the rank. A PEFT file without its JSON is refused, since its
scale cannot be known.
"""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import safe_open

from wan_tpu.adapters.files import PEFT_CONFIG, PEFT_FILE
from wan_tpu.adapters.form import Adapter, Factors
from wan_tpu.adapters.keys import ALPHA, BIAS_OF_UP, DIFF, DOWN, UP, Key, read_key
from wan_tpu.adapters.strangers import describe_names, other_form
from wan_tpu.checkpoints.files import pointer_hint, read_json, some
from wan_tpu.checkpoints.source import FLOATS, SafetensorsSource
from wan_tpu.errors import CheckpointError

logger = logging.getLogger(__name__)

DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""Of the file's header: diffusers' JSON of PEFT's configuration, names prefixed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterFile:
    """What a file holds.

    Attributes:
        path: of it.
        digest: `sha256:` and 64 hexadecimal digits, of the whole file.
        style: what its way of writing is called.
        header: texts that its writer left in it.
        adapters: by the expert that the keys name; under None what they leave open.
    """

    path: pathlib.Path
    digest: str
    style: str
    header: Mapping[str, str]
    adapters: Mapping[str | None, Adapter]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """What PEFT's JSON says about scales.

    Attributes:
        alpha: of all modules; None for the rank.
        patterns: alphas of single modules, by PEFT's regular expressions.
        by_root: whether alpha is divided by the root of the rank.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    by_root: bool = False

    def alpha_of(self, module: str, rank: int) -> float | None:
        """The alpha that makes alpha / rank the scale; None for the rank."""
        alpha = self.alpha
        for pattern, value in self.patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):  # as peft's `get_pattern_key`
                alpha = value
                break
        if alpha is None or not self.by_root:
            return alpha
        return alpha * math.sqrt(rank)


def read_adapter(path: pathlib.Path) -> AdapterFile:
    """Reads a file whole.

    Args:
        path: of a safetensors file; PEFT's with its `adapter_config.json` beside it.

    Raises:
        CheckpointError: it is damaged, of another model or of a form that is not implemented, has a
            key that belongs to nothing, factors that do not fit each other, or NaN.
    """
    source = SafetensorsSource(path)
    names = list(source.shapes)
    form = other_form(names)
    if form is not None:
        raise CheckpointError(
            f"{path} is {form[0]} ({form[1]}), which is not implemented; a LoRA can be read"
        )
    keys = [key for key in map(read_key, names) if key is not None]
    if not keys:
        raise CheckpointError(f"{path} {describe_names(names)}")
    unknown = sorted(set(names) - {key.text for key in keys})
    if unknown:
        raise CheckpointError(
            f"{path}: {some(unknown)} belong to nothing of a Wan transformer; {len(keys)} other "
            "keys do, and nothing is dropped in silence"
        )
    _check_labels(path, keys)
    header = _header(path)
    adapters = {
        expert: _read_parts(
            source,
            [key for key in keys if key.expert == expert],
            _config(path, header, keys),
        )
        for expert in sorted({key.expert for key in keys}, key=str)
    }
    return AdapterFile(
        path=path,
        digest=_digest(path),
        style=next((key.style for key in keys if key.part in (DOWN, UP)), keys[0].style),
        header=header,
        adapters=adapters,
    )


def _check_labels(path: pathlib.Path, keys: list[Key]) -> None:
    labels = sorted({key.label for key in keys if key.part in (DOWN, UP)})
    if len(labels) > 1:
        named = some([label or "one without a name" for label in labels])
        raise CheckpointError(f"{path} holds several adapters ({named}); expected one in a file")


def _header(path: pathlib.Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def _config(path: pathlib.Path, header: Mapping[str, str], keys: list[Key]) -> _Config:
    """What is said about scales outside the tensors."""
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_FILE and beside.is_file():
        return _read_config(read_json(beside), str(beside))
    if DIFFUSERS_CONFIG in header:
        where = f"{path}'s {DIFFUSERS_CONFIG}"
        try:
            values = json.loads(header[DIFFUSERS_CONFIG])
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise CheckpointError(f"{where} is no JSON object")
        plain = {name.removeprefix("transformer."): value for name, value in values.items()}
        return _read_config(plain, where)
    if keys[0].style == "PEFT" and not any(key.part == ALPHA for key in keys):
        raise CheckpointError(
            f"{path} is of PEFT, which keeps alpha in {PEFT_CONFIG}, and there is none beside it; "
            "give the folder with both"
        )
    return _Config()


def _read_config(values: Mapping[str, Any], where: str) -> _Config:
    kind = values.get("peft_type", "LORA")
    if kind != "LORA" or values.get("use_dora"):
        what = "a DoRA" if kind == "LORA" else f"of peft_type {kind!r}"
        raise CheckpointError(f"{where} is {what}, which is not implemented; a LoRA can be read")
    alpha, patterns = values.get("lora_alpha"), values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{where}: alpha_pattern is {patterns!r}, expected an object")
    for name, value in {"lora_alpha": alpha, **patterns}.items():
        if value is not None and not _is_alpha(value):
            raise CheckpointError(f"{where}: {name} is {value!r}, expected a number above 0")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{where}: alpha_pattern has {pattern!r}: {error}") from None
    return _Config(alpha=alpha, patterns=patterns, by_root=bool(values.get("use_rslora")))


def _is_alpha(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _read_parts(source: SafetensorsSource, keys: list[Key], config: _Config) -> Adapter:
    """The adapter that some keys make together."""
    where = source.description
    by_tensor: dict[str, dict[str, Key]] = {}
    for key in keys:
        # The bias of `up` is scaled as the product of its module is.
        tensor = f"{key.module}.weight" if key.part == BIAS_OF_UP else key.tensor
        other = by_tensor.setdefault(tensor, {}).setdefault(key.part, key)
        if other is not key:
            raise CheckpointError(f"{where}: {other.text} and {key.text} are the same; keep one")
    factors: dict[str, Factors] = {}
    differences: dict[str, np.ndarray] = {}
    for tensor, parts in by_tensor.items():
        if DIFF in parts:
            differences[tensor] = _read(source, parts[DIFF].text)
        if parts.keys() - {DIFF}:
            factors[tensor] = made = _read_factors(source, parts, config)
            if BIAS_OF_UP in parts:
                key = parts[BIAS_OF_UP]
                if key.tensor in differences:
                    raise CheckpointError(f"{where}: {key.text} is a second difference of one bias")
                bias = _read(source, key.text).astype(np.float32)
                differences[key.tensor] = bias * np.float32(made.scale)
    return Adapter(factors=factors, differences=differences)


def _read_factors(source: SafetensorsSource, parts: Mapping[str, Key], config: _Config) -> Factors:
    where, present = source.description, next(key for part, key in parts.items() if part != DIFF)
    for part, words in ((DOWN, "lora_down, or lora_A,"), (UP, "lora_up, or lora_B,")):
        if part not in parts:
            raise CheckpointError(f"{where}: {present.text} has no {words} beside it")
    down, up = (_read(source, parts[part].text) for part in (DOWN, UP))
    if down.ndim < 2 or up.ndim < 2 or math.prod(up.shape[2:]) != 1 or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{where}: {parts[DOWN].text} is {list(down.shape)} and {parts[UP].text} is "
            f"{list(up.shape)}; expected [rank, columns] and [rows, rank]"
        )
    down, up = down.reshape(len(down), -1), up.reshape(len(up), -1)
    if ALPHA in parts:
        alpha = _read_alpha(source, parts[ALPHA].text)
    else:
        alpha = config.alpha_of(parts[DOWN].module, up.shape[1])
    return Factors(down=down, up=up, alpha=alpha)


def _read_alpha(source: SafetensorsSource, name: str) -> float:
    value = np.asarray(source.read(name)).astype(np.float64).reshape(-1)
    if value.size != 1 or not _is_alpha(float(value[0])):
        shown = value.tolist() if value.size <= 4 else f"of shape {list(source.shapes[name])}"
        raise CheckpointError(f"{source.description}: {name} is {shown}, expected a number above 0")
    return float(value[0])


def _read(source: SafetensorsSource, name: str) -> np.ndarray:
    """A tensor's own copy, in its dtype; all of its numbers are finite."""
    where = source.description
    if source.dtypes[name] not in FLOATS:
        raise CheckpointError(
            f"{where}: {name} is {source.dtypes[name]}, and only {', '.join(FLOATS)} can be read"
        )
    array = np.array(source.read(name))
    if not np.isfinite(array.astype(np.float32)).all():
        raise CheckpointError(f"{where}: {name} has NaN or infinite numbers; the file is damaged")
    return array


def _digest(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        reason = pointer_hint(path) or f"cannot be read: {error.strerror}"
        raise CheckpointError(f"{path} {reason}") from None
