"""What a layout costs on a slice that is not here: compile, read the program, estimate.

The names below are all that the rest of the project may know of the planner; `wan-tpu plan`,
`wan-tpu train` and the benchmarks are who does. The planner in turn knows the public names of the
pipeline. Importing this loads nothing else: `find_slice` needs no JAX, and a plan starts it for
itself.

* `find_slice(name)`: the slice of an accelerator type.
* `peak_flops(device_kind)`: of a device that is here, what MFU is a share of.
* `make_job(description, request, where, ...)`: what is planned, checked.
* `Planner(job, cache, report).plan(layouts)`: a row per layout, best first.
* `plan_switch(job, row, rank)`: what an adapter of a request costs on a row's layout.
* `plan_together(job, layout, counts)`: a step of several videos at once.
* `make_training_job(config, description, where, ...)`, `TrainingPlanner(job, cache, report)`,
  `format_training_table`, `training_to_json`: the same for a training.
* `FactsCache(folder)`: where compiled programs' facts are kept.
* `format_table`, `to_json`, `write_plot`: the rows for people, for programs, as a picture.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_tpu.planner.adapters import AdapterSwitch, plan_switch
    from wan_tpu.planner.compile import FactsCache
    from wan_tpu.planner.hardware import GIB, Slice, find_slice, peak_flops
    from wan_tpu.planner.job import STAGE_GROUPS, Job
    from wan_tpu.planner.plan import Planner, make_job
    from wan_tpu.planner.plot import require_matplotlib, write_plot
    from wan_tpu.planner.rows import LayoutPlan
    from wan_tpu.planner.table import format_table, to_json
    from wan_tpu.planner.together import TogetherPlan, plan_together
    from wan_tpu.planner.training import (
        TrainingJob,
        TrainingPlan,
        TrainingPlanner,
        make_training_job,
    )
    from wan_tpu.planner.training_table import format_training_table, training_to_json

__all__ = [
    "GIB",
    "STAGE_GROUPS",
    "AdapterSwitch",
    "FactsCache",
    "Job",
    "LayoutPlan",
    "Planner",
    "Slice",
    "TogetherPlan",
    "TrainingJob",
    "TrainingPlan",
    "TrainingPlanner",
    "find_slice",
    "format_table",
    "format_training_table",
    "make_job",
    "make_training_job",
    "peak_flops",
    "plan_switch",
    "plan_together",
    "require_matplotlib",
    "to_json",
    "training_to_json",
    "write_plot",
]

_MODULES = {
    "adapters": ("AdapterSwitch", "plan_switch"),
    "compile": ("FactsCache",),
    "hardware": ("GIB", "Slice", "find_slice", "peak_flops"),
    "job": ("STAGE_GROUPS", "Job"),
    "plan": ("Planner", "make_job"),
    "plot": ("require_matplotlib", "write_plot"),
    "rows": ("LayoutPlan",),
    "table": ("format_table", "to_json"),
    "together": ("TogetherPlan", "plan_together"),
    "training": ("TrainingJob", "TrainingPlan", "TrainingPlanner", "make_training_job"),
    "training_table": ("format_training_table", "training_to_json"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
