"""Counts the cycles of an attention kernel in the compiler's own schedule, without a TPU.

libtpu can write the schedule of a program, bundle by bundle; one bundle is one cycle when nothing
stalls (docs/calibration.md). A part's bundles (`schedule.py`) count as often as it runs
(`kernels.py`):

* splash: the region that holds most of a step is one tile of queries and keys; what is around it
  starts and ends a row of tiles, that is, the grid's last dimension. Its inner loops are unrolled.
* flash: the branches and loops of `wan_tpu.attention.flash_kernel` and `flash_backward`. Splash's
  backward is not counted.

For 75,600 tokens on v6e, one head: splash 10,557 + 1,214 bundles, 37 x 37 steps, 14.5 million
cycles (2026-11-21); flash, of eight chunks of 9,472, 8.6 million (2026-11-27).

libtpu reads its flags once, when it loads, so the count runs in a process of its own:
`python -m wan_tpu.planner.kernel_cycles '{"chip": "v6e", "implementation": "splash", ...}'`.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from wan_tpu.attention.flash_blocks import Blocks, Order
from wan_tpu.attention.names import FLASH, FLASH_INT8
from wan_tpu.planner.kernels import (
    OWN,
    KernelCycles,
    KernelShape,
    backward_times,
    flash_times,
    short_times,
)
from wan_tpu.planner.schedule import (
    KernelCountError,
    backward_bundles,
    flash_bundles,
    read_schedule,
    short_bundles,
    splash_parts,
)

TIMEOUT_SECONDS = 900.0
"""Of one count, which takes five on a free core."""

_DUMP_FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
)
"""The last pass alone: all of them are 300 MB of text, and writing that took half of the time."""


def count_cycles(shape: KernelShape, *, timeout: float = TIMEOUT_SECONDS) -> KernelCycles:
    """Counts in a process of its own, with the user's flags for libtpu and ours after them.

    Args:
        shape: of the kernel.
        timeout: seconds after which the count is given up.

    Raises:
        KernelCountError: it failed, with the last words of that process, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {_DUMP_FLAGS.format(folder=folder)}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags.strip()}
        arguments = json.dumps(dataclasses.asdict(shape)), folder
        try:
            process = subprocess.run(
                [sys.executable, "-m", "wan_tpu.planner.kernel_cycles", *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KernelCountError(f"the count took more than {timeout:g} s") from None
    if process.returncode != 0:
        raise KernelCountError(f"the count of {shape} failed: {process.stderr.strip()[-500:]}")
    parts = json.loads(process.stdout.strip().splitlines()[-1])
    return KernelCycles(parts={name: tuple(part) for name, part in parts.items()})


def grid_of(closed_jaxpr: Any) -> tuple[int, ...]:
    """The grid of the one Pallas kernel in a traced function.

    Raises:
        KernelCountError: there is none, or more than one.
    """
    grids = list(_grids(closed_jaxpr.jaxpr))
    if len(grids) != 1 or not grids[0]:
        raise KernelCountError(f"expected one Pallas kernel with a grid, found {grids}")
    return tuple(int(size) for size in grids[0])


def _grids(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["grid_mapping"].grid
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _grids(inner)


def _count_here(shape: KernelShape, folder: pathlib.Path) -> KernelCycles:
    """Compiles one head of attention and reads the schedule that the compiler left in `folder`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from wan_tpu.attention.flash_backward import flash_backward
    from wan_tpu.attention.int8_keys import QuantizedKeys
    from wan_tpu.planner.compile import slice_devices
    from wan_tpu.planner.hardware import CHIPS, find_slice
    from wan_tpu.sharding.layout import Layout
    from wan_tpu.sharding.mesh import make_mesh, named

    smallest = f"{shape.chip}-{8 if CHIPS[shape.chip].counts_cores else 1}"
    mesh = make_mesh(Layout(), slice_devices(find_slice(smallest))[:1])

    def backward(query: jax.Array, key: jax.Array, logsumexp: jax.Array) -> tuple[jax.Array, ...]:
        return flash_backward(
            query, key, key, query, logsumexp, query,
            head_dim=shape.head_dim, num_keys=shape.num_keys, interpret=False,
        )  # fmt: skip

    def tokens(chunks: int, length: int) -> jax.ShapeDtypeStruct:
        size = (chunks, 1, length, shape.head_dim)
        return jax.ShapeDtypeStruct(size, jnp.dtype(shape.dtype), sharding=named(mesh))

    query = tokens(shape.query_chunks, shape.query_chunk)
    key: Any = tokens(shape.key_chunks, shape.key_chunk)
    value = key
    if shape.implementation == FLASH_INT8:
        scale: Any = jax.ShapeDtypeStruct((1, 1), jnp.float32, sharding=named(mesh))
        key = QuantizedKeys(value.update(dtype=jnp.int8), scale)
    logsumexp = jax.ShapeDtypeStruct((1, 1, shape.queries), jnp.float32, sharding=named(mesh))
    function, arguments = (
        (backward, (query, key, logsumexp))
        if shape.is_backward
        else (_forward(shape, mesh.devices.flat[0]), (query, key, value))
    )
    with jax.set_mesh(mesh):
        whole = PartitionSpec()
        sharded = jax.shard_map(
            function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        traced = jax.jit(sharded).trace(*arguments)
        traced.lower(lowering_platforms=("tpu",)).compile()
    step = read_schedule(folder)
    if shape.implementation not in OWN:
        return KernelCycles(parts=splash_parts(step, grid_of(traced.jaxpr)))
    if shape.is_short:
        bundles, times = short_bundles(step), short_times(shape)
    elif shape.is_backward:
        bundles, times = backward_bundles(step, shape.backward_blocks), backward_times(shape)
    else:
        bundles, times = flash_bundles(step, shape.blocks), flash_times(shape)
    return KernelCycles(parts={name: (bundles[name], times[name]) for name in bundles})


def _forward(shape: KernelShape, device: Any) -> Callable[..., Any]:
    """Attention of this shape, from arrays in chunks, for such a device."""
    from wan_tpu.attention.api import attend_chunks
    from wan_tpu.attention.flash import flash_attention
    from wan_tpu.attention.flash_int8 import flash_int8_chunks

    if shape.implementation in OWN:
        return functools.partial(
            flash_attention if shape.implementation == FLASH else flash_int8_chunks,
            head_dim=shape.head_dim,
            num_keys=shape.num_keys,
            interpret=False,
            device_kind=device.device_kind,
            blocks=None if shape.is_short else shape.blocks,
        )
    return functools.partial(
        attend_chunks,
        head_dim=shape.head_dim,
        implementation=shape.implementation,
        num_keys=shape.num_keys,
        device=device,
    )


def main() -> None:
    """Counts the kernel of a `KernelShape` in JSON; one line of JSON."""
    text, *folder = sys.argv[1:]
    fields = json.loads(text)
    if fields.get("tiles") is not None:
        order = Order(**fields["tiles"].pop("order"))
        fields["tiles"] = Blocks(**fields["tiles"], order=order)
    shape = KernelShape(**fields)
    count = _count_here(shape, pathlib.Path(folder[0])) if folder else count_cycles(shape)
    sys.stdout.write(json.dumps(dict(count.parts)) + "\n")


if __name__ == "__main__":
    main()
