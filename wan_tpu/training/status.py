"""How far a run is, read from its folder while another process may write there. No JAX."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wan_tpu.training.lock import holder_of, is_held
from wan_tpu.training.log import read_log
from wan_tpu.training.metrics import FINISHED, Ended, Line, Sampled, Saved, Stage, Started, Step
from wan_tpu.training.progress import hours_left
from wan_tpu.training.run_folder import read_run

RECENT = 50
"""Lines of steps that losses are the mean of: one is too few to see where they go."""

RUNNING, KILLED = "running", "killed"


def read_status(path: Path) -> dict[str, Any]:
    """The state of a run, JSON-ready.

    Returns:
        `state`: `running`, `finished`, `stopped`, `killed` or why it failed; `step` of `steps`;
        `stage` before the first step; `last`, the newest line of steps, or None; means over the
        last 50 lines of `loss`, `loss_by_sigma`, `loss_by_expert` and of the speeds;
        `checkpoint`, `samples`, `hours_left`; `starts` with what changed.

    Raises:
        InputError: there is no run.
        OutputError: the folder is of another program, or of a later version.
        WanTpuError: its log is damaged.
    """
    run = read_run(path)
    lock = path / "lock"
    running = is_held(lock)  # before the log: what ends meanwhile has not written less
    lines = read_log(path / "log.jsonl")
    steps = [line for line in lines if isinstance(line, Step)]
    last = steps[-1] if steps else None
    recent = steps[-RECENT:]
    of_all = run["config"]["train.steps"]
    done = max((line.step for line in lines), default=0)
    pace = _mean([line.seconds for line in recent])
    return {
        "run": str(path),
        "kind": run["kind"],
        "model": run["config"]["model.name"],
        "state": RUNNING if running else _ending(lines),
        "holder": holder_of(lock) if running else None,
        "stage": _stage(lines) if running else None,
        "step": done,
        "steps": of_all,
        "epoch": last.epoch if last else 0.0,
        "learning_rate": last.learning_rate if last else None,
        "loss": _mean([line.loss for line in recent]),
        "loss_by_sigma": _means([line.loss_by_sigma for line in recent]),
        "loss_by_expert": _means([line.loss_by_expert for line in recent]),
        "gradient_norm": _mean([line.gradient_norm for line in recent]),
        "seconds_a_step": pace,
        "samples_per_second": _mean([line.samples_per_second for line in recent]),
        "tokens_per_second": _mean([line.tokens_per_second for line in recent]),
        "mfu": _mean([line.mfu for line in recent]),
        "hours_left": hours_left(last) if last else None,
        "last_line": last.time if last else None,
        "checkpoint": _newest_checkpoint(lines),
        "samples": [file for line in lines if isinstance(line, Sampled) for file in line.files],
        "settings": _settings(lines),
        "starts": run["starts"],
    }


def _ending(lines: Sequence[Line]) -> str:
    """Why nobody trains; without a last word, the process was killed."""
    if lines and isinstance(lines[-1], Ended):
        return lines[-1].reason
    return KILLED if lines else "not begun"


def _stage(lines: Sequence[Line]) -> str | None:
    """What a process does that has no step yet since it began."""
    return lines[-1].name if lines and isinstance(lines[-1], Stage) else None


def _settings(lines: Sequence[Line]) -> Mapping[str, object] | None:
    """What the newest process has chosen."""
    started = [line.settings for line in lines if isinstance(line, Started)]
    return started[-1] if started else None


def _newest_checkpoint(lines: Sequence[Line]) -> dict[str, Any] | None:
    saved = [line for line in lines if isinstance(line, Saved)]
    if not saved:
        return None
    return {"step": saved[-1].step, "time": saved[-1].time}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _means(lines: Sequence[Any]) -> dict[str, float]:
    """By name, over the lines that have it."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in sorted(found.items())}


def describe_status(status: dict[str, Any]) -> str:
    """The same as lines of text."""
    rows = [
        ("run", f"{status['run']}: {status['kind']}, {status['model']}"),
        ("state", _state(status)),
        ("step", f"{status['step']} of {status['steps']}, epoch {status['epoch']:.2f}"),
    ]
    if status["seconds_a_step"] is not None:
        rows += _speed(status)
    checkpoint = status["checkpoint"]
    saved = "none yet" if checkpoint is None else f"step {checkpoint['step']}, {_ago(checkpoint)}"
    rows.append(("checkpoint", saved))
    if status["samples"]:
        rows.append(("samples", f"{len(status['samples'])}, the last {status['samples'][-1]}"))
    return "".join(f"{name:<12}{words}\n" for name, words in rows)


def _state(status: dict[str, Any]) -> str:
    if status["state"] == RUNNING:
        holder = status["holder"]
        who = f", process {holder['pid']} on {holder.get('host')}" if "pid" in holder else ""
        doing = f", {status['stage']}" if status["stage"] else ""
        return f"running{who}{doing}"
    if status["state"] in (FINISHED, "not begun"):
        return status["state"]
    return f"{status['state']}; the same command goes on after the last checkpoint"


def _speed(status: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("loss", _number(status["loss"]))]
    for kind in ("sigma", "expert"):
        losses = status[f"loss_by_{kind}"]
        if losses:
            shown = "  ".join(f"{name}: {value:.4g}" for name, value in losses.items())
            rows.append((f"by {kind}", shown))
    mfu = "" if status["mfu"] is None else f", MFU {100 * status['mfu']:.1f} %"
    rows += [
        ("gradient", f"norm {_number(status['gradient_norm'])}, rate {status['learning_rate']:g}"),
        ("speed", f"{status['seconds_a_step']:.3g} s a step, "
         f"{status['samples_per_second']:.3g} samples/s, "
         f"{status['tokens_per_second']:.3g} tokens/s{mfu}"),
    ]  # fmt: skip
    if status["step"] < status["steps"]:
        rows.append(("left", f"{status['hours_left']:.2f} h"))
    return rows


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def _ago(line: dict[str, Any]) -> str:
    minutes = max(0.0, time.time() - line["time"]) / 60
    return f"{minutes:.0f} min ago" if minutes < 120 else f"{minutes / 60:.0f} h ago"
