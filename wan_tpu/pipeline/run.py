"""One request: everything that is decided about it before it runs, and its metadata after."""

import collections
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.family import IMAGE_ENCODER, Conditioning
from wan_tpu.fast import FastPreset
from wan_tpu.geometry import Geometry
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.pipeline.check import check, check_request
from wan_tpu.pipeline.conditions import NoPictures, way_of_pictures
from wan_tpu.pipeline.denoise import pack_numbers
from wan_tpu.pipeline.fast import find_preset
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.pictures import Pictures
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.request_adapters import RequestAdapters
from wan_tpu.pipeline.step_cache import find_cache, told, with_cache
from wan_tpu.pipeline.step_plan import (
    PlannedStep,
    batches_of,
    components_of,
    contexts_of,
    plan_steps,
    programs_of,
    with_gate,
)
from wan_tpu.pipeline.step_program import Keeps
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_given_schedule, make_schedule
from wan_tpu.schedulers.base import Schedule
from wan_tpu.schedulers.sigmas import read_num_train_timesteps
from wan_tpu.stage import Stage
from wan_tpu.step_cache import MAGCACHE, Blocks, StepCache
from wan_tpu.text.new_words import NO_WORDS, NewWords
from wan_tpu.text.prompt import clean_prompt

PACKAGES = ("wan_tpu", "torch", "torchax", "jax", "jaxlib", "flax", "diffusers", "transformers")


class VaeStages(Protocol):
    """Whoever knows the autoencoder's programs: a back end, or `VideoModel` for our own."""

    def stages(
        self, latent_height: int, latent_width: int, latent_frames: int
    ) -> tuple[Stage, ...]:
        """Those that decode, in order."""
        ...

    def encode_stages(self, height: int, width: int, num_frames: int) -> tuple[Stage, ...]:
        """Those that encode, in order."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One request, and what was decided about it.

    Attributes:
        request: complete. geometry: its sizes. schedule: its noise levels.
        steps: what each denoising step takes.
        pictures: what the request names, decoded; empty where it is planned alone.
        way: what is made of them.
        model: the model on the mesh that suits the batch.
        whole_model: on the mesh of both branches, where everything but the steps runs.
        watch: reports, measures, stops.
        words: that its prompts may hold besides the tokenizer's.
        preset: of few steps, which decided the steps; None where none was asked for.
        cache: complete, where steps may reuse what others left; None where each is computed.
        keeps: what travels from step to step besides the scheduler's state.
        adapters: that it adds to the transformers' weights; None for none.
    """

    request: VideoRequest
    geometry: Geometry
    schedule: Schedule
    steps: tuple[PlannedStep, ...]
    pictures: Pictures
    way: NoPictures
    model: VideoModel
    whole_model: VideoModel
    watch: Watch
    words: NewWords = NO_WORDS
    preset: FastPreset | None = None
    cache: StepCache | None = None
    keeps: Keeps = Keeps.NOTHING
    adapters: RequestAdapters | None = None

    @property
    def batch(self) -> int:
        """Prompts that the steps need: with guidance the negative one, too."""
        return max(self.batches)

    @property
    def batches(self) -> list[int]:
        """Of the steps, each once."""
        return batches_of(self.steps)

    @property
    def components(self) -> list[str]:
        """The transformers whose turn comes."""
        return components_of(self.steps)

    @property
    def contexts(self) -> list[tuple[str, int]]:
        """What the steps attend to: each transformer makes it anew, for each of its batches."""
        return contexts_of(self.steps)

    @property
    def num_encoder_pictures(self) -> int:
        """Pictures for the image encoder; none where the model has no such encoder."""
        return len(self.way.roles) if IMAGE_ENCODER in self.whole_model.components else 0

    def text_stage(self, num_prompts: int) -> Stage:
        """The stage of its prompts."""
        return self.whole_model.text_stage(num_prompts, self.words.num_vectors)

    def context_stage(self, num_prompts: int, batch: int) -> Stage:
        """The stage of what the steps of a batch attend to."""
        return self.model.context_stage(num_prompts, batch, self.num_encoder_pictures)

    def step_stage(self, batch: int, reuses: bool = False, exact: bool = False) -> Stage:
        """The stage of the steps of a batch; or of those that reuse a residual, or are exact.

        Arguments as of `StepProgram`.
        """
        return self.model.step_stage(
            self.geometry,
            self.schedule,
            batch,
            self.num_encoder_pictures,
            self.way.in_steps,
            keeps=self.keeps,
            kept_batch=self.batch,
            reuses=reuses,
            exact=exact,
        )

    def numbers(self, step: int) -> np.ndarray:
        """What the program of a step is told, `[n]`, float32."""
        planned = self.steps[step]
        numbers = pack_numbers(self.schedule, step, planned.guidance_scale)
        if self.keeps is not Keeps.VELOCITY:
            return numbers
        assert self.cache is not None
        is_open = planned.blocks is Blocks.OPEN
        threshold = self.cache.threshold if is_open else 0.0  # no change is less: it is computed
        return np.append(numbers, np.float32(threshold))

    def start_stage(self) -> Stage:
        """The stage of what travels from step to step, before the first."""
        return self.model.start_stage(self.geometry, self.schedule, self.keeps, self.batch)

    def velocity_stage(self, batch: int) -> Stage:
        """The stage of the transformer alone, on what its steps take."""
        return self.model.velocity_stage(
            self.geometry, batch, self.num_encoder_pictures, self.way.in_steps
        )

    def decode_stages(self, vae: VaeStages) -> tuple[Stage, ...]:
        """The stages that decode its latents."""
        geometry = self.geometry
        return vae.stages(geometry.latent_height, geometry.latent_width, geometry.latent_frames)

    def encode_stages(self, vae: VaeStages) -> tuple[Stage, ...]:
        """The stages that encode what its pictures give."""
        geometry, num_frames = self.geometry, self.way.num_frames(self.geometry)
        if num_frames == 0:
            return ()
        return vae.encode_stages(geometry.height, geometry.width, num_frames)

    def stages(self, vae: VaeStages | None = None) -> list[Stage]:
        """The stage of every program that it runs, in this order, each once.

        Args:
            vae: knows the autoencoder's; our own when not given.
        """
        whole, model, geometry = self.whole_model, self.model, self.geometry
        vae = vae or whole
        pictures, in_steps = self.num_encoder_pictures, self.way.in_steps
        return [
            self.text_stage(self.batch),
            *([whole.image_stage(pictures)] if pictures else []),
            *(self.context_stage(self.batch, batch) for batch in self.batches),
            *self.encode_stages(vae),
            *([] if in_steps is Conditioning.NONE else [model.condition_stage(geometry, in_steps)]),
            self.start_stage(),
            *(self.step_stage(*program) for program in programs_of(self.steps)),
            model.latents_stage(geometry),
            *self.decode_stages(vae),
        ]


def plan_run(
    request: VideoRequest,
    model: VideoModel,
    one_branch: VideoModel,
    watch: Watch,
    media: Media = NO_MEDIA,
    words: NewWords = NO_WORDS,
) -> Run:
    """Decides everything about a request.

    Args:
        request: open fields take the model's defaults.
        model: on the mesh for steps with guidance.
        one_branch: the same on the mesh for runs without.
        watch: of the run.
        media: the bytes of its pictures; none to plan a run that is not made.
        words: that its prompts may hold.

    Raises:
        InputError: the request cannot be carried out.
    """
    description = model.description
    checked = check(description, request, media)
    request, kind = checked.request, description.kind
    words.used(map(clean_prompt, request.prompts))  # says which it names and are not there
    schedule, steps = schedule_steps(description, request)
    steps = with_gate(steps, model.denoiser.setting.gate)
    has_guidance = any(step.batch == 2 for step in steps)
    cache, _ = find_cache(description, request) or (None, None)
    return Run(
        request=request,
        geometry=checked.geometry,
        schedule=schedule,
        steps=steps,
        pictures=checked.pictures,
        way=way_of_pictures(kind, frozenset(request.media)),
        model=model if has_guidance else one_branch,
        whole_model=model,
        watch=watch,
        words=words,
        preset=find_preset(description, request.fast),
        cache=cache,
        keeps=_keeps(cache),
    )


def _keeps(cache: StepCache | None) -> Keeps:
    if cache is None:
        return Keeps.NOTHING
    return Keeps.RESIDUAL if cache.name == MAGCACHE else Keeps.VELOCITY


def schedule_steps(
    description: ModelDescription, request: VideoRequest
) -> tuple[Schedule, tuple[PlannedStep, ...]]:
    """The noise levels of a complete request, and what each step takes."""
    assert request.num_inference_steps is not None
    assert request.scheduler is not None
    config, ratio = description.configs["scheduler"], description.kind.boundary_ratio
    common = {"config": config, "num_last_steps": request.num_steps}
    if request.sigmas is not None:
        schedule = make_given_schedule(request.scheduler, request.sigmas, **common)
    else:
        assert request.flow_shift is not None
        schedule = make_schedule(
            request.scheduler,
            num_inference_steps=request.num_inference_steps,
            flow_shift=request.flow_shift,
            **common,
        )
    steps = plan_steps(
        request,
        schedule,
        experts=description.kind.experts,
        boundary=None if ratio is None else ratio * read_num_train_timesteps(config),
    )
    return schedule, with_cache(description, request, steps)


def largest_batch(description: ModelDescription, request: VideoRequest) -> int:
    """Entries of the transformer's batch that a request needs at most: 1 where guidance is off."""
    request, _ = check_request(description, request)
    return max(batches_of(schedule_steps(description, request)[1]))


def compile_order(stage: Stage) -> int:
    """Orders stages: what the first step waits for, then what the decoder does; slow ones first."""
    order = ("step", "step-exact", "text", "image", "encode-next", "encode-first", "context")
    order = (*order, "condition", "start", "step-reuse", "latents", "decode-next", "decode-first")
    return order.index(stage.name)


def int8_attention_of(run: Run) -> dict[str, str] | None:
    """Of each step and of each layer a letter: `X` exact, `8` of 8 bits, `.` reused; else None."""
    setting = run.model.denoiser.setting
    if setting.gate is None:
        return None
    exact = [(step.exact, step.blocks is Blocks.REUSED) for step in run.steps]
    layers = setting.gate.layers.exact(run.model.denoiser.config.num_layers)
    return {
        "steps": "".join("." if reused else "X" if each else "8" for each, reused in exact),
        "layers": "".join("X" if each else "8" for each in layers),
    }


def metadata_of(
    run: Run, vae: str, adapters: Sequence[Mapping[str, Any]], computed: Sequence[bool] = ()
) -> dict[str, Any]:
    """Everything needed to make the same video again, and how long each stage took.

    Args:
        run: that has ended.
        vae: name of the decoder that made the frames.
        adapters: that were loaded with the model, each with its file's digest.
        computed: of each step, whether the transformer's blocks ran; of a run with a step cache.
    """
    added = () if run.adapters is None else run.adapters.described
    model, description = run.model, run.model.description
    devices = model.mesh.devices
    return {
        "model": description.name,
        "model_revision": description.revision,
        "model_variant": description.variant,
        "adapters": [*adapters, *added],
        "defaults_from": dict(description.defaults_from),
        "request": dataclasses.asdict(run.request),
        "seed": run.request.seed,
        "embeddings": [embedding.told() for embedding in run.words.embeddings],
        "pictures": {role: picture.fit for role, picture in run.pictures.items()},
        "steps": dict(collections.Counter(step.component for step in run.steps)),
        "fast": None if run.preset is None else run.preset.to_json(),
        "step_cache": None if run.cache is None else told(run.cache, computed),
        "tokens": run.geometry.num_tokens,
        "layout": str(model.layout),
        "sequence_parallel": model.layout.sequence_parallel,
        "weights": model.layout.weights,
        "attention": model.denoiser.setting.implementation,
        "int8_attention": int8_attention_of(run),
        "vae": vae,
        "dtype": str(jnp.dtype(model.dtype)),
        "quantize": model.quantize,
        "vae_dtype": str(jnp.dtype(model.vae_dtype)),
        "device_kind": devices.flat[0].device_kind,
        "num_devices": int(devices.size),
        "num_processes": jax.process_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seconds": {name: round(seconds, 3) for name, seconds in run.watch.seconds.items()},
    }
