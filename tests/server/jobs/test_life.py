"""Jobs through restarts, kills, drains, timeouts and cancellation; with the scripted engine."""

import json
import os
import signal
import time

import psutil
import pytest

from tests.server.running import SCRIPTED, RunningServer, wait_for

SLOW = {"num_inference_steps": 90}
"""Eighteen seconds with `slow` in the prompt: longer than any test looks at it."""


def steps_until_idle(server, before):
    """Steps that the engine still did of a job that was stopped, found by having it do another."""
    after = server.finish(server.create("another", num_inference_steps=2))
    assert after["status"] == "completed"
    return server.metric("wan_tpu_denoising_steps_total") - before - 2


def files(server):
    return sorted(
        str(path.relative_to(server.data_dir))
        for folder in ("videos", "partial")
        for path in (server.data_dir / folder).rglob("*")
    )


def test_a_job_from_beginning_to_end(start_server):
    server = start_server().wait_ready()
    video = server.create(num_inference_steps=5)
    assert video["status"] == "queued"
    done = server.finish(video)
    assert done["status"] == "completed", done
    assert done["progress"] == 100
    assert done["completed_at"] >= done["created_at"]
    folder = f"videos/{video['id']}"
    names = ("spritesheet.jpg", "thumbnail.webp", "video.mp4")
    assert files(server) == [folder, *(f"{folder}/{name}" for name in names)]


def test_accepted_jobs_survive_kill(start_server):
    server = start_server()
    videos = [server.create(f"slow {i}", num_inference_steps=5) for i in range(3)]
    server.wait_step(videos[0], 2)
    server.kill()
    server.start()
    for video in videos:
        assert server.finish(video)["status"] == "completed"
    assert len(files(server)) == 3 * 4


def test_a_job_that_was_interrupted_too_often_fails(start_server):
    server = start_server(max_attempts=2)
    video = server.create("slow", **SLOW)
    waiting = server.create("quick", num_inference_steps=2)
    for _ in range(2):
        server.wait_step(video, 1)
        server.kill()
        server.start()
    failed = server.finish(video)
    assert failed["error"]["code"] == "interrupted"
    assert server.finish(waiting)["status"] == "completed"


def test_what_a_killed_server_left_half_done_is_removed(start_server):
    server = start_server().wait_ready()
    video = server.finish(server.create(num_inference_steps=2))
    server.kill()
    for orphan in ("videos/video_" + "0" * 32, "partial/video_" + "1" * 32):
        (server.data_dir / orphan).mkdir()
        (server.data_dir / orphan / "video.mp4").write_bytes(b"half")
    server.start()
    server.wait_ready()
    assert {name.split("/")[1] for name in files(server)} == {video["id"]}


def test_the_engine_dies_with_the_server(start_server):
    server = start_server().wait_ready()
    (engine,) = server.engine_pids()
    server.kill()
    wait_for(lambda: not psutil.pid_exists(engine))


def test_sigterm_lets_the_running_job_finish_and_takes_no_new_one(start_server):
    server = start_server().wait_ready()
    video = server.create("slow", num_inference_steps=8)
    waiting = server.create("later", num_inference_steps=2)
    server.wait_step(video, 2)
    server.terminate()
    refused = wait_for(
        lambda: (
            (r := server.client.post("/v1/videos", json={"prompt": "x"})).status_code == 503 and r
        )
    )
    assert refused.json()["error"]["code"] == "draining"
    assert int(refused.headers["Retry-After"]) > 0
    assert server.process.wait(60) == 0
    server.start()
    assert server.retrieve(video)["status"] == "completed"
    assert server.finish(waiting)["status"] == "completed"


def test_past_the_grace_the_running_job_goes_back(start_server):
    server = start_server(drain_seconds=0.5, max_attempts=2).wait_ready()
    video = server.create("slow", num_inference_steps=10)
    server.wait_step(video, 2)
    server.terminate()
    assert server.process.wait(60) == 0
    server.start()
    assert server.retrieve(video)["status"] in ("queued", "in_progress")
    server.wait_step(video, 1)
    server.kill()
    server.start()
    assert server.finish(video)["status"] == "completed", "the first attempt did not count"


def test_sigterm_while_the_engine_starts(start_server):
    server = start_server()
    video = server.create()
    server.terminate()
    assert server.process.wait(60) == 0
    server.start()
    assert server.finish(video)["status"] == "completed"


def test_an_open_event_stream_does_not_hold_the_server(start_server):
    server = start_server().wait_ready()
    running = server.create("slow", num_inference_steps=5)
    waiting = server.create("slow", **SLOW)
    server.wait_step(running, 1)
    names = []
    for name, _ in server.events(waiting):
        if not names:
            server.terminate()
        names.append(name)
    assert server.process.wait(60) == 0


def test_cancel_takes_effect_within_a_step(quick):
    video = quick.create("slow", **SLOW)
    quick.wait_step(video, 2)
    before = quick.metric("wan_tpu_denoising_steps_total")
    cancelled = quick.client.post(f"/v1/videos/{video['id']}/cancel").json()
    assert cancelled["status"] == "failed"
    assert cancelled["error"]["code"] == "cancelled"
    assert steps_until_idle(quick, before) <= 2
    assert not [name for name in files(quick) if video["id"] in name]
    again = quick.client.post(f"/v1/videos/{video['id']}/cancel")
    assert again.json()["error"]["code"] == "cancelled"


def test_a_waiting_job_is_cancelled_without_running(quick):
    running, waiting = quick.create("slow", num_inference_steps=5), quick.create("quick")
    quick.client.post(f"/v1/videos/{waiting['id']}/cancel")
    assert quick.finish(running)["status"] == "completed"
    assert quick.retrieve(waiting)["error"]["code"] == "cancelled"


def test_a_completed_job_cannot_be_cancelled(quick):
    video = quick.finish(quick.create(num_inference_steps=2))
    response = quick.client.post(f"/v1/videos/{video['id']}/cancel")
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "not_cancellable"


def test_deleting_the_running_job_stops_it_and_leaves_nothing(quick):
    video = quick.create("slow", **SLOW)
    quick.wait_step(video, 2)
    before = quick.metric("wan_tpu_denoising_steps_total")
    response = quick.client.delete(f"/v1/videos/{video['id']}")
    assert response.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
    assert quick.client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert steps_until_idle(quick, before) <= 2
    assert not [name for name in files(quick) if video["id"] in name]


def test_a_job_past_its_time_fails_and_the_next_one_runs(start_server):
    server = start_server(job_timeout_seconds=1).wait_ready()
    (engine,) = server.engine_pids()
    failed = server.finish(server.create("slow", **SLOW))
    assert failed["error"]["code"] == "timeout"
    assert server.finish(server.create(num_inference_steps=2))["status"] == "completed"
    assert server.engine_pids() == [engine], "it stopped when asked and was not killed"


def test_an_engine_that_hangs_is_killed(start_server):
    server = start_server(job_timeout_seconds=1, stop_grace_seconds=0.5).wait_ready()
    (engine,) = server.engine_pids()
    failed = server.finish(server.create("hang"))
    assert failed["error"]["code"] == "timeout"
    assert server.finish(server.create(num_inference_steps=2))["status"] == "completed"
    assert server.engine_pids() != [engine]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("boom", "engine_error"), ("oom", "out_of_memory"), ("crash", "engine_crashed")],
)
def test_a_failure_of_the_engine_fails_its_job_alone(quick, prompt, code):
    failed = quick.finish(quick.create(prompt))
    assert failed["error"]["code"] == code
    assert "secret" not in json.dumps(failed)
    assert failed["expires_at"] > failed["created_at"]
    assert quick.finish(quick.create(num_inference_steps=2))["status"] == "completed"
    assert not (quick.data_dir / "partial" / failed["id"]).exists()
    assert quick.metric(f'wan_tpu_jobs_total{{outcome="{code}"}}') == 1


def test_an_engine_that_cannot_start_is_said(start_server):
    """Also while it is tried again: what was wrong the last time, and when the next try is."""
    server = start_server(environment={"SCRIPTED_ENGINE_CANNOT_START": "no such chip"})
    wrong = "the engine failed with RuntimeError"
    waiting = wait_for(
        lambda: "next try in" in (r := server.client.get("/readyz")).text and wrong in r.text and r
    )
    assert 1 <= int(waiting.headers["Retry-After"]) <= 30
    again = wait_for(
        lambda: "starting the engine" in (t := server.client.get("/readyz").text) and t
    )
    assert f"the last try: {wrong}" in wait_for(
        lambda: "the last try" in (t := server.client.get("/readyz").text) and t
    ), again
    assert "no such chip" in server.log()
    assert server.create()["status"] == "queued"
    server.terminate()
    assert server.process.wait(30) == 0


def test_an_idle_engine_that_dies_is_replaced(quick):
    (engine,) = quick.engine_pids()
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: quick.engine_pids() not in ([], [engine]))
    assert quick.finish(quick.create(num_inference_steps=2))["status"] == "completed"


def test_a_full_queue_is_refused(start_server):
    server = start_server(max_queued_jobs=2).wait_ready()
    running = server.create("slow", **SLOW)
    server.wait_step(running, 1)
    waiting = [server.create("quick", num_inference_steps=2) for _ in range(2)]
    response = server.client.post("/v1/videos", json={"prompt": "one more"})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["Retry-After"]) > 0
    server.client.delete(f"/v1/videos/{running['id']}")
    for video in waiting:
        assert server.finish(video)["status"] == "completed"


def test_a_full_disk_refuses_work_and_keeps_what_waits(start_server):
    server = start_server(min_free_bytes=1 << 60)
    response = server.client.post("/v1/videos", json={"prompt": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "disk_full"
    assert "disk is nearly full" in server.client.get("/readyz").text
    server.kill()
    server.environment["WAN_TPU_MIN_FREE_BYTES"] = "0"
    server.start()
    server.create("slow", num_inference_steps=3)
    waiting = server.create("quick", num_inference_steps=2)
    server.kill()
    server.environment["WAN_TPU_MIN_FREE_BYTES"] = str(1 << 60)
    server.start()
    only_the_disk = ["the disk is nearly full"]
    wait_for(lambda: server.client.get("/readyz").json()["missing"] == only_the_disk)
    time.sleep(1)  # an engine that is ready would have taken it up in less
    assert server.retrieve(waiting)["status"] == "queued"
    server.kill()
    server.environment["WAN_TPU_MIN_FREE_BYTES"] = "0"
    server.start()
    assert server.finish(waiting)["status"] == "completed"


def test_what_expires_goes_with_its_files(start_server):
    server = start_server(expiry_seconds=1).wait_ready()
    video = server.finish(server.create(num_inference_steps=2))
    assert video["expires_at"] - video["completed_at"] in (1, 2)
    wait_for(lambda: server.client.get(f"/v1/videos/{video['id']}").status_code == 404)
    wait_for(lambda: files(server) == [])
    wait_for(lambda: server.client.get("/v1/videos").json()["data"] == [])
    server.kill()
    server.start()
    assert server.client.get("/v1/videos").json()["data"] == []


def test_two_servers_do_not_share_a_folder(start_server):
    server = start_server()
    with pytest.raises(AssertionError, match="another server uses the folder"):
        RunningServer(server.data_dir, engine=SCRIPTED)


def test_two_servers_do_not_share_a_database(start_server, tmp_path):
    """Two folders, one SQLite file."""
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    first = start_server(database_url=url).wait_ready()
    running = first.create("slow", num_inference_steps=10)
    first.wait_step(running, 1)
    with pytest.raises(AssertionError, match="another server uses the SQLite database"):
        RunningServer(tmp_path / "second", engine=SCRIPTED, database_url=url)
    assert first.finish(running)["status"] == "completed"


def test_on_postgresql(start_server, postgres):
    from tests.server.postgres import new_database

    with new_database(postgres) as url:
        server = start_server(database_url=url)
        videos = [server.create(f"slow {i}", num_inference_steps=4) for i in range(2)]
        server.wait_step(videos[0], 1)
        server.kill()
        server.start()
        for video in videos:
            assert server.finish(video)["status"] == "completed"
        assert not (server.data_dir / "jobs.sqlite").exists()
        server.stop()


def test_files_that_cannot_be_written_fail_their_job_alone(start_server):
    server = start_server().wait_ready()
    partial = server.data_dir / "partial"
    partial.rmdir()
    partial.touch()
    failed = server.finish(server.create(num_inference_steps=2))
    assert failed["error"]["code"] == "engine_error"
    assert str(server.data_dir) not in json.dumps(failed)
    partial.unlink()
    partial.mkdir()
    assert server.finish(server.create(num_inference_steps=2))["status"] == "completed"
