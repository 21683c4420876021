"""Adapters, presets and step caches of requests with the real engine: what is made, and said."""

import pathlib
import shutil

import numpy as np
import pytest

from tests.adapters.make_purple import COLOR, PURPLE
from tests.server.http.test_adapters import FITTING, put
from wan_tpu.demo.data import all_scenes
from wan_tpu.demo.recognition import judge_file

PROMPT = "a red circle moving right on a black background"


def folder_of(server):
    return pathlib.Path(server.environment["WAN_TPU_ADAPTERS"])


@pytest.mark.parametrize(
    "number", [6, pytest.param(24, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_jobs_with_an_adapter_and_without_take_turns(tiny, tmp_path, number):
    """Red when an adapter stays for the next job, or is not there: it makes every shape purple."""
    shutil.copy(PURPLE, folder_of(tiny))
    others = [scene for scene in all_scenes() if scene.color != COLOR]
    chosen = np.random.default_rng(5).permutation(len(others))[:number]
    wanted, made = [], []
    for index, scene in enumerate(others[i] for i in chosen):
        is_purple = index % 2 == 1
        lora = [{"name": PURPLE.name, "strength": 1}] if is_purple else None
        made.append(tiny.create(scene.prompt, seed=index, lora=lora))
        wanted.append(COLOR if is_purple else scene.color)
    seen = []
    for video in made:
        done = tiny.finish(video)
        assert done["status"] == "completed", done["error"]
        names = [each["file"] for each in done["metadata"]["adapters"]]
        assert names == [each["name"] for each in done["metadata"]["request"].get("lora", ())]
        path = tmp_path / "video.mp4"
        path.write_bytes(tiny.client.get(f"/v1/videos/{video['id']}/content").content)
        seen.append(judge_file(path).color)
    assert seen == wanted


def test_a_video_in_few_steps_says_what_made_it(tiny):
    """The preset brings its adapter along, which the folder need not have."""
    done = tiny.finish(tiny.create(PROMPT, fast=True, seed=3))
    assert done["status"] == "completed", done["error"]
    metadata = done["metadata"]
    assert metadata["fast"]["name"] == "wan-tiny-4"
    assert [each["file"] for each in metadata["adapters"]] == [FITTING.name]
    assert sum(metadata["steps"].values()) == 4


def test_what_a_step_cache_left_out_is_said(tiny):
    done = tiny.finish(tiny.create(PROMPT, step_cache="magcache:0.5", seed=3))
    assert done["status"] == "completed", done["error"]
    said = done["metadata"]["step_cache"]
    assert (said["name"], said["steps"]) == ("magcache", 12)
    assert 0 < said["computed"] < 12


def test_an_adapter_that_goes_while_its_job_waits_fails_that_job_alone(tiny):
    put(folder_of(tiny) / "gone.safetensors")
    before = tiny.create("slow", num_inference_steps=1000)
    tiny.wait_until(before, "in_progress")
    lost = tiny.create(PROMPT, lora="gone.safetensors", num_inference_steps=2)
    plain = tiny.create(PROMPT, num_inference_steps=2)
    (folder_of(tiny) / "gone.safetensors").unlink()
    tiny.client.post(f"/v1/videos/{before['id']}/cancel")
    error = tiny.finish(lost)["error"]
    assert error["code"] == "adapter_lost"
    assert error["message"].startswith("unknown adapter 'gone.safetensors'; known: ")
    assert tiny.finish(plain)["status"] == "completed"
    assert tiny.client.get("/readyz").status_code == 200
