"""What a user says of attention: its name, and of `flash-int8` what stays exact. No JAX.

Low precision hurts where nothing later mends it, and where everything follows: in the first steps,
which decide what a video shows, and the last, whose errors are seen; in the first layer, which
attends unlike the others, and the last. So others keep ends exact: xDiT's schedules for attention
in fp8 five of 50 steps at both (xdit-project/xDiT#762), users of ComfyUI's Wan wrapper one for fp4
(kijai/ComfyUI-WanVideoWrapper#1741), Sparse-VideoGen the first of 40 layers
(svg-project/Sparse-VideoGen#35). Scores of 8 bits are the mildest of these: SageAttention's authors
take them everywhere (arXiv:2410.02367). So the default is one step at each end, and no layer: of
wan-tiny's error that takes nearly half away, where exact layers at both ends take a tenth and make
the program 70 % slower to compile (benchmarks/results/2026-11-27-int8-attention.md).
"""

import dataclasses
import re

from wan_tpu.attention.names import EXACT_INSTEAD, FLASH_INT8, IMPLEMENTATIONS
from wan_tpu.errors import InputError, UnknownNameError

FORM = f"{FLASH_INT8}[:STEPS[:LAYERS]]"
"""How `flash-int8` is written; each is a number for both ends, or FIRST+LAST."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How many of a row of things, at its two ends, are exact.

    Attributes:
        first: of them.
        last: likewise; both may meet.
    """

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}+{self.last}"

    def exact(self, count: int) -> tuple[bool, ...]:
        """Of `count` things, in order, which are exact."""
        return tuple(i < self.first or i >= count - self.last for i in range(count))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Where `flash-int8` gives way to `flash`.

    Attributes:
        steps: of a run's denoising steps, those of all its transformers in one row.
        layers: of a transformer's.
    """

    steps: Ends = Ends(first=1, last=1)
    layers: Ends = Ends(first=0, last=0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """What `--attention` says.

    Attributes:
        name: one of `IMPLEMENTATIONS`.
        gate: of `flash-int8`; None of others.
    """

    name: str
    gate: Gate | None = None

    @property
    def exact_name(self) -> str:
        """The same where it is exact; what takes its place where it must be."""
        return EXACT_INSTEAD.get(self.name, self.name)

    def __str__(self) -> str:
        """The text that `parse_attention` reads."""
        if self.gate is None:
            return self.name
        return f"{self.name}:{self.gate.steps}:{self.gate.layers}"


def parse_attention(text: str) -> AttentionChoice:
    """Reads a name, or `flash-int8:STEPS:LAYERS`, for example `flash-int8:2+1:1`.

    Raises:
        UnknownNameError: there is no such attention.
        InputError: what stands after the name is no number of steps or layers.
    """
    name, *ends = text.split(":")
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("attention", name, IMPLEMENTATIONS)
    if name != FLASH_INT8:
        if ends:
            raise InputError(
                f"attention {text!r} names what stays exact, and {name} is exact everywhere; "
                f"write {name}, or {FORM}"
            )
        return AttentionChoice(name=name)
    read = [_parse_ends(each) for each in ends]
    if len(read) > 2 or None in read:
        raise InputError(
            f"attention {text!r} must be {FORM}, how many steps and layers stay exact at each end, "
            f"for example {FLASH_INT8}:2:1, or {FLASH_INT8}:3+1:0 where the ends differ"
        )
    gate = Gate(**{key: each for key, each in zip(("steps", "layers"), read, strict=False) if each})
    return AttentionChoice(name=name, gate=gate)


def _parse_ends(text: str) -> Ends | None:
    """`3` or `2+1`; None if it is something else."""
    found = re.fullmatch(r"([0-9]{1,4})(?:\+([0-9]{1,4}))?", text)
    if found is None:
        return None
    first, last = found.groups()
    return Ends(first=int(first), last=int(first if last is None else last))
