"""What decides a training run: one value per table of its TOML file. No JAX.

The same names are the file's keys, so nothing here is called otherwise there. What is wrong with a
value alone is said when it is made; what does not fit together, by `TrainingConfig`.
"""

import dataclasses

from wan_tpu.checkpoints.models import WAN_TINY
from wan_tpu.errors import InputError, UnknownNameError

TRAINS = ("lora", "full", "embedding")
SAMPLINGS = ("uniform", "logit-normal")
WEIGHTINGS = ("none", "bell", "linear")
EXPERTS = ("high", "low", "both")
SCHEDULES = ("constant", "cosine", "linear")
MASTERS = ("float32", "bfloat16")
REMATS = ("none", "full", "attention", "offload")
EMBEDDING_KINDS = ("input", "output")

ALL_LINEARS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "attn2.add_k_proj",
    "attn2.add_v_proj",
    "ffn.net.0.proj",
    "ffn.net.2",
)
"""Linears of a block by diffusers' names; those of image tokens only where a model has such."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(what)


def _require_name(kind: str, name: str | None, known: tuple[str, ...]) -> None:
    if name is not None and name not in known:
        raise UnknownNameError(kind, name, known)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """`[model]`: what is trained.

    Attributes:
        name: as `--model` takes it.
        variant: of the weights' files.
        expert: of a model with two transformers: `high`, `low` or `both`; None for one of one.
    """

    name: str = WAN_TINY
    variant: str | None = None
    expert: str | None = None

    def __post_init__(self) -> None:
        _require_name("expert", self.expert, EXPERTS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """`[data]`: what is learnt from.

    Attributes:
        path: a folder that `wan-tpu dataset prepare` made; or clips, which are then encoded first.
        caption_dropout: share of the samples whose caption is left out, for guidance.
        image_probability: share of the samples whose first latent frame is given, in models that
            take a picture so (TI2V-5B).
        workers: processes that read ahead; 0 reads in a thread.
    """

    path: str = ""
    caption_dropout: float = 0.1
    image_probability: float = 0.0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("caption_dropout", "image_probability"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"data.{name} must be between 0 and 1, got {value}")
        _require(self.workers >= 0, f"data.workers must be at least 0, got {self.workers}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """`[train]`: how long, in what batches.

    Attributes:
        trains: `lora`; `full`, all weights of the transformer; or `embedding`.
        steps: of the optimiser.
        batch: samples of one step, over all devices and all of `accumulate`.
        accumulate: in so many parts a step's batch is computed, one after the other.
        seed: of noise, noise levels, dropout, order of the data and fresh parameters.
        log_every: steps between lines of the log.
    """

    trains: str = "lora"
    steps: int = 1000
    batch: int = 1
    accumulate: int = 1
    seed: int = 0
    log_every: int = 1

    def __post_init__(self) -> None:
        _require_name("kind of training", self.trains, TRAINS)
        for name in ("steps", "batch", "accumulate", "log_every"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} must be at least 1, got {value}")
        _require(
            self.batch % self.accumulate == 0,
            f"train.batch must be a multiple of train.accumulate ({self.accumulate}), got "
            f"{self.batch}; nearest: {-(-self.batch // self.accumulate) * self.accumulate}",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """`[flow]`: the noise levels, sigma, that samples are trained at; 1 is noise alone.

    u is drawn between 0 and 1 and `sigma = shift u / (1 + (shift - 1) u)`.

    Attributes:
        sampling: of u: `uniform`, or `logit-normal` (Esser et al. 2024, arXiv:2403.03206).
        logit_mean: of the normal distribution behind `logit-normal`.
        logit_std: likewise.
        shift: towards noise.
        weighting: of a sample's loss, a function of sigma alone: `none`; `bell`, highest in the
            middle; `linear`, 1 + shift sigma.
        min_sigma: draws below are not made: the distribution is cut off, never clamped.
        max_sigma: likewise above. An expert's range is cut further by the model's boundary.
    """

    sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 3.0
    weighting: str = "none"
    min_sigma: float = 0.0
    max_sigma: float = 1.0

    def __post_init__(self) -> None:
        _require_name("sampling", self.sampling, SAMPLINGS)
        _require_name("weighting", self.weighting, WEIGHTINGS)
        _require(self.shift > 0, f"flow.shift must be above 0, got {self.shift}")
        _require(self.logit_std > 0, f"flow.logit_std must be above 0, got {self.logit_std}")
        _require(
            0 <= self.min_sigma < self.max_sigma <= 1,
            "flow.min_sigma and flow.max_sigma must be a range within 0 to 1, got "
            f"{self.min_sigma} to {self.max_sigma}",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserConfig:
    """`[optimiser]`: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Attributes:
        learning_rate: after the warm-up.
        warmup_steps: over which the rate rises from 0; a training of fewer steps ends before it
            has its rate.
        schedule: after the warm-up: `constant`, `cosine` or `linear` down to `final_ratio`.
        final_ratio: of the rate at the last step.
        betas: of the moments.
        eps: added to the root of the second moment.
        weight_decay: of matrices; vectors are not decayed.
        clip_norm: the most that the gradient's norm may be; 0 leaves it.
        master: dtype of what is trained: `float32`, or `bfloat16` with what rounding lost kept
            beside it (Kahan summation).
        first_moment: dtype of the first moment; the second is float32.
        ema_decay: of an average of what is trained, kept beside it; None keeps none.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    final_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    master: str = "float32"
    first_moment: str = "float32"
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        _require_name("schedule", self.schedule, SCHEDULES)
        _require_name("dtype of what is trained", self.master, MASTERS)
        _require_name("dtype of the first moment", self.first_moment, MASTERS)
        rate = self.learning_rate
        _require(rate > 0, f"optimiser.learning_rate must be above 0, got {rate}")
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optimiser.betas must be two numbers from 0 to below 1, got {list(self.betas)}",
        )
        for name in ("warmup_steps", "weight_decay", "clip_norm", "final_ratio"):
            value = getattr(self, name)
            _require(value >= 0, f"optimiser.{name} must be at least 0, got {value}")
        if self.ema_decay is not None:
            _require(
                0 < self.ema_decay < 1,
                f"optimiser.ema_decay must be between 0 and 1, got {self.ema_decay}",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """`[lora]`: W + (alpha / rank) B A beside each target (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: of A and B.
        alpha: of the scale; None for the rank, a scale of 1.
        targets: linears of a block by diffusers' names, for example `attn1.to_q`; all when none
            is named. One that the model lacks is refused.
        dropout: share of A's inputs that are left out in a step.
    """

    rank: int = 32
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(self.rank >= 1, f"lora.rank must be at least 1, got {self.rank}")
        _require(self.alpha is None or self.alpha > 0, f"lora.alpha must be above 0: {self.alpha}")
        _require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        for target in self.targets:
            _require_name("target", target, ALL_LINEARS)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingConfig:
    """`[embedding]`: vectors for a word that the text encoder does not know (textual inversion).

    Attributes:
        word: that stands for them in captions and prompts.
        vectors: how many tokens it takes.
        start: text whose tokens the vectors begin as.
        kind: `input`: rows of the text encoder's table, trained through it; `output`: what comes
            out of it in those places.
        keeps_norm: scale each vector to the median norm of the table's rows after every step.
    """

    word: str = ""
    vectors: int = 4
    start: str = "*"
    kind: str = "input"
    keeps_norm: bool = False

    def __post_init__(self) -> None:
        _require_name("kind of embedding", self.kind, EMBEDDING_KINDS)
        _require(self.vectors >= 1, f"embedding.vectors must be at least 1, got {self.vectors}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """`[machine]`: how it lies on the devices; results depend on it by rounding alone.

    Attributes:
        layout: for example `dp2-sp4`; None chooses one.
        sequence_parallel: of the layout; None for its own.
        weights: likewise.
        attention: as `--attention` takes it.
        dtype: that is computed in; None for bfloat16, on a CPU float32.
        vae_dtype: of the autoencoder, where clips are encoded.
        remat: what the backward pass computes again: `none`; `full`, each block from its input;
            `attention`, all of a block but self-attention's result, and cross-attention's of short
            videos; `offload`, as `full` with the blocks' inputs kept in the host's memory.
        host_devices: so many virtual CPU devices, and no accelerator.
    """

    layout: str | None = None
    sequence_parallel: str | None = None
    weights: str | None = None
    attention: str = "auto"
    dtype: str | None = None
    vae_dtype: str | None = None
    remat: str = "full"
    host_devices: int | None = None

    def __post_init__(self) -> None:
        _require_name("remat", self.remat, REMATS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SaveConfig:
    """`[save]`: checkpoints of the whole state.

    Attributes:
        every_minutes: by the clock; 0 does not.
        every_steps: 0 does not.
        keep: how many, the newest.
    """

    every_minutes: float = 10.0
    every_steps: int = 0
    keep: int = 3

    def __post_init__(self) -> None:
        for name in ("every_minutes", "every_steps"):
            value = getattr(self, name)
            _require(value >= 0, f"save.{name} must be at least 0, got {value}")
        _require(self.keep >= 1, f"save.keep must be at least 1, got {self.keep}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """`[samples]`: videos made during the training, beside those of the base.

    Attributes:
        every_steps: 0 makes none.
        prompts: what they show.
        seed: of the first prompt's noise; each further one's is one more.
        steps: denoising steps; None for the model's number.
        size: `WxH`; None for the model's.
        num_frames: None for the model's.
    """

    every_steps: int = 0
    prompts: tuple[str, ...] = ()
    seed: int = 0
    steps: int | None = None
    size: str | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        every = self.every_steps
        _require(every >= 0, f"samples.every_steps must be at least 0, got {every}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A whole run; each attribute is a table of the file, described by its class."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    machine: MachineConfig = dataclasses.field(default_factory=MachineConfig)
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    samples: SampleConfig = dataclasses.field(default_factory=SampleConfig)
