"""What must be the same everywhere, and how a difference is said."""

import json

from tests.multihost.copies import changed_copy, copy_of_wan_tiny
from wan_tpu.multihost import identity
from wan_tpu.multihost.identity import differences, digest_files, make_identity


def make(folder, **settings):
    return make_identity(model_paths=[folder], settings=settings, packages=("wan_tpu", "server"))


def test_the_same_is_no_difference(tmp_path):
    folder = copy_of_wan_tiny(tmp_path / "one")
    other = copy_of_wan_tiny(tmp_path / "two")
    (other / "README.md").write_text("no part of the model")
    ours, theirs = make(folder, seed=1), make(other, seed=1)
    assert differences(ours, theirs, "process 1") == []
    assert json.loads(json.dumps(theirs)) == theirs, "it travels"


def test_each_part_is_named(tmp_path, monkeypatch):
    folder = copy_of_wan_tiny(tmp_path / "one")
    ours = make(folder, layout="dp2-sp4", dtype=None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_odd")
    monkeypatch.setattr(identity.importlib.metadata, "version", lambda name: f"{name}-other")
    theirs = make(changed_copy(folder, tmp_path / "two"), layout="sp8", dtype=None)
    theirs["code"]["server"] = "000000000000"
    monkeypatch.setattr(identity, "MAX_DIFFERENCES", 100)
    found = differences(ours, theirs, "process 1 (b)")
    assert "settings: layout is dp2-sp4 on process 0 and sp8 on process 1 (b)" in found
    assert any(
        text.startswith("versions: jax is ") and text.endswith(" and jax-other on process 1 (b)")
        for text in found
    )
    parts = {text.partition(":")[0] for text in found}
    assert parts == {"settings", "versions", "environment", "code", "model files"}
    files = [text for text in found if text.startswith("model files")]
    assert len(files) == 1, "one byte of one file"


def test_a_missing_file_is_a_difference(tmp_path):
    folder = copy_of_wan_tiny(tmp_path / "one")
    other = copy_of_wan_tiny(tmp_path / "two")
    (other / "vae" / "config.json").unlink()
    (text,) = differences(make(folder), make(other), "process 2")
    assert text.startswith("model files: vae/config.json is ")
    assert text.endswith("on process 0 and absent on process 2")


def test_many_differences_are_cut_short():
    ours = {"part": {str(i): "a" for i in range(9)}}
    theirs = {"part": {str(i): "b" for i in range(9)}}
    assert len(differences(ours, theirs, "process 1")) == identity.MAX_DIFFERENCES + 1
    assert differences(ours, theirs, "process 1")[-1] == "and 3 more"


def test_large_files_are_sampled(tmp_path, monkeypatch):
    """What is sampled is found; size, beginning and end always are."""
    monkeypatch.setattr(identity, "WHOLE_FILE_BYTES", 1000)
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 10)
    path = tmp_path / "large.safetensors"
    data = bytearray(100_000)
    digests = set()
    for place in (None, 0, len(data) - 1, 9):
        changed = bytearray(data)
        if place is not None:
            changed[place] = 1
        path.write_bytes(changed)
        digests.add(digest_files([tmp_path])[path.name])
    path.write_bytes(data + b"\0")
    digests.add(digest_files([tmp_path])[path.name])
    assert len(digests) == 5


def test_files_outside_the_folder_count(tmp_path):
    """A single file of weights beside a model's other parts."""
    folder, loose = copy_of_wan_tiny(tmp_path / "model"), tmp_path / "fine-tune.safetensors"
    loose.write_bytes(b"one")
    ours = make_identity(model_paths=[folder, loose], settings={}, packages=())
    loose.write_bytes(b"two")
    theirs = make_identity(model_paths=[folder, loose], settings={}, packages=())
    (text,) = differences(ours, theirs, "process 1")
    assert text.startswith("model files: fine-tune.safetensors is ")
