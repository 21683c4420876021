"""`wan-tpu remote list`, `watch`, `fetch`, `cancel`: of a real service."""

import json
import signal

import pytest

from tests.cli.remote.conftest import end, jobs
from wan_tpu.cli.remote.listing import table
from wan_tpu.cli.remote.video import RemoteVideo
from wan_tpu.pipeline.video_file import read_frames

UNKNOWN = "video_" + 32 * "0"


@pytest.fixture
def long_job(service):
    """A job that runs for long; gone after the test."""
    video = service.create("slow and long", num_inference_steps=90)
    yield service.wait_step(video, 1)
    service.client.delete(f"/v1/videos/{video['id']}")


def test_a_list_is_a_line_each_newest_first(remote, service):
    ids = [service.finish(service.create(f"fox {n}", num_inference_steps=2))["id"] for n in (1, 2)]
    code, out, err = remote("list", "--limit", "2")
    assert (code, err) == (0, "")
    second, first = out.splitlines()
    for line, video_id, prompt in ((first, ids[0], "fox 1"), (second, ids[1], "fox 2")):
        assert line.split("  ") == [video_id, "0 min", "64x64", "2 s", "completed", prompt]


def test_a_list_as_json_is_what_the_server_says(remote, service):
    service.finish(service.create("fox", num_inference_steps=2))
    code, out, _ = remote("list", "--json", "--limit", "1")
    assert (code, json.loads(out)) == (0, jobs(service)[:1])


def test_a_list_goes_on_behind_a_page(remote, service, monkeypatch):
    for number in range(3):
        service.finish(service.create(f"page {number}", num_inference_steps=2))
    monkeypatch.setattr("wan_tpu.cli.remote.server.PAGE", 2)
    _, out, _ = remote("list", "--limit", "3")
    assert [line.rpartition("  ")[2] for line in out.splitlines()] == ["page 2", "page 1", "page 0"]


def test_a_prompt_moves_no_cursor_and_fills_no_screen():
    data = {"id": "a", "status": "queued", "prompt": "red\n\x1b[2Jfox" + 90 * "x", "seconds": "2"}
    (line,) = table([RemoteVideo.read(data)], 60, now=0).splitlines()
    assert "red \ufffd[2Jfox" in line
    assert len(line) == 60


def test_watching_one_ends_with_it(remote, service):
    video = service.create("slow", num_inference_steps=4)
    code, out, err = remote("watch", video["id"])
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == f"wan-tpu: {video['id']} is completed"
    failing = service.create("boom", num_inference_steps=4)
    code, _, err = remote("watch", failing["id"])
    assert (code, "failed: engine_error" in err) == (1, True), err


def test_watching_all_ends_when_nothing_waits(remote, service):
    """A line for each change; what had ended before is not shown."""
    done = service.finish(service.create("old", num_inference_steps=2))["id"]
    ids = [service.create(f"slow {n}", num_inference_steps=8)["id"] for n in (1, 2)]
    code, out, _ = remote("watch")
    assert code == 0
    assert done not in out
    for video_id, prompt in zip(ids, ("slow 1", "slow 2"), strict=True):
        states = [line.split("  ")[1:] for line in out.splitlines() if video_id in line]
        assert states[-1] == ["completed", prompt]
        assert any(state.startswith("denoise ") for state, _ in states)
    assert any("queued, place 1" in line and ids[1] in line for line in out.splitlines())
    service.create("slow boom", num_inference_steps=3)
    assert remote("watch")[0] == 1


def test_a_video_that_is_deleted_while_it_is_watched(begin, service, long_job):
    process = begin("denoise", "watch", long_job["id"], "--server", service.url)
    service.client.delete(f"/v1/videos/{long_job['id']}")
    code, _, said = end(process)
    assert (code, said.splitlines()[-1]) == (
        2, f"wan-tpu: there is no video '{long_job['id']}'",
    )  # fmt: skip


def test_ctrl_c_leaves_what_is_watched(begin, service, long_job):
    process = begin("denoise", "watch", long_job["id"], "--server", service.url)
    code, _, said = end(process, signal.SIGINT)
    assert (code, said.splitlines()[-1]) == (130, "wan-tpu: interrupted")
    assert service.retrieve(long_job)["status"] == "in_progress"


def test_fetching_waits_for_the_video(remote, service, tmp_path):
    video = service.create("slow", num_inference_steps=3)
    code, out, err = remote("fetch", video["id"])
    assert (code, out) == (0, f"{video['id']}.mp4\n"), err
    assert read_frames(tmp_path / f"{video['id']}.mp4").shape == (17, 64, 64, 3)
    story = json.loads((tmp_path / f"{video['id']}.json").read_text())
    assert story["request"]["prompt"] == "slow"


@pytest.mark.parametrize(
    ("variant", "name", "begins"),
    [("thumbnail", "a.webp", b"RIFF"), ("spritesheet", "a.jpg", b"\xff\xd8\xff")],
)
def test_fetching_a_picture_of_it(remote, service, tmp_path, variant, name, begins):
    video = service.finish(service.create("x", num_inference_steps=2))
    code, out, err = remote("fetch", video["id"], "--variant", variant, "-o", name)
    assert (code, out) == (0, f"{name}\n"), err
    assert (tmp_path / name).read_bytes().startswith(begins)
    code, _, err = remote("fetch", video["id"], "--variant", variant, "-o", "a.mp4")
    assert (code, "write a." in err) == (2, True), err


def test_cancelling_some(remote, service, long_job):
    waiting = service.create("slow", num_inference_steps=3)
    code, out, err = remote("cancel", waiting["id"], long_job["id"])
    assert (code, out.split(), err) == (0, [waiting["id"], long_job["id"]], "")
    for video in (waiting, long_job):
        assert service.finish(video)["error"]["code"] == "cancelled"
    done = service.finish(service.create("x", num_inference_steps=2))
    code, out, err = remote("cancel", UNKNOWN, done["id"])
    assert (code, out, len(err.splitlines())) == (1, "", 2), err
    assert "there is no video" in err
    assert "cannot be cancelled" in err


def test_cancelling_all_leaves_what_has_ended(remote, service, long_job):
    done = service.create("x", num_inference_steps=2)
    kept = [job["id"] for job in jobs(service) if job["status"] == "completed"]
    code, out, _ = remote("cancel", "--all")
    assert (code, set(out.split())) == (0, {done["id"], long_job["id"]})
    assert kept == [job["id"] for job in jobs(service) if job["status"] == "completed"]
    again = service.create("slow", num_inference_steps=90)
    assert remote("cancel", "--all", "--delete")[:2] == (0, f"{again['id']}\n")
    left = jobs(service)
    assert again["id"] not in [job["id"] for job in left]
    assert kept == [job["id"] for job in left if job["status"] == "completed"]


def test_deleting_forgets(remote, service):
    video = service.finish(service.create("x", num_inference_steps=2))
    assert remote("cancel", "--delete", video["id"])[:2] == (0, f"{video['id']}\n")
    assert service.client.get(f"/v1/videos/{video['id']}").status_code == 404


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cancel"], "--all"),
        (["cancel", "--all", "a"], "not both"),
        (["fetch", "../../etc"], "must be the id of a video"),
        (["fetch", UNKNOWN], "there is no video"),
        (["watch", UNKNOWN], "there is no video"),
        (["list", "--limit", "0"], "at least 1"),
    ],
)
def test_wrong_usage(remote, words, said):
    code, out, err = remote(*words)
    assert (code, out) == (2, ""), err
    assert said in err


def test_an_address_beside_the_api(remote, service):
    code, _, err = remote("list", server=f"{service.url}/elsewhere")
    assert (code, err.count("\n"), "there is nothing at" in err) == (2, 1, True), err


def test_models_says_what_there_is(remote, service):
    code, out, err = remote("models")
    assert code == 0, err
    first, *rows = out.splitlines()
    assert first == "wan-tiny"
    for kind, name, words in (
        ("adapter", "bad.safetensors", "cannot be used: "),
        ("adapter", "fox.safetensors", "rank"),
        ("preset", "wan-tiny-4", "wan-tiny in 4 steps"),
        ("preset", "rcm-4", "distilled to it"),
    ):
        (row,) = [row for row in rows if row.split()[:2] == [kind, name]]
        assert words in row
    code, out, _ = remote("models", "--json")
    assert json.loads(out) == service.client.get("/v1/models").json()["data"]
