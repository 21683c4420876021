"""From the tensors that some keys name to the differences that they make together."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wan_tpu.adapters.form import Adapter, Difference, Factors, Hadamard, Kronecker
from wan_tpu.adapters.keys import (
    ALPHA,
    BIAS_OF_UP,
    DIFF,
    DOWN,
    HADAMARD,
    KRONECKER,
    MAGNITUDE,
    UP,
    Key,
)
from wan_tpu.adapters.scales import Scales, is_alpha
from wan_tpu.checkpoints.source import DTYPES, FLOATS, SafetensorsSource
from wan_tpu.errors import CheckpointError

ReadTensor = Callable[[SafetensorsSource, str], np.ndarray]
"""A tensor of a file: `read_numbers`, or `read_shape` where numbers do not matter."""

Parts = Mapping[str, Key]
"""The keys of one tensor, by which part each is."""

_FORMS = {"a LoRA": (DOWN, UP), "a LoHa": HADAMARD, "a LoKr": KRONECKER}


def read_numbers(source: SafetensorsSource, name: str) -> np.ndarray:
    """A tensor's own copy, in its dtype.

    Raises:
        CheckpointError: it holds no floats, or one that is not finite.
    """
    _check_dtype(source, name)
    array = np.array(source.read(name))
    if not np.isfinite(array.astype(np.float32)).all():
        where = source.description
        raise CheckpointError(f"{where}: {name} has NaN or infinite numbers; the file is damaged")
    return array


def read_shape(source: SafetensorsSource, name: str) -> np.ndarray:
    """Zeros of a tensor's shape and dtype that take no memory; the numbers are not read.

    Raises:
        CheckpointError: it holds no floats.
    """
    _check_dtype(source, name)
    return np.broadcast_to(np.zeros((), DTYPES[source.dtypes[name]]), source.shapes[name])


def read_parts(
    source: SafetensorsSource, keys: Sequence[Key], scales: Scales, read: ReadTensor
) -> Adapter:
    """The adapter that some keys of a file make together.

    Args:
        source: the file.
        keys: of one transformer.
        scales: what is said outside the tensors.
        read: how tensors are read; alphas are read in any case.

    Raises:
        CheckpointError: names the keys that do not fit each other.
    """
    where = source.description
    by_tensor: dict[str, dict[str, Key]] = {}
    for key in keys:
        # The bias of `up` is scaled as the product of its module is.
        tensor = f"{key.module}.weight" if key.part == BIAS_OF_UP else key.tensor
        other = by_tensor.setdefault(tensor, {}).setdefault(key.part, key)
        if other is not key:
            raise CheckpointError(f"{where}: {other.text} and {key.text} are the same; keep one")
    factors: dict[str, Difference] = {}
    differences: dict[str, np.ndarray] = {}
    magnitudes: dict[str, np.ndarray] = {}
    reader = _Reader(source=source, scales=scales, read=read)
    for tensor, parts in by_tensor.items():
        if DIFF in parts:
            differences[tensor] = read(source, parts[DIFF].text)
        if parts.keys() - {DIFF}:
            factors[tensor] = made = reader.difference(parts)
            if MAGNITUDE in parts:
                magnitudes[tensor] = reader.magnitude(parts[MAGNITUDE])
            if BIAS_OF_UP in parts:
                key = parts[BIAS_OF_UP]
                if key.tensor in differences:
                    raise CheckpointError(f"{where}: {key.text} is a second difference of one bias")
                bias = read(source, key.text).astype(np.float32)
                differences[key.tensor] = bias * np.float32(made.scale)
    return Adapter(factors=factors, differences=differences, magnitudes=magnitudes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Reads the parts of single tensors."""

    source: SafetensorsSource
    scales: Scales
    read: ReadTensor

    def difference(self, parts: Parts) -> Difference:
        """What the parts of one weight make, but for whole differences and magnitudes."""
        forms = [form for form, of_form in _FORMS.items() if parts.keys() & {*of_form}]
        if len(forms) > 1:
            named = [next(parts[p].text for p in _FORMS[form] if p in parts) for form in forms]
            raise self._error(f"{' and '.join(named)} are {' and '.join(forms)}; expected one form")
        if forms == ["a LoHa"]:
            return self._hadamard(parts)
        if forms == ["a LoKr"]:
            return self._kronecker(parts)
        down, up = self._require(parts, DOWN), self._require(parts, UP)
        made = self._pair(up, down)
        return dataclasses.replace(made, alpha=self._alpha(parts, made.rank))

    def magnitude(self, key: Key) -> np.ndarray:
        """DoRA's norms, all above or at 0."""
        array = self.read(self.source, key.text)
        if (array.astype(np.float32) < 0).any():
            raise self._error(f"{key.text} has norms below 0; the file is damaged")
        return array

    def _hadamard(self, parts: Parts) -> Hadamard:
        one_up, one_down, two_up, two_down = (self._require(parts, part) for part in HADAMARD)
        first, second = self._pair(one_up, one_down), self._pair(two_up, two_down)
        if (first.shape, first.rank) != (second.shape, second.rank):
            raise self._error(
                f"{one_up.text} and {two_up.text} make {list(first.shape)} of rank {first.rank} "
                f"and {list(second.shape)} of rank {second.rank}; expected the same"
            )
        return Hadamard(first=first, second=second, alpha=self._alpha(parts, first.rank))

    def _kronecker(self, parts: Parts) -> Kronecker:
        left, right = (self._whole_or_pair(parts, part) for part in ("lokr_w1", "lokr_w2"))
        ranks = {each.rank for each in (left, right) if isinstance(each, Factors)}
        if len(ranks) > 1:
            raise self._error(
                f"{parts['lokr_w1_a'].text} is of rank {left.rank} and "  # type: ignore[union-attr]
                f"{parts['lokr_w2_a'].text} of rank {right.rank}; expected the same"  # type: ignore[union-attr]
            )
        key = next(iter(parts.values()))
        made = Kronecker(left=left, right=right, given_rank=self.scales.rank_of(key.module))
        return dataclasses.replace(made, alpha=self._alpha(parts, made.rank))

    def _whole_or_pair(self, parts: Parts, whole: str) -> np.ndarray | Factors:
        if whole not in parts:
            return self._pair(*(self._require(parts, f"{whole}_{half}") for half in "ab"))
        extra = [parts[f"{whole}_{half}"].text for half in "ab" if f"{whole}_{half}" in parts]
        if extra:
            raise self._error(f"{parts[whole].text} and {extra[0]} are the same; keep one")
        array = self.read(self.source, parts[whole].text)
        if array.ndim < 2:
            shape = list(array.shape)
            raise self._error(f"{parts[whole].text} is {shape}; expected [rows, columns]")
        return array.reshape(len(array), -1)

    def _pair(self, up_key: Key, down_key: Key) -> Factors:
        down, up = (self.read(self.source, key.text) for key in (down_key, up_key))
        is_pair = down.ndim >= 2 and up.ndim >= 2 and math.prod(up.shape[2:]) == 1
        if not is_pair or down.shape[0] != up.shape[1]:
            raise self._error(
                f"{down_key.text} is {list(down.shape)} and {up_key.text} is {list(up.shape)}; "
                "expected [rank, columns] and [rows, rank]"
            )
        return Factors(down=down.reshape(len(down), -1), up=up.reshape(len(up), -1))

    def _require(self, parts: Parts, part: str) -> Key:
        if part not in parts:
            words = {DOWN: "lora_down, or lora_A,", UP: "lora_up, or lora_B,"}.get(part, part)
            present = next(key for each, key in parts.items() if each != DIFF)
            raise self._error(f"{present.text} has no {words} beside it")
        return parts[part]

    def _alpha(self, parts: Parts, rank: int | None) -> float | None:
        if ALPHA not in parts:
            return self.scales.alpha_of(next(iter(parts.values())).module, rank)
        name = parts[ALPHA].text
        value = np.asarray(self.source.read(name)).astype(np.float64).reshape(-1)
        if value.size != 1 or not is_alpha(float(value[0])):
            shape = list(self.source.shapes[name])
            shown = value.tolist() if value.size <= 4 else f"of shape {shape}"
            raise self._error(f"{name} is {shown}, expected a number above 0")
        return float(value[0])

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.source.description}: {message}")


def _check_dtype(source: SafetensorsSource, name: str) -> None:
    if source.dtypes[name] not in FLOATS:
        raise CheckpointError(
            f"{source.description}: {name} is {source.dtypes[name]}, and only {', '.join(FLOATS)} "
            "can be read"
        )
