"""What a model is and where its files are, without its weights."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.component import open_component
from wan_tpu.checkpoints.source import TensorSource
from wan_tpu.errors import CheckpointError
from wan_tpu.family import TEXT_TO_VIDEO, ModelKind
from wan_tpu.fast import FastPreset
from wan_tpu.request import GenerationDefaults
from wan_tpu.step_cache import Curve


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What a model is, without its weights.

    Attributes:
        name: as the user wrote it.
        folder: its files in diffusers format, or those that are not in `files`; None where only
            configurations are known.
        configs: JSON configuration by component, those of `kind.components` and the scheduler.
        kind: what it is made of and takes.
        defaults: what a request leaves open.
        defaults_from: by the name of a default: where its value is from.
        variant: which variant of the weights, for example fp16, where a component has it.
        files: components, tokenizer included, whose files lie outside `folder`.
        distilled: what its weights were distilled to, where its files say so.
        curve: of step caches, measured on it; None leaves a published one.
    """

    name: str
    folder: pathlib.Path | None
    configs: Mapping[str, Mapping[str, Any]]
    defaults: GenerationDefaults
    kind: ModelKind = TEXT_TO_VIDEO
    defaults_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
    variant: str | None = None
    files: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    distilled: FastPreset | None = None
    curve: Curve | None = None

    @property
    def revision(self) -> str | None:
        """The hub's commit that the files are of; None for files that do not come from there."""
        if self.files or self.folder is None or self.folder.parent.name != "snapshots":
            return None
        return self.folder.name

    @property
    def paths(self) -> list[pathlib.Path]:
        """The folders and files that the model is read from, each once, `folder` first."""
        first = [] if self.folder is None else [self.folder]
        return first + sorted(set(self.files.values()) - set(first))

    def component_folder(self, component: str) -> pathlib.Path:
        """Where a component's files lie: a folder, or one file of weights.

        Raises:
            CheckpointError: the model is described only, or the folder is not there.
        """
        if component in self.files:
            return self.files[component]
        if self.folder is None:
            raise CheckpointError(f"{self.name} has no files here, only its configuration")
        folder = self.folder / component
        if not folder.is_dir():
            raise CheckpointError(f"{self.folder} has no folder {component}")
        return folder

    def source(self, component: str) -> TensorSource:
        """A component's tensors, by diffusers' names, whatever names and form its files have.

        Args:
            component: one of `kind.components`.

        Raises:
            CheckpointError: the files are missing or damaged, or not weights.
        """
        return open_component(component, self.component_folder(component), variant=self.variant)
