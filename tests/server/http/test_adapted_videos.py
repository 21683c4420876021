"""Adapters, presets and step caches of requests with the real engine: what is made, and said."""

import pathlib

from tests.server.http.test_adapters import FITTING, put

PROMPT = "a red circle moving right on a black background"


def folder_of(server):
    return pathlib.Path(server.environment["WAN_TPU_ADAPTERS"])


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
    assert error == {
        "code": "adapter_lost", "message": "unknown adapter 'gone.safetensors'; known: none",
    }  # fmt: skip
    assert tiny.finish(plain)["status"] == "completed"
    assert tiny.client.get("/readyz").status_code == 200
