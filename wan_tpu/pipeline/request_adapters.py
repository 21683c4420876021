"""The adapters of a request: what its names mean, the same in all processes, and their numbers.

A request is planned with the files' headers and digests; the numbers are read when its weights are
to be made (`wan_tpu.pipeline.resident`), which they need not be for one like the request before.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from wan_tpu.adapters.account import ModelShapes
from wan_tpu.adapters.chosen import ChosenAdapter, assign, open_adapters
from wan_tpu.adapters.fit import Shapes
from wan_tpu.adapters.library import AdapterLibrary
from wan_tpu.adapters.merge import Strengthened
from wan_tpu.adapters.styles import file_digest
from wan_tpu.checkpoints.quantized import without_scales
from wan_tpu.checkpoints.weights import expected_tensors
from wan_tpu.errors import AdapterError, InputError, MismatchError, WanTpuError
from wan_tpu.fast import FastPreset
from wan_tpu.pipeline.fast import embedded_adapters
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.agreed import told_by_all

TOLD_BYTES = 4096
"""Of what processes tell each other: at most 18 files, and 300 letters of an error."""

Described = Sequence[Mapping[str, Any]]
"""Adapters as a video's metadata has them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestAdapters:
    """What a request adds to the transformers.

    Attributes:
        chosen: in the order in which they are added; their numbers are zeros.
        described: for metadata, with the transformers that each is added to.
        shapes: of the tensors of each of the model's transformers.
        model: its name.
    """

    chosen: Sequence[ChosenAdapter]
    described: Described
    shapes: Mapping[str, Shapes]
    model: str

    @property
    def key(self) -> tuple[tuple[Any, ...], ...]:
        """Equal for those that make the same weights."""
        return tuple(
            (each.file.digest, each.choice.strength, each.choice.expert) for each in self.chosen
        )

    def read(self) -> Mapping[str, Sequence[Strengthened]]:
        """Their numbers by transformer; all processes are here.

        Raises:
            AdapterError: a file is another one than it was when it was chosen.
            CheckpointError: it is damaged.
            MismatchError: so it is in another process. In all processes alike.
        """
        found = _alike(lambda: [_read_again(each) for each in self.chosen])
        return assign(found, self.shapes, model=self.model).by_component


class AdapterChooser:
    """Finds the adapters of requests for one model."""

    def __init__(self, model: VideoModel, folder: pathlib.Path | None = None):
        """Reads nothing.

        Args:
            model: whose transformers they change.
            folder: of those that requests may name; None for none.

        Raises:
            InputError: there is no such folder.
        """
        name, experts = model.description.name, model.description.kind.experts
        self._model, self._quantize = name, model.quantize
        tensors = without_scales(expected_tensors(model.denoiser.weights()))
        self._shapes = dict.fromkeys(experts, tensors)
        self._library = None
        if folder is not None:
            shapes = ModelShapes(
                name=name, shapes=self._shapes[experts[0]], num_experts=len(experts)
            )
            self._library = AdapterLibrary(folder, shapes)

    def choose(
        self,
        request: VideoRequest,
        preset: FastPreset | None,
        loaded: Described,
        *,
        alike: bool,
    ) -> RequestAdapters | None:
        """What a request adds to the weights; None for nothing.

        That is what it names, and before it what its preset brings along in this package, unless
        that is among what it names or was loaded.

        Args:
            request: names adapters, or a preset.
            preset: that it takes.
            loaded: adapters that are in the base's weights.
            alike: whether all processes are here, and what they chose is to be the same.

        Raises:
            InputError: there is no folder, or nothing in it that is called so and fits the model,
                or its weights are quantised.
            CheckpointError: a file is damaged.
            MismatchError: another process has another file under a name. In all processes alike.
        """
        embedded = [pathlib.Path(path) for path in embedded_adapters(preset)]
        present = {each["file"] for each in loaded}
        embedded = [path for path in embedded if path.name not in present]
        if not (request.adapters or embedded):
            return None
        if self._quantize is not None:
            raise InputError(
                f"the weights of {self._model} are quantised to {self._quantize}, to which nothing "
                "can be added for one request; load it without --quantize, or with its adapters by "
                "--lora"
            )

        def choose() -> list[ChosenAdapter]:
            named = [each for text in request.adapters for each in self._named(text)]
            known = {each.file.path.name for each in named}
            return [*_embedded(path for path in embedded if path.name not in known), *named]

        chosen = _alike(choose) if alike else choose()
        assigned = assign(chosen, self._shapes, model=self._model, quiet=True)
        return RequestAdapters(
            chosen=chosen,
            described=assigned.described,
            shapes=self._shapes,
            model=self._model,
        )

    def _named(self, text: str) -> list[ChosenAdapter]:
        """The files that a name of the folder stands for."""
        if self._library is None:
            raise InputError(
                f"there is no adapter {text!r}: the model was loaded without a folder of adapters"
            )
        choice, entry = self._library.find(text)
        digests = dict(zip(entry.files, entry.digests, strict=True))
        opened = open_adapters([choice], with_numbers=False)
        return [_with_digest(each, digests[each.file.path]) for each in opened]


def _read_again(planned: ChosenAdapter) -> ChosenAdapter:
    """With its numbers."""
    choice = dataclasses.replace(planned.choice, path=str(planned.file.path))
    (found,) = open_adapters([choice])
    if found.file.digest != planned.file.digest:
        raise AdapterError(f"{found.file.path.name} changed while it was read; ask again")
    return found


def _embedded(paths: Any) -> list[ChosenAdapter]:
    opened = open_adapters(map(str, paths), with_numbers=False)
    return [_with_digest(each, _digest_of_package(each.file.path)) for each in opened]


_digest_of_package = functools.cache(file_digest)
"""Files of this package do not change."""


def _with_digest(chosen: ChosenAdapter, digest: str) -> ChosenAdapter:
    return dataclasses.replace(chosen, file=dataclasses.replace(chosen.file, digest=digest))


def _tell(chosen: Sequence[ChosenAdapter]) -> list[list[str]]:
    names = (each.file.path.name[:40].encode("ascii", "replace").decode() for each in chosen)
    return [[name, each.file.digest] for name, each in zip(names, chosen, strict=True)]


def _alike(make: Callable[[], list[ChosenAdapter]]) -> list[ChosenAdapter]:
    """What every process makes for itself, where all make the same.

    A process that alone raised, or went on, would leave the others waiting for it.

    Raises:
        WanTpuError: `make` raised it, as in all other processes.
        MismatchError: they differ; names the first that does. In all processes alike.
    """
    if jax.process_count() == 1:
        return make()
    made, error = [], None
    try:
        made = make()
        told = {"files": _tell(made)}
    except (WanTpuError, OSError) as raised:
        error, told = raised, {"error": str(raised)[:300]}
    first, *others = map(json.loads, told_by_all(json.dumps(told), TOLD_BYTES))
    for number, other in enumerate(others, 1):
        if first.keys() != other.keys() or first.get("files") != other.get("files"):
            raise MismatchError(_difference(number, first, other))
    if error is not None:
        raise error
    return made


def _difference(number: int, first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How a process differs from process 0, in one line."""
    hint = "the folder of adapters must hold the same on every host"
    for rank, told in ((0, first), (number, other)):
        if "error" in told:
            return f"in process {rank} alone: {told['error']}; {hint}"
    for (name, digest), (_, theirs) in zip(first["files"], other["files"], strict=False):
        if digest != theirs:
            return (
                f"process {number} has another {name} than process 0 ({theirs[:19]}..., there "
                f"{digest[:19]}...); {hint}"
            )
    return f"process {number} has more or fewer files of an adapter than process 0; {hint}"
