"""`wan-tpu generate --embedding`: what is wrong is one line before anything is loaded."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from wan_tpu.text.embedding_file import INPUT_KEY

PROMPT = "a moss circle moving right on a black background"
NARROW = np.zeros((1, 3), np.float32)
VECTORS = np.ones((2, 64), np.float32)

WRONG = {
    "no file": ("fern.safetensors", "there is no file fern.safetensors"),
    "a pickle": ("moss.pt", "moss.pt is a pickle"),
    "of another model": ("narrow.safetensors:moss", "vectors of 3 numbers; the text encoder of"),
    "not finite": ("nan.safetensors:moss", "NaN or infinite"),
    "a word with a bracket": ("moss.safetensors:<moss>", "'<moss>' cannot be the word"),
    "a word with an ampersand": ("moss.safetensors:R&D", "'R&D' cannot be the word"),
    "a word that is not in the prompt": ("moss.safetensors:fern", "does not hold the word 'fern'"),
}


@pytest.fixture
def files(tmp_path):
    save_file({INPUT_KEY: VECTORS}, tmp_path / "moss.safetensors")
    save_file({INPUT_KEY: NARROW}, tmp_path / "narrow.safetensors")
    save_file({INPUT_KEY: VECTORS * np.float32(np.nan)}, tmp_path / "nan.safetensors")
    (tmp_path / "moss.pt").write_bytes(b"\x80\x04")


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_one_is_one_line_and_exit_code_2(run_here, tmp_path, files, case):
    argument, expected = WRONG[case]
    before = sorted(tmp_path.iterdir())
    code, _, error = run_here("generate", PROMPT, "--embedding", argument)
    assert code == 2, error
    assert expected in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("prompt", "given", "expected"),
    [
        (PROMPT, ["moss.safetensors", "moss.safetensors"], "are both for the word 'moss'"),
        ("a embedding:fern moss", ["moss.safetensors"], "embedding 'fern' and there is none"),
        ("a embedding:fern", [], "embedding 'fern' and there is none"),
    ],
)
def test_files_and_prompt_that_do_not_fit(run_here, files, prompt, given, expected):
    arguments = [argument for file in given for argument in ("--embedding", file)]
    code, _, error = run_here("generate", prompt, *arguments)
    assert code == 2, error
    assert expected in error


def test_a_video_tells_its_files(run, tmp_path, files):
    done = run(
        "generate", "a fern thing, moss", "--negative-prompt", "embedding:lichen",
        "--embedding", "moss.safetensors", "--embedding", "moss.safetensors:fern",
        "--embedding", "moss.safetensors:lichen", "--frames", "1", "--steps", "1", "-o", "out.npy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    story = json.loads((tmp_path / "out.json").read_text())
    assert [each["word"] for each in story["embeddings"]] == ["moss", "fern", "lichen"]
    assert story["embeddings"][0]["file"] == "moss.safetensors"
    assert story["embeddings"][0]["digest"].startswith("sha256:")
