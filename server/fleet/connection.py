"""The connection to Temporal: which address, by which certificates, and what if it is away."""

import asyncio
import logging
import pathlib
import re
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, TLSConfig
from temporalio.service import RPCError, RPCStatusCode

from server.fleet.settings import FleetAddress, FleetSettings, parse_fleet
from wan_tpu.errors import WanTpuError

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.25, 10.0
CALL_SECONDS = 5.0

REFUSED = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED})
"""Answers that no waiting changes: the certificate or the key is not one of this namespace."""


class FleetError(WanTpuError):
    """The fleet cannot be joined; says what to do."""


async def connect(settings: FleetSettings, *, identity: str) -> Client:
    """A connection over which Temporal has answered for the namespace; waits until it has.

    What keeps it away is logged once as long as it stays the same.

    Args:
        settings: of a server with `fleet`.
        identity: as Temporal's own pages call this server.

    Raises:
        FleetError: a file of the settings cannot be used, or Temporal refuses this server.
    """
    assert settings.fleet is not None
    address = parse_fleet(settings.fleet)
    tls, api_key = tls_of(settings), _api_key_of(settings)
    delay, said = FIRST_RETRY_SECONDS, ""
    while True:
        try:
            client = await Client.connect(
                address.target,
                namespace=address.namespace,
                identity=identity,
                tls=tls,
                api_key=api_key,
                connect_timeout=timedelta(seconds=CALL_SECONDS),
            )
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=address.namespace),
                timeout=timedelta(seconds=CALL_SECONDS),
            )
        except (RPCError, RuntimeError) as error:  # the latter: there is no connection at all
            words = _words_for(error, address)
            if said != words:
                logger.warning("%s; waiting for it", words)
            said = words
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY_SECONDS)
        else:
            logger.info("connected to Temporal at %s/%s", address.target, address.namespace)
            return client


def tls_of(settings: FleetSettings) -> TLSConfig | bool:
    """How the connection is encrypted: by the files that are named, else by the key, else not.

    Raises:
        FleetError: a file cannot be read.
    """
    if settings.fleet_ca_file is None and settings.fleet_cert_file is None:
        return settings.fleet_api_key_file is not None
    return TLSConfig(
        server_root_ca_cert=_read(settings.fleet_ca_file, "WAN_TPU_FLEET_CA_FILE"),
        client_cert=_read(settings.fleet_cert_file, "WAN_TPU_FLEET_CERT_FILE"),
        client_private_key=_read(settings.fleet_key_file, "WAN_TPU_FLEET_KEY_FILE"),
    )


def words_of(error: Exception) -> str:
    """A failed call in one line; that a connection was not made comes as a whole tree of errors."""
    quoted = re.findall(r'"([^"]+)"', str(error))
    return ": ".join(quoted) if quoted else str(error).splitlines()[0]


def _words_for(error: RPCError | RuntimeError, address: FleetAddress) -> str:
    """What keeps the connection from being used.

    Raises:
        FleetError: waiting does not help.
    """
    where = f"Temporal at {address.target}"
    if not isinstance(error, RPCError):
        return f"{where} cannot be reached: {words_of(error)}"
    if error.status in REFUSED:
        raise FleetError(
            f"{where} refuses this server for the namespace {address.namespace!r}: "
            f"{words_of(error)}; see WAN_TPU_FLEET_CERT_FILE and WAN_TPU_FLEET_API_KEY_FILE"
        ) from None
    if error.status == RPCStatusCode.NOT_FOUND:
        return (
            f"{where} has no namespace {address.namespace!r}; make it with `temporal operator "
            f"namespace create {address.namespace}`"
        )
    return f"{where} does not answer: {words_of(error)}"


def _api_key_of(settings: FleetSettings) -> str | None:
    found = _read(settings.fleet_api_key_file, "WAN_TPU_FLEET_API_KEY_FILE")
    return None if found is None else found.decode("ascii", "replace").strip()


def _read(path: pathlib.Path | None, setting: str) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}; see {setting}") from None
