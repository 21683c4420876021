"""What is planned: a model, a video, a slice, and the stages that the video runs on it.

Says it from configurations alone, so that a plan that is kept is found again without making a
model. The stages themselves are those of `wan_tpu.pipeline.run.Run`.
"""

import dataclasses

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.family import IMAGE_ENCODER, Conditioning
from wan_tpu.geometry import Geometry
from wan_tpu.image.encoder import ImageEncoderConfig
from wan_tpu.media import placeholders
from wan_tpu.pipeline.components import transformer_config
from wan_tpu.pipeline.conditions import NoPictures, way_of_pictures
from wan_tpu.pipeline.run import Run
from wan_tpu.pipeline.step_cache import find_cache
from wan_tpu.pipeline.step_plan import (
    PlannedStep,
    StepProgram,
    batches_of,
    components_of,
    contexts_of,
    programs_of,
)
from wan_tpu.planner.hardware import Slice
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.base import Schedule
from wan_tpu.stage import Stage
from wan_tpu.step_cache import StepCache
from wan_tpu.training.flops import forward_flops
from wan_tpu.vae.config import FRAMES_PER_CHUNK

UNGUIDED = "-unguided"
"""After a stage's name: its second program, for steps without guidance in a run that has both."""

STAGES = (
    "text", "image", "context-unguided", "context", "encode-first", "encode-next", "condition",
    "start", "step-unguided", "step", "step-exact-unguided", "step-exact", "step-reuse-unguided",
    "step-reuse", "latents", "decode-first", "decode-next",
)  # fmt: skip
"""What a video may run, in the order in which it does."""

STAGE_GROUPS = {
    "text": ("text", "context-unguided", "context"),
    "pictures": ("image", "encode-first", "encode-next", "condition"),
    "step": ("start", *(name for name in STAGES if name.startswith("step"))),
    "decode": ("latents", "decode-first", "decode-next"),
    "all": STAGES,
}
"""What `--stages` may name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is planned: a model, a video, a slice.

    Attributes:
        description: the model.
        request: the video, complete; its pictures are roles without bytes.
        geometry: its sizes.
        schedule: its noise levels.
        steps: what each denoising step takes.
        where: the slice.
        dtype: of weights and activations.
        quantize: what the transformers' blocks multiply in; None for `dtype`.
        attention: as `wan_tpu.attention.choice.parse_attention` reads it.
        stages: those of `STAGES` to look at, of those that the video runs.
    """

    description: ModelDescription
    request: VideoRequest
    geometry: Geometry
    schedule: Schedule
    steps: tuple[PlannedStep, ...]
    where: Slice
    dtype: str = "bfloat16"
    quantize: str | None = None
    attention: str = "auto"
    stages: tuple[str, ...] = STAGES

    @property
    def way(self) -> NoPictures:
        """What is made of its pictures."""
        return way_of_pictures(self.description.kind, frozenset(self.request.media))

    @property
    def cache(self) -> StepCache | None:
        """The step cache, complete; None where every step is computed."""
        found = find_cache(self.description, self.request)
        return None if found is None else found[0]

    @property
    def batches(self) -> list[int]:
        """Of the steps, each once: 2 with guidance, 1 without."""
        return batches_of(self.steps)

    @property
    def step_letters(self) -> str:
        """Of each step a letter: computed, reused, or open until it runs (`Blocks`)."""
        return "".join(step.blocks.value for step in self.steps)

    @property
    def image_tokens(self) -> int:
        """Keys of cross-attention that come from pictures; 0 without."""
        if IMAGE_ENCODER not in self.description.kind.components:
            return 0
        config = ImageEncoderConfig.from_json(self.description.configs[IMAGE_ENCODER])
        return len(self.way.roles) * config.num_tokens

    @property
    def num_noises(self) -> int:
        """Fresh noises that lie on the devices beside the scheduler's state; 0 for most."""
        return len(self.steps) if self.schedule.renoises else 0

    @property
    def model_flops(self) -> float:
        """Of a step with guidance, or of any where none has it, by the model's sizes."""
        config, tokens = transformer_config(self.description), self.image_tokens
        forward = forward_flops(config, self.geometry, tokens, with_context=False)
        return max(self.batches) * sum(forward)

    def runs(self) -> dict[str, int]:
        """How often the video runs each stage; those that it does not run are not there."""
        steps, way, latent_frames = self.steps, self.way, self.geometry.latent_frames
        contexts = contexts_of(steps)
        encoded = way.num_frames(self.geometry)
        told = way.in_steps is not Conditioning.NONE
        counts = {
            "text": 1,
            "image": int(self.image_tokens > 0),
            "encode-first": int(encoded > 0),
            "encode-next": max(encoded - 1, 0) // FRAMES_PER_CHUNK,
            "condition": len(components_of(steps)) if told else 0,
            "start": 1,
            "latents": 1,
            "decode-first": 1,
            "decode-next": latent_frames - 1,
        }
        for batch in self.batches:
            suffix = self._suffix(batch)
            counts[f"context{suffix}"] = sum(of == batch for _, of in contexts)
        for program in programs_of(steps):
            name = self._step_name(program) + self._suffix(program.batch)
            counts[name] = sum(step.program == program for step in steps)
        return {name: counts[name] for name in STAGES if counts.get(name)}

    def stages_of(self, run: Run) -> dict[str, Stage]:
        """The stages of a run of this request, by their names in `STAGES`."""
        found = {}
        batches, programs = iter(self.batches), iter(programs_of(self.steps))
        for stage in run.stages():
            name = stage.name
            if name == "context":
                name += self._suffix(next(batches))
            elif name.startswith("step"):
                program = next(programs)
                name = self._step_name(program) + self._suffix(program.batch)
            found[name] = stage
        return found

    def _step_name(self, program: StepProgram) -> str:
        """An exact step is `step-exact` where others are not, else the step that there is."""
        if program.reuses:
            return "step-reuse"
        computed = {each.exact for each in programs_of(self.steps) if not each.reuses}
        return "step-exact" if program.exact and len(computed) > 1 else "step"

    def _suffix(self, batch: int) -> str:
        return UNGUIDED if batch < max(self.batches) else ""


def with_inputs(description: ModelDescription, request: VideoRequest) -> VideoRequest:
    """A request that names pictures where the model does not do without: the first set it takes."""
    kind = description.kind
    if request.media or frozenset() in kind.inputs:
        return request
    return dataclasses.replace(request, **placeholders(kind.inputs[0]))
