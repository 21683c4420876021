"""What the tests of a fleet share: Temporal's server, and a namespace of each test's own."""

import contextlib

import pytest

from tests.server.fleet.servers import TemporalServer


@pytest.fixture(scope="session")
def temporal():
    """A server of Temporal for all tests; who strikes it starts it again."""
    with contextlib.closing(TemporalServer()) as server:
        yield server.start()


@pytest.fixture
def fleet_url(temporal):
    """What WAN_TPU_FLEET is for this test: a namespace of its own."""
    return temporal.new_fleet()
