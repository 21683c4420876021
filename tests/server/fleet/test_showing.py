"""What slices say of themselves can be read again by those who take requests."""

import asyncio
import dataclasses
import json
import pathlib

import pytest

from server.fleet.showing import Showing, Shown
from tests.server.fleet.stand_in import eventually
from wan_tpu.checkpoints.models import WAN_TINY, WAN_TINY_TI2V, describe_model
from wan_tpu.pipeline.fast import own_presets
from wan_tpu.storage.bucket import open_bucket

DESCRIPTION = dataclasses.replace(
    describe_model(WAN_TINY_TI2V),
    folder=pathlib.Path("/home/somebody/model"),
    files={"vae": pathlib.Path("/home/somebody/vae")},
)

SHOWN = Shown(
    name="a",
    model="wan",
    description=DESCRIPTION,
    warm_sizes=("64x64",),
    state="loading",
    words="",
    since=1.0,
    engine={},
    processes=2,
)


@pytest.mark.parametrize("model", [WAN_TINY, WAN_TINY_TI2V])
def test_a_slice_is_read_as_it_was_written(model):
    shown = dataclasses.replace(SHOWN, description=describe_model(model))
    found = Shown.from_json(shown.to_json())
    without_files = dataclasses.replace(shown.description, folder=None, files={})
    assert found == dataclasses.replace(shown, description=without_files)
    assert own_presets(found.description) == own_presets(shown.description)


def test_nobody_learns_where_its_files_lie():
    assert b"/home/" not in SHOWN.to_json()


def test_what_a_later_release_says_is_passed_over():
    fields = json.loads(SHOWN.to_json())
    assert Shown.from_json(json.dumps({**fields, "colour": "red"}).encode()).name == "a"
    for text in (b"", b"[]", b"{}", json.dumps({**fields, "description": {}}).encode()):
        with pytest.raises(ValueError, match=r"no slice|Expecting value|validation error"):
            Shown.from_json(text)


def test_it_is_written_at_every_change_and_removed_at_the_end(tmp_path):
    async def work():
        bucket = open_bucket(str(tmp_path))
        showing = Showing(bucket, SHOWN)
        running = asyncio.create_task(showing.run())
        path = tmp_path / "slices" / "a.json"
        await eventually(path.exists)
        of_model = tmp_path / "models" / "wan.json"
        await eventually(of_model.exists)
        showing.update("ready", "", {"layout": "dp2"})
        await eventually(lambda: Shown.from_json(path.read_bytes()).state == "ready")
        found = Shown.from_json(path.read_bytes())
        assert (found.engine, found.since > 1.0) == ({"layout": "dp2"}, True)
        running.cancel()
        await showing.remove()
        assert not path.exists()

    asyncio.run(work())
