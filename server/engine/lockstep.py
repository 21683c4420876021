"""The service over several processes, one or more on each host of a slice.

The invariant: **every process runs the same programs in the same order.** One that runs another
program, or one more, makes all of them wait for each other for ever. So:

* Process 0 decides, and sends each decision before it acts on it: which job is next, at every step
  whether to go on or to cancel, the end of a job, the end of all. It alone has a queue, files and
  clients.
* The followers obey. They read no file and no clock to decide anything, and keep nothing of a job:
  they begin it with the request and the pictures that process 0 sent, and ask it wherever the
  pipeline asks `should_cancel`, which is at the same places in all of them.
* A process leaves a job by itself only when the job raised an error there. Process 0 begins the
  next job only after all have left the one before at the same barrier; else it ends, with code 75.
* A process that loses another one ends with 75, without asking the main thread: that waits inside
  XLA for the one that is lost. The job goes back to the queue, and whoever started the processes
  (systemd) starts all of them anew.

The engine itself knows of none of this.
"""

import contextlib
import dataclasses
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from server.engine.failure import Failure
from server.engine.seam import Engine
from server.logs import flush_logging
from server.settings import Settings
from server.signals import ending_signals
from wan_tpu.errors import Cancelled, ProcessLostError, WanTpuError
from wan_tpu.media import Media
from wan_tpu.multihost.follower import Follower
from wan_tpu.multihost.group import Joined
from wan_tpu.multihost.identity import Identity, make_identity
from wan_tpu.multihost.join import join
from wan_tpu.multihost.leader import Leader
from wan_tpu.multihost.lockstep import EXIT_LOST, Lockstep, run_in_step
from wan_tpu.pipeline.progress import Calls, Outcome, Progress
from wan_tpu.request import VideoRequest

logger = logging.getLogger("server.lockstep")


class LeadingEngine:
    """An engine in process 0 with the engines of all others behind it; see `Engine`."""

    def __init__(
        self, engine: Engine, settings: Settings, *, on_waiting: Callable[[str], None]
    ) -> None:
        """Takes an engine that was not started.

        Args:
            engine: of this process.
            settings: of the server.
            on_waiting: called with the processes that are waited for.
        """
        self._engine = engine
        self._settings = settings
        self._on_waiting = on_waiting
        self._leader: Leader | None = None

    def start(self, joined: Joined | None = None) -> None:
        """See `Engine.start`; all processes find each other, compare themselves and load."""
        assert joined is None, "it finds the others itself"
        _, joined = _join(
            self._settings,
            on_waiting=self._on_waiting,
            on_stop=lambda: None,
            on_process=self._lead_with,
        )
        with self._failing_together():
            self._engine.start(joined)

    def warm_up(self, on_progress: Callable[[Progress], None]) -> None:
        """See `Engine.warm_up`; waits until all have compiled."""
        with self._failing_together():
            self._engine.warm_up(on_progress)
        self._leading.loaded()

    def measure(
        self, on_progress: Callable[[Progress], None], should_cancel: Callable[[], bool]
    ) -> None:
        """See `Engine.measure`; in all processes, as a job of its own."""
        if self._settings.batch == 1:
            return
        leader = self._leading

        def report(progress: Progress) -> None:
            _note(leader, progress)
            on_progress(progress)

        def make(_: dict[str, Any], should_stop: Callable[[], bool]) -> None:
            self._engine.measure(report, should_stop)

        run_in_step(leader, {"measure": True}, make, asked=should_cancel)

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return {**self._engine.describe(), "num_processes": self._settings.group.num_processes}

    def probe_request(self) -> tuple[VideoRequest, Media]:
        """See `Engine.probe_request`."""
        return self._engine.probe_request()

    def generate(
        self,
        request: VideoRequest,
        *,
        media: Media,
        on_frames: Callable[[np.ndarray], None] | None,
        on_progress: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
    ) -> dict[str, Any]:
        """See `Engine.generate`; in all processes."""
        leader = self._leading

        def report(progress: Progress) -> None:
            _note(leader, progress)
            on_progress(progress)

        def make(_: dict[str, Any], should_stop: Callable[[], bool]) -> dict[str, Any]:
            return self._engine.generate(
                request,
                media=leader.receive_media(),
                on_frames=on_frames,
                on_progress=report,
                should_cancel=should_stop,
            )

        task = {"request": dataclasses.asdict(request)}
        metadata = run_in_step(leader, task, make, media=media, asked=should_cancel)
        return {**metadata, "lockstep": leader.account()}

    def generate_together(self, requests: Sequence[VideoRequest], calls: Calls) -> None:
        """See `Engine.generate_together`; in all processes."""
        leader = self._leading

        def note(members: Sequence[int], progress: Progress) -> None:
            _note(leader, progress)
            calls.on_progress(members, progress)

        def end(member: int, outcome: Outcome) -> None:
            if isinstance(outcome, dict):
                outcome = {**outcome, "lockstep": leader.account()}
            calls.on_end(member, outcome)

        def make(_: dict[str, Any], __: Callable[[], bool]) -> None:
            in_step = dataclasses.replace(
                calls,
                on_progress=note,
                on_end=end,
                cancelled=lambda: leader.stopped(calls.cancelled),
            )
            self._engine.generate_together(requests, in_step)

        run_in_step(leader, {"together": [dataclasses.asdict(each) for each in requests]}, make)

    def failure_of(self, error: Exception) -> Failure:
        """See `Engine.failure_of`."""
        return self._engine.failure_of(error)

    def stop(self) -> None:
        """Ends all other processes, whatever they are at."""
        if self._leader is not None:
            self._leader.close()

    def _lead_with(self, process: Lockstep) -> None:
        assert isinstance(process, Leader)
        self._leader = process

    @contextlib.contextmanager
    def _failing_together(self) -> Iterator[None]:
        """What fails in process 0 fails in all: the others need not wait for it."""
        try:
            yield
        except Exception as error:
            self._leading.give_up(f"{type(error).__name__}: {error}")
            raise

    @property
    def _leading(self) -> Leader:
        assert self._leader is not None, "start the engine first"
        return self._leader


def follow(settings: Settings) -> NoReturn:
    """Runs a process that is not number 0, until it is told to end."""
    ending = _Ending(settings.drain_seconds)
    ending.take_signals()
    try:
        process, joined = _join(
            settings,
            on_waiting=logger.info,
            on_stop=lambda: ending.end(0, "process 0 has stopped all"),
            on_process=ending.know,
        )
        engine = make_engine(settings)
        engine.start(joined)
        ending.take_signals()  # again: the TPU runtime has handlers of its own
        engine.warm_up(lambda progress: logger.debug("compiling: %s", progress.stage))
        process.loaded()
        logger.info("ready: this process makes what process 0 begins")
        while True:
            _make(engine, process)
    except ProcessLostError as error:
        ending.end(EXIT_LOST, str(error))
    except WanTpuError as error:
        ending.end(1, str(error))
    except Exception as error:  # an orderly end of Python would wait in JAX for the others
        logger.exception("this process cannot go on")
        ending.end(1, f"{type(error).__name__}: {error}")


def make_engine(settings: Settings) -> Engine:
    """What makes the videos, by the settings."""
    module, name = settings.engine.split(":")
    return getattr(importlib.import_module(module), name)(settings)


def end_for_loss(message: str) -> NoReturn:
    """Ends this process for another one that is lost."""
    logger.error("%s; ending with %d", message, EXIT_LOST)
    _exit(EXIT_LOST)


class _Ending:
    """Ends a follower: told to by process 0, by a signal, or because it cannot go on.

    Signals have a thread of their own. Python would call a handler on the main thread, which may
    be inside XLA until another process moves.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._process: Lockstep | None = None
        self._arrived, self._tells = socket.socketpair()
        self._tells.setblocking(False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def know(self, process: Lockstep) -> None:
        """From now on, process 0 is to learn of the end."""
        self._process = process

    def take_signals(self) -> None:
        """Takes the signals that end a server; on the main thread."""
        for number in ending_signals():
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._tells.fileno())

    def _listen(self) -> None:
        """Lets the running job finish at the first signal; ends at the second."""
        (number,) = self._arrived.recv(1)
        reason = f"it was told to by {signal.Signals(number).name}"
        threading.Thread(target=self._finish, args=(reason,), daemon=True).start()
        self._arrived.recv(1)
        self.end(0, reason)

    def _finish(self, reason: str) -> None:
        if isinstance(self._process, Follower):
            self._process.finish(reason, self._grace_seconds)
        self.end(0, reason)

    def end(self, status: int, reason: str) -> NoReturn:
        """Says why, also to process 0, and ends the process."""
        if self._process is not None:
            self._process.give_up(reason)
        logger.log(logging.INFO if status == 0 else logging.ERROR, "ending: %s", reason)
        _exit(status)


def _join(settings: Settings, **callbacks: Any) -> tuple[Lockstep, Joined | None]:
    """Finds the other processes and compares them with this one."""
    return join(
        settings.group,
        lambda: _identity(settings),
        on_lost=end_for_loss,
        join_seconds=settings.join_timeout_seconds,
        patience_seconds=settings.peer_timeout_seconds,
        **callbacks,
    )


def _identity(settings: Settings) -> Identity:
    # JAX adds to the variables that decide programs when it is imported: it has to be, everywhere.
    importlib.import_module("wan_tpu.runtime")
    # What decides which programs run; the other settings are process 0's own affair.
    shared = settings.load_options.identity()
    shared |= {name: getattr(settings, name) for name in ("warm_up", "engine", "batch")}
    return make_identity(
        model_paths=settings.load_options.open_model().paths,
        settings={f"WAN_TPU_{name.upper()}": value for name, value in shared.items()},
        packages=("wan_tpu", "server"),
    )


def _note(process: Lockstep, progress: Progress) -> None:
    process.note(progress.stage, is_over=progress.done >= progress.total)


def _make(engine: Engine, process: Lockstep) -> None:
    """One job, from the message that begins it until this process has left it."""

    def make(task: dict[str, Any], should_stop: Callable[[], bool]) -> None:
        def note(progress: Progress) -> None:
            _note(process, progress)

        if "measure" in task:
            engine.measure(note, should_stop)
        elif "together" in task:
            calls = Calls(
                on_progress=lambda _, progress: note(progress),
                cancelled=lambda: process.stopped(lambda: ()),
            )
            engine.generate_together([VideoRequest(**each) for each in task["together"]], calls)
        else:
            engine.generate(
                VideoRequest(**task["request"]),
                media=process.receive_media(),
                on_frames=None,
                on_progress=note,
                should_cancel=should_stop,
            )

    try:
        run_in_step(process, None, make)
    except Cancelled:
        pass
    except Exception:  # the boundary of jobs: process 0 knows what is to be done
        logger.exception("this process left the job")


def _exit(status: int) -> NoReturn:
    """Ends this process at once: what waits inside XLA for another one cannot be interrupted."""
    flush_logging()
    os._exit(status)
