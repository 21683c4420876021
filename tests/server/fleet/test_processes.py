"""Slices as processes: one that cannot join, and one of two processes that loses one."""

import asyncio
import subprocess
import sys

from server.engine.lockstep import EXIT_LOST
from tests.multihost.running import Slice, clean_environment
from tests.server.fleet.stand_in import make_order, stand_in
from tests.server.running import ROOT, SCRIPTED


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


def test_a_slice_that_cannot_join_ends_while_its_engine_still_loads(tmp_path):
    (tmp_path / "slow-start").touch()
    variables = {
        "WAN_TPU_FLEET": "temporal://127.0.0.1:7233/default",
        "WAN_TPU_FLEET_CA_FILE": "/nowhere/ca.pem",
        "WAN_TPU_ROLE": "slice",
        "WAN_TPU_FILES": str(tmp_path / "bucket"),
        "WAN_TPU_DATA_DIR": str(tmp_path / "slice"),
        "WAN_TPU_PORT": "0",
        "WAN_TPU_ENGINE": SCRIPTED,
        "WAN_TPU_MIN_FREE_BYTES": "0",
        "SCRIPTED_ENGINE_MARKS": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ending with 1: cannot read /nowhere/ca.pem" in done.stderr
    assert "Traceback" not in done.stderr
