"""The connection to Temporal that the settings of a server name."""

from temporalio.client import Client

from server.fleet.settings import FleetSettings, parse_fleet
from wan_tpu.fleet import connection
from wan_tpu.fleet.address import FleetKeys


async def connect(settings: FleetSettings, *, identity: str) -> Client:
    """See `wan_tpu.fleet.connection.connect`.

    Args:
        settings: of a server with `fleet`.
        identity: as Temporal's own pages call this server.

    Raises:
        FleetError: a file of the settings cannot be used, or Temporal refuses this server.
    """
    assert settings.fleet is not None
    address = parse_fleet(settings.fleet)
    return await connection.connect(address, keys_of(settings), identity=identity)


def keys_of(settings: FleetSettings) -> FleetKeys:
    """The files by which a server gets in."""
    return FleetKeys(
        ca=settings.fleet_ca_file,
        cert=settings.fleet_cert_file,
        key=settings.fleet_key_file,
        api_key=settings.fleet_api_key_file,
        called="WAN_TPU_FLEET_{}_FILE",
    )
