"""Clips from files, from a later moment on, and in the formats that only their owner may read."""

from fractions import Fraction

import numpy as np
import pytest

from tests.image.clips import ffmpeg, make_clip, moving, numbers
from wan_tpu.errors import MediaError
from wan_tpu.image import video
from wan_tpu.image.clip_details import examine_clip
from wan_tpu.image.clip_reader import OWN_FILES
from wan_tpu.image.video import read_video, video_info

CLIPS = {
    "short.mp4": ("-g", "10", "-bf", "3"),
    "open.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=10:open-gop=1"),
    "late.mov": ("-g", "10", "-bf", "3", "-output_ts_offset", "7"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-g", "10", "-b:v", "1M"),
    "av1.mkv": ("-c:v", "libaom-av1", "-cpu-used", "8", "-g", "10", "-crf", "30"),
    "fragments.mp4": ("-g", "10", "-movflags", "frag_keyframe+empty_moov"),
    "packed.avi": ("-c:v", "mpeg4", "-q:v", "3", "-g", "10", "-bf", "2"),
    "h264.avi": ("-g", "10"),
    "loop.gif": ("-c:v", "gif", "-pix_fmt", "rgb8"),
    "varying.mkv": ("-g", "5", "-vf", "select='lte(n,20)+not(mod(n,7))'", "-fps_mode", "vfr"),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    for name, options in CLIPS.items():
        make_clip(folder / name, moving(55), *options)
    # As phones trim: the frames before stay in the file, and an edit list says not to show them.
    part = ("-ss", "0.28", "-i", folder / "varying.mkv", "-t", "1.8", "-c", "copy")
    ffmpeg(*part, folder / "trimmed.mov")
    return folder


@pytest.mark.parametrize("name", [*CLIPS, "trimmed.mov"])
def test_a_later_moment_has_the_frames_that_decoding_all_gives(clips, name):
    """Red when the clock begins at the keyframe that was found, or frames are counted from it."""
    path = clips / name
    whole = read_video(path, 25, 55, bounds=OWN_FILES)
    assert len(whole) == video_info(path, bounds=OWN_FILES).frames_at(25)
    for start in (1, 10, 24, 26, 35, 36, 42, len(whole) - 1):
        found = read_video(path, 25, 9, start=Fraction(start, 25), bounds=OWN_FILES)
        np.testing.assert_array_equal(found, whole[start : start + 9], err_msg=f"{start}")


def test_numbers_of_frames_in_avi_with_pictures_from_two_sides(clips):
    """AVI holds the order of decoding alone; what FFmpeg makes of it goes back and forth."""
    for name in ("packed.avi", "h264.avi"):
        found = numbers(read_video(clips / name, 25, 55, bounds=OWN_FILES))
        assert found == list(range(55)), name


def test_what_lies_before_is_not_decoded(clips, monkeypatch):
    decoded = []

    def counted(*arguments):
        for frame in timed(*arguments):
            decoded.append(frame)
            yield frame

    timed = video.timed
    monkeypatch.setattr(video, "timed", counted)
    read_video(clips / "short.mp4", 25, 5, start=Fraction(50, 25))
    assert len(decoded) < 40  # a second before, five frames, and one to know how large they are


def test_an_index_that_leads_too_far(clips, monkeypatch):
    """Then all is decoded from the beginning. Red when frames are taken from where it led."""

    def too_far(container, stream, time):
        return seek(container, stream, time + Fraction(7, 5))

    seek = video.seek
    path = clips / "short.mp4"
    expected = read_video(path, 25, 5, start=Fraction(30, 25))
    monkeypatch.setattr(video, "seek", too_far)
    np.testing.assert_array_equal(read_video(path, 25, 5, start=Fraction(30, 25)), expected)


def test_a_file_is_as_its_bytes(clips):
    for name in ("short.mp4", "vp9.webm"):
        path = clips / name
        assert video_info(path) == video_info(path.read_bytes())
        np.testing.assert_array_equal(
            read_video(path, 16, 20), read_video(path.read_bytes(), 16, 20)
        )


def test_keyframes(clips):
    assert video_info(clips / "short.mp4").keyframes == tuple(
        Fraction(n, 25) for n in range(0, 55, 10)
    )
    assert video_info(clips / "late.mov").keyframes[:2] == (0, Fraction(2, 5))


@pytest.mark.parametrize("name", ["loop.gif", "h264.avi"])
def test_what_is_sent_may_not_be_gif_or_avi(clips, name):
    for source in (clips / name, (clips / name).read_bytes()):
        for read in (video_info, lambda source: read_video(source, 16, 5)):
            with pytest.raises(MediaError, match="neither MP4, MOV, WebM nor Matroska"):
                read(source)


@pytest.mark.parametrize("name", ["loop.gif", "packed.avi"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_gif_and_avi_that_were_cut_off(clips, tmp_path, name, part):
    data = (clips / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data + b"\0")  # what was put behind it is left alone
    assert video_info(path, bounds=OWN_FILES).num_frames == 55
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match="the clip is damaged: its file ends too early"):
        video_info(path, bounds=OWN_FILES)


def test_a_clip_all_decoded(clips, tmp_path):
    found = examine_clip(clips / "short.mp4", OWN_FILES)
    assert (found.width, found.height, found.num_frames, found.decoded) == (96, 64, 55, 55)
    assert (found.codec, found.bits, found.is_hdr, found.orientation) == ("h264", 8, False, 1)
    assert (found.damage, found.corrupt, found.missing) == (None, 0, 0)
    assert found.shortest == found.longest == Fraction(1, 25)
    assert found.look.change > 200
    assert found.look.contrast > 200
    lines = ("-vf", "tinterlace=interleave_top,fieldorder=tff", "-flags", "+ilme+ildct")
    make_clip(tmp_path / "lines.mp4", moving(20), *lines)
    assert examine_clip(tmp_path / "lines.mp4", OWN_FILES).is_interlaced
    ffmpeg("-i", clips / "short.mp4", "-c", "copy", tmp_path / "again.mkv")
    again = examine_clip(tmp_path / "again.mkv", OWN_FILES)
    assert again.look == found.look


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.webm", "late.mov", "cut.mp4"])
def test_nothing_is_missing_of_a_clip_that_begins_late(clips, tmp_path, name):
    """Some files count their seconds from 0, some from their begin, and some have an edit list."""
    if name == "cut.mp4":
        part = ("-ss", "1.3", "-i", clips / "short.mp4", "-t", "0.7", "-c", "copy")
        ffmpeg(*part, tmp_path / name)
    else:
        encoder = ("-c:v", "libvpx") if name == "late.webm" else ()
        make_clip(tmp_path / name, moving(30), *encoder, "-output_ts_offset", "9", rate="10")
    assert examine_clip(tmp_path / name, OWN_FILES).missing < Fraction(1, 10)


@pytest.mark.parametrize("name", ["mute.webm", "sound.mkv", "sound.webm"])
def test_seconds_that_are_missing(tmp_path, name):
    """Its last part is zeros: Matroska's reader comes to an end there, without a word."""
    sound = name.startswith("sound")
    options = ("-c:v", "libvpx", *(("-c:a", "libopus", "-shortest") if sound else ()))
    data = make_clip(tmp_path / name, moving(50), *options, rate="10", sound=sound)
    kept = len(data) // 2
    (tmp_path / name).write_bytes(data[:kept] + bytes(len(data) - kept))
    found = examine_clip(tmp_path / name, OWN_FILES)
    assert found.missing > 1
    assert abs(found.duration + found.missing - (3 if sound else 5)) < 0.2


def test_a_moment_past_the_end(clips):
    with pytest.raises(MediaError, match=r"has 2.200 seconds, and frames from 2.200 on"):
        read_video(clips / "short.mp4", 25, 9, start=Fraction(55, 25))
