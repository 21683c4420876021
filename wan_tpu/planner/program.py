"""What a compiled program does on each chip: every operation with its costs and how often it runs.

`read_program` takes the text of an optimised program and multiplies loops out: a tenth of a second
for the 14B step, so what is kept of a program is its text. The rules are in `costs.py`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from wan_tpu.planner.collectives import Collective, transfer_ended, transfer_started
from wan_tpu.planner.costs import Attention, CostReader, compiler_cycles
from wan_tpu.planner.hlo import Computation, Instruction, ProgramText, parse_program
from wan_tpu.planner.loops import Scalars, Value, loop_invariants, trip_count

KERNEL = "kernel"
"""The kind of what the compiler did not make: Pallas kernels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation outside fusions; costs are of one run of it, on one chip.

    Attributes:
        name: in the program.
        kind: `matmul` for fusions with a product, `kernel` for Pallas, a collective's name, else
            XLA's opcode.
        source: where JAX says it comes from.
        times: how often it runs, loops multiplied out.
        flops: of products, an attention kernel's too.
        int8_flops: those of them whose both sides are int8.
        plain_bytes: HBM bytes by the plain rule.
        hbm_bytes: HBM bytes by the sliced rule.
        compiler_cycles: the compiler's own estimate; 0 where it has none.
        collectives: transfers between chips.
        attention: shapes, of an attention kernel.
        waited_at: of a transfer that the program does not wait for at once: the position in
            `ProgramCosts.operations` before which it does.
    """

    name: str
    kind: str
    source: str = ""
    times: int = 1
    flops: int = 0
    int8_flops: int = 0
    plain_bytes: int = 0
    hbm_bytes: int = 0
    compiler_cycles: int = 0
    collectives: tuple[Collective, ...] = ()
    attention: Attention | None = None
    waited_at: int | None = None

    @property
    def link_bytes(self) -> int:
        """Bytes that the chip sends in one run."""
        return sum(c.link_bytes for c in self.collectives)

    def to_json(self) -> dict[str, Any]:
        """The operation as a JSON object; what is zero or absent is left out."""
        fields = dataclasses.asdict(self) | {
            "collectives": [
                dataclasses.asdict(c) | {"groups": [list(group) for group in c.groups]}
                for c in self.collectives
            ]
        }
        return {name: value for name, value in fields.items() if value}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCosts:
    """All operations of a program.

    Attributes:
        operations: those that cost something, in the order in which they run.
        unknown_loops: loops whose trip count the text does not say; their bodies count once.
    """

    operations: tuple[Operation, ...]
    unknown_loops: tuple[str, ...] = ()

    def total(self, name: str) -> int:
        """The sum over all operations of a cost, times how often each runs."""
        return sum(o.times * getattr(o, name) for o in self.operations)

    def collectives_by_kind(self) -> dict[str, dict[str, int]]:
        """Runs and bytes sent per chip, by kind of collective."""
        kinds: dict[str, dict[str, int]] = {}
        for operation in self.operations:
            for collective in operation.collectives:
                entry = kinds.setdefault(collective.kind, {"runs": 0, "link_bytes": 0})
                entry["runs"] += operation.times
                entry["link_bytes"] += operation.times * collective.link_bytes
        return kinds

    def breakdown(self, key: str = "kind") -> list[dict[str, Any]]:
        """Bytes, FLOPs and runs by `kind` or by `source`, most HBM bytes first."""
        groups: dict[str, dict[str, Any]] = {}
        for operation in self.operations:
            label = getattr(operation, key) or operation.name
            group = groups.setdefault(
                label,
                {
                    key: label,
                    "runs": 0,
                    "flops": 0,
                    "hbm_bytes": 0,
                    "plain_bytes": 0,
                    "link_bytes": 0,
                },
            )
            group["runs"] += operation.times
            for cost in ("flops", "hbm_bytes", "plain_bytes", "link_bytes"):
                group[cost] += operation.times * getattr(operation, cost)
        return sorted(groups.values(), key=lambda g: -g["hbm_bytes"])


@functools.lru_cache(maxsize=16)
def read_program(text: str) -> ProgramCosts:
    """Reads an optimised program's text (`jax.stages.Compiled.as_text()`).

    Raises:
        ProgramTextError: the text is not in the form that this jaxlib writes.
    """
    walk = _Walk(parse_program(text))
    walk.run()
    return ProgramCosts(operations=tuple(walk.operations), unknown_loops=tuple(walk.unknown_loops))


class _Walk:
    """Goes through what runs, from the entry down."""

    def __init__(self, program: ProgramText):
        self._program = program
        self._costs = CostReader(program)
        self.operations: list[Operation] = []
        self.unknown_loops: list[str] = []

    def run(self) -> None:
        self._computation(self._program.computations[self._program.entry], 1, ())

    def _computation(
        self, computation: Computation, times: int, arguments: tuple[Value, ...]
    ) -> None:
        scalars = Scalars(self._program, computation, arguments)
        started: dict[str, range] = {}
        for instruction in computation.instructions.values():
            before = len(self.operations)
            called = self._program.computations.get(instruction.called("calls") or "")
            ended = transfer_ended(computation, instruction, called)
            self._wait(started.pop(ended, range(0)))
            if instruction.opcode == "while":
                self._loop(instruction, times, scalars.value(instruction.operands[0]))
            elif instruction.opcode == "conditional":
                self._costliest_branch(instruction, times)
            elif instruction.opcode in ("call", "call-start", "async-start"):
                for name in self._callees(instruction):
                    values = tuple(scalars.value(operand) for operand in instruction.operands)
                    self._computation(self._program.computations[name], times, values)
            elif not self._costs.is_free(instruction):
                self._operation(computation, instruction, times)
            if name := transfer_started(instruction, called):
                started[name] = range(before, len(self.operations))
        for transfers in started.values():
            self._wait(transfers)

    def _wait(self, transfers: range) -> None:
        """Notes that what these operations send is waited for before the next operation."""
        for number in transfers:
            operation = self.operations[number]
            if operation.collectives and operation.waited_at is None:
                waited = dataclasses.replace(operation, waited_at=len(self.operations))
                self.operations[number] = waited

    def _callees(self, instruction: Instruction) -> Iterable[str]:
        """The computations that an operation names; of a conditional every branch."""
        if instruction.opcode == "conditional":
            branches = instruction.attribute("branch_computations")
            if branches:
                return [name.strip().lstrip("%") for name in branches.strip("{}").split(",")]
            both = (instruction.called("true_computation"), instruction.called("false_computation"))
            return [name for name in both if name]
        name = instruction.called("to_apply") or instruction.called("calls")
        return [name] if name else []

    def _costliest_branch(self, conditional: Instruction, times: int) -> None:
        """Counts one branch: one runs, the text does not say which, and the others wait for it."""
        before, costliest = len(self.operations), []
        for name in self._callees(conditional):
            self._computation(self._program.computations[name], times, ())
            branch = self.operations[before:]
            del self.operations[before:]
            costliest = max(costliest, branch, key=_flops_then_bytes)
        self.operations += costliest

    def _loop(self, loop: Instruction, times: int, start: Value) -> None:
        turns = trip_count(self._program, loop, start)
        if turns is None:
            self.unknown_loops.append(loop.name)
        inside = loop_invariants(self._program, loop, start)
        body = self._program.computations[loop.called("body") or ""]
        self._computation(body, times * (1 if turns is None else turns), (inside,))

    def _operation(self, computation: Computation, instruction: Instruction, times: int) -> None:
        costs = self._costs
        attention = costs.attention(computation, instruction)
        flops = attention.flops if attention else costs.flops(computation, instruction)
        collectives = tuple(costs.collectives(computation, instruction))
        operation = Operation(
            name=instruction.name,
            kind=_kind(instruction, flops, collectives),
            source=instruction.op_name,
            times=times,
            flops=flops,
            int8_flops=costs.flops(computation, instruction, "s8"),
            plain_bytes=costs.plain_bytes(computation, instruction),
            hbm_bytes=costs.sliced_bytes(computation, instruction),
            compiler_cycles=compiler_cycles(instruction),
            collectives=collectives,
            attention=attention,
        )
        if times and (
            operation.hbm_bytes or operation.plain_bytes or operation.flops or operation.link_bytes
        ):
            self.operations.append(operation)


def _flops_then_bytes(operations: Iterable[Operation]) -> tuple[int, int]:
    """What branches are compared by."""
    flops = sum(o.times * o.flops for o in operations)
    return flops, sum(o.times * o.hbm_bytes for o in operations)


def _kind(instruction: Instruction, flops: int, collectives: Sequence[Collective]) -> str:
    if instruction.opcode == "custom-call":
        return KERNEL
    if flops:
        return "matmul"
    return collectives[0].kind if collectives else instruction.opcode.removesuffix("-start")
