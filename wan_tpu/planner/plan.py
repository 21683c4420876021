"""A row per layout: what each stage of a video needs and takes on a slice that is not there.

The stages are those the pipeline runs (`pipeline/run.py`). Everything that a
row needs is cached, so a second plan neither traces nor compiles.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from wan_tpu.attention.choice import parse_attention
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE
from wan_tpu.geometry import TEXT_TOKENS
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.components import tree_bytes
from wan_tpu.pipeline.load import on_one_branch
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.names import check_quantize
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.run import Run, plan_run, schedule_steps
from wan_tpu.pipeline.step_plan import contexts_of, with_gate
from wan_tpu.pipeline.step_program import abstract_carried
from wan_tpu.planner.compile import (
    STAGE_PACKAGES,
    FactsCache,
    StageFacts,
    kept_facts,
    slice_devices,
    source_digest,
    versions,
)
from wan_tpu.planner.estimate import estimate
from wan_tpu.planner.hardware import GIB, Slice
from wan_tpu.planner.job import STAGES, Job, with_inputs
from wan_tpu.planner.kernel_counter import KernelCounter
from wan_tpu.planner.rows import LayoutPlan, Resident, StagePlan, served_bytes
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import WEIGHTS, Layout
from wan_tpu.sharding.mesh import abstract_mesh, make_mesh
from wan_tpu.vae.spatial import spatial_split

logger = logging.getLogger(__name__)

_PACKAGES_OF_STAGE = {
    "text": ("text",),
    "image": ("image",),
    "context": ("text", "image", "transformer"),
    "encode": ("vae",),
    "condition": ("transformer",),
    "start": ("transformer", "schedulers"),
    "step": ("image", "transformer", "schedulers"),
    "latents": ("transformer",),
    "decode": ("vae",),
}
"""By a stage's name up to its first hyphen."""


def make_job(
    description: ModelDescription, request: VideoRequest, where: Slice, **choices: Any
) -> Job:
    """A job, checked against the model.

    Args:
        description: the model.
        request: the video; one that names no pictures is planned with those that the model cannot
            do without.
        where: the slice.
        **choices: other fields of `Job`; of its stages those that the video does not run are left
            out.

    Raises:
        InputError: the model cannot make this video, nothing is quantised so, there is no such
            attention or stage, or the video runs none of them.
    """
    check_quantize(choices.get("quantize"))
    request, geometry = check_request(description, with_inputs(description, request))
    schedule, steps = schedule_steps(description, request)
    steps = with_gate(steps, parse_attention(choices.get("attention", "auto")).gate)
    job = Job(
        description=description,
        request=request,
        geometry=geometry,
        schedule=schedule,
        steps=steps,
        where=where,
        **choices,
    )
    for stage in job.stages:
        if stage not in STAGES:
            raise UnknownNameError("stage", stage, STAGES)
    runs = job.runs()
    stages = tuple(stage for stage in job.stages if stage in runs)
    if not stages:
        raise InputError(f"this video runs none of {', '.join(job.stages)}, only {', '.join(runs)}")
    return dataclasses.replace(job, stages=stages)


class Planner:
    """Makes rows for one job.

    Args:
        job: what is planned.
        cache: where facts are kept.
        report: called with what is being done, one short line at a time.
    """

    def __init__(self, job: Job, cache: FactsCache, report: Callable[[str], None]):
        self._job = job
        self._cache = cache
        self._report = report
        self._runs: dict[Layout, Run] = {}
        self._devices: list[Any] | None = None
        self._counter = KernelCounter(
            where=job.where,
            attention=parse_attention(job.attention).exact_name,
            dtype=job.dtype,
            num_tokens=job.geometry.num_tokens,
            crossed=(TEXT_TOKENS, job.image_tokens),
            cache=cache,
            report=report,
        )
        self._position = ""

    def plan(self, layouts: Sequence[Layout], *, both_weights: bool = False) -> list[LayoutPlan]:
        """A row for each layout: those that fit first, then by seconds of a video.

        Args:
            layouts: each once.
            both_weights: whether the best of them is planned with its weights kept the other way,
                too, where what stays then leaves room for what a stage needs. One row more and not
                twice as many: a row is a minute of compiling, and the way weights are kept moves a
                step by less than the shape does.

        Raises:
            LayoutError: a layout is not for the slice's number of devices; nothing was compiled.
            MissingPackageError: libtpu is needed and not installed.
        """
        for layout in layouts:
            layout.require_devices(self._job.where.num_devices)
        rows = []
        for number, layout in enumerate(layouts, start=1):
            self._position = f"{number} of {len(layouts)}: {layout}"
            rows.append(self._row(layout))
        other = self._other_weights(min(rows, key=_order)) if both_weights and rows else None
        if other is not None and other not in layouts:
            self._position = f"the best with its weights the other way: {other}"
            rows.append(self._row(other))
        return sorted(rows, key=_order)

    def _other_weights(self, row: LayoutPlan) -> Layout | None:
        """The layout of a row with its weights kept the other way; None where they do not fit."""
        others = [x for x in WEIGHTS if x != row.layout.weights]
        other = dataclasses.replace(row.layout, weights=others[0])
        more = self._resident(other).weights - row.resident.weights
        return other if row.peak_bytes + more <= row.limit_bytes else None

    def _row(self, layout: Layout) -> LayoutPlan:
        job, resident = self._job, self._resident(layout)
        runs = job.runs()
        facts = {name: self._facts(name, layout, resident) for name in job.stages}
        kernels, uncounted = self._counter.count(
            fact.costs for fact in facts.values() if fact.costs is not None
        )
        cycles = {shape: count.per_head for shape, count in kernels.items()}
        stages = {}
        for name, fact in facts.items():
            seconds = None
            if fact.costs is not None:
                seconds = estimate(fact.costs, job.where, fact.coordinates, cycles)
            stages[name] = StagePlan(
                facts=fact,
                runs=runs[name],
                served_bytes=served_bytes(fact, resident.during(name, fact.output_bytes)),
                seconds=seconds,
            )
        return LayoutPlan(
            layout=layout,
            stages=stages,
            resident=resident,
            limit_bytes=job.where.chip.hbm_bytes,
            kernels=kernels,
            uncounted=uncounted,
            model_flops=job.model_flops,
            peak_flops=job.where.chip.bf16_flops * job.where.num_devices,
        )

    def _facts(self, name: str, layout: Layout, resident: Resident) -> StageFacts:
        """The facts of a stage, from the cache or from the compiler.

        Where the weights alone are too large there is nothing to compile.
        """
        limit = self._job.where.chip.hbm_bytes
        if resident.weights > limit:
            needed = f"the weights alone are {resident.weights / GIB:.2f} of {limit / GIB:.2f} GiB"
            return StageFacts(name=name, failure=needed)
        key = {"what": name, "split": self._split(name, layout)}
        return kept_facts(
            self._cache,
            key | self._base_key(*_PACKAGES_OF_STAGE[name.partition("-")[0]]),
            lambda: self._job.stages_of(self._run(layout))[name],
            label=f"{self._position}, {name}",
            report=self._report,
        )

    def _split(self, name: str, layout: Layout) -> Any:
        """What of a layout decides a stage's program.

        Encoding text and pictures' tokens knows the number of devices only, the autoencoder how
        pictures are cut.
        """
        if name in ("text", "image"):
            return layout.num_devices
        if not name.startswith(("encode", "decode")):
            return dataclasses.asdict(layout)
        geometry = self._job.geometry
        mesh: Any = abstract_mesh(layout)
        split = spatial_split(mesh, geometry.latent_height, geometry.latent_width)
        return [split.height_ways, split.width_ways]

    def _base_key(self, *packages: str) -> dict[str, Any]:
        """Whatever but the layout decides a program made of these packages.

        The autoencoder's programs, the largest, are so the same for all models that have it.
        """
        job, geometry = self._job, self._job.geometry
        of = {
            "text": (TEXT_ENCODER,),
            "image": (IMAGE_ENCODER,),
            "transformer": job.description.kind.experts,
            "schedulers": ("scheduler",),
            "vae": (VAE,),
        }
        names = {name for package in packages for name in of[package]}
        configs = job.description.configs
        key = {
            "configs": {name: dict(configs[name]) for name in sorted(names & configs.keys())},
            "slice": [job.where.topology_name, *job.where.host_bounds],
            "dtype": job.dtype,
            "versions": versions(),
            "source": source_digest(*packages),
        }
        if {"transformer", "vae"} & set(packages):
            key["video"] = [geometry.width, geometry.height, geometry.num_frames]
        if packages != ("vae",):
            key |= {"batches": job.batches, "pictures": sorted(job.way.roles)}
        if "transformer" in packages:
            key |= {"attention": job.attention, "quantize": job.quantize}
        if "schedulers" in packages:
            key["scheduler"] = job.request.scheduler
            key["step_cache"] = None if job.cache is None else job.cache.name
        return key

    def _run(self, layout: Layout) -> Run:
        """What the pipeline would run: its stages are the very ones that are planned."""
        if layout not in self._runs:
            if self._devices is None:
                self._devices = slice_devices(self._job.where)
            model = make_video_model(
                self._job.description,
                make_mesh(layout, self._devices),
                layout,
                dtype=jnp.dtype(self._job.dtype),
                attention=self._job.attention,
                quantize=self._job.quantize,
            )
            request, one_branch = self._job.request, on_one_branch(model)
            self._runs[layout] = plan_run(request, model, one_branch, Watch())
        return self._runs[layout]

    def _resident(self, layout: Layout) -> Resident:
        key = {
            "what": "resident",
            "split": dataclasses.asdict(layout),
            "takes": sorted(self._job.description.kind.takes),
            "contexts": contexts_of(self._job.steps),
            "noises": self._job.num_noises,
            **self._base_key(*STAGE_PACKAGES),
        }

        def make() -> dict[str, Any]:
            run = self._run(layout)
            condition = run.model.abstract_condition(run.geometry, run.way.in_steps)
            contexts = [
                tree_bytes(run.model.abstract_context(batch, run.num_encoder_pictures))
                for _, batch in run.contexts
            ]
            parts = run.model.components.items()
            stages = self._job.stages_of(run)
            return {
                "components": {name: part.bytes_per_device for name, part in parts},
                "context": sum(contexts),
                "condition": tree_bytes(condition) * len(run.components),
                "state": tree_bytes(
                    abstract_carried(run.model, run.geometry, run.schedule, run.keeps, run.batch)
                )
                + self._job.num_noises * tree_bytes(run.model.abstract_tokens(run.geometry)),
                "carried": {
                    name: tree_bytes(stages[name].arguments[2])
                    for name in ("encode-next", "decode-next")
                    if name in stages
                },
            }

        return Resident(**self._cache.get(key, make))


def _order(row: LayoutPlan) -> tuple[bool, float, str]:
    """Those that fit first, then by seconds of a video."""
    return bool(row.misfits), row.video_seconds, str(row.layout)
