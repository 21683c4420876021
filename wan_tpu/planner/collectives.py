"""Transfers between chips in a compiled program: which kind, between whom, how many bytes.

Bytes are what each device of a group of g sends: all-gather and reduce-scatter (g - 1)/g of the
whole array, all-reduce twice that, all-to-all (g - 1)/g of its operand, permute its operand. How
long that takes is `links.py`.

Three forms are asynchronous, the program goes on meanwhile: the `-start` and `-done` halves of an
operation, what a computation started by `async-start` or `call-start` (for a v7x's sparse cores)
holds, and a chain of fusions (libtpu's "async collective fusion"), of which the first starts the
collective, the last waits for it and products between carry it along. All of a chain's fusions hold
the same collective: it is booked on the one that starts it. `transfer_started` and `transfer_ended`
name the two ends of each.

A reduce-scatter, as gradients of sharded weights need it, stands in the text as an all-reduce and a
slice of it in one fusion, `all-reduce-scatter`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from wan_tpu.planner.hlo import Computation, Instruction, ProgramTextError, Type, leaves

ALL_TO_ALL = ("all-to-all", "ragged-all-to-all")
PERMUTE = ("collective-permute",)
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "collective-broadcast", *ALL_TO_ALL, *PERMUTE,
)  # fmt: skip

CHAIN_START, CHAIN_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
"""Custom calls in the first and in the last fusion of a chain."""

SCATTERING = "all-reduce-scatter"
"""What the computation of such a fusion is called."""

Groups = tuple[tuple[int, ...], ...]
"""Devices by their number in the program; of a permute, pairs of source and target."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A transfer between chips.

    Attributes:
        kind: one of `COLLECTIVES`.
        groups: who exchanges with whom.
        link_bytes: that each device sends.
    """

    kind: str
    groups: Groups
    link_bytes: int

    @property
    def group_size(self) -> int:
        """Devices of one group; 2 of a permute."""
        return len(self.groups[0])


def read_collective(
    computation: Computation, instruction: Instruction, num_devices: int
) -> Collective:
    """Reads an operation whose opcode is one of `COLLECTIVES`, or the start of one.

    Raises:
        ProgramTextError: its groups are written in a way that is not known.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.name.startswith(SCATTERING):
        kind = "reduce-scatter"
    operand = sum(a.num_bytes for k in computation.operand_kinds(instruction) for a in leaves(k))
    result = sum(a.num_bytes for a in leaves(result_kind(computation, instruction)))
    groups = read_groups(instruction, num_devices)
    size = len(groups[0])
    share = (size - 1) / size
    sent = {
        "all-gather": result * share,
        "all-reduce": 2 * operand * share,
        "reduce-scatter": operand * share,
        "all-to-all": operand * share,
        "ragged-all-to-all": operand * share,
    }.get(kind, operand)
    return Collective(kind=kind, groups=groups, link_bytes=round(sent))


def result_kind(computation: Computation, instruction: Instruction) -> Type:
    """What an operation returns; of an asynchronous one, what its done half returns."""
    if not instruction.opcode.endswith("-start"):
        return instruction.kind
    done = [u for u in computation.users(instruction.name) if u.opcode.endswith("-done")]
    return done[0].kind if done else instruction.kind


def transfer_started(instruction: Instruction, called: Computation | None) -> str:
    """The name, in its computation, of a transfer that goes on after an operation; else empty.

    Args:
        instruction: any.
        called: the computation that it calls.
    """
    if instruction.opcode.endswith("-start"):
        return instruction.name
    return _chain_of(called, CHAIN_START)


def transfer_ended(
    computation: Computation, instruction: Instruction, called: Computation | None
) -> str:
    """The name of the transfer that an operation waits for, as `transfer_started` gives it."""
    if not instruction.opcode.endswith("-done"):
        return _chain_of(called, CHAIN_DONE)
    start = computation.instructions[instruction.operands[0]]
    while start.opcode.endswith("-update"):
        start = computation.instructions[start.operands[0]]
    return start.name


def _chain_of(fused: Computation | None, target: str) -> str:
    """The chain of a fusion that holds such a custom call."""
    inside = fused.instructions.values() if fused is not None else ()
    if not any(i.custom_call_target == target for i in inside):
        return ""
    found = (re.search(r'chain_id="[^"]*"', i.attributes) for i in inside)
    return next((chain[0] for chain in found if chain), "")


def is_chained(instruction: Instruction) -> bool:
    """Whether a collective inside a fusion belongs to a chain of them."""
    return 'chain_id="' in instruction.attributes


def starts_chain(computation: Computation, instruction: Instruction) -> bool:
    """Whether it is in the fusion that starts its chain."""
    return any(u.custom_call_target == CHAIN_START for u in computation.users(instruction.name))


def read_groups(instruction: Instruction, num_devices: int) -> Groups:
    """The groups of a collective, in any of the forms that XLA writes.

    * `{{0,1},{2,3}}`: as they are, also as the pairs of a permute.
    * `[2,4]<=[8]`, `[4,2]<=[2,4]T(1,0)`: devices in order, reshaped, transposed, then cut.
    * `mesh['a'=2,'b'=4] {'b'}`: a grid of all devices and the axes that exchange; `'b':(2)2` is a
      part of an axis: 2 slower steps before it, 2 of its own. Other orders of the devices than
      their own stand between: `device_ids=([2,4]T(1,0))` or `device_ids=(0,2,1,3)`.
    * `{}` or nothing: all devices.

    Raises:
        ProgramTextError: it is none of these.
    """
    pairs = "source_target_pairs=" in instruction.attributes
    name = "source_target_pairs" if pairs else "replica_groups"
    found = re.search(rf"{name}=(.*?)(?:, (?!device_ids)[a-z_]+=|$)", instruction.attributes)
    text = found[1].strip() if found else "{}"
    if text == "{}":
        return (tuple(range(num_devices)),)
    if re.fullmatch(r"\{(\{[\d,]+\},?)+\}", text):
        return tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text))
    if found := re.fullmatch(r"\[(\d+),(\d+)\]<=(.*)", text):
        devices = _devices(found[3])
        if devices is not None:
            return _rows(devices.reshape(int(found[1]), int(found[2])))
    if found := re.fullmatch(r"mesh\[('[^\]]*)\](?:, device_ids=\((.*)\))?\s*\{([^}]*)\}", text):
        axes = re.findall(r"'([^']+)'=(\d+)", found[1])
        count = math.prod(int(size) for _, size in axes)
        devices = np.arange(count) if found[2] is None else _devices(found[2])
        if devices is not None and devices.size == count:
            return _mesh_groups(axes, devices, found[3])
    raise ProgramTextError(f"cannot read the groups of {instruction.name}: {text[:200]!r}")


def _devices(text: str) -> np.ndarray | None:
    """An order of devices: `0,2,1,3`, `[8]`, `[2,4]T(1,0)`; None for other text."""
    if re.fullmatch(r"\d+(,\d+)*", text):
        return np.array(_numbers(text))
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        return None
    sizes = _numbers(found[1])
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return (grid.transpose(_numbers(found[2])) if found[2] else grid).ravel()


def _mesh_groups(axes: Sequence[tuple[str, str]], devices: np.ndarray, exchanging: str) -> Groups:
    """Groups of a grid of devices along some of its axes, or parts of them."""
    parts = {
        name: (int(before), int(size)) if size else None
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", exchanging)
    }
    shape: list[int] = []
    moved = []
    for name, length in axes:
        whole = int(length)
        if name in parts:
            before, size = parts[name] or (1, whole)
            moved.append(len(shape) + 1)
            shape += [before, size, whole // before // size]
        else:
            shape.append(whole)
    grid = np.moveaxis(devices.reshape(shape), moved, range(-len(moved), 0))
    return _rows(grid.reshape(-1, math.prod(shape[axis] for axis in moved)))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _rows(grid: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in grid.tolist())
