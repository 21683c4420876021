"""Log lines as key=value on stderr, with the job's and the request's id where there is one.

A thread writes them: whoever reads stderr may stall, and then lines are dropped and counted, but
nothing waits.
"""

import contextvars
import datetime
import functools
import logging
import os
import queue
import sys
import threading
import time

from wan_tpu.multihost.group import ALONE, ProcessGroup

FIELDS = (
    "process_id",
    "request",
    "job",
    "code",
    "method",
    "path",
    "status",
    "seconds",
    "client",
    "owner",
    "attempt",
    "together",
    "unlogged",
)
"""What a record may carry as `extra`, in the order in which it is written."""

WAITING_LINES = 2000
FLUSH_SECONDS = 2.0
"""How long the end of the process waits for its last lines to be read."""

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""Of the HTTP request that is being answered."""


class KeyValueFormatter(logging.Formatter):
    """`time=... level=... logger=... message="..." job=...`, one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        pairs = [
            f"time={time.isoformat(timespec='milliseconds')}",
            f"level={record.levelname.lower()}",
            f"logger={record.name}",
            f"message={quoted(record.getMessage())}",
        ]
        pairs += [
            f"{name}={quoted(getattr(record, name))}" for name in FIELDS if hasattr(record, name)
        ]
        if record.exc_info:
            pairs.append(f"traceback={quoted(self.formatException(record.exc_info))}")
        return " ".join(pairs)


def quoted(value: object) -> str:
    """The value as one word, or in quotes; a line break in it makes no second line."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if text and all(c.isalnum() or c in "-_./:+" for c in text):
        return text.encode("ascii", "backslashreplace").decode()
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


class PatientHandler(logging.Handler):
    """Hands lines to a thread that writes them; one that finds the queue full is dropped."""

    def __init__(self) -> None:
        super().__init__()
        # Where stderr is closed its number may be that of a file of ours.
        closed = sys.stderr is None
        self._descriptor = os.open(os.devnull, os.O_WRONLY) if closed else sys.stderr.fileno()
        self.dropped = 0
        self._said = 0
        self._lines: queue.Queue[str] = queue.Queue(WAITING_LINES)
        self._written = 0
        self._handed = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`; formatted here, since values may change later."""
        identity = request_id.get()
        if identity is not None:
            record.request = identity
        try:
            self._lines.put_nowait(self.format(record))
            self._handed += 1
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Waits until what was handed over is written, but not for long."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._written < self._handed and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if self.dropped > self._said:
                line = f"{line}\n{self._lost()}"
            rest = (line + "\n").encode("utf-8", "backslashreplace")
            try:
                while rest:  # past sys.stderr, whose lock a stalled write would keep at the end
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:  # nobody will ever read it
                self.dropped += 1
                self._said = self.dropped
            self._written += 1

    def _lost(self) -> str:
        count, self._said = self.dropped - self._said, self.dropped
        record = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, "%d lines were lost", (count,), None
        )
        return self.format(record)


def _add_process(process_id: int, record: logging.LogRecord) -> bool:
    record.process_id = process_id
    return True


_handler: PatientHandler | None = None


def start_logging(level: str, group: ProcessGroup = ALONE) -> None:
    """Sends this process's log to stderr; each line says which process of several it is of."""
    global _handler
    _handler = PatientHandler()
    _handler.setFormatter(KeyValueFormatter())
    if group.num_processes > 1:
        _handler.addFilter(functools.partial(_add_process, group.process_id))
    logging.basicConfig(level=level.upper(), handlers=[_handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it says at each start that it looked
    logging.captureWarnings(True)


def flush_logging() -> None:
    """Call before a process ends at once (`os._exit`), or its last lines are not written."""
    if _handler is not None:
        _handler.flush()


def dropped_lines() -> int:
    """How many lines of this process nobody read in time."""
    return 0 if _handler is None else _handler.dropped
