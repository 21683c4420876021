"""What the tests of a fleet share: Temporal's server, and a namespace of each test's own."""

import asyncio

import pytest

from tests.server.fleet.servers import TemporalServer


@pytest.fixture(scope="session")
def temporal(tmp_path_factory):
    """A server of Temporal for all tests; who kills it starts it again."""
    server = TemporalServer(tmp_path_factory.mktemp("temporal"))
    yield server
    server.stop()


@pytest.fixture
def fleet_url(temporal):
    """What WAN_TPU_FLEET is for this test: a namespace of its own."""
    return asyncio.run(temporal.make_namespace())
