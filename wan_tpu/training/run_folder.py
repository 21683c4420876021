"""A run's folder: what is trained, of what, how far it is; one process at a time writes it.

    config.toml    everything that decides the run, for people and for `wan-tpu train RUN`
    run.json       the same as values, versions, the data's digest, each start; the truth
    log.jsonl      a line per step, start, checkpoint; see `log`
    tensorboard/   the same as curves
    checkpoints/   whole states
    samples/       videos made on the way
    lock           held while a process trains

Files that are not ours are never touched: a folder that holds any is refused.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wan_tpu import __version__
from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.whole_file import aside_of, publish, reporting, write_json_atomically
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_file import to_toml
from wan_tpu.training.config_keys import in_use
from wan_tpu.training.lock import Lock

WRITTEN_BY, FORMAT = "wan-tpu train", 1

MAY_CHANGE = ("train.steps", "train.log_every", "data.workers")
"""Keys with which a run may go on otherwise than it began: they do not change its steps."""

TABLES_MAY_CHANGE = ("machine", "save", "samples")
"""Tables likewise; `[machine]` changes results by rounding."""

PACKAGES = ("jax", "jaxlib", "libtpu", "torch", "torchax", "optax", "orbax-checkpoint", "numpy")
"""Whose versions are kept: they decide the numbers."""

_LOCK, _RUN, _CONFIG = "lock", "run.json", "config.toml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A folder that is open for training; made by `open_run`. A context manager: closes it.

    Attributes:
        path: absolute.
        leads: whether this process writes; of several, process 0.
    """

    path: Path
    leads: bool
    _lock: Lock

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def log(self) -> Path:
        """Of lines, for `log.TrainingLog`."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of curves."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of states."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of videos."""
        return self.path / "samples"

    def note_data(self, digest: str) -> None:
        """Keeps the digest of the data, or compares it with that of the beginning.

        A process that does not lead compares alone, so that all refuse alike.

        Args:
            digest: of `wan_tpu.dataset.sample.Dataset`.

        Raises:
            InputError: the run began with other data.
            OutputError: it cannot be written.
        """
        run = read_run(self.path)
        known = run["data_digest"]
        if known is None:
            if self.leads:
                write_json_atomically(self.path / _RUN, {**run, "data_digest": digest})
        elif known != digest:
            raise InputError(
                f"the data is not that which {self.path} began with: its digest was {known}, is "
                f"{digest}; take the data as it was, or another folder with -o"
            )


def open_run(
    path: str | os.PathLike[str], config: TrainingConfig, *, leads: bool = True
) -> RunFolder:
    """Opens a folder to begin a run, or to go on with the one that is there.

    Args:
        path: of the folder; made where it is not there.
        config: of the run. Of one that goes on after a checkpoint, only what `MAY_CHANGE` names may
            have changed; before the first one everything may.
        leads: whether this process writes; the others find the folder on a shared file system, and
            change nothing there.

    Raises:
        InputError: the run began with another configuration; names each key that differs.
        OutputError: the folder holds something else, or another process trains there, or it cannot
            be written.
    """
    if re.match(r"\w+:/", os.fspath(path)):  # `pathlib` makes one stroke of two
        raise InputError(
            f"a run folder lies on a file system, got {os.fspath(path)}; mount the bucket, or take "
            "a folder of this machine"
        )
    folder = Path(os.path.abspath(path))
    lock = Lock(folder / _LOCK)
    if not leads:
        return RunFolder(path=folder, leads=False, _lock=lock)
    _refuse_strangers(folder)
    with reporting(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock.take()
    try:
        _refuse_strangers(folder)  # what has come meanwhile
        is_new = not (folder / _RUN).exists()
        changes = [] if is_new else _changes(folder, config)
        _write(folder, config, is_new=is_new, changes=changes)
    except BaseException:
        lock.release()
        raise
    return RunFolder(path=folder, leads=True, _lock=lock)


def is_run(path: Path) -> bool:
    """Whether a run lies there; `read_run` says whether it is ours."""
    return (path / _RUN).is_file()


def read_run(path: Path) -> dict[str, Any]:
    """The folder's run.json.

    Raises:
        InputError: there is no run.
        OutputError: the folder is of another program, or of a later version.
    """
    file = path / _RUN
    try:
        run = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        what = "is no run folder" if path.exists() else "is not there"
        raise InputError(f"{path} {what}; wan-tpu train CONFIG.toml -o {path} makes one") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{file} cannot be read: {error}") from None
    if not isinstance(run, dict) or run.get("written_by") != WRITTEN_BY:
        raise OutputError(f"{path} is no run folder: its {_RUN} is another program's")
    if run.get("format") != FORMAT:
        raise OutputError(
            f"{path} is of format {run.get('format')}, written by wan_tpu {run.get('version')}; "
            f"this is {__version__}, which knows format {FORMAT}"
        )
    return run


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """By key what differs between two configurations, as `optimiser.eps was 1e-08, is 1e-06`."""
    found = {}
    for key in [*before, *(key for key in now if key not in before)]:
        was, is_now = before.get(key), now.get(key)
        if was != is_now:
            found[key] = f"{key} was {_shown(was)}, is {_shown(is_now)}"
    return found


def digest_of_config(config: TrainingConfig) -> str:
    """Of everything that decides the run's steps: another digest is another run."""
    fixed = {key: value for key, value in in_use(config).items() if not _may_change(key)}
    return f"sha256:{hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()}"


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.split(".")[0] in TABLES_MAY_CHANGE


def _shown(value: Any) -> str:
    return "open" if value is None else json.dumps(value, ensure_ascii=False)


def _changes(folder: Path, config: TrainingConfig) -> list[str]:
    """What differs from how the run began or last went on, of what may.

    Raises:
        InputError: something differs that must not.
    """
    found = differences(read_run(folder)["config"], in_use(config))
    refused = [text for key, text in found.items() if not _may_change(key)]
    if refused and _has_checkpoint(folder):
        raise InputError(
            f"{folder} was begun otherwise: {'; '.join(refused)}; say it as it was, or take "
            "another folder with -o"
        )
    return list(found.values())


def _has_checkpoint(folder: Path) -> bool:
    """Whether there is a state to go on from; without one a run begins anew, however it is said."""
    checkpoints = folder / "checkpoints"
    with reporting(checkpoints):
        return checkpoints.is_dir() and any(n.isdigit() for n in os.listdir(checkpoints))


def _write(folder: Path, config: TrainingConfig, *, is_new: bool, changes: list[str]) -> None:
    """run.json first: a folder that has it is ours, whatever else is missing."""
    values = in_use(config)
    run = {} if is_new else read_run(folder)
    digest = digest_of_config(config)
    if not is_new and not _has_checkpoint(folder):
        run |= {"kind": config.train.trains, "data_digest": None}
        if run["config_digest"] != digest:  # the base may be another model
            shutil.rmtree(folder / "samples", ignore_errors=True)
    start = {
        "time": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {"wan_tpu": __version__, **_versions()},
        "changes": changes,
    }
    run = {
        "written_by": WRITTEN_BY,
        "format": FORMAT,
        "version": __version__,
        "kind": config.train.trains,
        "created": start["time"],
        "data_digest": None,
        **run,
        "config": values,
        "config_digest": digest,
        "starts": [*run.get("starts", []), start],
    }
    write_json_atomically(folder / _RUN, run)
    _write_config(folder / _CONFIG, to_toml(config))
    with reporting(folder):
        for name in ("tensorboard", "checkpoints", "samples"):
            (folder / name).mkdir(exist_ok=True)


def _write_config(path: Path, text: str) -> None:
    aside = aside_of(path)
    with reporting(path):
        try:
            aside.write_bytes(text.encode())
            publish(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _refuse_strangers(folder: Path) -> None:
    """Refuses a folder that is neither new, nor empty, nor a run; touches nothing."""
    with reporting(folder):
        if not os.path.lexists(folder):
            return
        if not folder.is_dir():
            raise OutputError(f"cannot train in {folder}: it exists and is not a folder")
        names = sorted(os.listdir(folder))
    if _RUN in names:
        read_run(folder)
        return
    strangers = [name for name in names if not _is_of_a_beginning(name)]
    if strangers:
        raise OutputError(
            f"cannot train in {folder}: it holds {_some(strangers)}, and no run; take a folder "
            "that is empty or not there yet"
        )


def _is_of_a_beginning(name: str) -> bool:
    """What a process leaves that ended before its run.json was there."""
    return name == _LOCK or (name.startswith(".wan-tpu-") and name.endswith(".part"))


def _some(names: Iterable[str]) -> str:
    names = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
