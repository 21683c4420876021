"""A model, what of it is trained, and the step: from a configuration to values that run.

The run (`run.py`) adds files, checkpoints and signals; the planner compiles the very same stages
for a slice that is not there.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from wan_tpu.attention.names import ATTENTION_LOGSUMEXP, ATTENTION_OUT
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.sample import Batch
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.programs import Programs
from wan_tpu.pipeline.progress import Watch
from wan_tpu.sharding.mesh import named, place
from wan_tpu.torch_bridge import Params
from wan_tpu.torch_module import Remat
from wan_tpu.training.config import ALL_LINEARS, OptimiserConfig, TrainingConfig
from wan_tpu.training.new_vectors import NewVectors
from wan_tpu.training.objective import SigmaRange, share_below
from wan_tpu.training.optimiser import Optimiser, TrainState
from wan_tpu.training.placed_batch import BatchShape
from wan_tpu.training.step import Inputs, Metrics, TrainingStep
from wan_tpu.training.trained import AllWeights, LowRank, Trained
from wan_tpu.transformer.denoiser import BLOCK_INPUT, Denoiser
from wan_tpu.transformer.lora import LoraShape

States = dict[str, TrainState]
"""By the transformer's name; what both train has one of its own (`Trained.state_name`)."""


class Trainer:
    """A run's model and step; the states are the caller's, and every call gives new ones.

    Attributes:
        config: of the run.
        model: on its mesh.
        experts: names of the transformers that are trained.
        step: what a step is.
    """

    def __init__(self, config: TrainingConfig, model: VideoModel):
        """A model that is trained as the configuration says; no weights are read.

        Raises:
            InputError: what the configuration says does not fit the model or the layout, or the
                model's weights are whole numbers, which no gradient moves.
        """
        if model.quantize is not None:
            raise InputError(
                f"{model.description.name} is quantised to {model.quantize}, and weights of whole "
                "numbers cannot be trained; place it without"
            )
        self.config, self.model = config, model
        self.experts = trained_experts(config, model.description)
        denoiser = trained_denoiser(config, model)
        trained = make_trained(config, model, denoiser)
        kind = model.description.kind
        self.step = TrainingStep(
            config=config,
            denoiser=denoiser,
            trained=trained,
            optimiser=Optimiser(optimiser_config(config), trained.weights(), config.train.steps),
            shape=BatchShape(
                model=model,
                denoiser=denoiser,
                batch=config.train.batch,
                parts=config.train.accumulate,
                num_pictures=min(len(roles) for roles in kind.inputs)
                if kind.has_image_encoder
                else 0,
                has_tokens=config.train.trains == "embedding",
            ),
            conditioning=kind.conditioning,
        )
        self._programs = Programs()
        # Its abstract arguments are found by tracing the optimiser: once, not at every step.
        self._stage = functools.cache(self.step.stage)
        self._frozen: Mapping[str, Params] = {}

    def load(self) -> States:
        """Reads the model's transformers: what is only used is kept, what is trained begins.

        Raises:
            CheckpointError: files are missing, damaged or not those of the model.
        """
        self.load_frozen()
        return {name: self._started(trained) for name, trained in self.begin().items()}

    def begin(self) -> Mapping[str, Params]:
        """What is trained as it is before the first step, by the state's name; frozen is loaded.

        Raises:
            CheckpointError: files are missing, damaged or not those of the model.
        """
        return self.step.trained.begin(
            self.model.description,
            self.experts,
            self.model.mesh,
            self.config.train.seed,
            self._frozen,
        )

    def load_frozen(self) -> None:
        """Reads what is only used, for states that a checkpoint has.

        Raises:
            CheckpointError: files are missing, damaged or not those of the model.
        """
        self._frozen = self.step.trained.load_frozen(
            self.model.description, self.experts, self.model.mesh
        )

    def frozen(self, expert: str) -> Params:
        """What a transformer's steps only use; after `load`."""
        return self._frozen[expert]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Of the states: a transformer's name, where each has its own."""
        names = map(self.step.trained.state_name, self.experts)
        return tuple(dict.fromkeys(names))

    def _started(self, trained: Params) -> TrainState:
        abstract = self.step.abstract_state()
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        start = jax.jit(self.step.optimiser.start, out_shardings=shardings, donate_argnums=0)
        return start(dict(trained))

    def expert_of(self, step: int) -> str:
        """The transformer that a step trains, by its number: each as often as its noise levels.

        Evenly spread: a model with a share of 0.3 gets every third or fourth step.
        """
        if len(self.experts) == 1:
            return self.experts[0]
        share = self._share_of_first()
        is_first = np.floor((step + 1) * share) > np.floor(step * share)
        return self.experts[0 if is_first else 1]

    def _share_of_first(self) -> float:
        """Of all draws those that are the first expert's."""
        flow = self.config.flow
        ends = (flow.min_sigma, self._boundary(), flow.max_sigma)
        low, boundary, high = (float(share_below(jnp.float32(x), flow)) for x in ends)
        return (high - boundary) / (high - low)

    def _boundary(self) -> float:
        ratio = self.model.description.kind.boundary_ratio
        assert ratio is not None
        return ratio

    def sigmas_of(self, expert: str) -> tuple[float, float]:
        """The noise levels that a transformer is trained at: what it is asked for in use.

        Raises:
            InputError: the configured range has none of them.
        """
        flow, kind = self.config.flow, self.model.description.kind
        low, high = flow.min_sigma, flow.max_sigma
        if kind.boundary_ratio is not None:
            is_first = expert == kind.experts[0]
            low = max(low, kind.boundary_ratio) if is_first else low
            high = high if is_first else min(high, kind.boundary_ratio)
        if low >= high:
            raise InputError(
                f"flow.min_sigma {flow.min_sigma} to flow.max_sigma {flow.max_sigma} leaves "
                f"nothing for {expert}, whose noise levels end at {kind.boundary_ratio}"
            )
        return low, high

    def compile(self, geometry: Geometry, watch: Watch) -> None:
        """The program of steps on samples of a size, where it has not been used yet.

        Apart from `run`, so that processes can wait for each other between the two: inside a
        program they wait only so long.

        Args:
            geometry: of the samples.
            watch: told when a program is compiled: at the first step, and at the first of a size.
        """
        self._programs.get(self._stage(geometry), watch)

    def run(
        self, states: States, batch: Batch, step: int, empty_text: np.ndarray
    ) -> tuple[States, Metrics]:
        """One step.

        Args:
            states: before it; their memory is used for the new ones.
            batch: its samples.
            step: its number in the run, from 0.
            empty_text: embeddings of the empty caption, `[512, text_dim]`.

        Returns:
            the new states, and what the step says of itself, on the devices.
        """
        expert = self.expert_of(step)
        name = self.step.trained.state_name(expert)
        program = self._programs.get(self._stage(batch.geometry), Watch())
        inputs = self.inputs(expert, batch, step, empty_text)
        state, metrics = program(states[name], inputs)
        return {**states, name: state}, metrics

    def inputs(
        self,
        expert: str,
        batch: Batch,
        step: int,
        empty_text: np.ndarray,
        shape: BatchShape | None = None,
    ) -> Inputs:
        """What a step takes, on the devices; of batches of another shape where one is given."""
        whole, tokens = named(self.model.mesh), self.step.trained.tokens(batch.captions)
        low, high = (place(np.float32(x), whole) for x in self.sigmas_of(expert))
        return Inputs(
            frozen=dict(self._frozen[expert]),
            empty_text=place(np.asarray(empty_text, self.model.dtype), whole),
            batch=(shape or self.step.shape).place(batch, tokens),
            step=place(np.int32(step), whole),
            sigmas=SigmaRange(low, high),
        )


def optimiser_config(config: TrainingConfig) -> OptimiserConfig:
    """The rule of a run: a word's vectors are not decayed, they have no zero to be near to."""
    decay = 0.0 if config.train.trains == "embedding" else config.optimiser.weight_decay
    return dataclasses.replace(config.optimiser, weight_decay=decay)


def trained_experts(config: TrainingConfig, description: ModelDescription) -> tuple[str, ...]:
    """Names of the transformers that a run trains.

    Raises:
        InputError: one is named and the model has one only, or none is and it has two.
    """
    experts, named_expert = description.kind.experts, config.model.expert
    if len(experts) == 1:
        if named_expert is not None:
            raise InputError(
                f"model.expert is {named_expert!r} and {description.name} has one transformer; "
                "leave it out"
            )
        return experts
    if named_expert is None:
        raise InputError(
            f"{description.name} has two transformers: set model.expert to high, low or both"
        )
    return {"high": experts[:1], "low": experts[1:], "both": experts}[named_expert]


def trained_denoiser(config: TrainingConfig, model: VideoModel) -> Denoiser:
    """The transformer with what is trained beside it and what its backward pass finds kept.

    Raises:
        InputError: a target that the model does not have.
    """
    lora = None
    if config.train.trains == "lora":
        lora = LoraShape(rank=config.lora.rank, targets=_targets(config, model.denoiser))
    remat = config.machine.remat
    return dataclasses.replace(
        model.denoiser,
        lora=lora,
        remat=policy_of(remat),
        gathers_ahead=False,
        # Of few keys: as large as self-attention's, and quickly made.
        recompute_cross=remat == "attention",
    )


def _targets(config: TrainingConfig, denoiser: Denoiser) -> tuple[str, ...]:
    """The linears that get a LoRA: those that are named, else all that the model has."""
    names = {
        w.name.split(".*.")[1].removesuffix(".weight") for w in denoiser.weights() if w.stacked
    }
    has = tuple(name for name in ALL_LINEARS if name in names)
    for target in config.lora.targets:
        if target not in has:
            raise UnknownNameError("target of this model", target, has)
    return config.lora.targets or has


def policy_of(remat: str) -> Remat | None:
    """The policy of `jax.checkpoint` by its name in a configuration; None keeps everything."""
    policies = jax.checkpoint_policies
    return {
        "none": None,
        "full": policies.nothing_saveable,
        "attention": policies.save_only_these_names(ATTENTION_OUT, ATTENTION_LOGSUMEXP),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]


def make_trained(config: TrainingConfig, model: VideoModel, denoiser: Denoiser) -> Trained:
    """What a run trains.

    Args:
        config: of the run.
        model: on its mesh.
        denoiser: of `trained_denoiser`.

    Raises:
        InputError: the new word of an embedding cannot be one.
    """
    if config.train.trains == "embedding":
        return NewVectors(config.embedding, denoiser, model.text_encoder, model.description)
    if config.train.trains == "full":
        return AllWeights(denoiser=denoiser, master=config.optimiser.master)
    return LowRank(denoiser=denoiser, scale=config.lora.scale, dropout=config.lora.dropout)
