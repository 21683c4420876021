"""From a request to a video, top to bottom: the one place that knows the order of the stages."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from wan_tpu.adapters.chosen import ChosenAdapter
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import load_parts
from wan_tpu.errors import InputError
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.pipeline.executor import Executor
from wan_tpu.pipeline.load import (
    checked_parts,
    load_vae_of,
    load_words,
    place_model,
)
from wan_tpu.pipeline.memory import reporting_memory
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.names import VAES_THAT_ENCODE
from wan_tpu.pipeline.progress import Calls, Progress, Watch
from wan_tpu.pipeline.request_adapters import AdapterChooser
from wan_tpu.pipeline.run import Run, compile_order, metadata_of, plan_run
from wan_tpu.pipeline.step_program import Keeps
from wan_tpu.pipeline.together import Together
from wan_tpu.request import VideoRequest, VideoResult
from wan_tpu.sharding.layout import Layout
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.text.new_words import WordTokenizer
from wan_tpu.text.prompt import check_prompt
from wan_tpu.torch_bridge import Params
from wan_tpu.vae.backends import VaeBackend

logger = logging.getLogger(__name__)


class VideoPipeline:
    """A loaded model of the family that makes videos; one generation at a time.

    Attributes:
        model: what runs: components, mesh, layout, attention.
        adapters: what was added to its weights when they were loaded, for the metadata.
    """

    def __init__(
        self,
        model: VideoModel,
        tokenizer: WordTokenizer,
        vae: VaeBackend,
        adapter_folder: Path | None = None,
    ):
        """A model whose programs can be compiled; `load` makes one and brings the weights."""
        self.model = model
        self.adapters: Sequence[Mapping[str, Any]] = ()
        self._chooser = AdapterChooser(model, adapter_folder)
        self._executor = Executor(model, tokenizer, vae)

    def set_words(self, tokenizer: WordTokenizer) -> None:
        """Takes another tokenizer of `load_words`, for the prompts from here on."""
        self._executor.tokenizer = tokenizer

    def set_weights(self, params: Mapping[str, Params]) -> None:
        """Takes the weights of the components in place of all that it had; programs stay.

        Args:
            params: by component; those that no request uses until the next call may be left out.
        """
        self._executor.set_weights(params)

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
        quantize: str | None = None,
        embeddings: Sequence[Embedding] = (),
        adapters: Sequence[ChosenAdapter] = (),
        adapter_folder: Path | None = None,
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
            quantize: `int8` for weights and products of the transformers' blocks; None for `dtype`.
            embeddings: words that prompts may hold besides the tokenizer's.
            adapters: of `open_adapters`; added to the transformers' weights, in this order.
            adapter_folder: of those that requests may name; see `wan_tpu.adapters.library`.
            compile_for: a request whose programs are compiled while the weights load.

        Raises:
            InputError: a layout or name that does not fit, or a folder that is not there.
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
            quantize=quantize,
        )
        # What is wrong with them is said before anything compiles.
        parts, added = checked_parts(model, adapters=adapters)
        tokenizer = load_words(model, embeddings)
        with reporting_memory("loading the model", model):
            pipeline = cls(model, tokenizer, load_vae_of(model, vae), adapter_folder)
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
            f"VAE {self._executor.vae.name}, {model.dtype}"
            f"{f' and {model.quantize}' if model.quantize else ''}, "
            f"{devices.size} x {devices.flat[0].device_kind}"
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
            CheckpointError: the file of an adapter is damaged.
            MismatchError: it is another one in another process.
            Cancelled: `should_cancel` said so.
            BadNumbersError: the model gave NaN or infinite numbers; in all processes alike.
            OutOfMemoryError: this size and length does not fit; says what would.
        """
        check_prompt(request.prompt)
        run = self._plan(request, Watch(on_progress, should_cancel), media)
        chunks, executor = [], self._executor
        with self._executor.reporting_memory(run):
            encoded, made = executor.make_latents(run)
            for frames in executor.decode(run, run.way.finish(made.latents, encoded)):
                if keep_frames:
                    chunks.append(np.asarray(frames))
                if on_frames is not None:
                    on_frames(np.asarray(frames))
        nothing = np.empty((0, run.geometry.height, run.geometry.width, 3), np.uint8)
        return VideoResult(
            frames=np.concatenate(chunks) if chunks else nothing,
            metadata=metadata_of(run, executor.vae.name, self.adapters, made.computed),
        )

    def make_together(self, requests: Sequence[VideoRequest], calls: Calls) -> None:
        """Makes several videos in one denoising run, each as if it were made alone.

        What becomes of each, `calls.on_end` is told as soon as it is known: one that is cancelled,
        or whose numbers go bad, ends alone.

        Args:
            requests: alike in all but prompt, negative prompt and seed; without pictures.
            calls: whom to tell, and to ask.

        Raises:
            InputError: they cannot be made together; nothing was compiled.
            OutOfMemoryError: a batch of this size and length does not fit.
        """
        together = self._together(requests, calls)
        with self._executor.reporting_memory(together.first):
            together.make()

    def warm_up_together(
        self,
        request: VideoRequest,
        count: int,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Compiles every program that so many requests like this one run together, for good.

        Raises:
            InputError: such requests cannot be made together.
            OutOfMemoryError: a batch of this size and length does not fit.
        """
        stages = self._together([request] * count, Calls()).stages()
        self._executor.programs.prepare(sorted(stages, key=compile_order))
        run = self._plan(request, Watch(on_progress))
        with self._executor.reporting_memory(run):
            for stage in stages:
                self._executor.program(run, stage)

    def step_seconds(
        self,
        request: VideoRequest,
        count: int,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ) -> float:
        """Makes so many videos like this one but for their frames, to measure it.

        Args:
            request: like those that will be made; its steps are averaged.
            count: of them; one is made as a request alone is.
            on_progress: called at every step.
            should_cancel: asked between steps; true ends it.

        Returns:
            Seconds that a denoising step takes, of all of them at once.

        Raises:
            Cancelled: `should_cancel` said so.
            InputError, OutOfMemoryError: as of `warm_up_together`.
        """
        watch, executor = Watch(on_progress, should_cancel), self._executor
        run = self._plan(request, watch)
        with self._executor.reporting_memory(run):
            if count > 1:
                executor.add_adapters(run)
                calls = Calls(
                    on_progress=lambda _, progress: watch.note(progress),
                    cancelled=lambda: range(count) if watch.is_stopped() else (),
                )
                seconds = self._together([request] * count, calls).denoise_seconds()
                return seconds / len(run.steps)
            executor.make_latents(run)
            return watch.seconds["denoise"] / len(run.steps)

    def _together(self, requests: Sequence[VideoRequest], calls: Calls) -> Together:
        for request in requests:
            check_prompt(request.prompt)
        runs = [self._plan(request, Watch(), NO_MEDIA) for request in requests]
        # Of one set for all: a file could have changed between two of them.
        runs = [dataclasses.replace(run, adapters=runs[0].adapters) for run in runs]
        return Together(self._executor, runs, calls, self.adapters)

    def intermediate(
        self, request: VideoRequest, *, media: Media = NO_MEDIA
    ) -> dict[str, np.ndarray]:
        """What each part makes of a request, for comparing layouts.

        Returns:
            velocity: of the transformer alone at the first step, `[batch, latent frames, latent
            height, latent width, channels]`; latents: after the whole run, `[1, ...]`; frames:
            as `VideoResult.frames`.
        """
        run, executor = self._plan(request, Watch(), media), self._executor
        executor.add_adapters(run)
        encoded = executor.encode_pictures(run)
        contexts = executor.encode_text(run, executor.encode_images(run))
        conditions, start = executor.conditions(run, encoded), executor.start(run, encoded)
        velocity = executor.velocity(run, contexts, conditions, start)
        made = executor.denoise(run, contexts, conditions, start).latents
        latents = run.way.finish(made, encoded)
        frames = np.concatenate(list(executor.decode(run, latents)))
        return {"velocity": velocity, "latents": latents, "frames": frames}

    def step_ratios(
        self,
        request: VideoRequest,
        *,
        media: Media = NO_MEDIA,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """How what the transformer's blocks add grows from step to step, for MagCache.

        Nothing is decoded. Arguments and errors as of `__call__`; returns `[steps, 2]`, float32, as
        `WithRatios.ratios`: without guidance both columns are equal.
        """
        planned = self._plan(request, Watch(on_progress, should_cancel), media)
        run = dataclasses.replace(planned, keeps=Keeps.RATIOS)
        with self._executor.reporting_memory(run):
            ratios = self._executor.make_latents(run)[1].ratios
        assert ratios is not None
        return ratios

    def warm_up(
        self, request: VideoRequest, *, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Compiles every program that a request like this one runs; they are kept for good."""
        self.prepare(request)
        run = self._plan(request, Watch(on_progress))
        with self._executor.reporting_memory(run):
            for stage in run.stages(self._executor.vae):
                self._executor.program(run, stage)

    def prepare(self, request: VideoRequest) -> None:
        """Begins to compile what a request like this one runs, in the background."""
        stages = self._plan(request, Watch()).stages(self._executor.vae)
        self._executor.programs.prepare(sorted(stages, key=compile_order))

    def _plan(self, request: VideoRequest, watch: Watch, media: Media | None = None) -> Run:
        """Decides everything about a request.

        Args:
            request: what to make.
            watch: of the run.
            media: the pictures and clips that it names; None to plan a run that is not made.

        Raises:
            InputError: the request cannot be carried out.
        """
        one_branch, vae = self._executor.one_branch, self._executor.vae
        words = self._executor.tokenizer.words
        run = plan_run(request, self.model, one_branch, watch, media or NO_MEDIA, words)
        loaded = self.adapters
        adapters = self._chooser.choose(run.request, run.preset, loaded, alike=media is not None)
        run = dataclasses.replace(run, adapters=adapters)
        if run.preset is not None:
            added = (*loaded, *(() if adapters is None else adapters.described))
            given = {component for each in added for component in each["components"]}
            run.preset.check_adapters(
                given, run.model.description.kind, self.model.description.name
            )
        if media is not None:
            media.only(run.request.media)  # says which did not come
        if run.way.num_frames(run.geometry) and not vae.encodes:
            raise InputError(
                f"the VAE {vae.name} only decodes, and pictures have to be encoded; load the "
                f"model with the VAE {' or '.join(VAES_THAT_ENCODE)}"
            )
        return run
