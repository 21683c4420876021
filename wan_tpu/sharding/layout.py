"""What a layout is: three numbers and two choices. Knows nothing of devices or models.

Text form: `dp2-sp4`, `tp8`, `dp2-sp2-tp2`; ones are left out and `single` is one device.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from wan_tpu.errors import LayoutError, UnknownNameError

SEQUENCE_PARALLEL = ("ulysses", "allgather", "ring")
WEIGHTS = ("sharded", "replicated")

DP, SP, TP = "dp", "sp", "tp"
AXES = (DP, SP, TP)
"""Mesh axes, slowest first: dp exchanges least, tp most, so tp lies on neighbouring chips."""

MOST_PROPOSED = 6
"""Layouts that an error proposes; 256 devices have 45."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model and its activations are split over devices.

    Attributes:
        dp: ways the batch is split; guidance makes a batch of two.
        sp: ways the tokens are split.
        tp: ways the heads and the feed-forward width are split.
        sequence_parallel: how attention sees all tokens: `ulysses` exchanges heads with two
            all-to-alls, `allgather` gathers keys and values, `ring` passes them round.
        weights: `sharded` keeps each weight over every device and gathers it layer by layer,
            `replicated` keeps a whole copy on each dp and sp index.
    """

    dp: int = 1
    sp: int = 1
    tp: int = 1
    sequence_parallel: str = "ulysses"
    weights: str = "sharded"

    def __post_init__(self) -> None:
        if min(self.dp, self.sp, self.tp) < 1:
            sizes = ", ".join(map(str, self.shape))
            raise LayoutError(f"dp, sp and tp must be at least 1, got {sizes}")
        if self.sequence_parallel not in SEQUENCE_PARALLEL:
            raise UnknownNameError("sequence-parallel", self.sequence_parallel, SEQUENCE_PARALLEL)
        if self.weights not in WEIGHTS:
            raise UnknownNameError("weights", self.weights, WEIGHTS)

    def __str__(self) -> str:
        parts = [f"{axis}{size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1]
        return "-".join(parts) or "single"

    @property
    def full_name(self) -> str:
        """The text form with the choices that make a difference to it: `dp2-sp4 ring replicated`.

        Without sp there are no other tokens to see, without dp and sp no copies of weights to keep.
        """
        mode = [self.sequence_parallel] if self.sp > 1 else []
        copies = [self.weights] if self.dp * self.sp > 1 and self.weights == "replicated" else []
        return " ".join([str(self), *mode, *copies])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of the mesh axes (dp, sp, tp)."""
        return (self.dp, self.sp, self.tp)

    @property
    def num_devices(self) -> int:
        """Devices the layout needs."""
        return self.dp * self.sp * self.tp

    def padded_heads(self, num_heads: int) -> int:
        """Heads after padding, so that every device holds whole heads throughout.

        Each tp shard holds the same number; ulysses splits those over sp once more.
        """
        ways = self.tp * (self.sp if self.sequence_parallel == "ulysses" else 1)
        return -(-num_heads // ways) * ways

    def require_devices(self, count: int) -> None:
        """Refuses the layout when it does not use exactly `count` devices.

        Raises:
            LayoutError: names those that would, the nearest in shape first.
        """
        if self.num_devices != count:
            fitting = sorted(factorisations(count), key=self._distance)
            nearest = ", ".join(str(layout) for layout in fitting[:MOST_PROPOSED])
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

    Raises:
        LayoutError: the text is not a layout; shows the form.
    """
    sizes: dict[str, int] = {}
    for part in [] if text.lower() == "single" else text.lower().split("-"):
        match = re.fullmatch(r"(dp|sp|tp)([1-9][0-9]{0,4})", part)
        if match is None or match[1] in sizes:
            raise LayoutError(
                f"unknown layout {text!r}; write single, or dpN, spN and tpN joined by '-', "
                "for example dp2-sp4 or tp8"
            )
        sizes[match[1]] = int(match[2])
    return Layout(**sizes, sequence_parallel=sequence_parallel, weights=weights)


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
    """A shape with each of the choices that make a difference to it (`Layout.full_name`)."""
    modes = sequence_parallel if layout.sp > 1 else sequence_parallel[:1]
    kinds = weights if layout.dp * layout.sp > 1 else weights[:1]
    return [
        dataclasses.replace(layout, sequence_parallel=mode, weights=kind)
        for mode in modes
        for kind in kinds
    ]


def default_layout(num_devices: int, num_heads: int, *, batch: int = 2) -> Layout:
    """The layout used when the user names none.

    The guidance pair goes on dp when it divides, then as much sp as needs no padding heads
    (it exchanges activations only around attention), the rest tp.
    """
    dp = 2 if batch == 2 and num_devices % 2 == 0 else 1
    rest = num_devices // dp
    sp = max(d for d in _divisors(rest) if d == 1 or num_heads % d == 0)
    return Layout(dp=dp, sp=sp, tp=rest // sp)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
