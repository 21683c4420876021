"""What files hold, and what the encoders are."""

import json
import os
import pathlib
import shutil

import pytest

from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.digests import INDEX, Digests, encoder_digests
from wan_tpu.errors import CheckpointError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"first")
    return path


def test_a_file_is_read_once_and_again_when_it_changes(file, tmp_path, monkeypatch):
    digest = Digests(tmp_path).of(file)
    opened = []
    original = pathlib.Path.open
    monkeypatch.setattr(
        pathlib.Path, "open", lambda self, *a, **k: opened.append(self) or original(self, *a, **k)
    )
    assert Digests(tmp_path).of(file) == digest
    assert file not in opened  # remembered by another process's index
    file.write_bytes(b"other")  # as long as before
    os.utime(file, ns=(1, 1))
    assert Digests(tmp_path).of(file) != digest
    assert file in opened


def test_a_line_that_was_cut_costs_reading_again(file, tmp_path):
    digest = Digests(tmp_path).of(file)
    index = tmp_path / INDEX
    index.write_text(index.read_text()[:-20] + '\n["half"')
    assert Digests(tmp_path).of(file) == digest


def test_the_hubs_blobs_are_called_by_their_digest(tmp_path):
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"not read")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert Digests(None).of(tmp_path / "model.safetensors") == "ab" * 32


def test_encoders_are_their_weights_configuration_and_tokenizer(tmp_path):
    """Neither the folder nor the transformer counts; every byte of the encoders does."""
    folder = tmp_path / "copy"
    shutil.copytree(open_model("wan-tiny").folder, folder)

    def digests():
        return encoder_digests(open_model(str(folder)), Digests(None))

    before = encoder_digests(open_model("wan-tiny"), Digests(None))
    assert before.keys() == {"vae", "text_encoder"}
    assert digests() == before

    weights = next((folder / "vae").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert digests()["vae"] != before["vae"]
    assert digests()["text_encoder"] == before["text_encoder"]

    config = folder / "vae" / "config.json"
    with_statistics = json.loads(config.read_text())
    with_statistics["latents_mean"][0] += 1
    changed = digests()["vae"]
    config.write_text(json.dumps(with_statistics))
    assert digests()["vae"] != changed

    tokenizer = folder / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert digests()["text_encoder"] != before["text_encoder"]


def test_weights_that_cannot_be_read_are_one_line(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(open_model("wan-tiny").folder, folder)
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.unlink()
    weights.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        encoder_digests(open_model(str(folder)), Digests(None))
