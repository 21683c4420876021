"""Reads the text of an optimised XLA program into computations, instructions and array types.

Only the form is known here (`jax.stages.Compiled.as_text()` of jaxlib 0.10); what an operation
costs is `costs.py`, how often it runs is `loops.py`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from wan_tpu.errors import WanTpuError

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
"""Bits of an element; every `f8...` is 8 and `f4...` 4."""

HBM = 0
"""Memory space of an array without `S(n)`; 1 is VMEM, others are scalar and semaphore memories."""


class ProgramTextError(WanTpuError):
    """The program's text is not in the form that this jaxlib writes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """An array type as the compiler laid it out.

    Attributes:
        dtype: XLA's name.
        dims: sizes, logical order.
        minor_to_major: dimensions from fastest to slowest; empty when the text has no layout.
        tile: sizes of the first tile over the minor dimensions; empty for none.
        space: memory space, `HBM` or another.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def elements(self) -> int:
        """Number of elements, padding not counted."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return -(-self.elements * _bits(self.dtype) // 8)

    @property
    def padded_bytes(self) -> int:
        """Bytes as it lies in memory: the minor dimensions filled up to whole tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        sizes = [self.dims[dim] for dim in order]
        sizes += [1] * (len(self.tile) - len(sizes))
        for position, tile in enumerate(reversed(self.tile)):
            sizes[position] = -(-sizes[position] // tile) * tile
        return -(-math.prod(sizes) * _bits(self.dtype) // 8)


Type = Array | tuple["Type", ...]


def leaves(kind: Type) -> Iterator[Array]:
    """The arrays of a type, tuples opened."""
    if isinstance(kind, Array):
        yield kind
    else:
        for part in kind:
            yield from leaves(part)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One operation.

    Attributes:
        name: unique in its computation.
        kind: what it returns.
        opcode: XLA's, for example `fusion`.
        operands: names of instructions of the same computation; the literal of a constant.
        attributes: the rest of the line.
    """

    name: str
    kind: Type
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The text of a simple attribute: up to the next comma outside braces and brackets."""
        found = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if found is None else next(_split(self.attributes[found.end() :]))

    def called(self, name: str) -> str | None:
        """The computation that an attribute names."""
        value = self.attribute(name)
        return None if value is None else value.strip().lstrip("%")

    @property
    def custom_call_target(self) -> str:
        """What a custom call runs; empty for other operations."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where the operation comes from, as JAX wrote it; empty when nothing says."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def array(self) -> Array:
        """The result of an operation that returns one array."""
        assert isinstance(self.kind, Array), f"{self.name} returns a tuple"
        return self.kind


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """A list of instructions, in the order they run."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @property
    def parameters(self) -> list[Instruction]:
        """Parameters by number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.operands[0]))

    def operand_kinds(self, instruction: Instruction) -> list[Type]:
        """Types of an instruction's operands."""
        return [self.instructions[name].kind for name in instruction.operands]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take `name`."""
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramText:
    """A whole program.

    Attributes:
        computations: by name.
        entry: name of the one that runs first.
        num_devices: it is partitioned over.
    """

    computations: Mapping[str, Computation]
    entry: str
    num_devices: int


def parse_program(text: str) -> ProgramText:
    """Reads a program.

    Raises:
        ProgramTextError: it has no entry, or an instruction is written otherwise.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    header: str | None = None
    body: list[str] = []
    for line in text.splitlines():
        if header is None:
            if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
                header, body = line, []
        elif line.startswith("}") and not line.startswith("}}"):
            computation = _parse_computation(header, body)
            computations[computation.name] = computation
            entry = computation.name if header.startswith("ENTRY ") else entry
            header = None
        elif line.startswith(("  %", "  ROOT %")):
            body.append(line)
        elif body:
            body[-1] += " " + line  # an attribute with a line break in it
    if not entry:
        raise ProgramTextError("the program's text has no entry computation")
    devices = math.prod(
        int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", text[:100_000])
    )
    return ProgramText(computations=computations, entry=entry, num_devices=devices)


def _parse_computation(header: str, body: list[str]) -> Computation:
    name = header.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
    instructions = {}
    root = None
    for line in body:
        instruction = _parse_instruction(line)
        instructions[instruction.name] = instruction
        if line.startswith("  ROOT "):
            root = instruction
    if root is None:
        raise ProgramTextError(f"computation {name} has no root")
    return Computation(name=name, instructions=instructions, root=root)


def _parse_instruction(line: str) -> Instruction:
    name, separator, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    try:
        if not separator:
            raise ValueError
        type_end = _matching(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
        opcode, bracket, _ = rest[type_end:].strip().partition("(")
        start = rest.index(bracket, type_end)
        end = _matching(rest, start)
        kind = parse_type(rest[:type_end])
    except (ValueError, IndexError, KeyError):
        raise ProgramTextError(f"cannot read the instruction {line.strip()[:200]!r}") from None
    inside = rest[start + 1 : end]
    operands = (inside,) if opcode in ("constant", "parameter") else tuple(_operands(inside))
    return Instruction(
        name=name.lstrip("%"),
        kind=kind,
        opcode=opcode,
        operands=operands,
        attributes=rest[end + 1 :].lstrip(", "),
    )


def _operands(text: str) -> Iterator[str]:
    yield from re.findall(r"%([^\s,()]+)", text)


@functools.cache
def parse_type(text: str) -> Type:
    """Reads a type, for example `bf16[8,128]{1,0:T(8,128)(2,1)S(1)}` or a tuple of types."""
    text = re.sub(r"/\*.*?\*/", "", text).strip()
    if text.startswith("("):
        return tuple(parse_type(part.strip()) for part in _split(text[1:-1]) if part.strip())
    found = re.fullmatch(r"([a-z]\w*)\[([\d,<= ]*)\](?:\{(.*)\})?", text)
    if found is None:
        if re.fullmatch(r"(token|opaque)(\[\])?.*", text):
            return Array("token", ())
        raise ValueError(text)
    dtype, dims, layout = found[1], found[2], found[3] or ""
    _bits(dtype)
    order, _, properties = layout.partition(":")
    tile = re.match(r"T\(([\d,*]+)\)", properties)
    space = re.search(r"S\((\d+)\)", properties)
    return Array(
        dtype=dtype,
        dims=tuple(int(size.strip(" <=")) for size in dims.split(",") if size.strip()),
        minor_to_major=tuple(int(dim) for dim in order.split(",") if dim),
        tile=tuple(int(size) for size in tile[1].split(",") if size != "*") if tile else (),
        space=int(space[1]) if space else HBM,
    )


def _bits(dtype: str) -> int:
    if dtype.startswith("f8"):
        return 8
    if dtype.startswith("f4"):
        return 4
    return BITS[dtype]


def _split(text: str) -> Iterator[str]:
    """The parts between commas that are outside brackets of any kind and outside quotes."""
    depth = start = 0
    quoted = False
    for position, letter in enumerate(text):
        if letter == '"' and (position == 0 or text[position - 1] != "\\"):
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _matching(text: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] == "(":
            depth += 1
        elif text[position] == ")":
            depth -= 1
            if depth == 0:
                return position
    raise ValueError
