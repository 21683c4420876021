"""Windows: within the clip, at the model's rate, different, the same whenever they are drawn."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_tpu.dataset.sampling import SAMPLINGS, Sampling, frames_at, sample_windows
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.image.video import VideoInfo

RATES = [8, 16, 24, 29.97, Fraction(24000, 1001)]


def starts(method, count=None, *, duration="5", num_frames=17, fps=16, keyframes=(), **others):
    windows = sample_windows(
        Sampling(method=method, count=count, seed=others.get("seed", 0)),
        name=others.get("name", "fox.mp4"),
        duration=Fraction(duration),
        num_frames=num_frames,
        fps=fps,
        keyframes=[Fraction(time) for time in keyframes],
    )
    assert {window.num_frames for window in windows} <= {num_frames}
    return [float(window.start) for window in windows]


def test_where_windows_begin():
    """Five seconds at 16 a second are 80 frames; 17 of them begin at the 63rd at the latest."""
    assert starts("head") == [0]
    assert starts("middle") == starts("uniform", 1) == starts("uniform") == [31 / 16]
    assert starts("uniform", 2) == [0, 63 / 16]
    assert starts("uniform", 3) == [0, 2, 63 / 16]
    assert starts("chunks") == [0, 17 / 16, 34 / 16, 51 / 16]
    assert starts("chunks", 2) == [0, 17 / 16]


def test_a_clip_that_is_just_long_enough_and_one_that_is_not():
    for method in SAMPLINGS:
        assert starts(method, duration=Fraction(17, 16)) == [0]
        assert starts(method, duration=Fraction(16, 16) + Fraction(1, 1000)) == [0]
        assert starts(method, duration=1) == []
    assert starts("uniform", 5, duration=Fraction(18, 16)) == [0, 1 / 16]
    assert starts("random", 9, duration=Fraction(18, 16)) == [0, 1 / 16]


def test_windows_that_begin_at_keyframes():
    """Each at least a window's length behind the one before, and none past the last start."""
    times = ("0", "0.5", "1.2", "2.0", "2.4", "4.5")
    assert starts("keyframe", keyframes=times) == [0, 1.2, 2.4]
    assert starts("keyframe", 2, keyframes=times) == [0, 1.2]
    assert starts("keyframe") == [0]
    assert starts("keyframe", keyframes=("3.99",)) == [3.99]
    assert starts("keyframe", keyframes=("4",)) == [0]  # its last frame would be the clip's end


def test_a_draw_depends_on_the_seed_and_the_clip_alone():
    drawn = starts("random", 4)
    assert drawn == starts("random", 4)
    assert drawn != starts("random", 4, seed=1)
    assert drawn != starts("random", 4, name="cat.mp4")
    assert drawn == [13 / 16, 35 / 16, 39 / 16, 45 / 16]


@given(
    st.sampled_from([m for m in SAMPLINGS if m != "keyframe"]),
    st.integers(1, 9),
    st.fractions(min_value=Fraction(1, 100), max_value=30, max_denominator=90_000),
    st.integers(0, 8),
    st.sampled_from(RATES),
    st.integers(0, 5),
)
def test_every_window_has_its_frames(method, count, duration, length, fps, seed):
    """Red when a window reaches past the end by one frame, or fewer are given than there are."""
    num_frames = 4 * length + 1
    count = 1 if method in ("head", "middle") else count
    sampling = Sampling(method=method, count=count, seed=seed)
    windows = sample_windows(sampling, name="a", duration=duration, num_frames=num_frames, fps=fps)
    info = VideoInfo(width=1, height=1, num_frames=1, duration=duration)
    has = info.frames_at(fps)
    assert has == frames_at(duration, fps)
    assert bool(windows) == (has >= num_frames)
    for window in windows:
        assert window.start < duration
        assert info.frames_at(fps, window.start) >= num_frames
    begins = [window.start for window in windows]
    assert begins == sorted(set(begins))
    if method in ("uniform", "random") and windows:
        assert len(windows) == min(count, has - num_frames + 1)
    if method == "chunks":
        assert len(windows) == min(count, has // num_frames)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "tail"}, UnknownNameError, "unknown sampling 'tail'; known: head, middle"),
        ({"method": "random", "count": 0}, InputError, "must be at least 1, got 0"),
        ({"method": "head", "count": 2}, InputError, "takes one window of a clip, not 2; uniform"),
    ],
)
def test_what_is_no_sampling(options, error, words):
    with pytest.raises(error, match=words):
        Sampling(**options)
