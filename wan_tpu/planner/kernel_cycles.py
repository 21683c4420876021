"""Counts the cycles of an attention kernel in the compiler's own schedule, without a TPU.

libtpu can write the schedule of a program, bundle by bundle; one bundle is one cycle when nothing
stalls (docs/calibration.md). Its regions nest as the kernel's loops and branches do; the largest is
one step of the grid. A region's bundles are counted as often as it runs:

* splash: the region that holds most of a step is one tile of queries and keys; what is around it
  starts and ends a row of tiles, that is, the grid's last dimension. Its inner loops are unrolled.
* flash: its branches and loops in the order of its code, `wan_tpu.attention.flash`. A block that is
  done again is not counted.

For 75,600 tokens on v6e, one head (2026-11-21): splash 10,557 + 1,214 bundles, 37 x 37 steps, 14.5
million cycles; flash, of eight chunks of 9,472, 9.5 million.

libtpu reads its flags once, when it loads, so the count runs in a process of its own:
`python -m wan_tpu.planner.kernel_cycles '{"chip": "v6e", "implementation": "splash", ...}'`.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wan_tpu.attention.flash import Blocks, choose_blocks, valid_keys
from wan_tpu.errors import WanTpuError

TIMEOUT_SECONDS = 900


class KernelCountError(WanTpuError):
    """The compiler did not write the schedule, or it cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelCycles:
    """The count for one head of attention.

    Attributes:
        parts: bundles of each part of the schedule, and how often it runs.
    """

    parts: Mapping[str, tuple[int, int]]

    @property
    def per_head(self) -> int:
        """Cycles for one head on one core."""
        return sum(bundles * times for bundles, times in self.parts.values())


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
        query_chunks: chunks that the queries come in.
        key_chunks: likewise.
        dtype: of all three.
    """

    chip: str
    implementation: str
    queries: int
    keys: int
    num_keys: int
    head_dim: int
    query_chunks: int = 1
    key_chunks: int = 1
    dtype: str = "bfloat16"


def count_cycles(shape: KernelShape) -> KernelCycles:
    """Counts in a process of its own.

    Raises:
        KernelCountError: it failed; with the last words of that process.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags}
        arguments = json.dumps(dataclasses.asdict(shape)), folder
        process = subprocess.run(
            [sys.executable, "-m", "wan_tpu.planner.kernel_cycles", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    if process.returncode != 0:
        raise KernelCountError(f"the count of {shape} failed: {process.stderr.strip()[-500:]}")
    return KernelCycles(parts=json.loads(process.stdout.strip().splitlines()[-1]))


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A part of a schedule: what a loop, a branch or a step of the grid runs.

    Attributes:
        start: address of the first bundle.
        end: address of the last one.
        inside: regions directly inside, by address.
    """

    start: int
    end: int
    inside: "tuple[Region, ...]"

    @property
    def bundles(self) -> int:
        """How many, with what is inside."""
        return self.end - self.start + 1

    def largest(self, count: int) -> "tuple[Region, ...]":
        """The largest regions directly inside, by address.

        Raises:
            KernelCountError: there are fewer.
        """
        if len(self.inside) < count:
            raise KernelCountError(f"{count} regions were expected in {self}")
        largest = sorted(self.inside, key=lambda region: -region.bundles)[:count]
        return tuple(sorted(largest, key=lambda region: region.start))


def read_schedule(folder: pathlib.Path) -> Region:
    """One grid step of the largest kernel written into `folder`.

    Raises:
        KernelCountError: there is none.
    """
    programs = sorted(folder.glob("*-final_bundles.txt"), key=lambda p: p.stat().st_size)
    if not programs:
        raise KernelCountError(f"the compiler wrote no schedule into {folder}")
    with programs[-1].open(encoding="utf-8", errors="replace") as lines:
        spans = set(_spans(lines))
    if not spans:
        raise KernelCountError(f"{programs[-1].name} has no regions")
    return _nest(sorted(spans, key=lambda span: (span[0], -span[1])))


def _nest(spans: Sequence[tuple[int, int]]) -> Region:
    """The largest of the spans, sorted by start and then size, with those inside it."""

    def make(span: tuple[int, int]) -> Region:
        inside, end = [], span[0] - 1
        for other in spans:
            if other != span and span[0] <= other[0] and other[1] <= span[1] and other[0] > end:
                inside.append(make(other))
                end = other[1]
        return Region(*span, tuple(inside))

    return make(max(spans, key=lambda span: span[1] - span[0]))


def _spans(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
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


def splash_parts(step: Region, grid: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Parts of a kernel whose grid ends with the keys and whose tile holds most of a step."""
    body = step
    while body.inside and 2 * body.largest(1)[0].bundles > body.bundles:
        body = body.largest(1)[0]
    *rows, steps_of_row = grid
    return {
        "tile": (body.bundles, math.prod(rows) * steps_of_row),
        "row": (step.bundles - body.bundles, math.prod(rows)),
    }


def flash_parts(
    step: Region, blocks: Blocks, grid: tuple[int, ...], valid: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Parts of our own kernel.

    Args:
        step: of its grid.
        blocks: sizes of its tiles.
        grid: batch, heads, blocks of queries, blocks of keys.
        valid: real keys of each block of keys.
    """
    *rows, _ = grid
    num_rows = math.prod(rows)
    sizes = list(dict.fromkeys((blocks.compute, blocks.last_compute)))
    start, attend, finish = step.largest(3)
    (attempt,) = attend.largest(1)
    *loops, rest, again = attempt.largest(len(sizes) + 2)
    tiles = [loop.largest(1)[0].bundles for loop in loops]
    around = attend.bundles - sum(tiles) - rest.bundles - again.bundles
    parts = {
        "block of queries": (start.bundles + finish.bundles, num_rows),
        "step": (
            step.bundles - start.bundles - attend.bundles - finish.bundles,
            num_rows * len(valid),
        ),
        "block of keys": (around, num_rows * sum(v > 0 for v in valid)),
    }
    left = list(valid)
    for size, bundles in zip(sizes, tiles, strict=True):
        parts[f"tile of {size} keys"] = (bundles, num_rows * sum(v // size for v in left))
        left = [v % size for v in left]
    parts["partial tile"] = (rest.bundles, num_rows * sum(v > 0 for v in left))
    return parts


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


def _count_here(shape: KernelShape, folder: pathlib.Path) -> Mapping[str, tuple[int, int]]:
    """Compiles one head of attention and reads the schedule that the compiler left in `folder`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from wan_tpu.attention.api import attend_chunks
    from wan_tpu.planner.compile import slice_devices
    from wan_tpu.planner.hardware import CHIPS, find_slice
    from wan_tpu.sharding.layout import Layout
    from wan_tpu.sharding.mesh import make_mesh, named

    smallest = f"{shape.chip}-{8 if CHIPS[shape.chip].counts_cores else 1}"
    mesh = make_mesh(Layout(), slice_devices(find_slice(smallest))[:1])

    def attention(*arrays: jax.Array) -> jax.Array:
        return attend_chunks(
            *arrays,
            head_dim=shape.head_dim,
            implementation=shape.implementation,
            num_keys=num_keys,
            device=mesh.devices.flat[0],
        )

    def tokens(length: int, chunks: int) -> jax.ShapeDtypeStruct:
        size = (chunks, 1, length // chunks, shape.head_dim)
        return jax.ShapeDtypeStruct(size, jnp.dtype(shape.dtype), sharding=named(mesh))

    query, key = tokens(shape.queries, shape.query_chunks), tokens(shape.keys, shape.key_chunks)
    blocks = choose_blocks(query.shape[2], key.shape[2])
    valid = valid_keys(key.shape, shape.num_keys, blocks)
    num_keys = shape.num_keys
    if shape.implementation == "flash" and len(valid) == 1:
        # With one block of keys the compiler resolves branches, and the schedule has another form:
        # a second one is put before it, and counted as often as it is there, not at all.
        key, num_keys = tokens(2 * shape.keys, 2), shape.keys + shape.num_keys
    with jax.set_mesh(mesh):
        whole = PartitionSpec()
        sharded = jax.shard_map(
            attention, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        traced = jax.jit(sharded).trace(query, key, key)
        traced.lower(lowering_platforms=("tpu",)).compile()
    step, grid = read_schedule(folder), grid_of(traced.jaxpr)
    if shape.implementation != "flash":
        return splash_parts(step, grid)
    return flash_parts(step, blocks, grid, valid)


def main() -> None:
    """Counts the kernel of a `KernelShape` in JSON; one line of JSON."""
    shape, *folder = sys.argv[1:]
    shape = KernelShape(**json.loads(shape))
    parts = _count_here(shape, pathlib.Path(folder[0])) if folder else count_cycles(shape).parts
    sys.stdout.write(json.dumps(dict(parts)) + "\n")


if __name__ == "__main__":
    main()
