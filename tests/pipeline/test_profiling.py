"""Traces of some steps: what is in them, and that they cost no video."""

import jax
import numpy as np
import pytest

from tests.server.files.test_full_disk import fill, mounted
from wan_tpu.errors import BadNumbersError, Cancelled, OutputError
from wan_tpu.pipeline.profiling import Profile
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest

PROMPT = "a red circle moving right on a black background"
REQUEST = VideoRequest(prompt=PROMPT, num_inference_steps=5, seed=1)


@pytest.fixture(scope="module")
def pipeline():
    return VideoPipeline.from_pretrained("wan-tiny", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def frames(pipeline):
    return pipeline(REQUEST).frames


def events(folder):
    """Names of everything in a trace."""
    (file,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    return {event.name for plane in planes for line in plane.lines for event in line.events}


def named(folder):
    return sorted(name for name in events(folder) if name.startswith(("text", "denoise", "decode")))


def test_the_steps_after_the_first_are_in_the_trace_and_the_video_is_the_same(
    pipeline, frames, tmp_path
):
    """Red when the first step is in it, when steps have no names, or when more than asked is."""
    with Profile(tmp_path / "new" / "folder", steps=2) as profile:
        result = pipeline(REQUEST, on_progress=profile.note)
    np.testing.assert_array_equal(result.frames, frames)
    assert (profile.problem, profile.steps) == (None, 2)
    assert profile.folder is not None
    assert profile.folder == tmp_path / "new" / "folder" / "trace-1"
    assert named(profile.folder) == ["denoise 2", "denoise 3"]
    assert any("ThunkExecutor" in name or "dot" in name for name in events(profile.folder))
    assert f"2 steps are in {profile.folder}" in profile.describe()
    (page,) = profile.folder.rglob("*.trace.json.gz")
    assert f"open {page} in Perfetto" in profile.describe()


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, ["denoise 1"]), (2, ["denoise 2"]), (3, ["denoise 2", "denoise 3"])]
)
def test_a_run_with_fewer_steps_ends_the_trace(pipeline, tmp_path, steps, expected):
    with Profile(tmp_path) as profile:
        pipeline(VideoRequest(prompt=PROMPT, num_inference_steps=steps), on_progress=profile.note)
        assert profile.is_over
    assert profile.problem is None
    assert profile.folder is not None
    assert named(profile.folder) == expected
    assert profile.steps == len(expected)


def test_without_a_number_all_that_runs_is_recorded(pipeline, tmp_path):
    with Profile(tmp_path, steps=None, process=3) as profile:
        profile.begin()
        pipeline(VideoRequest(prompt=PROMPT, num_inference_steps=2), on_progress=profile.note)
    assert profile.folder == tmp_path / "trace-1-process-3"
    assert {"text 1", "denoise 1", "denoise 2", "decode 1"} <= set(named(profile.folder))
    assert profile.steps == 2


def test_a_run_that_is_stopped_keeps_what_was_recorded(pipeline, tmp_path):
    done = []
    with Profile(tmp_path) as profile, pytest.raises(Cancelled):
        pipeline(
            REQUEST,
            on_progress=lambda p: (profile.note(p), done.append(p.stage)),
            should_cancel=lambda: done.count("denoise") >= 3,
        )
    assert profile.problem is None
    assert profile.folder is not None
    assert "denoise 2" in named(profile.folder)


def test_nothing_is_overwritten_and_nothing_is_left_of_a_run_without_steps(tmp_path):
    (tmp_path / "trace-1").mkdir()
    (tmp_path / "trace-2").write_text("mine")
    with Profile(tmp_path) as profile, pytest.raises(BadNumbersError):
        raise BadNumbersError("text")
    assert profile.problem == f"there is no profile in {tmp_path}: no step was taken"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace-1", "trace-2"]
    with Profile(tmp_path) as profile:
        for done in (0, 1, 2):
            profile.note(Progress(stage="denoise", done=done, total=2, seconds=0.0))
    assert profile.folder == tmp_path / "trace-3"
    assert profile.problem is None


@pytest.mark.parametrize("parent", ["/proc/nope", "/etc/hostname", "/etc/hostname/below"])
def test_a_folder_that_cannot_be_made_is_said_before_the_work(parent):
    with pytest.raises(OutputError, match=f"^cannot write {parent}: "):
        Profile(parent)


def test_a_disk_that_is_full_costs_the_trace_alone(pipeline, frames, tmp_path):
    """Red when the next profile fails because JAX still holds the one it could not write."""
    with mounted(tmp_path / "disk", "64k") as disk:
        with Profile(disk) as profile:

            def note(progress):
                profile.note(progress)
                if profile.folder is not None:
                    fill(disk)

            result = pipeline(REQUEST, on_progress=note)
        np.testing.assert_array_equal(result.frames, frames)
        assert profile.problem is not None
        assert "No space left on device" in profile.problem
        assert "\n" not in profile.problem
        assert sorted(path.name for path in disk.iterdir()) == ["filler"]
        (disk / "filler").unlink()
        with Profile(tmp_path / "elsewhere", steps=1) as profile:
            pipeline(REQUEST, on_progress=profile.note)
        assert profile.problem is None
        assert profile.folder is not None
        assert named(profile.folder) == ["denoise 2"]
        assert not list(disk.iterdir())


def test_a_profiler_in_use_costs_the_trace_alone(pipeline, frames, tmp_path):
    with Profile(tmp_path / "first", steps=None) as first:
        first.begin()
        with Profile(tmp_path / "second") as second:
            result = pipeline(REQUEST, on_progress=second.note)
    np.testing.assert_array_equal(result.frames, frames)
    assert first.problem is None
    assert second.problem is not None
    assert "already been started" in second.problem
