"""Servers: one with the real engine for all tests, and scripted ones with settings of their own."""

import pytest

from tests.server.fleet.servers import GoogleServer, S3Server
from tests.server.postgres import new_database, running_postgres
from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.checkpoints.models import WAN_TINY_TI2V


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A server with the real engine on wan-tiny, ready; with a folder of adapters, still empty."""
    adapters = tmp_path_factory.mktemp("adapters-of-tiny")
    server = RunningServer(tmp_path_factory.mktemp("tiny"), max_work=100, adapters=adapters)
    yield server.wait_ready()
    server.stop()


@pytest.fixture(scope="session")
def tiny_ti2v(tmp_path_factory):
    """A server with the real engine on wan-tiny-ti2v, which takes pictures, too; ready."""
    server = RunningServer(tmp_path_factory.mktemp("tiny-ti2v"), model=WAN_TINY_TI2V)
    yield server.wait_ready()
    server.stop()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A server with the scripted engine and default settings, ready."""
    server = RunningServer(tmp_path_factory.mktemp("quick"), engine=SCRIPTED)
    yield server.wait_ready()
    server.stop()


@pytest.fixture
def start_server(tmp_path):
    """Starts scripted servers with settings of the test's own, all on one data folder."""
    started = []

    def start(**settings):
        server = RunningServer(tmp_path / "data", **{"engine": SCRIPTED, **settings})
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL server."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def s3():
    """An S3 store with a bucket; whoever strikes it leaves it running."""
    yield from running(S3Server())


@pytest.fixture(scope="session")
def gs():
    """A server that speaks Google Cloud Storage's protocol, with a bucket; as `s3`."""
    yield from running(GoogleServer())


def running(server):
    try:
        yield server.start()
    finally:
        server.close()
