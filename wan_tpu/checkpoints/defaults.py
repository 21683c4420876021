"""What a model's folder says about how it is run, and what is Wan's where it says nothing.

In this order: `generation_defaults.json`, which is this library's own; the class and the shift of
`scheduler/scheduler_config.json`; Wan's defaults for the kind of model. Except for one value: Wan's
converter writes a `flow_shift` of 3 into nearly every folder, which Wan itself runs with 5 (or 12),
so that 3 beside UniPC says nothing.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.checkpoints.files import read_json
from wan_tpu.checkpoints.known import WAN_SCHEDULER, KnownModel, wan_defaults
from wan_tpu.errors import CheckpointError, InputError
from wan_tpu.family import ModelKind
from wan_tpu.request import GenerationDefaults, VideoRequest

logger = logging.getLogger(__name__)

DEFAULTS_FILE = "generation_defaults.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
WANS = "Wan"
CONVERTERS_SHIFT = 3.0

_CLASSES = {
    "UniPCMultistepScheduler": ("unipc", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("euler", "shift"),
}
"""The scheduler that each of diffusers' classes is here, and what it calls the shift."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderDefaults:
    """How a model is run.

    Attributes:
        defaults: what a request leaves open.
        origins: by the name of a default: the file that says so, or `WANS`.
        scheduler: the configuration of the scheduler, of a class that is implemented.
    """

    defaults: GenerationDefaults
    origins: Mapping[str, str]
    scheduler: Mapping[str, Any]


def wan_origins() -> dict[str, str]:
    """Every default is Wan's."""
    names = [field.name for field in dataclasses.fields(GenerationDefaults)]
    return {name.removesuffix("_by_area"): WANS for name in names}


def read_defaults(
    folder: pathlib.Path,
    kind: ModelKind,
    transformer: Mapping[str, Any],
    *,
    called: str = "",
    official: KnownModel | None = None,
) -> FolderDefaults:
    """The defaults of a folder in diffusers format.

    Args:
        folder: of the model.
        kind: of the model.
        transformer: its configuration; by its size Wan's defaults differ.
        called: names that the model has, where they differ by nothing else.
        official: which of Wan's own it is, whose scheduler's file is not what Wan runs.

    Raises:
        CheckpointError: a file is missing, or has a value that cannot be.
    """
    defaults, origins = wan_defaults(kind, transformer, called), wan_origins()
    config: Mapping[str, Any] = read_json(folder / SCHEDULER_FILE)
    if official is not None:
        defaults = official.defaults
    else:
        defaults, changed = _follow_scheduler(defaults, config, str(folder / SCHEDULER_FILE))
        origins |= dict.fromkeys(changed, SCHEDULER_FILE)
    if config.get("_class_name", "UniPCMultistepScheduler") not in _CLASSES:
        origins["scheduler"] = f"{WANS}, instead of the folder's {config['_class_name']}"
        config = WAN_SCHEDULER
    if (folder / DEFAULTS_FILE).is_file():
        defaults, changed = _follow_file(defaults, kind, folder / DEFAULTS_FILE)
        origins |= dict.fromkeys(changed, DEFAULTS_FILE)
    return FolderDefaults(defaults=defaults, origins=origins, scheduler=config)


def log_origins(name: str, defaults: GenerationDefaults, origins: Mapping[str, str]) -> None:
    """Says once what is not Wan's, or is and the folder would have it otherwise."""
    for origin in sorted(set(origins.values()) - {WANS}):
        names = [each for each, where in origins.items() if where == origin]
        values = ", ".join(f"{each} {_shown(defaults, each)}" for each in names)
        logger.info("%s: defaults from %s: %s", name, origin, values)


def _shown(defaults: GenerationDefaults, name: str) -> Any:
    if name != "flow_shift":
        return repr(getattr(defaults, name))
    shifts = [f"{s:g} from {p} pixels" if p else f"{s:g}" for p, s in defaults.flow_shift_by_area]
    return ", ".join(shifts)


def _follow_scheduler(
    defaults: GenerationDefaults, config: Mapping[str, Any], where: str
) -> tuple[GenerationDefaults, list[str]]:
    """The defaults with the folder's scheduler and shift, and the names of those."""
    class_name = config.get("_class_name", "UniPCMultistepScheduler")
    scheduler, shift_name = _CLASSES.get(class_name, ("", "flow_shift"))
    if not scheduler:
        logger.warning(
            "%s names a %s, which is not implemented: %s runs instead",
            where,
            class_name,
            defaults.scheduler,
        )
    changed = []
    if scheduler and scheduler != defaults.scheduler:
        defaults = dataclasses.replace(defaults, scheduler=scheduler)
        changed.append("scheduler")
    shift = config.get(shift_name)
    if shift is None and scheduler == "euler":
        shift = 1.0  # the class's own default
    if shift is None or (shift == CONVERTERS_SHIFT and scheduler != "euler"):
        return defaults, changed
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 1e-3 <= shift <= 100:
        raise CheckpointError(
            f"{where}: {shift_name} must lie between 0.001 and 100, got {shift!r}"
        )
    changed.append("flow_shift")
    return dataclasses.replace(defaults, flow_shift_by_area=((0, float(shift)),)), changed


def _follow_file(
    defaults: GenerationDefaults, kind: ModelKind, path: pathlib.Path
) -> tuple[GenerationDefaults, list[str]]:
    """The defaults with those of the model's own file; its flow shift is for all sizes."""
    values = read_json(path)
    names = list(values)
    shift = values.pop("flow_shift", None)
    known = {f.name for f in dataclasses.fields(GenerationDefaults)} - {"flow_shift_by_area"}
    if len(kind.experts) == 1:
        known.remove("guidance_scale_2")
    unknown = sorted(values.keys() - known)
    if unknown:
        raise CheckpointError(
            f"{path}: unknown {unknown[0]!r}; known: {', '.join(sorted(known | {'flow_shift'}))}"
        )
    fields = read_fields(GenerationDefaults, values, f"file {path}")
    try:
        if shift is not None:
            fields["flow_shift_by_area"] = ((0, float(shift)),)
            if not math.isfinite(float(shift)):
                raise InputError(f"flow_shift must be a number, got {shift}")
        defaults = dataclasses.replace(defaults, **fields)
        VideoRequest(prompt="default").resolved(defaults)
    except (InputError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return defaults, names
