"""Slices of real processes over loopback."""

import pytest

from tests.multihost.running import Slice
from tests.server.running import SCRIPTED


@pytest.fixture
def start_slice(tmp_path):
    """Starts slices; with the scripted engine, unless told otherwise."""
    started = []

    def start(num_processes=3, **settings):
        found = Slice(tmp_path / "data", num_processes, **{"engine": SCRIPTED, **settings})
        started.append(found)
        return found

    yield start
    for each in started:
        each.stop()
