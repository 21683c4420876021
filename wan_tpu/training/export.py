"""What a run leaves: a LoRA's file, a model's folder; each as others read it.

Rows are put back into the checkpoint's order by the weights themselves, a layer at a time, so that
no process holds a second model.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.torch import save_file

from wan_tpu.adapters.form import factors_of
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.checkpoints.arrays import as_torch, fetch
from wan_tpu.checkpoints.weights import Weight, checkpoint_tensors
from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.whole_file import aside_of, reporting, write_json_atomically
from wan_tpu.torch_bridge import Params
from wan_tpu.training.checkpoint import Checkpoints
from wan_tpu.training.config import MachineConfig, TrainingConfig
from wan_tpu.training.config_check import load_options
from wan_tpu.training.config_file import read_config
from wan_tpu.training.embedding import VECTORS, write_embedding
from wan_tpu.training.place import place_for_training
from wan_tpu.training.run_folder import read_run
from wan_tpu.training.trainer import States, Trainer

SHARD_BYTES = 5 << 30
"""Of a file of weights, as diffusers splits them (`10GB` there; half of it loads sooner)."""

WEIGHTS = "diffusion_pytorch_model"
"""What diffusers calls the files of a transformer."""

RESULT = "result"
"""What the result in a run's folder is called."""


def export(
    folder: Path, output: Path, *, style: str | None, step: int | None = None, ema: bool = False
) -> list[Path]:
    """Writes what a run has learnt up to a checkpoint. JAX has been started.

    Args:
        folder: of the run.
        output: a file, or for all weights a folder, that is not there.
        style: of an adapter's file; `wan_tpu.adapters.write.STYLES`.
        step: of the checkpoint; the newest when not given.
        ema: the average instead of the parameters.

    Returns:
        The file or folder; a file for each of two experts.

    Raises:
        InputError: there is no such checkpoint, or the run keeps no average.
        CheckpointError: it is damaged.
        OutputError: the result cannot be written.
    """
    run = read_run(folder)
    config = on_one_device(read_config(str(folder / "config.toml"), needs_data=False))
    options = load_options(config)
    # What stands beside an adapter is not read.
    model = options.open_model() if config.train.trains == "full" else options.describe_model()
    trainer = Trainer(config, place_for_training(config, model))
    with Checkpoints(folder / "checkpoints", keep=1_000_000) as checkpoints:
        step = checkpoints.chosen(step)
        states = checkpoints.restore(step, trainer.step, trainer.state_names)
    return write_states(
        trainer,
        states,
        output,
        style=style,
        ema=ema,
        about=_about(config, step, run["data_digest"]),
    )


def on_one_device(config: TrainingConfig) -> TrainingConfig:
    """The same run where nothing is split: a checkpoint of any layout is read so."""
    train = dataclasses.replace(config.train, batch=config.train.accumulate)
    return dataclasses.replace(config, machine=MachineConfig(host_devices=1), train=train)


def export_states(
    trainer: Trainer, states: States, folder: Path, *, step: int, data_digest: str
) -> Path:
    """Writes the result of a run into its folder; what was there of the same name is replaced.

    The average where one is kept, for that is what it is kept for.
    """
    config = trainer.config
    is_folder = config.train.trains == "full"
    output = folder / (RESULT if is_folder else f"{RESULT}.safetensors")
    about = _about(config, step, data_digest)
    ema = config.optimiser.ema_decay is not None
    if is_folder and output.exists() and not jax.process_index():
        shutil.rmtree(output)  # an earlier end of the same run
    style = None if is_folder else "comfyui"
    written = write_states(trainer, states, output, style=style, ema=ema, about=about)
    return written[0] if len(written) == 1 else folder


def write_states(
    trainer: Trainer,
    states: States,
    output: Path,
    *,
    style: str | None,
    ema: bool,
    about: Mapping[str, str],
) -> list[Path]:
    """Writes states as others read them; of several processes, process 0 writes.

    Returns:
        The file or folder; a file for each of two experts.
    """
    learnt = learnt_of(states, ema=ema)
    match trainer.config.train.trains:
        case "full":
            _write_model(trainer, learnt, output, about)
            return [output]
        case "embedding":
            (trained,) = learnt.values()
            vectors = fetch(trained[VECTORS], None)
            if not jax.process_index():
                write_embedding(output, trainer.config.embedding, vectors, about)
            return [output]
    paths = []
    for name, trained in learnt.items():
        paths.append(_of_expert(output, trainer, name) if len(learnt) > 1 else output)
        _write_lora(trainer, name, trained, paths[-1], style or "comfyui", about)
    return paths


def learnt_of(states: States, *, ema: bool) -> dict[str, Params]:
    """What is trained, or its average, by the state's name.

    Raises:
        InputError: the run keeps no average.
    """
    if not ema:
        return {name: state.trained for name, state in states.items()}
    averages = {name: state.average for name, state in states.items()}
    if any(average is None for average in averages.values()):
        raise InputError("the run keeps no average; leave out --ema")
    return {name: average for name, average in averages.items() if average is not None}


def _of_expert(output: Path, trainer: Trainer, name: str) -> Path:
    """Two files, called as others call them: `fox_high_noise.safetensors`."""
    is_high = name == trainer.model.description.kind.experts[0]
    return output.with_name(f"{output.stem}_{'high' if is_high else 'low'}_noise{output.suffix}")


def _write_lora(
    trainer: Trainer, expert: str, trained: Params, path: Path, style: str, about: Any
) -> None:
    config, kind = trainer.config, trainer.model.description.kind
    # Every process takes part in bringing them together.
    tensors = list(tensors_of(trainer.step.trained.weights(), trained))
    if jax.process_index():
        return
    write_adapter(
        path,
        factors_of(tensors, alpha=config.lora.alpha),
        style=style,
        metadata=AdapterMetadata(
            base_model=config.model.name,
            component=expert if len(kind.experts) > 1 else None,
            title=path.stem,
            steps=int(about["steps"]),
            dataset_digest=about.get("data_digest"),
        ),
    )


def _write_model(trainer: Trainer, params: Mapping[str, Params], output: Path, about: Any) -> None:
    """A folder in diffusers' format: the trained transformers, everything else as it was."""
    folder = trainer.model.description.folder
    assert folder is not None, "a model that is trained has files"
    aside = aside_of(output)
    is_writer = not jax.process_index()
    with reporting(output), contextlib.ExitStack() as undo:
        if is_writer:
            undo.callback(shutil.rmtree, aside, ignore_errors=True)
            if os.path.lexists(output):
                raise OutputError(f"cannot write {output}: it is there; take a name that is free")
            aside.mkdir()
            _copy_others(folder, aside, set(params))
        for name, trained in params.items():
            tensors = tensors_of(trainer.step.denoiser.weights(), trained)
            if is_writer:
                _write_component(folder / name, aside / name, tensors, about)
            else:
                for _ in tensors:  # every process takes part in bringing them together
                    pass
        if is_writer:
            aside.replace(output)


def _copy_others(source: Path, target: Path, trained: set[str]) -> None:
    """Everything but the trained transformers' weights; on one file system no byte is copied."""
    for path in sorted(source.iterdir()):
        if path.name in trained:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, target / path.name)


def _link_or_copy(source: Any, target: Any) -> None:
    """A second name of the same file where the file system can; the cache's links are followed."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _write_component(
    source: Path, target: Path, tensors: Iterator[tuple[str, np.ndarray]], about: Mapping[str, str]
) -> None:
    """A transformer: files of at most `SHARD_BYTES`, their index, the configuration as it was."""
    target.mkdir()
    shutil.copyfile(source / "config.json", target / "config.json")
    parts = [
        (list(part), _write_part(target / f"part-{number}", part, about))
        for number, part in enumerate(_parts(tensors))
    ]
    if len(parts) == 1:
        (target / "part-0").rename(target / f"{WEIGHTS}.safetensors")
        return
    files = {}
    for number, (names, _) in enumerate(parts):
        file = f"{WEIGHTS}-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (target / f"part-{number}").rename(target / file)
        files |= dict.fromkeys(names, file)
    total = sum(num_bytes for _, num_bytes in parts)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    write_json_atomically(target / f"{WEIGHTS}.safetensors.index.json", index)


def _parts(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of a file at a time."""
    part: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if part and sum(x.nbytes for x in part.values()) + tensor.nbytes > SHARD_BYTES:
            yield part
            part = {}
        part[name] = tensor
    yield part


def _write_part(path: Path, part: Mapping[str, np.ndarray], about: Mapping[str, str]) -> int:
    """One file; the bytes of its tensors."""
    path.touch()  # safetensors' own would be for its owner alone
    mode = path.stat().st_mode
    save_file({n: as_torch(x).contiguous() for n, x in part.items()}, path, {**about})
    path.chmod(mode)
    return sum(x.nbytes for x in part.values())


def tensors_of(weights: list[Weight], arrays: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of the mesh as the checkpoint's tensors, in the dtypes of the weights."""
    dtypes = {tensor: weight.dtype for weight in weights for tensor in weight.tensors}
    for name, tensor in checkpoint_tensors(weights, arrays):
        yield name, tensor.astype(dtypes[name])


def _about(config: TrainingConfig, step: int, data_digest: str | None) -> dict[str, str]:
    found = {"steps": str(step), "base_model": config.model.name, "seed": str(config.train.seed)}
    return found if data_digest is None else {**found, "data_digest": data_digest}
