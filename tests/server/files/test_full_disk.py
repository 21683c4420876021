"""A disk with no byte left: it is said by its name, and can be emptied through the API.

A real server on a real small file system.
"""

import contextlib
import os
import subprocess

import pytest

from server.files.media import FILE_NAMES
from server.files.writer import MediaFiles
from tests.requirements import require
from tests.server.files.test_media import frames
from tests.server.running import SCRIPTED, RunningServer, wait_for
from wan_tpu.errors import OutputError
from wan_tpu.storage.disk import is_disk_full

QUICK = {"num_inference_steps": 2}


@contextlib.contextmanager
def mounted(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    require(done.returncode == 0, "needs the right to mount a tmpfs: run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    """Takes every byte that is left."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    status = os.statvfs(disk)
    assert status.f_bavail * status.f_frsize < 4096


@pytest.fixture
def start(tmp_path):
    with contextlib.ExitStack() as opened:
        disk = opened.enter_context(mounted(tmp_path / "disk", "12m"))

        def start_(**settings):
            server = RunningServer(disk / "data", engine=SCRIPTED, **settings)
            server.log_path = tmp_path / "server.log"
            opened.callback(server.stop)
            return server, disk

        yield start_


def error_of(response):
    return response.json()["error"]["code"]


def test_it_is_emptied_through_the_api(start):
    server, disk = start()
    server.wait_ready()
    videos = [server.finish(server.create(**QUICK)) for _ in range(3)]
    running = server.create("slow", num_inference_steps=90)
    server.wait_step(running, 1)
    refused = None
    for index in range(200):
        fill(disk)
        response = server.client.post("/v1/videos", json={"prompt": f"{index} " * 900, **QUICK})
        if response.status_code != 200:
            refused = response
            break
    assert refused is not None
    assert (refused.status_code, error_of(refused)) == (503, "disk_full")
    assert int(refused.headers["Retry-After"]) > 0
    assert server.client.get("/livez").status_code == 200
    fill(disk)
    cancelled = server.client.post(f"/v1/videos/{running['id']}/cancel")
    assert cancelled.status_code == 200, cancelled.text
    for video in videos:
        fill(disk)
        response = server.client.delete(f"/v1/videos/{video['id']}")
        assert response.status_code == 200, response.text
        assert not (disk / "data" / "videos" / video["id"]).exists()
    (disk / "filler").unlink()
    server.wait_ready()
    assert server.finish(server.create(**QUICK))["status"] == "completed"
    wait_for((disk / "data" / "jobs.sqlite-ballast").exists)
    assert "Traceback" not in server.log()


def test_a_server_starts_on_it_and_can_empty_it(start):
    server, disk = start()
    server.wait_ready()
    video = server.finish(server.create(**QUICK))
    running = server.create("slow", num_inference_steps=90)
    server.wait_step(running, 1)
    (disk / "data" / "videos" / ("video_" + "0" * 32)).mkdir()
    fill(disk)
    server.kill()
    fill(disk)
    server.start()
    assert server.client.delete(f"/v1/videos/{video['id']}").status_code == 200
    assert server.client.delete(f"/v1/videos/{running['id']}").status_code == 200


def test_a_job_that_meets_it_says_so_and_the_engine_is_not_to_blame(start):
    server, disk = start(max_failures=1)
    server.wait_ready()
    (engine,) = server.engine_pids()
    video = server.create("slow", num_inference_steps=8)
    server.wait_step(video, 1)
    fill(disk)
    failed = server.finish(video)
    assert failed["error"]["code"] == "disk_full"
    (disk / "filler").unlink()
    assert server.client.get("/readyz").status_code == 200
    assert server.finish(server.create(**QUICK))["status"] == "completed"
    assert server.engine_pids() == [engine]


def test_what_expires_goes_from_it(start):
    server, disk = start(expiry_seconds=4)
    server.wait_ready()
    video = server.finish(server.create(**QUICK))
    fill(disk)
    wait_for(lambda: server.client.get(f"/v1/videos/{video['id']}").status_code == 404)
    wait_for(lambda: not list((disk / "data" / "videos").iterdir()))
    wait_for(lambda: not list((disk / "data" / "deleting").iterdir()))


@pytest.mark.parametrize("variant", FILE_NAMES)
def test_every_file_of_a_video_can_meet_it(tmp_path, variant):
    """Red when a thumbnail or spritesheet that cannot be written is the engine's failure."""
    with mounted(tmp_path / "disk", "3m") as disk:
        files = MediaFiles(disk, fps=8, width=64, height=48, num_frames=17)
        with pytest.raises((OSError, OutputError)) as caught, files:
            write_until_full(files, disk, variant)
        assert is_disk_full(caught.value)


def write_until_full(files, disk, variant):
    files.write(frames(17))
    if variant == "video":
        fill(disk)
    else:
        free_but_for(files, disk, variant)


def free_but_for(files, disk, variant):
    """Leaves room until it is the turn of one file."""
    real = files._writer.__exit__ if variant == "thumbnail" else files._spritesheet

    def then_full(*arguments):
        result = real(*arguments)
        fill(disk)
        return result

    if variant == "thumbnail":
        files._writer = type("Writer", (), {"__exit__": lambda self, *a: then_full(*a)})()
    else:
        files._spritesheet = then_full


def test_other_errors_are_not_the_full_disks():
    assert not is_disk_full(OSError(5, "Input/output error"))
    assert not is_disk_full(OutputError("cannot write x: ffmpeg: killed by SIGKILL"))
