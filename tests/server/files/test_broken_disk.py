"""A disk that fails under a running server costs a job, never the worker."""

import pytest


def break_folder(folder):
    """Nothing can be made in it any more, not even by root."""
    folder.rename(folder.with_name("aside"))
    folder.write_text("not a folder")


def mend_folder(folder):
    folder.unlink()
    folder.with_name("aside").rename(folder)


@pytest.mark.parametrize("name", ["partial", "videos"])
def test_files_that_cannot_be_written_fail_their_job_alone(start_server, name):
    server = start_server().wait_ready()
    folder = server.data_dir / name
    break_folder(folder)
    failed = server.finish(server.create("lost", num_inference_steps=2))
    assert failed["error"]["code"] == "engine_error"
    assert "NotADirectoryError" in failed["error"]["message"]
    assert str(server.data_dir) not in failed["error"]["message"]
    mend_folder(folder)
    assert server.finish(server.create("next", num_inference_steps=2))["status"] == "completed"
    assert not list((server.data_dir / "partial").iterdir())


def test_a_data_folder_that_comes_back_is_used_again(start_server):
    server = start_server().wait_ready()
    folder = server.data_dir / "videos"
    lost, kept = server.create("slow", num_inference_steps=5), server.create("next")
    server.wait_step(lost, 1)
    aside = folder.rename(folder.with_name("aside"))
    assert server.finish(lost)["error"]["code"] == "engine_error"
    (reason,) = server.client.get("/readyz").json()["missing"]
    assert reason == "the data folder cannot be used: No such file or directory"
    assert server.retrieve(kept)["status"] == "queued"
    aside.rename(folder)
    assert server.finish(kept)["status"] == "completed"
