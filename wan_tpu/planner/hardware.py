"""TPU chips and slices: what the data sheets say, and what libtpu calls them. Knows no model.

Sources, as read in November 2026:

* S1 Google Cloud, pages "TPU v6e", "TPU v5e", "TPU v5p", "TPU7x (Ironwood)"
  (docs.cloud.google.com/tpu/docs/...): peaks, HBM bandwidth, "bidirectional inter-chip interconnect
  bandwidth per chip", ports, accelerator types, slice shapes, chips of a host.
* S2 `jax/_src/pallas/mosaic/tpu_info.py` of jax 0.10.2: matrix units of a core.
* S3 The compiler of libtpu 0.0.42.1 itself: "exceeds available HBM (31.25G)" is the HBM that a
  program may use, less than the data sheet by what the runtime keeps for itself; found by compiling
  a program that is too large for each chip.
* S4 Clock: bf16 peak / (matrix units x FLOPs of each per cycle); for v6e 918e12 / (2 x 2 x 256 x
  256 x 2) = 1.75 GHz, which docs/calibration.md checks against a published run.

v4 is left out: libtpu describes it core by core, while it runs as one device per chip.
"""

import dataclasses
import math

from wan_tpu.errors import UnknownNameError

GIB = 2**30
MIB = 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One generation of chips. All rates and sizes are of one JAX device.

    On v6e, v5e and v5p a device is a chip; on v7x it is half a chip, one of its two TensorCores.

    Attributes:
        name: as accelerator types write it.
        libtpu_name: as topology names write it.
        device_kind: as `jax.Device.device_kind` says it.
        devices_per_chip: JAX devices on a chip.
        cores_per_device: TensorCores of a device; a kernel's grid is split over them.
        bf16_flops: peak bfloat16 FLOP/s (S1).
        int8_flops: peak of products of int8 (S1); bfloat16's on a v7x, which has no faster ones.
        hbm_bytes: HBM that programs may use (S3).
        hbm_bandwidth: bytes/s (S1).
        link_bandwidth: bytes/s of one link in one direction: the chip's bidirectional bandwidth
            over its ports and both directions (S1); the devices of a chip share its links.
        clock_hz: S4.
        counts_cores: whether accelerator types count TensorCores instead of chips.
        torus_size: chips along an axis that closes to a ring (S1): 16 of the two-dimensional chips;
            4 of the three-dimensional ones, whose slices close when they are of whole cubes of 4.
    """

    name: str
    libtpu_name: str
    device_kind: str
    devices_per_chip: int = 1
    cores_per_device: int = 1
    bf16_flops: float
    int8_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    clock_hz: float
    counts_cores: bool = False
    torus_size: int


V6E = Chip(
    name="v6e",
    libtpu_name="v6e",
    device_kind="TPU v6 lite",
    bf16_flops=918e12,
    int8_flops=1836e12,
    hbm_bytes=int(31.25 * GIB),
    hbm_bandwidth=1640e9,
    link_bandwidth=800e9 / 4 / 2,
    clock_hz=1.75e9,
    torus_size=16,
)
V5E = Chip(
    name="v5e",
    libtpu_name="v5e",
    device_kind="TPU v5 lite",
    bf16_flops=197e12,
    int8_flops=394e12,
    hbm_bytes=int(15.75 * GIB),
    hbm_bandwidth=819e9,
    link_bandwidth=400e9 / 4 / 2,
    clock_hz=1.5e9,
    torus_size=16,
)
V5P = Chip(
    name="v5p",
    libtpu_name="v5p",
    device_kind="TPU v5",
    cores_per_device=2,
    bf16_flops=459e12,
    int8_flops=918e12,
    hbm_bytes=int(95.74 * GIB),
    hbm_bandwidth=2765e9,
    link_bandwidth=1200e9 / 6 / 2,
    clock_hz=1.75e9,
    counts_cores=True,
    torus_size=4,
)
V7X = Chip(
    name="v7x",
    libtpu_name="tpu7x",
    device_kind="TPU7x",
    devices_per_chip=2,
    bf16_flops=2307e12 / 2,
    int8_flops=2307e12 / 2,
    hbm_bytes=int(94.75 * GIB),
    hbm_bandwidth=7380e9 / 2,
    link_bandwidth=1200e9 / 6 / 2,
    clock_hz=2.2e9,
    counts_cores=True,
    torus_size=4,
)
CHIPS = {chip.name: chip for chip in (V6E, V5E, V5P, V7X)}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device, by `jax.Device.device_kind`; None for no TPU known here."""
    return next((c.bf16_flops for c in CHIPS.values() if c.device_kind == device_kind), None)


_FLAT = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
"""Slice shapes of the two-dimensional chips by number of chips (S1)."""

_CUBIC = {
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
}
"""Slice shapes of the three-dimensional chips by number of chips (S1)."""

_SHAPES = {"v6e": _FLAT, "v5e": _FLAT, "v5p": _CUBIC, "v7x": _CUBIC}

_ALIASES = {"v5litepod": "v5e", "tpu7x": "v7x"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Some chips of one kind, wired together.

    Attributes:
        name: the accelerator type, for example `v6e-8`.
        chip: what it is made of.
        shape: chips along each axis.
        host_shape: chips of one host along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    host_shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """Chips of the slice."""
        return math.prod(self.shape)

    @property
    def closed(self) -> tuple[bool, ...]:
        """Of each axis, whether its ends are linked: a ring and not a line."""
        size = self.chip.torus_size
        if len(self.shape) == 2:
            return tuple(length == size for length in self.shape)
        return (all(length % size == 0 for length in self.shape),) * len(self.shape)

    @property
    def num_devices(self) -> int:
        """JAX devices of the slice."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Machines, and JAX processes."""
        return self.num_chips // math.prod(self.host_shape)

    @property
    def topology_name(self) -> str:
        """What `jax.experimental.topologies.get_topology_desc` calls it."""
        return f"{self.chip.libtpu_name}:{'x'.join(str(size) for size in self.shape)}"

    @property
    def host_bounds(self) -> tuple[int, int, int]:
        """The `chips_per_host_bounds` argument: without it libtpu takes 2x2 chips for a host."""
        x, y, *z = self.host_shape
        return (x, y, z[0] if z else 1)


def accelerator_types() -> list[str]:
    """Every name that `find_slice` takes, but for aliases."""
    return [
        f"{name}-{chips * (2 if CHIPS[name].counts_cores else 1)}"
        for name, shapes in _SHAPES.items()
        for chips in shapes
    ]


def find_slice(name: str) -> Slice:
    """The slice of an accelerator type: `v6e-8` has 8 chips, `v5p-8` has 8 cores, 4 chips.

    `v5litepod-8` is `v5e-8`, `tpu7x-8` is `v7x-8` (which counts TensorCores, as v5p does).

    Raises:
        UnknownNameError: there is none; names those that there are.
    """
    kind, _, size = name.strip().lower().partition("-")
    kind = _ALIASES.get(kind, kind)
    chip = CHIPS.get(kind)
    number = int(size) if size.isdecimal() else 0
    cores = 2 if chip is not None and chip.counts_cores else 1
    shape = _SHAPES[kind].get(number // cores) if chip is not None and number % cores == 0 else None
    if chip is None or shape is None:
        raise UnknownNameError("topology", name, accelerator_types())
    return Slice(name=f"{kind}-{number}", chip=chip, shape=shape, host_shape=_host_shape(shape))


def _host_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One host for slices of up to 8 flat chips, else hosts of 2x2 (S1)."""
    if len(shape) == 2:
        return shape if math.prod(shape) <= 8 else (2, 2)
    return (2, 2, 1)
