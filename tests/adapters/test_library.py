"""The folder of adapters: what is in it, what changed, and that nothing else can be named."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.adapters.small import CONFIG, STYLES, linears, make_factors, save
from wan_tpu.adapters import library as module
from wan_tpu.adapters.account import ModelShapes
from wan_tpu.adapters.known_shapes import transformer_shapes
from wan_tpu.adapters.library import AdapterLibrary
from wan_tpu.errors import AdapterError, InputError

COMFYUI = STYLES["B ComfyUI"]


def write(path: pathlib.Path, *, rank: int = 4) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    return save(path, COMFYUI.tensors(make_factors(linears()[:3], ranks=(rank,))))


@pytest.fixture
def folder(tmp_path):
    """A file, a PEFT's folder and a pair."""
    write(tmp_path / "all" / "fox.safetensors")
    write(tmp_path / "all" / "pair" / "motion_high_noise.safetensors")
    write(tmp_path / "all" / "pair" / "motion_low_noise.safetensors", rank=2)
    peft = write(tmp_path / "all" / "peft" / "adapter_model.safetensors")
    peft.with_name("adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2})
    )
    (tmp_path / "all" / "README.md").write_text("not an adapter")
    (tmp_path / "all" / ".fox.safetensors.part").write_text("half")
    return tmp_path / "all"


def faults(library: AdapterLibrary) -> dict[str, str | None]:
    return {entry.name: entry.fault for entry in library.look()}


def test_files_and_folders_are_entries(folder):
    fox, pair, peft = AdapterLibrary(folder).look()
    assert (fox.name, pair.name, peft.name) == ("fox.safetensors", "pair", "peft")
    assert [entry.fault for entry in (fox, pair, peft)] == [None] * 3
    assert [len(entry.files) for entry in (fox, pair, peft)] == [1, 2, 1]
    assert fox.description.startswith("rank 4, 3 matrices; ")
    assert pair.description.startswith("high noise: rank 4, 3 matrices; low noise: rank 2, ")
    content = (folder / "fox.safetensors").read_bytes()
    assert fox.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert len({fox.digest, pair.digest}) == 2
    assert len(pair.digest) == len(fox.digest)


def test_a_choice_is_a_path_inside_the_folder(folder):
    library = AdapterLibrary(folder)
    choice = library.choose("fox.safetensors:0.5@low")
    assert choice.path == str(folder / "fox.safetensors")
    assert (choice.strength, choice.expert) == (0.5, "low")
    assert library.choose("pair").path == str(folder / "pair")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "pair/motion_high_noise.safetensors", "..", "."],
)
def test_nothing_but_entries_can_be_named(folder, name, monkeypatch):
    write(folder.parent / "outside.safetensors")
    monkeypatch.chdir(folder)  # where some of the names are paths
    with pytest.raises(AdapterError, match=r"known: fox\.safetensors, pair, peft$"):
        AdapterLibrary(folder).choose(name)


def test_a_link_that_leads_out_is_a_fault(folder):
    """Of a file, of a folder, and of a file in a folder; one that stays inside is no fault."""
    outside = write(folder.parent / "other" / "outside.safetensors")
    (folder / "file.safetensors").symlink_to(outside)
    (folder / "folder").symlink_to(outside.parent)
    (folder / "within").mkdir()
    (folder / "within" / "a.safetensors").symlink_to(outside)
    (folder / "itself.safetensors").symlink_to(folder / "itself.safetensors")
    (folder / "inside.safetensors").symlink_to(folder / "fox.safetensors")
    library = AdapterLibrary(folder)
    found = faults(library)
    for name in ("file.safetensors", "folder", "within", "itself.safetensors"):
        assert "leads out of the folder" in str(found[name]), name
        assert str(folder.parent) not in str(found[name])
    assert found["inside.safetensors"] is None
    with pytest.raises(AdapterError, match=r"file\.safetensors cannot be used: .*leads out"):
        library.choose("file.safetensors")


def test_a_bad_file_is_a_fault_and_no_error(folder):
    (folder / "damaged.safetensors").write_bytes(b"nothing")
    (folder / "pickle.pt").write_bytes(b"")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    write(folder / "two:0.5.safetensors")
    write(folder / "one@high.safetensors")  # can be said: what follows @ is not high or low alone
    shutil.copytree(folder / "peft", folder / "peft@low")
    write(folder / "line\nbreak.safetensors")
    shutil.copyfile(folder / "fox.safetensors", os.fsencode(folder) + b"/\xff.safetensors")
    found = faults(AdapterLibrary(folder))
    assert [name for name, fault in found.items() if fault is None] == [
        "fox.safetensors", "one@high.safetensors", "pair", "peft",
    ]  # fmt: skip
    assert "damaged or not a safetensors file" in str(found["damaged.safetensors"])
    assert str(folder) not in str(found["damaged.safetensors"])
    assert "pickle" in str(found["pickle.pt"])
    assert "holds no adapter" in str(found["empty"])
    assert found["pipe.safetensors"] is not None
    for name in ("two:0.5.safetensors", "peft@low"):
        assert "strength or an expert" in str(found[name])
    assert json.dumps([*found]).isascii()
    assert "\\udcff.safetensors" in found  # as it can be shown, since no text is its name
    assert AdapterLibrary(folder).choose("one@high.safetensors").expert is None


def test_what_changed_is_read_anew_and_nothing_else(folder, monkeypatch):
    read = []
    original = module.read_adapter

    def noted(path, **how):
        read.append(path.name)
        return original(path, **how)

    monkeypatch.setattr(module, "read_adapter", noted)
    library = AdapterLibrary(folder)
    first = library.look()
    assert len(read) == 4
    assert library.look() == first
    assert len(read) == 4
    digest = first[0].digest
    write(folder / "fox.safetensors", rank=8)
    write(folder / "owl.safetensors")
    shutil.rmtree(folder / "pair")
    changed = library.look()
    assert read[4:] == ["fox.safetensors", "owl.safetensors"]
    assert [entry.name for entry in changed] == ["fox.safetensors", "owl.safetensors", "peft"]
    assert changed[0].description.startswith("rank 8")
    assert changed[0].digest != digest
    config = folder / "peft" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    library.look()
    assert read[6:] == ["adapter_model.safetensors"]
    shutil.rmtree(folder)
    assert library.look() == ()
    with pytest.raises(AdapterError, match="known: none"):
        library.choose("fox.safetensors")


def test_of_a_model_the_others_adapters_are_faults(folder):
    shapes = transformer_shapes(CONFIG)
    ours = AdapterLibrary(folder, ModelShapes(name="ours", shapes=shapes, num_experts=1))
    assert set(faults(ours).values()) == {None}
    wider = {name: tuple(2 * size for size in shape) for name, shape in shapes.items()}
    others = AdapterLibrary(folder, ModelShapes(name="theirs", shapes=wider, num_experts=1))
    assert all("theirs" in str(fault) for fault in faults(others).values())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        AdapterLibrary(tmp_path / "nothing")


def test_listing_needs_neither_jax_nor_torch(folder):
    code = (
        "import sys; from pathlib import Path; "
        "from wan_tpu.adapters.library import AdapterLibrary; "
        f"library = AdapterLibrary(Path({str(folder)!r})); "
        "print([entry.fault for entry in library.look()], library.choose('fox.safetensors').path, "
        "[m for m in ('jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[None, None, None] {folder / 'fox.safetensors'} []\n"
