"""What an adapter's file is, without its numbers: forms, ranks, targets, and the models it fits."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from wan_tpu.adapters.experts import expert_of_file
from wan_tpu.adapters.fit import Shapes, fit_adapter
from wan_tpu.adapters.form import Adapter
from wan_tpu.adapters.styles import AdapterFile, read_adapter
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.errors import CheckpointError

_BLOCK = re.compile(r"^blocks\.\d+\.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """A model that an adapter may fit.

    Attributes:
        name: of it.
        shapes: of its transformer's tensors; experts are alike.
        num_experts: 1 or 2.
    """

    name: str
    shapes: Shapes
    num_experts: int


def describe_adapter(path: pathlib.Path, models: list[ModelShapes]) -> dict[str, Any]:
    """An account of a file, for people and programs; reads its header and alphas.

    Args:
        path: of one file.
        models: each is told whether the adapter fits it, why not, and what of it is left out.

    Raises:
        CheckpointError: see `read_adapter`; NaN is not looked for.
    """
    file, source = read_adapter(path, with_numbers=False), SafetensorsSource(path)
    expert, why = expert_of_file(file)
    return {
        "file": str(path),
        "style": file.style,
        "bytes": path.stat().st_size,
        "keys": len(source.shapes),
        "dtypes": dict(collections.Counter(sorted(source.dtypes.values()))),
        "expert": expert,
        "expert_from": why,
        "parts": [{"expert": named, **_part(adapter)} for named, adapter in file.adapters.items()],
        "models": {model.name: fit_of(file, model) for model in models},
        "header": dict(file.header),
    }


def _part(adapter: Adapter) -> dict[str, Any]:
    """Of the keys for one transformer."""
    forms = collections.Counter(map(adapter.form_of, adapter.factors))
    alphas = {each.alpha for each in adapter.factors.values()}
    ranks = {each.rank for each in adapter.factors.values()}
    targets = collections.Counter(
        _BLOCK.sub("", name).removesuffix(".weight") for name in sorted(adapter.factors)
    )
    return {
        "described": adapter.described,
        "forms": dict(forms),
        "ranks": sorted(rank for rank in ranks if rank is not None),
        "alphas": sorted(alpha for alpha in alphas if alpha is not None),
        "scales": sorted({each.scale for each in adapter.factors.values()}),
        "targets": dict(targets),
        "whole_tensors": dict(
            collections.Counter(_BLOCK.sub("", name) for name in sorted(adapter.differences))
        ),
    }


def fit_of(file: AdapterFile, model: ModelShapes) -> Mapping[str, Any]:
    """Whether a file fits a model: `fits`, `why_not` (None, or a line) and what is `left_out`."""
    left_out: dict[str, None] = {}
    named = [expert for expert in file.adapters if expert is not None]
    try:
        if named and model.num_experts == 1:
            raise CheckpointError(f"its keys name an expert, and {model.name} has one transformer")
        for adapter in file.adapters.values():
            fitted = fit_adapter(
                adapter, model.shapes,
                num_experts=model.num_experts, where=str(file.path), model=model.name,
            )  # fmt: skip
            left_out |= dict.fromkeys(fitted.left_out)
    except CheckpointError as error:
        return {"fits": False, "why_not": str(error), "left_out": []}
    return {"fits": True, "why_not": None, "left_out": list(left_out)}
