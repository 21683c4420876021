"""What a check has found of each file, remembered: decoding all of a folder takes minutes."""

import dataclasses
import pathlib
from fractions import Fraction
from typing import Any

from wan_tpu.dataset.decode import Measured
from wan_tpu.dataset.digests import Digests, Lines, State, state_of
from wan_tpu.dataset.entry import Entry
from wan_tpu.dataset.examine import Examined
from wan_tpu.dataset.faults import Finding
from wan_tpu.image.clip_details import Look

FILE = "examined.jsonl"

VERSION = 1
"""Goes up when the same file is found to be something else."""


class Examinations:
    """Findings by the content of files, for one frame rate."""

    def __init__(self, folder: pathlib.Path, digests: Digests, fps: float | Fraction):
        """Reads what was remembered.

        Args:
            folder: where the lines are kept.
            digests: of files.
            fps: the model's frame rate.
        """
        self._lines, self._digests, self._fps = Lines(folder / FILE), digests, Fraction(fps)
        self._found: dict[str, Any] = dict(self._lines.read())
        self._states: dict[str, State] = {}

    def known(self, entry: Entry) -> Examined | None:
        """What was found of a file, if it was decoded in the state that it is in."""
        try:
            state = self._states[entry.name] = state_of(entry.path)
        except OSError:
            return None
        digest = self._digests.known(state)
        if digest is None or (told := self._found.get(self._key(entry, digest))) is None:
            return None
        return from_json(entry, digest, told)

    def add(self, examined: Examined) -> None:
        """What was just found of a file that was not known."""
        entry, digest = examined.entry, examined.digest
        if not digest or entry.name not in self._states:
            return  # it could not be read
        try:
            self._digests.remember(entry.path, self._states[entry.name], digest)
        except OSError:
            return
        key, told = self._key(entry, digest), to_json(examined)
        self._found[key] = told
        self._lines.add([key, told])

    def _key(self, entry: Entry, digest: str) -> str:
        """Everything that decides what is found of a file by itself."""
        suffix = entry.path.suffix.lower()
        return f"{VERSION} {digest} {entry.kind.value} {suffix} {self._fps} {entry.fps}"


def to_json(examined: Examined) -> dict[str, Any]:
    """What was found of a file, but for its name and digest, as JSON."""
    measured = examined.measured
    return {
        "measured": None
        if measured is None
        else {
            "width": measured.width,
            "height": measured.height,
            "duration": None if measured.duration is None else str(measured.duration),
            "keyframes": [str(time) for time in measured.keyframes],
        },
        "look": None if examined.look is None else dataclasses.asdict(examined.look),
        "words": examined.words,
        "findings": [[finding.kind, finding.words] for finding in examined.findings],
    }


def from_json(entry: Entry, digest: str, told: dict[str, Any]) -> Examined:
    """What `to_json` told of a file of this content.

    Args:
        entry: the file.
        digest: of its bytes.
        told: of `to_json`.
    """
    measured, look = told["measured"], told["look"]
    if measured is not None:
        duration = measured["duration"]
        measured = Measured(
            entry=entry,
            width=measured["width"],
            height=measured["height"],
            duration=None if duration is None else Fraction(duration),
            keyframes=tuple(Fraction(time) for time in measured["keyframes"]),
        )
    return Examined(
        entry=entry,
        digest=digest,
        measured=measured,
        look=None if look is None else Look(**look),
        words=told["words"],
        findings=tuple(
            Finding(name=entry.name, kind=kind, words=words) for kind, words in told["findings"]
        ),
    )
