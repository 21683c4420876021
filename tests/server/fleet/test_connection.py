"""What a server of a fleet says of a Temporal that it cannot use."""

import asyncio
import logging

import pytest

from server.demo.backing import free_ports
from server.fleet.connection import connect, keys_of
from server.settings import Settings
from tests.server.fleet.stand_in import eventually
from wan_tpu.fleet.address import FleetError
from wan_tpu.fleet.connection import tls_of


def settings_of(url, **given):
    return Settings(fleet=url, role="slice", files="/nowhere", **given)


async def until_it_waits(settings, caplog):
    """Connects until a log line says what is waited for; returns that line."""
    connecting = asyncio.create_task(connect(settings, identity="test"))
    try:
        with caplog.at_level(logging.WARNING, "wan_tpu.fleet.connection"):
            await eventually(lambda: caplog.messages)
            await asyncio.sleep(0)
            assert not connecting.done()
    finally:
        connecting.cancel()
    (line,) = caplog.messages
    return line


def test_one_that_is_away_is_waited_for(caplog):
    (port,) = free_ports(1)
    url = f"temporal://127.0.0.1:{port}/default"
    line = asyncio.run(until_it_waits(settings_of(url), caplog))
    assert f"Temporal at 127.0.0.1:{port} cannot be reached: " in line
    assert "Connection refused; waiting for it" in line
    assert "\n" not in line


def test_a_namespace_that_is_not_there_is_waited_for(temporal, caplog):
    url = f"temporal://{temporal.address}/nobodys"
    line = asyncio.run(until_it_waits(settings_of(url), caplog))
    assert "has no namespace 'nobodys'" in line
    assert "`temporal operator namespace create nobodys`" in line


def test_files_that_cannot_be_read_are_named(tmp_path):
    settings = settings_of("temporal://[::1]:7233/default", fleet_ca_file=tmp_path / "ca.pem")
    with pytest.raises(FleetError, match=r"cannot read .*ca.pem: No such file.*FLEET_CA_FILE"):
        asyncio.run(connect(settings, identity="test"))


def test_a_connection_is_as_safe_as_the_settings_say(tmp_path):
    url = "temporal://videos.example.com:7233/default"
    assert tls_of(keys_of(settings_of(url))) is False
    assert tls_of(keys_of(settings_of(url, fleet_api_key_file=tmp_path / "key"))) is True
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    found = tls_of(
        keys_of(
            settings_of(
                url,
                fleet_ca_file=tmp_path / "ca",
                fleet_cert_file=tmp_path / "cert",
                fleet_key_file=tmp_path / "key",
            )
        )
    )
    assert not isinstance(found, bool)
    certificates = (found.server_root_ca_cert, found.client_cert, found.client_private_key)
    assert certificates == (b"ca", b"cert", b"key")
