"""The weights on the devices: the base's, and beside them at most one set with adapters.

The base stays as it was loaded, so that without adapters every bit is there again. A set is made of
the base on the devices (`wan_tpu.adapters.on_mesh`) and kept until another one is asked for, which
is not made before the old one's memory is free.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from wan_tpu.adapters.on_mesh import Compile, merge_on_mesh
from wan_tpu.pipeline.components import tree_bytes
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.pipeline.request_adapters import RequestAdapters
from wan_tpu.sharding.one_branch import seen_on
from wan_tpu.stage import Stage
from wan_tpu.torch_bridge import Params

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Set:
    """Parameters by component, on the mesh of both branches and as that of one sees them."""

    params: Mapping[str, Params]
    one_branch: Mapping[str, Params]


class ResidentWeights:
    """What the programs of a model take, by component.

    Attributes:
        base: without adapters of requests, on the mesh of both branches.
    """

    def __init__(self, model: VideoModel, one_branch: VideoModel):
        """Nothing yet; `set_base` brings it.

        Args:
            model: what runs.
            one_branch: the same on the mesh for runs without guidance.
        """
        self._model = model
        self._one_branch = one_branch
        self._base = _Set(params={}, one_branch={})
        self._key: object = None
        self._merged: _Set | None = None

    @property
    def base(self) -> Mapping[str, Params]:
        """See the class."""
        return self._base.params

    def set_base(self, params: Mapping[str, Params]) -> None:
        """Takes other weights in place of all that there were, those with adapters included."""
        self.drop()
        self._base = self._seen_by_both(params)

    def drop(self) -> bool:
        """Gives the memory of the weights with adapters back; whether there were any."""
        had_one = self._merged is not None
        self._merged = self._key = None
        return had_one

    def of(
        self, component: str, adapters: RequestAdapters | None, *, on_one_branch: bool
    ) -> Params:
        """The parameters of a component.

        Args:
            component: which.
            adapters: that are in them, made by `add`; None for the base's.
            on_one_branch: whether for the mesh of one branch.
        """
        found = self._base
        if adapters is not None:
            assert self._merged is not None
            assert self._key == adapters.key
            found = self._merged
        return (found.one_branch if on_one_branch else found.params)[component]

    def has(self, adapters: RequestAdapters) -> bool:
        """Whether `add` has nothing to do."""
        return self._merged is not None and self._key == adapters.key

    def add(self, adapters: RequestAdapters, compile: Compile) -> None:
        """Makes the set with these adapters, in place of another one.

        Args:
            adapters: of a request.
            compile: gives the program of a stage.

        Raises:
            CheckpointError: a file is damaged or has changed.
            MismatchError: so it has in another process.
        """
        if self.has(adapters):
            return
        self.drop()
        start, compiling = time.perf_counter(), 0.0

        def compile_timed(stage: Stage) -> Callable[..., Any]:
            nonlocal compiling
            began = time.perf_counter()
            program = compile(stage)
            compiling += time.perf_counter() - began
            return program

        params, bytes_moved, bytes_added, count = dict(self.base), 0, 0, 0
        for component, added in adapters.read().items():
            weights, mesh = self._model.denoiser.weights(), self._model.mesh
            merged = merge_on_mesh(weights, self.base[component], added, mesh, compile_timed)
            params[component] = {**self.base[component], **merged.changed}
            bytes_moved += merged.bytes_moved
            bytes_added += tree_bytes(dict(merged.changed))
            count += len(merged.changed)
        self._merged, self._key = self._seen_by_both(params), adapters.key
        logger.info(
            "adapters %s: %d weights made in %.2f s, %.2f s of them compiling; %.1f MiB moved to "
            "the devices, %.1f MiB more on each",
            ", ".join(str(each["file"]) for each in adapters.described),
            count,
            time.perf_counter() - start,
            compiling,
            bytes_moved / 2**20,
            bytes_added / 2**20,
        )

    def _seen_by_both(self, params: Mapping[str, Params]) -> _Set:
        """The same memory on both meshes."""
        components = self._one_branch.components
        return _Set(
            params=params,
            one_branch={
                name: {
                    weight: seen_on(array, components[name].weights[weight].sharding)
                    for weight, array in arrays.items()
                }
                for name, arrays in params.items()
                if name in self._one_branch.description.kind.experts
            },
        )
