"""`wan-tpu evaluate`: the page of a run, and what is said instead."""

import dataclasses
import json

import pytest

from tests.training.runs import config_of, make_model_and_data, place_on_first_devices, run
from tests.training.test_evaluate import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one step."""
    made = make_model_and_data(tmp_path_factory.mktemp("made"))
    folder = tmp_path_factory.mktemp("runs") / "fox"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wan_tpu.training.run.place_for_training", place_on_first_devices)
        run(dataclasses.replace(config_of(*made, steps=1), samples=SMALL), folder)
    return folder


def test_the_page_and_its_files(folder, run_here, monkeypatch, tmp_path):
    monkeypatch.setattr("wan_tpu.training.evaluate.place_for_training", place_on_first_devices)
    (tmp_path / "p.txt").write_text("a fox\n\ntwo foxes\n")
    code, out, err = run_here("evaluate", str(folder), "--prompts", "p.txt", "--clips", "2")
    assert code == 0, err
    assert out == f"{folder}/evaluation/index.html\n"
    assert "losses of the base" in err
    names = sorted(path.name for path in (folder / "evaluation").iterdir())
    assert names == ["base", "evaluation.json", "index.html", "trained"]
    told = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert [video["prompt"] for video in told["videos"]] == ["a fox", "two foxes"]
    code, out, err = run_here("evaluate", str(folder), "--clips", "1")  # in the place of the other
    assert code == 0, err


def test_a_folder_with_something_else_is_left_alone(folder, run_here, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    code, _, err = run_here("evaluate", str(folder), "-o", "site")
    assert (code, (tmp_path / "site" / "index.html").read_text()) == (1, "mine")
    assert "'index.html'" in err
    assert run_here("evaluate", str(folder), "-o", "no/where")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompts", "none.txt"], "cannot read the prompts in none.txt"),
        (["--ema"], "keeps no average"),
        (["--layout", "dp3-"], "[machine] unknown layout"),
        (["--clips", "0"], "--clips"),
        (["--layout", "dp4", "--host-devices", "2"], "2"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(folder, run_here, arguments, said):
    code, _, err = run_here("evaluate", str(folder), *arguments)
    assert code == 2
    assert said in err
