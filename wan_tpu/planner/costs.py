"""What one operation of a compiled program costs a chip: FLOPs, HBM bytes, transfers, attention.

HBM bytes come by two rules. Both look at operations outside fusions only (what a fusion computes on
its way stays in registers and VMEM) and at arrays in HBM only.

* plain: every operand and every result, whole: the rule by which other implementations were read.
* sliced: what really moves. Arrays count as they lie in memory, filled up to whole tiles. A
  `dynamic-slice`, `slice` or `gather` moves its result, not the array it takes from; a
  `dynamic-update-slice` moves its update, for the compiler does it in place; both also as the first
  or last operation of a fusion, where most of them are: a scanned layer's weights are one slice of
  a stacked array that the plain rule counts whole in every turn. XLA's own `HloCostAnalysis` counts
  so, too ("operand utilization").

Starting halves of asynchronous operations carry the cost, done halves none. A fusion that carries
another's all-gather along (`collectives.py`) neither reads nor writes what it only passes on; a
`slice-start` is a piece of an array fetched ahead, by both rules its own piece.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

from wan_tpu.attention import flash_backward, flash_forward, flash_int8
from wan_tpu.planner.collectives import (
    CHAIN_DONE,
    CHAIN_START,
    COLLECTIVES,
    Collective,
    is_chained,
    read_collective,
    result_kind,
    starts_chain,
)
from wan_tpu.planner.hlo import HBM, Array, Computation, Instruction, ProgramText, Type, leaves
from wan_tpu.planner.products import convolution_flops, dot_flops

_FREE = (
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call",
    "conditional", "partition-id", "replica-id", "after-all", "opt-barrier", "optimization-barrier",
    "add-dependency", "get-dimension-size",
)  # fmt: skip
_FREE_CUSTOM_CALLS = (
    "ConcatBitcast",
    "SliceBitcast",
    "AllocateBuffer",
    "Sharding",
    "AssumeGatherIndicesInBound",
)
_THROUGH = ("bitcast", "convert", "reshape", "transpose", "copy")
_SLICES = ("dynamic-slice", "slice", "gather")

KERNEL_TARGET = "tpu_custom_call"
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
FLASH, FLASH_INT8 = flash_forward.KERNEL_NAME, flash_int8.KERNEL_NAME
_FLASH = {  # a name may stand within a gradient's jvp(...)
    FORWARD_PRODUCTS: re.compile(rf"[/(](?:{FLASH}|{FLASH_INT8})_head(\d+)[/)]"),
    BACKWARD_PRODUCTS: re.compile(rf"[/(]{flash_backward.KERNEL_NAME}_head(\d+)[/)]"),
}
_NO_ATTENTION = re.compile(r"[/(](projection|layer_norm|norm_rotate\w*)[/)]")
_SAID_FLOPS = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
_COUNTED = re.compile(
    rf"(?:{FLASH}|{FLASH_INT8}|{flash_backward.KERNEL_NAME})_head|splash_(?!.*dkv)"
)
_SPLASH_BACKWARD = re.compile(r"[/(]splash_m[hq]a_dkv_")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Shapes of an attention kernel on one chip, as it is called: padding included.

    Attributes:
        heads: of all batch items.
        query_chunks: chunks that the queries come in; key_chunks: likewise.
        products: for each pair of query and key; 2 forward, 5 backward.
        is_int8: whether its scores are of whole numbers.
    """

    heads: int
    queries: int
    keys: int
    head_dim: int
    query_chunks: int = 1
    key_chunks: int = 1
    products: int = FORWARD_PRODUCTS
    is_int8: bool = False

    @property
    def is_backward(self) -> bool:
        """Whether it is a gradient's kernel."""
        return self.products != FORWARD_PRODUCTS

    @property
    def flops(self) -> int:
        """Of all products."""
        return 2 * self.products * self.heads * self.queries * self.keys * self.head_dim


class CostReader:
    """Costs of the operations of one program."""

    def __init__(self, program: ProgramText):
        self._program = program
        self._computation_flops = functools.cache(self._sum_flops)

    def is_free(self, instruction: Instruction) -> bool:
        """Whether it moves and computes nothing itself."""
        if instruction.opcode.endswith(("-done", "-update")) or instruction.opcode in _FREE:
            return True
        return instruction.custom_call_target in _FREE_CUSTOM_CALLS

    def flops(
        self, computation: Computation, instruction: Instruction, dtype: str | None = None
    ) -> int:
        """Of the products and convolutions in it and in what it calls; other arithmetic is free.

        Of a kernel what it says of itself.

        Args:
            computation: that it is in.
            instruction: any.
            dtype: XLA's name; of products of two such arrays alone.
        """
        if instruction.custom_call_target == KERNEL_TARGET:
            said = _SAID_FLOPS.search(instruction.attributes)
            return int(said[1]) if said is not None and dtype is None else 0
        if instruction.opcode in ("dot", "convolution"):
            kinds = computation.operand_kinds(instruction)[:2]
            if dtype is not None and {a.dtype for k in kinds for a in leaves(k)} != {dtype}:
                return 0
            of = dot_flops if instruction.opcode == "dot" else convolution_flops
            return of(computation, instruction)
        called = instruction.called("calls")
        known = called is not None and called in self._program.computations
        return self._computation_flops(called, dtype) if known else 0

    def _sum_flops(self, name: str, dtype: str | None) -> int:
        computation = self._program.computations[name]
        return sum(self.flops(computation, i, dtype) for i in computation.instructions.values())

    def plain_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """HBM bytes by the plain rule."""
        if instruction.opcode == "slice-start":
            return self.sliced_bytes(computation, instruction)
        if instruction.opcode == "fusion":
            kinds = [
                kind for part in self._fusion_parts(computation, instruction) for _, kind in part
            ]
        else:
            kinds = [*computation.operand_kinds(instruction), result_kind(computation, instruction)]
        return sum(
            array.num_bytes for kind in kinds for array in leaves(kind) if array.space == HBM
        )

    def sliced_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """HBM bytes by the sliced rule."""
        operands = computation.operand_kinds(instruction)
        result = result_kind(computation, instruction)
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in _SLICES:
            return _in_hbm(result) + _moved(operands[0], _elements(result))
        if opcode == "dynamic-update-slice":
            return _in_hbm(operands[1]) + _moved(result, _elements(operands[1]))
        if opcode == "fusion":
            return self._fusion_bytes(computation, instruction)
        return sum(_in_hbm(kind) for kind in (*operands, result))

    def _fusion_bytes(self, computation: Computation, fusion: Instruction) -> int:
        inner = self._program.computations[fusion.called("calls") or ""]
        operands, results = self._fusion_parts(computation, fusion)
        total = 0
        for parameter, kind in operands:
            used = self._used_elements(inner, parameter.name)
            total += _in_hbm(kind) if used is None else _moved(kind, used)
        for source, array in results:
            updated = self._updated_elements(inner, source)
            total += _in_hbm(array) if updated is None else _moved(array, updated)
        return total

    def _fusion_parts(
        self, computation: Computation, fusion: Instruction
    ) -> tuple[list[tuple[Instruction, Type]], list[tuple[Instruction, Type]]]:
        """What a fusion takes and returns, what it only passes on left out.

        Returns:
            its parameters with their types, and what its results come from with theirs.
        """
        inner = self._program.computations[fusion.called("calls") or ""]
        passed_on = _passed_on(inner)
        kinds = zip(inner.parameters, computation.operand_kinds(fusion), strict=True)
        operands = [
            (parameter, kind) for parameter, kind in kinds if parameter.name not in passed_on
        ]
        root, arrays = inner.root, list(leaves(fusion.kind))
        if root.custom_call_target == CHAIN_START:
            arrays = arrays[1:]  # the first is the operand, for the chain's next fusion
        sources = (
            [inner.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
        )
        if len(sources) != len(arrays):
            sources = [root] * len(arrays)
        results = zip(sources, arrays, strict=True)
        return operands, [(s, array) for s, array in results if s.name not in passed_on]

    def _used_elements(self, computation: Computation, name: str) -> int | None:
        """Elements that a fusion reads of a parameter it only slices; None when it reads it all."""
        total = 0
        for user in computation.users(name):
            if (
                user.opcode in _SLICES
                and user.operands[0] == name
                and name not in user.operands[1:]
            ):
                total += _elements(user.kind)
            elif user.opcode == "dynamic-update-slice" and user.operands.index(name) == 0:
                continue  # in place: what is not updated is not touched
            elif user.opcode == "fusion" and "output_to_operand_aliasing=" in user.attributes:
                # The same bytes under another tiling, as int8 weights are sliced from.
                inner = self._used_elements(computation, user.name)
                if inner is None:
                    return None
                total += inner
            elif user.opcode in _THROUGH or user.opcode == "fusion":
                inner = self._through(computation, user, name)
                if inner is None:
                    return None
                total += inner
            else:
                return None
        return total

    def _through(self, computation: Computation, user: Instruction, name: str) -> int | None:
        if user.opcode != "fusion":
            return None if user is computation.root else self._used_elements(computation, user.name)
        inner = self._program.computations[user.called("calls") or ""]
        parts = [
            self._used_elements(inner, inner.parameters[number].name)
            for number, operand in enumerate(user.operands)
            if operand == name
        ]
        return None if None in parts else sum(part for part in parts if part is not None)

    def _updated_elements(self, computation: Computation, source: Instruction) -> int | None:
        """Elements written by a fusion's result that is an update in place of a parameter."""
        while source.opcode in _THROUGH:
            source = computation.instructions[source.operands[0]]
        if source.opcode != "dynamic-update-slice":
            return None
        target = computation.instructions[source.operands[0]]
        while target.opcode in _THROUGH:
            target = computation.instructions[target.operands[0]]
        if target.opcode != "parameter":
            return None
        return _elements(computation.instructions[source.operands[1]].kind)

    def collectives(self, computation: Computation, instruction: Instruction) -> list[Collective]:
        """Transfers between chips in it, those inside a fusion included, each chain's once."""
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            if is_chained(instruction) and not starts_chain(computation, instruction):
                return []
            return [read_collective(computation, instruction, self._program.num_devices)]
        called = instruction.called("calls")
        if called is None or called not in self._program.computations:
            return []
        inner = self._program.computations[called]
        return [
            c
            for i in inner.instructions.values()
            if not self.is_free(i)
            for c in self.collectives(inner, i)
        ]

    def attention(self, computation: Computation, instruction: Instruction) -> Attention | None:
        """The shapes of a kernel that takes queries, keys and values; None for others."""
        if instruction.custom_call_target != KERNEL_TARGET:
            return None
        if _NO_ATTENTION.search(instruction.attributes):
            return None
        kinds = [a for k in computation.operand_kinds(instruction) for a in leaves(k)]
        operands = [a.dims for a in kinds if _may_be_tokens(a)]
        if len(operands) < 3:
            return None
        for products, name in _FLASH.items():
            if found := name.search(instruction.attributes):
                shapes = _flash_shapes(operands, head_dim=int(found[1]), products=products)
                return dataclasses.replace(shapes, is_int8=f"{FLASH_INT8}_" in found[0])
        query, key, value = operands[:3]
        if query[:-2] != key[:-2] or key[:-1] != value[:-1]:
            return None
        is_backward = _SPLASH_BACKWARD.search(instruction.attributes) is not None
        return Attention(
            heads=math.prod(query[:-2]),
            queries=query[-2],
            keys=key[-2],
            head_dim=value[-1],
            products=BACKWARD_PRODUCTS if is_backward else FORWARD_PRODUCTS,
        )


def _passed_on(fused: Computation) -> set[str]:
    """What a fusion has of a chain's collective that it did not start: the program waits elsewhere.

    The collective, its end, and the parameters that go to nothing else but the result.
    """
    chain = {
        i.name
        for i in fused.instructions.values()
        if i.custom_call_target == CHAIN_DONE or (is_chained(i) and not starts_chain(fused, i))
    }
    if not chain:
        return chain
    near = chain | ({fused.root.name} if fused.root.opcode == "tuple" else set())
    return chain | {
        p.name for p in fused.parameters if {u.name for u in fused.users(p.name)} <= near
    }


def is_counted_kernel(name: str) -> bool:
    """Whether a Pallas kernel of this name is one whose cycles are counted by themselves."""
    return _COUNTED.match(name) is not None


def compiler_cycles(instruction: Instruction) -> int:
    """The compiler's own estimate of an operation's cycles, 0 where it writes none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else 0


def _flash_shapes(operands: Sequence[tuple[int, ...]], head_dim: int, products: int) -> Attention:
    """Of our own kernels: `[chunks, batch, chunk, heads * head_dim]`."""
    (query_chunks, batch, query_chunk, channels), (key_chunks, _, key_chunk, _), *_ = operands
    return Attention(
        heads=batch * channels // head_dim,
        queries=query_chunks * query_chunk,
        keys=key_chunks * key_chunk,
        head_dim=head_dim,
        query_chunks=query_chunks,
        key_chunks=key_chunks,
        products=products,
    )


def _may_be_tokens(array: Array) -> bool:
    """Whether it may be queries, keys or values; int8 arrays of few columns are splash's masks."""
    width = 64 if array.dtype == "s8" else 8
    known = array.dtype in ("bf16", "f16", "f32", "s8") and len(array.dims) in (3, 4)
    return known and array.dims[-1] % width == 0


def _in_hbm(kind: Type) -> int:
    return sum(array.padded_bytes for array in leaves(kind) if array.space == HBM)


def _elements(kind: Type) -> int:
    return sum(array.elements for array in leaves(kind))


def _moved(kind: Type, elements: int) -> int:
    """Bytes of so many elements of an array, at most all of it; 0 outside HBM."""
    whole = _in_hbm(kind)
    arrays = list(leaves(kind))
    if not whole or len(arrays) != 1 or not arrays[0].elements:
        return whole
    return min(whole, round(arrays[0].num_bytes * elements / arrays[0].elements))
