"""A folder of adapters, from which requests choose by name; what is put into it is seen.

An entry is a file of the folder, or a sub-folder with what `--lora` takes of a folder: PEFT's or
diffusers' plain name, one file, or one for each of two experts. Its name is the file's or the
sub-folder's own. Nothing outside the folder can be named, and no link leads there. No JAX and no
torch: of files that are listed the headers are read, and no numbers.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import stat
import threading
from collections.abc import Sequence

from wan_tpu.adapters.account import ModelShapes, fit_of
from wan_tpu.adapters.choice import AdapterChoice
from wan_tpu.adapters.experts import expert_of_file
from wan_tpu.adapters.files import PEFT_CONFIG, PICKLES, SUFFIX, find_files
from wan_tpu.adapters.styles import AdapterFile, file_digest, read_adapter
from wan_tpu.errors import AdapterError, CheckpointError, InputError
from wan_tpu.family import TRANSFORMER

Stamp = tuple[tuple[str, int, int], ...]
"""Of the files that an entry is made of: name, time of the last change in ns, bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What a name of the folder stands for.

    Attributes:
        name: as a request says it.
        files: one, or one for each of two experts; none where there is a fault.
        fault: why it cannot be used, in one line; None for one that can.
        description: for people: form, rank, how much it changes, whose style, MiB.
    """

    name: str
    files: tuple[pathlib.Path, ...] = ()
    fault: str | None = None
    description: str = ""

    @functools.cached_property
    def digests(self) -> tuple[str, ...]:
        """`sha256:` and 64 hexadecimal digits of each file.

        As the files are when this is first asked for, which reads them whole.

        Raises:
            CheckpointError: one is gone meanwhile.
        """
        return tuple(map(file_digest, self.files))

    @property
    def digest(self) -> str:
        """That of the one file, of several a digest of theirs in order; empty where there is none.

        That is an entry with a fault, and one whose files are gone meanwhile.
        """
        try:
            digests = self.digests
        except CheckpointError:
            return ""
        if len(digests) < 2:
            return "".join(digests)
        return f"sha256:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


class AdapterLibrary:
    """The adapters of a folder; from any thread."""

    def __init__(self, folder: pathlib.Path, model: ModelShapes | None = None):
        """Reads nothing yet.

        Args:
            folder: of the adapters.
            model: that they are for; an adapter of another one is an entry with a fault. None takes
                those of every model.

        Raises:
            InputError: there is no such folder.
        """
        self.folder = pathlib.Path(folder).expanduser().absolute()
        self._model = model
        self._known: dict[str, tuple[Stamp, Entry]] = {}
        self._lock = threading.Lock()
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {folder}; expected one with adapters in it")

    def look(self) -> tuple[Entry, ...]:
        """What is there now, by name; what changed (by time and size) is read anew.

        A file that cannot be used is an entry with a fault, never an error; without the folder
        there is none.
        """
        with self._lock:
            try:
                names = sorted(name for name in os.listdir(self.folder) if name[0] != ".")
            except OSError:
                names = []
            found: dict[str, tuple[Stamp, Entry]] = {}
            for name in names:
                path = self.folder / name
                if not (name.endswith((SUFFIX, *PICKLES)) or os.path.isdir(path)):
                    continue
                stamp = _stamp(path)
                known = self._known.get(name)
                if known is None or known[0] != stamp:
                    known = (stamp, self._read(name))
                found[name] = known
            self._known = found
            return tuple(entry for _, entry in found.values())

    def choose(self, text: str) -> AdapterChoice:
        """What `NAME[:STRENGTH][@high|@low]` means, its path inside the folder.

        Raises:
            InputError: see `find`.
        """
        return self.find(text)[0]

    def find(self, text: str) -> tuple[AdapterChoice, Entry]:
        """The same with the entry that is named.

        Raises:
            AdapterError: no entry is called so, and which can be used; or the entry has a fault.
            InputError: the strength is no number.
        """
        choice = AdapterChoice.parse_name(text)
        entries = {entry.name: entry for entry in self.look()}
        entry = entries.get(choice.path)
        if entry is None:
            known = [name for name, each in entries.items() if each.fault is None]
            names = ", ".join(known) or "none"
            raise AdapterError(f"unknown adapter {choice.path!r}; known: {names}")
        if entry.fault is not None:
            raise AdapterError(f"the adapter {entry.name} cannot be used: {entry.fault}")
        return dataclasses.replace(choice, path=str(self.folder / entry.name)), entry

    def _read(self, name: str) -> Entry:
        path, shown = self.folder / name, name.encode(errors="backslashreplace").decode()
        try:
            _check_name(name)
            files = self._files(path)
            read = [read_adapter(file, with_numbers=False) for file in files]
            self._check_fits(read)
            description = _describe(read)
        except (CheckpointError, InputError, OSError) as error:
            # Whoever asks the service need not know where the folder is.
            fault = str(error).replace(f"{path}{os.sep}", "").replace(str(path), shown)
            return Entry(name=shown, fault=fault)
        return Entry(name=shown, files=tuple(files), description=description)

    def _files(self, path: pathlib.Path) -> Sequence[pathlib.Path]:
        """Those of an entry, each a plain file inside the folder."""
        self._check_inside(path)
        files = find_files(str(path))
        for file in files:
            self._check_inside(file)
            if not file.is_file():  # to open a pipe would wait for whoever writes into it
                raise CheckpointError(f"{file} is no file")
        return files

    def _check_inside(self, path: pathlib.Path) -> None:
        try:
            is_inside = path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError):  # a link that leads to itself
            is_inside = False
        if not is_inside:
            raise InputError(f"{path} is a link that leads out of the folder")

    def _check_fits(self, files: Sequence[AdapterFile]) -> None:
        if self._model is None:
            return
        for file in files:
            why_not = fit_of(file, self._model)["why_not"]
            if why_not is not None:
                raise CheckpointError(why_not)


def _check_name(name: str) -> None:
    """Refuses a name that a request could not say."""
    if not name.isprintable():
        raise InputError("its name has characters that cannot be shown; rename it")
    try:
        readings = [AdapterChoice.parse_name(text).path for text in (name, f"{name}:1@low")]
    except InputError:  # what follows its colon is no strength
        readings = []
    if readings != [name, name]:
        raise InputError("its name reads as one with a strength or an expert (: or @); rename it")


def _stamp(path: pathlib.Path) -> Stamp:
    """Of a file and the configuration beside it, or of all that is in a folder."""
    try:
        mode = path.stat().st_mode
        is_folder = stat.S_ISDIR(mode)
        paths = sorted(path.iterdir()) if is_folder else [path, path.with_name(PEFT_CONFIG)]
    except OSError:
        return ()
    stamps = []
    for each in paths:
        try:
            status = each.stat()
        except OSError:
            continue
        stamps.append((each.name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def _describe(files: Sequence[AdapterFile]) -> str:
    """One line for people."""
    parts = []
    for file in files:
        expert, _ = expert_of_file(file)
        for named, adapter in file.adapters.items():
            which = expert if named is None else named
            noise = (
                "" if which is None else "high noise: " if which == TRANSFORMER else "low noise: "
            )
            parts.append(f"{noise}{adapter.described}")
    size = sum(file.path.stat().st_size for file in files) / 2**20
    return f"{'; '.join(parts)}; {files[0].style}, {size:.2f} MiB"
