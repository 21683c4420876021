"""`wan-tpu generate --lora`: what it changes, what the story tells, what is refused."""

import argparse
import hashlib
import json

import numpy as np
import pytest

from wan_tpu.adapters.form import factors_of
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.checkpoints.models import open_model
from wan_tpu.cli import generate
from wan_tpu.multihost.identity import differences

PROMPT = "a red circle moving right on a black background"
SHORT = ("--steps", "1", "--frames", "1")


@pytest.fixture
def adapter(tmp_path):
    """Of wan-tiny, in a folder of its own."""
    rng = np.random.default_rng(0)
    shapes = open_model("wan-tiny").source("transformer").shapes
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith((".to_q.weight", ".net.2.weight")):
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = rng.normal(0, 0.4, (4, shape[1]))
            tensors[f"{module}.lora_B.weight"] = rng.normal(0, 0.4, (shape[0], 4))
    factors = factors_of(tensors.items(), alpha=2)
    (tmp_path / "adapters").mkdir()
    path = tmp_path / "adapters" / "fox.safetensors"
    return write_adapter(path, factors, metadata=AdapterMetadata(base_model="wan-tiny"))


def test_strength_decides(run_here, tmp_path, adapter):
    """Red when the adapter is not added, or its strength means nothing."""
    frames = {}
    for strength in ("0", "0.5"):
        lora = ("--lora", f"{adapter}:{strength}")
        code, _, error = run_here("generate", PROMPT, *SHORT, *lora, "-o", f"{strength}.npy")
        assert code == 0, error
        frames[strength] = np.load(tmp_path / f"{strength}.npy").astype(int)
    assert np.abs(frames["0"] - frames["0.5"]).mean() > 1
    assert json.loads((tmp_path / "0.5.json").read_text())["adapters"] == [
        {
            "file": "fox.safetensors",
            "digest": f"sha256:{hashlib.sha256(adapter.read_bytes()).hexdigest()}",
            "strength": 0.5,
            "expert": None,
            "components": ["transformer"],
        }
    ]


REFUSED = {
    "a file that is not there": (["nothing.safetensors"], 2, "there is no adapter"),
    "a strength that is no number": (["FOX:much"], 2, "expected a number"),
    "an expert of a model of one": (["FOX@low"], 2, "wan-tiny has one transformer"),
    "a damaged one behind a good one": (["FOX", "cut.safetensors"], 1, "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(run_here, tmp_path, adapter, case):
    """And nothing is written."""
    (tmp_path / "cut.safetensors").write_bytes(adapter.read_bytes()[:500])
    names, expected_code, expected = REFUSED[case]
    loras = [word for name in names for word in ("--lora", name.replace("FOX", str(adapter)))]
    code, _, error = run_here("generate", PROMPT, *SHORT, *loras, "-o", "out.npy")
    assert code == expected_code, error
    assert expected in error.splitlines()[-1]
    assert not list(tmp_path.glob("out*"))


def identity_of(*loras):
    """What a process with these adapters says that it is."""
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    words = [word for lora in loras for word in ("--lora", lora)]
    order = generate._read(parser.parse_args([PROMPT, *words, "-o", "x.npy"]))
    model, adapters, request = generate._check(order)
    return generate._identify(order, model, adapters, request)


def test_processes_with_other_adapters_are_not_the_same(tmp_path, monkeypatch, adapter):
    """Of the file it counts what it holds, and not where it lies."""
    monkeypatch.chdir(tmp_path)
    ours = identity_of(f"{adapter}:0.5")
    (tmp_path / "elsewhere").mkdir()
    copied = tmp_path / "elsewhere" / adapter.name
    copied.write_bytes(adapter.read_bytes())
    assert differences(ours, identity_of(f"{copied}:0.5"), "process 1") == []
    copied.write_bytes(adapter.read_bytes()[:-1] + b"\1")
    for others in ([], [f"{adapter}:0.6"], [f"{copied}:0.5"], [f"{adapter}:0.5"] * 2):
        (difference,) = differences(ours, identity_of(*others), "process 1")
        assert difference.startswith("settings: adapters is ")


def test_help_tells_of_it(run_here):
    code, out, _ = run_here("generate", "--help")
    assert code == 0
    assert "--lora FILE[:STRENGTH][@high|@low]" in out
