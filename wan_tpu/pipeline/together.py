"""Several requests in one denoising run: a batch of videos, each by itself for whoever asked.

What is alike is done at once: the steps. A prompt's embeddings and a video's frames are made one
after the other, by the programs that a single request runs. The members of the batch do not touch
each other: one that is cancelled, or whose numbers go bad, ends alone, and the others go on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wan_tpu.errors import BadNumbersError, Cancelled
from wan_tpu.pipeline.alike import check_alike, samples_for
from wan_tpu.pipeline.denoise import pack_numbers
from wan_tpu.pipeline.executor import Executor
from wan_tpu.pipeline.latents import make_noises, place_padded, to_tokens
from wan_tpu.pipeline.load import for_batch
from wan_tpu.pipeline.progress import Calls, Outcome, Progress, Watch
from wan_tpu.pipeline.run import Run, metadata_of
from wan_tpu.pipeline.together_stages import TogetherStages
from wan_tpu.sharding.mesh import named, place
from wan_tpu.sharding.one_branch import seen_on
from wan_tpu.stage import Stage
from wan_tpu.text.prompt import tokenize


class Together:
    """Requests that are made together; `make` does it, once."""

    def __init__(
        self,
        executor: Executor,
        runs: Sequence[Run],
        calls: Calls,
        adapters: Sequence[Mapping[str, Any]] = (),
    ):
        """Decides everything; nothing is compiled.

        Args:
            executor: of the pipeline.
            runs: one for each request, planned; their watches are not used.
            calls: who is told.
            adapters: that were added to the model's weights, for the metadata.

        Raises:
            InputError: they are too many, not alike, or cannot be made together.
        """
        first = runs[0]
        check_alike([run.request for run in runs])
        self._executor = executor
        self._calls = calls
        self._adapters = adapters
        samples = samples_for(len(runs))
        self.model = for_batch(executor.model, samples * first.batch)
        self._stages = TogetherStages(self.model, first.geometry, first.schedule, samples)
        self._open = set(range(len(runs)))
        self._watch = Watch(self._note, self._all_stopped)
        self._runs = [
            dataclasses.replace(run, model=self.model, watch=self._watch_of(member))
            for member, run in enumerate(runs)
        ]

    @property
    def first(self) -> Run:
        """The run of the first request: in all but prompts and seed that of the others, too."""
        return self._runs[0]

    def stages(self) -> list[Stage]:
        """Every program that it runs and a single request does not."""
        first, stages = self.first, self._stages
        return [
            *(stages.context(batch, first.batch) for batch in first.batches),
            stages.start(),
            *(stages.step(batch) for batch in first.batches),
            stages.latents(),
        ]

    def make(self) -> None:
        """Makes all videos that nobody cancels; what becomes of each, `on_end` is told.

        Raises:
            Exception: what ends all of them, such as memory that runs out; those that had not
                ended by then have no outcome.
        """
        try:
            latents = self._latents()
        except Cancelled:
            return  # all of them, and they know
        for member, run in enumerate(self._runs):
            if member in self._open:
                self._end(member, self._decode(member, run, latents[member : member + 1]))

    def denoise_seconds(self) -> float:
        """Makes all but the frames; returns how long the steps took, compiling left out."""
        self._latents()
        return self._watch.seconds["denoise"]

    def _latents(self) -> np.ndarray:
        """Of all samples; see `_denoise`."""
        self._executor.add_adapters(dataclasses.replace(self.first, watch=self._watch))
        return self._denoise(self._texts())

    def _texts(self) -> list[jax.Array]:
        """Embeddings of each member's prompts, `[prompts, 512, text_dim]`."""
        executor, first = self._executor, self.first
        encode = self._program(first.text_stage(first.batch))
        texts = []
        with self._watch.stage("text", len(self._runs)) as report:
            for member, run in enumerate(self._runs):
                ids, mask = tokenize(executor.tokenizer, run.request.prompts[: run.batch])
                embeddings, is_finite = executor.embed(encode, ids, mask)
                texts.append(seen_on(embeddings, named(self.model.mesh)))
                if not np.asarray(is_finite):  # the same in all processes
                    self._end(member, BadNumbersError("text, the prompt's embeddings"))
                report(member + 1)
        return texts

    def _denoise(self, texts: list[jax.Array]) -> np.ndarray:
        """Latents `[samples, frames, height, width, channels]`; those of the ended are whatever."""
        executor, first, stages = self._executor, self.first, self._stages
        programs = {batch: self._program(stages.step(batch)) for batch in first.batches}
        begin, finish = self._program(stages.start()), self._program(stages.latents())
        contexts = {}
        filled = tuple(self._filled(texts))
        for component, batch in first.contexts:
            make = self._program(stages.context(batch, first.batch))
            weights = self.model.denoiser.context_weights()
            contexts[component, batch] = make(
                executor.params_seen_on(first, component, weights), filled
            )
        weights = self.model.denoiser.step_weights()
        params = {name: executor.params_seen_on(first, name, weights) for name in first.components}
        whole = named(self.model.mesh)
        numbers = [
            place(pack_numbers(first.schedule, index, step.guidance_scale), whole)
            for index, step in enumerate(first.steps)
        ]
        start, *fresh = self._noises()
        state = begin(start)
        jax.block_until_ready((contexts, state.sample))
        with self._watch.stage("denoise", len(first.steps)) as report:
            running: jax.Array | None = None
            for index, step in enumerate(first.steps):
                noise = fresh[index] if first.schedule.renoises else None
                state, are_finite = programs[step.batch](
                    params[step.component],
                    contexts[step.component, step.batch],
                    state,
                    numbers[index],
                    None,
                    noise,
                )
                if running is not None:
                    self._finish(index, running, report)
                running = are_finite
            if running is not None:
                self._finish(len(first.steps), running, report)
        return np.asarray(finish(state.sample))

    def _finish(self, step: int, are_finite: jax.Array, report: Callable[[int], None]) -> None:
        """Waits for a step; ends the members whose numbers went bad in it."""
        of = len(self.first.steps)
        for member, is_finite in enumerate(np.asarray(are_finite)[: len(self._runs)]):
            if not is_finite:  # the same in all processes
                self._end(member, BadNumbersError(f"denoise, step {step} of {of}"))
        report(step)
        if not self._open:
            raise Cancelled("none of them is wanted any more")

    def _noises(self) -> list[jax.Array]:
        """What the first step begins with, then what each step mixes in; of all samples."""
        first = self.first
        count = 1 + (len(first.steps) - 1 if first.schedule.renoises else 0)
        channels = self._executor.model.vae.z_dim
        draws = [
            make_noises(run.request.seed, first.geometry, channels, count) for run in self._runs
        ]
        starts = [first.way.start(noises[0], None, first.schedule) for noises in draws]
        rows = [starts, *([noises[i] for noises in draws] for i in range(1, count))]
        if first.schedule.renoises:
            rows.append([np.zeros_like(noise) for noise in starts])  # sigma 0 has no noise
        target = self._stages.abstract_tokens()
        return [
            place_padded(
                np.concatenate(self._filled([to_tokens(each, first.geometry) for each in row])),
                target,
            )
            for row in rows
        ]

    def _decode(self, member: int, run: Run, latents: np.ndarray) -> Outcome:
        on_frames = self._calls.on_frames
        try:
            for frames in self._executor.decode(run, run.way.finish(latents, None)):
                if on_frames is not None:
                    on_frames(member, np.asarray(frames))
        except (BadNumbersError, Cancelled) as error:
            return error
        run.watch.seconds.update(self._watch.seconds)
        computed = [True] * len(run.steps)  # runs with a step cache are made alone
        metadata = metadata_of(run, self._executor.vae.name, self._adapters, computed)
        return {**metadata, "made_together": len(self._runs)}

    def _end(self, member: int, outcome: Outcome) -> None:
        """Says what became of a member, if it has not ended yet."""
        if member in self._open:
            self._open.remove(member)
            self._calls.on_end(member, outcome)

    def _program(self, stage: Stage) -> Callable[..., Any]:
        return self._executor.programs.get(stage, self._watch)

    def _filled(self, each: list[Any]) -> list[Any]:
        """One for each sample: the members', and those once more that fill the batch up."""
        return [each[i % len(each)] for i in range(self._stages.samples)]

    def _watch_of(self, member: int) -> Watch:
        """Of what is done for one member alone."""

        def is_stopped() -> bool:
            self._end_cancelled()
            return member not in self._open

        return Watch(lambda progress: self._calls.on_progress((member,), progress), is_stopped)

    def _note(self, progress: Progress) -> None:
        self._calls.on_progress(sorted(self._open), progress)

    def _all_stopped(self) -> bool:
        self._end_cancelled()
        return not self._open

    def _end_cancelled(self) -> None:
        for member in sorted(self._calls.cancelled()):
            self._end(member, Cancelled("the generation was cancelled"))
