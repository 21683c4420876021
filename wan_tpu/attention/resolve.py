"""Which implementation a call of attention means, on the devices that will run it."""

import dataclasses
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wan_tpu.attention.arrays import Device, Keys, Queries
from wan_tpu.attention.chunked import CPU_SCORES_LIMIT, SCORES_LIMIT
from wan_tpu.attention.dot_product import GPU_PLATFORMS, cudnn_takes
from wan_tpu.attention.flash_blocks import CHIPS, LANES
from wan_tpu.attention.flash_int8 import check_int8
from wan_tpu.attention.names import FLASH, FLASH_INT8, IMPLEMENTATIONS
from wan_tpu.attention.splash_tiles import WIDE_CHIPS, ChipTiles, tiles_for
from wan_tpu.errors import UnknownNameError


class FlashSettings(TypedDict):
    """Arguments of the functions of our own kernels, besides a head's features."""

    num_keys: int
    interpret: bool
    device_kind: str


class SplashSettings(TypedDict):
    """Arguments of the splash functions."""

    num_keys: int
    tiles: ChipTiles
    interpret: bool


def resolve_implementation(
    name: str,
    platform: str,
    *,
    device_kind: str = "",
    dtype: jax.typing.DTypeLike | None = None,
    head_dim: int | None = None,
    gradient: bool = False,
) -> str:
    """The concrete implementation that `name` means on a platform; never `auto`.

    `auto` is the one whose memory stays flat in the length: on a TPU flash where it suits (a chip
    that it has blocks for, heads of whole registers; where a gradient is taken, matrix units 256
    wide, for 128 wide splash's takes 18% less), else splash; cuDNN's flash kernel
    behind `jax.nn.dot_product_attention` on a GPU, else the chunked one. cuDNN takes 16-bit types
    and head sizes that are multiples of 8 only; for others `dot_product` would hold the whole score
    matrix, so `auto` is chunked there too.

    Args:
        name: one of `IMPLEMENTATIONS`.
        platform: of the devices that will run it, as `jax.Device.platform` says.
        device_kind: likewise; a v6e when not given.
        dtype: of the query; bfloat16 when not given.
        head_dim: of the query; 128, Wan's, when not given.
        gradient: whether it is chosen for training.

    Raises:
        UnknownNameError: there is no such implementation.
        InputError: the chip or the heads do not suit `flash-int8`.
    """
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("attention", name, IMPLEMENTATIONS)
    if name == FLASH_INT8:
        interpret = platform != "tpu"
        check_int8(head_dim=head_dim or LANES, device_kind=device_kind, interpret=interpret)
    if name != "auto":
        return name
    if platform == "tpu":
        chips = WIDE_CHIPS if gradient else CHIPS
        suits = device_kind in ("", *chips) and (head_dim or 128) % LANES == 0
        return FLASH if suits else "splash"
    if platform in GPU_PLATFORMS and cudnn_takes(dtype or jnp.bfloat16, head_dim or 128):
        return "dot_product"
    return "chunked"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What carries out a call of `attend`, and how.

    Attributes:
        name: an implementation, never `auto`.
        num_keys: real keys.
        interpret: whether Pallas kernels run in the interpreter.
        device: one like those that will run it.
    """

    name: str
    num_keys: int
    interpret: bool
    device: Device

    def real(self, key: Keys, value: Keys) -> tuple[Array, Array]:
        """The real keys and values.

        Padding is cut off where nothing is masked: a NaN in it cannot come back as 0 x NaN.
        """
        return key[:, : self.num_keys], value[:, : self.num_keys]

    def scores_limit(self) -> int:
        """Of the chunked implementation."""
        return CPU_SCORES_LIMIT if self.device.platform == "cpu" else SCORES_LIMIT

    def of_flash(self) -> FlashSettings:
        """Arguments of the functions of our own kernels."""
        return {
            "num_keys": self.num_keys,
            "interpret": self.interpret,
            "device_kind": self.device.device_kind,
        }

    def of_splash(self) -> SplashSettings:
        """Arguments of the splash functions."""
        return {
            "num_keys": self.num_keys,
            "tiles": tiles_for(self.device.device_kind),
            "interpret": self.interpret,
        }


def choose(
    query: Queries,
    key: Keys,
    value: Keys,
    implementation: str,
    num_keys: int | None,
    interpret: bool | None,
    device: Device | None,
) -> Choice:
    """What the arguments of `attend` mean, after callers are held to their part of it."""
    batch, keys, heads, head_dim = key.shape
    assert value.shape == key.shape, (key.shape, value.shape)
    assert query.shape == (batch, query.shape[1], heads, head_dim), (query.shape, key.shape)
    assert num_keys is None or 1 <= num_keys <= keys, (num_keys, key.shape)
    device = device or default_device()
    name = resolve_implementation(
        implementation,
        device.platform,
        device_kind=device.device_kind,
        dtype=query.dtype,
        head_dim=head_dim,
    )
    return Choice(
        name=name,
        num_keys=num_keys or keys,
        interpret=bool(device.platform != "tpu" if interpret is None else interpret),
        device=device,
    )


def default_device() -> Device:
    """The one that runs what is not told where."""
    return jax.devices()[0]
