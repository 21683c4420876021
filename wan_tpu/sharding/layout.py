"""What a layout is: three numbers and two choices. Knows nothing of devices or models.

Text form: `dp2-sp4`, `tp8`, `dp2-sp2-tp2`; ones are left out and `single` is one device. Choices
that are not the default follow: `dp2-sp8 allgather`, `dp2-sp4 ring replicated`; `dp2-sp16 ulysses8`
trades heads among 8 shards of the 16.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from wan_tpu.errors import LayoutError, UnknownNameError

SEQUENCE_PARALLEL = ("ulysses", "allgather", "ring")
WEIGHTS = ("sharded", "replicated")
"""The default of each choice comes first."""

DP, SP, TP = "dp", "sp", "tp"
AXES = (DP, SP, TP)
"""Mesh axes, slowest first: dp exchanges least, tp most, so tp lies on neighbouring chips."""

HEAD_DIM = 128
"""Features of a head of every Wan model; a test model's fewer only make its shards smaller."""

TOKENS_480P = 32_760
"""Of 81 frames of 832x480, which every Wan model makes."""

RING_TOKENS = 4_000
"""Tokens of a shard from which attention to it lasts about as long as passing its keys on."""

RING_BYTES = 32 * 2**20
"""Of a shard's results in float32, up to which the compiler keeps them in a v6e's VMEM from turn to
turn; beyond it a ring reads and writes HBM more than it saves in waiting."""

REPLICATED_SHARE = 1 / 8
"""Of a device's memory that a whole copy of the transformer may take without being asked for."""

MOST_PROPOSED = 6
"""Layouts that an error proposes; 256 devices have 45."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model and its activations are split over devices.

    A choice that makes no difference is its default, so that layouts of one program are equal:
    without sp there are no other tokens to see, without dp and sp no copies of weights to keep.

    `str(layout)` is the one text form; `parse_layout` reads it back.

    Attributes:
        dp: ways the batch is split; guidance makes a batch of two.
        sp: ways the tokens are split.
        tp: ways the heads and the feed-forward width are split.
        sequence_parallel: how attention sees all tokens: `ulysses` exchanges heads with two
            all-to-alls, `allgather` gathers keys and values, `ring` passes them round.
        head_ways: ways of sp over which ulysses trades heads; over the rest of sp, keys and values
            of the heads that a device then has are gathered. None is all of sp.
        weights: `sharded` keeps each weight over every device and gathers it layer by layer,
            `replicated` keeps a whole copy on each dp and sp index.
    """

    dp: int = 1
    sp: int = 1
    tp: int = 1
    sequence_parallel: str = "ulysses"
    head_ways: int | None = None
    weights: str = "sharded"

    def __post_init__(self) -> None:
        if min(self.dp, self.sp, self.tp) < 1:
            sizes = ", ".join(map(str, self.shape))
            raise LayoutError(f"dp, sp and tp must be at least 1, got {sizes}")
        if self.sequence_parallel not in SEQUENCE_PARALLEL:
            raise UnknownNameError("sequence-parallel", self.sequence_parallel, SEQUENCE_PARALLEL)
        if self.weights not in WEIGHTS:
            raise UnknownNameError("weights", self.weights, WEIGHTS)
        ways = self.head_ways
        if ways is not None and (ways < 1 or self.sp % ways):
            raise LayoutError(
                f"ulysses trades heads among a divisor of sp, ulysses4 fits sp8; "
                f"got ulysses{ways} with sp{self.sp}"
            )
        if ways == 1 and self.sequence_parallel == "ulysses":
            object.__setattr__(self, "sequence_parallel", "allgather")
        if self.sp == 1:
            object.__setattr__(self, "sequence_parallel", SEQUENCE_PARALLEL[0])
        if ways == self.sp or self.sequence_parallel != "ulysses":
            object.__setattr__(self, "head_ways", None)
        if self.dp * self.sp == 1:
            object.__setattr__(self, "weights", WEIGHTS[0])

    def __str__(self) -> str:
        sizes = [f"{axis}{size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1]
        way = f"{self.sequence_parallel}{self.head_ways or ''}"
        choices = ((way, SEQUENCE_PARALLEL), (self.weights, WEIGHTS))
        return " ".join(
            ["-".join(sizes) or "single", *(name for name, names in choices if name != names[0])]
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of the mesh axes (dp, sp, tp)."""
        return (self.dp, self.sp, self.tp)

    @property
    def num_devices(self) -> int:
        """Devices the layout needs."""
        return self.dp * self.sp * self.tp

    @property
    def head_groups(self) -> int:
        """Groups that a tp shard's heads are traded in: 1 where sp trades none."""
        return (self.head_ways or self.sp) if self.sequence_parallel == "ulysses" else 1

    def padded_heads(self, num_heads: int) -> int:
        """Heads after padding, so that every device holds whole heads throughout.

        Each tp shard holds the same number; ulysses splits those once more.
        """
        ways = self.tp * self.head_groups
        return -(-num_heads // ways) * ways

    def require_devices(self, count: int) -> None:
        """Refuses the layout when it does not use exactly `count` devices.

        Raises:
            LayoutError: names those that would, the nearest in shape first.
        """
        if self.num_devices != count:
            fitting = sorted(factorisations(count), key=self._distance)
            choices = {"sequence_parallel": self.sequence_parallel, "weights": self.weights}
            nearest = ", ".join(
                str(dataclasses.replace(layout, **choices)) for layout in fitting[:MOST_PROPOSED]
            )
            more = "" if len(fitting) <= MOST_PROPOSED else f" (nearest of {len(fitting)})"
            raise LayoutError(
                f"layout {self} needs {self.num_devices} devices, {count} are here; "
                f"layouts for {count}{more}: {nearest}"
            )

    def _distance(self, other: "Layout") -> tuple[float, float]:
        """How often axes must be doubled or halved to come to another shape; the same, one axis."""
        doublings = [abs(math.log2(a / b)) for a, b in zip(self.shape, other.shape, strict=True)]
        return sum(doublings), max(doublings)


def parse_layout(
    text: str, *, sequence_parallel: str = "ulysses", weights: str = "sharded"
) -> Layout:
    """Reads the text form of a layout.

    Args:
        text: sizes, then the choices that it makes, in any order: `dp2-sp8 allgather replicated`.
        sequence_parallel: what a text that does not say it means.
        weights: likewise.

    Raises:
        LayoutError: the text is not a layout; shows the form.
    """
    sizes_text, *words = text.lower().split(" ")
    sizes = _parse_sizes(sizes_text)
    said = {_choice_of(word): word for word in words}
    if sizes is None or None in said or len(said) < len(words):
        raise LayoutError(
            f"unknown layout {text!r}; write single, or dpN, spN and tpN joined by '-', "
            "for example dp2-sp4 or tp8; after it, where wanted, "
            f"one of {', '.join(SEQUENCE_PARALLEL)} and one of {', '.join(WEIGHTS)}"
        )
    way, ways = _ulysses_of(said.get("sequence_parallel", sequence_parallel))
    return Layout(
        **sizes,
        sequence_parallel=way,
        head_ways=ways,
        weights=said.get("weights", weights),
    )


def _choice_of(word: str) -> str | None:
    """The attribute of a layout that a word is a value of."""
    if _ulysses_of(word)[0] in SEQUENCE_PARALLEL:
        return "sequence_parallel"
    return "weights" if word in WEIGHTS else None


def _ulysses_of(word: str) -> tuple[str, int | None]:
    """A way to share the sequence, and the number behind `ulysses8`; None for other words."""
    match = re.fullmatch(r"ulysses([1-9][0-9]{0,4})", word)
    return (word, None) if match is None else ("ulysses", int(match[1]))


def _parse_sizes(text: str) -> dict[str, int] | None:
    """The sizes of the axes that are named, each once; None if it is something else."""
    sizes: dict[str, int] = {}
    for part in [] if text == "single" else text.split("-"):
        match = re.fullmatch(r"(dp|sp|tp)([1-9][0-9]{0,4})", part)
        if match is None or match[1] in sizes:
            return None
        sizes[match[1]] = int(match[2])
    return sizes


def factorisations(num_devices: int) -> list[Layout]:
    """Every layout of exactly `num_devices` devices, tp slowest, with the default choices."""
    return [
        Layout(dp=dp, sp=sp, tp=num_devices // dp // sp)
        for dp in _divisors(num_devices)
        for sp in _divisors(num_devices // dp)
    ]


def variants(
    layout: Layout,
    *,
    sequence_parallel: Sequence[str] = SEQUENCE_PARALLEL,
    weights: Sequence[str] = WEIGHTS,
) -> list[Layout]:
    """A shape with each of the choices that make a difference to it, each once."""
    found = [
        dataclasses.replace(layout, sequence_parallel=mode, weights=kind)
        for mode in sequence_parallel
        for kind in weights
    ]
    return list(dict.fromkeys(found))


def default_layout(
    num_devices: int, num_heads: int, *, batch: int = 2, tokens: int = TOKENS_480P
) -> Layout:
    """The layout used when the user names none: the first of all by these rules, in this order.

    1. As little of the batch computed twice, as few heads padded as any layout allows: all of a
       step's work grows with either. Gathering keys pads no heads, so none are padded without tp.
    2. The guidance pair on dp: its halves exchange nothing until the step's end.
    3. Ulysses, which moves least, over as many shards as divide the heads; where that is none, a
       ring whose transfers hide behind attention (`_ring_hides`); else allgather, which holds the
       keys of a device's heads (1.5 GB for 14B at 720p).
    4. The least exchanged within a layer (`_exchange`).

    The figures behind them, and what they choose planned beside the other layouts of the same
    slice: benchmarks/results/2026-11-26-default-layouts.md.

    Args:
        num_devices: that the layout must use, all of them.
        num_heads: of the transformer.
        batch: 2 with guidance, 1 without.
        tokens: of the videos that it is for; others run, too.
    """

    def order(layout: Layout) -> tuple[float, ...]:
        ways = ["ulysses", "ring", "allgather"]
        if layout.sequence_parallel == "ring" and not _ring_hides(layout, num_heads, tokens):
            ways = ["ulysses", "allgather", "ring"]
        return (
            -(-batch // layout.dp) * layout.dp,
            layout.padded_heads(num_heads),
            -layout.dp,
            ways.index(layout.sequence_parallel),
            _exchange(layout),
        )

    shapes = factorisations(num_devices)
    found = (v for s in shapes for v in variants(s, weights=WEIGHTS[:1]))
    return min((with_fitting_heads(v, num_heads) for v in found), key=order)


def with_fitting_heads(layout: Layout, num_heads: int) -> Layout:
    """The layout, whose ulysses trades heads among as many of sp as it can without padding them.

    Among none of them it is allgather. Other ways to share the sequence stay as they are.

    Args:
        layout: any.
        num_heads: of the transformer.
    """
    if layout.sequence_parallel != "ulysses":
        return layout
    heads = -(-num_heads // layout.tp)
    return dataclasses.replace(layout, head_ways=math.gcd(heads, layout.sp))


def default_weights(weight_bytes: int, device_bytes: int | None) -> str:
    """Where the transformer's weights lie when the user does not say.

    A copy on each dp and sp index saves the gathers, which are waited for (13 % of the 1.3B's step
    on a v6e-16), and costs memory: it is made where all weights take little of a device.

    Args:
        weight_bytes: of the whole transformer.
        device_bytes: that a device has; None where its platform does not say.
    """
    fits = device_bytes is not None and weight_bytes <= REPLICATED_SHARE * device_bytes
    return "replicated" if fits else "sharded"


def _ring_hides(layout: Layout, num_heads: int, tokens: int) -> bool:
    """Whether a ring waits for little and keeps its partial results off HBM.

    tp between its chips would make a line of the closed ring (`wan_tpu.sharding.neighbours`).
    """
    shard = tokens / layout.sp
    results = shard * num_heads * HEAD_DIM * 4
    return layout.tp == 1 and shard >= RING_TOKENS and results <= RING_BYTES


def _exchange(layout: Layout) -> float:
    """How often one layer sends the hidden states `[tokens, dim]` of a batch entry over a link.

    * sp: ulysses moves a shard of queries, keys, values and results, of which one in as many as
      trade is the device's own already; what is left of sp, or all of it in the other ways, brings
      the keys and values of a device's heads to it.
    * Four or more devices of sp are a closed ring of neighbours and send both ways, unless tp lies
      between them.
    * tp: three sums (self-attention, cross-attention, feed-forward) of the shard's tokens over tp,
      each reduced and gathered.
    """
    traders = layout.head_groups
    ways = 2 if layout.sp >= 4 and layout.tp == 1 else 1
    traded = 4 / layout.sp * (1 - 1 / traders)
    gathered = 2 / traders * (1 - traders / layout.sp)
    over_sp = (traded + gathered) / layout.tp / ways
    over_tp = 3 * 2 / layout.sp * (1 - 1 / layout.tp)
    return over_sp + over_tp


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
