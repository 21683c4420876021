"""Step caches: which denoising steps are computed, and which reuse what an earlier one left.

MagCache (arXiv 2506.09045; Zehong-Ma/MagCache) reuses what the transformer's blocks added. How that
changes from step to step is a curve of the model, measured once, so the steps are known before a
run. EasyCache (arXiv 2507.02860; H-EmbodVis/EasyCache) reuses what the whole transformer gave, and
decides while it runs. No JAX: a server asks, too.
"""

import dataclasses
import enum
import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from wan_tpu.errors import InputError, UnknownNameError

MAGCACHE, EASYCACHE = "magcache", "easycache"
NAMES = (MAGCACHE, EASYCACHE)

EASYCACHE_THRESHOLD = 0.05
"""Of EasyCache where a request says none: its authors'."""

EASYCACHE_FIRST = 10
"""Steps that EasyCache computes before it reuses any, its authors' number for 50; of shorter runs
a fifth, and two at least, because its rate of change is that between two of them."""

FORMAT = "wan-tpu step cache ratios 1"
"""What a file of `wan-tpu calibrate` says it is."""

LARGEST_FILE = 1 << 20
"""Bytes of one; a thousand steps take 50,000."""

_FORMS = "magcache[:THRESHOLD[:MOST_IN_A_ROW[:RETENTION]]] or easycache[:THRESHOLD]"


class Blocks(enum.Enum):
    """What a step does with the transformer's blocks; the values are the letters of a plan."""

    COMPUTED = "X"
    REUSED = "."
    OPEN = "?"
    """The step decides."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepCache:
    """What `--step-cache` and a request's `step_cache` say.

    Attributes:
        name: one of `NAMES`.
        threshold: error that is borne before a step is computed again, above 0 and at most 1; None
            for the model's (MagCache), or for `EASYCACHE_THRESHOLD`.
        most_in_a_row: steps of MagCache that reuse, one after the other; None for the model's.
        retention: share of the steps of each transformer, its first, that MagCache computes in any
            case, from 0 and below 1; None for the model's.

    Raises:
        InputError: a value is out of range, or there is no such cache.
    """

    name: str
    threshold: float | None = None
    most_in_a_row: int | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UnknownNameError("step cache", self.name, NAMES)
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(
                f"the threshold of {self.name} must lie above 0 and be at most 1, got "
                f"{self.threshold:g}; its authors take {self._example}"
            )
        if self.most_in_a_row is not None and not 1 <= self.most_in_a_row <= 100:
            raise InputError(
                f"{self.name} may reuse from 1 to 100 steps in a row, got {self.most_in_a_row}; "
                "its authors take 2"
            )
        if self.retention is not None and not 0 <= self.retention < 1:
            raise InputError(
                f"the share of steps that {self.name} computes first must lie from 0 to below 1, "
                f"got {self.retention:g}; its authors take 0.2"
            )

    @property
    def _example(self) -> str:
        return "0.12" if self.name == MAGCACHE else "0.05"

    @classmethod
    def parse(cls, text: str) -> "StepCache":
        """The same from text, such as `magcache:0.12:2:0.2` or `easycache:0.05`.

        Raises:
            InputError: it is none, or names a file, which only the command line does.
        """
        if not isinstance(text, str):
            raise InputError(f"step_cache must be text, for example magcache:0.12; got {text!r}")
        if "@" in text:
            raise InputError(
                f"step_cache is {text[:80]!r} and a request names no file; leave "
                f"{text[text.index('@') :][:80]!r} out"
            )
        name, *values = text.split(":")
        known = {MAGCACHE: (float, int, float), EASYCACHE: (float,)}
        if name not in known:
            raise UnknownNameError("step cache", name[:80], NAMES)
        kinds = known[name]
        try:
            numbers = [kind(value) for kind, value in zip(kinds, values, strict=False)]
        except ValueError:
            numbers = None
        if numbers is None or len(values) > len(kinds):
            raise InputError(f"step_cache must be {_FORMS}, got {text[:80]!r}")
        fields = ("threshold", "most_in_a_row", "retention")
        return cls(name=name, **dict(zip(fields, numbers, strict=False)))

    def resolved(self, curve: "Curve | None") -> "StepCache":
        """The same with every open value filled in.

        Args:
            curve: of the model, for MagCache; None for EasyCache.
        """
        if self.name == EASYCACHE:
            threshold = EASYCACHE_THRESHOLD if self.threshold is None else self.threshold
            return dataclasses.replace(self, threshold=threshold)
        assert curve is not None, "MagCache needs a curve"
        names = ("threshold", "most_in_a_row", "retention")
        filled = {name: getattr(curve, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **filled)

    def __str__(self) -> str:
        values = (self.threshold, self.most_in_a_row, self.retention)
        return ":".join([self.name, *(f"{value:g}" for value in values if value is not None)])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How what the blocks add changes from step to step, and what MagCache does with that.

    Attributes:
        name: of what it was measured on.
        flow_shift: of that run. scheduler: likewise.
        threshold: of `StepCache`, where a request says none. most_in_a_row: likewise.
        retention: likewise.
        conditional: of each step of the run: the mean over tokens of the residual's norm over that
            of the step before; 1 for the first step. With the prompt.
        unconditional: the same with the negative prompt.
        source: who measured it.
        transformer: sizes of what it was measured on, where the file says so.
    """

    name: str
    flow_shift: float
    scheduler: str = "unipc"
    threshold: float
    most_in_a_row: int
    retention: float
    conditional: tuple[float, ...]
    unconditional: tuple[float, ...]
    source: str
    transformer: Mapping[str, int] | None = None

    def ratios(self, num_steps: int, branches: int) -> list[tuple[float, ...]]:
        """Of each step of a run over so many, one ratio for each branch of guidance.

        Of another number of steps than were measured each takes the nearest one, as MagCache does.

        Args:
            num_steps: of the whole run.
            branches: 2 with guidance; 1 without, the prompt's alone.
        """
        rows = list(zip(*(self.conditional, self.unconditional)[:branches], strict=True))
        last = len(rows) - 1
        if num_steps == 1:
            return [rows[last]]
        return [rows[round(step * last / (num_steps - 1))] for step in range(num_steps)]

    def to_json(self) -> dict[str, Any]:
        """What a file of it holds; `read_curve` takes it back."""
        return {"format": FORMAT, "steps": len(self.conditional), **dataclasses.asdict(self)}


def magcache_plan(
    ratios: Sequence[Sequence[float]],
    turns: Sequence[int],
    *,
    threshold: float,
    most_in_a_row: int,
    retention: float,
) -> list[bool]:
    """Of each step, whether it is computed: MagCache's rule.

    A step would reuse what the last computed one left, whose size has changed by the product of the
    ratios since; how far that is from 1, added up over the steps that reuse, has to stay below the
    threshold. The branches of guidance share a decision: they reuse where both may.

    Args:
        ratios: of each step, one for each branch; `Curve.ratios`.
        turns: steps of each transformer, in order: one number, or two.
        threshold: see `StepCache`. most_in_a_row: likewise.
        retention: likewise. Of a second transformer one step more is computed, as MagCache counts,
            and so its first one is, always.
    """
    assert sum(turns) == len(ratios), (turns, len(ratios))
    plan: list[bool] = []
    for turn, length in enumerate(turns):
        retained = max(int(retention * length) + (turn > 0), 1)
        change, error, in_a_row = [1.0] * len(ratios[0]), [0.0] * len(ratios[0]), 0
        for step in range(length):
            reuses = False
            if step >= retained:
                change = [c * ratio for c, ratio in zip(change, ratios[len(plan)], strict=True)]
                error = [e + abs(1 - c) for e, c in zip(error, change, strict=True)]
                in_a_row += 1
                reuses = max(error) < threshold and in_a_row <= most_in_a_row
            if not reuses:
                change, error, in_a_row = [1.0] * len(change), [0.0] * len(error), 0
            plan.append(not reuses)
    return plan


def easycache_plan(turns: Sequence[int]) -> list[bool]:
    """Of each step, whether EasyCache computes it in any case; the others decide themselves.

    The first ones of the run, `EASYCACHE_FIRST`, and the last; of a second transformer the first
    two, so that nothing of the other one's is reused and the rate of change is its own.

    Args:
        turns: steps of each transformer, in order.
    """
    num_steps = sum(turns)
    first = min(EASYCACHE_FIRST, max(num_steps // 5, 2))
    plan = [step < first or step == num_steps - 1 for step in range(num_steps)]
    for start in (sum(turns[:turn]) for turn in range(1, len(turns))):
        for step in range(start, min(start + 2, num_steps)):
            plan[step] = True
    return plan


@functools.cache
def known_curves() -> Mapping[str, Curve]:
    """The curves in this package, by the model that each was measured on."""
    text = (resources.files("wan_tpu") / "magcache.json").read_text("utf-8")
    return {entry["name"]: _curve(entry) for entry in json.loads(text)}


def split_file(text: str) -> tuple[str, pathlib.Path | None]:
    """What the command line says as a request has it, and the file of ratios of one's own.

    Args:
        text: for example `magcache:0.12@ratios.json`.

    Raises:
        InputError: the file has no name, or is of a cache that takes none.
    """
    cache, at, path = text.partition("@")
    if not at:
        return text, None
    if cache.partition(":")[0] != MAGCACHE or not path:
        raise InputError(
            f"step cache {text[:80]!r}: a file of ratios is magcache's; write "
            "magcache:0.12@ratios.json"
        )
    return cache, pathlib.Path(path).expanduser()


def read_curve(path: pathlib.Path) -> Curve:
    """A file of `wan-tpu calibrate`.

    Raises:
        InputError: it is not there, or not such a file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    wrong = f"{path} is no file of `wan-tpu calibrate`"
    if len(text) > LARGEST_FILE:
        raise InputError(f"{wrong}: it has more than {LARGEST_FILE} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{wrong}: it is not JSON") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{wrong}: its format is not {FORMAT!r}")
    try:
        curve = _curve({k: v for k, v in data.items() if k not in ("format", "steps")})
        _check_curve(curve)
        StepCache(name=MAGCACHE).resolved(curve)  # its values are within their ranges
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{wrong}: {error}") from None
    return curve


def _curve(entry: Mapping[str, Any]) -> Curve:
    branches = ("conditional", "unconditional")
    return Curve(**{**entry, **{name: tuple(entry[name]) for name in branches}})


def _check_curve(curve: Curve) -> None:
    """Refuses numbers that no run gives."""
    numbers = (*curve.conditional, *curve.unconditional, curve.flow_shift)
    if not all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in numbers):
        raise ValueError("its ratios and flow shift must be positive numbers")
    if len(curve.conditional) != len(curve.unconditional) or not curve.conditional:
        raise ValueError("its two lists of ratios must be of one length")
    sizes = curve.transformer
    if not isinstance(sizes, dict) or not all(isinstance(size, int) for size in sizes.values()):
        raise ValueError("it does not say the transformer's sizes")
