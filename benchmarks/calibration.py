"""the planner's step seconds beside published runs, as the table of docs/calibration.md

Compiles the step of each run's layout (cached like every plan) and prints predicted beside
measured, the errors of both ends of the range, and the rank correlation of the lower. The runs are
public ones: Wan 2.1 14B (and 2.2 A14B, whose two experts have the same step), 1280x720, 81 frames,
guidance on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from wan_tpu.sharding.layout import Layout, parse_layout

OTHER_SECONDS = 28.0
"""What the reference implementation spends outside the steps: its one run with both figures took
418 s, 50 steps of 7.80 s each (held to be the same for its other runs)."""

FIXED_M_BUNDLES = 1.537e-3
"""Cycles per (query, key) pair of maxdiffusion's fixed-m kernel, counted the same way as ours."""

SPLASH, FLASH, FIXED_M = "splash", "flash", "fixed-m"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One published figure.

    Attributes:
        source: who ran it.
        slice_name: accelerator type.
        layout: the split that comes nearest to theirs; None where they do not say.
        kernel: of self-attention: splash is ours, flash is an older kernel that we have not.
        num_steps: denoising steps.
        seconds: of the whole video; None where it ran out of memory.
        step_seconds: where they say it.
        note: what is not as in our program.
    """

    source: str
    slice_name: str
    layout: Layout | None
    kernel: str
    num_steps: int
    seconds: float | None
    step_seconds: float | None = None
    note: str = ""

    @property
    def measured_step_seconds(self) -> float | None:
        """As published, or the video's seconds less `OTHER_SECONDS` over the steps."""
        if self.step_seconds is not None or self.seconds is None:
            return self.step_seconds
        return (self.seconds - OTHER_SECONDS) / self.num_steps


def _theirs(text: str) -> Layout:
    """The reference implementation gathers keys and values over sp and keeps whole weights."""
    return parse_layout(text, sequence_parallel="allgather", weights="replicated")


def _reference(
    slice_name: str,
    layout: str,
    kernel: str,
    seconds: float | None,
    *,
    step_seconds: float | None = None,
    note: str = "",
) -> PublishedRun:
    return PublishedRun(
        source="reference",
        slice_name=slice_name,
        layout=_theirs(layout),
        kernel=kernel,
        num_steps=50,
        seconds=seconds,
        step_seconds=step_seconds,
        note=note,
    )


RUNS = (
    _reference("v6e-8", "tp8", FLASH, 528),
    _reference("v6e-8", "dp2-tp4", FLASH, 490),
    _reference("v6e-8", "sp2-tp4", FLASH, 519),
    _reference("v6e-8", "dp2-sp2-tp2", FLASH, None, note="VAE out of memory"),
    _reference("v6e-8", "tp8", SPLASH, 418, step_seconds=7.80, note="Flax VAE"),
    _reference("v6e-8", "dp2-tp4", SPLASH, None, note="VAE out of memory; they write dp2"),
    _reference("v6e-16", "dp2-tp8", FLASH, 358),
    _reference("v6e-16", "dp2-tp8", SPLASH, 257),
    _reference("v6e-16", "dp2-sp2-tp4", FLASH, 319),
    _reference("v6e-16", "dp2-sp2-tp4", SPLASH, None, note="VAE out of memory"),
    PublishedRun(
        source="torchax, later", slice_name="v6e-8", layout=parse_layout("dp2-sp4"), kernel=SPLASH,
        num_steps=50, seconds=227, step_seconds=227 / 50,
        note="225-229 s; layout, kernel and the rest not told: all of it booked on the steps",
    ),
    PublishedRun(
        source="torchax, later", slice_name="v6e-16", layout=parse_layout("dp2-sp8"), kernel=SPLASH,
        num_steps=50, seconds=134, step_seconds=134 / 50,
        note="124.9-143 s; likewise",
    ),
    PublishedRun(
        source="maxdiffusion PR 479", slice_name="v6e-8", layout=parse_layout("dp2-sp4"),
        kernel=FIXED_M, num_steps=40, seconds=124.3, step_seconds=122.2 / 40,
        note="Wan 2.2 A14B; their kernel's count in place of ours",
    ),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks calibration`."""
    parser.add_argument("--only", metavar="TYPE", help="runs of one accelerator type")


def run(parsed: argparse.Namespace) -> int:
    """Prints the table in Markdown."""
    from wan_tpu import runtime

    runtime.start(host_devices=1)
    runs = [r for r in RUNS if parsed.only in (None, r.slice_name)]
    predictions = [_predict(r) for r in runs]
    sys.stdout.write(format_table(runs, predictions))
    return 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Of one run: seconds of a step with our splash kernel, or theirs where there is a count.

    Attributes:
        step_range: predicted, by the peaks and by the compiler's count.
        fits: whether every stage looked at fits, the streaming VAE not among them.
        peak_gib: of a step with everything resident.
    """

    step_range: tuple[float, float]
    fits: bool
    peak_gib: float


def _predict(published: PublishedRun) -> Prediction:
    from wan_tpu import runtime
    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.planner import GIB, FactsCache, Planner, find_slice, make_job
    from wan_tpu.request import make_request

    assert published.layout is not None
    where = find_slice(published.slice_name)
    request = make_request("planned", size=(1280, 720), frames=81)
    model = describe_model("wan2.1-t2v-14b")
    job = make_job(model, request, where, stages=("step",), attention="splash")
    base = runtime.default_cache_base()
    cache = FactsCache(None if base is None else base / "plans")
    (row,) = Planner(job, cache, _report).plan([published.layout])
    added = _kernel_difference(row, job) if published.kernel == FIXED_M else 0.0
    low, high = (seconds + added for seconds in row.step_range)
    return Prediction(step_range=(low, high), fits=not row.misfits, peak_gib=row.peak_bytes / GIB)


def _report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _kernel_difference(row: Any, job: Any) -> float:
    """Seconds that the fixed-m kernel saves against ours in self-attention, negative."""
    costs = row.stages["step"].facts.costs
    total = 0.0
    for operation in costs.operations:
        shape = operation.attention
        if shape is None or shape.keys < job.geometry.num_tokens:
            continue
        theirs = job.geometry.num_tokens**2 * FIXED_M_BUNDLES
        cycles = (theirs - row.kernels[shape].per_head) * shape.heads * operation.times
        total += cycles / job.where.chip.clock_hz
    return total


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks; ties share theirs."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values, np.float64)
        return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def _errors(prediction: Prediction, measured: float) -> str:
    return "..".join(f"{100 * (s / measured - 1):+.0f}%" for s in prediction.step_range)


def format_table(runs: Sequence[PublishedRun], predictions: Sequence[Prediction]) -> str:
    """A Markdown row per run, then the rank correlations."""
    header = ("source", "slice", "layout", "kernel", "measured s", "measured s/step")
    header += ("predicted s/step", "error", "peak GiB", "note")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for published, prediction in zip(runs, predictions, strict=True):
        measured = published.measured_step_seconds
        cells = (
            published.source,
            published.slice_name,
            str(published.layout),
            published.kernel,
            "-" if published.seconds is None else f"{published.seconds:g}",
            "-" if measured is None else f"{measured:.2f}",
            "..".join(f"{seconds:.2f}" for seconds in prediction.step_range),
            "-" if measured is None else _errors(prediction, measured),
            f"{prediction.peak_gib:.1f}" + ("" if prediction.fits else " (does not fit)"),
            published.note,
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for name, chosen in (
        ("all timed runs", [True] * len(runs)),
        ("the reference implementation, flash", [r.kernel == FLASH for r in runs]),
        ("all but flash", [r.kernel != FLASH for r in runs]),
    ):
        pairs = [
            (r.measured_step_seconds, p.step_range[0])
            for r, p, wanted in zip(runs, predictions, chosen, strict=True)
            if wanted and r.measured_step_seconds is not None
        ]
        if len(pairs) > 2:
            value = rank_correlation(*zip(*pairs, strict=True))
            lines.append(f"Rank correlation, {name} ({len(pairs)}): {value:.2f}")
    return "\n".join(lines) + "\n"
