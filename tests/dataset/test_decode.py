"""Windows of clips, pictures and stored frames: the frames of their moments, in their size."""

import dataclasses
import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest

from tests.image.clips import make_clip, moving, numbers
from tests.image.pictures import corner_names, corners, encode
from wan_tpu.dataset import decode
from wan_tpu.dataset.decode import measure, read_window
from wan_tpu.dataset.entry import Entry, Kind
from wan_tpu.dataset.listing import list_entries
from wan_tpu.dataset.sampling import Window
from wan_tpu.errors import MediaError
from wan_tpu.geometry import Geometry
from wan_tpu.image.fit import cover

SIZE = Geometry(width=64, height=48, num_frames=9)


def window(start, num_frames=9):
    return Window(start=Fraction(start), num_frames=num_frames)


def entry(path: pathlib.Path, kind: Kind, **others) -> Entry:
    return Entry(path=path, name=path.name, caption="x", kind=kind, **others)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Fifty frames at 25 a second, a keyframe every ten."""
    path = tmp_path_factory.mktemp("decode") / "clip.mp4"
    make_clip(path, None, "-g", "10")
    return entry(path, Kind.CLIP)


@pytest.mark.parametrize("start", ["0", "0.3", "1", "1.1875", "1.47"])
@pytest.mark.parametrize("fps", [16, 25, Fraction(30000, 1001)])
def test_a_window_has_the_frames_of_its_moments(clip, start, fps):
    frames = read_window(clip, window(start), SIZE, fps=fps)
    assert frames.shape == (9, 48, 64, 3)
    times = [Fraction(start) + index / Fraction(fps) for index in range(9)]
    assert numbers(frames) == [
        min(range(50), key=lambda n: abs(Fraction(n, 25) - time)) for time in times
    ]
    assert corner_names(frames[0]) == "rgwb"


def test_what_a_clip_has(clip):
    found = measure(clip, fps=16)
    assert (found.width, found.height, found.duration) == (96, 64, 2)
    assert found.keyframes == tuple(Fraction(n, 25) for n in range(0, 50, 10))
    assert found.frames_at(16) == 32


def test_a_window_past_the_end_is_refused(clip):
    with pytest.raises(MediaError, match=r"clip.mp4: it has 8 frames from 1.500 seconds on, and 9"):
        read_window(clip, window("1.5"), SIZE, fps=16)
    with pytest.raises(
        MediaError, match=r"clip.mp4: the clip has 2.000 seconds, and frames from 2"
    ):
        read_window(clip, window("2"), SIZE, fps=16)


def test_a_clip_is_looked_at_once_for_all_of_its_windows(tmp_path, monkeypatch):
    """That reads the whole file. Another file of the same name is another clip."""
    looks = []

    def counted(source, **options):
        looks.append(source)
        return open_clip(source, **options)

    open_clip = decode.open_clip
    monkeypatch.setattr(decode, "open_clip", counted)
    path = tmp_path / "clip.mp4"
    make_clip(path, moving(30))
    found = entry(path, Kind.CLIP)
    measure(found, fps=25)
    for start in ("0", "0.4"):
        read_window(found, window(start), SIZE, fps=25)
    assert looks == [path]
    make_clip(path, moving(20))
    assert measure(found, fps=25).duration == Fraction(20, 25)


def test_a_file_that_has_gone_is_one_error(tmp_path):
    with pytest.raises(MediaError, match=r"gone.mp4: it cannot be read: No such file or directory"):
        measure(entry(tmp_path / "gone.mp4", Kind.CLIP), fps=16)


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(encode(corners(120, 90)))
    picture = entry(path, Kind.PICTURE)
    assert measure(picture, fps=16).frames_at(16) == 1
    one = dataclasses.replace(SIZE, num_frames=1)
    frames = read_window(picture, window(0, 1), one, fps=16)
    np.testing.assert_array_equal(frames, cover(corners(120, 90), 64, 48)[None])


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("rate", [None, 16, 8, 25])
@pytest.mark.parametrize("start", ["0", "0.5", "0.6"])
def test_stored_frames(tmp_path, channels_first, rate, start):
    """At the rate that their line says, else at the model's; never at another one."""
    frames = moving(50)
    stored = frames.transpose(0, 3, 1, 2) if channels_first else frames
    np.savez_compressed(tmp_path / "a.npz", frames=stored)
    found = entry(tmp_path / "a.npz", Kind.FRAMES, fps=rate)
    has = measure(found, fps=16)
    assert has.duration == Fraction(50, rate or 16)
    read = read_window(found, window(start), SIZE, fps=16)
    times = [Fraction(start) + Fraction(index, 16) for index in range(9)]
    indices = [math.ceil(time * (rate or 16) - Fraction(1, 2)) for time in times]
    assert numbers(read) == indices
    np.testing.assert_array_equal(read[4], cover(frames[indices[4]], 64, 48))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"latents": np.zeros((5, 8, 8, 3), np.uint8)}, "has no frames: one of frames, video"),
        ({"frames": np.zeros((5, 8, 8, 3), np.float32)}, "frames, float32 [5, 8, 8, 3], is not"),
        ({"frames": np.zeros((5, 8, 8), np.uint8)}, "frames, uint8 [5, 8, 8], is not what is read"),
        ({"frames": np.zeros((5, 8, 8, 4), np.uint8)}, "has no three colours"),
        ({"frames": np.zeros((0, 8, 8, 3), np.uint8)}, "has no frames"),
        ({"frames": np.zeros((5, 9, 9, 3), np.uint8, order="F")}, "in Fortran's order"),
        ({"frames": np.zeros((5, 8, 99, 3), np.uint8)}, "one side may be at most 8 times"),
    ],
)
def test_files_of_other_arrays_are_refused_by_name(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MediaError) as caught:
        measure(entry(tmp_path / "a.npz", Kind.FRAMES), fps=16)
    assert str(caught.value).startswith("a.npz: ")
    assert words in str(caught.value)


def test_files_of_frames_that_are_damaged(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, frames=moving(20))
    data = path.read_bytes()
    for damaged in (
        data[: len(data) // 2],
        b"PK\3\4" + bytes(50),
        data.replace(b"descr", b"desc_"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(MediaError, match=r"a.npz: the frames are damaged"):
            read_window(entry(path, Kind.FRAMES), window(0), SIZE, fps=16)
    changed = bytearray(data)
    changed[len(data) // 3] ^= 0xFF  # found by the checksum, when all of it has been read
    path.write_bytes(changed)
    last = window(Fraction(11, 16))
    with pytest.raises(MediaError, match=r"a.npz: the frames are damaged, or no .npz"):
        read_window(entry(path, Kind.FRAMES), last, SIZE, fps=16)


def test_from_a_manifest_to_frames(tmp_path, clip):
    np.savez(tmp_path / "a.npz", frames=moving(20))
    lines = [
        {"npz": "a.npz", "prompt": "a square"},
        {"video_path": str(clip.path), "caption": "another"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    listing = list_entries(tmp_path / "m.jsonl")
    assert len(listing.entries) == 2
    for each in listing.entries:
        assert read_window(each, window(0), SIZE, fps=16).shape == (9, 48, 64, 3)
