"""Whether an adapter is of a model: every tensor that it changes is there, and of its shape."""

import dataclasses
import math
import re
from collections.abc import Mapping

from wan_tpu.adapters.form import Adapter
from wan_tpu.checkpoints.files import some
from wan_tpu.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

_PICTURES = re.compile(r"\.(?:add_k_proj|add_v_proj|norm_added_k)\.|\.image_embedder\.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_WIDTHS = {1536: "Wan 2.1 1.3B", 3072: "Wan 2.2 TI2V-5B", 5120: "Wan 2.1 14B and 2.2 A14B"}
"""Of the residual stream."""


_TEXTS = re.compile(r"\.attn2\.to_[kv]\.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """An adapter as it is added to a transformer.

    Attributes:
        adapter: what of it is added; every tensor is there.
        left_out: tensors that it changes and the model has not, in the order of blocks.
        note: what a user may not expect, to follow other words; empty for nothing.
    """

    adapter: Adapter
    left_out: tuple[str, ...] = ()
    note: str = ""


def fit_adapter(
    adapter: Adapter, shapes: Shapes, *, num_experts: int, where: str, model: str
) -> Fitted:
    """An adapter for a model, or its refusal.

    Wan 2.2's A14B models have the shapes of 2.1's 14B, whose adapters are used on them, but for
    the parts that read an image's tokens; those of an adapter are left out. An adapter of a
    text-to-video model changes nothing of such parts where the model has them.

    Args:
        adapter: to be added.
        shapes: of the transformer's tensors, by diffusers' names.
        num_experts: of the model.
        where: what messages call the adapter.
        model: what they call the model.

    Raises:
        CheckpointError: see `check_fits`.
    """
    left_out: tuple[str, ...] = ()
    note = ""
    pictures = {name for name in adapter.names if _PICTURES.search(name)}
    if num_experts > 1 and pictures < adapter.names and not pictures & shapes.keys():
        adapter, left_out = adapter.without(pictures), tuple(sorted(pictures, key=_in_order))
    check_fits(adapter, shapes, where=where, model=model)
    if left_out:
        note = (
            f"; {len(left_out)} tensors for image tokens, which {model} does not read, are left "
            f"out: {some(list(left_out))}"
        )
    elif not pictures and all(
        any(map(pattern.search, names))
        for pattern, names in ((_TEXTS, adapter.names), (_PICTURES, shapes))
    ):
        note = "; it changes nothing of what reads image tokens, as one of text to video"
    return Fitted(adapter=adapter, left_out=left_out, note=note)


def check_fits(adapter: Adapter, shapes: Shapes, *, where: str, model: str) -> None:
    """Refuses an adapter of another model.

    Args:
        adapter: to be added.
        shapes: of the transformer's tensors, by diffusers' names.
        where: what messages call the adapter.
        model: what they call the model.

    Raises:
        CheckpointError: names the tensors that are not there or of another shape, and says which
            model the adapter seems to be of.
    """
    missing = sorted(adapter.names - shapes.keys(), key=_in_order)
    if missing:
        raise CheckpointError(f"{where} {_of_another(missing, shapes, model)}: {some(missing)}")
    for name, factors in adapter.factors.items():
        rows, columns = factors.shape
        if (rows, columns) != (shapes[name][0], math.prod(shapes[name][1:])):
            raise CheckpointError(
                f"{where}: {name} of {model} is {list(shapes[name])} and the adapter's factors "
                f"make one of [{rows}, {columns}]{_width(adapter)}"
            )
    for name, magnitude in adapter.magnitudes.items():
        if len(shapes[name]) != 2:
            raise CheckpointError(
                f"{where} is a DoRA of {name}, which is no matrix, and that is not implemented"
            )
        rows, columns = shapes[name]
        if magnitude.shape not in ((rows,), (rows, 1), (1, columns)):
            raise CheckpointError(
                f"{where}: {name} of {model} is {list(shapes[name])} and the norms of its DoRA are "
                f"{list(magnitude.shape)}; expected [{rows}, 1] or [1, {columns}]"
            )
    for name, difference in adapter.differences.items():
        if not _same_but_ones(difference.shape, shapes[name]):
            channels = ""
            if name == "patch_embedding.weight" and difference.ndim == 5:
                channels = f"; it fits models of {difference.shape[1]} input channels"
            raise CheckpointError(
                f"{where}: {name} of {model} is {list(shapes[name])} and the adapter's is "
                f"{list(difference.shape)}{channels or _width(adapter)}"
            )


def _of_another(missing: list[str], shapes: Shapes, model: str) -> str:
    """What an adapter seems to be of, by what a model has not."""
    if all(map(_PICTURES.search, missing)):
        return f"fits Wan 2.1's image-to-video models, and {model} reads no image tokens"
    blocks = [int(found[1]) for name in missing if (found := _BLOCK.match(name))]
    ours = 1 + max(int(found[1]) for name in shapes if (found := _BLOCK.match(name)))
    if blocks and max(blocks) >= ours:
        return f"is of a model of at least {max(blocks) + 1} blocks, and {model} has {ours}"
    return f"changes what {model} does not have"


def _width(adapter: Adapter) -> str:
    """The model that an adapter's width is of, where it can be seen; else empty."""
    for name, factors in adapter.factors.items():
        if name.endswith((".attn1.to_q.weight", ".ffn.net.0.proj.weight")):
            width = factors.shape[1]
            return f"; it is of a model of width {width}" + (
                f", as {_WIDTHS[width]}" if width in _WIDTHS else ""
            )
    return ""


def _same_but_ones(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes differ in dimensions of 1 alone: `[6, dim]` and `[1, 6, dim]`."""
    return [n for n in shape if n != 1] == [n for n in other if n != 1]


def _in_order(name: str) -> tuple[int, str]:
    found = _BLOCK.match(name)
    return (int(found[1]) if found else -1, name)
