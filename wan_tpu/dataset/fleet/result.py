"""From shards to a dataset: what `dataset.json` says of all of them, and how it is brought home."""

import asyncio
import pathlib
import tempfile
from collections.abc import Callable, Sequence

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.cache import SAMPLES, TEXTS, Cache
from wan_tpu.dataset.claims import Claims
from wan_tpu.dataset.entry import Entry
from wan_tpu.dataset.examine import Examined
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.fleet.clips import at_once, download
from wan_tpu.dataset.fleet.order import INDEX_FILE, Index, PreparePlan
from wan_tpu.dataset.fleet.shard import HEAD_BYTES, Record, record_bytes, unpack
from wan_tpu.dataset.jobs import plan_jobs
from wan_tpu.dataset.manifest import FILE, Manifest, read_manifest, write_manifest
from wan_tpu.dataset.prepare import check_any, make_manifest
from wan_tpu.errors import InputError
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.whole_file import publish, reporting
from wan_tpu.storage.bucket import Bucket, ObjectMissing

OnShard = Callable[[int, int], None]


def plan_key(plan: str) -> str:
    """Of the object that holds a plan."""
    return f"plans/{plan}.json"


def shard_key(shard: str) -> str:
    """Of the object that holds a shard."""
    return f"shards/{shard}.tar"


async def read_plan(bucket: Bucket, plan: str) -> PreparePlan:
    """A plan by its id.

    Raises:
        InputError: it is gone, or another version wrote it.
        BucketError: the bucket cannot be used.
    """
    try:
        return PreparePlan.from_bytes(await bucket.get(plan_key(plan)))
    except ObjectMissing:
        raise InputError(f"{bucket.name} has no {plan_key(plan)} any more") from None


async def read_index(bucket: Bucket) -> Index | None:
    """What the finished dataset in a bucket is made of; None where there is none.

    Raises:
        InputError: another version wrote it.
        BucketError: the bucket cannot be used.
    """
    try:
        return Index.from_bytes(await bucket.get(INDEX_FILE))
    except ObjectMissing:
        return None
    except InputError as error:
        raise InputError(f"{bucket.name}: {error}") from None


async def read_record(bucket: Bucket, shard: str) -> Record:
    """What a shard says of itself; no more of it is read.

    Raises:
        InputError: it is gone, or damaged.
        BucketError: the bucket cannot be used.
    """
    key = shard_key(shard)
    try:
        size = record_bytes(await _part(bucket, key, 0, HEAD_BYTES))
        return Record.from_bytes(await _part(bucket, key, HEAD_BYTES, HEAD_BYTES + size))
    except ObjectMissing:
        raise InputError(f"{bucket.name} has no {key} any more") from None


async def read_dataset(bucket: Bucket) -> Manifest:
    """The `dataset.json` of a bucket.

    Raises:
        InputError: it is not there, or another version wrote it.
        BucketError: the bucket cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            await download(bucket, FILE, pathlib.Path(folder, FILE))
        except ObjectMissing:
            raise InputError(f"{bucket.name} has no {FILE} any more") from None
        return read_manifest(pathlib.Path(folder))


async def _part(bucket: Bucket, key: str, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in bucket.stream(key, start, end)])


# --- what the last activity does ------------------------------------------------------------------


async def finish(
    bucket: Bucket,
    plan: PreparePlan,
    shards: Sequence[str],
    description: ModelDescription,
    on_shard: OnShard = lambda done, total: None,
) -> Manifest:
    """Writes `dataset.json` of all shards, then `shards.json`.

    Args:
        bucket: of the result.
        plan: whose shards are made.
        shards: their keys, in the plan's order.
        description: of the model.
        on_shard: is told how many have been read, of how many.

    Raises:
        InputError: no sample was made, or not all shards by the same encoders.
        BucketError: the bucket cannot be used.
    """
    done = 0

    async def read(shard: str) -> Record:
        nonlocal done
        record = await read_record(bucket, shard)
        done += 1
        on_shard(done, len(shards))
        return record

    records = await at_once(read, shards)
    manifest = await asyncio.to_thread(assemble, plan, records, description)
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(pathlib.Path(folder), manifest)
        await bucket.put(FILE, pathlib.Path(folder, FILE), create=False)
    clips = [tuple(plan.clips[place].digest for place in each.clips) for each in plan.shards]
    index = Index(
        plan=plan.id,
        settings=plan.settings_digest,
        dataset=manifest.digest,
        shards=tuple(zip(shards, clips, strict=True)),
    )
    await bucket.put(INDEX_FILE, index.to_bytes(), create=False)
    return manifest


def assemble(
    plan: PreparePlan, records: Sequence[Record], description: ModelDescription
) -> Manifest:
    """What `prepare` would say of the same clips: duplicates are looked for among all of them.

    Args:
        plan: what was to be prepared.
        records: of its shards, in its order.
        description: of the model.

    Raises:
        InputError: no sample was made, or not all shards by the same encoders.
    """
    made = records[0].made
    for record in records:
        if record.made != made:
            raise InputError(
                "the shards were not made by the same encoders: the workers differ in the files of "
                f"{plan.model} or in the dtype; start all of them with the same --model"
            )
    options = plan.options
    jobs = plan_jobs(
        plan.listing(),
        options,
        options.buckets(description),
        made,
        _Records(plan, records),
        Watch(),
    )
    check_any(jobs, plan.source)
    wrong = {key: each for record in records for key, each in record.undecoded.items()}
    undecoded = {
        job.key: Finding(name=job.name, kind=wrong[job.key][0], words=wrong[job.key][1])
        for job in jobs.jobs
        if job.key in wrong
    }
    manifest = make_manifest(plan.source, description, options, made, jobs, undecoded)
    check_any(manifest, plan.source)
    there = {each for record in records for each in record.files}
    for kind, key in _needed(manifest):
        assert (kind, key) in there, f"no shard has {kind} {key}"
    return manifest


class _Records:
    """What the shards found of files, for a check of all of them."""

    def __init__(self, plan: PreparePlan, records: Sequence[Record]):
        self._of = {
            plan.clips[place].entry.name: record
            for shard, record in zip(plan.shards, records, strict=True)
            for place in shard.clips
        }

    def known(self, entry: Entry) -> Examined:
        return self._of[entry.name].known(entry)

    def add(self, examined: Examined) -> None:
        raise AssertionError(f"{examined.entry.name} was in no shard")


def _needed(manifest: Manifest) -> set[tuple[str, str]]:
    """Kind and key of the files that a dataset is read from."""
    needed = {(SAMPLES, sample.sample) for sample in manifest.samples}
    needed |= {(TEXTS, sample.text) for sample in manifest.samples}
    return needed | {(TEXTS, manifest.empty_text)}


# --- bringing it home -----------------------------------------------------------------------------


async def fetch(
    bucket: Bucket, folder: pathlib.Path, on_shard: OnShard = lambda done, total: None
) -> Manifest:
    """Brings a finished dataset to a folder, as `prepare` would have made it there.

    What is there is not brought again; `dataset.json` comes last.

    Args:
        bucket: of the result.
        folder: made where it is not there.
        on_shard: is told how many shards are there, of how many.

    Raises:
        InputError: the bucket has no finished dataset, or one that is damaged.
        BucketError: the bucket cannot be used.
        OutputError: the folder cannot be written.
    """
    index = await read_index(bucket)
    if index is None:
        raise InputError(
            f"{bucket.name} has no finished dataset; wan-tpu dataset prepare --fleet makes one"
        )
    cache = Cache(folder)
    cache.make_folders()
    with Claims(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".wan-tpu-") as aside:
        new = pathlib.Path(aside)
        await download(bucket, FILE, new / FILE)
        manifest = read_manifest(new)
        if manifest.digest != index.dataset:
            raise InputError(f"{bucket.name} is being written anew; try again in a moment")
        left = {(kind, key) for kind, key in _needed(manifest) if not cache.has(kind, key)}
        for number, (shard, _) in enumerate(index.shards):
            on_shard(number, len(index.shards))
            if left and not left.isdisjoint((await read_record(bucket, shard)).files):
                archive = new / "shard.tar"
                await download(bucket, shard_key(shard), archive)
                left -= await asyncio.to_thread(unpack, archive, cache, left)
        on_shard(len(index.shards), len(index.shards))
        if left:
            raise InputError(f"{bucket.name} lacks {len(left)} files of its dataset")
        with reporting(folder / FILE):
            publish(new / FILE, folder / FILE)
    return manifest
