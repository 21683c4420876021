"""`wan-tpu train` up to where a device is needed: what is wrong, and what is told."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import wan_tpu
from tests.training.lines import step_line
from wan_tpu.cli.main import _parse
from wan_tpu.cli.train import ACTIONS, with_action
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_file import read_config
from wan_tpu.training.log import TrainingLog
from wan_tpu.training.presets import preset_names, preset_text
from wan_tpu.training.run_folder import open_run


@pytest.fixture
def train(run_here, tmp_path):
    """(code, output, errors) of `wan-tpu train`, in a folder with `data` and `a.toml`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "a.toml").write_text('preset = "lora-wan-tiny"\n[data]\npath = "data"\n')
    return lambda *words: run_here("train", *words)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = {
    "bad key": ("[train]\nstep = 3\n", "bad.toml, line 2: unknown key step in [train]; nearest:"),
    "key of another table": ("[train]\nlearning_rate = 1\n", "it is a key of [optimiser]"),
    "key that is like another table's": ("[train]\nlerning_rate = 1\n", "optimiser.learning_rate"),
    "bad table": ("[optimizer]\neps = 1\n", "line 1: unknown table optimizer; nearest: optimiser"),
    "key where a table is wanted": ("steps = 3\n", "it is a key of [train]"),
    "value where a table is wanted": ("train = 3\n", "line 1: train is a table: write [train]"),
    "text for a number": ("[train]\nsteps = 'many'\n", "a whole number, got 'many'; for example 4"),
    "fraction for a whole number": ("[train]\nsteps = 1.5\n", "a whole number, got 1.5"),
    "truth for a number": ("[train]\nsteps = true\n", "a whole number, got true"),
    "number for a text": ("[model]\nname = 4\n", "model.name must be a text, got 4"),
    "number that is none": ("[flow]\nshift = nan\n", "flow.shift must be a number, got nan"),
    "number for truth": ("[embedding]\nkeeps_norm = 1\n", "must be true or false, got 1"),
    "text for a list": ("[lora]\ntargets = 'all'\n", "must be a list of texts, got 'all'"),
    "list of one for two": ("[optimiser]\nbetas = [0.9]\n", "must be a list of 2 numbers"),
    "table for a value": ("[train.steps]\nx = 1\n", "must be a whole number, got a table"),
    "value out of range": ("\n[flow]\nshift = -1\n", "line 3: flow.shift must be above 0, got -1"),
    "name that is none": ("[flow]\nsampling = 'x'\n", "line 2: [flow] unknown sampling 'x'; known"),
    "target that is none": ("[lora]\ntargets = ['proj_in']\n", "unknown target 'proj_in'"),
    "none where something must be": ("[train]\nsteps = 'none'\n", "got 'none'"),
    "no TOML": ("[train\n", "bad.toml is no TOML: "),
    "key twice": ("[train]\nsteps = 1\nsteps = 2\n", "bad.toml is no TOML: "),
    "unknown preset": ("preset = 'lora-wan-tny'\n", "line 1: unknown preset 'lora-wan-tny'"),
    "preset that is no text": ("preset = 1\n", "line 1: preset must be a text, got 1"),
    "preset in a table": ("[train]\npreset = 'lora-wan-tiny'\n", "stands above the first table"),
    "data that is not there": ("[data]\npath = 'none'\n", "nothing is there; wan-tpu dataset"),
    "no data": ("[train]\nsteps = 4\n", "bad.toml: data.path is missing"),
    "keys of another kind": (
        "[data]\npath='data'\n[train]\ntrains = 'full'\n[lora]\nrank = 4\n",
        'line 6: lora.rank is for train.trains = "lora", and it is "full"; leave it out',
    ),
    "no word": (
        "[data]\npath = 'data'\n[train]\ntrains = 'embedding'\n",
        "embedding.word is missing",
    ),
    "expert of one": (
        "[data]\npath = 'data'\n[model]\nexpert = 'low'\n",
        "wan-tiny has one transformer",
    ),
    "no expert of two": (
        "[data]\npath = 'data'\n[model]\nname = 'wan2.2-t2v-a14b'\n",
        "model.expert is missing",
    ),
    "unknown model": ("[data]\npath='data'\n[model]\nname = 'wan-huge'\n", "unknown model"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_one_line_and_exit_code_2(train, tmp_path, case):
    text, expected = FILES[case]
    (tmp_path / "bad.toml").write_text(text)
    code, out, error = train("bad.toml")
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert expected in error
    assert names(tmp_path) == ["a.toml", "bad.toml", "data"]


WORDS = {
    "nothing": ([], "give a CONFIG.toml, or --preset with --data"),
    "no file": (["none.toml"], "there is no file none.toml"),
    "a folder": (["data"], "is a folder; give a TOML file"),
    "two presets": (["a.toml", "--preset", "lora-wan-tiny"], "give one of them"),
    "unknown preset": (["--preset", "lora"], "unknown preset 'lora'; "),
    "preset without data": (["--preset", "lora-wan-tiny"], "data.path is missing"),
    "setting without a value": (["a.toml", "--set", "train.steps"], "a setting is table.key=value"),
    "setting without a table": (["a.toml", "--set", "steps=3"], "for example train.steps=200"),
    "setting of no table": (["a.toml", "--set", "tran.steps=3"], "unknown table tran; nearest: tr"),
    "setting of no key": (["a.toml", "--set", "train.step=3"], "command line: unknown key step"),
    "setting of another type": (["a.toml", "--set", "train.steps=x"], "a whole number, got 'x'"),
    "steps": (["a.toml", "--steps", "0"], "the command line: train.steps must be at least 1"),
    "rate": (["a.toml", "--lr", "-1"], "optimiser.learning_rate must be above 0"),
    "batch": (["a.toml", "--batch", "0"], "must be a whole number of at least 1"),
    "layout": (["a.toml", "--layout", "pp2"], "dp2-sp4"),
    "layout of other devices": (["a.toml", "--layout", "tp4", "--host-devices", "8"], "dp2-tp4"),
    "data": (["a.toml", "--data", "none"], "nothing is there"),
    "bytes that are no text": (["a.toml", "--data", "\udcff"], "data.path must be a text"),
    "file of bytes that are no text": (["\udcff"], "there is no file '\\udcff'"),
    "process": (["a.toml", "--process-id", "3", "--processes", "2"], "process"),
    "bucket": (["a.toml", "-o", "gs://bucket/run"], "mount the bucket"),
    "status of nothing": (["status", "none"], "is not there; wan-tpu train CONFIG.toml -o"),
    "status of no run": (["status", "data"], "is no run folder"),
    "preset to show": (["presets", "lora-wan2.1-1.3b"], "nearest: lora-wan2.1-1.3b-480p"),
    "export of nothing": (["export", "none", "-o", "a.safetensors"], "is not there"),
}


@pytest.mark.parametrize("case", WORDS)
def test_wrong_words_are_one_line_and_exit_code_2(train, tmp_path, case):
    words, expected = WORDS[case]
    code, out, error = train(*words)
    assert (code, out) == (2, ""), error
    assert expected in error
    assert "usage:" in error or error.count("\n") == 1
    assert names(tmp_path) == ["a.toml", "data"]


def test_files_that_cannot_be_read(train, tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"[train]\n# \xff\n")
    assert "bad.toml, line 2: this is no UTF-8 text" in train("bad.toml")[2]
    (tmp_path / "bad.toml").write_bytes(b"#" * (2**20 + 1))
    assert "it is no training's file" in train("bad.toml")[2]
    (tmp_path / "bad.toml").write_text("x = " + "[" * 100_000)
    code, _, error = train("bad.toml")
    assert (code, error.count("\n")) == (2, 1)


def test_a_process_of_its_own_loads_neither_jax_nor_torch(environment, tmp_path):
    """Red when the command line needs seconds to say what is wrong, or to list presets."""
    with open_run(tmp_path / "fox", TrainingConfig()):
        pass
    script = (
        "import sys; from wan_tpu.cli.main import main\n"
        "for words in (['presets'], ['status', 'fox'], ['none.toml'], "
        "['--preset', 'lora-wan-tiny', '--data', '.', '--dry-run']):\n"
        "    print('code', main(['train', *words]))\n"
        "print([name for name in ('jax', 'torch', 'tensorboardX') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env=environment, check=True,
    )  # fmt: skip
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 0", "code 0", "code 2", "code 0"], done.stderr
    assert done.stdout.endswith("[]\n")


def test_presets(train):
    code, out, _ = train("presets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(preset_names())
    assert train("presets", "lora-wan-tiny")[:2] == (0, preset_text("lora-wan-tiny"))


def test_a_dry_run_prints_everything_and_writes_nothing(train, tmp_path):
    code, out, error = train("a.toml", "--dry-run", "--lr", "3e-4", "--set", "lora.rank=4")
    assert (code, error) == (0, "")
    assert names(tmp_path) == ["a.toml", "data"]
    (tmp_path / "b.toml").write_text(out)
    config = read_config(tmp_path / "b.toml")
    assert (config.optimiser.learning_rate, config.lora.rank) == (3e-4, 4)
    assert (config.data.path, config.model.name) == (str(tmp_path / "data"), "wan-tiny")


@pytest.mark.parametrize(
    ("words", "batch", "accumulate"),
    [
        (["--batch", "1", "--accumulate", "4"], 4, 4),
        (["--batch", "2"], 2, 1),
        (["--accumulate", "2"], 16, 2),
        (["--set", "train.accumulate=4", "--batch", "3"], 12, 4),
        (["--set", "train.accumulate=4"], 8, 4),
    ],
)
def test_a_batch_of_the_command_line_is_computed_at_once(train, tmp_path, words, batch, accumulate):
    code, out, error = train("--preset", "lora-wan-tiny", "--data", "data", "--dry-run", *words)
    assert code == 0, error
    (tmp_path / "b.toml").write_text(out)
    config = read_config(tmp_path / "b.toml")
    assert (config.train.batch, config.train.accumulate) == (batch, accumulate)


def test_where_a_run_goes_that_nothing_places(train, tmp_path):
    """Somebody's files there show where it would have gone."""
    for name in ("a", "lora-wan-tiny"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "mine").write_text("")
    code, _, error = train("a.toml")
    assert (code, error.count("\n")) == (1, 1)
    assert f"cannot train in {tmp_path}/runs/a: it holds mine, and no run" in error
    _, _, error = train("--preset", "lora-wan-tiny", "--data", "data")
    assert f"{tmp_path}/runs/lora-wan-tiny: it holds mine" in error


@pytest.fixture
def fox(train, tmp_path):
    """A run of a.toml's configuration."""
    with open_run(tmp_path / "fox", read_config(tmp_path / "a.toml")) as folder:
        yield folder


def test_going_on_otherwise_names_what_differs(train, tmp_path):
    with open_run(tmp_path / "fox", read_config(tmp_path / "a.toml")) as folder:
        (folder.checkpoints / "2").mkdir(parents=True)
    code, _, error = train("a.toml", "-o", "fox", "--lr", "5e-3", "--steps", "7")
    assert (code, error.count("\n")) == (2, 1)
    assert "optimiser.learning_rate was 0.0007, is 0.005; say it as it was" in error
    assert "train.steps" not in error


@pytest.mark.parametrize("words", [["a.toml", "-o", "fox"], ["fox"], ["fox/config.toml"]])
def test_a_folder_where_somebody_trains(fox, train, words):
    """A run's folder, or the file in it, stands for both."""
    code, _, error = train(*words)
    assert (code, error.count("\n")) == (1, 1)
    assert "another process trains in" in error
    assert str(fox.path) in error


def test_status(fox, train):
    with TrainingLog(fox.log, None, step=0) as log:
        log.write(step_line(1))
    code, out, _ = train("status", "fox", "--json")
    assert (code, json.loads(out)["step"], json.loads(out)["state"]) == (0, 1, "running")
    code, out, _ = train("status", "fox")
    assert out.startswith(f"run         {fox.path}: lora, wan-tiny\nstate       running, process ")


def test_a_file_of_an_actions_name(train, tmp_path):
    (tmp_path / "status").write_text("[x]\n")
    assert "wan-tpu: status, line 1: unknown table x" in train("./status")[2]


def test_what_stands_behind_train():
    assert with_action(["train", "a.toml", "-v"]) == ["train", "run", "a.toml", "-v"]
    assert with_action(["train", "--preset", "status"]) == ["train", "run", "--preset", "status"]
    assert with_action(["train"]) == ["train", "run"]
    assert with_action(["generate", "train"]) == ["generate", "train"]
    for action in ACTIONS:
        assert with_action(["train", action, "-h"]) == ["train", action, "-h"]


def test_help_names_the_other_actions(train):
    code, out, _ = train("-h")
    assert code == 0
    for action in ACTIONS:
        assert action == "run" or f"wan-tpu train {action} -h" in " ".join(out.split())
    assert train("export", "-h")[1].startswith("usage: wan-tpu train export ")


def test_every_command_of_the_page_is_one():
    page = (pathlib.Path(wan_tpu.__file__).parents[1] / "docs" / "training.md").read_text()
    lines = re.findall(r"^    (wan-tpu train [^#\n]*)", page, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        _parse(shlex.split(line)[1:])


EXPORTS = {
    "style of all weights": (["-o", "a.safetensors", "--style", "folder"], 2, "kohya or peft"),
    "no adapter's file": (["-o", "a.pt"], 2, "write a.safetensors"),
    "folder that is not there": (["-o", "no/a.safetensors"], 1, "there is no folder no"),
    "average that is not kept": (["-o", "a.safetensors", "--ema"], 2, "optimiser.ema_decay is op"),
    "step": (["-o", "a.safetensors", "--step", "0"], 2, "at least 1"),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_an_export_that_cannot_be(fox, train, tmp_path, case):
    words, code, expected = EXPORTS[case]
    found, _, error = train("export", "fox", *words)
    assert found == code, error
    assert expected in error
    assert names(tmp_path) == ["a.toml", "data", "fox"]


def test_an_export_of_a_model_needs_a_new_folder(train, tmp_path):
    config = read_config(preset="full-wan-tiny-ti2v", needs_data=False)
    with open_run(tmp_path / "full", config):
        pass
    code, _, error = train("export", "full", "-o", "data/../full")
    assert (code, error.count("\n")) == (1, 1)
    assert "it is there already" in error
    assert "written as folder" in train("export", "full", "-o", "m", "--style", "kohya")[2]
