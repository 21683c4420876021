"""Weights of eight bits, read as they are meant.

An fp8 file of ComfyUI keeps a scale beside each weight, `q.scale_weight` or `q.weight_scale` for
`q.weight`: the weight is the product of both. What else it keeps is for arithmetic in fp8, and not
needed: the scale of a layer's input, the mark `scaled_fp8`, a note `comfy_quant` on the form.

Without any scale an fp8 file is a plain cast of the weights, which is what most of those around are
(Kijai's, ComfyUI's without `scaled` in the name): its numbers are taken as they stand. Wan's own
weights lie below 10 everywhere, and a scale is chosen so that the largest becomes 448: larger ones
without a scale have lost theirs.
"""

import json
import logging
import math
from collections.abc import Mapping

import numpy as np

from wan_tpu.checkpoints.renamed import RenamedSource
from wan_tpu.checkpoints.source import (
    EIGHT_BIT_FLOATS,
    FLOATS,
    Index,
    TensorSource,
)
from wan_tpu.errors import CheckpointError

logger = logging.getLogger(__name__)

_SCALES = {".scale_weight": ".weight", ".weight_scale": ".weight"}
"""What a scale's name ends with, and what that of its weight does."""
_INPUT_SCALES = (".scale_input", ".input_scale")
_MARK, _NOTE = "scaled_fp8", "comfy_quant"
_FORMS = ("float8_e4m3fn", "float8_e5m2")
_TOKENIZER = "spiece_model"
"""ComfyUI's text encoder has the tokenizer's file among the tensors."""
LARGEST_PLAIN = 100.0


def as_weights(source: TensorSource) -> TensorSource:
    """A source whose every tensor is a weight as it stands.

    Args:
        source: a file's tensors, as they are stored.

    Raises:
        CheckpointError: a tensor is of a dtype or a form that is not among those above; names it.
    """
    for name in source.shapes:
        if name.endswith(f".{_NOTE}"):
            _check_note(source, name)
    scales = {name: _weight_of(name) for name in source.shapes if _weight_of(name)}
    weights = weight_names(source)
    for name in weights:
        if source.dtypes[name] not in FLOATS + EIGHT_BIT_FLOATS:
            raise CheckpointError(
                f"{source.description}: {name} is {source.dtypes[name]}, and only "
                f"{', '.join(FLOATS)} and fp8 can be read as weights; take the model's files in "
                "bfloat16"
            )
    plain = RenamedSource(source, {name: name for name in weights})
    eight_bit = [name for name in weights if source.dtypes[name] in EIGHT_BIT_FLOATS]
    if scales:
        return _scaled(source, plain, scales, eight_bit)
    if eight_bit:
        _check_plain(plain, eight_bit)
    return plain


def weight_names(source: TensorSource) -> list[str]:
    """The tensors that are weights, and not scales or notes about others."""
    return [name for name in source.shapes if not _is_left_out(name) and not _weight_of(name)]


class ScaledSource:
    """Tensors of a source, some of them times a scale, in float32."""

    def __init__(self, source: TensorSource, scales: Mapping[str, np.ndarray]):
        """Reads nothing.

        Args:
            source: the tensors before they are scaled.
            scales: by the tensor's name: one number, or one per row; float32.
        """
        self._source = source
        self._scales = scales
        self.description = source.description
        self.shapes: Mapping[str, tuple[int, ...]] = source.shapes
        self.dtypes: Mapping[str, str] = {**source.dtypes, **dict.fromkeys(scales, "F32")}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        part = self._source.read(name, index)
        scale = self._scales.get(name)
        if scale is None:
            return part
        if scale.size > 1:
            scale = scale[index[0] if index else slice(None)]
            scale = scale.reshape(-1, *[1] * (part.ndim - 1))
        return part.astype(np.float32) * scale


def _scaled(
    source: TensorSource, plain: TensorSource, scales: Mapping[str, str], eight_bit: list[str]
) -> TensorSource:
    lonely = sorted(scale for scale, weight in scales.items() if weight not in plain.shapes)
    if lonely:
        raise CheckpointError(f"{source.description}: {lonely[0]} is the scale of no weight")
    lacking = sorted(set(eight_bit) - set(scales.values()))
    if lacking:
        raise CheckpointError(
            f"{source.description}: {lacking[0]} is fp8 and has no scale, though others have; the "
            "file is damaged or of a form that is not known; take the model's files in bfloat16"
        )
    found = {}
    for name, weight in scales.items():
        shape = plain.shapes[weight]
        value = np.asarray(source.read(name)).astype(np.float32).reshape(-1)
        per_row = shape[:1] and source.shapes[name] in ((shape[0],), (shape[0], 1))
        if value.size != 1 and not per_row:
            raise CheckpointError(
                f"{source.description}: {name} is {list(source.shapes[name])} for a weight of "
                f"{list(shape)}; one scale, or one per row, can be read; take the model's files in "
                "bfloat16"
            )
        if weight in found:
            raise CheckpointError(f"{source.description}: {weight} has two scales")
        found[weight] = value if value.size > 1 else value.reshape(())
    logger.info("%s: %d weights times their scales", source.description, len(found))
    return ScaledSource(plain, found)


def _check_plain(source: TensorSource, eight_bit: list[str]) -> None:
    """Refuses plain fp8 weights that have lost their scales, and says that they are plain."""
    matrices = [name for name in eight_bit if len(source.shapes[name]) == 2]
    if matrices:
        name = min(matrices, key=lambda each: (math.prod(source.shapes[each]), each))
        largest = np.abs(source.read(name).astype(np.float32)).max(initial=0)
        if not largest <= LARGEST_PLAIN:
            raise CheckpointError(
                f"{source.description}: {name} is fp8 with values up to {largest:g}, which only "
                "scales make weights, and the file has none; take the model's files in bfloat16"
            )
    logger.warning(
        "%s: %d tensors are fp8 without scales, read as they stand; bfloat16 files are finer",
        source.description,
        len(eight_bit),
    )


def _is_left_out(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in (_MARK, _NOTE, _TOKENIZER) or name.endswith(_INPUT_SCALES)


def _weight_of(name: str) -> str:
    """Whose scale this is; empty where it is none."""
    for scale, weight in _SCALES.items():
        if name.endswith(scale):
            return name.removesuffix(scale) + weight
    return ""


def _check_note(source: TensorSource, name: str) -> None:
    """Refuses a layer whose note tells of another form than fp8 with a scale."""
    try:
        note = json.loads(np.asarray(source.read(name)).astype(np.uint8).tobytes())
        form = note.get("format")
    except (ValueError, AttributeError):
        form = None
    if form not in _FORMS:
        raise CheckpointError(
            f"{source.description}: {name} tells of the form {form!r}; {' and '.join(_FORMS)} can "
            "be read; take the model's files in bfloat16"
        )
