"""Which curve a model's step cache goes by, and a run's steps with what it says. No JAX."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wan_tpu import family
from wan_tpu.checkpoints.known import (
    BETWEEN_480P_AND_720P,
    WAN_TINY,
    WAN_TINY_TI2V,
    embedded_folders,
)
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import InputError
from wan_tpu.family import TRANSFORMER, ModelKind
from wan_tpu.request import VideoRequest
from wan_tpu.step_cache import (
    EASYCACHE,
    Blocks,
    Curve,
    StepCache,
    easycache_plan,
    known_curves,
    magcache_plan,
    read_curve,
)
from wan_tpu.transformer.config import TransformerConfig

if TYPE_CHECKING:
    from wan_tpu.pipeline.step_plan import PlannedStep

_PUBLISHED: Mapping[tuple[ModelKind, int], str] = {
    (family.TEXT_TO_VIDEO, 12): "wan2.1-t2v-1.3b",
    (family.TEXT_TO_VIDEO, 40): "wan2.1-t2v-14b",
    (family.TEXT_TO_VIDEO_A14B, 40): "wan2.2-t2v-a14b",
    (family.IMAGE_TO_VIDEO_A14B, 40): "wan2.2-i2v-a14b",
    (family.TEXT_IMAGE_TO_VIDEO, 24): "wan2.2-ti2v-5b",
}
"""By kind and heads; a model whose curve follows from the request, too, is in `_published`."""


def with_curve(description: ModelDescription, path: pathlib.Path | None) -> ModelDescription:
    """The model with a curve that was measured on it, in place of a published one.

    Args:
        description: of the model.
        path: of a file of `wan-tpu calibrate`; None for none.

    Raises:
        InputError: it is not there, not such a file, or of another transformer.
    """
    if path is None:
        return description
    curve = read_curve(path)
    sizes = sizes_of(description)
    if curve.transformer != sizes:
        raise InputError(
            f"{path} was measured on {curve.name}, a transformer of {_words(curve.transformer)}, "
            f"and {description.name} has {_words(sizes)}; make one with `wan-tpu calibrate "
            f"{description.name} -o {path.name}`"
        )
    return dataclasses.replace(description, curve=curve)


def sizes_of(description: ModelDescription) -> dict[str, int]:
    """What tells a model's transformers from those of another."""
    config = TransformerConfig.from_json(description.configs[TRANSFORMER])
    return {
        "transformers": len(description.kind.experts),
        "layers": config.num_layers,
        "heads": config.num_attention_heads,
        "head_dim": config.attention_head_dim,
        "ffn_dim": config.ffn_dim,
        "in_channels": config.in_channels,
    }


def find_cache(
    description: ModelDescription, request: VideoRequest
) -> tuple[StepCache, Curve | None] | None:
    """The step cache of a complete request, complete, and its curve; None where it has none.

    Raises:
        InputError: the model has no curve, or its own is of another schedule.
    """
    if request.step_cache is None:
        return None
    cache = StepCache.parse(request.step_cache)
    if cache.name == EASYCACHE:
        return cache.resolved(None), None
    curve = _curve_of(description, request)
    return cache.resolved(curve), curve


def with_cache(
    description: ModelDescription, request: VideoRequest, steps: "Sequence[PlannedStep]"
) -> "tuple[PlannedStep, ...]":
    """A run's steps with what the cache of its request says of their blocks.

    Where only the last steps of a schedule run, of a clip, each has the ratio of its place in the
    whole schedule; the first that run are computed as those of any run are.

    Raises:
        InputError: as of `find_cache`.
    """
    found = find_cache(description, request)
    if found is None:
        return tuple(steps)
    cache, curve = found
    turns = [len(list(turn)) for _, turn in itertools.groupby(steps, _turn)]
    if curve is None:
        plan, otherwise = easycache_plan(turns), Blocks.OPEN
    else:
        assert request.num_inference_steps is not None
        assert cache.threshold is not None
        assert cache.most_in_a_row is not None
        assert cache.retention is not None
        ratios = curve.ratios(request.num_inference_steps, max(step.batch for step in steps))
        plan = magcache_plan(
            ratios[-len(steps) :],
            turns,
            threshold=cache.threshold,
            most_in_a_row=cache.most_in_a_row,
            retention=cache.retention,
        )
        otherwise = Blocks.REUSED
    return tuple(
        dataclasses.replace(step, blocks=Blocks.COMPUTED if computed else otherwise)
        for step, computed in zip(steps, plan, strict=True)
    )


def told(cache: StepCache, computed: Sequence[bool]) -> dict[str, Any]:
    """What metadata say of a run with a step cache.

    Args:
        cache: complete.
        computed: of each step, whether its blocks ran.
    """
    letters = (Blocks.COMPUTED if each else Blocks.REUSED for each in computed)
    values = {
        name: getattr(cache, name)
        for name in ("threshold", "most_in_a_row", "retention")
        if getattr(cache, name) is not None
    }
    return {
        "name": cache.name,
        **values,
        "plan": "".join(letter.value for letter in letters),
        "computed": sum(computed),
        "steps": len(computed),
    }


def _turn(step: "PlannedStep") -> tuple[str, int]:
    """Steps of one transformer and one batch: what one leaves is for those alone."""
    return step.component, step.batch


def _curve_of(description: ModelDescription, request: VideoRequest) -> Curve:
    own = description.curve
    if own is None:
        name = _published(description, request)
        if name is None:
            raise InputError(
                f"magcache needs to know how the steps of {description.name} change, and there is "
                "no curve of it; make one with `wan-tpu calibrate MODEL -o ratios.json` and take "
                "--step-cache magcache@ratios.json, or take easycache, which needs none"
            )
        return known_curves()[name]
    for field in ("flow_shift", "scheduler"):
        measured, wanted = getattr(own, field), getattr(request, field)
        if measured != wanted:
            raise InputError(
                f"the ratios of {own.name} were measured with {field} {measured}, and the request "
                f"has {wanted}: other noise levels; leave {field} out, or calibrate with it"
            )
    return own


def _published(description: ModelDescription, request: VideoRequest) -> str | None:
    """The name of a model's curve among `known_curves`; None where there is none."""
    kind = description.kind
    embedded = embedded_folders()
    if description.folder is not None:
        for name in (WAN_TINY, WAN_TINY_TI2V):
            if description.folder == embedded.get(name):
                return f"{name}-image" if request.image is not None else name
    heads = sizes_of(description)["heads"]
    if (kind, heads) == (family.IMAGE_TO_VIDEO, 40):
        assert request.width is not None
        assert request.height is not None
        is_large = request.width * request.height >= BETWEEN_480P_AND_720P
        return "wan2.1-i2v-14b-720p" if is_large else "wan2.1-i2v-14b-480p"
    for (known, num_heads), name in _PUBLISHED.items():
        if kind.is_like(known) and num_heads == heads:
            has_picture = kind == family.TEXT_IMAGE_TO_VIDEO and request.image is not None
            return f"{name}-image" if has_picture else name
    return None


def _words(sizes: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name} {size}" for name, size in (sizes or {}).items())
