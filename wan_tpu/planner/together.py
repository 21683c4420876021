"""A step of one video, and of several that are made together, on a slice that is not here."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from wan_tpu.pipeline.alike import samples_for
from wan_tpu.pipeline.load import for_batch, on_one_branch
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.run import plan_run
from wan_tpu.pipeline.together_stages import TogetherStages
from wan_tpu.planner.compile import compile_stage, slice_devices
from wan_tpu.planner.estimate import Seconds, estimate
from wan_tpu.planner.figures import span
from wan_tpu.planner.hardware import GIB, MIB
from wan_tpu.planner.job import Job
from wan_tpu.planner.program import read_program
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TogetherPlan:
    """A denoising step of so many videos at once.

    Attributes:
        samples: videos in the batch.
        layout: of the batch.
        failure: why the step does not compile; the figures are 0 then.
        seconds: of the step; None likewise.
        sent_bytes: by each device.
        peak_bytes: on a device.
    """

    samples: int
    layout: Layout
    failure: str | None = None
    seconds: Seconds | None = None
    sent_bytes: int = 0
    peak_bytes: int = 0

    def __str__(self) -> str:
        seconds = self.seconds
        if seconds is None:
            return f"{self.samples} videos: {self.failure}"
        low, high = (1000 * s for s in seconds.range)
        return (
            f"{self.samples} videos on {self.layout}: a step {span(low, high)} ms, "
            f"{span(low / self.samples, high / self.samples)} a video; compute "
            f"{1000 * seconds.compute:.1f}, memory {1000 * seconds.memory:.1f}, links exposed "
            f"{1000 * seconds.exposed:.1f}, hidden {1000 * seconds.hidden:.1f} ms; "
            f"{self.sent_bytes / MIB:.0f} MiB sent by each device, peak "
            f"{self.peak_bytes / GIB:.2f} GiB"
        )


def plan_together(job: Job, layout: Layout, counts: Sequence[int]) -> Iterator[TogetherPlan]:
    """Compiles the step of batches of a job's video.

    Args:
        job: what is planned; of its stages the step alone.
        layout: that one video is made on.
        counts: videos; a batch is filled up to the next size that there are programs for.
    """
    model = make_video_model(
        job.description,
        make_mesh(layout, slice_devices(job.where)),
        layout,
        dtype=jnp.dtype(job.dtype),
        attention=job.attention,
        quantize=job.quantize,
    )
    run = plan_run(job.request, model, on_one_branch(model), Watch())
    for samples in map(samples_for, counts):
        together = for_batch(model, samples * run.batch)
        stage = run.step_stage(run.batch)
        if samples > 1:
            stage = TogetherStages(together, run.geometry, run.schedule, samples).step(run.batch)
        of = together.layout if samples > 1 else run.model.layout
        facts, text = compile_stage(stage)
        if not text:
            yield TogetherPlan(samples=samples, layout=of, failure=facts.failure)
            continue
        costs = read_program(text)
        yield TogetherPlan(
            samples=samples,
            layout=of,
            seconds=estimate(costs, job.where, facts.coordinates, {}),
            sent_bytes=costs.total("link_bytes"),
            peak_bytes=facts.peak_bytes,
        )
