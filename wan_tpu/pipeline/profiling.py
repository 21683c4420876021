"""Records some steps of a generation with JAX's profiler, by what its progress tells.

A whole run would be gigabytes, and its compiling would bury the rest: a few steps after the first
say everything about all of them. A trace that cannot be written costs the trace and no video: who
records asks for `problem` at the end.
"""

import os
import shutil
import threading
from pathlib import Path
from typing import Self

import jax

from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.video_file import reporting

STEPS = 3
"""Steps that are recorded unless asked otherwise: enough to see what is the same in each."""

STAGE = "denoise"
"""The stage whose units are steps."""


class Profile:
    """One trace: told of every progress, it begins and ends by itself, or when it is told to.

    Used as a context, it closes itself. Calls may come from any thread. Writing has a thread of its
    own, so that the generation goes on.

    Attributes:
        folder: where the trace lies: `trace-1` in the caller's folder, or the first of `trace-2`,
            ... that is free; None before it begins.
        problem: why there is no trace, as a sentence; None while nothing is wrong.
        steps: denoising steps that were recorded from beginning to end.
    """

    def __init__(
        self,
        parent: str | os.PathLike[str],
        *,
        steps: int | None = STEPS,
        process: int | None = None,
    ):
        """Finds out, before any work, that a folder can be made in another one.

        Args:
            parent: is made where it is not there; nothing in it is touched.
            steps: how many denoising steps to record, beginning after the first of a run (with the
                first where it is the only one) and ending with the run at the latest; None records
                from `begin` to `end`, whatever runs.
            process: the number of this process, where several write: each has a folder of its own,
                `trace-1-process-3`.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        self.folder: Path | None = None
        self.problem: str | None = None
        self.steps = 0
        self._parent = Path(parent)
        self._suffix = "" if process is None else f"-process-{process}"
        self._wanted = steps
        self._lock = threading.RLock()
        self._is_recording = self._is_over = False
        self._named: jax.profiler.TraceAnnotation | None = None
        self._writer: threading.Thread | None = None
        with reporting(parent):
            self._parent.mkdir(parents=True, exist_ok=True)
            self._make_folder().rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether recording has ended, or never will begin; it may still be being written."""
        return self._is_over

    def note(self, progress: Progress) -> None:
        """What the generation's `on_progress` was called with. Never raises."""
        with self._lock:
            if self._is_over:
                return
            is_last = progress.done >= progress.total
            if self._wanted is not None and not self._is_recording:
                is_first = progress.done == 0 and progress.total > 1
                if progress.stage != STAGE or is_last or is_first:
                    return
                self.begin()
            elif self._is_recording and progress.stage == STAGE and progress.done > 0:
                self.steps += 1
            if not self._is_recording:
                return
            if self._wanted is not None and (is_last or self.steps >= self._wanted):
                self.end()
                return
            self._name("" if is_last else f"{progress.stage} {progress.done + 1}")

    def begin(self) -> None:
        """Begins to record, unless that is over."""
        with self._lock:
            if self._is_recording or self._is_over:
                return
            try:
                self.folder = self._make_folder()
                _profiler.start(self.folder)
                self._is_recording = True
            except (RuntimeError, OSError) as error:
                self._is_over = True
                self._give_up(error)

    def end(self) -> None:
        """Ends recording and begins to write, beside whoever calls."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            if not self._is_recording:
                self._give_up(None)
                return
            self._name("")
            self._writer = threading.Thread(target=self._write, name="profile")
            self._writer.start()

    def close(self) -> None:
        """Ends recording and waits until the trace is written, or `problem` says why it is not."""
        self.end()
        if self._writer is not None:
            self._writer.join()

    def describe(self) -> str:
        """What was written and how it is opened, in a line; of a closed profile without problem."""
        assert self.folder is not None
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        page = next((path for path in files if path.name.endswith(".trace.json.gz")), self.folder)
        return (
            f"{self.steps} steps are in {self.folder} ({size:.1f} MB): xprof --logdir "
            f"{self.folder}, or open {page} in Perfetto"
        )

    def _make_folder(self) -> Path:
        number = 1
        while True:
            folder = self._parent / f"trace-{number}{self._suffix}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1

    def _name(self, name: str) -> None:
        """Gives what runs from now on a name in the trace; none where it is empty."""
        if self._named is not None:
            self._named.__exit__(None, None, None)
        self._named = jax.profiler.TraceAnnotation(name) if name else None
        if self._named is not None:
            self._named.__enter__()

    def _write(self) -> None:
        assert self.folder is not None
        try:
            _profiler.stop()
            if not any(self.folder.rglob("*.xplane.pb")):
                self._give_up(OSError("the profiler wrote nothing"))
        except (RuntimeError, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception | None) -> None:
        words = "no step was taken" if error is None else " ".join(str(error).split())
        self.problem = f"there is no profile in {self._parent}: {words}"
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class _Profiler:
    """JAX's profiler, of which a process has one.

    `jax.profiler.stop_trace` that cannot write leaves the recording as it is: no other one can be
    started, and the same call writes it once that is possible.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unwritten: Path | None = None
        self._folder: Path | None = None

    def start(self, folder: Path) -> None:
        """Begins to record.

        Raises:
            RuntimeError: the profiler is in use, or still holds what it could not write.
        """
        with self._lock:
            if self._unwritten is not None:
                jax.profiler.stop_trace()
                shutil.rmtree(self._unwritten, ignore_errors=True)
                self._unwritten = None
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python: large, and slows what it shows
            jax.profiler.start_trace(folder, profiler_options=options)
            self._folder = folder

    def stop(self) -> None:
        """Ends the recording and writes it.

        Raises:
            RuntimeError: it cannot be written.
        """
        with self._lock:
            try:
                jax.profiler.stop_trace()
            except RuntimeError:
                self._unwritten = self._folder
                raise


_profiler = _Profiler()
