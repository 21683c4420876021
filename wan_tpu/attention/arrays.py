"""The shapes that attention's arrays come in, one name each. Checked at run time in tests only."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Float32, Int8

Queries = Float[Array, "batch queries heads head_dim"]

Keys = Float[Array, "batch keys heads head_dim"]
"""Keys, and values likewise."""

LogSumExp = Float32[Array, "batch heads queries"]
"""Of each query's scores."""

QueryChunks = Float[Array, "query_chunks batch query_chunk channels"]
"""Queries as devices exchange them: tokens in chunks, heads one after the other in the channels.
Token t of chunk c is number `c * chunk + t`."""

KeyChunks = Float[Array, "key_chunks batch key_chunk channels"]
"""Keys or values likewise; chunks may differ from the queries' in number and length."""

Int8KeyChunks = Int8[Array, "key_chunks batch key_chunk channels"]
"""Keys likewise, as whole numbers (`wan_tpu.attention.int8_keys`)."""

AnyKeyChunks = KeyChunks | Int8KeyChunks
"""Keys or values in chunks, or keys as whole numbers."""

Grouped = Float[Array, "groups batch tokens group_channels"]
"""Queries, keys or values of all devices: heads in groups, one after the other in the channels."""

Tokens = Float[Array, "batch tokens channels"]
"""Heads one after the other in the channels of a token."""


@runtime_checkable
class Device(Protocol):
    """What attention asks of a `jax.Device`."""

    platform: str
    device_kind: str
