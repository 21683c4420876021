"""What an evaluation is asked for. No JAX."""

import dataclasses
from pathlib import Path

CLIPS = 8
"""Of the data, unless asked otherwise."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be evaluated.

    Attributes:
        data: a folder that `wan-tpu dataset prepare` made; None for the run's own.
        clips: how many of it, spread evenly; all where it has fewer.
        prompts: of the videos; none makes none.
        step: of the checkpoint; None for the newest.
        ema: the average instead of the parameters.
    """

    data: Path | None = None
    clips: int = CLIPS
    prompts: tuple[str, ...] = ()
    step: int | None = None
    ema: bool = False
