"""What does not fit together in a training's configuration, alone and with its model. No JAX."""

import os
from pathlib import Path

from wan_tpu.attention.choice import parse_attention
from wan_tpu.attention.names import FLASH, FLASH_INT8
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.manifest import check_form, is_prepared, read_manifest
from wan_tpu.errors import InputError, LayoutError
from wan_tpu.family import TRANSFORMER, Conditioning
from wan_tpu.geometry import parse_size
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.training.config import ALL_LINEARS, TrainingConfig
from wan_tpu.training.sample_requests import sample_requests
from wan_tpu.transformer.config import TransformerConfig

IMAGE_LINEARS = tuple(name for name in ALL_LINEARS if name.startswith("attn2.add_"))
"""Those of image tokens, which Wan 2.1's models of pictures alone have."""


def check_alone(config: TrainingConfig, *, needs_data: bool = True) -> None:
    """Refuses what does not fit together whatever the model is.

    Args:
        config: the whole.
        needs_data: whether `data.path` must be there.

    Raises:
        InputError: names the keys, and a value that works where there is one.
    """
    load_options(config)
    train, samples = config.train, config.samples
    if train.trains == "embedding" and not config.embedding.word.strip():
        raise InputError(
            'embedding.word is missing: the word that is learnt, for example word = "mossling"'
        )
    if samples.every_steps and not samples.prompts:
        raise InputError(
            f"samples.every_steps is {samples.every_steps} and there is no prompt; give "
            "samples.prompts, or every_steps = 0"
        )
    if samples.size is not None:
        parse_size(samples.size)
    if needs_data:
        _check_data(config.data.path)


def check_with_model(config: TrainingConfig, model: ModelDescription) -> None:
    """Refuses what does not fit the model, from the configurations and the data's manifest alone.

    Args:
        config: what `check_alone` has passed.
        model: that `config.model` names.

    Raises:
        InputError: names the keys, and a value that works where there is one; the data was not
            prepared to its end, or for a model of other sizes.
        CheckpointError: the model is none that is implemented.
    """
    _check_expert(config, model)
    kind = model.kind
    probability = config.data.image_probability
    if probability and kind.conditioning is not Conditioning.FIRST_FRAME:
        sees = kind.conditioning is Conditioning.CHANNELS
        raise InputError(
            f"data.image_probability is {probability}, of models whose first frame may be given, "
            f"and {model.name} {'sees one in every sample' if sees else 'takes none'}; leave it out"
        )
    transformer = TransformerConfig.from_json(model.configs[TRANSFORMER])
    lacking = [name for name in config.lora.targets if name in IMAGE_LINEARS]
    if config.train.trains == "lora" and lacking and transformer.added_kv_proj_dim is None:
        raise InputError(
            f"lora.targets names {', '.join(lacking)}, of image tokens, which {model.name} has not"
        )
    _check_rank(config, model, transformer)
    _check_samples(config, model)
    path = Path(config.data.path)
    if config.data.path and is_prepared(path):
        check_form(read_manifest(path), model, path)


def load_options(config: TrainingConfig) -> LoadOptions:
    """What the model is loaded with.

    Raises:
        InputError: a layout or name of `[machine]` that is none.
    """
    machine = config.machine
    try:
        options = LoadOptions.from_text(
            model=config.model.name,
            variant=config.model.variant,
            layout=machine.layout,
            sequence_parallel=machine.sequence_parallel,
            weights=machine.weights,
            attention=machine.attention,
            vae_dtype=machine.vae_dtype,
            dtype=machine.dtype,
            host_devices=machine.host_devices,
        )
        if machine.host_devices is not None and machine.host_devices < 1:
            raise InputError(f"host_devices must be at least 1, got {machine.host_devices}")
        if parse_attention(options.attention).name == FLASH_INT8:
            raise InputError(
                f"attention is {FLASH_INT8}, whose whole numbers have no gradients; train with "
                f"{FLASH} or auto"
            )
    except InputError as error:
        raise InputError(f"[machine] {error}") from None
    return options


def check_host_devices(config: TrainingConfig, num_processes: int = 1) -> None:
    """Refuses a layout that the virtual devices of all processes together are not.

    Before JAX starts them, which takes seconds; others are counted once they are there.

    Raises:
        LayoutError: says how many it needs and how many there are.
    """
    layout, each = load_options(config).layout, config.machine.host_devices
    if layout is None or each is None:
        return
    try:
        layout.require_devices(each * num_processes)
    except LayoutError as error:
        several = f" in {num_processes} processes" if num_processes > 1 else ""
        raise LayoutError(f"[machine] host_devices is {each}{several}: {error}") from None


def _check_data(path: str) -> None:
    if not path:
        raise InputError(
            "data.path is missing: a folder that wan-tpu dataset prepare made, or clips"
        )
    if not os.path.exists(path):
        raise InputError(
            f"data.path is {path}, and nothing is there; wan-tpu dataset prepare makes such a "
            "folder from clips"
        )


def _check_expert(config: TrainingConfig, model: ModelDescription) -> None:
    experts, expert = len(model.kind.experts), config.model.expert
    if experts == 1 and expert is not None:
        raise InputError(
            f'model.expert is "{expert}" and {model.name} has one transformer; leave it out'
        )
    if experts == 1:
        return
    if expert is None:
        raise InputError(
            f"model.expert is missing: {model.name} has two transformers; high, low or both"
        )
    boundary = model.kind.boundary_ratio
    assert boundary is not None
    low, high = config.flow.min_sigma, config.flow.max_sigma
    if (expert != "low" and high <= boundary) or (expert != "high" and low >= boundary):
        raise InputError(
            f"flow.min_sigma to flow.max_sigma is {low} to {high} and leaves nothing for "
            f'model.expert = "{expert}": the experts of {model.name} meet at {boundary}'
        )


def _check_rank(
    config: TrainingConfig, model: ModelDescription, transformer: TransformerConfig
) -> None:
    """A rank above a matrix's own adds nothing but memory."""
    rank, most = config.lora.rank, transformer.dim
    if config.train.trains == "lora" and rank > most:
        raise InputError(
            f"lora.rank is {rank}, and the linears of {model.name} have {most} inputs or outputs; "
            f"at most {most}, for example 16"
        )


def _check_samples(config: TrainingConfig, model: ModelDescription) -> None:
    """The samples are videos that the model can make."""
    if config.samples.every_steps:
        sample_requests(config.samples, model)
