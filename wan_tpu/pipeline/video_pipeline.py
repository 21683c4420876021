"""From a request to a video, top to bottom: the one place that knows the order of the stages."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from wan_tpu.adapters.chosen import ChosenAdapter
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import Weight, load_parts
from wan_tpu.errors import BadNumbersError, InputError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER
from wan_tpu.image.preprocess import for_image_encoder
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.pipeline.denoise import StepCall, denoise, pack_numbers
from wan_tpu.pipeline.latents import fresh_noises, make_noise, place_padded, to_tokens
from wan_tpu.pipeline.load import (
    checked_parts,
    load_vae_of,
    load_words,
    on_one_branch,
    place_model,
)
from wan_tpu.pipeline.memory import reporting_memory
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.names import VAES_THAT_ENCODE
from wan_tpu.pipeline.programs import Program, Programs
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.pipeline.run import Run, compile_order, metadata_of, plan_run
from wan_tpu.request import VideoRequest, VideoResult
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import named, place
from wan_tpu.sharding.one_branch import seen_on
from wan_tpu.stage import Stage
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.text.new_words import WordTokenizer
from wan_tpu.text.prompt import check_prompt, tokenize
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.conditions import Condition
from wan_tpu.transformer.processors import Context
from wan_tpu.vae.backends import VaeBackend

logger = logging.getLogger(__name__)


class VideoPipeline:
    """A loaded model of the family that makes videos; one generation at a time.

    Attributes:
        model: what runs: components, mesh, layout, attention.
        adapters: what was added to its weights, for the metadata.
    """

    def __init__(self, model: VideoModel, tokenizer: WordTokenizer, vae: VaeBackend):
        """A model whose programs can be compiled; `load` makes one and brings the weights."""
        self.model = model
        self.adapters: Sequence[Mapping[str, Any]] = ()
        self._one_branch = on_one_branch(model)
        self._tokenizer = tokenizer
        self._vae = vae
        self._programs = Programs()
        self._params: Mapping[str, Params] = {}
        self._one_branch_params: Mapping[str, Params] = {}

    def set_words(self, tokenizer: WordTokenizer) -> None:
        """Takes another tokenizer of `load_words`, for the prompts from here on."""
        self._tokenizer = tokenizer

    def set_weights(self, params: Mapping[str, Params]) -> None:
        """Takes the weights of the components in place of all that it had; programs stay.

        The mesh of one branch sees the same memory. The autoencoder's are its back end's.

        Args:
            params: by component; those that no request uses until the next call may be left out.
        """
        self._params = params
        self._one_branch_params = {
            name: {
                weight: seen_on(array, self._one_branch.components[name].weights[weight].sharding)
                for weight, array in arrays.items()
            }
            for name, arrays in params.items()
            if name in self._one_branch.description.kind.experts
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
        embeddings: Sequence[Embedding] = (),
        adapters: Sequence[ChosenAdapter] = (),
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
            embeddings: words that prompts may hold besides the tokenizer's.
            adapters: of `open_adapters`; added to the transformers' weights, in this order.
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
        # What is wrong with them is said before anything compiles.
        parts, added = checked_parts(model, adapters=adapters)
        tokenizer = load_words(model, embeddings)
        with reporting_memory("loading the model", model):
            pipeline = cls(model, tokenizer, load_vae_of(model, vae))
            pipeline.adapters = added
            if compile_for is not None:
                pipeline.prepare(compile_for)
            pipeline.set_weights(load_parts(parts))
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
        media: Media = NO_MEDIA,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
        on_frames: Callable[[np.ndarray], None] | None = None,
        keep_frames: bool = True,
    ) -> VideoResult:
        """Makes one video.

        Args:
            request: what to make; open fields take what its pictures give, else the model's
                defaults.
            media: the pictures and clips that it names.
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
        run = self._plan(request, Watch(on_progress, should_cancel), media)
        chunks = []
        with self._reporting_memory(run):
            encoded = self._encode_pictures(run)
            contexts = self._encode_text(run, self._encode_images(run))
            conditions = self._conditions(run, encoded)
            latents = self._denoise(run, contexts, conditions, self._start(run, encoded))
            for frames in self._decode(run, run.way.finish(latents, encoded)):
                if keep_frames:
                    chunks.append(np.asarray(frames))
                if on_frames is not None:
                    on_frames(np.asarray(frames))
        nothing = np.empty((0, run.geometry.height, run.geometry.width, 3), np.uint8)
        return VideoResult(
            frames=np.concatenate(chunks) if chunks else nothing,
            metadata=metadata_of(run, self._vae.name, self.adapters),
        )

    def intermediate(
        self, request: VideoRequest, *, media: Media = NO_MEDIA
    ) -> dict[str, np.ndarray]:
        """What each part makes of a request, for comparing layouts.

        Returns:
            velocity: of the transformer alone at the first step, `[batch, latent frames, latent
            height, latent width, channels]`; latents: after the whole run, `[1, ...]`; frames:
            as `VideoResult.frames`.
        """
        run = self._plan(request, Watch(), media)
        encoded = self._encode_pictures(run)
        contexts = self._encode_text(run, self._encode_images(run))
        conditions, start = self._conditions(run, encoded), self._start(run, encoded)
        first = run.steps[0]
        velocity = self._program(run, run.velocity_stage(first.batch))(
            self._step_params(run, first.component),
            contexts[first.component, first.batch],
            start,
            place(np.asarray(run.schedule.timesteps[0], np.float32), named(run.model.mesh)),
            conditions[first.component],
        )
        latents = run.way.finish(self._denoise(run, contexts, conditions, start), encoded)
        frames = np.concatenate(list(self._decode(run, latents)))
        return {"velocity": np.asarray(velocity), "latents": latents, "frames": frames}

    def warm_up(
        self, request: VideoRequest, *, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Compiles every program that a request like this one runs; they are kept for good."""
        self.prepare(request)
        run = self._plan(request, Watch(on_progress))
        with self._reporting_memory(run):
            for stage in run.stages(self._vae):
                self._program(run, stage)

    def prepare(self, request: VideoRequest) -> None:
        """Begins to compile what a request like this one runs, in the background."""
        stages = self._plan(request, Watch()).stages(self._vae)
        self._programs.prepare(sorted(stages, key=compile_order))

    def _plan(self, request: VideoRequest, watch: Watch, media: Media | None = None) -> Run:
        """Decides everything about a request.

        Args:
            request: what to make.
            watch: of the run.
            media: the pictures and clips that it names; None to plan a run that is not made.

        Raises:
            InputError: the request cannot be carried out.
        """
        words = self._tokenizer.words
        run = plan_run(request, self.model, self._one_branch, watch, media or NO_MEDIA, words)
        if run.preset is not None:
            given = {component for added in self.adapters for component in added["components"]}
            run.preset.check_adapters(
                given, run.model.description.kind, self.model.description.name
            )
        if media is not None:
            media.only(run.request.media)  # says which did not come
        if run.way.num_frames(run.geometry) and not self._vae.encodes:
            raise InputError(
                f"the VAE {self._vae.name} only decodes, and pictures have to be encoded; load the "
                f"model with the VAE {' or '.join(VAES_THAT_ENCODE)}"
            )
        return run

    def _encode_pictures(self, run: Run) -> np.ndarray | None:
        """Latents `[1, frames, height, width, channels]` of what the run makes of its pictures."""
        num_frames = run.way.num_frames(run.geometry)
        if num_frames == 0:
            return None
        programs = [self._program(run, stage) for stage in run.encode_stages(self._vae)]
        with run.watch.stage("encode", num_frames) as report:
            video = run.way.video(run.pictures, run.geometry)
            mean = self._vae.moments(video, programs).mean
            report(num_frames)
        return self.model.vae.normalise(mean)

    def _encode_images(self, run: Run) -> jax.Array | None:
        """Image tokens `[1, pictures * tokens, width]`; None where the model reads none."""
        if not run.num_encoder_pictures:
            return None
        encode = self._program(run, self.model.image_stage(run.num_encoder_pictures))
        with run.watch.stage("image", run.num_encoder_pictures) as report:
            size = self.model.image_encoder.config.image_size
            wholes = (picture.whole for picture in run.pictures.values())
            pixels = [for_image_encoder(whole, size) for whole in wholes if whole is not None]
            placed = place(np.stack(pixels), named(self.model.mesh))
            tokens, is_finite = encode(self._params[IMAGE_ENCODER], placed)
            if not np.asarray(is_finite):  # the same in all processes
                raise BadNumbersError("image, the picture's tokens")
            report(run.num_encoder_pictures)
        return seen_on(tokens, named(run.model.mesh))

    def _encode_text(self, run: Run, image: jax.Array | None) -> dict[tuple[str, int], Context]:
        """Cross-attention's keys and values of the prompts and the image tokens, by component and
        batch of the steps."""
        prompts = run.request.prompts[: run.batch]
        ids, mask = tokenize(self._tokenizer, prompts)
        if len(prompts) == 2 and np.array_equal(ids[0], ids[1]):
            ids, mask = ids[:1], mask[:1]  # equal prompts are encoded once
        encode = self._program(run, run.text_stage(len(ids)))
        weights = run.model.denoiser.context_weights()
        programs = {
            batch: self._program(run, run.context_stage(len(ids), batch)) for batch in run.batches
        }
        with run.watch.stage("text", len(ids)) as report:
            whole = named(self.model.mesh)
            tokens = (place(x, whole) for x in self._tokenizer.inputs(ids, mask))
            embeddings, is_finite = encode(self._params[TEXT_ENCODER], *tokens)
            embeddings = seen_on(embeddings, named(run.model.mesh))
            contexts = {
                (component, batch): programs[batch](
                    _subset(self._params_on(run, component), weights), embeddings, image
                )
                for component, batch in run.contexts
            }
            if not np.asarray(is_finite):  # the same in all processes
                raise BadNumbersError("text, the prompt's embeddings")
            jax.block_until_ready(contexts)
            report(len(ids))
        return contexts

    def _conditions(self, run: Run, encoded: np.ndarray | None) -> dict[str, Condition | None]:
        """What pictures add at every step, by component."""
        tokens = run.way.tokens(encoded, run.geometry)
        if tokens is None:
            return dict.fromkeys(run.components)
        stage = run.model.condition_stage(run.geometry, run.way.in_steps)
        make = self._program(run, stage)
        weights, target = stage.arguments
        placed = place_padded(tokens, target)
        return {
            component: make(_named(self._params_on(run, component), weights), placed)
            for component in run.components
        }

    def _start(self, run: Run, encoded: np.ndarray | None) -> jax.Array:
        """What the first step begins with, in token form on the mesh; padding tokens are zero."""
        noise = make_noise(run.request.seed, run.geometry, self.model.vae.z_dim)
        tokens = to_tokens(run.way.start(noise, encoded, run.schedule), run.geometry)
        return place_padded(tokens, run.model.abstract_tokens(run.geometry))

    def _denoise(
        self,
        run: Run,
        contexts: Mapping[tuple[str, int], Context],
        conditions: Mapping[str, Condition | None],
        start: jax.Array,
    ) -> np.ndarray:
        """Latents `[1, frames, height, width, channels]` after the last step."""
        model, geometry, schedule = run.model, run.geometry, run.schedule
        begin = self._program(run, model.start_stage(geometry, schedule))
        programs = {batch: self._program(run, run.step_stage(batch)) for batch in run.batches}
        params = {component: self._step_params(run, component) for component in run.components}
        noises: Sequence[jax.Array | None] = [None] * len(run.steps)
        if schedule.renoises:
            noises = fresh_noises(
                run.request.seed, geometry, len(run.steps), model.abstract_tokens(geometry)
            )
        calls = [
            StepCall(
                program=programs[step.batch],
                params=params[step.component],
                context=contexts[step.component, step.batch],
                numbers=pack_numbers(schedule, index, step.guidance_scale),
                condition=conditions[step.component],
                noise=noises[index],
            )
            for index, step in enumerate(run.steps)
        ]
        state = denoise(calls, begin(start), mesh=model.mesh, watch=run.watch)
        return np.asarray(self._program(run, model.latents_stage(geometry))(state.sample))

    def _decode(self, run: Run, latents: np.ndarray) -> Iterator[jax.Array]:
        """Frames in order, `[n, height, width, 3]`, uint8, while later ones decode."""
        programs = [self._program(run, stage) for stage in run.decode_stages(self._vae)]
        with run.watch.stage("decode", run.geometry.num_frames) as report:
            done = 0
            for frames in self._vae.frames(latents, programs):
                done += len(frames)
                yield frames
                report(done)

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


def _subset(params: Params, weights: list[Weight]) -> dict[str, jax.Array]:
    return _named(params, [weight.name for weight in weights])


def _named(params: Params, names: Iterable[str]) -> dict[str, jax.Array]:
    return {name: params[name] for name in names}
