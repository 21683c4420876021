"""A row per layout: what each stage of a video needs and takes on a slice that is not there.

The stages are those the pipeline runs (`pipeline/model.py`, `vae/streaming.py`). Everything that a
row needs is cached, so a second plan neither traces nor compiles.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from wan_tpu.attention.api import resolve_implementation
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import UnknownNameError
from wan_tpu.geometry import TEXT_TOKENS
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.model import VideoModel, make_video_model
from wan_tpu.planner.compile import (
    FactsCache,
    StageFacts,
    compile_stage,
    digest,
    pack_text,
    reader_digest,
    slice_devices,
    source_digest,
    unpack_text,
    versions,
)
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.estimate import estimate, share_of_peak
from wan_tpu.planner.hardware import Slice
from wan_tpu.planner.kernel_cycles import KernelCycles, KernelShape, count_cycles
from wan_tpu.planner.program import read_program
from wan_tpu.planner.rows import STAGES, Job, LayoutPlan, Resident, StagePlan, served_bytes
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import abstract_mesh, make_mesh
from wan_tpu.stage import Stage
from wan_tpu.vae.spatial import spatial_split
from wan_tpu.vae.streaming import abstract_params, make_decode_stages
from wan_tpu.vae.weights import DECODER

logger = logging.getLogger(__name__)

STAGE_GROUPS = {
    "text": ("text", "context"),
    "step": ("start", "step"),
    "decode": ("latents", "decode-first", "decode-next"),
    "all": STAGES,
}
"""What `--stages` may name."""

_ROOMS = {
    "text": ("text",),
    "context": ("text", "transformer"),
    "start": ("transformer", "schedulers"),
    "step": ("transformer", "schedulers"),
    "latents": ("transformer",),
    "decode-first": ("vae",),
    "decode-next": ("vae",),
}
_ALL_ROOMS = ("text", "transformer", "schedulers", "vae")


def make_job(
    description: ModelDescription, request: VideoRequest, where: Slice, **choices: Any
) -> Job:
    """A job, checked against the model.

    Raises:
        InputError: the model cannot make this video, or there is no such stage.
    """
    request, geometry = check_request(description, request)
    job = Job(description=description, request=request, geometry=geometry, where=where, **choices)
    for stage in job.stages:
        if stage not in STAGES:
            raise UnknownNameError("stage", stage, STAGES)
    return job


class Planner:
    """Makes rows for one job.

    Args:
        job: what is planned.
        cache: where facts are kept.
        report: told what is being done, one short line at a time.
    """

    def __init__(self, job: Job, cache: FactsCache, report: Callable[[str], None]):
        self._job = job
        self._cache = cache
        self._report = report
        self._models: dict[Layout, VideoModel] = {}
        self._devices: list[Any] | None = None

    def plan(self, layouts: Sequence[Layout]) -> list[LayoutPlan]:
        """A row for each layout: those that fit first, then by seconds of a video.

        Raises:
            LayoutError: a layout is not for the slice's number of devices; nothing was compiled.
            MissingPackageError: libtpu is needed and not installed.
        """
        for layout in layouts:
            layout.require_devices(self._job.where.num_devices)
        rows = [self._row(layout) for layout in layouts]
        return sorted(rows, key=lambda row: (bool(row.misfits), row.video_seconds, str(row.layout)))

    def _row(self, layout: Layout) -> LayoutPlan:
        job = self._job
        facts = {name: self._facts(name, layout) for name in job.stages}
        resident = self._resident(layout)
        kernels = self._kernels(facts)
        cycles = {shape: count.per_head for shape, count in kernels.items()}
        stages = {}
        for name, fact in facts.items():
            seconds = None if fact.costs is None else estimate(fact.costs, job.where, cycles)
            share = 0.0
            if fact.costs is not None and seconds is not None:
                share = share_of_peak(fact.costs, seconds, job.where.chip)
            stages[name] = StagePlan(
                facts=fact,
                runs=job.runs(name),
                served_bytes=served_bytes(fact, resident.during(name)),
                seconds=seconds,
                share_of_peak=share,
            )
        return LayoutPlan(
            layout=layout,
            stages=stages,
            resident=resident,
            limit_bytes=job.where.chip.hbm_bytes,
            kernels=kernels,
        )

    def _facts(self, name: str, layout: Layout) -> StageFacts:
        """The facts of a stage, from the cache or from the compiler."""
        label = f"{layout} ({layout.sequence_parallel}, weights {layout.weights}): {name}"

        def compiled() -> dict[str, Any]:
            self._report(f"compiling {label}")
            facts, text = compile_stage(self._stage(name, layout))
            self._report(f"compiled {label} in {facts.compile_seconds:.0f} s")
            return {"facts": facts.to_json(), "text": pack_text(text)}

        def read() -> dict[str, Any]:
            program = self._cache.get(key, compiled)
            text = unpack_text(program["text"])
            costs = read_program(text).to_json() if text else None
            return program["facts"] | {"costs": costs}

        key = {"what": name, "split": self._split(name, layout), **self._base_key(*_ROOMS[name])}
        facts = self._cache.get({"program": digest(key), "reader": reader_digest()}, read)
        return StageFacts.from_json(facts)

    def _split(self, name: str, layout: Layout) -> Any:
        """What of a layout decides a stage's program.

        Encoding text knows the number of devices only, decoding how the picture is cut.
        """
        if name == "text":
            return layout.num_devices
        if not name.startswith("decode"):
            return dataclasses.asdict(same_program(layout))
        geometry = self._job.geometry
        mesh: Any = abstract_mesh(layout)
        split = spatial_split(mesh, geometry.latent_height, geometry.latent_width)
        return [split.height_ways, split.width_ways]

    def _base_key(self, *rooms: str) -> dict[str, Any]:
        job = self._job
        geometry = job.geometry
        return {
            "configs": {name: dict(config) for name, config in job.description.configs.items()},
            "video": [geometry.width, geometry.height, geometry.num_frames],
            "scheduler": job.request.scheduler,
            "batch": job.batch,
            "slice": [job.where.topology_name, *job.where.host_bounds],
            "dtype": job.dtype,
            "attention": job.attention,
            "versions": versions(),
            "source": source_digest(*rooms),
        }

    def _model(self, layout: Layout) -> VideoModel:
        if layout not in self._models:
            if self._devices is None:
                self._devices = slice_devices(self._job.where)
            self._models[layout] = make_video_model(
                self._job.description,
                make_mesh(layout, self._devices),
                layout,
                dtype=jnp.dtype(self._job.dtype),
                attention=self._job.attention,
            )
        return self._models[layout]

    def _stage(self, name: str, layout: Layout) -> Stage:
        """The very stage that the pipeline runs."""
        job, model = self._job, self._model(layout)
        if name == "text":
            return model.text_stage(job.batch)
        if name == "context":
            return model.context_stage(job.batch, job.batch)
        if name == "latents":
            return model.latents_stage(job.geometry)
        if name == "start":
            return model.start_stage(job.geometry, _schedule(job))
        if name == "step":
            return model.step_stage(job.geometry, _schedule(job), job.batch)
        first, following = make_decode_stages(
            model.vae,
            model.mesh,
            job.geometry.latent_height,
            job.geometry.latent_width,
            model.dtype,
            _vae_weights(model),
        )
        return first if name == "decode-first" else following

    def _resident(self, layout: Layout) -> Resident:
        key = {
            "what": "resident",
            "split": dataclasses.asdict(same_program(layout)),
            **self._base_key(*_ALL_ROOMS),
        }

        def make() -> dict[str, Any]:
            job, model = self._job, self._model(layout)
            axes = dict(model.mesh.shape)
            step = model.step_stage(job.geometry, _schedule(job), job.batch)
            return {
                "text_encoder": sum(w.bytes_per_device(axes) for w in model.text_encoder.weights()),
                "transformer": sum(w.bytes_per_device(axes) for w in model.denoiser.weights()),
                "vae": _tree_bytes(_vae_weights(model)),
                "context": _tree_bytes(step.arguments[1]),
                "state": _tree_bytes(step.arguments[2]),
            }

        return Resident(**self._cache.get(key, make))

    def _kernels(self, facts: Mapping[str, StageFacts]) -> dict[Attention, KernelCycles]:
        """Static counts of every attention kernel in the stages."""
        costs = [fact.costs for fact in facts.values() if fact.costs is not None]
        shapes = {o.attention for c in costs for o in c.operations if o.attention is not None}
        return {shape: self._kernel(shape) for shape in sorted(shapes, key=dataclasses.astuple)}

    def _kernel(self, attention: Attention) -> KernelCycles:
        tokens = self._job.geometry.num_tokens
        padded = attention.keys > tokens and attention.keys != TEXT_TOKENS
        shape = KernelShape(
            chip=self._job.where.chip.name,
            implementation=resolve_implementation(
                self._job.attention,
                "tpu",
                device_kind=self._job.where.chip.device_kind,
                dtype=self._job.dtype,
                head_dim=attention.head_dim,
            ),
            queries=attention.queries,
            keys=attention.keys,
            num_keys=tokens if padded else attention.keys,
            head_dim=attention.head_dim,
            query_chunks=attention.query_chunks,
            key_chunks=attention.key_chunks,
            dtype=self._job.dtype,
        )
        key = {
            "what": "kernel",
            **dataclasses.asdict(shape),
            "versions": versions(),
            "source": source_digest(),
        }

        def make() -> dict[str, Any]:
            self._report(
                f"counting the cycles of attention, {shape.queries} x {shape.num_keys} tokens"
            )
            return dataclasses.asdict(count_cycles(shape))

        return KernelCycles(**self._cache.get(key, make))


def same_program(layout: Layout) -> Layout:
    """The layout with the default for each choice that changes nothing: one program, one key."""
    defaults: dict[str, Any] = {}
    if layout.sp == 1:
        defaults["sequence_parallel"] = Layout().sequence_parallel
    if layout.dp * layout.sp == 1:
        defaults["weights"] = Layout().weights
    return dataclasses.replace(layout, **defaults)


def _schedule(job: Job) -> Any:
    request = job.request
    assert request.num_inference_steps is not None
    assert request.flow_shift is not None
    return make_schedule(
        request.scheduler,
        num_inference_steps=request.num_inference_steps,
        flow_shift=request.flow_shift,
        config=job.description.configs["scheduler"],
    )


def _vae_weights(model: VideoModel) -> Any:
    """What stands for the decoder's weights: a pipeline loads no others."""
    return abstract_params(model.vae, model.dtype, mesh=model.mesh, parts=(DECODER,))


def _tree_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of abstract arrays."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )
