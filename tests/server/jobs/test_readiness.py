"""What takes readiness away, and that it comes back by itself. Real server, scripted engine."""

import json
import signal

import psutil
import pytest

from tests.server.running import RunningServer, wait_for

QUICK = {"num_inference_steps": 2}
SLOW = {"num_inference_steps": 90}


def readiness(server):
    response = server.client.get("/readyz")
    return response.status_code, response.text


@pytest.mark.parametrize(("prompt", "code"), [("oom", "out_of_memory"), ("full", "disk_full")])
def test_what_a_request_or_the_disk_caused_does_not_count(start_server, prompt, code):
    server = start_server(max_failures=2).wait_ready()
    (engine,) = server.engine_pids()
    for _ in range(4):
        assert server.finish(server.create(prompt))["error"]["code"] == code
    assert readiness(server)[0] == 200
    assert server.engine_pids() == [engine]


@pytest.mark.parametrize(("prompt", "code"), [("boom", "engine_error"), ("nan", "bad_numbers")])
def test_an_engine_that_fails_again_and_again_proves_itself_and_is_ready(
    start_server, prompt, code
):
    """Nobody has to send a video for that: a load balancer sends none to who is not ready."""
    server = start_server(max_failures=3).wait_ready()
    (engine,) = server.engine_pids()
    for _ in range(3):
        assert server.finish(server.create(prompt))["error"]["code"] == code
    wait_for(lambda: server.engine_pids() not in ([], [engine]))
    server.wait_ready()
    assert "the engine works again" in server.log()
    assert server.metric("wan_tpu_engine_restarts_total") == 1
    assert server.metric("wan_tpu_engine_failures_total") == 3


def test_a_broken_engine_does_not_use_up_the_queue(start_server):
    server = start_server(max_failures=2).wait_ready()
    (server.data_dir / "broken-probe").touch()
    for _ in range(2):
        server.finish(server.create("boom"))
    status, words = wait_for(lambda: "next try in" in (r := readiness(server))[1] and r)
    assert status == 503
    assert "the last 2 videos failed, the latest with: the engine failed with" in words
    assert "next try in" in words
    waiting = server.create(**QUICK)
    assert int(server.client.get("/readyz").headers["Retry-After"]) >= 1
    wait_for(lambda: server.metric("wan_tpu_engine_restarts_total") >= 2)
    assert server.retrieve(waiting)["status"] == "queued"
    (server.data_dir / "broken-probe").unlink()
    assert server.finish(waiting)["status"] == "completed"
    server.wait_ready()


def test_one_job_that_always_crashes_counts_once(start_server):
    server = start_server(max_failures=2).wait_ready()
    failed = server.finish(server.create("crash"))
    assert failed["error"]["code"] == "engine_crashed"
    assert server.log().count('message="job started"') == 2, "it may have been innocent"
    server.wait_ready()
    assert "to see whether" not in server.log()


def test_an_innocent_job_survives_a_crash(start_server):
    server = start_server().wait_ready()
    done = server.finish(server.create("crashonce"))
    assert done["status"] == "completed", done


def test_a_crash_is_final_at_the_last_attempt(start_server):
    server = start_server(max_attempts=1).wait_ready()
    assert server.finish(server.create("crashonce"))["error"]["code"] == "engine_crashed"


def test_bad_numbers_are_told(start_server):
    server = start_server().wait_ready()
    failed = server.finish(server.create("nan"))
    assert failed["error"]["code"] == "bad_numbers"
    assert "NaN or infinite numbers in the latents of step 2" in failed["error"]["message"]


@pytest.mark.parametrize("how", ["cancel", "delete"])
@pytest.mark.parametrize("prompt", ["hang", "compile", "stop"])
def test_cancelling_frees_an_engine_that_does_not_listen(start_server, prompt, how):
    """Whether it hangs in a step, in the compiler, or its process was stopped."""
    server = start_server(stop_grace_seconds=0.5, max_attempts=1).wait_ready()
    video, waiting = server.create(prompt), server.create(**QUICK)
    stage = {"compile": "compile step"}.get(prompt, "denoise")
    wait_for(lambda: server.retrieve(video)["stage"] == stage)
    if how == "cancel":
        server.client.post(f"/v1/videos/{video['id']}/cancel")
    else:
        server.client.delete(f"/v1/videos/{video['id']}")
    assert server.finish(waiting)["status"] == "completed"
    server.wait_ready()
    if how == "cancel":
        assert server.retrieve(video)["error"]["code"] == "cancelled"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("hang", "hangs: it has been at 'denoise'"),
        ("compile", "hangs: it has been at 'compile step'"),
        ("stop", "has said nothing for"),
    ],
)
def test_an_engine_that_hangs_is_noticed_by_itself(start_server, prompt, words):
    """Long before the job's timeout, which is an hour."""
    server = start_server(stall_seconds=3, compile_timeout_seconds=3, max_attempts=1).wait_ready()
    server.finish(server.create(num_inference_steps=90))
    (engine,) = server.engine_pids()
    failed = server.finish(server.create(prompt, num_inference_steps=90))
    assert failed["error"]["code"] == "engine_crashed"
    assert words in failed["error"]["message"]
    assert server.finish(server.create(**QUICK))["status"] == "completed"
    assert not psutil.pid_exists(engine)


def test_an_idle_engine_that_stands_still_is_replaced(start_server):
    server = start_server(stall_seconds=3).wait_ready()
    (engine,) = server.engine_pids()
    psutil.Process(engine).send_signal(signal.SIGSTOP)
    wait_for(lambda: server.engine_pids() not in ([], [engine]))
    assert server.finish(server.create(**QUICK))["status"] == "completed"


def test_slow_is_not_hung(start_server):
    """Steps of a fifth of a second and a job of six, with three as the least that is too long."""
    server = start_server(stall_seconds=3).wait_ready()
    done = server.finish(server.create("slow", num_inference_steps=30))
    assert done["status"] == "completed", json.dumps(done)
    assert server.metric("wan_tpu_engine_restarts_total") == 0


@pytest.mark.slow
def test_the_real_engine_proves_itself(tmp_path):
    """With a video of the size that was compiled at the start, and no program more."""
    server = RunningServer(tmp_path / "data", max_failures=1, warm_up="64x64x5").wait_ready()
    try:
        (engine,) = server.engine_pids()
        psutil.Process(engine).kill()
        wait_for(lambda: "the engine works again" in server.log())
        server.wait_ready()
        done = server.finish(server.create(num_frames=5, num_inference_steps=2))
        assert done["status"] == "completed", done
        assert done["metadata"]["seconds"].keys() == {"text", "denoise", "decode"}
    finally:
        server.stop()
