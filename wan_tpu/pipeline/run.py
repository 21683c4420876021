"""One request: everything that is decided about it before it runs, and its metadata after."""

import dataclasses
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp

from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.step_plan import PlannedStep, plan_steps
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.schedulers.base import Schedule

PACKAGES = ("wan_tpu", "torch", "torchax", "jax", "jaxlib", "flax", "diffusers", "transformers")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One request, and what was decided about it.

    Attributes:
        request: complete. geometry: its sizes. schedule: its noise levels.
        steps: what each denoising step takes.
        model: the model on the mesh that suits the batch.
        watch: reports, measures, stops.
    """

    request: VideoRequest
    geometry: Geometry
    schedule: Schedule
    steps: tuple[PlannedStep, ...]
    model: VideoModel
    watch: Watch

    @property
    def batch(self) -> int:
        """Prompts that the steps need: with guidance the negative one, too."""
        return max(step.batch for step in self.steps)


def plan_run(request: VideoRequest, model: VideoModel, one_branch: VideoModel, watch: Watch) -> Run:
    """Decides everything about a request.

    Args:
        request: open fields take the model's defaults.
        model: on the mesh for steps with guidance.
        one_branch: the same on the mesh for runs without.
        watch: of the run.

    Raises:
        InputError: the request cannot be carried out.
    """
    request, geometry = check_request(model.description, request)
    assert request.num_inference_steps is not None
    assert request.flow_shift is not None
    assert request.scheduler is not None
    schedule = make_schedule(
        request.scheduler,
        num_inference_steps=request.num_inference_steps,
        flow_shift=request.flow_shift,
        config=model.description.configs["scheduler"],
    )
    steps = plan_steps(request, schedule)
    has_guidance = any(step.batch == 2 for step in steps)
    return Run(
        request=request,
        geometry=geometry,
        schedule=schedule,
        steps=steps,
        model=model if has_guidance else one_branch,
        watch=watch,
    )


def metadata_of(run: Run, vae: str) -> dict[str, Any]:
    """Everything needed to make the same video again, and how long each stage took.

    Args:
        run: that has ended.
        vae: name of the decoder that made the frames.
    """
    model, description = run.model, run.model.description
    devices = model.mesh.devices
    return {
        "model": description.name,
        "model_revision": description.revision,
        "model_variant": description.variant,
        "defaults_from": dict(description.defaults_from),
        "request": dataclasses.asdict(run.request),
        "seed": run.request.seed,
        "tokens": run.geometry.num_tokens,
        "layout": str(model.layout),
        "sequence_parallel": model.layout.sequence_parallel,
        "weights": model.layout.weights,
        "attention": model.denoiser.setting.implementation,
        "vae": vae,
        "dtype": str(jnp.dtype(model.dtype)),
        "vae_dtype": str(jnp.dtype(model.vae_dtype)),
        "device_kind": devices.flat[0].device_kind,
        "num_devices": int(devices.size),
        "num_processes": jax.process_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seconds": {name: round(seconds, 3) for name, seconds in run.watch.seconds.items()},
    }
