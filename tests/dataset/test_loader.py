"""Prepared samples as batches: their contents, their order, the same with workers and from any
start."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.cache import CONDITION, IMAGE, LATENTS, SAMPLES, TEXT, TEXTS, Cache, Made
from wan_tpu.dataset.loader import open_dataset
from wan_tpu.dataset.manifest import Manifest, Prepared, write_manifest
from wan_tpu.dataset.sample import Batch
from wan_tpu.errors import InputError
from wan_tpu.geometry import WAN_COMPRESSION
from wan_tpu.pipeline.conditions import FurtherChannels

MADE = Made(encoders={"vae": "v", "text_encoder": "t"}, dtype="float32", vae_dtype="float32")
SIZES = [(48, 32, 5)] * 5 + [(32, 32, 1)] * 2
CHANNELS, TEXT_DIM = 6, 10


def write_dataset(folder: pathlib.Path, *, inputs: tuple[str, ...] = ()) -> Manifest:
    """A folder as `prepare` makes it, of numbers that tell which sample they are of."""
    cache, draws = Cache(folder), np.random.default_rng(0)
    cache.make_folders()

    def text(caption: str, num_tokens: int) -> str:
        return cache.write(
            TEXTS, MADE.text(caption), {TEXT: draws.normal(size=(num_tokens, TEXT_DIM))}
        )

    samples = []
    for number, size in enumerate(SIZES):
        width, height, num_frames = size
        shape = ((num_frames + 3) // 4, height // 8, width // 8, CHANNELS)
        arrays = {LATENTS: draws.normal(number, size=shape)}
        if inputs:
            arrays |= {CONDITION: draws.normal(size=shape), IMAGE: draws.normal(size=(17, 8))}
        caption = f"caption {number % 3}"
        samples.append(
            Prepared(
                name=f"{number}.mp4@0",
                caption=caption,
                sample=cache.write(SAMPLES, MADE.sample(media=str(number), clip={}), arrays),
                text=text(caption, 3 + number % 3),
                size=size,
            )
        )
    manifest = Manifest(
        model="some-model",
        encoders=MADE.encoders,
        inputs=inputs,
        compression=WAN_COMPRESSION,
        source="clips",
        settings={},
        empty_text=text("", 1),
        samples=tuple(samples),
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    write_dataset(made)
    return made


def taken(folder: pathlib.Path, count: int, **choices) -> list[Batch]:
    return list(itertools.islice(open_dataset(folder).batches(2, seed=7, **choices), count))


def assert_equal(got: list[Batch], expected: list[Batch]) -> None:
    assert [batch.names for batch in got] == [batch.names for batch in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.geometry == theirs.geometry
        np.testing.assert_array_equal(ours.latents, theirs.latents)
        np.testing.assert_array_equal(ours.text, theirs.text)


def test_a_batch_is_its_samples_stacked_and_padded(folder):
    dataset = open_dataset(folder)
    assert dataset.geometries[0].width == 48  # the most frequent first
    assert [g.num_frames for g in dataset.geometries] == [5, 1]
    by_name = {dataset.sample(n).name: dataset.sample(n) for n in range(len(dataset))}
    for batch in itertools.islice(dataset.batches(2, seed=1), 7):
        assert batch.condition is None
        assert batch.image is None
        assert batch.latents.dtype == batch.text.dtype == np.float32
        assert batch.text.shape == (2, 512, TEXT_DIM)
        for number, name in enumerate(batch.names):
            sample = by_name[name]
            assert batch.captions[number] == sample.caption == f"caption {int(name[0]) % 3}"
            np.testing.assert_array_equal(batch.latents[number], sample.latents)
            tokens = len(sample.text)
            assert tokens == 3 + int(name[0]) % 3
            np.testing.assert_array_equal(batch.text[number, :tokens], sample.text)
            assert not batch.text[number, tokens:].any()
            assert sample.latents.shape[0] == batch.geometry.latent_frames
    assert dataset.empty_text.shape == (512, TEXT_DIM)
    assert dataset.empty_text[0].any()
    assert not dataset.empty_text[1:].any()


@pytest.mark.parametrize("inputs", [("image",), ("image", "last_image")])
def test_the_mask_comes_before_the_encoded_pictures(tmp_path, inputs):
    write_dataset(tmp_path, inputs=inputs)
    dataset = open_dataset(tmp_path)
    batch = next(b for b in dataset.batches(2, seed=0) if b.geometry.num_frames == 5)
    number = int(batch.names[1].split(".")[0])
    sample = dataset.sample(number)
    mask = FurtherChannels(roles=frozenset(inputs)).mask(batch.geometry)[0]
    assert batch.condition is not None
    assert batch.image is not None
    np.testing.assert_array_equal(batch.condition[1][..., :4], mask)
    np.testing.assert_array_equal(batch.condition[1][..., 4:], sample.condition)
    np.testing.assert_array_equal(batch.image[1], sample.image)


def test_a_batch_is_the_same_from_any_start_and_with_workers(folder):
    expected = taken(folder, 12)
    assert_equal(taken(folder, 12), expected)
    assert_equal(taken(folder, 5, start=7), expected[7:])
    assert_equal(taken(folder, 9, start=3, workers=2), expected[3:])
    other = list(itertools.islice(open_dataset(folder).batches(2, seed=8), 12))
    assert [b.names for b in other] != [b.names for b in expected]


def test_files_are_closed_and_batches_are_read_no_further_than_needed(folder):
    batches = open_dataset(folder).batches(2, seed=0)
    for _ in range(30):
        next(batches)
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert maps.count(str(folder)) <= 8  # what is being read; 30 batches have 120 arrays
    batches.close()
    opened = []
    for link in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder's own, which is closed by now
            opened.append(os.readlink(link))
    assert not [path for path in opened if path.startswith(str(folder))]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_while_it_is_read_from_is_one_line(tmp_path, workers):
    manifest = write_dataset(tmp_path)
    dataset = open_dataset(tmp_path)
    for sample in manifest.samples:
        Cache(tmp_path).path(SAMPLES, sample.sample).write_bytes(b"junk")
    with pytest.raises(InputError, match="prepare makes it again") as caught:
        next(dataset.batches(2, seed=0, workers=workers))
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_gone_are_missed_when_it_is_opened(tmp_path):
    manifest = write_dataset(tmp_path)
    Cache(tmp_path).path(SAMPLES, manifest.samples[3].sample).unlink()
    with pytest.raises(InputError, match="lacks 1 of its 10 files"):
        open_dataset(tmp_path)


def test_the_digest_is_of_all_that_a_training_sees(tmp_path):
    manifest = write_dataset(tmp_path)
    digests = {manifest.digest}
    for change in (
        {"samples": manifest.samples[::-1]},
        {"samples": manifest.samples[1:]},
        {"empty_text": "0" * 64},
        {"samples": (dataclasses.replace(manifest.samples[0], name="x"), *manifest.samples[1:])},
    ):
        digests.add(dataclasses.replace(manifest, **change).digest)
    assert len(digests) == 5
    # Where it lies, what it was made of and what was refused change nothing.
    assert dataclasses.replace(manifest, source="elsewhere").digest == manifest.digest


def test_data_of_another_model_are_refused_in_a_line(tmp_path):
    """By its sizes, its inputs, its encoders; each with the command that makes them."""
    write_dataset(tmp_path)
    again = r"wan-tpu dataset prepare clips -o \.\.\. --model wan-tiny"
    with pytest.raises(InputError, match=rf"vae of some-model, .* wan-tiny; .*{again}"):
        open_dataset(tmp_path, open_model("wan-tiny"))
    with pytest.raises(InputError, match="latents are of other sizes than those of wan-tiny-ti2v"):
        open_dataset(tmp_path, open_model("wan-tiny-ti2v"))
    write_dataset(tmp_path, inputs=("image",))
    with pytest.raises(InputError, match=r"with image as inputs; wan-tiny is .* needs none"):
        open_dataset(tmp_path, open_model("wan-tiny"))


def test_a_folder_that_is_no_data_says_so(tmp_path):
    with pytest.raises(InputError, match=r"no dataset\.json"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"written_by": "someone"}')
    with pytest.raises(InputError, match="cannot be used"):
        open_dataset(tmp_path)


def test_a_worker_loads_no_model_code():
    """A process that only reads must not take a device, nor minutes to start."""
    code = "import sys, wan_tpu.dataset.loader; print({'jax', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
