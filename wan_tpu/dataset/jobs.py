"""What is to be encoded: listed files measured, cut into windows, sized, and named by their keys.

Nothing is encoded here, and nothing of JAX is needed. What no sample is made of is named with the
reason.
"""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.buckets import Buckets, Placed, place
from wan_tpu.dataset.cache import Made, key_of
from wan_tpu.dataset.decode import Measured, measure
from wan_tpu.dataset.digests import Digests
from wan_tpu.dataset.entry import Columns, Entry
from wan_tpu.dataset.faults import Finding, kind_of_error
from wan_tpu.dataset.listing import list_entries
from wan_tpu.dataset.sampling import Sampling
from wan_tpu.errors import InputError, MediaError, PromptError
from wan_tpu.family import Conditioning
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.pictures import LAST
from wan_tpu.pipeline.progress import Watch
from wan_tpu.sharding.layout import Layout
from wan_tpu.text.prompt import check_prompt, clean_prompt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How clips are prepared; what is left open is the model's.

    Attributes:
        sizes: widths and heights in pixels; a clip takes the one that suits its shape.
        lengths: numbers of frames, 4n + 1; a clip takes the longest that it fills.
        fps: frames per second that clips are read at.
        sampling: which windows of a clip are taken.
        inputs: frames that the model is given as channels: `image`, `last_image`.
        columns: of a manifest.
        layout: how the encoders are split over this process's devices.
        dtype: of the text encoder and the image encoder; None for bfloat16, on a CPU float32.
        vae_dtype: of the autoencoder; None for the same.
        workers: clips that are decoded at a time.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    lengths: tuple[int, ...] = ()
    fps: float | None = None
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    inputs: tuple[str, ...] | None = None
    columns: Columns | None = None
    layout: Layout | None = None
    dtype: str | None = None
    vae_dtype: str | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"the workers must be at least 1, got {self.workers}")

    def buckets(self, description: ModelDescription) -> Buckets:
        """Sizes, lengths and rate for a model.

        Raises:
            GeometryError: a size or length that it cannot make; names the nearest that it can.
            CheckpointError: it is of a kind that is not implemented.
        """
        defaults = description.defaults
        return Buckets(
            sizes=self.sizes or ((defaults.width, defaults.height),),
            lengths=self.lengths or (defaults.num_frames,),
            fps=self.fps or defaults.fps,
            compression=compression_of(description),
        )

    def inputs_for(self, description: ModelDescription) -> tuple[str, ...]:
        """The frames that a model is given as channels, in the order of their places.

        Raises:
            InputError: the model is given none, or others.
        """
        kind = description.kind
        if kind.conditioning is not Conditioning.CHANNELS:
            if self.inputs:
                raise InputError(
                    f"inputs {'+'.join(self.inputs)}: {description.name} is {kind.words}, whose "
                    "samples need none; leave them out"
                )
            return ()
        known = [tuple(sorted(roles)) for roles in kind.inputs]
        wanted = known[0] if self.inputs is None else tuple(sorted(set(self.inputs)))
        if wanted not in known:
            raise InputError(
                f"inputs {'+'.join(wanted) or 'none'}: {description.name} is {kind.words}; "
                f"expected {' or '.join('+'.join(each) for each in known)}"
            )
        return wanted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sample that is to be.

    Attributes:
        name: of the clip, and where in it the sample begins; no two have the same.
        caption: cleaned.
        placed: what is read, and in which size.
        fps: frames per second that it is read at.
        made: everything that makes the sample.
        key: of that.
    """

    name: str
    caption: str
    placed: Placed
    fps: float | Fraction
    made: Mapping[str, Any]
    key: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be encoded.

    Attributes:
        jobs: in the order of the list, their windows in order.
        refused: what is not, and why.
    """

    jobs: tuple[Job, ...]
    refused: tuple[Finding, ...]


def plan_jobs(
    source: pathlib.Path,
    options: PrepareOptions,
    buckets: Buckets,
    made: Made,
    digests: Digests,
    watch: Watch,
) -> Plan:
    """Lists, measures and cuts; the same list gives the same plan.

    Args:
        source: a folder or a manifest.
        options: how it is prepared.
        buckets: sizes, lengths and the rate.
        made: what encodes.
        digests: of files.
        watch: told of files that were measured; asked whether to stop.

    Raises:
        InputError: there is no such folder or manifest.
    """
    listing = list_entries(source, columns=options.columns)
    findings = [finding for finding in listing.findings if finding.is_fault]
    captions: dict[int, str] = {}
    for number, entry in enumerate(listing.entries):
        caption = _caption_of(entry)
        if isinstance(caption, Finding):
            findings.append(caption)
        else:
            captions[number] = caption
    entries = [listing.entries[number] for number in captions]
    measured, media = [], {}
    for entry, found in _measure_all(entries, buckets.fps, digests, options.workers, watch):
        if isinstance(found, Finding):
            findings.append(found)
        else:
            measured.append(found[0])
            media[id(entry)] = found[1]
    placement = place(measured, buckets, options.sampling)
    findings += placement.left
    cleaned = {id(listing.entries[number]): caption for number, caption in captions.items()}
    jobs, again = _jobs(placement.placed, cleaned, media, made, buckets)
    findings += again
    return Plan(jobs=jobs, refused=tuple(findings))


def _jobs(
    placed: Sequence[Placed],
    captions: Mapping[int, str],
    media: Mapping[int, str],
    made: Made,
    buckets: Buckets,
) -> tuple[tuple[Job, ...], list[Finding]]:
    """A job for each window, by the identity of its entry; and what is there twice."""
    jobs: dict[tuple[str, str], Job] = {}
    names: set[str] = set()
    left = []
    for each in placed:
        entry, window, geometry = each.entry, each.window, each.geometry
        if LAST in made.inputs and geometry.num_frames == 1:
            words = "it has one frame, and a first and a last one are wanted"
            left.append(Finding(name=entry.name, kind="too-short", words=words))
            continue
        makes = made.sample(
            media=media[id(entry)],
            clip={
                "kind": entry.kind.value,
                "start": str(window.start),
                "size": [geometry.width, geometry.height, geometry.num_frames],
                "fps": str(Fraction(buckets.fps)),
                "stored_fps": entry.fps,
            },
        )
        job = Job(
            name=_free_name(f"{entry.name}@{float(window.start):g}", names),
            caption=captions[id(entry)],
            placed=each,
            fps=buckets.fps,
            made=makes,
            key=key_of(makes),
        )
        first = jobs.setdefault((job.key, job.caption), job)
        if first is job:
            names.add(job.name)
        else:
            words = f"its content and caption are those of {first.placed.entry.name}"
            left.append(Finding(name=entry.name, kind="duplicate", words=words))
    return tuple(jobs.values()), left


def _free_name(name: str, taken: set[str]) -> str:
    """A name that no other sample has: one clip may have several captions."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}#{number}"
    return found


def _caption_of(entry: Entry) -> str | Finding:
    """The cleaned caption, or why there is none."""
    if entry.caption is None:
        words = f"no caption: {entry.path.stem}.txt beside it, or a manifest, would give one"
        return Finding(name=entry.name, kind="no-caption", words=words)
    try:
        check_prompt(entry.caption)
    except PromptError:
        words = "its caption has no visible characters"
        return Finding(name=entry.name, kind="empty-caption", words=words)
    return clean_prompt(entry.caption)


def _measure_all(
    entries: Sequence[Entry], fps: float | Fraction, digests: Digests, workers: int, watch: Watch
) -> list[tuple[Entry, tuple[Measured, str] | Finding]]:
    """What each file has, with the digest of its bytes; or why it cannot be read."""

    def look(entry: Entry) -> tuple[Measured, str] | Finding:
        try:
            return measure(entry, fps=fps), digests.of(entry.path)
        except MediaError as error:
            words = str(error).removeprefix(f"{entry.name}: ")
            return Finding(name=entry.name, kind=kind_of_error(words), words=words)
        except OSError as error:
            words = f"it cannot be read: {error.strerror}"
            return Finding(name=entry.name, kind="unreadable", words=words)

    found: list[tuple[Entry, tuple[Measured, str] | Finding]] = []
    if not entries:
        return found
    with (
        concurrent.futures.ThreadPoolExecutor(workers, "measure") as pool,
        watch.stage("measure", len(entries)) as report,
    ):
        try:
            for entry, result in zip(entries, pool.map(look, entries), strict=True):
                found.append((entry, result))
                report(len(found))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found
