"""From clips and captions to a folder that a training reads: list, check, encode, write down.

What is there already is kept, whatever has ended an earlier run, and several processes may work at
one folder: each takes what no other is making, and ends when everything is made.
"""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.buckets import Buckets
from wan_tpu.dataset.cache import SAMPLES, TEXTS, Cache, Made, key_of
from wan_tpu.dataset.claims import Claims
from wan_tpu.dataset.digests import Digests, encoder_digests
from wan_tpu.dataset.encode import Encoders, encoders_of, load_encoders
from wan_tpu.dataset.examined import Examinations
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.jobs import Job, Plan, PrepareOptions, plan_jobs
from wan_tpu.dataset.listing import list_entries
from wan_tpu.dataset.loader import PreparedDataset, open_dataset
from wan_tpu.dataset.manifest import Manifest, Prepared, Refusal, is_prepared, write_manifest
from wan_tpu.dataset.processes import default_workers
from wan_tpu.dataset.work import Work
from wan_tpu.errors import InputError
from wan_tpu.family import TEXT_ENCODER
from wan_tpu.pipeline.load import dtype_for
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.pipeline.whole_file import reporting

logger = logging.getLogger(__name__)

LEFT_OVER_SECONDS = 600.0
"""Since something was written to a file; writing one takes less than a second."""

OnProgress = Callable[[Progress], None] | None
ShouldCancel = Callable[[], bool] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run has done.

    Attributes:
        manifest: that was written.
        num_made: samples and captions that this process encoded.
        num_found: those that were there, or that another process made meanwhile.
        unused: files of ours that the manifest does not name: of clips, captions or settings that
            have changed since they were made.
        is_pruned: whether these were removed.
    """

    manifest: Manifest
    num_made: int
    num_found: int
    unused: tuple[pathlib.Path, ...]
    is_pruned: bool


def prepare(
    source: pathlib.Path,
    folder: pathlib.Path,
    description: ModelDescription,
    options: PrepareOptions | None = None,
    *,
    devices: Sequence[Any] | None = None,
    prune: bool = False,
    on_progress: OnProgress = None,
    should_cancel: ShouldCancel = None,
) -> Outcome:
    """Encodes clips and captions into a folder, and writes down what is there.

    JAX has been started. Every process encodes on its own devices; where several work at one
    folder, all end with the same manifest.

    Args:
        source: a folder with clips, or a manifest.
        folder: where the result goes; made where it is not there.
        description: of the model, from `open_model`; the files of its transformers are not needed.
        options: how clips are prepared.
        devices: of this process, those that encode; all of them when not given.
        prune: remove what an earlier run made there and nothing needs any more.
        on_progress: told of the stages `check`, `captions` and `clips`, and of what compiles.
        should_cancel: asked between samples.

    Raises:
        InputError: the source is not there, no sample can be made of it, or an option does not fit
            the model.
        CheckpointError: files of the model are missing or damaged.
        OutputError: the folder cannot be written; what was written stays and is whole.
        OutOfMemoryError: the size does not fit the devices.
        Cancelled: `should_cancel` said so.
    """
    options = options or PrepareOptions()
    buckets, inputs = options.buckets(description), options.inputs_for(description)
    devices = jax.local_devices() if devices is None else devices
    watch = Watch(on_progress, should_cancel)
    cache = Cache(folder)
    cache.make_folders()
    with Claims(folder) as claims:
        _remove_leftovers(cache, claims)
        digests = Digests(folder)
        dtype = str(dtype_for(devices, options.dtype))
        made = Made(
            encoders=encoder_digests(description, digests),
            dtype=dtype,
            vae_dtype=options.vae_dtype or dtype,
            inputs=inputs,
        )
        memory = Examinations(folder, digests, buckets.fps)
        listing = list_entries(source, columns=options.columns)
        plan = plan_jobs(listing, options, buckets, made, memory, watch)
        check_any(plan, source)
        captions = {key_of(made.text(c)): c for c in ["", *(job.caption for job in plan.jobs)]}
        jobs = {job.key: job for job in plan.jobs}

        def load(*, text: bool) -> Encoders:
            wanted = [c for c in encoders_of(description) if (c == TEXT_ENCODER) == text]
            return _load(description, wanted, options, devices, watch)

        work = Work(cache, claims, watch)
        work.captions(captions, made, lambda: load(text=True))
        workers = default_workers() if options.workers is None else max(options.workers, 1)
        undecoded = work.clips(jobs, inputs, digests, lambda: load(text=False), workers=workers)
        manifest = make_manifest(source, description, options, made, plan, undecoded)
        check_any(manifest, source)
        write_manifest(folder, manifest)
        unused = _unused(cache, manifest)
        is_pruned = prune and _remove_unused(unused, claims)
    num_there = len(captions) + len(jobs) - len(undecoded)
    return Outcome(
        manifest=manifest,
        num_made=work.num_made,
        num_found=num_there - work.num_made,
        unused=unused,
        is_pruned=is_pruned,
    )


def open_or_prepare(
    path: pathlib.Path,
    folder: pathlib.Path,
    description: ModelDescription,
    options: PrepareOptions | None = None,
    *,
    devices: Sequence[Any] | None = None,
    on_progress: OnProgress = None,
    should_cancel: ShouldCancel = None,
) -> PreparedDataset:
    """What a training learns from: a prepared folder as it is, or clips, encoded first.

    Args:
        path: a folder that `prepare` made; else a folder with clips or a manifest.
        folder: where clips are prepared; not needed for a prepared `path`.
        description: of the model that learns, from `open_model`.
        options: how clips are prepared.
        devices: see `prepare`.
        on_progress: see `prepare`.
        should_cancel: see `prepare`.

    Raises:
        InputError: the data are of another model, or as of `prepare` and `open_dataset`.
    """
    if is_prepared(path):
        return open_dataset(path, description)
    outcome = prepare(
        path,
        folder,
        description,
        options,
        devices=devices,
        on_progress=on_progress,
        should_cancel=should_cancel,
    )
    logger.info(
        "%s: %d samples prepared in %s, %d clips refused",
        path,
        len(outcome.manifest.samples),
        folder,
        len(outcome.manifest.refused),
    )
    return open_dataset(folder, description)


def _load(
    description: ModelDescription,
    components: Sequence[str],
    options: PrepareOptions,
    devices: Sequence[Any],
    watch: Watch,
) -> Encoders:
    with watch.stage("load", 1) as report:
        encoders = load_encoders(
            description,
            components,
            devices=devices,
            dtype=options.dtype,
            vae_dtype=options.vae_dtype,
        )
        report(1)
    return encoders


def check_any(planned: Plan | Manifest, source: pathlib.Path | str) -> None:
    """Refuses a source of which nothing can be learnt.

    Raises:
        InputError: says the first reason, and how many there are.
    """
    if isinstance(planned, Plan):
        samples, reasons = planned.jobs, [f"{f.name}: {f.words}" for f in planned.refused]
    else:
        samples, reasons = planned.samples, [f"{r.name}: {r.reason}" for r in planned.refused]
    if samples:
        return
    if not reasons:
        raise InputError(f"{source} has no clip and no picture that could be learnt from")
    raise InputError(
        f"nothing in {source} can be learnt from: {len(reasons)} refused, such as {reasons[0]}"
    )


def make_manifest(
    source: pathlib.Path | str,
    description: ModelDescription,
    options: PrepareOptions,
    made: Made,
    plan: Plan,
    undecoded: Mapping[str, Finding],
) -> Manifest:
    """What `dataset.json` says.

    Args:
        source: what was listed.
        description: of the model.
        options: how clips were prepared.
        made: what encoded.
        plan: what was to be encoded.
        undecoded: what is wrong with those clips that could not be, by key.
    """
    buckets = options.buckets(description)
    late = [(job.name, undecoded[job.key]) for job in plan.jobs if job.key in undecoded]
    return Manifest(
        model=description.name,
        encoders=made.encoders,
        inputs=made.inputs,
        compression=buckets.compression,
        source=str(source),
        settings=_settings(options, buckets, made),
        empty_text=key_of(made.text("")),
        samples=tuple(_prepared(job, made) for job in plan.jobs if job.key not in undecoded),
        refused=tuple(
            Refusal(name=name, kind=found.kind, reason=found.words)
            for name, found in sorted(
                [*((found.name, found) for found in plan.refused), *late], key=lambda each: each[0]
            )
        ),
    )


def _settings(options: PrepareOptions, buckets: Buckets, made: Made) -> dict[str, Any]:
    return {
        "sizes": [f"{width}x{height}" for width, height in buckets.sizes],
        "frames": list(buckets.lengths),
        "fps": float(buckets.fps),
        "sampling": dataclasses.asdict(options.sampling),
        "dtype": made.dtype,
        "vae_dtype": made.vae_dtype,
    }


def _prepared(job: Job, made: Made) -> Prepared:
    geometry = job.placed.geometry
    return Prepared(
        name=job.name,
        caption=job.caption,
        sample=job.key,
        text=key_of(made.text(job.caption)),
        size=(geometry.width, geometry.height, geometry.num_frames),
    )


def _unused(cache: Cache, manifest: Manifest) -> tuple[pathlib.Path, ...]:
    """Files of ours that a manifest does not name."""
    used = {(SAMPLES, sample.sample) for sample in manifest.samples}
    used |= {(TEXTS, sample.text) for sample in manifest.samples}
    used.add((TEXTS, manifest.empty_text))
    return tuple(path for kind, key, path in cache.files() if (kind, key) not in used)


def _remove_unused(paths: tuple[pathlib.Path, ...], claims: Claims) -> bool:
    """Removes them; says that it does not where another process may be about to need them."""
    if not claims.is_alone():
        logger.warning("another process is at work here: nothing is removed, --prune it later")
        return False
    for path in paths:
        with reporting(path):
            path.unlink(missing_ok=True)
    claims.let_others_in()
    return True


def _remove_leftovers(cache: Cache, claims: Claims) -> None:
    """Removes what a sudden end has left half-written, where nobody can be writing it.

    A file system whose locks do not reach other hosts lets two think that they are alone; what one
    of them is writing is young.
    """
    if not claims.is_alone():
        return
    for path in cache.leftovers():
        with reporting(path):
            if time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS:
                path.unlink(missing_ok=True)
    claims.let_others_in()
