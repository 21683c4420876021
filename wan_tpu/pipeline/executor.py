"""Runs the stages of a run on the devices: what is kept of a model between requests."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from wan_tpu.checkpoints.weights import Weight
from wan_tpu.errors import BadNumbersError, OutOfMemoryError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER
from wan_tpu.image.preprocess import for_image_encoder
from wan_tpu.pipeline.denoise import StepCall
from wan_tpu.pipeline.denoise import denoise as run_calls
from wan_tpu.pipeline.denoised import Denoised, denoised
from wan_tpu.pipeline.latents import fresh_noises, make_noise, place_padded, to_tokens
from wan_tpu.pipeline.load import on_one_branch
from wan_tpu.pipeline.memory import reporting_memory
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.programs import Program, Programs
from wan_tpu.pipeline.resident import ResidentWeights
from wan_tpu.pipeline.run import Run
from wan_tpu.pipeline.step_plan import programs_of
from wan_tpu.sharding.mesh import named, place
from wan_tpu.sharding.one_branch import seen_on
from wan_tpu.stage import Stage
from wan_tpu.text.new_words import WordTokenizer
from wan_tpu.text.prompt import tokenize
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.conditions import Condition
from wan_tpu.transformer.processors import Context
from wan_tpu.vae.backends import VaeBackend


class Executor:
    """The stages of runs, in the order in which `VideoPipeline` calls them.

    Attributes:
        model: what runs: components, mesh, layout, attention.
        one_branch: the same on the mesh for runs without guidance.
        tokenizer: of the prompts.
        vae: encodes pictures and decodes latents; it has its own weights.
        programs: compiled stages.
        weights: on the devices.
    """

    def __init__(self, model: VideoModel, tokenizer: WordTokenizer, vae: VaeBackend):
        """A model without its weights; `set_weights` brings them."""
        self.model = model
        self.one_branch = on_one_branch(model)
        self.tokenizer = tokenizer
        self.vae = vae
        self.programs = Programs()
        self.weights = ResidentWeights(model, self.one_branch)

    def set_weights(self, params: Mapping[str, Params]) -> None:
        """Takes the weights of the components in place of all that it had; programs stay.

        The mesh of one branch sees the same memory. The autoencoder's are its back end's.

        Args:
            params: by component; those that no request uses until the next call may be left out.
        """
        self.weights.set_base(params)

    def add_adapters(self, run: Run) -> None:
        """Makes the weights with the adapters of a run, unless the last ones were made with them.

        Raises:
            CheckpointError: a file is damaged or has changed.
            MismatchError: so it has in another process.
        """
        if run.adapters is None or self.weights.has(run.adapters):
            return
        with run.watch.stage("adapters", 1) as report:
            self.weights.add(run.adapters, lambda stage: self.program(run, stage))
            report(1)

    @contextlib.contextmanager
    def reporting_memory(self, run: Run) -> Iterator[None]:
        """Says in one sentence what a run needed; the weights with adapters are given back then.

        Raises:
            OutOfMemoryError: see `wan_tpu.pipeline.memory.reporting_memory`.
        """
        geometry = run.geometry
        what = f"{geometry.width}x{geometry.height}, {geometry.num_frames} frames"
        if run.adapters is not None:
            what += " with adapters, whose weights lie beside the base's,"
        try:
            with reporting_memory(what, run.model, geometry):
                yield
        except OutOfMemoryError as error:
            # So that a request without adapters has its room.
            if self.weights.drop() and run.adapters is None:
                raise OutOfMemoryError(
                    f"{error}; the weights that an earlier request's adapters made took some of it "
                    "and are gone now, so that it may do to ask again"
                ) from error
            raise

    def encode_pictures(self, run: Run) -> np.ndarray | None:
        """Latents `[1, frames, height, width, channels]` of what the run makes of its pictures."""
        num_frames = run.way.num_frames(run.geometry)
        if num_frames == 0:
            return None
        programs = [self.program(run, stage) for stage in run.encode_stages(self.vae)]
        with run.watch.stage("encode", num_frames) as report:
            video = run.way.video(run.pictures, run.geometry)
            mean = self.vae.moments(video, programs).mean
            report(num_frames)
        return self.model.vae.normalise(mean)

    def encode_images(self, run: Run) -> jax.Array | None:
        """Image tokens `[1, pictures * tokens, width]`; None where the model reads none."""
        if not run.num_encoder_pictures:
            return None
        encode = self.program(run, self.model.image_stage(run.num_encoder_pictures))
        with run.watch.stage("image", run.num_encoder_pictures) as report:
            size = self.model.image_encoder.config.image_size
            wholes = (picture.whole for picture in run.pictures.values())
            pixels = [for_image_encoder(whole, size) for whole in wholes if whole is not None]
            placed = place(np.stack(pixels), named(self.model.mesh))
            tokens, is_finite = encode(self.weights.base[IMAGE_ENCODER], placed)
            if not np.asarray(is_finite):  # the same in all processes
                raise BadNumbersError("image, the picture's tokens")
            report(run.num_encoder_pictures)
        return seen_on(tokens, named(run.model.mesh))

    def encode_text(self, run: Run, image: jax.Array | None) -> dict[tuple[str, int], Context]:
        """Cross-attention's keys and values of the prompts and the image tokens, by component and
        batch of the steps."""
        prompts = run.request.prompts[: run.batch]
        ids, mask = tokenize(self.tokenizer, prompts)
        if len(prompts) == 2 and np.array_equal(ids[0], ids[1]):
            ids, mask = ids[:1], mask[:1]  # equal prompts are encoded once
        encode = self.program(run, run.text_stage(len(ids)))
        weights = run.model.denoiser.context_weights()
        programs = {
            batch: self.program(run, run.context_stage(len(ids), batch)) for batch in run.batches
        }
        with run.watch.stage("text", len(ids)) as report:
            embeddings, is_finite = self.embed(encode, ids, mask)
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

    def embed(
        self, encode: Program, ids: np.ndarray, mask: np.ndarray
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings `[prompts, 512, text_dim]` of tokenized prompts, and whether all are finite.

        Args:
            encode: the program of so many prompts.
            ids: as `wan_tpu.text.prompt.tokenize` has them. mask: likewise.
        """
        whole = named(self.model.mesh)
        tokens = (place(x, whole) for x in self.tokenizer.inputs(ids, mask))
        return encode(self.weights.base[TEXT_ENCODER], *tokens)

    def conditions(self, run: Run, encoded: np.ndarray | None) -> dict[str, Condition | None]:
        """What pictures add at every step, by component."""
        tokens = run.way.tokens(encoded, run.geometry)
        if tokens is None:
            return dict.fromkeys(run.components)
        stage = run.model.condition_stage(run.geometry, run.way.in_steps)
        make = self.program(run, stage)
        weights, target = stage.arguments
        placed = place_padded(tokens, target)
        return {
            component: make(_named(self._params_on(run, component), weights), placed)
            for component in run.components
        }

    def start(self, run: Run, encoded: np.ndarray | None) -> jax.Array:
        """What the first step begins with, in token form on the mesh; padding tokens are zero."""
        noise = make_noise(run.request.seed, run.geometry, self.model.vae.z_dim)
        tokens = to_tokens(run.way.start(noise, encoded, run.schedule), run.geometry)
        return place_padded(tokens, run.model.abstract_tokens(run.geometry))

    def velocity(
        self,
        run: Run,
        contexts: Mapping[tuple[str, int], Context],
        conditions: Mapping[str, Condition | None],
        start: jax.Array,
    ) -> np.ndarray:
        """What the transformer alone predicts at the first step, `[batch, frames, height, width,
        channels]`."""
        first = run.steps[0]
        predict = self.program(run, run.velocity_stage(first.batch))
        velocity = predict(
            self._step_params(run, first.component),
            contexts[first.component, first.batch],
            start,
            place(np.asarray(run.schedule.timesteps[0], np.float32), named(run.model.mesh)),
            conditions[first.component],
        )
        return np.asarray(velocity)

    def make_latents(self, run: Run) -> tuple[np.ndarray | None, Denoised]:
        """Everything up to the last step: its pictures encoded, and what the steps end with."""
        self.add_adapters(run)
        encoded = self.encode_pictures(run)
        contexts = self.encode_text(run, self.encode_images(run))
        conditions = self.conditions(run, encoded)
        return encoded, self.denoise(run, contexts, conditions, self.start(run, encoded))

    def denoise(
        self,
        run: Run,
        contexts: Mapping[tuple[str, int], Context],
        conditions: Mapping[str, Condition | None],
        start: jax.Array,
    ) -> Denoised:
        """Runs every step."""
        model, geometry, schedule = run.model, run.geometry, run.schedule
        begin = self.program(run, run.start_stage())
        programs = {
            program: self.program(run, run.step_stage(*program))
            for program in programs_of(run.steps)
        }
        params = {component: self._step_params(run, component) for component in run.components}
        noises: Sequence[jax.Array | None] = [None] * len(run.steps)
        if schedule.renoises:
            noises = fresh_noises(
                run.request.seed, geometry, len(run.steps), model.abstract_tokens(geometry)
            )
        calls = [
            StepCall(
                program=programs[step.program],
                params=params[step.component],
                context=contexts[step.component, step.batch],
                numbers=run.numbers(index),
                condition=conditions[step.component],
                noise=noises[index],
            )
            for index, step in enumerate(run.steps)
        ]
        state = run_calls(calls, begin(start), mesh=model.mesh, watch=run.watch)
        return denoised(run, state, self.program(run, model.latents_stage(geometry)))

    def decode(self, run: Run, latents: np.ndarray) -> Iterator[jax.Array]:
        """Frames in order, `[n, height, width, 3]`, uint8, while later ones decode."""
        programs = [self.program(run, stage) for stage in run.decode_stages(self.vae)]
        with run.watch.stage("decode", run.geometry.num_frames) as report:
            done = 0
            for frames in self.vae.frames(latents, programs):
                done += len(frames)
                yield frames
                report(done)

    def program(self, run: Run, stage: Stage) -> Program:
        """The compiled stage, compiled on first use."""
        return self.programs.get(stage, run.watch)

    def params_seen_on(
        self, run: Run, component: str, weights: Iterable[Weight]
    ) -> dict[str, jax.Array]:
        """Some parameters of a component, with a run's adapters, on another mesh of the devices.

        Args:
            run: its model is one of `wan_tpu.pipeline.load.for_batch`.
            component: whose.
            weights: which.
        """
        lie = run.model.components[component].weights
        names = [weight.name for weight in weights]
        params = self.weights.of(component, run.adapters, on_one_branch=False)
        return {name: seen_on(params[name], lie[name].sharding) for name in names}

    def _params_on(self, run: Run, component: str) -> Params:
        """A component's parameters on the mesh of a run, with its adapters."""
        on_one_branch = run.model is not self.model
        return self.weights.of(component, run.adapters, on_one_branch=on_one_branch)

    def _step_params(self, run: Run, component: str) -> Params:
        return _subset(self._params_on(run, component), run.model.denoiser.step_weights())


def _subset(params: Params, weights: list[Weight]) -> dict[str, jax.Array]:
    return _named(params, [weight.name for weight in weights])


def _named(params: Params, names: Iterable[str]) -> dict[str, jax.Array]:
    return {name: params[name] for name in names}
