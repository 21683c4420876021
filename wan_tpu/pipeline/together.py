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
from wan_tpu.pipeline.denoise import StepCall, denoise
from wan_tpu.pipeline.executor import Executor
from wan_tpu.pipeline.latents import make_noise, mixed_in, place_padded, to_tokens
from wan_tpu.pipeline.load import for_batch
from wan_tpu.pipeline.progress import Calls, Outcome, Progress, Watch
from wan_tpu.pipeline.run import Run, metadata_of
from wan_tpu.pipeline.step_plan import StepProgram, programs_of
from wan_tpu.pipeline.together_stages import TogetherStages
from wan_tpu.sharding.mesh import named
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
            *map(self._step_stage, programs_of(first.steps)),
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
        programs = {
            program: self._program(self._step_stage(program))
            for program in programs_of(first.steps)
        }
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
        start, *fresh = self._noises()
        calls = [
            StepCall(
                program=programs[step.program],
                params=params[step.component],
                context=contexts[step.component, step.batch],
                numbers=first.numbers(index),
                noise=fresh[index] if first.schedule.renoises else None,
            )
            for index, step in enumerate(first.steps)
        ]
        state = begin(start)
        jax.block_until_ready((contexts, state.sample))
        mesh, watch = self.model.mesh, self._watch
        return np.asarray(
            finish(denoise(calls, state, mesh=mesh, watch=watch, check=self._check).sample)
        )

    def _check(self, are_finite: np.ndarray, where: str) -> None:
        """Ends the members whose numbers went bad in a step."""
        for member, is_finite in enumerate(are_finite[: len(self._runs)]):
            if not is_finite:  # the same in all processes
                self._end(member, BadNumbersError(where))
        if not self._open:
            raise Cancelled("none of them is wanted any more")

    def _noises(self) -> list[jax.Array]:
        """What the first step begins with, then what each step mixes in; of all samples."""
        first, channels = self.first, self._executor.model.vae.z_dim
        rows = []
        for run in self._runs:
            seed, schedule = run.request.seed, first.schedule
            start = first.way.start(make_noise(seed, first.geometry, channels), None, schedule)
            steps = len(first.steps)
            fresh = mixed_in(seed, first.geometry, channels, steps) if schedule.renoises else []
            rows.append([to_tokens(each, first.geometry) for each in (start, *fresh)])
        target = self._stages.abstract_tokens()
        return [
            place_padded(np.concatenate(self._filled(list(column))), target)
            for column in zip(*rows, strict=True)
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

    def _step_stage(self, program: StepProgram) -> Stage:
        """The stage of some of the steps; runs with a step cache are made alone."""
        assert not program.reuses
        return self._stages.step(program.batch, exact=program.exact)

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
