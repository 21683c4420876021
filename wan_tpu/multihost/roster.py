"""What process 0 knows of the others: who they are, where they are, and whether they are well."""

import dataclasses
import time

from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.identity import Identity
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.words import BEAT_SECONDS, At, Left, Silence

GRACE_SECONDS = 5.0
"""A process that fails because another one died may be heard first; the dead one is to be named."""

STILL_FACTOR = 5
"""A unit of a stage that takes so much longer than any before it in this job, and longer than the
patience, will never end: somebody hangs inside a program, and all others wait in it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where process 0 is.

    Attributes:
        number: of the job, from 1; 0 before the first.
        point: how many times it has said to go on or to cancel.
        stage: of the pipeline.
        has_left: whether it is not in the job any more.
    """

    number: int
    point: int
    stage: str
    has_left: bool

    @property
    def compiles(self) -> bool:
        """Whether it is in the compiler, which takes as long as it takes."""
        return is_compiling(self.stage)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """One of the others.

    Attributes:
        machine: its name, for people.
        identity: what it said it is, once it has.
        is_loaded: whether it waits for jobs.
        at: where it was at its last beat.
        left: how it left the job, once it has.
        leaving: why it will end after this job, if it said so.
        goodbye: why it ends, if it said so.
        is_gone: whether it has hung up.
    """

    process_id: int
    machine: str
    connection: Connection
    silence: Silence = dataclasses.field(default_factory=Silence)
    identity: Identity | None = None
    is_loaded: bool = False
    at: At = dataclasses.field(default_factory=lambda: At(number=0, point=0, stage=""))
    left: Left | None = None
    leaving: str = ""
    goodbye: str = ""
    is_gone: bool = False
    _was: tuple[int, int] = (0, 0)
    _stuck_beats: int = 0
    _failed_beats: int = 0

    @property
    def name(self) -> str:
        """What people are told that it is."""
        return f"process {self.process_id} ({self.machine})"

    def begin(self) -> None:
        """The next job begins."""
        self.left = None
        self._stuck_beats = self._failed_beats = 0

    def what_is_wrong(self, here: Here, patience_seconds: float) -> str:
        """Asked once a beat: what this process is lost for; empty while it is not."""
        silent = self.silence.passed()
        if silent > patience_seconds:
            return f"has not been heard of for {silent:g} s"
        if silent > 2 * BEAT_SECONDS:
            return ""  # where it is, is not known
        if self._seconds_stuck(here) > patience_seconds:
            stage = f" ({self.at.stage})" if self.at.stage else ""
            return (
                f"hangs: it is still at point {self.at.point} of job {self.at.number}{stage}, "
                f"process 0 at point {here.point} of job {here.number}"
            )
        failed = self.left is not None and self.left.outcome == Outcome.FAILED
        # What cannot be compiled fails in all, but not in all at once.
        alone = failed and not here.has_left and not here.compiles
        self._failed_beats = self._failed_beats + 1 if alone else 0
        if self.left is not None and self._failed_beats * BEAT_SECONDS > GRACE_SECONDS:
            return f"failed where process 0 did not: {self.left.reason}"
        return ""

    def left_otherwise(self, here: Here, outcome: Outcome) -> str:
        """What differs between how this process left the job and how process 0 did; or nothing."""
        left = self.left
        assert left is not None
        # What stops one may be an error in another: process 0 alone fails when its disk is full.
        # But a program that was compiled in some of them only is not asked for in step again.
        stopped = Outcome.DONE not in (left.outcome, outcome) and not here.compiles
        alike = left.outcome == outcome or stopped
        if alike and (left.number, left.point) == (here.number, here.point):
            return ""
        return (
            f"it is {left.outcome} with job {left.number} at point {left.point} "
            f"({left.reason or 'no error'}), process 0 {outcome} with job {here.number} at point "
            f"{here.point}"
        )

    def _seconds_stuck(self, here: Here) -> float:
        """How long it has been behind process 0 without moving."""
        place = (self.at.number, self.at.point)
        is_behind = here.number > 0 and (here.has_left or place < (here.number, here.point))
        is_behind = is_behind and self.left is None and not is_compiling(self.at.stage)
        # Beats are old when steps are short: who moves is well, however far behind it seems.
        is_stuck = is_behind and place == self._was
        self._was = place
        self._stuck_beats = self._stuck_beats + 1 if is_stuck else 0
        return self._stuck_beats * BEAT_SECONDS


class Pace:
    """How long the units of process 0's stage take: steps, frames."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A stage begins."""
        self._longest = 0.0
        self._points = self._beats = 0
        self._since = time.monotonic()

    def point(self) -> None:
        """Process 0 has come one point further."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._since = now
        self._points, self._beats = self._points + 1, 0

    def what_is_wrong(self, patience_seconds: float) -> str:
        """Asked once a beat: how long this unit takes already, if that is too long."""
        self._beats += 1
        still = self._beats * BEAT_SECONDS
        # The first point of a stage is its start; how long a unit takes is known from the second.
        if self._points < 2 or still <= max(patience_seconds, STILL_FACTOR * self._longest):
            return ""
        return f"for {still:g} s, where {self._longest:.1f} s were the most before"


def is_compiling(stage: str) -> bool:
    """Whether a stage, as it was noted, is the compiler's."""
    return stage.startswith("compile ")


def noted(stage: str, *, is_over: bool) -> str:
    """How a stage is noted: once a program is compiled, it runs under that name."""
    return stage.replace("compile ", "compiled ", 1) if is_over else stage
