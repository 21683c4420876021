"""Clips from bytes: frames by their time, turned, in their colours; what is no clip is refused."""

import concurrent.futures
import dataclasses
import io
import math
import re
import struct
import subprocess
import sys
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.image.clips import HEIGHT, WIDTH, ffmpeg, make_clip, moving, numbers
from tests.image.pictures import corner_names, encode
from wan_tpu.errors import MediaError
from wan_tpu.image import clip_reader, video
from wan_tpu.image.clip_reader import UPLOADS
from wan_tpu.image.fit import cover
from wan_tpu.image.video import VideoInfo, read_video, video_info
from wan_tpu.pipeline.video_file import VideoWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    """Fifty frames at 25 a second, with sound."""
    return make_clip(folder / "clip.mp4", None, "-c:a", "aac", "-shortest", sound=True)


def refusal(data: bytes) -> str:
    messages = set()
    for read in (video_info, lambda data: read_video(data, 16, 81)):
        with pytest.raises(MediaError) as caught:
            read(data)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    assert len(message) < 300
    return message


def test_a_clip_at_its_own_rate(clip):
    info = video_info(clip)
    assert info == VideoInfo(width=WIDTH, height=HEIGHT, num_frames=50, duration=Fraction(2))
    assert info.fps == 25
    found = read_video(clip, 25, 81)
    assert found.shape == (50, HEIGHT, WIDTH, 3)
    assert found.dtype == np.uint8
    assert numbers(found) == list(range(50))
    assert corner_names(found[0]) == "rgwb"


@pytest.mark.parametrize("fps", [1, 8, 16, 24, 25, 30, 50, 29.97, Fraction(30000, 1001)])
def test_each_moment_has_the_frame_nearest_in_time(clip, fps):
    """Red when frames are counted instead of timed."""
    found = read_video(clip, fps, 200)
    assert len(found) == video_info(clip).frames_at(fps) == math.ceil(2 * Fraction(fps))
    times = [index / Fraction(fps) for index in range(len(found))]
    nearest = [min(range(50), key=lambda n: abs(Fraction(n, 25) - time)) for time in times]
    assert numbers(found) == nearest


def test_a_video_is_made_of_a_clips_beginning(clip):
    assert numbers(read_video(clip, 25, 9)) == list(range(9))
    assert numbers(read_video(clip, 5, 3)) == [0, 5, 10]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_varying_rate(folder, suffix):
    """Frames 0 to 10, then every seventh: what stands between is the one nearest in time."""
    kept = [n for n in range(50) if n <= 10 or n % 7 == 0]
    select = "select='lte(n,10)+not(mod(n,7))'"
    options = ("-vf", select, "-fps_mode", "vfr")
    data = make_clip(folder / f"varying.{suffix}", None, *options)
    info = video_info(data)
    assert info.num_frames == len(kept)
    found = numbers(read_video(data, 25, 81))
    expected = [min(kept, key=lambda n: abs(n - index)) for index in range(50)]
    assert found[:50] == expected
    assert set(found[50:]) <= {49}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ((), "rgwb"),
        (("-display_rotation", "90"), "gwbr"),
        (("-display_rotation", "180"), "wbrg"),
        (("-display_rotation", "-90"), "brgw"),
        (("-display_hflip",), "grbw"),
        (("-display_rotation", "90", "-display_hflip"), None),
        (("-display_rotation", "90", "-display_vflip"), None),
    ],
)
def test_a_clip_is_turned_as_its_matrix_says(clip, folder, options, seen):
    """As the ffmpeg program turns it, too."""
    ffmpeg(*options, "-i", folder / "clip.mp4", "-c", "copy", folder / "turned.mov")
    data = (folder / "turned.mov").read_bytes()
    ffmpeg("-i", folder / "turned.mov", "-frames:v", "1", folder / "turned.png")
    by_ffmpeg = corner_names(np.asarray(Image.open(folder / "turned.png").convert("RGB")))
    found = read_video(data, 25, 3)
    assert corner_names(found[0]) == by_ffmpeg == (seen or by_ffmpeg)
    info = video_info(data)
    assert found.shape[1:3] == (info.height, info.width)
    upright = any(angle in options for angle in ("90", "-90"))
    assert (info.width, info.height) == ((64, 96) if upright else (96, 64))


def test_a_clip_that_was_trimmed_begins_where_it_was_trimmed(clip, folder):
    """Phones trim by an edit list: the frames before stay in the file, and are not to be seen."""
    trim = ("-ss", "0.52", "-i", folder / "clip.mp4", "-t", "1", "-c", "copy", "-an")
    ffmpeg(*trim, folder / "trimmed.mp4")
    data = (folder / "trimmed.mp4").read_bytes()
    found = numbers(read_video(data, 25, 81))
    assert len(found) == video_info(data).num_frames >= 25
    assert found == list(range(13, 13 + len(found)))


def test_pixels_that_are_not_square_become_so(folder):
    data = make_clip(folder / "wide.mp4", None, "-vf", "setsar=2/1")
    assert (video_info(data).width, video_info(data).height) == (192, 64)
    found = read_video(data, 25, 2)
    assert found.shape == (2, 64, 192, 3)
    assert corner_names(found[0]) == "rgwb"


FORMATS = {
    "ten.mov": ("-c:v", "libx264", "-pix_fmt", "yuv422p10le", "-crf", "8"),
    "hevc.mp4": ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error"),
    "prores.mov": ("-c:v", "prores_ks"),
    "rgb.mp4": ("-c:v", "libx264rgb", "-pix_fmt", "rgb24", "-crf", "8"),
    "full.mp4": ("-c:v", "libx264", "-pix_fmt", "yuvj444p", "-crf", "8"),
    "vp8.webm": ("-c:v", "libvpx", "-b:v", "2M"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-b:v", "2M"),
    "av1.mkv": ("-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "10"),
    "motion.mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "2"),
    "fragments.mp4": ("-movflags", "frag_keyframe+empty_moov", "-g", "10"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_cameras_and_browsers_record(folder, name):
    frames = moving(12)
    data = make_clip(folder / name, frames, *FORMATS[name])
    info = video_info(data)
    assert (info.width, info.height, info.num_frames) == (WIDTH, HEIGHT, 12)
    assert abs(info.fps - 25) < 0.1
    found = read_video(data, 25, 12)
    assert numbers(found) == list(range(12))
    assert corner_names(found[-1]) == "rgwb"


def test_a_recording_of_a_browser_says_no_length(folder):
    """Written while it was recorded: neither duration nor size stand in its header."""
    make_clip(folder / "live.webm", None, "-c:v", "libvpx", "-live", "1", "-f", "webm")
    data = (folder / "live.webm").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
    assert video_info(data).num_frames == 50
    assert len(read_video(data, 25, 81)) == 50


@pytest.mark.parametrize(
    ("frames", "options", "duration"),
    [
        (None, ("-vf", "select='not(mod(n,7))'", "-fps_mode", "vfr"), Fraction(196 * 8, 700)),
        (moving(1), (), Fraction(1, 25)),
    ],
)
def test_frames_without_a_duration(folder, frames, options, duration):
    """As Chrome records: the last frame is seen as long as one is on average."""
    data = bytearray(make_clip(folder / "chrome.webm", frames, "-c:v", "libvpx", *options))
    default_duration = data.index(b"\x23\xe3\x83\x84")
    data[default_duration : default_duration + 8] = b"\xec\x86" + bytes(6)  # left empty
    assert video_info(bytes(data)).duration == duration
    assert len(read_video(bytes(data), 25, 81)) == math.ceil(duration * 25)


def test_odd_sizes(folder):
    data = make_clip(folder / "odd.mp4", moving(3, 97, 65), "-pix_fmt", "yuv444p")
    assert read_video(data, 25, 3).shape == (3, 65, 97, 3)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", None])
@pytest.mark.parametrize("height", [64, 600])
def test_colours_by_the_matrix_that_the_file_names(folder, matrix, height):
    """Where it names none, HD is BT.709 and all below BT.601. Red when all are taken for one."""
    frames = np.full((2, height, 128, 3), (200, 60, 40), np.uint8)
    used = matrix or ("bt709" if height > 576 else "smpte170m")
    options = ("-vf", f"scale=out_color_matrix={used},format=yuv420p")
    named = ("-colorspace", matrix) if matrix else ("-bsf:v", "h264_metadata=matrix_coefficients=2")
    data = make_clip(folder / "colour.mp4", frames, *options, *named, "-color_range", "tv")
    found = read_video(data, 25, 1)[0, height // 2, 64]
    assert np.abs(found.astype(int) - (200, 60, 40)).max() <= 3


@pytest.mark.parametrize(
    "transfer", ["arib-std-b67", pytest.param("smpte2084", marks=pytest.mark.slow)]
)
def test_hdr_becomes_what_a_screen_shows(folder, transfer):
    """As phones record it. Red when it is shown as it is stored: grey 180 would be 153 or 125."""
    frames = np.full((2, HEIGHT, WIDTH, 3), 180, np.uint8)
    frames[:, :, WIDTH // 2 :] = (200, 40, 40)
    wide = f"matrix=2020_ncl:primaries=2020:transfer={transfer}:range=limited:npl=203"
    convert = f"zscale=transferin=709:primariesin=709:rangein=full:{wide},format=yuv420p10le"
    marks = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    encoder = ("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-crf", "8", "-x265-params", marks)
    data = make_clip(folder / "hdr.mov", frames, "-vf", convert, *encoder)
    found = read_video(data, 25, 1)[0].astype(int)
    assert np.abs(found[32, 20] - 180).max() <= 4
    assert np.abs(found[32, 80] - (200, 40, 40)).max() <= 25


def test_what_is_transparent_in_a_clip_shows_white(folder):
    """As in pictures: half of it is red, half a hidden blue."""
    frames = np.full((2, HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8)
    frames[:, :, WIDTH // 2 :] = (0, 0, 255)
    clear = "format=argb,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='255*lt(X,48)'"
    data = make_clip(
        folder / "clear.mov", frames, "-vf", clear, "-c:v", "qtrle", "-pix_fmt", "argb"
    )
    found = read_video(data, 25, 1)[0]
    assert found[32, 20].tolist() == [255, 0, 0]
    assert found[32, 80].tolist() == [255, 255, 255]


def test_our_own_videos_come_back(tmp_path):
    """What a generation has written is the clip of the next one."""
    frames = moving(9, 64, 64)
    with VideoWriter(tmp_path / "own.mp4", fps=16, width=64, height=64) as writer:
        writer.write(frames)
    data = (tmp_path / "own.mp4").read_bytes()
    assert video_info(data).frames_at(16) == 9
    found = read_video(data, 16, 81)
    assert numbers(found) == list(range(9))
    assert np.abs(found.astype(int) - frames).mean() < 3


def test_frames_cover_the_size_that_is_wanted(clip):
    found = read_video(clip, 25, 5, size=(32, 48))
    assert found.shape == (5, 48, 32, 3)
    np.testing.assert_array_equal(found[4], cover(read_video(clip, 25, 5)[4], 32, 48))


def test_a_still_clip_has_one_frame(folder):
    data = make_clip(folder / "one.mp4", moving(1))
    assert video_info(data).num_frames == 1
    assert len(read_video(data, 16, 81)) == 1
    assert VideoInfo(width=1, height=1, num_frames=1, duration=Fraction(1, 1000)).frames_at(16) == 1


def test_music_is_no_clip(clip, folder):
    ffmpeg("-i", folder / "clip.mp4", "-vn", "-c:a", "copy", folder / "sound.m4a")
    sound = (folder / "sound.m4a").read_bytes()
    assert "has no video that can be decoded, only audio" in refusal(sound)
    (folder / "cover.jpg").write_bytes(encode(moving(1)[0], "JPEG"))
    attached = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", folder / "sound.m4a", "-i", folder / "cover.jpg", *attached, folder / "song.mp4")
    assert "has no video that can be decoded" in refusal((folder / "song.mp4").read_bytes())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the clip is neither MP4, MOV, WebM nor Matroska: it is empty, 0 bytes"),
        (b"A red fox\n", "the clip is neither MP4, MOV, WebM nor Matroska: its file begins with"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\nfile:///etc/passwd\n", "neither MP4, MOV"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "neither MP4, MOV"),
        (encode(moving(1)[0]), "neither MP4, MOV, WebM nor Matroska: it is image/png"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "the clip is damaged, or of a kind that is not"),
        (b"\0\0\1\0ftypisom", "ends too early, after 12 of 256 bytes"),
        (b"\x1aE\xdf\xa3\x9fB\x82\x84webm", "ends too early, after 12 of"),
    ],
)
def test_what_is_no_clip_is_refused_in_one_line(data, message):
    assert message in refusal(data)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "cut.webm", "cut.mkv", "fragments.mp4"])
def test_a_file_that_was_cut_off_is_refused(folder, name, part):
    """FFmpeg would give the frames that are there, without a word."""
    options = {
        "end.mp4": (),
        "front.mp4": ("-movflags", "+faststart"),
        "cut.webm": ("-c:v", "libvpx"),
        "cut.mkv": (),
        "fragments.mp4": FORMATS["fragments.mp4"],
    }[name]
    path = folder / f"whole-{name}"
    data = path.read_bytes() if path.exists() else make_clip(path, None, *options)
    assert video_info(data).num_frames == 50
    assert "the clip is damaged" in refusal(data[: int(len(data) * part)])


def test_a_file_of_open_length_that_was_cut_off_is_refused(folder):
    """Its last part goes "to the end of the file": only the index knows where that was."""
    data = make_clip(folder / "open.mp4", None, "-movflags", "+faststart")
    place = data.index(b"mdat") - 4
    data = data[:place] + bytes(4) + data[place + 4 :]
    assert len(read_video(data, 25, 81)) == 50
    assert "the clip is damaged: its file ends too early" in refusal(data[: len(data) // 2])


def test_what_a_camera_puts_behind_a_clip_is_left_alone(clip):
    for rest in (b"\0" * 20, b"SEFHg\0\0\0 and more", b"\xff" * 9):
        assert len(read_video(clip + rest, 25, 81)) == 50


def test_damage_inside_is_refused_or_passed_over(clip):
    """A decoder repairs what it can; whatever it says else is one line."""
    where = clip.index(b"mdat") + 600
    data = clip[:where] + b"\xff" * 3000 + clip[where + 3000 :]
    try:
        found = read_video(data, 25, 81)
    except MediaError as error:
        message = str(error)
    else:
        message = f"{len(found)} frames"
    assert "\n" not in message


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1800, 20), "1800x20 pixels; one side may be at most 8 times the other"),
        ((20, 1800), "20x1800 pixels; one side may be at most 8 times the other"),
        ((4160, 4096), "4160x4096 pixels; at most 4096x4096 = 16777216 are taken"),
    ],
)
def test_sizes_are_refused_before_frames_are_converted(folder, size, message, monkeypatch):
    monkeypatch.setattr("wan_tpu.image.video.ToRgb", None)
    frames = np.zeros((1, size[1], size[0], 3), np.uint8)
    data = make_clip(folder / "size.mp4", frames, "-preset", "ultrafast")
    assert message in refusal(data)


def test_a_size_that_the_header_hides_is_refused_by_the_decoder(folder, monkeypatch):
    """The file says 64x64 and its pictures are larger: the decoder is bound, too."""
    monkeypatch.setattr(clip_reader, "MAX_VIDEO_PIXELS", 96 * 64 - 1)
    data = make_clip(folder / "hidden.mp4", moving(2), "-c:v", "mpeg4", "-q:v", "2")
    small = struct.pack(">HH", 32, 32)
    data = data.replace(struct.pack(">HH", WIDTH, HEIGHT), small)
    assert f"or its frames have more than {96 * 64 - 1} pixels" in refusal(data)


def test_long_clips_are_refused(folder):
    data = make_clip(folder / "long.mp4", moving(31), rate="1/20")
    assert "the clip has 620.0 seconds; at most 600 are taken" in refusal(data)
    data = make_clip(folder / "long.mp4", moving(30), rate="1/20")
    assert video_info(data).duration == 600
    assert numbers(read_video(data, Fraction(1, 20), 81)) == list(range(30))


def test_frames_are_bounded_in_number_work_and_memory(clip, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(video, "UPLOADS", dataclasses.replace(UPLOADS, max_frames=49))
        assert "more than 49 frames" in refusal(clip)
    with monkeypatch.context() as patch:
        bounds = dataclasses.replace(UPLOADS, max_decoded_pixels=20 * WIDTH * HEIGHT)
        patch.setattr(video, "UPLOADS", bounds)
        assert len(read_video(clip, 25, 19)) == 19
        with pytest.raises(MediaError, match=f"too many frames of {WIDTH}x{HEIGHT} pixels"):
            read_video(clip, 25, 30)
    bounds = dataclasses.replace(UPLOADS, max_result_bytes=20 * WIDTH * HEIGHT * 3)
    monkeypatch.setattr(video, "UPLOADS", bounds)
    assert len(read_video(clip, 25, 20)) == 20
    assert len(read_video(clip, 25, 40, size=(64, 48))) == 40
    with pytest.raises(MediaError, match=re.escape("21 frames of 96x64 pixels need more than")):
        read_video(clip, 25, 21)


def test_nothing_is_said_beside_the_error(clip, capfd):
    """FFmpeg would write its complaints to the terminal."""
    where = clip.index(b"mdat") + 100
    with pytest.raises(MediaError):
        read_video(clip[:where] + b"\xff" * 6000 + clip[where + 6000 :], 25, 81)
    assert capfd.readouterr() == ("", "")


def test_threads_do_not_meet(clip):
    expected = read_video(clip, 16, 20)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: read_video(clip, 16, 20), range(8)):
            np.testing.assert_array_equal(found, expected)


def test_texts_of_a_file_may_be_in_any_encoding(folder):
    data = make_clip(folder / "text.mp4", moving(2), "-metadata", "title=fox_fox_fox")
    damaged = data.replace(b"fox_fox_fox", b"f\xf6x_f\xf6x_f\xf6x")
    assert damaged != data
    assert len(read_video(damaged, 25, 81)) == 2


def test_both_ffmpegs_live_side_by_side(clip):
    """PyAV's libraries are in this process, imageio-ffmpeg's program is another one."""
    assert av.library_versions["libavcodec"]
    assert imageio_ffmpeg.get_ffmpeg_version()
    assert len(read_video(clip, 25, 1)) == 1


def test_neither_jax_nor_pyav_is_loaded_before_the_first_clip():
    modules = ", ".join(f"wan_tpu.image.{n}" for n in ("picture", "video", "fit", "preprocess"))
    code = f"import sys, {modules}; "
    code += "print([m for m in ('jax', 'torch', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


BEGINS = (
    b"\0\0\0\x18ftypisom\0\0\2\0isommp42",
    b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
    b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x84webmB\x87\x81\4B\x85\x81\2",
    b"",
)


@given(st.sampled_from(BEGINS), st.binary(max_size=300))
def test_random_bytes_give_one_error(begin, rest):
    with pytest.raises(MediaError):
        read_video(begin + rest, 16, 5)


@pytest.fixture(scope="module")
def small_clips(folder):
    frames = moving(4, 32, 16)
    names = {"small.mp4": (), "small.webm": ("-c:v", "libvpx"), "small.mov": ("-c:v", "mjpeg")}
    return [make_clip(folder / name, frames, *options) for name, options in names.items()]


@given(draw=st.data())
def test_damaged_files_give_frames_or_one_error(small_clips, draw):
    data = draw.draw(st.sampled_from(small_clips))
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        changed[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    begin, end = sorted(draw.draw(st.integers(0, len(data))) for _ in range(2))
    for damaged in (changed, changed[:begin] + changed[end:], changed[:end] + changed[begin:]):
        try:
            found = read_video(bytes(damaged), 25, 5)
        except MediaError:
            continue
        assert 1 <= len(found) <= 5
