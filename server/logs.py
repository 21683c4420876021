"""Log lines as key=value on stderr, with the job's id where there is one."""

import datetime
import functools
import logging
import sys

from wan_tpu.multihost.group import ALONE, ProcessGroup

FIELDS = (
    "process_id",
    "job",
    "code",
    "method",
    "path",
    "status",
    "seconds",
    "client",
    "owner",
    "attempt",
)
"""What a record may carry as `extra`, in the order in which it is written."""


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


def _add_process(process_id: int, record: logging.LogRecord) -> bool:
    record.process_id = process_id
    return True


def start_logging(level: str, group: ProcessGroup = ALONE) -> None:
    """Sends this process's log to stderr; each line says which process of several it is of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    if group.num_processes > 1:
        handler.addFilter(functools.partial(_add_process, group.process_id))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it says at each start that it looked
    logging.captureWarnings(True)
