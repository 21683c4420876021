"""What it costs to add an adapter to a model that is on a slice: by arithmetic, nothing compiles.

As `wan_tpu.adapters.on_mesh` does it: of each weight that the adapter changes a device reads its
part of the base and of the factors, and writes as much as it read of the base. The factors come
from the host, to each device its part. Products are float32 (six bfloat16 passes of the matrix
unit); what a process needs to read the file is not counted.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from wan_tpu.adapters.placing import abstract_term
from wan_tpu.pipeline.components import transformer_config, tree_bytes
from wan_tpu.planner.hardware import GIB
from wan_tpu.planner.job import Job
from wan_tpu.planner.rows import LayoutPlan
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import abstract_mesh
from wan_tpu.transformer.weights import denoiser_weights, matrices_of_blocks

FLOAT32_PASSES = 6
"""Of bfloat16 products, for one whose operands and sum are float32 (`highest`)."""

FACTORS_DTYPE = "bfloat16"
"""Of nearly all files."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSwitch:
    """A LoRA of every matrix of the blocks, added to all of a model's transformers.

    Attributes:
        layout: where.
        rank: of the factors.
        base_bytes: of the weights that it changes, on a device.
        factor_bytes: of its factors, on a device.
        host_bytes: from a host to all of its devices.
        flops: of a device, products alone.
        hbm_bytes: read and written by a device.
        memory_seconds: for these. compute_seconds: for the products.
        peak_bytes: the plan's, with the second set; on a device.
        limit_bytes: what a device has.
    """

    layout: Layout
    rank: int
    base_bytes: int
    factor_bytes: int
    host_bytes: int
    flops: float
    hbm_bytes: int
    memory_seconds: float
    compute_seconds: float
    peak_bytes: int
    limit_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the second set has room beside the video."""
        return self.peak_bytes <= self.limit_bytes

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**dataclasses.asdict(self), "layout": str(self.layout), "fits": self.fits}

    def __str__(self) -> str:
        fits = "fits" if self.fits else "does not fit"
        return (
            f"an adapter of rank {self.rank} for a request, {self.layout}: "
            f"{self.base_bytes / GIB:.2f} GiB more a device, peak {self.peak_bytes / GIB:.2f} of "
            f"{self.limit_bytes / GIB:.2f} GiB, which {fits}; to make it "
            f"{self.hbm_bytes / 1e9:.1f} GB through its memory, "
            f"{1e3 * self.memory_seconds:.1f} ms, products {1e3 * self.compute_seconds:.1f} ms, "
            f"{self.host_bytes / 1e9:.2f} GB from each host"
        )


def plan_switch(job: Job, row: LayoutPlan, rank: int) -> AdapterSwitch:
    """The cost on the layout of a row.

    Args:
        job: what was planned; not quantised, for such a model takes none.
        row: of it.
        rank: of the adapter.
    """
    assert job.quantize is None, "a quantised model takes none"
    where, layout = job.where, row.layout
    mesh: Any = abstract_mesh(layout)
    experts = len(job.description.kind.experts)
    base = factors = flops = 0
    weights = denoiser_weights(transformer_config(job.description), layout, jnp.dtype(job.dtype))
    for weight in matrices_of_blocks(weights):
        base += experts * tree_bytes(weight.abstract(mesh))
        factors += experts * tree_bytes(abstract_term(weight, mesh, rank, FACTORS_DTYPE))
        elements = tree_bytes(weight.abstract(mesh)) // jnp.dtype(weight.dtype).itemsize
        flops += experts * 2 * elements * rank
    hbm_bytes = 2 * base + factors
    return AdapterSwitch(
        layout=layout,
        rank=rank,
        base_bytes=base,
        factor_bytes=factors,
        host_bytes=factors * where.num_devices // where.num_hosts,
        flops=flops,
        hbm_bytes=hbm_bytes,
        memory_seconds=hbm_bytes / where.chip.hbm_bandwidth,
        compute_seconds=FLOAT32_PASSES * flops / where.chip.bf16_flops,
        peak_bytes=row.peak_bytes + base,
        limit_bytes=row.limit_bytes,
    )
