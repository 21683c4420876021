"""From TOML to a configuration and back: every error one line with its place, nothing lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_tpu.errors import InputError
from wan_tpu.training.config import (
    DataConfig,
    EmbeddingConfig,
    FlowConfig,
    LoraConfig,
    OptimiserConfig,
    SampleConfig,
    TrainConfig,
    TrainingConfig,
)
from wan_tpu.training.config_file import read_config, to_toml


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The configuration of a file's text, in a folder with `data` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def read(text="", *settings, **options):
        (tmp_path / "run.toml").write_text(text)
        return read_config("run.toml", settings=("data.path=data", *settings), **options)

    return read


def test_the_preset_then_the_file_then_the_command_line(read):
    """Red when one of the three wins over a later one, or drops what a later one does not name."""
    text = 'preset = "lora-wan2.1-1.3b-480p"\n[train]\nsteps = 70\nseed = 3\n'
    config = read(text, "train.seed=4", "train.seed=5")
    assert (config.train.steps, config.train.seed) == (70, 5)
    assert (config.train.batch, config.model.name) == (8, "wan2.1-t2v-1.3b")


def test_paths_are_relative_to_who_names_them(tmp_path, monkeypatch):
    folder = tmp_path / "there"
    (folder / "data").mkdir(parents=True)
    (folder / "model").mkdir()
    (tmp_path / "data").mkdir()
    (folder / "run.toml").write_text('[data]\npath = "data"\n[model]\nname = "model"\n')
    monkeypatch.chdir(tmp_path)
    config = read_config("there/run.toml")
    assert (config.data.path, config.model.name) == (str(folder / "data"), str(folder / "model"))
    config = read_config("there/run.toml", settings=["data.path=data", "model.name=wan-tiny"])
    assert (config.data.path, config.model.name) == (str(tmp_path / "data"), "wan-tiny")
    config = read_config("there/run.toml", settings=["model.name=Wan-AI/Wan2.1-T2V-1.3B-Diffusers"])
    assert config.model.name == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def test_a_known_model_is_not_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wan-tiny").mkdir()
    assert read_config(settings=["model.name=wan-tiny"], needs_data=False).model.name == "wan-tiny"


@pytest.mark.parametrize(
    ("setting", "table", "value"),
    [
        ("optimiser.learning_rate=2e-4", "optimiser", {"learning_rate": 2e-4}),
        ("optimiser.learning_rate=1", "optimiser", {"learning_rate": 1.0}),
        ("optimiser.betas=[0.8, 1e-1]", "optimiser", {"betas": (0.8, 0.1)}),
        ("lora.targets=['attn1.to_q']", "lora", {"targets": ("attn1.to_q",)}),
        ("lora.alpha=none", "lora", {"alpha": None}),
        ("model.variant=16", "model", {"variant": "16"}),
        ("model.variant='fp16'", "model", {"variant": "fp16"}),
        ("machine.remat=none", "machine", {"remat": "none"}),
        ("samples.prompts=['a, b', \"c\"]", "samples", {"prompts": ("a, b", "c")}),
    ],
)
def test_values_of_the_command_line(read, setting, table, value):
    config = read("[lora]\nalpha = 3\n", setting)
    (name, wanted), *_ = value.items()
    found = getattr(getattr(config, table), name)
    assert found == wanted
    assert type(found) is type(wanted)


def test_a_mark_before_the_file_and_ends_of_lines_as_windows_has_them(tmp_path):
    (tmp_path / "run.toml").write_bytes("\ufeff[train]\r\nsteps = 7\r\n".encode())
    assert read_config(tmp_path / "run.toml", needs_data=False).train.steps == 7


PLACES = {
    "key of a table": ("[train]\nseed = 1\nstep = 3\n", "run.toml, line 3: unknown key step in"),
    "key with a blank before": ("[train]\n  'step' = 3\n", "line 2: unknown key step in [train]"),
    "dotted key": ("# x\ntrain.step = 3\n", "line 2: unknown key step in [train]"),
    "table": ("\n\n[tain]\nsteps = 3\n", "line 3: unknown table tain; nearest: train"),
    "value out of range": ("[train]\nseed = 2\nsteps = 0\n", "line 3: train.steps must be"),
    "name that is none": (
        "[train]\nsteps = 4\n[optimiser]\nbetas = [0, 0]\nschedule = 'x'\n",
        "line 5: [optimiser] unknown schedule 'x'; known: constant",
    ),
    "inline table": ("train = {steps = 0}\n", "train.steps must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", PLACES)
def test_the_line_of_what_is_wrong(read, case):
    text, expected = PLACES[case]
    with pytest.raises(InputError) as caught:
        read(text)
    assert expected in str(caught.value)


def test_two_values_that_do_not_fit_are_both_in_the_message(read):
    with pytest.raises(InputError, match=r"line 3: train.batch must be a multiple .* nearest: 6"):
        read("[train]\nbatch = 4\naccumulate = 3\n")


def test_a_table_of_another_kind_of_training_is_passed_over_in_a_preset_alone(read):
    text = 'preset = "lora-wan2.1-1.3b-480p"\n[train]\ntrains = "full"\n'
    assert read(text).lora == LoraConfig()
    with pytest.raises(InputError, match=r'line 5: lora.rank is for train.trains = "lora", and'):
        read(text + "[lora]\nrank = 8\n")
    with pytest.raises(InputError, match=r"command line: lora.rank is for"):
        read(text, "lora.rank=8")


def test_data_is_asked_for_where_it_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"the command line: data.path is missing"):
        read_config()
    assert read_config(needs_data=False).data.path == ""
    with pytest.raises(InputError, match="nothing is there"):
        read_config(settings=[f"data.path={tmp_path / 'no'}"])


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
fraction = st.floats(0, 1, exclude_max=True)


@st.composite
def configs(draw):
    """Any configuration whose checks pass."""
    trains = draw(st.sampled_from(["lora", "full", "embedding"]))
    accumulate = draw(st.integers(1, 4))
    low = draw(st.floats(0, 0.5))
    return TrainingConfig(
        data=DataConfig(path=draw(st.from_regex(r"/[a-z \"\\\x7f]+", fullmatch=True))),
        train=TrainConfig(
            trains=trains, batch=accumulate * draw(st.integers(1, 9)), accumulate=accumulate,
            steps=draw(st.integers(1, 10**9)), seed=draw(st.integers(0, 2**63 - 1)),
        ),
        flow=FlowConfig(min_sigma=low, max_sigma=draw(st.floats(0.6, 1))),
        optimiser=OptimiserConfig(
            learning_rate=draw(st.floats(1e-12, 1)), betas=(draw(fraction), draw(fraction)),
            ema_decay=draw(st.none() | st.floats(0.1, 0.9)),
        ),
        lora=LoraConfig(rank=draw(st.integers(1, 99))) if trains == "lora" else LoraConfig(),
        embedding=EmbeddingConfig(word=draw(text) + "x", start=draw(text))
        if trains == "embedding"
        else EmbeddingConfig(),
        samples=SampleConfig(prompts=tuple(draw(st.lists(text, max_size=3)))),
    )  # fmt: skip


@given(config=configs())
def test_what_is_written_is_read_back(tmp_path_factory, config):
    """Red when a character is not escaped, a digit lost, or an open key written as a value."""
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_bytes(to_toml(config).encode())
    assert read_config(file, needs_data=False) == config


def test_every_key_is_written_with_what_it_is(tmp_path):
    written = to_toml(TrainingConfig())
    assert "over all devices and all of `accumulate`.\nbatch = 1\n" in written
    assert 'alpha = "none"\n' in written
    assert "[embedding]" not in written
    assert max(map(len, written.splitlines())) <= 100
