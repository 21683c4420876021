"""Clips to a prepared folder: what is made, kept, made anew, refused; sudden ends and company."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from fractions import Fraction

import jax
import numpy as np
import pytest
from PIL import Image

from tests.dataset.broken_clips import make_broken_clips
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.cli.main import main
from wan_tpu.dataset.cache import SAMPLES, TEXTS, Cache
from wan_tpu.dataset.check import check
from wan_tpu.dataset.decode import read_window
from wan_tpu.dataset.encode import load_encoders
from wan_tpu.dataset.entry import Entry, Kind
from wan_tpu.dataset.jobs import PrepareOptions
from wan_tpu.dataset.listing import list_entries
from wan_tpu.dataset.loader import open_dataset
from wan_tpu.dataset.manifest import read_manifest
from wan_tpu.dataset.prepare import open_or_prepare, prepare
from wan_tpu.dataset.sampling import Sampling, Window
from wan_tpu.errors import InputError
from wan_tpu.pipeline.drawn import draw
from wan_tpu.pipeline.video_file import VideoWriter

FPS = 16
OPTIONS = PrepareOptions(
    sizes=((48, 32),), lengths=(5,), fps=FPS, sampling=Sampling(method="chunks"), workers=0
)
CAPTION = "a red circle moving right on a black background"


def write_clip(path: pathlib.Path, caption: str | None, *, seed: int, frames: int = 5) -> None:
    picture = draw(64, 48, seed=seed)
    with VideoWriter(path, fps=FPS, width=64, height=48) as writer:
        writer.write(np.stack([np.roll(picture, 3 * step, axis=1) for step in range(frames)]))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two clips of one caption, one of two windows, and what is refused."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.mp4", CAPTION, seed=1)
    write_clip(folder / "b.mp4", f"  {CAPTION.replace(' ', '  ')}\n", seed=2)
    write_clip(folder / "c.mp4", "a green square", seed=3, frames=11)
    write_clip(folder / "dumb.mp4", None, seed=4)
    write_clip(folder / "short.mp4", "too short", seed=5, frames=3)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "zero.txt").write_text("nothing")
    shutil.copy(folder / "a.mp4", folder / "again.mp4")
    shutil.copy(folder / "a.txt", folder / "again.txt")
    return folder


@pytest.fixture
def clips(originals, tmp_path):
    """A copy that a test may change; times of change are kept."""
    return shutil.copytree(originals, tmp_path / "clips")


@pytest.fixture(scope="module")
def device():
    return jax.devices()[:1]


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Each test's runs load the encoders for themselves; here they are loaded and compiled once."""
    loaded = {}

    def load(description, components, **choices):
        key = description.name, tuple(components)
        if key not in loaded:
            loaded[key] = load_encoders(description, components, **choices)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wan_tpu.dataset.prepare.load_encoders", load)
        yield load


@pytest.fixture(scope="module")
def encoders(compiled_once, device):
    """wan-tiny's, by component."""
    model = open_model("wan-tiny")
    return {name: compiled_once(model, [name], devices=device) for name in ("text_encoder", "vae")}


@pytest.fixture(scope="module")
def prepared(originals, tmp_path_factory, device):
    """`data/` of those clips with wan-tiny, and what the run said."""
    folder = tmp_path_factory.mktemp("data")
    stages = []
    outcome = prepare(
        originals, folder, open_model("wan-tiny"), OPTIONS,
        devices=device, on_progress=lambda progress: stages.append(progress.stage),
    )  # fmt: skip
    return folder, outcome, list(dict.fromkeys(stages))


@pytest.fixture
def data(prepared, tmp_path):
    """A copy of `data/`."""
    return shutil.copytree(prepared[0], tmp_path / "data")


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Everything that counts, by name."""
    cache = Cache(folder)
    return {path.name: path.read_bytes() for _, _, path in cache.files()}


def test_what_was_made_and_what_was_refused(prepared):
    folder, outcome, stages = prepared
    manifest = read_manifest(folder)
    assert manifest == dataclasses.replace(outcome.manifest, settings=manifest.settings)
    names = [sample.name for sample in manifest.samples]
    assert names == ["a.mp4@0", "b.mp4@0", "c.mp4@0", "c.mp4@0.3125"]
    assert {s.caption for s in manifest.samples} == {CAPTION, "a green square"}
    assert len({s.text for s in manifest.samples}) == 2  # equal captions share one file
    assert {(r.name, r.kind) for r in manifest.refused} == {
        ("again.mp4", "duplicate"), ("dumb.mp4", "no-caption"),
        ("short.mp4", "too-short"), ("zero.mp4", "empty"),
    }  # fmt: skip
    assert outcome.num_made == 4 + 3  # with the empty caption
    assert not outcome.unused
    assert [stage for stage in stages if not stage.startswith("compile")] == [
        "check", "load", "captions", "clips",
    ]  # fmt: skip


def test_samples_are_what_the_encoders_make(prepared, originals, encoders):
    """To bfloat16; `test_encode` compares the encoders with diffusers."""
    dataset = open_dataset(prepared[0], open_model("wan-tiny"))
    sample = dataset.sample(3)
    entry = Entry(path=originals / "c.mp4", name="c.mp4", caption="", kind=Kind.CLIP)
    geometry = dataset.geometries[0]
    window = Window(start=Fraction(5, FPS), num_frames=5)
    frames = read_window(entry, window, geometry, fps=FPS)
    for got, expected in (
        (sample.latents, encoders["vae"].clip(frames, geometry).latents),
        (sample.text, encoders["text_encoder"].text(sample.caption)),
    ):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected.astype("bfloat16").astype(np.float32))


def test_a_second_run_decodes_and_encodes_nothing(originals, data, monkeypatch, device):
    def never(*_args, **_choices):
        raise AssertionError("it was known")

    before = contents(data)
    monkeypatch.setattr("wan_tpu.dataset.prepare.load_encoders", never)
    monkeypatch.setattr("wan_tpu.dataset.check.examine", never)
    outcome = prepare(originals, data, open_model("wan-tiny"), OPTIONS, devices=device)
    assert (outcome.num_made, outcome.num_found) == (0, 7)
    assert contents(data) == before


def test_what_changed_is_made_anew_and_the_rest_is_kept(clips, data, device):
    """A caption and a clip; what nothing needs any more is named, and removed if asked."""
    before = contents(data)
    old = {sample.name: sample for sample in read_manifest(data).samples}
    (clips / "a.txt").write_text("a blue triangle")
    write_clip(clips / "b.mp4", CAPTION, seed=9)
    stranger = data / SAMPLES / "mine.safetensors"
    stranger.write_bytes(b"not ours")
    outcome = prepare(clips, data, open_model("wan-tiny"), OPTIONS, devices=device)
    assert outcome.num_made == 2  # a caption, a clip
    assert not outcome.is_pruned
    after = contents(data)
    assert {name: after[name] for name in before} == before
    samples = {sample.name: sample for sample in outcome.manifest.samples}
    assert samples["a.mp4@0"].caption == "a blue triangle"
    assert samples["a.mp4@0"].text != samples["b.mp4@0"].text
    assert [path.stem for path in outcome.unused] == [old["b.mp4@0"].sample]
    outcome = prepare(clips, data, open_model("wan-tiny"), OPTIONS, devices=device, prune=True)
    assert outcome.is_pruned
    assert contents(data).keys() == after.keys() - {f"{old['b.mp4@0'].sample}.safetensors"}
    assert stranger.read_bytes() == b"not ours"


def test_another_length_is_other_samples_of_the_same_captions(clips, data, device):
    options = dataclasses.replace(OPTIONS, lengths=(1,), sampling=Sampling())
    outcome = prepare(clips, data, open_model("wan-tiny"), options, devices=device)
    assert {sample.size for sample in outcome.manifest.samples} == {(48, 32, 1)}
    names = [sample.name for sample in outcome.manifest.samples]
    assert names == ["a.mp4@0", "b.mp4@0", "c.mp4@0", "short.mp4@0"]
    assert outcome.num_made == 4 + 1
    assert len(outcome.unused) == 4
    batch = next(open_dataset(data).batches(2, seed=0))
    assert batch.geometry.num_frames == 1


def test_a_damaged_file_is_made_again_and_a_half_written_one_goes(clips, data, device):
    before = contents(data)
    path = next(path for _, _, path in Cache(data).files())
    path.write_bytes(path.read_bytes()[:-3])
    half = data / TEXTS / ".wan-tpu-1-00000000.part"
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    young = data / TEXTS / ".wan-tpu-2-00000000.part"
    young.write_bytes(b"being written")
    outcome = prepare(clips, data, open_model("wan-tiny"), OPTIONS, devices=device)
    assert outcome.num_made == 1
    assert contents(data) == before
    assert not half.exists()
    assert young.exists()


def test_a_clip_that_cannot_be_decoded_is_refused_and_the_rest_goes_on(clips, tmp_path, device):
    """The head is sound, the frames are not."""
    data = bytearray((clips / "b.mp4").read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin : begin + 2000] = bytes(2000)
    (clips / "b.mp4").write_bytes(data)
    outcome = prepare(clips, tmp_path / "data", open_model("wan-tiny"), OPTIONS, devices=device)
    assert outcome.manifest.samples[0].name == "a.mp4@0"
    assert any(refusal.name.startswith("b.mp4") for refusal in outcome.manifest.refused)


def test_of_a_folder_of_broken_clips_the_good_ones_are_made(tmp_path, device):
    """The same as a check says, each once; what no check sees comes up when it is decoded."""
    clips = tmp_path / "clips"
    clips.mkdir()
    make_broken_clips(clips)
    checked = check(list_entries(clips), OPTIONS.buckets(open_model("wan-tiny")), workers=0)
    outcome = prepare(clips, tmp_path / "data", open_model("wan-tiny"), OPTIONS, devices=device)
    made = {sample.name.rpartition("@")[0] for sample in outcome.manifest.samples}
    refused = [refusal.name for refusal in outcome.manifest.refused]
    assert made == {entry.name for entry in checked.good}
    assert sorted(refused) == sorted({finding.name for finding in checked.faults})
    assert len(made) > 10
    assert len(refused) > 15


def test_a_clip_that_changes_while_it_is_read_is_refused(clips, data, device, monkeypatch):
    """Its latents would bear the name of what it was before."""

    def changing(entry, *args, **choices):
        frames = read_window(entry, *args, **choices)
        entry.path.write_bytes(entry.path.read_bytes() + b"more")
        return frames

    write_clip(clips / "b.mp4", CAPTION, seed=9)
    monkeypatch.setattr("wan_tpu.dataset.work.read_window", changing)
    outcome = prepare(clips, data, open_model("wan-tiny"), OPTIONS, devices=device)
    assert "b.mp4@0" not in {sample.name for sample in outcome.manifest.samples}
    (refusal,) = (each for each in outcome.manifest.refused if each.name == "b.mp4@0")
    assert "changed while it was read" in refusal.reason


SCRIPT = """
import pathlib, sys, time
import jax
from tests.dataset.test_prepare import OPTIONS
from wan_tpu import runtime
from tests.dataset.broken_clips import make_broken_clips
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.cli.main import main
from wan_tpu.dataset.prepare import prepare

def say(progress):
    print(progress.stage, progress.done, flush=True)
    time.sleep(0.2)

runtime.start(cache_folder=runtime.default_cache_folder())
source, folder = map(pathlib.Path, sys.argv[1:])
model = open_model("wan-tiny")
outcome = prepare(source, folder, model, OPTIONS, devices=jax.devices()[:1], on_progress=say)
print("made", outcome.num_made, flush=True)
"""


def start(clips: pathlib.Path, folder: pathlib.Path) -> subprocess.Popen:
    """`prepare` in a process of its own, slow enough to be met in the middle."""
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(clips), str(folder)],
        cwd=root, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    for said in process.stdout:
        if said == f"{line}\n":
            return
    raise AssertionError(f"it never said {line}")


def test_a_killed_run_goes_on_and_two_at_once_double_and_lose_nothing(
    clips, prepared, device, tmp_path
):
    """One process is killed in the middle; another one and this one make the rest together."""
    folder, expected = tmp_path / "data", contents(prepared[0])
    with start(clips, folder) as killed:
        until(killed, "clips 1")
        killed.send_signal(signal.SIGKILL)
    there = contents(folder)
    assert 0 < len(there) < len(expected)
    with pytest.raises(InputError, match="not prepared to its end"):
        open_dataset(folder)

    for path in (folder / TEXTS).iterdir():
        path.unlink()
    num_samples = len(contents(folder))
    with start(clips, folder) as other:
        until(other, "captions 1")
        outcome = prepare(clips, folder, open_model("wan-tiny"), OPTIONS, devices=device)
        said = other.communicate(timeout=400)[0].splitlines()
    assert other.returncode == 0
    num_made = int(said[-1].removeprefix("made "))
    assert num_made > 0
    assert outcome.num_made > 0
    assert num_made + outcome.num_made == len(expected) - num_samples
    assert contents(folder) == expected
    assert read_manifest(folder).digest == prepared[1].manifest.digest


def test_pictures_and_stored_frames_go_the_same_way(tmp_path, encoders, device):
    """An npz file and a picture of a list; a picture is a clip of one frame."""
    frames = np.stack([draw(48, 32, seed=number) for number in range(5)])
    np.savez(tmp_path / "a.npz", frames=frames)
    Image.fromarray(frames[2]).save(tmp_path / "b.png")
    lines = [{"path": "a.npz", "caption": CAPTION, "fps": FPS}, {"path": "b.png", "caption": "b"}]
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = open_model("wan-tiny")
    dataset = open_or_prepare(source, tmp_path / "run" / "data", model, OPTIONS, devices=device)
    assert [sample.name for sample in dataset.manifest.samples] == ["a.npz@0", "b.png@0"]
    for number, given in enumerate((frames, frames[2:3])):
        geometry = dataset.manifest.geometry((48, 32, len(given)))
        expected = encoders["vae"].clip(given, geometry).latents
        got = dataset.sample(number).latents
        np.testing.assert_array_equal(got, expected.astype("bfloat16").astype(np.float32))
    again = open_or_prepare(dataset.folder, tmp_path / "unused", model)
    assert again.digest == dataset.digest
    assert not (tmp_path / "unused").exists()


COMMAND = ("dataset", "prepare", "clips", "-o", "data", "--model", "wan-tiny")
SETTINGS = ("--size", "48x32", "--frames", "5", "--fps", "16", "--sampling", "chunks")


def test_the_command_says_what_became_of_the_clips(clips, prepared, device, monkeypatch, capsys):
    monkeypatch.chdir(clips.parent)
    monkeypatch.setattr("wan_tpu.runtime.start", lambda **_: None)
    monkeypatch.setattr("jax.local_devices", lambda: device)
    assert main([*COMMAND, *SETTINGS]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "size                     samples", "48x32, 5 frames                4",
        "refused                        4",
    ]  # fmt: skip
    assert "  zero.mp4: empty: it has 0 bytes" in said
    assert said[-1] == "4 samples in data for wan-tiny: 7 files made, 0 were there"
    assert contents(clips.parent / "data") == contents(prepared[0])

    (clips / "c.mp4").unlink()
    assert main([*COMMAND, *SETTINGS, "--prune", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["made"], told["found"], told["pruned"]) == (2, 0, 4, True)
    assert len(told["unused"]) == 3
    assert len(contents(clips.parent / "data")) == 4


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--inputs", "image"), "wan-tiny is a text-to-video model, whose samples need none"),
        (("--size", "50x32"), "multiple of 16, got 50; nearest: 48 or 64"),
        (("--frames", "6"), "must be 4n + 1, got 6; nearest: 5 or 9"),
        (("--dtype", "float8"), "unknown dtype 'float8'; known: bfloat16, float32"),
        (("--sampling", "head", "--windows", "3"), "sampling head takes one window"),
        (("--size", "640x480", "--fps", "16", "--frames", "5"), "nothing in clips can be learnt"),
    ],
)
def test_a_wrong_command_is_one_line(clips, monkeypatch, capsys, options, line):
    monkeypatch.chdir(clips.parent)
    monkeypatch.setattr("wan_tpu.runtime.start", lambda **_: None)
    assert main([*COMMAND, "--workers", "1", *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("wan-tpu: ")
    assert line in said


def test_inputs_are_those_of_the_model():
    """An image-to-video model of two kinds of inputs has its first unless others are named."""
    model = describe_model("wan2.2-i2v-a14b")
    assert PrepareOptions().inputs_for(model) == ("image",)
    both = PrepareOptions(inputs=("last_image", "image"))
    assert both.inputs_for(model) == ("image", "last_image")
    assert PrepareOptions().inputs_for(describe_model("wan2.1-flf2v-14b-720p")) == (
        "image", "last_image",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"expected image or image\+last_image or last_image"):
        PrepareOptions(inputs=("video",)).inputs_for(model)
