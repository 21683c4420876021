"""How often a loop of a compiled program runs.

The TPU compiler writes no trip count next to a loop; it is in the condition (`i < 40`) and in the
body (`i + 2`: a windowed product takes two shards a turn). So both are evaluated, on the scalars
that are known at compile time.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from wan_tpu.planner.hlo import Computation, Instruction, ProgramText

Value = Any
"""An int, a bool, a tuple of values, or None for what is not known at compile time."""

MAX_TRIPS = 1 << 30

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "broadcast")
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.floordiv,
    "and": operator.and_,
    "or": operator.or_,
    "minimum": min,
    "maximum": max,
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


class Scalars:
    """Evaluates scalar integers of one computation.

    Args:
        program: the whole program, for what fusions call.
        computation: whose instructions are evaluated.
        arguments: values of its parameters.
    """

    def __init__(self, program: ProgramText, computation: Computation, arguments: Sequence[Value]):
        self._program = program
        self._computation = computation
        self._arguments = arguments
        self._known: dict[str, Value] = {}

    def value(self, name: str) -> Value:
        """The value of an instruction; None when it is not known."""
        if name not in self._known:
            self._known[name] = None  # a cycle cannot be known
            self._known[name] = self._evaluate(self._computation.instructions[name])
        return self._known[name]

    def _evaluate(self, instruction: Instruction) -> Value:
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "parameter":
            number = int(operands[0])
            return self._arguments[number] if number < len(self._arguments) else None
        if opcode == "constant":
            return _literal(operands[0])
        if opcode == "tuple":
            return tuple(self.value(name) for name in operands)
        if opcode == "get-tuple-element":
            whole, index = self.value(operands[0]), instruction.attribute("index")
            return whole[int(index)] if isinstance(whole, tuple) and index is not None else None
        if opcode in _SAME:
            return self.value(operands[0])
        if opcode == "fusion":
            inner = self._program.computations[instruction.called("calls") or ""]
            arguments = [self.value(name) for name in operands]
            return Scalars(self._program, inner, arguments).value(inner.root.name)
        if opcode == "compare":
            function = _COMPARE.get(instruction.attribute("direction") or "")
        else:
            function = _BINARY.get(opcode)
        values = [self.value(name) for name in operands] if function is not None else []
        if function is None or len(values) != 2 or not all(isinstance(v, int) for v in values):
            return None
        return function(*values)


def loop_invariants(program: ProgramText, loop: Instruction, start: Value) -> Value:
    """The values of a loop's state that no turn changes; None for the others."""
    if not isinstance(start, tuple):
        return None
    body = program.computations[loop.called("body") or ""]
    kept = []
    for index, name in enumerate(body.root.operands):
        source = body.instructions[name]
        same = source.opcode == "get-tuple-element" and source.attribute("index") == str(index)
        kept.append(start[index] if same else None)
    return tuple(kept)


def trip_count(program: ProgramText, loop: Instruction, start: Value) -> int | None:
    """How often the body of a `while` runs, for counters that move evenly.

    Args:
        program: the program.
        loop: a `while` instruction.
        start: its operand's value.

    Returns:
        None when the text does not say.
    """
    condition = program.computations[loop.called("condition") or ""]
    body = program.computations[loop.called("body") or ""]
    if not isinstance(start, tuple):
        return None
    after = Scalars(program, body, [start]).value(body.root.name)
    if not isinstance(after, tuple):
        return None

    def goes_on(turns: int) -> Value:
        state = tuple(
            first + turns * (second - first)
            if isinstance(first, int) and isinstance(second, int)
            else None
            for first, second in zip(start, after, strict=True)
        )
        return Scalars(program, condition, [state]).value(condition.root.name)

    low, high = 0, 1  # goes on at low - 1, not at high
    while goes_on(high):
        low, high = high + 1, 2 * high
        if high > MAX_TRIPS:
            return None
    if goes_on(0) is None or goes_on(high) is None:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if goes_on(middle) else (low, middle)
    return low


def _literal(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    digits = text.removeprefix("-")
    return int(text) if digits.isdigit() else None
