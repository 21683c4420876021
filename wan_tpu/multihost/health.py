"""What process 0 knows of the followers: their ranks, their positions, whether they are well."""

import dataclasses
import time

from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.identity import Identity
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.messages import HEARTBEAT_SECONDS, Left, Position

GRACE_SECONDS = 5.0
"""A process that fails because another one died may report first; the dead one is to be named."""

STALL_FACTOR = 5
"""A unit of a stage that takes so much longer than any before it in this job, and longer than the
patience, will never end: some process hangs inside a program, and all others wait in it."""


class SilenceTimer:
    """How long a peer has sent nothing, counted in this process's own heartbeats.

    Counted, not read off a clock: a process that was itself stopped for a minute has not listened
    for a minute, and must not blame the others.
    """

    def __init__(self) -> None:
        self._heartbeats = 0

    def reset(self) -> None:
        """The peer sent something."""
        self._heartbeats = 0

    def tick(self) -> float:
        """Another heartbeat of this process passed; returns the seconds of silence so far."""
        self._heartbeats += 1
        return (self._heartbeats - 1) * HEARTBEAT_SECONDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaderPosition:
    """Where process 0 is.

    Attributes:
        job: the job's number, from 1; 0 before the first.
        barrier: of the job, how many it has passed.
        stage: of the pipeline.
        has_left: whether it is not in the job any more.
    """

    job: int
    barrier: int
    stage: str
    has_left: bool

    @property
    def compiles(self) -> bool:
        """Whether it is in the compiler, which takes as long as it takes."""
        return is_compiling(self.stage)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Peer:
    """A follower, as process 0 knows it.

    Attributes:
        machine: its name, for people.
        identity: what it runs, once it has sent that.
        is_loaded: whether it waits for jobs.
        position: at its last heartbeat.
        left: how it left the job, once it has.
        leaving: why it will end after this job, if it sent that.
        goodbye: why it ends, if it sent that.
        is_gone: whether it has closed the connection.
    """

    process_id: int
    machine: str
    connection: Connection
    silence: SilenceTimer = dataclasses.field(default_factory=SilenceTimer)
    identity: Identity | None = None
    is_loaded: bool = False
    position: Position = dataclasses.field(default_factory=Position)
    left: Left | None = None
    leaving: str = ""
    goodbye: str = ""
    is_gone: bool = False
    _previous: tuple[int, int] = (0, 0)
    _stuck_heartbeats: int = 0
    _failed_heartbeats: int = 0

    @property
    def name(self) -> str:
        """Its name in messages to people."""
        return f"process {self.process_id} ({self.machine})"

    def begin(self) -> None:
        """The next job begins."""
        self.left = None
        self._stuck_heartbeats = self._failed_heartbeats = 0

    def problem(self, leader: LeaderPosition, patience_seconds: float) -> str:
        """Asked once a heartbeat: why this process counts as lost; empty while it does not."""
        silent = self.silence.tick()
        if silent > patience_seconds:
            return f"has sent nothing for {silent:g} s"
        if silent > 2 * HEARTBEAT_SECONDS:
            return ""  # its position is not known
        if self._seconds_stuck(leader) > patience_seconds:
            at = self.position
            stage = f" ({at.stage})" if at.stage else ""
            return (
                f"hangs: it is still at barrier {at.barrier} of job {at.job}{stage}, "
                f"process 0 at barrier {leader.barrier} of job {leader.job}"
            )
        failed = self.left is not None and self.left.outcome == Outcome.FAILED
        # What cannot be compiled fails in all, but not in all at once.
        alone = failed and not leader.has_left and not leader.compiles
        self._failed_heartbeats = self._failed_heartbeats + 1 if alone else 0
        if self.left is not None and self._failed_heartbeats * HEARTBEAT_SECONDS > GRACE_SECONDS:
            return f"failed where process 0 did not: {self.left.reason}"
        return ""

    def divergence(self, leader: LeaderPosition, outcome: Outcome) -> str:
        """How this process left the job otherwise than process 0 did; empty if it did not."""
        left = self.left
        assert left is not None
        # What stops one may be an error in another: process 0 alone fails when its disk is full.
        # But a program that was compiled in some of them only is not asked for in step again.
        stopped = Outcome.DONE not in (left.outcome, outcome) and not leader.compiles
        alike = left.outcome == outcome or stopped
        if alike and (left.job, left.barrier) == (leader.job, leader.barrier):
            return ""
        return (
            f"it is {left.outcome} with job {left.job} at barrier {left.barrier} "
            f"({left.reason or 'no error'}), process 0 {outcome} with job {leader.job} at barrier "
            f"{leader.barrier}"
        )

    def _seconds_stuck(self, leader: LeaderPosition) -> float:
        """How long it has been behind process 0 without moving."""
        at = (self.position.job, self.position.barrier)
        is_behind = leader.job > 0 and (leader.has_left or at < (leader.job, leader.barrier))
        is_behind = is_behind and self.left is None and not is_compiling(self.position.stage)
        # Heartbeats are old when steps are short: a process that moves is well, however far behind.
        is_stuck = is_behind and at == self._previous
        self._previous = at
        self._stuck_heartbeats = self._stuck_heartbeats + 1 if is_stuck else 0
        return self._stuck_heartbeats * HEARTBEAT_SECONDS


class StallDetector:
    """Finds out when no process advances, by how long units of a stage take: steps, frames."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A stage begins."""
        self._longest = 0.0
        self._barriers = self._heartbeats = 0
        self._since = time.monotonic()

    def advance(self) -> None:
        """Process 0 has passed a barrier."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._since = now
        self._barriers, self._heartbeats = self._barriers + 1, 0

    def problem(self, patience_seconds: float) -> str:
        """Asked once a heartbeat: how long this unit takes already, if that is too long."""
        self._heartbeats += 1
        elapsed = self._heartbeats * HEARTBEAT_SECONDS
        # The first barrier of a stage is its start; a unit's time is known from the second.
        if self._barriers < 2 or elapsed <= max(patience_seconds, STALL_FACTOR * self._longest):
            return ""
        return f"for {elapsed:g} s, where {self._longest:.1f} s were the most before"


def is_compiling(stage: str) -> bool:
    """Whether a stage, by the name of `stage_name`, is the compiler's."""
    return stage.startswith("compile ")


def stage_name(stage: str, *, is_over: bool) -> str:
    """The name of a stage in a position: a program that is compiled runs under that name."""
    return stage.replace("compile ", "compiled ", 1) if is_over else stage
