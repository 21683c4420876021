"""Videos of what has been trained, beside those of the base: same prompts, same noise.

Between two samplings the pipeline holds what every one uses, the text encoder and the decoder, and
its programs. The transformers are put together of the training's own arrays when videos are made
and let go afterwards: of a LoRA a second copy of the linears that it changes, of all weights a copy
in the dtype that is computed in, of a new word nothing. A transformer that is not trained is read
from the model's files each time.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from wan_tpu.checkpoints.weights import load_parts
from wan_tpu.family import TEXT_ENCODER
from wan_tpu.pipeline.load import checked_parts, load_vae_of, load_words, on_one_branch
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.video_file import VideoWriter
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.pipeline.whole_file import reporting, write_json_atomically
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.one_branch import seen_on
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.torch_bridge import Params
from wan_tpu.training.trainer import Trainer
from wan_tpu.vae.weights import DECODER

BASE = "base"
"""The folder of the videos of the model as it was."""

REQUESTS = "requests.json"
"""Beside the videos, once all of them are there: what each was asked for."""

Learnt = Mapping[str, Params]
"""What is trained, by the state's name."""


def folder_of_step(step: int) -> str:
    """Where the videos of a step lie: `step-000200`."""
    return f"step-{step:06}"


def file_of(number: int) -> str:
    """The video of a prompt, counted from 0: `01.mp4`."""
    return f"{number + 1:02}.mp4"


class Sampler:
    """Makes videos of a run's states on the run's own devices; in several processes alike.

    Attributes:
        requests: for each a video.
    """

    def __init__(
        self,
        trainer: Trainer,
        requests: Sequence[VideoRequest],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ):
        """Loads what all samplings share; compiles nothing.

        Args:
            trainer: after `load` or `load_frozen`.
            requests: complete.
            on_progress: told how far a video is, and what compiles.
            should_cancel: asked between denoising steps, in all processes with the same answer.

        Raises:
            CheckpointError: files are missing, damaged or not those of the model.
            OutOfMemoryError: it does not fit beside the training.
        """
        self.requests = list(requests)
        self._trainer = trainer
        self._on_progress, self._should_cancel = on_progress, should_cancel
        self._model = model_for_samples(trainer.model)
        self._pipeline = VideoPipeline(
            self._model, load_words(self._model), load_vae_of(self._model, "flax", (DECODER,))
        )
        self._shared: Mapping[str, Params] = {TEXT_ENCODER: self._component(TEXT_ENCODER)}
        self._pipeline.set_weights(self._shared)

    def base(self, folder: Path) -> list[Path]:
        """Videos of the model as it was; a new word's vectors as they begin. See `trained`."""
        trained, word = self._trainer.step.trained, None
        if self._trainer.config.train.trains == "embedding":
            (begun,) = self._trainer.begin().values()
            word = trained.word(begun)
        experts = self._model.description.kind.experts
        params = {expert: self._component(expert) for expert in experts}
        return self._make(params, word, folder)

    def trained(self, learnt: Learnt, folder: Path) -> list[Path]:
        """Videos of what has been trained.

        Args:
            learnt: parameters or their averages; they are as they were afterwards.
            folder: where process 0 writes; made where it is not there.

        Returns:
            The files, in the order of the requests.

        Raises:
            Cancelled: `should_cancel` said so; videos that are whole stay.
            OutOfMemoryError: a second transformer does not fit, or the video.
            BadNumbersError: the model gave NaN or infinite numbers.
            OutputError: a file cannot be written.
        """
        of_step, params, word = self._trainer.step.trained, {}, None
        for expert in self._model.description.kind.experts:
            if expert in self._trainer.experts:
                state = learnt[of_step.state_name(expert)]
                merged = of_step.merged(self._trainer.frozen(expert), state)
                params[expert] = self._placed(expert, merged)
                word = of_step.word(state)
            else:
                params[expert] = self._component(expert)
        return self._make(params, word, folder)

    def has(self, folder: Path) -> bool:
        """Whether the videos of these requests, all of them, are there already."""
        try:
            told = json.loads((folder / REQUESTS).read_bytes())
        except (OSError, ValueError):
            return False
        return told == self._told() and all((folder / name).is_file() for name in told)

    def _make(
        self, params: Mapping[str, Params], word: Embedding | None, folder: Path
    ) -> list[Path]:
        self._pipeline.set_words(load_words(self._model, [] if word is None else [word]))
        self._pipeline.set_weights({**self._shared, **params})
        if not jax.process_index():
            with reporting(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / REQUESTS).unlink(missing_ok=True)
        try:
            paths = [
                self._video(request, folder / file_of(number))
                for number, request in enumerate(self.requests)
            ]
        finally:
            self._pipeline.set_weights(self._shared)  # the next step gives its memory away
        if not jax.process_index():
            write_json_atomically(folder / REQUESTS, self._told())
        return paths

    def _video(self, request: VideoRequest, path: Path) -> Path:
        make = functools.partial(
            self._pipeline,
            request,
            on_progress=self._on_progress,
            should_cancel=self._should_cancel,
            keep_frames=False,
        )
        if jax.process_index():
            make()
            return path
        assert request.fps is not None, "the request is complete"
        assert request.width is not None, "the request is complete"
        assert request.height is not None, "the request is complete"
        sizes = {"fps": request.fps, "width": request.width, "height": request.height}
        with VideoWriter(path, **sizes) as writer:
            make(on_frames=writer.write)
        return path

    def _told(self) -> dict[str, Any]:
        requests = {file_of(n): dataclasses.asdict(each) for n, each in enumerate(self.requests)}
        return json.loads(json.dumps(requests))  # as it is read again: a tuple is a list

    def _component(self, name: str) -> Params:
        """Parameters of the model as it was: the training's own where it has them, else read."""
        weights = self._model.components[name].weights
        frozen = self._trainer.frozen(name if name in self._trainer.experts else self._first)
        if (name == TEXT_ENCODER or name in self._trainer.experts) and weights.keys() <= (
            frozen.keys()
        ):
            return self._placed(name, frozen)
        parts, _ = checked_parts(self._model, [name])
        return load_parts(parts)[name]

    @property
    def _first(self) -> str:
        return self._trainer.experts[0]

    def _placed(self, name: str, params: Params) -> Params:
        """The same memory on the mesh of the samples; what is of other components is left out."""
        weights = self._model.components[name].weights
        return {weight: seen_on(params[weight], like.sharding) for weight, like in weights.items()}


def model_for_samples(model: VideoModel) -> VideoModel:
    """The model as its samples are made: guidance is a batch of two, whatever a training's is.

    More samples side by side than that become parts of the sequence, where that pads nothing else.
    """
    return on_one_branch(model) if model.layout.dp > 2 else model
