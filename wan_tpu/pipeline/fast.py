"""Which presets of few steps a model has, and a request that takes one. No JAX."""

import pathlib
from collections.abc import Sequence

import wan_tpu
from wan_tpu.checkpoints.known import WAN_TINY, embedded_folders
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.family import TRANSFORMER
from wan_tpu.fast import PRESETS, WAN_TINY_4, FastPreset
from wan_tpu.request import VideoRequest
from wan_tpu.transformer.config import TransformerConfig


def presets_of(description: ModelDescription) -> tuple[FastPreset, ...]:
    """The presets that a model can be run with, its own first.

    A model that is distilled itself has the preset that its files or its name say. Any other one
    of the same kind may be loaded with such weights, too, so that preset can be named.
    """
    own = list(own_presets(description))
    heads = TransformerConfig.from_json(description.configs[TRANSFORMER]).num_attention_heads
    others = [each for each in PRESETS if each.fits(description.kind, heads)]
    return (*own, *(each for each in others if each not in own))


def own_presets(description: ModelDescription) -> tuple[FastPreset, ...]:
    """Those of them that `fast` may take without being told which, the preferred one first.

    That of the model itself, or of adapters; with adapters the weights are as they should be.
    """
    if description.distilled is not None:
        return (description.distilled,)
    # A description without files, as the slices of a fleet send it, is known by its name.
    known_by = description.folder or description.name
    if known_by in (WAN_TINY, embedded_folders().get(WAN_TINY)):
        return (WAN_TINY_4,)
    heads = TransformerConfig.from_json(description.configs[TRANSFORMER]).num_attention_heads
    fitting = [each for each in PRESETS if each.fits(description.kind, heads)]
    folder = "" if description.folder is None else description.folder.name
    called = f"{pathlib.PurePath(description.name).name} {folder}"
    named = tuple(each for each in fitting if each.is_called_so(called))
    return named or tuple(each for each in fitting if each.adapters)


def find_preset(description: ModelDescription, fast: bool | str | None) -> FastPreset | None:
    """The preset that a request names; None where it asks for none.

    Args:
        description: of the model.
        fast: of the request.

    Raises:
        UnknownNameError: the model has no preset of that name.
        InputError: it has none that could be taken without a name.
    """
    if not fast:
        return None
    found = presets_of(description)
    if isinstance(fast, str):
        for preset in found:
            if preset.name == fast:
                return preset
        name = f"preset of few steps for {description.name}"
        raise UnknownNameError(name, fast, _names(found) or ("none",))
    own = own_presets(description)
    if own:
        return own[0]
    if found:
        there_is = f"with weights distilled to it one can be named: {', '.join(_names(found))}"
    else:
        there_is = f"there are {', '.join(_names((WAN_TINY_4, *PRESETS)))}, for other models"
    raise InputError(f"{description.name} is not distilled to few steps; {there_is}")


def with_preset(description: ModelDescription, request: VideoRequest) -> VideoRequest:
    """A request with all that its preset decides; the same where it asks for none.

    Raises:
        InputError: there is no such preset, or the request contradicts it.
    """
    preset = find_preset(description, request.fast)
    return request if preset is None else preset.apply(request, description.kind)


def embedded_adapters(preset: FastPreset | None) -> tuple[str, ...]:
    """The files of a preset's adapters that are in this package; a user's own are not."""
    if preset is None or preset.embedded is None:
        return ()
    return (str(pathlib.Path(wan_tpu.__file__).parent / preset.embedded),)


def _names(presets: Sequence[FastPreset]) -> tuple[str, ...]:
    return tuple(preset.name for preset in presets)
