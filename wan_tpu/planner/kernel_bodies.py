"""Leaves the attention kernels out of a lowered program, for they are compiled and counted apart.

The compiler's last phase makes a schedule of each Pallas kernel, a third of what the 14B's step
takes to compile (17 of 43 s of processor time, 2026-11-27). What stands around a kernel follows
from its operands, its results and the VMEM that it reserves: its body is looked at in that phase
alone. So a program that is only read keeps kernels with nothing in them, and each kernel is
compiled once for all programs that have it, where its cycles are counted (`kernel_cycles.py`). That
a program is otherwise the same, operation for operation and byte for byte, is tested.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import pallas
from jax.extend.mlir import ir

from wan_tpu.planner.costs import KERNEL_TARGET, is_counted_kernel
from wan_tpu.stage import Stage

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "i8": "int8", "i32": "int32"}
"""By the names of element types; of our kernels' and splash's arrays."""


def with_empty_kernels(stage: Stage) -> jax.stages.Lowered:
    """Lowers a stage, without the bodies of its attention kernels."""

    # A function of its own: what JAX lowers of one it keeps, and gives to the next who asks.
    @functools.wraps(stage.function)
    def function(*arguments: Any) -> Any:
        return stage.function(*arguments)

    lowered = dataclasses.replace(stage, function=function).lower()
    for kernel in _kernels(lowered):
        if is_counted_kernel(kernel.attributes["kernel_name"].value):
            config = _config(kernel)
            empty = _config(_empty_kernel(kernel))
            config["custom_call_config"]["body"] = empty["custom_call_config"]["body"]
            with kernel.context:
                kernel.attributes["backend_config"] = ir.StringAttr.get(json.dumps(config))
    return lowered


def _config(kernel: Any) -> dict[str, Any]:
    return json.loads(kernel.attributes["backend_config"].value)


def _kernels(lowered: jax.stages.Lowered) -> list[Any]:
    """The operations that are Pallas kernels."""

    def inside(operation: Any) -> Iterator[Any]:
        if operation.name == "stablehlo.custom_call":
            yield operation
        for region in operation.regions:
            for block in region:
                for inner in block:
                    yield from inside(inner.operation)

    module: Any = lowered.compiler_ir("stablehlo")
    calls = inside(module.operation)
    return [c for c in calls if c.attributes["call_target_name"].value == KERNEL_TARGET]


def _empty_kernel(kernel: Any) -> Any:
    """A kernel that takes and returns the same arrays and does nothing."""
    inputs, outputs = _abstract(kernel.operands), _abstract(kernel.results)
    anywhere = pallas.BlockSpec(memory_space=pallas.ANY)
    call = pallas.pallas_call(
        lambda *_: None,
        out_shape=outputs,
        in_specs=[anywhere] * len(inputs),
        out_specs=[anywhere] * len(outputs),
    )
    (empty,) = _kernels(jax.jit(call).trace(*inputs).lower(lowering_platforms=("tpu",)))
    return empty


def _abstract(values: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    types = [ir.RankedTensorType(value.type) for value in values]
    return [jax.ShapeDtypeStruct(tuple(t.shape), _DTYPES[str(t.element_type)]) for t in types]
