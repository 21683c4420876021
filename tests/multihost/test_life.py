"""Jobs over several processes through cancels, losses and restarts; with the scripted engine.

Real processes, sockets, database and HTTP; the engine is scripted because a real one hangs, fails
in one process alone or runs out of memory too seldom. `test_service.py` has the real one.
"""

import contextlib
import os
import re
import signal
import socket
import sqlite3
import time

import pytest

from server.engine.lockstep import EXIT_LOST
from tests.server.running import wait_for

SLOW = {"num_inference_steps": 90}
"""Eighteen seconds with `slow` in the prompt."""


def files_of(found):
    return sorted(path.name for path in (found.data_dir / "videos").iterdir())


def test_a_job_from_beginning_to_end(start_slice):
    found = start_slice().wait_ready()
    done = found.finish(found.create(num_inference_steps=5))
    assert done["status"] == "completed", done
    said = done["metadata"]["lockstep"]
    # Asked twice as each of two stages starts, and after each step and frame but the last.
    assert said["messages"] == (2 + 4) + (2 + 16) + 2, "with the first and the last message"
    assert said["processes"] == 3
    assert files_of(found) == [done["id"]]
    for number in (1, 2):
        assert f"process {number} of 3 follows {found.coordinator}" in found.log(number)
    assert found.statuses(0) == found.statuses(1) == []


def test_cancel_in_the_middle_stops_all_and_the_next_job_is_made(start_slice):
    found = start_slice().wait_ready()
    pids = found.pids()
    video = found.create("slow", **SLOW)
    found.wait_step(video, 3)
    found.client.post(f"/v1/videos/{video['id']}/cancel")
    done = found.finish(found.create(num_inference_steps=4))
    assert done["status"] == "completed"
    assert found.finish(video)["error"]["code"] == "cancelled"
    assert found.pids() == pids, "nobody had to be started anew"


def test_jobs_made_together_of_which_one_is_cancelled(start_slice):
    """Nobody begins before the fourth has come; who ends is one decision for all processes."""
    found = start_slice(batch=4, batch_wait_seconds=60).wait_ready()
    pids = found.pids()
    videos = [found.create("slow", num_inference_steps=12, seed=i) for i in range(4)]
    found.wait_step(videos[1], 2)
    found.client.post(f"/v1/videos/{videos[1]['id']}/cancel")
    ended = [found.finish(video) for video in videos]
    assert ended[1]["error"]["code"] == "cancelled"
    for i in (0, 2, 3):
        assert ended[i]["status"] == "completed", ended[i]
        assert ended[i]["metadata"]["made_together"] == 4
    assert files_of(found) == sorted(ended[i]["id"] for i in (0, 2, 3))
    assert found.pids() == pids, "nobody had to be started anew"


@pytest.mark.parametrize(("prompt", "code"), [("boom", "engine_error"), ("oom", "out_of_memory")])
def test_what_fails_in_all_fails_its_job_alone(start_slice, prompt, code):
    found = start_slice().wait_ready()
    pids = found.pids()
    assert found.finish(found.create(prompt))["error"]["code"] == code
    assert found.finish(found.create(num_inference_steps=4))["status"] == "completed"
    assert found.pids() == pids


def test_a_full_disk_on_process_0_alone_fails_its_job_alone(start_slice):
    """Process 0 leaves the job in the middle of decoding; the others follow it out."""
    found = start_slice().wait_ready()
    pids = found.pids()
    partial = found.data_dir / "partial"
    partial.rmdir()
    partial.symlink_to("/dev/full")
    assert found.finish(found.create(num_inference_steps=2))["status"] == "failed"
    partial.unlink()
    partial.mkdir()
    assert found.finish(found.create(num_inference_steps=2))["status"] == "completed"
    assert found.pids() == pids


def test_a_follower_killed_in_a_job(start_slice):
    found = start_slice().wait_ready()
    video = found.create("slow", num_inference_steps=10)
    found.wait_step(video, 2)
    found.members[2].send(signal.SIGKILL)
    assert found.wait_ended(0) == [EXIT_LOST]
    assert found.wait_ended(1) == [EXIT_LOST]
    assert "process 2 (" in found.log()
    assert "the job is put back" in found.log()
    done = found.finish(video)
    assert done["status"] == "completed", done
    assert files_of(found) == [video["id"]]
    assert found.log().count('message="job started"') == 2
    found.wait_log("code=completed")
    assert found.log().count("code=completed") == 1


def test_a_job_that_always_loses_a_process_ends(start_slice):
    found = start_slice(2, max_attempts=2).wait_ready()
    video = found.create("crash@1")
    waiting = found.create(num_inference_steps=3)
    failed = found.finish(video)
    assert failed["error"]["code"] == "interrupted"
    assert found.finish(waiting)["status"] == "completed"


def test_an_idle_follower_that_is_killed_is_replaced(start_slice):
    found = start_slice().wait_ready()
    found.members[1].send(signal.SIGKILL)
    assert found.wait_ended(0) == [EXIT_LOST]
    found.wait_ready()
    assert found.finish(found.create(num_inference_steps=3))["status"] == "completed"


def test_a_follower_that_stops_answering(start_slice):
    found = start_slice(peer_timeout_seconds=3).wait_ready()
    video = found.create("slow", num_inference_steps=10)
    found.wait_step(video, 1)
    found.members[1].send(signal.SIGSTOP)
    assert found.wait_ended(0) == [EXIT_LOST]
    assert "process 1 (" in found.log()
    assert "has sent nothing for 4 s" in found.log()
    found.members[1].send(signal.SIGCONT)  # it finds process 0 gone
    assert found.wait_ended(1) == [EXIT_LOST]
    assert found.finish(video)["status"] == "completed"


def test_a_follower_that_hangs_while_its_heart_beats(start_slice):
    found = start_slice(peer_timeout_seconds=3, max_attempts=1).wait_ready()
    video = found.create("slow hang@2", num_inference_steps=50)
    assert found.wait_ended(0) == [EXIT_LOST]
    # It began the stage (2), went on after the first step (3), and never came out of the second.
    words = r"process 2 \(.*\) hangs: it is still at barrier 3 of job 1 \(denoise\)"
    assert re.search(words, found.log())
    assert found.finish(video)["error"]["code"] == "interrupted"
    assert found.finish(found.create(num_inference_steps=3))["status"] == "completed"


def test_all_that_wait_inside_one_program(start_slice):
    """As when a chip of one hangs: all are at the same point, and it cannot be told who hangs."""
    found = start_slice(peer_timeout_seconds=3, max_attempts=1).wait_ready()
    video = found.create("hang", num_inference_steps=5)
    assert found.wait_ended(0) == [EXIT_LOST]
    assert "no process advances: all have been at barrier 3 of job 1 (denoise)" in found.log()
    assert found.finish(video)["error"]["code"] == "interrupted"


def test_who_is_behind_but_moves_is_well(start_slice):
    """Steps are shorter than heartbeats here: all positions that process 0 knows are old."""
    found = start_slice(peer_timeout_seconds=3).wait_ready()
    done = found.finish(found.create("slow", num_inference_steps=30))
    assert done["status"] == "completed"
    assert found.statuses(0) == []


def test_a_follower_that_fails_alone(start_slice):
    found = start_slice(max_attempts=1).wait_ready()
    video = found.create("slow boom@1", num_inference_steps=60)
    assert found.wait_ended(0) == [EXIT_LOST]
    assert "failed where process 0 did not: RuntimeError" in found.log()
    assert found.finish(video)["error"]["code"] == "interrupted"


def test_process_0_that_fails_alone_fails_the_job_alone(start_slice):
    found = start_slice().wait_ready()
    pids = found.pids()
    assert found.finish(found.create("boom@0"))["error"]["code"] == "engine_error"
    assert found.finish(found.create(num_inference_steps=3))["status"] == "completed"
    assert found.pids() == pids


def test_a_follower_that_is_told_to_end(start_slice):
    found = start_slice().wait_ready()
    found.members[1].send(signal.SIGTERM)
    assert found.wait_ended(1) == [0]
    assert found.wait_ended(0) == [EXIT_LOST]
    assert "ended: it was told to by SIGTERM" in found.log()
    found.wait_ready()


def test_a_follower_that_is_told_to_end_in_a_job_finishes_it(start_slice):
    found = start_slice().wait_ready()
    video = found.create("slow", num_inference_steps=8)
    waiting = found.create(num_inference_steps=3)
    found.wait_step(video, 2)
    found.members[1].send(signal.SIGTERM)
    assert found.wait_ended(0) == [EXIT_LOST]
    assert "is about to end: it was told to by SIGTERM" in found.log()
    assert found.finish(video)["status"] == "completed"
    assert found.finish(waiting)["status"] == "completed"
    begun = [line for line in found.log().splitlines() if 'message="job started"' in line]
    assert sum(video["id"] in line for line in begun) == 1


def test_a_second_signal_ends_a_follower_at_once(start_slice):
    found = start_slice().wait_ready()
    video = found.create("slow", **SLOW)
    found.wait_step(video, 2)
    found.members[1].send(signal.SIGTERM)
    time.sleep(1)  # two signals at once would be one
    found.members[1].send(signal.SIGTERM)
    assert found.wait_ended(1) == [0]
    assert found.wait_ended(0) == [EXIT_LOST]


def test_all_told_to_end_at_once_drain(start_slice):
    """As when a whole slice is shut down: the running job is finished all the same."""
    found = start_slice(again=False).wait_ready()
    video = found.create("slow", num_inference_steps=10)
    found.wait_step(video, 2)
    for member in found.members.values():
        member.send(signal.SIGTERM)
    assert [found.wait_ended(number) for number in (0, 1, 2)] == [[0], [0], [0]]
    assert files_of(found) == [video["id"]]


def test_the_service_of_process_0_is_killed(start_slice):
    found = start_slice().wait_ready()
    video = found.create("slow", num_inference_steps=10)
    found.wait_step(video, 2)
    found.members[0].send(signal.SIGKILL)
    for number in (1, 2):
        assert found.wait_ended(number) == [EXIT_LOST]
        found.wait_log("process 0 ended; ending with 75", number)
    assert found.finish(video)["status"] == "completed"
    assert files_of(found) == [video["id"]]


def test_the_engine_of_process_0_is_killed(start_slice):
    """Its service goes on and gets the others back; the job is made again.

    On one host the second such end is the job's fault; here the loss of another process may be what
    killed it each time.
    """
    found = start_slice().wait_ready()
    video = found.create("slow", num_inference_steps=10)
    found.wait_step(video, 2)
    (engine,) = found.engine_pids()
    os.kill(engine, signal.SIGKILL)
    for number in (1, 2):
        assert found.wait_ended(number) == [EXIT_LOST]
    assert found.finish(video)["status"] == "completed"
    assert found.statuses(0) == []


def test_process_0_that_is_silent(start_slice):
    found = start_slice(2, peer_timeout_seconds=3).wait_ready()
    (engine,) = found.engine_pids()
    os.kill(engine, signal.SIGSTOP)
    assert found.wait_ended(1) == [EXIT_LOST]
    assert "process 0 has sent nothing for 4 s" in found.log(1)
    os.kill(engine, signal.SIGCONT)
    assert found.wait_ended(0) == [EXIT_LOST]
    found.wait_ready()


def test_sigterm_on_process_0_drains_and_stops_all(start_slice):
    found = start_slice(again=False).wait_ready()
    video = found.create("slow", num_inference_steps=8)
    waiting = found.create(num_inference_steps=2)
    found.wait_step(video, 2)
    found.terminate()
    assert [found.wait_ended(number) for number in (0, 1, 2)] == [[0], [0], [0]]
    assert "process 0 has stopped all" in found.log(1)
    assert files_of(found) == [video["id"]]
    assert waiting["status"] == "queued"


def test_past_the_grace_all_stop_in_the_middle(start_slice):
    found = start_slice(drain_seconds=0.5, again=False).wait_ready()
    video = found.create("slow", **SLOW)
    found.wait_step(video, 2)
    found.terminate()
    assert [found.wait_ended(number) for number in (0, 1, 2)] == [[0], [0], [0]]
    assert "goes back to the queue" in found.log()


@pytest.mark.usefixtures("heeds_hangups")
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,) * 2])
def test_a_second_signal_on_process_0_stops_all_at_once(start_slice, numbers):
    """The grace of the others is process 0's: longer than this test waits for anything."""
    found = start_slice(2, max_attempts=1, again=False, drain_seconds=3600).wait_ready()
    video = found.create("slow", **SLOW)
    found.wait_step(video, 2)
    found.members[0].send(numbers[0])
    found.wait_log("draining")
    found.members[0].send(numbers[1])
    assert [found.wait_ended(number) for number in (0, 1)] == [[0], [0]]
    with contextlib.closing(sqlite3.connect(found.data_dir / "jobs.sqlite")) as database:
        assert database.execute("SELECT state, attempts FROM jobs").fetchall() == [("queued", 0)]
    assert "Traceback" not in found.log() + found.log(1)


@pytest.mark.usefixtures("heeds_hangups")
def test_a_hangup_ends_a_follower_in_good_order(start_slice):
    found = start_slice(2).wait_ready()
    found.members[1].send(signal.SIGHUP)
    assert found.wait_ended(1) == [0]
    assert found.wait_ended(0) == [EXIT_LOST]


def test_a_process_that_never_comes(start_slice):
    found = start_slice(4, started=(0, 2), join_timeout_seconds=10)
    wait_for(lambda: (r := found.ask("/readyz")) is not None and "processes 1, 3 of 4" in r.text)
    found.wait_log("processes 1, 3 of 4 did not come")
    assert found.wait_ended(0) == [EXIT_LOST]
    assert found.wait_ended(2) == [EXIT_LOST]


def test_process_0_that_never_comes(start_slice):
    found = start_slice(2, started=(1,), join_timeout_seconds=1, again=False)
    assert found.wait_ended(1) == [EXIT_LOST]
    assert f"process 0 does not answer at {found.coordinator}" in found.log(1)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"dtype": "bfloat16"}, "settings: WAN_TPU_DTYPE is null on process 0 and bfloat16 on pro"),
        ({"processes": 4}, "says it is process 1 of 4, process 0 says there are 3"),
        ({"model": "/no/such/folder"}, "cannot take part: unknown model '/no/such/folder'"),
    ],
)
def test_a_process_that_differs_is_named(start_slice, setting, words):
    found = start_slice(of_process={1: setting})
    wait_for(lambda: (r := found.ask("/readyz")) is not None and words in r.text)
    assert found.wait_ended(1)[0] == 1
    assert found.statuses(0) == [], "process 0 goes on to say what is wrong"
    assert found.create()["status"] == "queued"


def test_variables_that_jax_changes_are_no_difference(start_slice):
    """With a TPU, importing JAX adds to LIBTPU_INIT_ARGS; so it does here when it is forced to."""
    found = start_slice(2, environment={"JAX_FORCE_TPU_INIT": "1"}).wait_ready()
    assert found.finish(found.create(num_inference_steps=2))["status"] == "completed"


def test_other_model_files_are_named(start_slice, tmp_path):
    from tests.multihost.copies import changed_copy, copy_of_wan_tiny

    same = copy_of_wan_tiny(tmp_path / "same")
    other = changed_copy(same, tmp_path / "other")
    found = start_slice(2, model="model", of_process={0: {"model": same}, 1: {"model": other}})
    words = "model files: transformer/diffusion_pytorch_model.safetensors is "
    wait_for(lambda: (r := found.ask("/readyz")) is not None and words in r.text)


def test_unauthenticated_clients_disturb_nobody(start_slice):
    found = start_slice(2).wait_ready()
    host, _, port = found.coordinator.partition(":")
    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "Stop"}\n', b"\0" * 100_000, b""):
        client = socket.create_connection((host, int(port)))
        with client, contextlib.suppress(OSError):  # it may have hung up on us by now
            client.sendall(rubbish)
            client.shutdown(socket.SHUT_WR)
    video = found.create("slow", num_inference_steps=5)
    assert found.finish(video)["status"] == "completed"
    assert found.statuses(0) == []
