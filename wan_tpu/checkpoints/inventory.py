"""What a model weighs: bytes per component, a row per weight pattern, the split of a layout."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec

from wan_tpu.checkpoints.weights import Weight


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All weights of one pattern.

    Attributes:
        component: one of the model's, or what its files have beside them.
        pattern: name with `*` for numbers that count equal parts.
        count: tensors of this pattern and shape.
        shape: of each, in the checkpoint.
        dtype: on the device.
        num_bytes: of all of them on the devices together, padding included, each held once.
        split: axes by dimension, empty for whole; None without a layout.
        bytes_per_device: of all of them on each device; None without a layout.
    """

    component: str
    pattern: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    split: str | None = None
    bytes_per_device: int | None = None

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint's tensors, padding not among them."""
        return self.count * math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return dataclasses.asdict(self) | {"shape": list(self.shape)}


def weight_rows(
    component: str, weights: Iterable[Weight], mesh_shape: Mapping[str, int] | None
) -> list[Row]:
    """A row per weight.

    Args:
        component: what the rows belong to.
        weights: a model's parameters.
        mesh_shape: sizes of the mesh axes; None leaves the split out.
    """
    return [
        Row(
            component=component,
            pattern=weight.name,
            count=len(weight.tensors),
            shape=weight.tensor_shape,
            dtype=str(np.dtype(weight.dtype)),
            num_bytes=weight.num_bytes,
            split=None if mesh_shape is None else _split(weight),
            bytes_per_device=None if mesh_shape is None else weight.bytes_per_device(mesh_shape),
        )
        for weight in weights
    ]


def tensor_rows(
    component: str, tensors: Mapping[str, tuple[int, ...]], dtype: Any, *, with_split: bool
) -> list[Row]:
    """A row per pattern and shape of tensors that every device holds whole (the VAE's)."""
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in tensors.items():
        key = (re.sub(r"\.\d+(?=\.)", ".*", name), shape)
        groups[key] = groups.get(key, 0) + 1
    rows = []
    for (pattern, shape), count in groups.items():
        num_bytes = count * math.prod(shape) * np.dtype(dtype).itemsize
        rows.append(
            Row(
                component=component,
                pattern=pattern,
                count=count,
                shape=shape,
                dtype=str(np.dtype(dtype)),
                num_bytes=num_bytes,
                split="" if with_split else None,
                bytes_per_device=num_bytes if with_split else None,
            )
        )
    return rows


def _split(weight: Weight) -> str:
    """The split in words, layer dimension left out: `tp+sp,-` is rows over tp and sp."""
    spec: PartitionSpec | tuple[Any, ...] = weight.spec
    parts = list(spec)[int(weight.stacked) :]
    if not any(parts):
        return ""
    return ",".join("-" if not p else p if isinstance(p, str) else "+".join(p) for p in parts)
