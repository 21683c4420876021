"""How many requests a second one key, or one address, may send."""

import collections
import ipaddress
import math
import time

from starlette.types import Scope

from server.errors import ApiError, retry_after

MOST_BUCKETS = 10_000
"""Addresses are without number; those that asked the longest ago are forgotten first."""


class RequestRate:
    """A bucket of tokens for each who asks, refilled steadily; it holds one second's worth."""

    def __init__(self, per_second: float):
        self._per_second = per_second
        self._capacity = max(per_second, 1.0)
        # Tokens, and at what time; who asked last stands last.
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def take(self, who: str) -> float:
        """Takes a token; returns 0, or the seconds until there is one."""
        now = time.monotonic()
        tokens, before = self._buckets.pop(who, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - before) * self._per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._buckets[who] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return wait

    def check(self, who: str) -> None:
        """Takes a token.

        Raises:
            ApiError: there is none; says when there will be one.
        """
        wait = self.take(who)
        if wait:
            message = f"more than {self._per_second:g} requests a second; wait {wait:.2g} seconds"
            raise ApiError(429, "rate_limited", message, headers=retry_after(math.ceil(wait)))


def check_address(rate: RequestRate, scope: Scope) -> None:
    """Takes a token of the address; none is asked of a Unix socket, where a proxy is for all.

    Raises:
        ApiError: there is none. The connection is closed, and with it goes what was sent ahead.
    """
    if not scope.get("client"):
        return
    try:
        rate.check(address_of(scope))
    except ApiError as error:
        error.headers["Connection"] = "close"
        raise


def address_of(scope: Scope) -> str:
    """Who is at the other end: an address, or the network that one subscriber has in IPv6."""
    client = scope.get("client")
    return address_group(client[0]) if client else "unix"


def address_group(host: str) -> str:
    """The address; of IPv6 the first 64 bits, since whoever has one address has all of those."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False).network_address)
