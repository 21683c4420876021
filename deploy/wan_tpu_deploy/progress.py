"""What a worker says of the run that is trained there."""

import dataclasses
import json
from typing import Optional

FINISHED, RUNNING = "finished", "running"
UP = ("active/running", "activating/auto-restart", "activating/start-pre")
"""What systemd calls a run that trains, or is about to."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        run: its name.
        unit: what systemd says of it, such as `active/running`.
        failures: how often it failed lately.
        state: `running`, `finished`, `stopped`, `killed` or why it failed, as `wan-tpu train
            status` says; "" while there is nothing to be said.
        step: steps done. steps: of all.
        loss: mean of the last steps; None before the first.
        hours_left: None before the first step.
        stage: what it does before its first step, or "".
        checkpoint: the last step that is kept; None before the first.
    """

    run: str
    unit: str
    failures: int
    state: str
    step: int = 0
    steps: int = 0
    loss: Optional[float] = None
    hours_left: Optional[float] = None
    stage: str = ""
    checkpoint: Optional[int] = None

    @property
    def is_up(self) -> bool:
        """Whether it trains, or will again by itself."""
        return self.unit in UP

    @property
    def is_finished(self) -> bool:
        """Whether it has done all its steps."""
        return self.state == FINISHED

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to be done: it makes steps, or has made all."""
        return self.is_finished or (self.is_up and self.state == RUNNING and not self.stage)

    def describe(self) -> str:
        """One line for people."""
        if not self.state:
            return f"{self.run}: nothing to be seen of it yet ({self.unit})"
        words = [f"{self.run}: {self.state}, step {self.step} of {self.steps}"]
        if self.loss is not None:
            words.append(f"loss {self.loss:.4g}")
        if self.is_up and self.stage:
            words.append(self.stage)
        elif self.is_up and self.hours_left is not None:
            words.append(f"{self.hours_left:.1f} h left")
        words.append("no checkpoint yet" if self.checkpoint is None else f"kept: {self.checkpoint}")
        if self.failures:
            words.append(f"failed {self.failures} times lately")
        return ", ".join(words)


def read_progress(fact: dict[str, str]) -> Optional[Progress]:
    """What a worker's facts say of a run; None where none was ever started."""
    if not fact.get("run"):
        return None
    failures = fact.get("failures", "")
    run, unit = fact["run"], fact.get("trainer", "?")
    known = Progress(run, unit, int(failures) if failures.isdigit() else 0, "")
    try:
        said = json.loads(fact.get("training", ""))
    except ValueError:
        return known
    return dataclasses.replace(
        known,
        state=str(said.get("state", "")),
        step=said.get("step") or 0,
        steps=said.get("steps") or 0,
        loss=said.get("loss"),
        hours_left=said.get("hours_left"),
        stage=said.get("stage") or "",
        checkpoint=(said.get("checkpoint") or {}).get("step"),
    )


def unit_of(fact: dict[str, str], otherwise: str) -> str:
    """What systemd says of a worker's service, or of its run where the service does not run."""
    unit = fact.get("unit", otherwise)
    return fact.get("trainer", unit) if fact.get("run") and unit != UP[0] else unit
