"""What the tests of a fleet share: Temporal's server, a namespace each, and slices to strike."""

import contextlib

import pytest

from tests.server.fleet.api import ApiFleet
from tests.server.fleet.servers import RunningSlice, TemporalServer
from tests.server.postgres import new_database


@pytest.fixture(scope="session")
def temporal():
    """A server of Temporal for all tests; who strikes it starts it again."""
    with contextlib.closing(TemporalServer()) as server:
        yield server.start()


@pytest.fixture
def fleet_url(temporal):
    """What WAN_TPU_FLEET is for this test: a namespace of its own."""
    return temporal.new_fleet()


class Fleet:
    """Slices of a module's tests, with a namespace and a bucket of their own.

    Attributes:
        temporal: its server.
        url: what WAN_TPU_FLEET is.
        bucket: folder of the files.
        slices: by name; those that do not run any more, too.
    """

    def __init__(self, temporal, folder):
        self.temporal = temporal
        self.url = temporal.new_fleet()
        self.bucket = folder / "bucket"
        self.bucket.mkdir()
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.slices = {}
        self._folder = folder

    def slice(self, name, **settings):
        """A slice that takes jobs, started unless it runs already."""
        if name not in self.slices:
            self.slices[name] = RunningSlice(
                self._folder / name,
                self.url,
                self.bucket,
                environment={"SCRIPTED_ENGINE_MARKS": str(self.marks)},
                **settings,
            )
        found = self.slices[name]
        if found.process.poll() is not None:
            found.start()
        return found.wait_ready()

    def files(self):
        """Keys of all objects of jobs."""
        found = (self.bucket / "videos").rglob("*")
        return sorted(str(path.relative_to(self.bucket)) for path in found if path.is_file())

    def close(self):
        for each in self.slices.values():
            each.stop()


@pytest.fixture(scope="module")
def fleet(temporal, tmp_path_factory):
    """A fleet without slices yet."""
    with contextlib.closing(Fleet(temporal, tmp_path_factory.mktemp("fleet"))) as found:
        yield found


@pytest.fixture
def api_fleet(fleet_url, postgres, tmp_path):
    """An empty database, an empty folder as the bucket, and a namespace, of each test's own."""
    with new_database(postgres) as database:
        yield ApiFleet(fleet_url, database, tmp_path)
