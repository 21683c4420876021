"""The compiled programs of a pipeline: each compiled once, in the background where asked.

A program needs no weights, so it may compile while they load. A service whose users ask for many
sizes would collect programs for ever, on the host and on the devices: those of the size that was
used least recently are dropped. Sizes compiled ahead of time stay.
"""

import atexit
import collections
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from wan_tpu.pipeline.progress import Watch
from wan_tpu.stage import Stage

MOST_SIZES = 8
"""Sizes whose programs are kept besides those compiled ahead of time."""

COMPILERS = 2
"""Programs that compile at the same time: one alone leaves the other cores idle mostly."""

Program = Callable[..., Any]
Compiled = concurrent.futures.Future[Program]

_TRACING = threading.Lock()
"""Tracing goes through torchax and Python's warning filters, which belong to the whole process."""


class Programs:
    """Compiled stages of one pipeline."""

    def __init__(self, most_sizes: int = MOST_SIZES):
        self._most_sizes = most_sizes
        self._sizes: collections.OrderedDict[Hashable, dict[Hashable, Compiled]] = (
            collections.OrderedDict()
        )
        self._pinned: set[Hashable] = {None}
        self._used: set[Hashable] = set()
        self._compilers = _Compilers(COMPILERS)

    def prepare(self, stages: Iterable[Stage]) -> None:
        """Begins to compile stages in the background; programs of their sizes are never dropped.

        Args:
            stages: the slowest to compile first.
        """
        for stage in stages:
            self._pinned.add(stage.size)
            self._find(stage, self._compilers.submit)

    def get(self, stage: Stage, watch: Watch) -> Program:
        """The program of a stage, compiled on first use.

        Processes in lock-step come through here alike: the first use of a program is reported as
        its compiling even where it is ready by then.

        Args:
            stage: what to compile.
            watch: told of the first use.
        """
        programs = self._sizes.get(stage.size, {})
        if stage.key in self._used and stage.key in programs:
            self._sizes.move_to_end(stage.size)
            return programs[stage.key].result()
        with watch.stage(f"compile {stage.name}", 1) as report:
            program = self._find(stage, _at_once).result()
            report(1)
        self._used.add(stage.key)
        self._drop_old_sizes()
        return program

    def __len__(self) -> int:
        """Programs that are kept or being compiled."""
        return sum(map(len, self._sizes.values()))

    def _find(self, stage: Stage, start: Callable[[Callable[[], Program]], Compiled]) -> Compiled:
        programs = self._sizes.setdefault(stage.size, {})
        self._sizes.move_to_end(stage.size)
        found = programs.get(stage.key)
        if found is None or (found.done() and found.exception() is not None):
            found = programs[stage.key] = start(lambda: compile_stage(stage))
        return found

    def _drop_old_sizes(self) -> None:
        free = [size for size in self._sizes if size not in self._pinned]
        for size in free[: max(len(free) - self._most_sizes, 0)]:
            self._used -= self._sizes.pop(size).keys()


def compile_stage(stage: Stage) -> Program:
    """Compiles a stage; several threads may do so at once."""
    with _TRACING:
        lowered = stage.lower()
    return stage.compile_lowered(lowered)


def _at_once(make: Callable[[], Program]) -> Compiled:
    """Runs here; what it raises is in the future."""
    future: Compiled = concurrent.futures.Future()
    _run(make, future)
    return future


def _run(make: Callable[[], Program], future: Compiled) -> None:
    try:
        future.set_result(make())
    except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the program
        future.set_exception(error)


class _Compilers:
    """Threads that compile what is waiting, a few at a time.

    When the interpreter ends, what waits is dropped and what compiles is waited for: XLA aborts a
    process that ends under it. (An executor would compile all that waits first.)
    """

    def __init__(self, count: int):
        atexit.register(_end, weakref.ref(self))
        self._count = count
        self._waiting: collections.deque[tuple[Callable[[], Program], Compiled]] = (
            collections.deque()
        )
        self._lock = threading.Lock()
        self._running = 0
        self._threads: list[threading.Thread] = []

    def submit(self, make: Callable[[], Program]) -> Compiled:
        future: Compiled = concurrent.futures.Future()
        with self._lock:
            self._waiting.append((make, future))
            if self._running < self._count:
                self._running += 1
                thread = threading.Thread(target=self._work, name="compile", daemon=True)
                self._threads = [*(each for each in self._threads if each.is_alive()), thread]
                thread.start()
        return future

    def end(self) -> None:
        """Starts nothing more and waits for what runs."""
        with self._lock:
            self._waiting.clear()
            threads = self._threads
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                make, future = self._waiting.popleft()
            _run(make, future)


def _end(compilers: "weakref.ref[_Compilers]") -> None:
    if (found := compilers()) is not None:
        found.end()
