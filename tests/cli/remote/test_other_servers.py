"""A server that speaks the protocol alone, as other makes do: no stages, ranges or digests."""

import json

import pytest

from tests.cli.remote.lines import OtherMake


@pytest.fixture
def other():
    server = OtherMake()
    yield server
    server.close()


def test_a_video_of_another_make(run_here, other, tmp_path):
    code, out, err = run_here(
        "remote", "generate", "a fox", "--size", "96x64", "--frames", "9", "-o", "fox.mp4",
        "--server", other.url,
    )  # fmt: skip
    assert (code, out) == (0, "fox.mp4\n"), err
    assert (tmp_path / "fox.mp4").read_bytes() == other.content
    assert "video" in [line.partition("] ")[2] for line in err.splitlines()]
    for field in (b"prompt", b"size", b"num_frames", b"seed"):
        assert b'name="%s"' % field in other.form
    assert b"model" not in other.form
    assert json.loads((tmp_path / "fox.json").read_text())["remote"]["id"] == "other-1"


def test_a_server_that_knows_no_number_of_videos_makes_one(run_here, other):
    code, out, err = run_here(
        "remote", "generate", "a fox", "-n", "2", "-o", "a.mp4", "--server", other.url
    )
    assert (code, out) == (0, "a-1.mp4\n"), err
    assert "knows no -n: it makes 1 instead of 2" in err


def test_a_file_that_arrives_damaged_is_not_kept(run_here, other, tmp_path):
    other.say_digest(b"what it was")
    code, out, err = run_here("remote", "fetch", "other-1", "-o", "a.mp4", "--server", other.url)
    assert (code, out) == (1, "")
    assert "other-1 arrived damaged" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    other.say_digest(other.content)
    code, out, err = run_here("remote", "fetch", "other-1", "-o", "a.mp4", "--server", other.url)
    assert (code, out) == (0, "a.mp4\n"), err


def test_errors_of_another_shape(run_here, other):
    code, _, err = run_here("remote", "generate", "refused", "--server", other.url)
    assert (code, err) == (2, "wan-tpu: size: is too large\n")
    code, out, err = run_here("remote", "cancel", "other-1", "--server", other.url)
    assert (code, out, "no service of videos" in err) == (1, "", True), err
    assert run_here("remote", "cancel", "--delete", "other-1", "--server", other.url)[0] == 0
    assert other.deleted
