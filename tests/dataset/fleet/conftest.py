"""What the tests of a fleet's preparing share: Temporal's server, and clips."""

import contextlib

import pytest

from tests.dataset.test_prepare import write_clip
from tests.server.fleet.servers import TemporalServer


@pytest.fixture(scope="session")
def temporal():
    """A server of Temporal for all tests."""
    with contextlib.closing(TemporalServer()) as server:
        yield server.start()


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Six, of which one is cut off, one is another's bytes, and one has no caption."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(6):
        caption = None if number == 4 else f"clip {number % 2}"
        write_clip(folder / f"{number}.mp4", caption, seed=number)
    whole = (folder / "2.mp4").read_bytes()
    (folder / "2.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "5.mp4").write_bytes((folder / "0.mp4").read_bytes())
    return folder
