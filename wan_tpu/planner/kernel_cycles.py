"""Counts the cycles of an attention kernel in the compiler's own schedule, without a TPU.

libtpu can write the schedule of a program, bundle by bundle; one bundle is one cycle when nothing
stalls (docs/calibration.md). The kernel's largest region is one step of its
grid; the region inside it that holds most of it is the body, one tile of queries and keys. What is
around the body starts and ends a row of tiles, that is, the grid's last dimension. So

    cycles = body x steps of the grid + rest x rows of the grid.

That holds for kernels whose inner loops are unrolled, as splash's are: a rolled loop's body would
count once. Splash at 75,600 tokens on v6e: 10,557 + 1,214 bundles, 37 x 37 steps (2026-11-21).

libtpu reads its flags once, when it loads, so the count runs in a process of its own:
`python -m wan_tpu.planner.kernel_cycles v6e splash 75600 75600 75600 128 bfloat16`.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wan_tpu.errors import WanTpuError

TIMEOUT_SECONDS = 900


class KernelCountError(WanTpuError):
    """The compiler did not write the schedule, or it cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelCycles:
    """The count for one head of attention.

    Attributes:
        body_bundles: of one step of the grid.
        row_bundles: what starts and ends a row of steps.
        steps: of the grid, for one head.
        rows: of the grid: steps but for its last dimension.
    """

    body_bundles: int
    row_bundles: int
    steps: int
    rows: int

    @property
    def per_head(self) -> int:
        """Cycles for one head on one core."""
        return self.body_bundles * self.steps + self.row_bundles * self.rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """What decides the kernel: the chip, the implementation and the lengths of one head.

    Attributes:
        chip: name in `hardware.CHIPS`.
        implementation: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.
        queries: tokens.
        keys: tokens, padding included.
        num_keys: real keys.
        head_dim: features.
        dtype: of all three.
    """

    chip: str
    implementation: str
    queries: int
    keys: int
    num_keys: int
    head_dim: int
    dtype: str = "bfloat16"


def count_cycles(shape: KernelShape) -> KernelCycles:
    """Counts in a process of its own.

    Raises:
        KernelCountError: it failed; with the last words of that process.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags}
        arguments = [str(value) for value in dataclasses.astuple(shape)]
        process = subprocess.run(
            [sys.executable, "-m", "wan_tpu.planner.kernel_cycles", *arguments, folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    if process.returncode != 0:
        raise KernelCountError(f"the count of {shape} failed: {process.stderr.strip()[-500:]}")
    return KernelCycles(**json.loads(process.stdout.strip().splitlines()[-1]))


def read_schedule(folder: pathlib.Path) -> tuple[int, int]:
    """Bundles of a grid step, and of the body in it, of the largest kernel written into `folder`.

    Raises:
        KernelCountError: there is none.
    """
    programs = sorted(folder.glob("*-final_bundles.txt"), key=lambda p: p.stat().st_size)
    if not programs:
        raise KernelCountError(f"the compiler wrote no schedule into {folder}")
    with programs[-1].open(encoding="utf-8", errors="replace") as lines:
        regions = sorted(_regions(lines), key=lambda region: region[0] - region[1])  # largest first
    if not regions:
        raise KernelCountError(f"{programs[-1].name} has no regions")
    outer = body = regions[0]
    for start, end in regions[1:]:
        inside = body[0] <= start and end <= body[1]
        if inside and 2 * (end - start) > body[1] - body[0]:
            body = (start, end)
    return outer[1] - outer[0] + 1, body[1] - body[0] + 1


def _regions(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """First and last address of each region of a schedule."""
    starts: dict[str, int] = {}
    for line in lines:
        address = re.match(r"\s*(0x[0-9a-f]+|0)\s", line)
        if address is None:
            continue
        position = int(address[1], 16)
        starts.update(dict.fromkeys(re.findall(r"Start region (\d+)", line), position))
        for region in re.findall(r"End region (\d+)", line):
            if region in starts:
                yield starts[region], position


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


def _count_here(shape: KernelShape, folder: pathlib.Path) -> Mapping[str, int]:
    """Compiles one head of attention and reads the schedule that the compiler left in `folder`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from wan_tpu.attention.api import attend
    from wan_tpu.planner.compile import slice_devices
    from wan_tpu.planner.hardware import CHIPS, find_slice
    from wan_tpu.sharding.layout import Layout
    from wan_tpu.sharding.mesh import make_mesh, named

    smallest = f"{shape.chip}-{8 if CHIPS[shape.chip].counts_cores else 1}"
    mesh = make_mesh(Layout(), slice_devices(find_slice(smallest))[:1])

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attend(
            query, key, value,
            implementation=shape.implementation, num_keys=shape.num_keys,
            device=mesh.devices.flat[0],
        )  # fmt: skip

    def tokens(length: int) -> jax.ShapeDtypeStruct:
        size = (1, length, 1, shape.head_dim)
        return jax.ShapeDtypeStruct(size, jnp.dtype(shape.dtype), sharding=named(mesh))

    with jax.set_mesh(mesh):
        whole = PartitionSpec()
        sharded = jax.shard_map(
            attention, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        traced = jax.jit(sharded).trace(
            tokens(shape.queries), tokens(shape.keys), tokens(shape.keys)
        )
        traced.lower(lowering_platforms=("tpu",)).compile()
    step, body = read_schedule(folder)
    *rows, steps_of_row = grid_of(traced.jaxpr)
    return {
        "body_bundles": body,
        "row_bundles": step - body,
        "steps": math.prod(rows) * steps_of_row,
        "rows": math.prod(rows),
    }


def main() -> None:
    """Counts the kernel that the arguments describe; one line of JSON."""
    chip, implementation, queries, keys, num_keys, head_dim, dtype, *folder = sys.argv[1:]
    shape = KernelShape(
        chip=chip,
        implementation=implementation,
        queries=int(queries),
        keys=int(keys),
        num_keys=int(num_keys),
        head_dim=int(head_dim),
        dtype=dtype,
    )
    here = (
        _count_here(shape, pathlib.Path(folder[0]))
        if folder
        else dataclasses.asdict(count_cycles(shape))
    )
    sys.stdout.write(json.dumps(dict(here)) + "\n")


if __name__ == "__main__":
    main()
