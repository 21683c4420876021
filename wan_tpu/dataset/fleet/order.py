"""What a fleet is to prepare: the entries, cut into shards, as one object beside the result.

In the bucket of the result lie

    plans/ID.json          what is to be prepared, written once
    shards/KEY.tar         what was made of a shard, of `wan_tpu.dataset.fleet.shard`
    dataset.json           as in a folder that `wan-tpu dataset prepare` makes
    shards.json            which plan and which shards it is of
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from wan_tpu.dataset.cache import ENCODE_VERSION
from wan_tpu.dataset.digests import digest_of_json
from wan_tpu.dataset.entry import Entry, Kind, Listing
from wan_tpu.dataset.examined import VERSION
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.jobs import PrepareOptions
from wan_tpu.dataset.sampling import Sampling
from wan_tpu.errors import InputError

FORMAT = 1
INDEX_FILE = "shards.json"
ID_DIGITS = 24


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """An entry, and the state in which its file was seen.

    Attributes:
        entry: its `path` is relative to the clips' bucket, or absolute where there is none.
        state: bytes, and time of change or ETag; equal ones are equal files.
    """

    entry: Entry
    state: tuple[int, str]

    def to_json(self) -> dict[str, Any]:
        """As it stands in a plan."""
        entry = self.entry
        return {
            "name": entry.name,
            "path": str(entry.path),
            "caption": entry.caption,
            "kind": entry.kind.value,
            "source": entry.source,
            "fps": entry.fps,
            "state": list(self.state),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Clip":
        """What `to_json` told."""
        fields = {**told, "path": pathlib.Path(told["path"]), "kind": Kind(told["kind"])}
        size, mark = fields.pop("state")
        return cls(entry=Entry(**fields), state=(size, mark))

    @property
    def digest(self) -> str:
        """Of what is said of it: another caption or state, another digest."""
        return digest_of_json(self.to_json())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Clips that are prepared together.

    Attributes:
        clips: their places in the plan, in order.
        made: key of the shard where an earlier plan has the same one, else None.
    """

    clips: tuple[int, ...]
    made: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparePlan:
    """What is to be prepared.

    Attributes:
        model: name of the one whose encoders are taken.
        source: what was listed, as its user wrote it.
        bucket: URL of the clips; None for files that every worker sees.
        output: URL of the result.
        options: how clips are prepared; `columns` and `workers` are no matter of a worker's.
        findings: of the listing.
        clips: all of them, in its order.
        shards: these in groups; all entries of one file are in one.
    """

    model: str
    source: str
    bucket: str | None
    output: str
    options: PrepareOptions
    findings: tuple[Finding, ...]
    clips: tuple[Clip, ...]
    shards: tuple[Shard, ...] = ()

    @property
    def id(self) -> str:
        """Of all but how it is cut: the same command on the same files has the same."""
        told = self._to_json() | {"versions": [FORMAT, ENCODE_VERSION, VERSION]}
        return f"prepare-{digest_of_json(told)[:ID_DIGITS]}"

    @property
    def settings_digest(self) -> str:
        """Of all that decides, beside a clip, what is made of it."""
        told = self._to_json()
        told = {name: told[name] for name in ("model", "bucket", "options")}
        return digest_of_json([told, FORMAT, ENCODE_VERSION, VERSION])

    def listing(self) -> Listing:
        """What was listed."""
        entries = tuple(clip.entry for clip in self.clips)
        return Listing(path=pathlib.Path(self.source), entries=entries, findings=self.findings)

    def entries(self, number: int) -> tuple[Entry, ...]:
        """Those of a shard."""
        return tuple(self.clips[place].entry for place in self.shards[number].clips)

    def to_bytes(self) -> bytes:
        """JSON, UTF-8."""
        shards = [[list(shard.clips), shard.made] for shard in self.shards]
        told = {"format": FORMAT, "plan": self._to_json(), "shards": shards}
        return json.dumps(told, ensure_ascii=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "PreparePlan":
        """What `to_bytes` wrote.

        Raises:
            InputError: another version wrote it.
        """
        told = json.loads(data)
        if told.get("format") != FORMAT:
            raise InputError("this plan was made by another version of wan-tpu")
        plan, shards = told["plan"], told["shards"]
        options = plan["options"]
        inputs = options["inputs"]
        options = PrepareOptions(
            sizes=tuple((width, height) for width, height in options["sizes"]),
            lengths=tuple(options["lengths"]),
            fps=options["fps"],
            sampling=Sampling(**options["sampling"]),
            inputs=None if inputs is None else tuple(inputs),
            dtype=options["dtype"],
            vae_dtype=options["vae_dtype"],
        )
        return cls(
            **plan
            | {
                "options": options,
                "findings": tuple(Finding(**each) for each in plan["findings"]),
                "clips": tuple(Clip.from_json(each) for each in plan["clips"]),
                "shards": tuple(Shard(clips=tuple(clips), made=made) for clips, made in shards),
            }
        )

    def _to_json(self) -> dict[str, Any]:
        options = dataclasses.asdict(self.options)
        del options["columns"], options["workers"]
        options["sizes"] = [list(size) for size in self.options.sizes]
        return {
            "model": self.model,
            "source": self.source,
            "bucket": self.bucket,
            "output": self.output,
            "options": options,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "clips": [clip.to_json() for clip in self.clips],
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Contents of `shards.json`: of what a finished result is made.

    Attributes:
        plan: id of its plan.
        settings: digest of its settings.
        dataset: digest of its manifest.
        shards: key of each, and the digests of its clips.
    """

    plan: str
    settings: str
    dataset: str
    shards: tuple[tuple[str, tuple[str, ...]], ...]

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Index":
        """What `to_bytes` wrote.

        Raises:
            InputError: another program or version wrote it.
        """
        try:
            told = json.loads(data)
            if told.pop("format") != FORMAT:
                raise ValueError
            shards = tuple((key, tuple(clips)) for key, clips in told.pop("shards"))
            return cls(shards=shards, **told)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"its {INDEX_FILE} was not written by this version of wan-tpu dataset prepare"
            ) from None


def cut(plan: PreparePlan, size: int, before: Index | None) -> PreparePlan:
    """The plan with its shards.

    Args:
        plan: without any.
        size: clips of a shard at most, but for a file with more captions.
        before: what is there; its shards stay as they are as long as all their clips do.
    """
    places: dict[str, list[int]] = {}
    for place, clip in enumerate(plan.clips):
        places.setdefault(clip.entry.name, []).append(place)
    of_digest = {clip.digest: place for place, clip in enumerate(plan.clips)}
    shards = []
    kept: set[int] = set()
    if before is not None and before.settings == plan.settings_digest:
        for key, digests in before.shards:
            found = [of_digest.get(digest) for digest in digests]
            there = [place for place in found if place is not None]
            files = {plan.clips[place].entry.name for place in there}
            is_whole = len(there) == len(found) == sum(len(places[name]) for name in files)
            if is_whole and there == sorted(there):  # of two equal files the first one is taken
                shards.append(Shard(clips=tuple(there), made=key))
                kept.update(there)
    left = [group for group in places.values() if not kept.issuperset(group)]
    shards += [Shard(clips=clips) for clips in _groups(left, size)]
    return dataclasses.replace(plan, shards=tuple(shards))


def _groups(files: Sequence[Sequence[int]], size: int) -> list[tuple[int, ...]]:
    """Entries of files, joined up to a size."""
    groups: list[tuple[int, ...]] = []
    for file in files:
        if groups and len(groups[-1]) + len(file) <= size:
            groups[-1] += tuple(file)
        else:
            groups.append(tuple(file))
    return [tuple(sorted(group)) for group in groups]
