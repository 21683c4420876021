"""Clips in a bucket: listed by what a listing looks at, and brought to those who prepare them."""

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from wan_tpu.dataset.digests import state_of
from wan_tpu.dataset.entry import (
    CAPTION_SUFFIX,
    FRAMES_SUFFIX,
    MANIFEST_SUFFIXES,
    Columns,
    Entry,
    Listing,
)
from wan_tpu.dataset.fleet.order import Clip
from wan_tpu.dataset.listing import list_entries
from wan_tpu.errors import InputError, WanTpuError
from wan_tpu.image.clip_file import HEAD_BYTES
from wan_tpu.pipeline.whole_file import reporting
from wan_tpu.storage.bucket import Bucket, ObjectMissing, Stat, open_bucket

AT_A_TIME = 32
"""Requests to a bucket."""

WHOLE_SUFFIXES = (CAPTION_SUFFIX, *MANIFEST_SUFFIXES, FRAMES_SUFFIX)
"""Of objects that a listing reads to their end; of all others it looks at the first bytes."""

AGAIN = "the same command lists the clips anew"

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClipsNotHere(WanTpuError):
    """This machine does not see the clips."""


def is_bucket(source: str) -> bool:
    """Whether clips lie in a bucket, not in a folder that every worker sees."""
    return source.startswith(("s3://", "gs://"))


async def at_once(work: Callable[[Item], Awaitable[Result]], items: Iterable[Item]) -> list[Result]:
    """The same work on many things, some at a time; results in their order, or the first error."""
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(item: Item) -> Result:
        async with gate:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def list_folder(source: pathlib.Path, columns: Columns | None) -> tuple[Listing, list[Clip]]:
    """Clips that every worker sees under the same path.

    Raises:
        InputError: it cannot be read as a whole.
    """
    listing = list_entries(source, columns=columns)
    clips = []
    for entry in listing.entries:
        try:
            path, size, changed = state_of(entry.path)
        except OSError:
            path, size, changed = str(entry.path), 0, 0  # the check says what is wrong
        there = dataclasses.replace(entry, path=pathlib.Path(path))
        clips.append(Clip(entry=there, state=(size, str(changed))))
    return listing, clips


async def list_bucket(
    source: str, columns: Columns | None, folder: pathlib.Path
) -> tuple[str, Listing, list[Clip]]:
    """Clips in a bucket, below a prefix or named by a manifest there.

    Args:
        source: URL.
        columns: of a manifest.
        folder: an empty one, for what is looked at.

    Returns:
        The URL of the bucket that the entries' paths are relative to, what is there, and its state.

    Raises:
        InputError: nothing is there, or it cannot be read as a whole.
        BucketError: the bucket cannot be used.
    """
    is_manifest = source.lower().endswith(MANIFEST_SUFFIXES)
    url, _, name = source.rpartition("/") if is_manifest else (source, "", "")
    bucket = open_bucket(url, setting="PATH")
    objects = [stat for stat in await bucket.list("") if _is_listed(stat.key)]
    if not objects:
        raise InputError(f"{source} has no object: the bucket or its folder is empty")
    states = {stat.key: (stat.size, stat.etag or str(stat.modified)) for stat in objects}
    if is_manifest and name not in states:
        raise InputError(f"{source} is not there")

    async def look(stat: Stat) -> None:
        path = folder / stat.key
        path.parent.mkdir(parents=True, exist_ok=True)
        is_whole = path.suffix.lower() in WHOLE_SUFFIXES
        await download(bucket, stat.key, path, stat.size if is_whole else HEAD_BYTES)

    await at_once(look, objects)
    listing = list_entries(folder / name, columns=columns)
    clips = []
    for entry in listing.entries:
        if not entry.path.is_relative_to(folder) or ".." in entry.path.parts:
            raise InputError(f"{entry.source} names {entry.name}, which is not in {url}")
        key = entry.path.relative_to(folder)
        there = dataclasses.replace(entry, path=key)
        clips.append(Clip(entry=there, state=states[key.as_posix()]))
    return url, listing, clips


async def bring(bucket: Bucket, entries: Sequence[Entry], folder: pathlib.Path) -> list[Entry]:
    """Downloads the files of entries; returns these with their paths here.

    Raises:
        InputError: one has gone since it was listed.
        BucketError: the bucket cannot be used.
        OutputError: the folder cannot be written.
    """
    keys = sorted({entry.path.as_posix() for entry in entries})

    async def one(key: str) -> None:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await download(bucket, key, path)
        except ObjectMissing:
            raise InputError(f"{key} has gone from {bucket.name}; {AGAIN}") from None

    await at_once(one, keys)
    return [dataclasses.replace(entry, path=folder / entry.path) for entry in entries]


def check_there(clips: Sequence[Clip]) -> None:
    """Holds files against the state in which the command saw them.

    Raises:
        InputError: some are not there any more, or have changed.
        ClipsNotHere: none is there: this machine sees another folder.
    """
    lost = []
    for clip in clips:
        try:
            _, size, changed = state_of(clip.entry.path)
        except OSError:
            size, changed = -1, 0
        if (size, str(changed)) != clip.state:
            lost.append((clip.entry.path, size))
    if not lost:
        return
    path, _ = lost[0]
    if len(lost) == len(clips) and all(size < 0 for _, size in lost):
        raise ClipsNotHere(f"{path} is not on this machine: every worker must see the clips there")
    raise InputError(f"{path} has changed or gone since it was listed; {AGAIN}")


async def download(bucket: Bucket, key: str, path: pathlib.Path, size: int | None = None) -> None:
    """An object, or its beginning, as a file that is there once it is whole.

    Args:
        bucket: that has it.
        key: of the object.
        path: of the file; its folder is there.
        size: bytes from its beginning; None for all.

    Raises:
        ObjectMissing: there is none.
        OutputError: the file cannot be written.
    """
    if size is None:
        stat = await bucket.head(key)
        if stat is None:
            raise ObjectMissing(key)
        size = stat.size
    aside = path.with_name(f".{path.name}.part")
    with reporting(path), aside.open("wb") as file:
        if size:
            async with contextlib.aclosing(bucket.stream(key, 0, size)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
        aside.replace(path)


def _is_listed(key: str) -> bool:
    """Whether an object has a name that a file can have; what begins with a dot is left out."""
    return all(part and not part.startswith(".") for part in key.split("/")) and "\0" not in key
