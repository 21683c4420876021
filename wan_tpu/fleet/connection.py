"""The connection to Temporal: which address, by which certificates, and what if it is away."""

import asyncio
import functools
import logging
import re
import time
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, TLSConfig
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.service import RPCError, RPCStatusCode

from wan_tpu.fleet.address import FleetAddress, FleetError, FleetKeys

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.25, 10.0
CALL_SECONDS = 5.0

REFUSED = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED})
"""Answers that no waiting changes: the certificate or the key is not one of this namespace."""


async def connect(
    address: FleetAddress,
    keys: FleetKeys,
    *,
    identity: str,
    patience_seconds: float = float("inf"),
) -> Client:
    """A connection over which Temporal has answered for the namespace; waits until it has.

    What keeps it away is logged once as long as it stays the same.

    Args:
        address: of the fleet.
        keys: by which this process gets in.
        identity: as Temporal's own pages call this process.
        patience_seconds: how long to wait.

    Raises:
        FleetError: a file cannot be read, Temporal refuses this process, or did not come in time.
    """
    tls, api_key = tls_of(keys), _api_key_of(keys)
    delay, said, end = FIRST_RETRY_SECONDS, "", time.monotonic() + patience_seconds
    while True:
        try:
            client = await Client.connect(
                address.target,
                namespace=address.namespace,
                identity=identity,
                tls=tls,
                api_key=api_key,
                connect_timeout=timedelta(seconds=CALL_SECONDS),
                runtime=_runtime(),
            )
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=address.namespace),
                timeout=timedelta(seconds=CALL_SECONDS),
            )
        except (RPCError, RuntimeError) as error:  # the latter: there is no connection at all
            words = _words_for(error, address, keys)
            if time.monotonic() + delay > end:
                raise FleetError(words) from None
            if said != words:
                logger.warning("%s; waiting for it", words)
            said = words
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY_SECONDS)
        else:
            logger.info("connected to Temporal at %s/%s", address.target, address.namespace)
            return client


def tls_of(keys: FleetKeys) -> TLSConfig | bool:
    """How the connection is encrypted: by the files that are named, else by the key, else not.

    Raises:
        FleetError: a file cannot be read.
    """
    if keys.ca is None and keys.cert is None:
        return keys.api_key is not None
    return TLSConfig(
        server_root_ca_cert=keys.read("ca"),
        client_cert=keys.read("cert"),
        client_private_key=keys.read("key"),
    )


def words_of(error: Exception) -> str:
    """A failed call in one line; that a connection was not made comes as a whole tree of errors."""
    quoted = re.findall(r'"([^"]+)"', str(error))
    return ": ".join(quoted) if quoted else str(error).splitlines()[0]


@functools.cache
def _runtime() -> Runtime:
    """The threads of Temporal's library, whose log goes where ours does."""
    log = LoggingConfig(
        filter=TelemetryFilter(core_level="ERROR", other_level="ERROR"),
        forwarding=LogForwardingConfig(logger=logging.getLogger("wan_tpu.fleet.temporal")),
    )
    return Runtime(telemetry=TelemetryConfig(logging=log))


def _words_for(error: RPCError | RuntimeError, address: FleetAddress, keys: FleetKeys) -> str:
    """What keeps the connection from being used.

    Raises:
        FleetError: waiting does not help.
    """
    where = f"Temporal at {address.target}"
    if not isinstance(error, RPCError):
        return f"{where} cannot be reached: {words_of(error)}"
    if error.status in REFUSED:
        raise FleetError(
            f"{where} refuses this process for the namespace {address.namespace!r}: "
            f"{words_of(error)}; see {keys.setting('cert')} and {keys.setting('api_key')}"
        ) from None
    if error.status == RPCStatusCode.NOT_FOUND:
        return (
            f"{where} has no namespace {address.namespace!r}; make it with `temporal operator "
            f"namespace create {address.namespace}`"
        )
    return f"{where} does not answer: {words_of(error)}"


def _api_key_of(keys: FleetKeys) -> str | None:
    found = keys.read("api_key")
    return None if found is None else found.decode("ascii", "replace").strip()
