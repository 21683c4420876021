"""Videos come back with their colours, and a file is complete or absent whatever happens."""

import contextlib
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from tests.tolerances import psnr
from wan_tpu.errors import InputError, MissingPackageError, OutputError
from wan_tpu.pipeline.video_file import (
    VideoWriter,
    check_output_path,
    read_frames,
)
from wan_tpu.pipeline.whole_file import write_json_atomically

SIZE = {"fps": 8, "width": 64, "height": 48}


def moving_disc(num_frames=9, width=64, height=48):
    """A yellow disc crossing a navy background, `[frames, height, width, 3]`, uint8."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    centres = np.linspace(width * 0.3, width * 0.7, num_frames)
    inside = (x - centres[:, None, None]) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
    return np.where(inside[..., None], [250, 220, 20], [0, 0, 110]).astype(np.uint8)


def write(path, frames, fps=8):
    with VideoWriter(path, fps=fps, width=frames.shape[2], height=frames.shape[1]) as writer:
        writer.write(frames)


def describe(path):
    """What ffmpeg says of a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.fixture(autouse=True)
def no_child_is_left():
    """Neither a running ffmpeg nor a zombie, whatever happened in the test."""
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    "colour",
    [
        (235, 30, 30),
        (0, 220, 60),
        (40, 110, 255),
        (250, 220, 20),
        (255, 255, 255),
        (200, 30, 220),
        (0, 0, 0),
        (112, 112, 112),
        (0, 0, 110),
        (0, 255, 255),
    ],
)
def test_flat_colours_survive(tmp_path, colour):
    """Measured: within 1. BT.601 read as BT.709, the usual mistake, is off by up to 30."""
    frames = np.broadcast_to(np.uint8(colour), (5, 64, 64, 3))
    write(tmp_path / "a.mp4", frames)
    difference = read_frames(tmp_path / "a.mp4").astype(int) - frames
    assert np.abs(difference).max() <= 2


def test_a_moving_shape_survives(tmp_path):
    """Hard edges lose chroma to yuv420p: 27 dB measured; the next frame's picture is under 16."""
    frames = moving_disc()
    write(tmp_path / "a.mp4", frames)
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    for frame, expected in zip(back, frames, strict=True):
        assert psnr(frame, expected) > 25


def test_the_file_is_what_browsers_play(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, moving_disc(), fps=16)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert re.search(
        r"Video: h264 .*, yuv420p\(tv, bt709, progressive\), 64x48.* 16 fps", describe(path)
    )


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (18, 34), (66, 30)])
def test_every_even_size_can_be_written(tmp_path, size):
    width, height = size
    frames = np.full((3, height, width, 3), 200, np.uint8)
    write(tmp_path / "a.mp4", frames)
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - 200).max() <= 2


def test_one_frame_is_a_video(tmp_path):
    write(tmp_path / "a.mp4", moving_disc(1))
    assert read_frames(tmp_path / "a.mp4").shape == (1, 48, 64, 3)


def test_arrays_come_back_exactly(tmp_path):
    """Odd sizes and more than nine frames, whose count is longer than the header first said."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 7, 5, 3), np.uint8)
    write(tmp_path / "a.npy", frames)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), frames)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.npy"), frames)


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_chunks_make_the_same_file_as_one_array(tmp_path, suffix):
    frames = moving_disc()
    write(tmp_path / f"whole{suffix}", frames)
    with VideoWriter(tmp_path / f"chunks{suffix}", **SIZE) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:1])
        writer.write(frames[1:5, :, ::-1][:, :, ::-1])  # not contiguous
        writer.write(frames[5:])
    whole, chunks = (tmp_path / f"{name}{suffix}" for name in ("whole", "chunks"))
    assert whole.read_bytes() == chunks.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_the_file_appears_only_when_complete(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with VideoWriter(path, **SIZE) as writer:
        writer.write(moving_disc())
        assert not path.exists()
        aside = wait_for_file(tmp_path)
        assert str(os.getpid()) in aside.name
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()


def wait_for_file(folder):
    """The only file in a folder; ffmpeg takes a moment to make it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := list(folder.iterdir()):
            assert len(found) == 1, found
            return found[0]
        time.sleep(0.01)
    pytest.fail("no file was made in 20 seconds")


def current_umask():
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, suffix, error):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def stopped_while_writing():
        with VideoWriter(path, **SIZE) as writer:
            writer.write(moving_disc())
            raise error

    with pytest.raises(error):
        stopped_while_writing()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_a_file_can_be_given_up_by_another_thread(tmp_path, suffix):
    """A process told to leave at once cannot wait for the thread that writes."""

    def given_up_while_writing():
        with VideoWriter(tmp_path / f"a{suffix}", **SIZE) as writer:
            writer.write(moving_disc())
            thread = threading.Thread(target=writer.abort)
            thread.start()
            thread.join(20)
            assert not thread.is_alive()
            assert not list(tmp_path.iterdir())
            raise SystemExit

    with pytest.raises(SystemExit):
        given_up_while_writing()
    assert not list(tmp_path.iterdir())


def test_a_writer_that_waits_for_ffmpeg_can_be_stopped_by_another_thread(tmp_path, monkeypatch):
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\nsleep 60\n")  # never reads, so that the pipe fills
    script.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(script))

    def stopped_while_waiting():
        with VideoWriter(tmp_path / "a.mp4", **SIZE) as writer:
            threading.Timer(0.5, writer.abort).start()
            writer.write(np.zeros((100, 48, 64, 3), np.uint8))

    with pytest.raises(OutputError, match="ffmpeg: killed by SIGKILL"):
        stopped_while_waiting()
    assert list(tmp_path.iterdir()) == [script]


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_no_frames_is_an_error(tmp_path, suffix):
    with (
        pytest.raises(OutputError, match="there are no frames"),
        VideoWriter(tmp_path / f"a{suffix}", **SIZE) as writer,
    ):
        writer.write(moving_disc()[:0])
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "link.npy").symlink_to(folder / "real.npy")
    write(tmp_path / "link.npy", moving_disc())
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(folder / "real.npy").shape == (9, 48, 64, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_a_missing_folder_is_an_output_error(tmp_path, suffix):
    with pytest.raises(OutputError, match="No such file or directory"):
        write(tmp_path / "none" / f"a{suffix}", moving_disc())


@contextlib.contextmanager
def file_size_limit(size):
    """No process started here may write a longer file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("suffix", "message"), [(".mp4", "ffmpeg: killed by SIGXFSZ"), (".npy", "File too large")]
)
def test_a_file_that_may_not_grow(tmp_path, suffix, message):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    with file_size_limit(10_000), pytest.raises(OutputError, match=message):
        write(tmp_path / f"a{suffix}", noise)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_a_full_disk(tmp_path, suffix):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small disk; the tests around this one need none")
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
    try:
        with pytest.raises(OutputError, match=r"cannot write .*/a\....: .*No space left on device"):
            write(disk / f"a{suffix}", noise)
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("reads", ["cat >/dev/null", "exec 0<&-; sleep 0.2"])
def test_ffmpegs_last_words_are_the_message(tmp_path, monkeypatch, reads):
    """It fails after the last frame, or stops reading in the middle; it may also talk at length."""
    script = tmp_path / "ffmpeg"
    talk = "i=0; while [ $i -lt 9000 ]; do echo 'some warning' >&2; i=$((i+1)); done"
    last = "printf 'Conversion failed: No space left on device\\n\\n' >&2; exit 3"
    script.write_text(f"#!/bin/sh\n{talk}\n{reads}\n{last}\n")
    script.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(script))
    message = r"cannot write .*a\.mp4: ffmpeg: Conversion failed: No space left on device$"
    with pytest.raises(OutputError, match=message):
        write(tmp_path / "a.mp4", np.zeros((100, 64, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == [script]


def test_ctrl_c_while_the_file_is_completed_leaves_nothing(tmp_path, monkeypatch):
    """Here ffmpeg is a script whose child lives on unless both are killed."""
    folder = tmp_path / "out"
    folder.mkdir()
    script = tmp_path / "ffmpeg"
    make_the_file = "for last; do :; done; touch $last"  # named by the last argument
    script.write_text(f"#!/bin/sh\ncat >/dev/null\n{make_the_file}\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(script))

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    started = time.monotonic()
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with VideoWriter(folder / "a.mp4", **SIZE) as writer:
            writer.write(moving_disc())
            signal.setitimer(signal.ITIMER_REAL, 0.5)  # by then it waits for the script's end
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("the writer swallowed the interrupt")
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - started < 30
    assert not list(folder.iterdir())


def test_no_ffmpeg_names_the_way_out(tmp_path, monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(MissingPackageError, match=r"install ffmpeg or write \.npy"):
        write(tmp_path / "a.mp4", moving_disc())


def run_in_a_terminal(folder, body):
    """Runs `body` in a process group of its own, as a shell does; it may signal the whole group."""
    code = """
        import os, signal, sys, time
        import numpy as np
        from wan_tpu.pipeline.video_file import VideoWriter
        frames = np.zeros((4, 64, 64, 3), np.uint8)
        with VideoWriter("a.mp4", fps=8, width=64, height=64) as writer:
            for _ in range(8):
                writer.write(frames)
    """
    code = textwrap.dedent(code) + textwrap.indent(textwrap.dedent(body), " " * 8)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ctrl_c_leaves_nothing(tmp_path):
    done = run_in_a_terminal(tmp_path, "os.killpg(0, signal.SIGINT); time.sleep(5)")
    assert done.returncode == -signal.SIGINT
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_that_the_program_ignores_does_not_reach_ffmpeg(tmp_path):
    """A server asks its job to stop and lets the file in hand be finished."""
    body = """
        signal.signal(signal.SIGINT, lambda *_: None)
        os.killpg(0, signal.SIGINT)
        time.sleep(0.2)
    """
    done = run_in_a_terminal(tmp_path, body)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_frames(tmp_path / "a.mp4").shape == (32, 64, 64, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.npy", "with space.mp4", "-y.mp4", "a:b%d.mp4"])
def test_good_paths_are_accepted_and_written(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(check_output_path(name)) == name
    assert not list(tmp_path.iterdir())
    write(name, moving_disc())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(read_frames(name)) == 9


@pytest.mark.parametrize("name", ["a", "a.avi", ".mp4", "a.MP4x", "mp4"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    message = r"output must end in \.mp4 or \.npy, got '"
    with pytest.raises(InputError, match=message):
        check_output_path(tmp_path / name)
    with pytest.raises(InputError, match=message):
        VideoWriter(tmp_path / name, **SIZE)


def test_bad_places_are_refused_before_any_work(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "kept.mp4").touch(mode=0o444)
    for path, message in (
        (tmp_path / "folder.mp4", "it exists and is not a file"),
        (tmp_path / "none" / "a.mp4", "there is no folder .*/none"),
        (tmp_path / "file" / "a.mp4", "Not a directory"),
        (tmp_path / "kept.mp4", "the file there is read-only"),
        (tmp_path / ("x" * 300 + ".mp4"), "File name too long"),
        ("/proc/a.mp4", "No such file or directory"),  # a folder where nothing can be made
    ):
        with pytest.raises(OutputError, match=rf"^cannot write .*\.mp4: {message}") as caught:
            check_output_path(path)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        check_output_path(tmp_path / "a.mp4")


def test_an_existing_file_may_be_replaced(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"old")
    check_output_path(tmp_path / "a.npy")
    assert (tmp_path / "a.npy").read_bytes() == b"old"


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47)])
def test_odd_sizes_need_an_array(tmp_path, width, height):
    with pytest.raises(InputError, match=rf"even width and height, got {width}x{height}"):
        VideoWriter(tmp_path / "a.mp4", fps=8, width=width, height=height)


def test_reading_what_is_no_video_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="there is no video file"):
        read_frames(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match=r"cannot read .*a\.mp4: .*Invalid data"):
        read_frames(tmp_path / "a.mp4")


def test_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.json"
    data = {"prompt": "\u732b, half a pair \udc80", "seconds": 1.5}
    write_json_atomically(path, data)
    assert json.loads(path.read_text("utf-8")) == data
    assert "\u732b" in path.read_text("utf-8")
    with pytest.raises(TypeError):
        write_json_atomically(path, {"array": np.zeros(3)})
    with file_size_limit(100), pytest.raises(OutputError, match="File too large"):
        write_json_atomically(path, ["x" * 1000])
    assert json.loads(path.read_text("utf-8")) == data
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match=r"cannot write .*none/a\.json: No such file"):
        write_json_atomically(tmp_path / "none" / "a.json", data)
