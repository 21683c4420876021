"""One shard: what `wan-tpu dataset prepare` makes of some clips, as one tar archive.

Its first member says what was found of each file and what was made; the others are the files of a
prepared folder, byte for byte. The same clips, model and settings give the same name.
"""

import dataclasses
import io
import json
import pathlib
import shutil
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, Any

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.cache import SUFFIX, Cache, Made, key_of
from wan_tpu.dataset.check import crashed
from wan_tpu.dataset.claims import Claims
from wan_tpu.dataset.digests import Digests, digest_of_json, encoder_digests
from wan_tpu.dataset.encode import Encoders, encoders_of, load_encoders
from wan_tpu.dataset.entry import Entry, Listing
from wan_tpu.dataset.examine import Examined
from wan_tpu.dataset.examined import from_json, to_json
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.fleet.order import FORMAT
from wan_tpu.dataset.jobs import PrepareOptions, plan_jobs
from wan_tpu.dataset.processes import default_workers
from wan_tpu.dataset.work import Work
from wan_tpu.errors import InputError
from wan_tpu.family import TEXT_ENCODER
from wan_tpu.pipeline.load import dtype_for
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.whole_file import aside_of, publish, reporting

RECORD = "shard.json"
"""Name of the first member."""

KEY_DIGITS = 40
"""Of a shard's name; a workflow carries all of them from one run to the next."""

HEAD_BYTES = tarfile.BLOCKSIZE
"""Of an archive: what says how long its first member is."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a shard says of itself.

    Attributes:
        made: what encoded.
        examined: digest and findings of each file, by its name.
        undecoded: kind and words of what is wrong with those that could not be, by key.
        files: kind and key of what is in the archive.
    """

    made: Made
    examined: Mapping[str, tuple[str, dict[str, Any]]]
    undecoded: Mapping[str, tuple[str, str]]
    files: tuple[tuple[str, str], ...]

    def known(self, entry: Entry) -> Examined:
        """What was found of a file."""
        digest, told = self.examined[entry.name]
        return from_json(entry, digest, told)

    def to_bytes(self) -> bytes:
        """JSON."""
        told = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(told).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """What `to_bytes` wrote.

        Raises:
            InputError: another program or version wrote it.
        """
        try:
            told = json.loads(data)
            if told.pop("format") != FORMAT:
                raise ValueError
            made = told.pop("made")
            return cls(
                made=Made(**{**made, "inputs": tuple(made["inputs"])}),
                examined={name: (each[0], each[1]) for name, each in told["examined"].items()},
                undecoded={key: (each[0], each[1]) for key, each in told["undecoded"].items()},
                files=tuple((kind, key) for kind, key in told["files"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise InputError("a shard was not written by this version of wan-tpu") from None


def record_bytes(head: bytes) -> int:
    """How long the record of an archive is, whose first `HEAD_BYTES` are given.

    Raises:
        InputError: it is no archive of a shard.
    """
    try:
        member = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
    except tarfile.HeaderError:
        raise InputError("a shard is damaged: it is no tar archive") from None
    if member.name != RECORD:
        raise InputError(f"a shard is damaged: it begins with {member.name!r}, not {RECORD}")
    return member.size


class _Found:
    """What this run finds of files; of a crash nobody tells it."""

    def __init__(self) -> None:
        self._found: dict[str, Examined] = {}

    def known(self, entry: Entry) -> Examined | None:
        return self._found.get(entry.name)

    def add(self, examined: Examined) -> None:
        self._found[examined.entry.name] = examined

    def all(self, entries: Sequence[Entry]) -> dict[str, tuple[str, dict[str, Any]]]:
        found = {entry.name: self.known(entry) or crashed(entry) for entry in entries}
        return {name: (each.digest, to_json(each)) for name, each in found.items()}


class ShardMaker:
    """Makes shards one after the other, with a model's encoders; JAX has been started.

    Attributes:
        description: of the model.
    """

    def __init__(
        self,
        description: ModelDescription,
        folder: pathlib.Path,
        *,
        devices: Sequence[Any],
        workers: int | None = None,
        one_at_a_time: bool = False,
        load: Callable[..., Encoders] = load_encoders,
    ):
        """Nothing is loaded before the first clip.

        Args:
            description: of the model, from `open_model`.
            folder: for what is being made; its content goes.
            devices: that encode.
            workers: files that are checked or decoded at a time; None for one a core, 0 checks in
                this process.
            one_at_a_time: whether the text encoder makes room for the autoencoder in each shard;
                else both stay loaded.
            load: as `load_encoders`.
        """
        self.description = description
        self._folder = folder
        self._devices = devices
        self._workers = workers
        self._one_at_a_time = one_at_a_time
        self._load = load
        self._loaded: dict[tuple[Any, ...], Encoders] = {}
        self._digests = Digests(None)
        self._encoders: dict[str, str] | None = None

    def made(self, options: PrepareOptions) -> Made:
        """What encodes; reads the model's files the first time.

        Raises:
            InputError: the model takes no such options.
            CheckpointError: files of the model are missing or damaged.
        """
        if self._encoders is None:
            self._encoders = encoder_digests(self.description, self._digests)
        dtype = str(dtype_for(self._devices, options.dtype))
        return Made(
            encoders=self._encoders,
            dtype=dtype,
            vae_dtype=options.vae_dtype or dtype,
            inputs=options.inputs_for(self.description),
        )

    def key(self, entries: Sequence[Entry], options: PrepareOptions) -> str:
        """The name of what is made of these: reads every file, and decodes none.

        Raises:
            OSError: a clip cannot be read.
            CheckpointError: files of the model are missing or damaged.
        """
        buckets, made = options.buckets(self.description), self.made(options)
        clips = [
            [each.name, self._digests.of(each.path), each.caption, each.kind.value, each.fps]
            for each in entries
        ]
        told = {
            "format": FORMAT,
            "clips": clips,
            "sources": [each.source for each in entries],
            "empty": made.text(""),
            "sample": made.sample(media="", clip={}),
            "sizes": [list(size) for size in buckets.sizes],
            "frames": list(buckets.lengths),
            "fps": str(buckets.fps),
            "sampling": dataclasses.asdict(options.sampling),
        }
        return digest_of_json(told)[:KEY_DIGITS]

    def make(self, entries: Sequence[Entry], options: PrepareOptions, watch: Watch) -> pathlib.Path:
        """Checks and encodes; what is wrong with a clip is written down, and stops no other one.

        Args:
            entries: whose files are on this machine.
            options: how they are prepared.
            watch: told of the stages as `wan_tpu.dataset.prepare.prepare` tells; asked to stop.

        Returns:
            The archive, in the maker's folder until the next one is made.

        Raises:
            CheckpointError: files of the model are missing or damaged.
            OutputError: the folder cannot be written.
            OutOfMemoryError: the size does not fit the devices.
            Cancelled: the watch was told to stop.
        """
        self._clear()
        cache, made, found = Cache(self._folder), self.made(options), _Found()
        cache.make_folders()
        workers = default_workers() if self._workers is None else max(self._workers, 1)
        options = dataclasses.replace(options, workers=self._workers)
        buckets = options.buckets(self.description)
        listing = Listing(path=self._folder, entries=tuple(entries))
        undecoded: Mapping[str, Finding] = {}
        with Claims(self._folder) as claims:
            plan = plan_jobs(listing, options, buckets, made, found, watch)
            work = Work(cache, claims, watch)
            if plan.jobs:
                captions = {key_of(made.text(c)): c for c in ["", *(j.caption for j in plan.jobs)]}
                work.captions(captions, made, lambda: self._encoders_for(options, text=True))
                undecoded = work.clips(
                    {job.key: job for job in plan.jobs},
                    made.inputs,
                    self._digests,
                    lambda: self._encoders_for(options, text=False),
                    workers=workers,
                )
        record = Record(
            made=made,
            examined=found.all(entries),
            undecoded={key: (each.kind, each.words) for key, each in undecoded.items()},
            files=tuple((kind, key) for kind, key, _ in cache.files()),
        )
        return _write(cache, record)

    def _encoders_for(self, options: PrepareOptions, *, text: bool) -> Encoders:
        """The text encoder, or the others."""
        names = [n for n in encoders_of(self.description) if (n == TEXT_ENCODER) == text]
        wanted = (*names, options.dtype, options.vae_dtype)
        if wanted not in self._loaded:
            if self._one_at_a_time:
                self._loaded.clear()
            self._loaded[wanted] = self._load(
                self.description,
                names,
                devices=self._devices,
                dtype=options.dtype,
                vae_dtype=options.vae_dtype,
            )
        return self._loaded[wanted]

    def _clear(self) -> None:
        with reporting(self._folder):
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._folder.mkdir(parents=True)


def _write(cache: Cache, record: Record) -> pathlib.Path:
    """The archive: the same content gives the same bytes."""
    path = cache.folder / "shard.tar"
    with reporting(path), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, RECORD, io.BytesIO(record.to_bytes()))
        for kind, key in record.files:
            with cache.path(kind, key).open("rb") as file:
                _add(archive, f"{kind}/{cache.path(kind, key).name}", file)
    return path


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    """A member without times or owners."""
    member = tarfile.TarInfo(name)
    member.size = file.seek(0, io.SEEK_END)
    member.mode = 0o644
    file.seek(0)
    archive.addfile(member, file)


def unpack(
    archive: pathlib.Path, cache: Cache, wanted: Collection[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Puts files of an archive into a prepared folder.

    Args:
        archive: that `ShardMaker.make` wrote.
        cache: of the folder.
        wanted: kind and key of those that are taken.

    Returns:
        What of this it had.

    Raises:
        InputError: the archive is damaged, or one of its files is not what its name says.
        OutputError: the folder cannot be written.
    """
    found = set()
    try:
        with tarfile.open(archive, "r:") as members:
            for member in members:
                kind, _, name = member.name.partition("/")
                key = name.removesuffix(SUFFIX)
                source = members.extractfile(member)
                if (kind, key) in wanted and source is not None:
                    _extract(source, kind, key, cache)
                    found.add((kind, key))
    except tarfile.TarError as error:
        raise InputError(f"a shard is damaged: {error}") from None
    return found


def _extract(source: IO[bytes], kind: str, key: str, cache: Cache) -> None:
    path = cache.path(kind, key)
    aside = aside_of(path)
    with reporting(path):
        try:
            with aside.open("wb") as file:
                shutil.copyfileobj(source, file)
            publish(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        if not cache.has(kind, key):
            path.unlink()
            raise InputError(f"a shard is damaged: its {kind}/{path.name} is not what it is called")
