"""Every file of a listing decoded, what is wrong with each, and what becomes of the others."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from wan_tpu.dataset.buckets import Buckets, Placement, misfits, place
from wan_tpu.dataset.entry import Entry, Kind, Listing
from wan_tpu.dataset.examine import Examined, examine
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.processes import Crashed, default_workers, in_processes
from wan_tpu.dataset.sampling import Sampling
from wan_tpu.image.fit import describe_cover


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        listing: that was checked.
        files: each file once, in the order of the listing, with all its findings.
        findings: of the listing: what is no file that was decoded.
        placement: of the entries without a fault.
    """

    listing: Listing
    files: tuple[Examined, ...]
    findings: tuple[Finding, ...]
    placement: Placement

    @property
    def faults(self) -> list[Finding]:
        """Everything that must be mended, or left out, before it is learnt from."""
        return [finding for finding in self.all_findings if finding.is_fault]

    @property
    def notes(self) -> list[Finding]:
        """What is worth knowing."""
        return [finding for finding in self.all_findings if not finding.is_fault]

    @property
    def all_findings(self) -> list[Finding]:
        """The listing's, then each file's."""
        return [*self.findings, *(each for file in self.files for each in file.findings)]

    @property
    def good(self) -> tuple[Entry, ...]:
        """The entries that can be learnt from, in their order."""
        faulty = {finding.name for finding in self.faults}
        return tuple(entry for entry in self.listing.entries if entry.name not in faulty)

    def to_json(self) -> dict[str, Any]:
        """What `wan-tpu dataset check --json` prints."""
        good = {entry.name for entry in self.good}
        captions: dict[str, list[str | None]] = {}
        for entry in self.listing.entries:
            captions.setdefault(entry.name, []).append(entry.caption)
        return {
            "path": str(self.listing.path),
            "good": len(good),
            "faults": [dataclasses.asdict(finding) for finding in self.faults],
            "notes": [dataclasses.asdict(finding) for finding in self.notes],
            "files": [
                _file_json(file, captions[file.entry.name]) | {"good": file.entry.name in good}
                for file in self.files
            ],
            "buckets": self.placement.to_json(),
        }


def check(
    listing: Listing,
    buckets: Buckets,
    *,
    sampling: Sampling | None = None,
    workers: int | None = None,
    on_file: Callable[[int, int], None] = lambda done, total: None,
    known: Callable[[Entry], Examined | None] = lambda entry: None,
    on_examined: Callable[[Examined], None] = lambda examined: None,
) -> Report:
    """Decodes every file.

    Args:
        listing: of `wan_tpu.dataset.listing.list_entries`.
        buckets: that are wanted.
        sampling: of the windows that the report counts; the default one when not given.
        workers: processes; None for one a core, 0 for this one alone.
        on_file: is told how many files are done, of how many.
        known: what was found of a file before, which is not decoded again; None where nothing is.
        on_examined: is told what was found of each of the others.
    """
    workers = default_workers() if workers is None else workers
    entries = list({entry.name: entry for entry in reversed(listing.entries)}.values())[::-1]
    found = {number: known(entry) for number, entry in enumerate(entries)}
    examined = {number: each for number, each in found.items() if each is not None}
    _examine_all(entries, examined, buckets.fps, workers, on_file, on_examined)
    files = tuple(examined[number] for number in range(len(entries)))
    further: dict[str, list[Finding]] = {file.entry.name: [] for file in files}
    for finding in [*_captions(listing.entries), *_duplicates(files), *_fits(files, buckets)]:
        further[finding.name].append(finding)
    files = tuple(
        dataclasses.replace(file, findings=(*file.findings, *further[file.entry.name]))
        for file in files
    )
    nothing = Placement(placed=(), left=())
    report = Report(listing=listing, files=files, findings=listing.findings, placement=nothing)
    measured = {file.entry.name: file.measured for file in files}
    good = [
        dataclasses.replace(found, entry=entry)
        for entry in report.good
        if (found := measured[entry.name]) is not None
    ]
    return dataclasses.replace(report, placement=place(good, buckets, sampling or Sampling()))


def _examine_all(
    entries: Sequence[Entry],
    found: dict[int, Examined],
    fps: float | Fraction,
    workers: int,
    on_file: Callable[[int, int], None],
    on_examined: Callable[[Examined], None],
) -> None:
    """Adds what is found of those entries that are not in `found`, by their numbers."""
    numbers = [number for number in range(len(entries)) if number not in found]
    on_file(len(found), len(entries))
    work, wanted = functools.partial(examine, fps=fps), [entries[number] for number in numbers]
    for index, result in in_processes(work, wanted, workers):
        if isinstance(result, Crashed):
            result = crashed(wanted[index])
        else:
            on_examined(result)
        found[numbers[index]] = result
        on_file(len(found), len(entries))


def crashed(entry: Entry) -> Examined:
    """What is said of a file whose decoding ended its process."""
    words = "the process that decoded it ended: too little memory, or a fault of FFmpeg's"
    crash = Finding(name=entry.name, kind="crash", words=words)
    return Examined(entry=entry, findings=(crash,))


def _captions(entries: Sequence[Entry]) -> list[Finding]:
    """Of entries without words; where another finding says why, this one is true as well."""
    findings = []
    for entry in entries:
        if entry.caption:
            continue
        if entry.caption is None and entry.source.endswith(".txt"):
            continue  # its file is there and cannot be read, which the listing has said
        where = f"{entry.source}: " if entry.source else ""
        if entry.caption is None:
            beside = pathlib.PurePath(entry.name).with_suffix(".txt").name
            words = f"{where}no caption" if where else f"no caption: write one into {beside}"
            findings.append(Finding(name=entry.name, kind="no-caption", words=words))
        else:
            words = f"{where}the caption is empty: say what is seen"
            findings.append(Finding(name=entry.name, kind="empty-caption", words=words))
    return findings


def _duplicates(files: Sequence[Examined]) -> list[Finding]:
    """Of each content after the first: the same bytes, the same frames, the same first frame."""
    findings: list[Finding] = []
    digests: dict[str, str] = {}
    contents: dict[str, str] = {}
    starts: dict[str, str] = {}
    for file in files:
        name = file.entry.name
        if not file.digest or file.measured is None or file.look is None:
            continue
        shape = f"{file.measured.width}x{file.measured.height} {file.measured.duration}"
        same_bytes = digests.setdefault(file.digest, name)
        same_frames = contents.setdefault(f"{shape} {file.look.all}", name)
        same_start = starts.setdefault(file.look.first, name)
        if same_bytes != name:
            words = f"its bytes are those of {same_bytes}: keep one, or it is learnt twice as often"
            findings.append(Finding(name=name, kind="duplicate", words=words))
        elif same_frames != name:
            words = f"its frames are those of {same_frames}: keep one of them"
            findings.append(Finding(name=name, kind="duplicate", words=words))
        elif same_start != name and file.entry.kind is not Kind.PICTURE:
            words = f"it begins with the same picture as {same_start}"
            findings.append(Finding(name=name, kind="same-start", words=words))
    return findings


def _fits(files: Sequence[Examined], buckets: Buckets) -> list[Finding]:
    """Of files that are too short or too small, and of those that are made smaller or cut."""
    findings: list[Finding] = []
    for file in files:
        if file.measured is None:
            continue
        if not any(finding.is_fault for finding in file.findings):  # half a clip is short, too
            findings += misfits(file.measured, buckets)
        given = file.measured.width, file.measured.height
        size = buckets.size_for(*given)
        if size is not None and size != given:
            words = f"{describe_cover(given, size)}{_cut(given, size)}"
            findings.append(Finding(name=file.entry.name, kind="resized", words=words))
    return findings


def _cut(given: tuple[int, int], size: tuple[int, int]) -> str:
    """How much of the picture is lost where the ratios differ."""
    wide, high = Fraction(given[0], size[0]), Fraction(given[1], size[1])
    lost = 1 - min(wide, high) / max(wide, high)
    side = "width" if wide > high else "height"
    return f", {float(100 * lost):.0f} % of its {side} is cut off" if lost >= 0.005 else ""


def _file_json(file: Examined, captions: list[str | None]) -> dict[str, Any]:
    measured = file.measured
    duration = None if measured is None else measured.duration
    return {
        "name": file.entry.name,
        "path": str(file.entry.path),
        "kind": file.entry.kind.value,
        "captions": captions,
        "sha256": file.digest or None,
        "width": None if measured is None else measured.width,
        "height": None if measured is None else measured.height,
        "seconds": None if duration is None else round(float(duration), 6),
        "format": file.words or None,
    }
