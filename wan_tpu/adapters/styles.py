"""Reads an adapter's file, of whichever tool, into the one form; every key is used or named.

The scale of factors is alpha / rank. Alpha stands beside the factors, or in the JSON that PEFT and
diffusers write, or nowhere: then it is the rank. A PEFT file without its JSON is refused, since its
scale cannot be known.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping

from safetensors import safe_open

from wan_tpu.adapters.form import Adapter
from wan_tpu.adapters.keys import ALPHA, DIFF, DOWN, MAGNITUDE, UP, Key, read_key
from wan_tpu.adapters.parts import read_numbers, read_parts, read_shape
from wan_tpu.adapters.scales import read_scales
from wan_tpu.adapters.strangers import describe_names, other_form
from wan_tpu.checkpoints.files import pointer_hint, some
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.errors import CheckpointError

_TELL_NOTHING = (ALPHA, DIFF, MAGNITUDE)
"""Parts that several styles write alike."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterFile:
    """What a file holds.

    Attributes:
        path: of it.
        digest: `sha256:` and 64 hexadecimal digits, of the whole file; empty where numbers were
            not read.
        style: what its way of writing is called.
        header: texts that its writer left in it.
        adapters: by the expert that the keys name; under None what they leave open.
    """

    path: pathlib.Path
    digest: str
    style: str
    header: Mapping[str, str]
    adapters: Mapping[str | None, Adapter]


def read_adapter(path: pathlib.Path, *, with_numbers: bool = True) -> AdapterFile:
    """Reads a file whole, or what it is.

    Args:
        path: of a safetensors file; PEFT's with its `adapter_config.json` beside it.
        with_numbers: else all of them but alphas are zeros, and nothing large is read.

    Raises:
        CheckpointError: it is damaged, of another model or of a form that is not implemented, has a
            key that belongs to nothing, factors that do not fit each other, or NaN.
    """
    source = SafetensorsSource(path)
    names = list(source.shapes)
    form = other_form(names)
    if form is not None:
        raise CheckpointError(
            f"{path} is {form[0]} ({form[1]}), which is not implemented; LoRA, LoHa, LoKr and DoRA "
            "can be read"
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
    scales = read_scales(path, header, keys)
    read = read_numbers if with_numbers else read_shape
    adapters = {
        expert: read_parts(source, [key for key in keys if key.expert == expert], scales, read)
        for expert in sorted({key.expert for key in keys}, key=str)
    }
    return AdapterFile(
        path=path,
        digest=file_digest(path) if with_numbers else "",
        style=next((key.style for key in keys if key.part not in _TELL_NOTHING), keys[0].style),
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


def file_digest(path: pathlib.Path) -> str:
    """`sha256:` and 64 hexadecimal digits, of a whole file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        reason = pointer_hint(path) or f"cannot be read: {error.strerror}"
        raise CheckpointError(f"{path} {reason}") from None
