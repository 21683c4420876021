"""What a training takes on a slice that is not here: memory, seconds a step, hours, bytes on disk.

The step is the very stage that `wan_tpu.training.trainer.Trainer` runs, compiled without weights,
data or a TPU. What the compiler said is kept, so a second plan of the same thing compiles nothing.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER
from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.components import tree_bytes
from wan_tpu.planner.compile import (
    FactsCache,
    StageFacts,
    kept_facts,
    slice_devices,
    source_digest,
    versions,
)
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.estimate import Seconds, estimate
from wan_tpu.planner.hardware import GIB, Slice
from wan_tpu.planner.job import with_inputs
from wan_tpu.planner.kernel_counter import KernelCounter
from wan_tpu.planner.rows import served_bytes
from wan_tpu.request import make_request
from wan_tpu.sharding.layout import Layout
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.flops import step_flops
from wan_tpu.training.padding import abstract_without_padding, padded_shapes
from wan_tpu.training.place import chosen_layout, place_for_training
from wan_tpu.training.trainer import Trainer

_LORA_BYTES = 2
"""Of a number in an adapter's file, bfloat16."""

_PACKAGES = ("text", "image", "transformer", "schedulers")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """What is planned.

    Attributes:
        config: of the run; its data is not looked at.
        description: of the model that it names.
        geometry: of every sample.
        where: the slice.
    """

    config: TrainingConfig
    description: ModelDescription
    geometry: Geometry
    where: Slice


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """One row: a layout on the slice. Bytes of memory are a device's.

    Attributes:
        layout: the split.
        resident: what stays between steps, by name.
        facts: of the step's program.
        peak_bytes: most at once, everything that stays included; 0 where it does not compile.
        limit_bytes: what a device has.
        seconds: of a step; None where it does not compile.
        model_flops: of a step on all devices, without what is computed again or padded.
        peak_flops: of all devices, a second.
        steps: of the run.
        checkpoint_bytes: of one checkpoint on the disk, before any compression.
        result_bytes: of what the run leaves: adapter, transformer or vectors.
        uncounted: attention that goes by its FLOPs at peak, which is less than it takes, and why.
    """

    layout: Layout
    resident: Mapping[str, int]
    facts: StageFacts
    peak_bytes: int
    limit_bytes: int
    seconds: Seconds | None
    model_flops: float
    peak_flops: float
    steps: int
    checkpoint_bytes: int
    result_bytes: int
    uncounted: Mapping[Attention, str]

    @property
    def misfit(self) -> str:
        """Why it does not fit; empty where it does."""
        if self.facts.failure:
            return self.facts.failure
        if self.peak_bytes <= self.limit_bytes:
            return ""
        return f"{self.peak_bytes / GIB:.2f} of {self.limit_bytes / GIB:.2f} GiB"

    @property
    def range(self) -> tuple[float, float]:
        """Seconds of a step, least and most: by the peaks, by the compiler's own count."""
        if self.seconds is None:
            return math.inf, math.inf
        return self.seconds.range

    @property
    def mfu(self) -> tuple[float, float]:
        """Share of the devices' peak that the model's own arithmetic takes, least and most."""
        low, high = self.range
        return tuple(self.model_flops / self.peak_flops / s for s in (high, low))  # pyright: ignore[reportReturnType]

    @property
    def hours(self) -> tuple[float, float]:
        """Of all steps, least and most; samples, checkpoints and compiling come on top."""
        low, high = self.range
        return low * self.steps / 3600, high * self.steps / 3600

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        facts, seconds = self.facts, self.seconds
        result: dict[str, Any] = {
            "layout": str(self.layout),
            "sequence_parallel": self.layout.sequence_parallel,
            "weights": self.layout.weights,
            "fits": not self.misfit,
            "misfit": self.misfit or None,
            "resident_bytes": dict(self.resident),
            "argument_bytes": facts.argument_bytes,
            "temporary_bytes": facts.temporary_bytes,
            "peak_bytes": self.peak_bytes,
            "limit_bytes": self.limit_bytes,
            "compile_seconds": round(facts.compile_seconds, 2),
            "checkpoint_bytes": self.checkpoint_bytes,
            "result_bytes": self.result_bytes,
            "model_flops": self.model_flops,
        }
        if seconds is None or facts.costs is None:
            return result
        return result | {
            "step_seconds": list(self.range),
            "mfu": list(self.mfu),
            "hours": list(self.hours),
            "seconds": seconds.total,
            "seconds_by_compiler": seconds.by_compiler,
            "compute_seconds": seconds.compute,
            "attention_seconds": seconds.attention,
            "memory_seconds": seconds.memory,
            "exposed_link_seconds": seconds.exposed,
            "hidden_link_seconds": seconds.hidden,
            "flops": facts.costs.total("flops"),
            "hbm_bytes": facts.costs.total("hbm_bytes"),
            "collectives": facts.costs.collectives_by_kind(),
            "unknown_loops": list(facts.costs.unknown_loops),
            "kernels_not_counted": [
                dataclasses.asdict(shape) | {"reason": reason}
                for shape, reason in self.uncounted.items()
            ],
        }


def make_training_job(
    config: TrainingConfig,
    description: ModelDescription,
    where: Slice,
    *,
    size: str | None = None,
    frames: int | None = None,
) -> TrainingJob:
    """What is planned, checked against the model.

    Args:
        config: of the run.
        description: of the model that it names.
        where: the slice.
        size: `WxH` of what is trained on; when None that of the configuration's sample videos, else
            the model's.
        frames: likewise.

    Raises:
        InputError: a size or number of frames that the model does not take.
    """
    size, frames = size or config.samples.size, frames or config.samples.num_frames
    request = with_inputs(description, make_request("planned", size=size, frames=frames))
    _, geometry = check_request(description, request)
    machine = dataclasses.replace(config.machine, host_devices=None)  # those here are not used
    config = dataclasses.replace(config, machine=machine)
    return TrainingJob(config=config, description=description, geometry=geometry, where=where)


class TrainingPlanner:
    """Makes rows for one job.

    Args:
        job: what is planned.
        cache: where facts are kept.
        report: called with what is being done, one short line at a time.
    """

    def __init__(self, job: TrainingJob, cache: FactsCache, report: Callable[[str], None]):
        self._job, self._cache, self._report = job, cache, report
        self._devices = slice_devices(job.where)

    def chosen_layout(self) -> Layout:
        """The one that training takes on this slice where none is named.

        Raises:
            LayoutError: the one that the configuration names is for another number of devices.
        """
        job = self._job
        return chosen_layout(job.config, job.description, self._devices, job.where.chip.hbm_bytes)

    def plan(self, layouts: Sequence[Layout]) -> list[TrainingPlan]:
        """A row for each layout: those that fit first, then by seconds of a step.

        Raises:
            LayoutError: a layout is not for the slice's number of devices; nothing was compiled.
            InputError: the batch does not divide over a layout.
        """
        trainers = [self._trainer(layout) for layout in layouts]
        rows = [self._row(trainer) for trainer in trainers]
        return sorted(rows, key=lambda row: (bool(row.misfit), row.range[1], str(row.layout)))

    def _trainer(self, layout: Layout) -> Trainer:
        job = self._job
        layout.require_devices(job.where.num_devices)
        model = place_for_training(job.config, job.description, self._devices, layout)
        return Trainer(job.config, model)

    def _row(self, trainer: Trainer) -> TrainingPlan:
        job, resident = self._job, _resident(trainer, self._job.geometry)
        facts, chip = self._facts(trainer, sum(resident.values())), job.where.chip
        seconds, uncounted = None, {}
        image_tokens = _image_tokens(trainer)
        if facts.costs is not None:
            counter = KernelCounter(
                where=job.where,
                attention=trainer.model.denoiser.setting.implementation,
                dtype=str(trainer.model.dtype),
                num_tokens=job.geometry.num_tokens,
                crossed=(TEXT_TOKENS, image_tokens),
                cache=self._cache,
                report=self._report,
            )
            kernels, uncounted = counter.count([facts.costs])
            cycles = {shape: count.per_head for shape, count in kernels.items()}
            seconds = estimate(facts.costs, job.where, facts.coordinates, cycles)
        return TrainingPlan(
            layout=trainer.model.layout,
            resident=resident,
            facts=facts,
            peak_bytes=served_bytes(facts, sum(resident.values())) if facts.costs else 0,
            limit_bytes=chip.hbm_bytes,
            seconds=seconds,
            model_flops=step_flops(
                trainer.step.denoiser.config,
                job.geometry,
                job.config.train.batch,
                trains_weights=job.config.train.trains == "full",
                image_tokens=image_tokens,
            ),
            peak_flops=chip.bf16_flops * job.where.num_devices,
            steps=job.config.train.steps,
            checkpoint_bytes=_checkpoint_bytes(trainer),
            result_bytes=_result_bytes(trainer),
            uncounted=uncounted,
        )

    def _facts(self, trainer: Trainer, resident: int) -> StageFacts:
        """The facts of the step; where what stays is too large there is nothing to compile."""
        limit, layout = self._job.where.chip.hbm_bytes, trainer.model.layout
        if resident > limit:
            needed = f"what stays is {resident / GIB:.2f} of {limit / GIB:.2f} GiB"
            return StageFacts(name="train", failure=needed)
        return kept_facts(
            self._cache,
            self._key(layout),
            lambda: trainer.step.stage(self._job.geometry),
            label=str(layout),
            report=self._report,
        )

    def _key(self, layout: Layout) -> dict[str, Any]:
        """Whatever decides the program."""
        job, config = self._job, self._job.config
        configs, kind = job.description.configs, job.description.kind
        names = {*kind.experts, TEXT_ENCODER, IMAGE_ENCODER} & configs.keys()
        tables = ("train", "flow", "optimiser", "lora", "embedding")
        machine = config.machine
        return {
            "what": "train",
            "split": dataclasses.asdict(layout),
            "configs": {name: dict(configs[name]) for name in sorted(names)},
            "config": {table: dataclasses.asdict(getattr(config, table)) for table in tables},
            "machine": [machine.attention, machine.dtype, machine.remat],
            "data": [config.data.caption_dropout, config.data.image_probability],
            "expert": config.model.expert,
            "video": [job.geometry.width, job.geometry.height, job.geometry.num_frames],
            "slice": [job.where.topology_name, *job.where.host_bounds],
            "versions": versions() | {"optax": importlib.metadata.version("optax")},
            "source": source_digest(*_PACKAGES),
        }


def _resident(trainer: Trainer, geometry: Geometry) -> dict[str, int]:
    """What lies on a device between steps: each expert's state and frozen weights, and a batch."""
    state, inputs = trainer.step.abstract_state(), trainer.step.abstract_inputs(geometry)
    states, experts = len(trainer.state_names), len(trainer.experts)
    frozen = tree_bytes(inputs.frozen)
    parts = {
        "parameters": states * tree_bytes(state.trained),
        "lost by rounding": states * tree_bytes(state.lost),
        "moments": states * tree_bytes(state.moments),
        "average": states * tree_bytes(state.average),
        "frozen": experts * frozen,
        "batch": tree_bytes(tuple(inputs)) - frozen,
    }
    return {name: size for name, size in parts.items() if size}


def _image_tokens(trainer: Trainer) -> int:
    pictures = trainer.step.shape.num_pictures
    return trainer.model.image_tokens(pictures) if pictures else 0


def _checkpoint_bytes(trainer: Trainer) -> int:
    """The states as checkpoints hold them, without padding."""
    shapes = padded_shapes(trainer.step.trained.weights())
    state: Any = abstract_without_padding(trainer.step.abstract_state(), shapes)
    sizes = (math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))
    return len(trainer.state_names) * sum(sizes)


def _result_bytes(trainer: Trainer) -> int:
    step = trainer.step
    is_full = trainer.config.train.trains == "full"
    total = 0
    for weight in step.denoiser.weights() if is_full else step.trained.weights():
        is_lora = trainer.config.train.trains == "lora"
        itemsize = _LORA_BYTES if is_lora else jnp.dtype(weight.dtype).itemsize
        total += math.prod(weight.tensor_shape) * len(weight.tensors) * itemsize
    return len(trainer.state_names) * total
