"""`wan-tpu dataset check` as a user runs it: what it prints, how it ends, how it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.cli.conftest import COMMAND
from tests.image.clips import make_clip, moving

WANTED = ("--size", "96x64", "--frames", "17", "--fps", "16")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One that is good, one that is cut off, two that say the same of themselves."""
    folder = tmp_path_factory.mktemp("clips")
    data = make_clip(folder / "good.mp4", moving(20), rate="16")
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    for name in ("fast", "faster"):
        make_clip(folder / f"{name}.mp4", moving(40), "-crf", str(len(name)), rate="25")
    for path in folder.glob("*.mp4"):
        path.with_suffix(".txt").write_text("a square")
    return folder


def test_a_table_and_exit_code_1(run, clips):
    done = run("dataset", "check", clips, *WANTED, "--workers", "2")
    assert done.returncode == 1
    taken = "at each moment of 16 per second the frame nearest in time is taken"
    assert done.stdout.splitlines() == [
        "fault  cut.mp4: truncated: the clip is damaged: its file ends too early, after "
        f"{(clips / 'cut.mp4').stat().st_size} of {_declared(clips / 'good.mp4')} bytes",
        f"note   fast.mp4: other-rate: 25 frames per second; {taken}",
        f"note   faster.mp4: other-rate: 25 frames per second; {taken}",
        "",
        "bucket                   windows   files",
        "96x64, 17 frames               3       3",
        "",
        "3 of 4 good, 1 fault, 2 notes",
    ]
    assert done.stderr.splitlines() == ["[   0.0 s] check, 4 files"]


def _declared(path):
    """To the end of the part of an MP4 file that half of it cuts through."""
    data = path.read_bytes()
    begin = data.index(b"mdat") - 4
    return begin + int.from_bytes(data[begin : begin + 4], "big")


def test_json_and_exit_code_0(run_here, clips):
    (clips / "list.jsonl").write_text(json.dumps({"film": "good.mp4", "words": "a square"}))
    named = (str(clips / "list.jsonl"), "--columns", "path=film,caption=words")
    code, out, err = run_here("dataset", "check", *named, *WANTED, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["good"], report["faults"], report["notes"]) == (1, [], [])
    assert report["files"][0]["captions"] == ["a square"]
    (clips / "list.jsonl").unlink()


def make_many(folder):
    """Files that take two processes a quarter of a minute or more."""
    make_clip(folder / "long.mp4", moving(50, 640, 480), "-preset", "ultrafast")
    for index in range(600):
        os.link(folder / "long.mp4", folder / f"{index}.mp4")


def test_notes_that_many_files_have_are_one_line(run_here, tmp_path, clips):
    for number in range(5):
        data = (clips / "fast.mp4").read_bytes() + b"\0" * number
        (tmp_path / f"{number}.mp4").write_bytes(data)
        (tmp_path / f"{number}.txt").write_text("a square")
    code, out, _ = run_here("dataset", "check", str(tmp_path), *WANTED, "--workers", "1")
    assert code == 1
    assert "note   5 files, 0.mp4 the first: other-rate: 25 frames per second; " in out
    assert out.count("its frames are those of 0.mp4") == 4


def test_what_is_wanted_comes_from_the_model(run_here, clips):
    code, out, _ = run_here("dataset", "check", str(clips), "--model", "wan2.2-ti2v-5b", "--json")
    assert code == 1
    words = [each["words"] for each in json.loads(out)["faults"] if each["name"] == "fast.mp4"]
    assert words == [
        "it has 39 frames at 24 frames per second (1.60 s) and 121 are wanted; 37 would fit",
        "its 96x64 pixels do not cover 1280x704, and nothing is made larger; 96x32 would fit",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is neither a folder with clips nor a manifest: it is not there"),
        ([".", "--size", "big"], "size must be WIDTHxHEIGHT"),
        ([".", "--size", "100x64"], "nearest: 96 or 112"),
        ([".", "--frames", "16"], "nearest: 13 or 17"),
        ([".", "--frames", "x"], "the number of frames must be 4n + 1, for example 81, got 'x'"),
        ([".", "--fps", "0"], "frames per second must be above 0, got 0.0"),
        ([".", "--model", "wan-huge"], "unknown model 'wan-huge'"),
        ([".", "--columns", "a=b"], "columns are written path=NAME,caption=NAME"),
        ([".", "--workers", "0"], "must be a whole number of at least 1"),
        ([], "the following arguments are required: PATH"),
    ],
)
def test_wrong_usage_is_one_line(run_here, arguments, words):
    code, out, err = run_here("dataset", "check", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_names_that_are_no_text(run, tmp_path, clips):
    for name in (b"\xff.mp4", b"two\nlines\x1b[2J.mp4"):
        (tmp_path / os.fsdecode(name)).write_bytes((clips / "good.mp4").read_bytes())
    done = run("dataset", "check", ".", *WANTED, "--workers", "1")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "fault  two\\nlines\\x1b[2J.mp4: no-caption: no caption: write one into" in lines[0]
    assert "\\udcff.mp4: duplicate: its bytes are those of two\\nlines" in done.stdout


def test_an_empty_folder_is_not_good(run_here, tmp_path):
    code, out, err = run_here("dataset", "check", ".", *WANTED)
    assert (code, err) == (1, "")
    assert out == "0 of 0 good, 0 faults, 0 notes\n. has no clip or picture that is read\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_stopped_with_all_its_processes(tmp_path, number, environment):
    """Red when the processes that decode live on, or each writes its own traceback."""
    make_many(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "dataset", "check", tmp_path, *WANTED, "--workers", "2"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert "check, 601 files" in process.stderr.readline()
        me = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while len(me.children()) < 3 and time.monotonic() < deadline:  # and one that tracks them
            time.sleep(0.02)
        children = me.children()
        assert len(children) == 3
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "wan-tpu: interrupted\n")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_neither_jax_nor_torch_is_loaded(clips):
    code = (
        "import sys; from wan_tpu.cli.main import main; "
        f"main(['dataset', 'check', {str(clips)!r}, '--workers', '1']); "
        "print([m for m in ('jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
