"""What is compared with one device: every choice, and the few cases that cover every pair of them.

A case is a layout with its two choices, an attention, a model, a length and guidance on or off.
There are 2,736. `covering_cases` picks the fewest it finds such that any two choices that can meet
do meet in at least one case: sp4 with splash, ring with five heads, dp8 with one frame, ...
"""

import dataclasses
import itertools

from wan_tpu.sharding.layout import Layout, factorisations, variants

ATTENTION = ("reference", "splash", "flash")
MODELS = ("8 heads", "12 heads", "5 heads")
FRAMES = ("one frame", "many frames")
GUIDANCE = ("guided", "unguided")
DEVICE_COUNTS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison with one device."""

    layout: Layout
    attention: str
    model: str
    frames: str
    guidance: str

    def __str__(self) -> str:
        text = (str(self.layout), self.attention, self.model, self.frames, self.guidance)
        return ", ".join(text)

    def choices(self) -> dict[str, object]:
        """What was chosen; a layout's choices where they make a difference."""
        layout = self.layout
        found = dataclasses.asdict(self) | {"dp": layout.dp, "sp": layout.sp, "tp": layout.tp}
        del found["layout"]
        if layout.sp > 1:
            found["sequence_parallel"] = layout.sequence_parallel
        if layout.dp * layout.sp > 1:
            found["weights"] = layout.weights
        return found

    def pairs(self) -> set[object]:
        """Every two choices that meet in this case."""
        return set(itertools.combinations(sorted(self.choices().items()), 2))


def all_layouts() -> list[Layout]:
    """Every factorisation of every device count, in every variant."""
    return [
        variant
        for count in DEVICE_COUNTS
        for shape in factorisations(count)
        for variant in variants(shape)
    ]


def all_cases() -> list[Case]:
    """Everything."""
    return [
        Case(layout=layout, attention=attention, model=model, frames=frames, guidance=guidance)
        for layout, attention, model, frames, guidance in itertools.product(
            all_layouts(), ATTENTION, MODELS, FRAMES, GUIDANCE
        )
    ]


def covering_cases() -> list[Case]:
    """A cover of all pairs: always the case that brings the most new ones, of equals the first."""
    pairs = {case: case.pairs() for case in all_cases()}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(pairs, key=lambda case: len(pairs[case] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen
