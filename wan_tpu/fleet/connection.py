"""The connection to Temporal: which address, by which certificates, and what if it is away."""

import asyncio
import dataclasses
import logging
import pathlib
import re
import time
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, TLSConfig
from temporalio.service import RPCError, RPCStatusCode

from wan_tpu.errors import InputError, WanTpuError

logger = logging.getLogger(__name__)

EXAMPLE = "temporal://127.0.0.1:7233/default"
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.25, 10.0
CALL_SECONDS = 5.0

REFUSED = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED})
"""Answers that no waiting changes: the certificate or the key is not one of this namespace."""


class FleetError(WanTpuError):
    """The fleet cannot be joined; says what to do."""


class FleetUrlError(FleetError, InputError):
    """What names the fleet is not written as it should be."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetAddress:
    """Where a fleet's jobs are held, and how one gets in.

    Attributes:
        target: `HOST:PORT` of Temporal's frontend, an IPv6 address in brackets.
        namespace: of the jobs there.
        ca_file: certificate that Temporal's is signed by; makes it TLS.
        cert_file: certificate of this process, and `key_file` its private key: mutual TLS.
        key_file: see `cert_file`.
        api_key_file: key for Temporal Cloud instead; makes it TLS.
    """

    target: str
    namespace: str
    ca_file: pathlib.Path | None = None
    cert_file: pathlib.Path | None = None
    key_file: pathlib.Path | None = None
    api_key_file: pathlib.Path | None = None

    def tls(self) -> TLSConfig | bool:
        """How the connection is encrypted: by the files that are named, else by the key, else not.

        Raises:
            FleetError: a file cannot be read.
        """
        if self.ca_file is None and self.cert_file is None:
            return self.api_key_file is not None
        return TLSConfig(
            server_root_ca_cert=_read(self.ca_file),
            client_cert=_read(self.cert_file),
            client_private_key=_read(self.key_file),
        )

    def api_key(self) -> str | None:
        """The key for Temporal Cloud; None where there is none.

        Raises:
            FleetError: its file cannot be read.
        """
        found = _read(self.api_key_file)
        return None if found is None else found.decode("ascii", "replace").strip()


def parse_fleet(url: str) -> tuple[str, str]:
    """Reads `temporal://HOST:PORT/NAMESPACE`; returns `HOST:PORT` and the namespace.

    Raises:
        FleetUrlError: it has another form; says which one is meant.
    """
    match = re.fullmatch(
        r"temporal://((?:\[[0-9a-fA-F:]+\]|[\w.-]+):([0-9]{1,5}))/([\w.-]{2,255})", url
    )
    if match is None or not 0 < int(match[2]) < 65536:
        raise FleetUrlError(
            f"a fleet is temporal://HOST:PORT/NAMESPACE, for example {EXAMPLE}, got {url!r}"
        )
    return match[1], match[3]


async def connect(
    address: FleetAddress, *, identity: str, patience_seconds: float = float("inf")
) -> Client:
    """A connection over which Temporal has answered for the namespace; waits until it has.

    What keeps it away is logged once as long as it stays the same.

    Args:
        address: of the fleet.
        identity: as Temporal's own pages call this process.
        patience_seconds: how long to wait.

    Raises:
        FleetError: a file cannot be read, Temporal refuses this process, or did not come in time.
    """
    tls, api_key = address.tls(), address.api_key()
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
            )
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=address.namespace),
                timeout=timedelta(seconds=CALL_SECONDS),
            )
        except (RPCError, RuntimeError) as error:  # the latter: there is no connection at all
            words = _words_for(error, address)
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
            f"{where} refuses this process for the namespace {address.namespace!r}: "
            f"{words_of(error)}; a fleet's certificate or API key file says who it is"
        ) from None
    if error.status == RPCStatusCode.NOT_FOUND:
        return (
            f"{where} has no namespace {address.namespace!r}; make it with `temporal operator "
            f"namespace create {address.namespace}`"
        )
    return f"{where} does not answer: {words_of(error)}"


def _read(path: pathlib.Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}") from None
