"""What is to be encoded: files checked, cut into windows, sized, and named by their keys.

Nothing is encoded here, and nothing of JAX is needed. What no sample is made of is named with the
reason.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.buckets import Buckets, Placed
from wan_tpu.dataset.cache import Made, key_of
from wan_tpu.dataset.check import check
from wan_tpu.dataset.entry import Columns, Entry, Listing
from wan_tpu.dataset.examine import Examined
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.sampling import Sampling
from wan_tpu.errors import InputError, PromptError
from wan_tpu.family import Conditioning
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.pictures import LAST
from wan_tpu.pipeline.progress import Watch
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
        dtype: of the text encoder and the image encoder; None for bfloat16, on a CPU float32.
        vae_dtype: of the autoencoder; None for the same.
        workers: processes that check files, and clips that are decoded at a time; None for one a
            core, 0 checks in this process.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    lengths: tuple[int, ...] = ()
    fps: float | None = None
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    inputs: tuple[str, ...] | None = None
    columns: Columns | None = None
    dtype: str | None = None
    vae_dtype: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise InputError(f"the workers must be at least 0, got {self.workers}")

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
        refused: what is not, each once, and why.
    """

    jobs: tuple[Job, ...]
    refused: tuple[Finding, ...]


class Memory(Protocol):
    """What was found of files before; a `wan_tpu.dataset.examined.Examinations` is one."""

    def known(self, entry: Entry) -> Examined | None:
        """What was found of a file, which is not decoded again; None where nothing is."""
        ...

    def add(self, examined: Examined) -> None:
        """What was just found of a file that was not known."""
        ...


def plan_jobs(
    listing: Listing,
    options: PrepareOptions,
    buckets: Buckets,
    made: Made,
    memory: Memory,
    watch: Watch,
) -> Plan:
    """Checks and cuts; the same files give the same plan.

    Every file is decoded once, as `wan-tpu dataset check` does, and what was found remembered: a
    clip that is damaged somewhere is named before anything is encoded.

    Args:
        listing: of a folder or a manifest.
        options: how it is prepared.
        buckets: sizes, lengths and the rate.
        made: what encodes.
        memory: of earlier checks.
        watch: told of files that were checked; asked whether to stop.
    """
    with watch.stage("check", len(listing.entries)) as report:
        checked = check(
            listing,
            buckets,
            sampling=options.sampling,
            workers=options.workers,
            on_file=lambda done, total: report(done + len(listing.entries) - total),
            known=memory.known,
            on_examined=memory.add,
        )
    media = {file.entry.name: file.digest for file in checked.files}
    jobs, left = _jobs(checked.placement.placed, media, made, buckets)
    refused: dict[str, Finding] = {}
    for finding in (*checked.faults, *checked.placement.left, *left):
        refused.setdefault(finding.name, finding)  # the first reason will do
    return Plan(jobs=jobs, refused=tuple(refused.values()))


def _jobs(
    placed: Sequence[Placed], media: Mapping[str, str], made: Made, buckets: Buckets
) -> tuple[tuple[Job, ...], list[Finding]]:
    """A job for each window, and what no sample can be made of.

    Args:
        placed: the windows.
        media: digests of files, by the name of the entry.
        made: what encodes.
        buckets: whose rate is theirs.
    """
    jobs: dict[tuple[str, str], Job] = {}
    names: set[str] = set()
    left = []
    for each in placed:
        entry, window, geometry = each.entry, each.window, each.geometry
        fault = _unfit(entry, geometry, made.inputs)
        if fault is not None:
            left.append(fault)
            continue
        assert entry.caption is not None
        caption = clean_prompt(entry.caption)
        makes = made.sample(
            media=media[entry.name],
            clip={
                "kind": entry.kind.value,
                "start": str(window.start),
                "size": [geometry.width, geometry.height, geometry.num_frames],
                "fps": str(Fraction(buckets.fps)),
                "stored_fps": entry.fps,
            },
        )
        key = key_of(makes)
        if (key, caption) in jobs:
            words = "it is there twice with the same caption, but for spaces"
            left.append(Finding(name=entry.name, kind="duplicate", words=words))
            continue
        name = _free_name(f"{entry.name}@{float(window.start):g}", names)
        names.add(name)
        jobs[key, caption] = Job(
            name=name, caption=caption, placed=each, fps=buckets.fps, made=makes, key=key
        )
    return tuple(jobs.values()), left


def _unfit(entry: Entry, geometry: Geometry, inputs: Sequence[str]) -> Finding | None:
    """What a check without a model does not see."""
    if LAST in inputs and geometry.num_frames == 1:
        words = "it has one frame, and the model is given a first and a last one"
        return Finding(name=entry.name, kind="too-short", words=words)
    try:
        check_prompt(entry.caption or "")
    except PromptError:
        words = "its caption has no visible characters"
        return Finding(name=entry.name, kind="empty-caption", words=words)
    return None


def _free_name(name: str, taken: set[str]) -> str:
    """A name that no other sample has: one clip may have several captions."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}#{number}"
    return found
