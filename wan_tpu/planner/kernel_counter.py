"""The attention kernels of programs and their static counts, kept between plans."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from wan_tpu.attention.names import FLASH_INT8
from wan_tpu.attention.resolve import resolve_implementation
from wan_tpu.planner.compile import FactsCache, counter_digest, source_digest, versions
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.hardware import Slice
from wan_tpu.planner.kernel_cycles import count_cycles
from wan_tpu.planner.kernels import KernelCycles, KernelShape
from wan_tpu.planner.program import ProgramCosts
from wan_tpu.planner.schedule import KernelCountError

NO_COUNT_OF_SPLASH = "the gradient of splash attention is not counted"


class KernelCounter:
    """Counts each shape once, whichever program has it.

    Args:
        where: the slice.
        attention: one of `wan_tpu.attention.names.IMPLEMENTATIONS` that is exact; kernels of int8
            are known by their name.
        dtype: that is computed in.
        num_tokens: of a sample; longer keys are padded.
        crossed: lengths of other keys: of text, of pictures.
        cache: where counts are kept.
        report: called with what is being done, one short line at a time.
    """

    def __init__(
        self,
        *,
        where: Slice,
        attention: str,
        dtype: str,
        num_tokens: int,
        crossed: tuple[int, ...],
        cache: FactsCache,
        report: Callable[[str], None],
    ):
        self._chip, self._attention, self._dtype = where.chip, attention, dtype
        self._num_tokens, self._crossed = num_tokens, crossed
        self._cache, self._report = cache, report
        self._failed: dict[KernelShape, str] = {}

    def count(
        self, programs: Iterable[ProgramCosts]
    ) -> tuple[dict[Attention, KernelCycles], dict[Attention, str]]:
        """Static counts of every attention kernel in the programs, and why others have none."""
        shapes = {o.attention for c in programs for o in c.operations if o.attention is not None}
        counted, uncounted = {}, {}
        for attention in sorted(shapes, key=dataclasses.astuple):
            shape = self._shape(attention)
            count = self._count(shape.smallest_alike())
            if isinstance(count, str):
                uncounted[attention] = count
            else:
                counted[attention] = count.of(shape)
        return counted, uncounted

    def _shape(self, attention: Attention) -> KernelShape:
        padded = attention.keys > self._num_tokens and attention.keys not in self._crossed
        return KernelShape(
            chip=self._chip.name,
            implementation=self._implementation(attention),
            queries=attention.queries,
            keys=attention.keys,
            num_keys=self._num_tokens if padded else attention.keys,
            head_dim=attention.head_dim,
            query_chunks=attention.query_chunks,
            key_chunks=attention.key_chunks,
            dtype=self._dtype,
            is_backward=attention.is_backward,
        )

    def _implementation(self, attention: Attention) -> str:
        if attention.is_int8:
            return FLASH_INT8
        return resolve_implementation(
            self._attention,
            "tpu",
            device_kind=self._chip.device_kind,
            dtype=self._dtype,
            head_dim=attention.head_dim,
        )

    def _count(self, shape: KernelShape) -> KernelCycles | str:
        """The count of a kernel, or why there is none; a count that failed is not tried again."""
        if shape.is_backward and shape.implementation != "flash":
            return NO_COUNT_OF_SPLASH
        key = {
            "what": "kernel",
            **dataclasses.asdict(shape),
            "versions": versions(),
            "source": source_digest(),
            "counter": counter_digest(),
        }

        def make() -> dict[str, Any]:
            whose = "attention's gradient" if shape.is_backward else "attention"
            self._report(
                f"counting the cycles of {whose}, {shape.queries} x {shape.num_keys} tokens"
            )
            return dataclasses.asdict(count_cycles(shape))

        if shape not in self._failed:
            try:
                parts = self._cache.get(key, make)["parts"]
                return KernelCycles(parts={name: tuple(part) for name, part in parts.items()})
            except KernelCountError as error:
                self._failed[shape] = str(error)
                self._report(f"attention goes by its FLOPs at peak: {error}")
        return self._failed[shape]
