"""Two processes, each with a folder of adapters of its own: the same, or one clear line in both."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.multihost.running import clean_environment, free_port
from tests.pipeline.adapted import write_lora
from tests.server.running import ROOT
from wan_tpu.checkpoints.models import open_model
from wan_tpu.family import TRANSFORMER

HINT = "; the folder of adapters must hold the same on every host"


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What came of each request, by its name, in each process."""
    folder = tmp_path_factory.mktemp("processes")
    shapes = open_model("wan-tiny").source(TRANSFORMER).shapes
    ends = ("attn1.to_q.weight", "attn1.to_out.0.weight", "ffn.net.2.weight")
    for number in range(2):
        own = folder / str(number)
        own.mkdir()
        write_lora(own / "other.safetensors", shapes, ends, seed=number + 1)
    write_lora(folder / "0" / "same.safetensors", shapes, ends)
    shutil.copy(folder / "0" / "same.safetensors", folder / "1")
    shutil.copy(folder / "0" / "same.safetensors", folder / "0" / "of-one.safetensors")
    coordinator, out = f"127.0.0.1:{free_port()}", folder / "out"
    words = ("-m", "tests.multihost.adapter_program", coordinator, "2")
    running = [
        subprocess.Popen(
            [sys.executable, *words, str(number), str(folder / str(number)), str(out)],
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return [json.loads(pathlib.Path(f"{out}.{number}.json").read_text()) for number in range(2)]


def test_the_same_files_make_the_same_weights_in_both(answers):
    """Each its part, as loading gives it; afterwards plain and adapted requests are as before."""
    first, second = answers
    assert max(each["error to loaded"] for each in answers) <= 1e-6
    assert first["same"] == second["same"] == first["same again"] == second["same again"]
    assert first["plain"] == second["plain"] == first["plain again"] == second["plain again"]
    assert first["same"] != first["plain"]


def test_what_is_not_the_same_is_one_line_in_both(answers):
    """Red when one process goes on, which would hang, or both do, with the picture of neither."""
    first, second = answers
    for name, expected in (
        ("other", "MismatchError: process 1 has another other.safetensors than process 0 (sha256:"),
        (
            "of one",
            "MismatchError: in process 1 alone: unknown adapter 'of-one.safetensors'; known",
        ),
        (
            "changed",
            "MismatchError: in process 1 alone: same.safetensors changed while it was read",
        ),
    ):
        assert first[name] == second[name], name
        assert first[name].startswith(expected)
        assert first[name].endswith(HINT)
        assert "\n" not in first[name]


def test_what_is_wrong_in_both_is_said_as_in_one(answers):
    for found in answers:
        assert found["of none"].startswith("AdapterError: unknown adapter 'of-none.safetensors'")
        assert HINT not in found["of none"]
