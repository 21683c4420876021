"""From a request to a video, top to bottom: the one place that knows the order of the stages."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from jax.typing import DTypeLike

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import Weight, load_parts
from wan_tpu.errors import BadNumbersError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.denoise import StepCall, denoise, pack_numbers
from wan_tpu.pipeline.load import checked_parts, load_vae_of, on_one_branch, place_model
from wan_tpu.pipeline.memory import reporting_memory
from wan_tpu.pipeline.model import TEXT_ENCODER, VideoModel
from wan_tpu.pipeline.programs import Program, Programs
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.pipeline.run import Run, metadata_of, plan_run
from wan_tpu.request import VideoRequest, VideoResult
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import named, place
from wan_tpu.sharding.one_branch import seen_on
from wan_tpu.stage import Stage
from wan_tpu.text.prompt import check_prompt, tokenize
from wan_tpu.text.tokenizer import Tokenizer, load_tokenizer
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.denoiser import Context, patchify
from wan_tpu.vae.backends import VaeBackend

logger = logging.getLogger(__name__)


class VideoPipeline:
    """A loaded model of the family that makes videos; one generation at a time.

    Attributes:
        model: what runs: components, mesh, layout, attention.
    """

    def __init__(self, model: VideoModel, tokenizer: Tokenizer, vae: VaeBackend):
        """A model whose programs can be compiled; `load` makes one and brings the weights."""
        self.model = model
        self._one_branch = on_one_branch(model)
        self._tokenizer = tokenizer
        self._vae = vae
        self._programs = Programs()
        self._params: Mapping[str, Params] = {}
        self._one_branch_params: Mapping[str, Params] = {}

    def _give_weights(self, params: Mapping[str, Params]) -> None:
        """Takes the weights; the mesh of one branch sees the same memory."""
        self._params = params
        self._one_branch_params = {
            name: {
                weight: seen_on(array, self._one_branch.components[name].weights[weight].sharding)
                for weight, array in arrays.items()
            }
            for name, arrays in params.items()
            if name != TEXT_ENCODER
        }

    @classmethod
    def from_pretrained(
        cls, name: str = "wan-tiny", *, variant: str | None = None, **choices: Any
    ) -> "VideoPipeline":
        """Loads a model onto devices.

        Args:
            name: `wan-tiny`, a folder in diffusers format, a hub id or a known model's name.
            variant: of the weights' files, such as `fp16`.
            **choices: those of `load`.

        Raises:
            InputError: a name or layout that does not exist or does not fit.
            CheckpointError: files are missing, damaged or not those of the model.
            MissingPackageError: the VAE's package is not installed.
        """
        layout, devices = choices.get("layout"), choices.get("devices")
        if layout is not None:  # before gigabytes are downloaded
            layout.require_devices(len(jax.devices() if devices is None else devices))
        return cls.load(open_model(name, variant), **choices)

    @classmethod
    def load(
        cls,
        description: ModelDescription,
        *,
        layout: Layout | None = None,
        devices: Sequence[Any] | None = None,
        dtype: DTypeLike | None = None,
        attention: str = "auto",
        vae: str = "flax",
        vae_dtype: DTypeLike | None = None,
        compile_for: VideoRequest | None = None,
    ) -> "VideoPipeline":
        """Loads a model whose files are here onto devices.

        Args:
            description: from `open_model`.
            layout: how it is split; chosen for the number of devices when not given.
            devices: those to use; all of all processes when not given.
            dtype: of weights and activations; bfloat16, on a CPU float32, when not given.
            attention: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.
            vae: `flax`, or `maxdiffusion` where that package is installed.
            vae_dtype: of the autoencoder, where it differs.
            compile_for: a request whose programs are compiled while the weights load.

        Raises:
            InputError: a layout or name that does not fit.
            CheckpointError: files are missing, damaged or not those of the model.
            MissingPackageError: the VAE's package is not installed.
            OutOfMemoryError: the weights do not fit.
        """
        model = place_model(
            description,
            layout=layout,
            devices=devices,
            dtype=dtype,
            vae_dtype=vae_dtype,
            attention=attention,
        )
        parts = checked_parts(model)  # what is wrong with them is said before anything compiles
        tokenizer = load_tokenizer(
            description.component_folder("tokenizer"), model.text_encoder.config.vocab_size
        )
        with reporting_memory("loading the model", model):
            pipeline = cls(model, tokenizer, load_vae_of(model, vae))
            if compile_for is not None:
                pipeline.prepare(compile_for)
            pipeline._give_weights(load_parts(parts))
        logger.info("%s", pipeline)
        return pipeline

    def __str__(self) -> str:
        model, devices = self.model, self.model.mesh.devices
        return (
            f"{model.description.name}: layout {model.layout} (weights "
            f"{model.layout.weights}), attention {model.denoiser.setting.implementation}, "
            f"VAE {self._vae.name}, {model.dtype}, {devices.size} x {devices.flat[0].device_kind}"
        )

    def __call__(
        self,
        request: VideoRequest,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
        on_frames: Callable[[np.ndarray], None] | None = None,
        keep_frames: bool = True,
    ) -> VideoResult:
        """Makes one video.

        Args:
            request: what to make; open fields take the model's defaults.
            on_progress: called at every step, with what is done so far.
            should_cancel: asked between steps; true ends the generation.
            on_frames: called with frames `[n, height, width, 3]`, uint8, as soon as they are
                decoded, in order, while later ones still decode.
            keep_frames: whether the result has them, too. Where neither is asked for, as in the
                processes that write no file, nothing is copied from the devices.

        Raises:
            InputError: the request cannot be carried out; nothing was compiled.
            Cancelled: `should_cancel` said so.
            BadNumbersError: the model gave NaN or infinite numbers; in all processes alike.
            OutOfMemoryError: this size and length does not fit; says what would.
        """
        check_prompt(request.prompt)
        run = self._plan(request, Watch(on_progress, should_cancel))
        chunks = []
        with self._reporting_memory(run):
            contexts = self._encode_text(run)
            latents = self._denoise(run, contexts, self._noise(run))
            for frames in self._decode(run, latents):
                if keep_frames:
                    chunks.append(np.asarray(frames))
                if on_frames is not None:
                    on_frames(np.asarray(frames))
        nothing = np.empty((0, run.geometry.height, run.geometry.width, 3), np.uint8)
        return VideoResult(
            frames=np.concatenate(chunks) if chunks else nothing,
            metadata=metadata_of(run, self._vae.name),
        )

    def intermediate(self, request: VideoRequest) -> dict[str, np.ndarray]:
        """What each part makes of a request, for comparing layouts.

        Returns:
            velocity: of the transformer alone at the first step, `[batch, latent frames, latent
            height, latent width, channels]`; latents: after the whole run, `[1, ...]`; frames:
            as `VideoResult.frames`.
        """
        run = self._plan(request, Watch())
        contexts, noise = self._encode_text(run), self._noise(run)
        first = run.steps[0]
        velocity = self._program(run, run.model.velocity_stage(run.geometry, first.batch))(
            self._step_params(run, first.component),
            contexts[first.component, first.batch],
            noise,
            place(np.asarray(run.schedule.timesteps[0], np.float32), named(run.model.mesh)),
        )
        latents = self._denoise(run, contexts, noise)
        frames = np.concatenate(list(self._decode(run, latents)))
        return {
            "velocity": np.asarray(velocity),
            "latents": np.asarray(latents),
            "frames": frames,
        }

    def warm_up(
        self, request: VideoRequest, *, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Compiles every program that a request like this one runs; they are kept for good."""
        self.prepare(request)
        run = self._plan(request, Watch(on_progress))
        with self._reporting_memory(run):
            for stage in self._stages(run):
                self._program(run, stage)

    def prepare(self, request: VideoRequest) -> None:
        """Begins to compile what a request like this one runs, in the background."""
        stages = self._stages(self._plan(request, Watch()))
        self._programs.prepare(sorted(stages, key=_compile_order))

    def _plan(self, request: VideoRequest, watch: Watch) -> Run:
        """Decides everything about a request.

        Raises:
            InputError: the request cannot be carried out.
        """
        return plan_run(request, self.model, self._one_branch, watch)

    def _stages(self, run: Run) -> list[Stage]:
        """The stage of every program of a run, in the order they run."""
        model, geometry = run.model, run.geometry
        batches = sorted({step.batch for step in run.steps})
        return [
            self.model.text_stage(run.batch),
            *(model.context_stage(run.batch, batch) for batch in batches),
            model.start_stage(geometry, run.schedule),
            *(model.step_stage(geometry, run.schedule, batch) for batch in batches),
            model.latents_stage(geometry),
            *self._vae_stages(run),
        ]

    def _encode_text(self, run: Run) -> dict[tuple[str, int], Context]:
        """Cross-attention's keys and values of the prompts, by component and batch of the steps."""
        prompts = [run.request.prompt, run.request.negative_prompt or ""][: run.batch]
        ids, mask = tokenize(self._tokenizer, prompts)
        if len(prompts) == 2 and np.array_equal(ids[0], ids[1]):
            ids, mask = ids[:1], mask[:1]  # equal prompts are encoded once
        encode = self._program(run, self.model.text_stage(len(ids)))
        users = sorted({(step.component, step.batch) for step in run.steps})
        programs = {
            batch: self._program(run, run.model.context_stage(len(ids), batch))
            for batch in sorted({batch for _, batch in users})
        }
        with run.watch.stage("text", len(ids)) as report:
            whole = named(self.model.mesh)
            tokens = (place(x, whole) for x in (ids, mask))
            embeddings, is_finite = encode(self._params[TEXT_ENCODER], *tokens)
            embeddings = seen_on(embeddings, named(run.model.mesh))
            contexts = {
                (component, batch): programs[batch](
                    _subset(self._params_on(run, component), run.model.denoiser.context_weights()),
                    embeddings,
                )
                for component, batch in users
            }
            if not np.asarray(is_finite):  # the same in all processes
                raise BadNumbersError("text, the prompt's embeddings")
            jax.block_until_ready(contexts)
            report(len(ids))
        return contexts

    def _denoise(
        self, run: Run, contexts: Mapping[tuple[str, int], Context], noise: jax.Array
    ) -> jax.Array:
        """Latents `[1, frames, height, width, channels]` of noise in token form."""
        model, geometry, schedule = run.model, run.geometry, run.schedule
        start = self._program(run, model.start_stage(geometry, schedule))
        programs = {
            batch: self._program(run, model.step_stage(geometry, schedule, batch))
            for batch in sorted({step.batch for step in run.steps})
        }
        components = sorted({step.component for step in run.steps})
        params = {component: self._step_params(run, component) for component in components}
        calls = [
            StepCall(
                program=programs[step.batch],
                params=params[step.component],
                context=contexts[step.component, step.batch],
                numbers=pack_numbers(schedule, index, step.guidance_scale),
            )
            for index, step in enumerate(run.steps)
        ]
        state = denoise(calls, start(noise), mesh=model.mesh, watch=run.watch)
        return self._program(run, model.latents_stage(geometry))(state.sample)

    def _noise(self, run: Run) -> jax.Array:
        """The noise of the request's seed, in token form on the mesh; padding tokens are zero."""
        noise = make_noise(run.request.seed, run.geometry, self.model.vae.z_dim)
        tokens = patchify(noise, run.geometry.compression.patch)  # [1, tokens, token channels]
        target = run.model.abstract_tokens(run.geometry)
        padding = target.shape[1] - tokens.shape[1]
        return place(np.pad(tokens, ((0, 0), (0, padding), (0, 0))), target.sharding)

    def _decode(self, run: Run, latents: jax.Array) -> Iterator[jax.Array]:
        """Frames in order, `[n, height, width, 3]`, uint8, while later ones decode."""
        programs = [self._program(run, stage) for stage in self._vae_stages(run)]
        with run.watch.stage("decode", run.geometry.num_frames) as report:
            done = 0
            for frames in self._vae.frames(latents, programs):
                done += len(frames)
                yield frames
                report(done)

    def _vae_stages(self, run: Run) -> tuple[Stage, ...]:
        geometry = run.geometry
        return self._vae.stages(
            geometry.latent_height, geometry.latent_width, geometry.latent_frames
        )

    def _program(self, run: Run, stage: Stage) -> Program:
        """The compiled stage, compiled on first use."""
        return self._programs.get(stage, run.watch)

    def _params_on(self, run: Run, component: str) -> Params:
        """A component's parameters on the mesh of a run."""
        return (self._params if run.model is self.model else self._one_branch_params)[component]

    def _step_params(self, run: Run, component: str) -> Params:
        return _subset(self._params_on(run, component), run.model.denoiser.step_weights())

    def _reporting_memory(self, run: Run) -> contextlib.AbstractContextManager[None]:
        geometry = run.geometry
        what = f"{geometry.width}x{geometry.height}, {geometry.num_frames} frames"
        return reporting_memory(what, run.model, geometry)


def make_noise(seed: int, geometry: Geometry, channels: int) -> np.ndarray:
    """The noise that diffusers' pipeline draws for this seed: torch's CPU generator, float32.

    Returns:
        `[1, channels, latent frames, latent height, latent width]`.
    """
    shape = (1, channels, geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).numpy()


def _compile_order(stage: Stage) -> int:
    """Orders stages: what the first step waits for, then what the decoder does; slow ones first."""
    slow = ("step", "text", "context", "start", "latents", "decode-next", "decode-first")
    return slow.index(stage.name) if stage.name in slow else len(slow)


def _subset(params: Params, weights: list[Weight]) -> dict[str, jax.Array]:
    return {weight.name: params[weight.name] for weight in weights}
