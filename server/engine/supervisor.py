"""Keeps an engine running that works: starts it, again when it ends, and has it prove itself.

An engine that has failed several jobs in a row is started anew and makes a small video of the
service's own before it gets the next job: a broken one does not use up the queue, and one that
works again is ready without anybody's help.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from server.engine.client import EngineClient
from server.engine.failure import ENGINES_OWN, EngineFailure
from server.engine.patience import Patience
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 300.0
USUAL_RETRY_SECONDS = 30.0
"""When to come again to an engine that is at something whose end is not known."""

START = "starting the engine"


class Supervisor:
    """The life of the engine's processes, one after the other.

    Attributes:
        description: of the engine that was started last, as `Engine.describe`.
    """

    def __init__(self, engine: EngineClient, settings: Settings, metrics: Metrics):
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._at: str | None = START
        self._has_started = False
        self._delay = FIRST_RETRY_SECONDS
        self._next_try: float | None = None
        self._trouble = ""
        self._failures = 0
        self._last_failure = ""
        self._last_job: str | None = None
        self.description: dict[str, Any] = {}

    @property
    def missing(self) -> list[str]:
        """What stands between the engine and being ready, as sentences; empty when it is."""
        reasons = []
        if self._next_try is not None:
            seconds = max(0.0, self._next_try - time.monotonic())
            reasons.append(f"the engine is not ready: {self._trouble}; next try in {seconds:.0f} s")
        elif self._at is not None or not self._engine.is_alive:
            before = f" (the last try: {self._trouble})" if self._trouble else ""
            reasons.append(f"the engine is not ready: {self._at or START}{before}")
        if self.is_suspect:
            reasons.append(
                f"the last {self._failures} videos failed, the latest with: {self._last_failure}; "
                "jobs wait until a small one of the service's own succeeds"
            )
        return reasons

    @property
    def is_broken(self) -> bool:
        """Whether it is known that no job can be made now: it failed, and not only loads."""
        return self.is_suspect or self._next_try is not None

    @property
    def retry_seconds(self) -> float:
        """When to come again."""
        if self._next_try is None:
            return USUAL_RETRY_SECONDS
        return max(1.0, self._next_try - time.monotonic())

    async def ensure(self) -> None:
        """Returns once an engine runs that can be trusted with a job; cancelled, it leaves none.

        Raises:
            ProcessLost: the engine ended because another process of the slice was lost.
        """
        if self._engine.how_it_ended:
            self._note(None, self._engine.how_it_ended)
            logger.error("%s", self._engine.how_it_ended)
        while not self._engine.is_alive or self.is_suspect:
            try:
                if not self._engine.is_alive:
                    await self._start()
                if self.is_suspect:
                    await self._prove()
            except (EngineFailure, TimeoutError) as error:
                await self._engine.kill()
                await self._wait(str(error))

    def note_success(self) -> None:
        """A job was made."""
        self._failures, self._trouble, self._last_job = 0, "", None
        self._delay = FIRST_RETRY_SECONDS

    def note_failure(self, job_id: str, failure: EngineFailure) -> None:
        """A job failed; only what is the engine's own fault counts against it."""
        if failure.code in ENGINES_OWN:
            self._note(job_id, str(failure))

    async def end_suspect(self) -> None:
        """Ends an engine that has failed too often, once it has no work."""
        if self.is_suspect:
            self._at = "starting the engine anew"
            await self._engine.kill()  # a new process is the best cure there is

    @property
    def is_suspect(self) -> bool:
        """Whether it has failed too often, and has to prove itself before the next job."""
        return self._failures >= self._settings.max_failures

    def _note(self, job_id: str | None, words: str) -> None:
        """One job that always fails says less about the engine than several do: it counts once."""
        if job_id is None or job_id != self._last_job:
            self._failures += 1
        self._last_job, self._last_failure = job_id, words
        self._metrics.engine_failures.inc()

    async def _start(self) -> None:
        self._at = START
        started = time.monotonic()
        if self._has_started:
            self._metrics.engine_restarts.inc()
        self._has_started = True
        try:
            async with asyncio.timeout(self._settings.start_timeout_seconds) as bound:
                description = await self._engine.start(self._note_loading)
        except TimeoutError:
            if not bound.expired():
                raise
            at, seconds = self._at, self._settings.start_timeout_seconds
            raise TimeoutError(f"it did not start within {seconds:g} s ({at})") from None
        self.description = description
        told = (f"{name} {value}" for name, value in description.items() if name != "together")
        words = ", ".join(told)
        seconds = time.monotonic() - started
        logger.info("the engine is ready: %s", words, extra={"seconds": seconds})
        if not self.is_suspect:
            self._at, self._trouble = None, ""

    async def _prove(self) -> None:
        """Has the engine make a video of the service's own."""
        self._at = "making a small video to see whether the engine works again"
        seconds = self._settings.job_timeout_seconds
        try:
            async with asyncio.timeout(seconds) as bound:
                await self._engine.probe(timeout_seconds=seconds)
        except TimeoutError:
            if not bound.expired():
                raise
            raise TimeoutError(f"a small video took longer than {seconds:g} s") from None
        logger.info("the engine works again")
        self.note_success()
        self._at = None

    async def _wait(self, trouble: str) -> None:
        """Until the next try, which is ever later."""
        logger.error("the engine cannot be used: %s; next try in %g s", trouble, self._delay)
        self._trouble, self._next_try = trouble, time.monotonic() + self._delay
        try:
            await asyncio.sleep(self._delay)
        finally:
            self._next_try = None
        self._delay = min(2 * self._delay, LAST_RETRY_SECONDS)

    def _note_loading(self, what: str) -> None:
        self._at = what
        logger.debug("the engine is %s", what)


def patience_of(settings: Settings) -> Callable[[], Patience]:
    """What makes the judge of an engine process."""

    def make() -> Patience:
        return Patience(
            stall_seconds=settings.stall_seconds,
            compile_seconds=settings.compile_timeout_seconds,
            knows_steps=settings.group.num_processes == 1,
        )

    return make
