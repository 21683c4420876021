"""The log of a run: `log.jsonl`, which is the truth, and TensorBoard's files, made from it.

A process that is killed may have written lines of steps that its last checkpoint does not hold:
they are cut when the run goes on, and a half line with them. So each step stands there once.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wan_tpu.errors import MissingPackageError, WanTpuError
from wan_tpu.json_lines import JsonLines
from wan_tpu.pipeline.whole_file import aside_of, publish, reporting
from wan_tpu.training.metrics import KINDS, Line, Step

_LINES = JsonLines(*KINDS)

FLUSH_SECONDS = 30
"""How late TensorBoard's files may be; log.jsonl never is."""


def read_log(path: Path) -> list[Line]:
    """All whole lines of a log, also of one that is being written; none where there is no file.

    Raises:
        WanTpuError: the file cannot be read, or a line is none of a training's; names it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WanTpuError(f"{path} cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # what follows the last end is half
        try:
            found.append(_LINES.decode(line))
        except ValueError as error:
            raise WanTpuError(f"{path}, line {number}: {error}") from None
    return found


class TrainingLog:
    """Writes lines, to both; a context manager."""

    def __init__(self, path: Path, board: Path | None, *, step: int):
        """Opens the log of a run that is at `step`, and cuts what lies after it.

        Args:
            path: of log.jsonl.
            board: folder of TensorBoard's files; None writes none.
            step: that the restored state has done; 0 at the beginning.

        Raises:
            WanTpuError: a line of the log is none of a training's.
            OutputError: it cannot be written.
            MissingPackageError: tensorboardX is not installed.
        """
        self._path = path
        _cut(path, step)
        with reporting(path):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._board: Any = None if board is None else _open_board(board, step)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, line: Line) -> None:
        """Adds a line; it is in the file when this returns.

        Raises:
            OutputError: it cannot be written. What there is of it is taken back.
        """
        data = _LINES.encode(line)
        with reporting(self._path):
            before = os.fstat(self._file).st_size
            try:
                done = os.write(self._file, data)
                if done < len(data):  # the disk is full: a second try says so
                    os.write(self._file, data[done:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, before)
                raise
        if self._board is not None and isinstance(line, Step):
            for name, value in _scalars(line):
                self._board.add_scalar(name, value, line.step, line.time)

    def close(self) -> None:
        """Ends the files; once is enough."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._board is not None:
            self._board.close()
            self._board = None


def _cut(path: Path, step: int) -> None:
    """Leaves the lines up to a step, whole ones alone."""
    lines = read_log(path)
    kept = b"".join(_LINES.encode(line) for line in lines if line.step <= step)
    if not path.exists() or path.read_bytes() == kept:
        return
    aside = aside_of(path)
    with reporting(path):
        try:
            aside.write_bytes(kept)
            publish(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _open_board(folder: Path, step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        raise MissingPackageError(
            "tensorboardX is not installed, which writes a training's curves: pip install "
            "'wan_tpu[train]'"
        ) from None
    # TensorBoard drops what another file has of the purged steps.
    return tensorboardX.SummaryWriter(
        str(folder), purge_step=step + 1 if step else None, flush_secs=FLUSH_SECONDS
    )


def _scalars(line: Step) -> Iterator[tuple[str, float]]:
    """What TensorBoard shows of a line, by name."""
    single = (
        ("train/loss", line.loss),
        ("train/gradient_norm", line.gradient_norm),
        ("train/learning_rate", line.learning_rate),
        ("train/epoch", line.epoch),
        ("speed/seconds_a_step", line.seconds),
        ("speed/samples_per_second", line.samples_per_second),
        ("speed/tokens_per_second", line.tokens_per_second),
        ("speed/mfu", line.mfu),
        *((f"loss_by_sigma/{name}", value) for name, value in line.loss_by_sigma.items()),
        *((f"loss_by_expert/{name}", value) for name, value in line.loss_by_expert.items()),
    )
    for name, value in single:
        if value is not None:
            yield name, value
