"""From a model's name to its files and configurations; no weights are read here.

A name is `wan-tiny` (in the package), a folder in diffusers format, a hub id, or one of the
`KNOWN_MODELS`, whose configurations are here so that sizes can be shown offline. A
model of the hub may be of one commit, branch or tag: `owner/name@revision`; else it is the newest.
"""

import dataclasses
import errno
import logging
import pathlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.checkpoints.files import read_json
from wan_tpu.checkpoints.strangers import describe_stranger, refuse_name
from wan_tpu.errors import CheckpointError, InputError, UnknownNameError
from wan_tpu.request import GenerationDefaults, VideoRequest

logger = logging.getLogger(__name__)

WAN_TINY = "wan-tiny"
COMPONENTS = ("text_encoder", "transformer", "vae")
LONGEST_NAME = 200
"""Characters; hub ids have at most 96, and a message need not be longer."""
DEFAULTS_FILE = "generation_defaults.json"

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt of Wan 2.1's own configuration (`sample_neg_prompt`)."""

_UMT5_XXL = {
    "vocab_size": 256_384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_WAN_VAE = {
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ],
}  # fmt: skip
_WAN_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A public model: where its weights are and what its transformer looks like."""

    hub_id: str
    transformer: Mapping[str, Any]
    defaults: GenerationDefaults


_WAN_DEFAULTS = GenerationDefaults(negative_prompt=WAN_NEGATIVE_PROMPT)
_WAN_720P_DEFAULTS = dataclasses.replace(_WAN_DEFAULTS, width=1280, height=720)

KNOWN_MODELS: Mapping[str, KnownModel] = {
    "wan2.1-t2v-1.3b": KnownModel(
        hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        transformer={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        defaults=_WAN_DEFAULTS,
    ),
    "wan2.1-t2v-14b": KnownModel(
        hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        transformer={"num_attention_heads": 40, "ffn_dim": 13_824, "num_layers": 40},
        defaults=_WAN_720P_DEFAULTS,
    ),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What a model is, without its weights.

    Attributes:
        name: as the user wrote it.
        folder: its files in diffusers format; None where only configurations are known.
        configs: JSON configuration by component: text_encoder, transformer, vae, scheduler.
        defaults: what a request leaves open.
    """

    name: str
    folder: pathlib.Path | None
    configs: Mapping[str, Mapping[str, Any]]
    defaults: GenerationDefaults

    @property
    def revision(self) -> str | None:
        """The hub's commit that the files are of; None for files that do not come from there."""
        if self.folder is None or self.folder.parent.name != "snapshots":
            return None
        return self.folder.name

    def component_folder(self, component: str) -> pathlib.Path:
        """Where a component's weights lie.

        Raises:
            CheckpointError: the model is described only, or the folder is not there.
        """
        if self.folder is None:
            raise CheckpointError(f"{self.name} has no files here, only its configuration")
        folder = self.folder / component
        if not folder.is_dir():
            raise CheckpointError(f"{self.folder} has no folder {component}")
        return folder


def describe_model(name: str) -> ModelDescription:
    """A model's configurations; weights are neither read nor downloaded.

    Raises:
        UnknownNameError: nothing is called so.
        CheckpointError: its files are not those of a Wan text-to-video model.
    """
    if name.partition("@")[0] in KNOWN_MODELS:
        known = KNOWN_MODELS[name.partition("@")[0]]
        configs = {
            "text_encoder": _UMT5_XXL,
            "transformer": known.transformer,
            "vae": _WAN_VAE,
            "scheduler": _WAN_SCHEDULER,
        }
        return ModelDescription(name=name, folder=None, configs=configs, defaults=known.defaults)
    return _read_folder(name, _locate(name, patterns=["*.json"]))


def open_model(name: str) -> ModelDescription:
    """A model with all its files here, downloaded from the hub if they were not.

    Raises:
        UnknownNameError: nothing is called so.
        CheckpointError: files are missing, cannot be had, or are of another kind of model.
    """
    known, at, revision = name.partition("@")
    source = f"{KNOWN_MODELS[known].hub_id}{at}{revision}" if known in KNOWN_MODELS else name
    model = _read_folder(name, _locate(source, patterns=["*.json", "*.safetensors", "*.model"]))
    if model.revision is not None:
        hint = "" if revision == model.revision else f"; {known}@{model.revision} keeps it there"
        logger.info("model %s is at the hub's commit %s%s", known, model.revision, hint)
    return model


def _locate(name: str, *, patterns: list[str]) -> pathlib.Path:
    """The folder of a model, downloading the files that match `patterns` if it is a hub id."""
    if name == WAN_TINY:
        return pathlib.Path(str(resources.files("wan_tpu") / "demo" / "wan-tiny"))
    try:
        folder = pathlib.Path(name).expanduser()
        if name and folder.is_dir():
            return folder
        if name:
            refuse_name(name, folder)
    except RuntimeError:
        pass  # ~somebody, who has no account here
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and len(name) <= LONGEST_NAME:
        return _download(name, patterns)
    known = [WAN_TINY, *KNOWN_MODELS, "a folder in diffusers format", "a hub id like owner/name"]
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    raise UnknownNameError("model", shown, known)


def _download(source: str, patterns: list[str]) -> pathlib.Path:
    """A hub repository's files, `owner/name[@revision]`, from the cache where they are there."""
    import huggingface_hub
    from huggingface_hub import errors

    hub_id, at, revision = source.partition("@")
    if at and not revision:
        raise CheckpointError(f"{source} names no revision after @, for example {hub_id}@main")
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                hub_id, revision=revision or None, allow_patterns=patterns
            )
        )
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{hub_id} has no revision {revision!r}; expected a commit, branch or tag, such as main"
        ) from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{hub_id} is gated: accept its terms and log in (`hf auth login`)"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise CheckpointError(
            f"the hub has no model {hub_id!r}, and no folder is called so"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{source} is not in the cache and cannot be downloaded: {reason}"
        ) from None


def _read_folder(name: str, folder: pathlib.Path) -> ModelDescription:
    """Reads the configurations of a folder in diffusers format."""
    try:
        if not (folder / "model_index.json").is_file():
            raise CheckpointError(f"model_index.json is missing: {describe_stranger(folder)}")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if pipeline != "WanPipeline":
        what = "names no _class_name" if pipeline is None else f"is of a {pipeline}"
        raise CheckpointError(
            f"{folder}/model_index.json {what}; WanPipeline (text to video) is implemented"
        )
    if index.get("transformer_2") not in (None, [], [None, None]):
        raise CheckpointError(
            f"{folder} has two transformers (Wan 2.2 A14B), which is not implemented yet"
        )
    configs = {component: read_json(folder / component / "config.json") for component in COMPONENTS}
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    if (folder / DEFAULTS_FILE).is_file():
        defaults = _read_defaults(folder / DEFAULTS_FILE)
    else:
        small = configs["transformer"].get("num_attention_heads") in range(1, 40)
        defaults = _WAN_DEFAULTS if small else _WAN_720P_DEFAULTS
    return ModelDescription(name=name, folder=folder, configs=configs, defaults=defaults)


def _read_defaults(path: pathlib.Path) -> GenerationDefaults:
    """The model's own defaults, Wan's for what it leaves out; its flow shift is for all sizes."""
    values = read_json(path)
    shift = values.pop("flow_shift", None)
    known = {f.name for f in dataclasses.fields(GenerationDefaults)} - {"flow_shift_by_height"}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise CheckpointError(
            f"{path}: unknown {unknown[0]!r}; known: {', '.join(sorted(known | {'flow_shift'}))}"
        )
    defaults = GenerationDefaults(**read_fields(GenerationDefaults, values, f"file {path}"))
    try:
        if shift is not None:
            defaults = dataclasses.replace(defaults, flow_shift_by_height=((0, float(shift)),))
        VideoRequest(prompt="default").resolved(defaults)
    except (InputError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return defaults
