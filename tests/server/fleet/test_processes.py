"""A slice of two processes: what the fleet learns when one of them is lost."""

import asyncio

from server.engine.lockstep import EXIT_LOST
from tests.multihost.running import Slice
from tests.server.fleet.stand_in import make_order, stand_in
from tests.server.running import SCRIPTED


def test_a_job_whose_follower_is_lost_is_made_by_the_slice_when_it_is_whole_again(
    fleet_url, tmp_path
):
    """Each process is started again when it ends, as a group of pods is."""
    found = Slice(
        tmp_path / "slice",
        2,
        engine=SCRIPTED,
        fleet=fleet_url,
        role="slice",
        files=tmp_path / "bucket",
        slice_name="pair",
        environment={"SCRIPTED_ENGINE_MARKS": str(tmp_path)},
    )

    async def work():
        async with stand_in(fleet_url) as api:
            order = make_order("crashonce@1 slow", steps=5)
            await api.finish(order)
            return api.notes_of(order)

    try:
        found.wait_ready()
        notes = asyncio.run(work())
        assert [(note.state, note.attempts) for note in notes] == [
            ("in_progress", 1), ("queued", 1), ("in_progress", 2), ("completed", 2),
        ]  # fmt: skip
        assert found.wait_ended(0) == [EXIT_LOST]
    finally:
        found.stop()
