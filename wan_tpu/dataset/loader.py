"""Prepared samples as batches, read ahead by grain; the order is `wan_tpu.dataset.order`'s.

Batch n is the same wherever an iteration began and however many processes read. Every process of a
slice is given the whole batch; the step takes its part.
"""

import dataclasses
import pathlib
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.cache import CONDITION, IMAGE, LATENTS, SAMPLES, TEXT, TEXTS, Cache
from wan_tpu.dataset.manifest import Manifest, Prepared, check_model, read_manifest
from wan_tpu.dataset.order import Order
from wan_tpu.dataset.sample import Batch, Sample
from wan_tpu.errors import InputError, MissingPackageError
from wan_tpu.geometry import TEXT_TOKENS, Geometry

AHEAD = 2
"""Batches that are read before they are asked for, by this process or by each worker."""

ENDLESS = 2**40
"""Batches of an order without end; grain asks for a number."""

Text = Float[np.ndarray, "512 text_dim"]


class PreparedDataset:
    """A `wan_tpu.dataset.sample.Dataset`: what `wan-tpu dataset prepare` made in a folder.

    Attributes:
        folder: of `dataset.json`.
        manifest: its contents.
        digest: of all samples, captions and their order.
        geometries: sizes of the batches, the most frequent first.
        empty_text: embeddings of the empty caption, `[512, text_dim]`, float32, zero past its end.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        """What `open_dataset` checked.

        Raises:
            InputError: the empty caption's embeddings are gone or damaged.
        """
        self.folder, self.manifest = folder, manifest
        self.digest = manifest.digest
        self.geometries = tuple(manifest.geometry(size) for size in manifest.counts())
        self.empty_text = _padded(Cache(folder).read(TEXTS, manifest.empty_text)[TEXT])

    def __len__(self) -> int:
        """Samples."""
        return len(self.manifest.samples)

    def sample(self, number: int) -> Sample:
        """A sample by its place in the manifest.

        Raises:
            InputError: its files are gone or damaged.
        """
        return read_sample(Cache(self.folder), self.manifest.samples[number])

    def batches(
        self, size: int, *, seed: int, start: int = 0, workers: int = 0
    ) -> Generator[Batch, None, None]:
        """See `wan_tpu.dataset.sample.Dataset`; arrays are float32. Closing it ends the workers.

        Raises:
            MissingPackageError: grain is not installed.
            InputError: instead of a batch with a sample whose files are gone or damaged.
        """
        sizes = list(self.manifest.counts())
        numbers = [sizes.index(sample.size) for sample in self.manifest.samples]
        order = Order(numbers, batch=size, seed=seed)
        source = _BatchSource(folder=self.folder, manifest=self.manifest, order=order)
        masks = {geometry: self._mask(geometry) for geometry in self.geometries}
        for parts in _read_ahead(source, start, workers):
            geometry = self.geometries[sizes.index(parts.size)]
            yield _batch(parts, geometry, masks[geometry])

    def batch_of(self, numbers: Sequence[int]) -> Batch:
        """Some samples by their places in the manifest, in this order; they are of one size.

        Raises:
            InputError: files of one are gone or damaged.
        """
        parts = _parts(self.folder, [self.manifest.samples[number] for number in numbers])
        geometry = self.manifest.geometry(parts.size)
        return _batch(parts, geometry, self._mask(geometry))

    def _mask(self, geometry: Geometry) -> np.ndarray | None:
        """Which frames the model is given, as its steps see it, `[1, frames, height, width, 4]`."""
        if not self.manifest.inputs:
            return None
        from wan_tpu.pipeline.conditions import FurtherChannels

        return FurtherChannels(roles=frozenset(self.manifest.inputs)).mask(geometry)


def open_dataset(
    path: pathlib.Path | str, description: ModelDescription | None = None
) -> PreparedDataset:
    """A folder that `wan-tpu dataset prepare` made.

    Args:
        path: of the folder.
        description: of the model that is to learn from it; None leaves that unchecked.

    Raises:
        InputError: it is no such folder, files of it are gone, or it is of another model; in one
            line, with the command that makes it.
        CheckpointError: files of the model are missing.
    """
    folder = pathlib.Path(path)
    manifest = read_manifest(folder)
    if not manifest.samples:
        raise InputError(
            f"{folder} has no sample: all {len(manifest.refused)} clips were refused; "
            f"wan-tpu dataset check {manifest.source} says why"
        )
    if description is not None:
        check_model(manifest, description, folder)
    cache = Cache(folder)
    wanted = {cache.path(SAMPLES, sample.sample) for sample in manifest.samples}
    wanted |= {cache.path(TEXTS, sample.text) for sample in manifest.samples}
    gone = sorted(path.name for path in wanted if not path.is_file())
    if gone:
        raise InputError(
            f"{folder} lacks {len(gone)} of its {len(wanted)} files, such as {gone[0]}; the same "
            "wan-tpu dataset prepare makes them again"
        )
    return PreparedDataset(folder, manifest)


def read_sample(cache: Cache, prepared: Prepared) -> Sample:
    """A sample's files; arrays are float32.

    Raises:
        InputError: they are gone or damaged.
    """
    arrays = cache.read(SAMPLES, prepared.sample)
    return Sample(
        name=prepared.name,
        caption=prepared.caption,
        latents=arrays[LATENTS],
        text=cache.read(TEXTS, prepared.text)[TEXT],
        condition=arrays.get(CONDITION),
        image=arrays.get(IMAGE),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """A batch as a worker reads it: no mask, and nothing of JAX."""

    size: tuple[int, int, int]
    names: tuple[str, ...]
    captions: tuple[str, ...]
    latents: np.ndarray
    text: np.ndarray
    condition: np.ndarray | None
    image: np.ndarray | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _BatchSource:
    """grain's random access: batch by number."""

    folder: pathlib.Path
    manifest: Manifest
    order: Order

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> _Parts:
        return _parts(self.folder, [self.manifest.samples[i] for i in self.order.batch(int(index))])

    def __repr__(self) -> str:
        return f"batches of {self.manifest.digest}"


def _parts(folder: pathlib.Path, chosen: Sequence[Prepared]) -> _Parts:
    """Reads samples of one size."""
    cache = Cache(folder)
    samples = [read_sample(cache, each) for each in chosen]
    return _Parts(
        size=chosen[0].size,
        names=tuple(sample.name for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        latents=np.stack([sample.latents for sample in samples]),
        text=np.stack([_padded(sample.text) for sample in samples]),
        condition=_stacked([sample.condition for sample in samples]),
        image=_stacked([sample.image for sample in samples]),
    )


def _batch(parts: _Parts, geometry: Geometry, mask: np.ndarray | None) -> Batch:
    """What was read, with the mask in front of what the model is given."""
    condition = parts.condition
    if condition is not None:
        assert mask is not None
        given = np.broadcast_to(mask, (len(condition), *mask.shape[1:]))
        condition = np.concatenate([given, condition], axis=-1)
    return Batch(
        geometry=geometry,
        names=parts.names,
        captions=parts.captions,
        latents=parts.latents,
        text=parts.text,
        condition=condition,
        image=parts.image,
    )


def _stacked(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    there = [array for array in arrays if array is not None]
    assert len(there) in (0, len(arrays)), "samples of one dataset have the same arrays"
    return np.stack(there) if there else None


def _padded(text: Float[np.ndarray, "tokens text_dim"]) -> Text:
    """Embeddings with zeros past their end, as the transformer is given them."""
    return np.pad(text, ((0, TEXT_TOKENS - len(text)), (0, 0)))


def _read_ahead(source: _BatchSource, start: int, workers: int) -> Iterator[_Parts]:
    """The batches from `start` on, in order, some of them read before they are asked for."""
    try:
        import grain
        from absl import flags
    except ImportError:
        raise MissingPackageError(
            "training reads its data with grain, which is not installed: pip install "
            "'wan_tpu[train]'"
        ) from None
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's processes take over absl's flags, which we have not
    batches = grain.MapDataset.source(source)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    )
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
        batches = batches.mp_prefetch(options)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()
