"""What a check found of files, remembered until they change."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from tests.image.clips import make_clip, moving
from wan_tpu.dataset.buckets import Buckets
from wan_tpu.dataset.check import Report, check
from wan_tpu.dataset.digests import Digests
from wan_tpu.dataset.examined import Examinations
from wan_tpu.dataset.listing import list_entries

BUCKETS = Buckets(sizes=((96, 64),), lengths=(17,), fps=16)


@pytest.fixture
def clips(tmp_path):
    """A good clip, one of another rate, a picture, two that cannot be decoded."""
    folder = tmp_path / "clips"
    folder.mkdir()
    make_clip(folder / "good.mp4", moving(20), rate="16")
    make_clip(folder / "other.mp4", moving(40), "-g", "10", rate="24")
    Image.fromarray(moving(1)[0]).save(folder / "picture.png")
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "junk.mp4").write_bytes(b"junk" * 100)
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    return folder


@pytest.fixture
def run(clips, tmp_path):
    """A check with what earlier ones remembered; gives the report and the files that it decoded."""

    def run(buckets: Buckets = BUCKETS) -> tuple[Report, set[str]]:
        memory = Examinations(tmp_path, Digests(tmp_path), buckets.fps)
        decoded = []

        def add(examined):
            decoded.append(examined.entry.name)
            memory.add(examined)

        listing = list_entries(clips)
        report = check(listing, buckets, workers=0, known=memory.known, on_examined=add)
        return report, set(decoded)

    return run


def test_the_same_is_found_without_decoding_anything(run):
    first, decoded = run()
    assert decoded == {"good.mp4", "other.mp4", "picture.png", "zero.mp4", "junk.mp4"}
    again, decoded = run()
    assert decoded == set()
    assert again == first
    assert len(again.placement.placed) == 3
    assert {finding.kind for finding in again.faults} == {"empty", "not-media"}


def test_what_changed_is_decoded_again(run, clips):
    run()
    make_clip(clips / "good.mp4", moving(18), rate="16")
    (clips / "other.mp4").rename(clips / "renamed.mp4")
    report, decoded = run()
    assert decoded == {"good.mp4", "renamed.mp4"}
    good = next(file for file in report.files if file.entry.name == "good.mp4")
    assert good.measured is not None
    assert good.measured.frames_at(16) == 18
    before = os.stat(clips / "good.mp4")
    os.utime(clips / "good.mp4", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert run()[1] == {"good.mp4"}  # it may be another one


def test_what_is_found_depends_on_the_rate(run):
    run()
    _, decoded = run(dataclasses.replace(BUCKETS, fps=24))
    assert {"good.mp4", "other.mp4"} <= decoded


def test_a_file_that_was_stored_as_frames_has_its_own_findings(tmp_path):
    """The rate of stored frames is their line's, so it is part of what is remembered."""
    np.savez(tmp_path / "a.npz", frames=moving(20))
    memory = Examinations(tmp_path, Digests(tmp_path), 16)
    manifest = tmp_path / "train.jsonl"

    def duration(fps):
        manifest.write_text(f'{{"path": "a.npz", "caption": "a", "fps": {fps}}}\n')
        report = check(
            list_entries(manifest), BUCKETS, workers=0, known=memory.known, on_examined=memory.add
        )
        assert report.files[0].measured is not None
        return report.files[0].measured.duration

    assert [duration(16), duration(8), duration(16)] == [20 / 16, 20 / 8, 20 / 16]
