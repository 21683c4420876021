"""Records a profile in the engine's process, beside the job that runs. One at a time."""

import logging
import pathlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.engine.messages import Record, Recorded
from wan_tpu.errors import OutputError
from wan_tpu.pipeline.progress import Progress

if TYPE_CHECKING:
    from wan_tpu.pipeline.profiling import Profile

logger = logging.getLogger("server.engine")

WAIT_SECONDS = 600.0
"""For the steps that a profile is to hold: there may be no job, or a slow one."""


class Recorder:
    """Takes what the service asks for; is told of every progress of every job."""

    def __init__(self, answer: Callable[[Recorded], None], *, wait_seconds: float = WAIT_SECONDS):
        """Records nothing yet.

        Args:
            answer: told what became of a profile, once it is written or is none.
            wait_seconds: how long a profile waits for its steps.
        """
        self._answer = answer
        self._wait_seconds = wait_seconds
        self._profile: Profile | None = None
        self._asked: Record | None = None
        self._over = threading.Event()

    def begin(self, asked: Record) -> None:
        """Begins a profile in a thread of its own; the service asks for one after the other."""
        self._asked = asked
        self._over.clear()
        threading.Thread(target=self._record, args=(asked,), name="recorder", daemon=True).start()

    def note(self, progress: Progress) -> None:
        """A job has got on."""
        profile = self._profile
        if profile is not None:
            profile.note(progress)
            if profile.is_over:
                self._over.set()

    def leave_job(self) -> None:
        """A job has ended, however: what was recorded of its steps is written."""
        asked, profile = self._asked, self._profile
        if asked is None or profile is None or asked.steps is None:
            return
        if profile.folder is not None:  # it has begun
            self._over.set()

    def cancel(self, name: str) -> bool:
        """Ends a profile of this name before its time; whether there is one."""
        if self._asked is None or name != self._asked.profile:
            return False
        self._over.set()
        return True

    def _record(self, asked: Record) -> None:
        try:
            problem = self._fill(asked)
        except OutputError as error:
            problem = str(error)
        self._profile, self._asked = None, None
        self._answer(Recorded(profile=asked.profile, problem=problem))

    def _fill(self, asked: Record) -> str | None:
        """Waits for the profile's end; returns why there is none."""
        from wan_tpu.pipeline.profiling import Profile  # it loads JAX, which takes a second

        with Profile(pathlib.Path(asked.folder), steps=asked.steps) as profile:
            if asked.seconds is not None:
                profile.begin()
            self._profile = profile
            self._over.wait(self._wait_seconds if asked.seconds is None else asked.seconds)
        logger.info("%s: %s", asked.profile, profile.problem or profile.describe())
        return profile.problem
