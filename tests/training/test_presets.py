"""Every preset is a configuration that its model can be trained with."""

import dataclasses
import pathlib
import re
import shlex
import tomllib

import pytest

import wan_tpu
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.cli.main import _parse
from wan_tpu.errors import InputError
from wan_tpu.media import placeholders
from wan_tpu.pipeline.check import check_request
from wan_tpu.request import make_request
from wan_tpu.training.config_check import check_with_model
from wan_tpu.training.config_file import read_config
from wan_tpu.training.config_keys import KEYS
from wan_tpu.training.presets import preset_names, preset_summary, preset_text

WANTED = {
    "lora-wan2.1-1.3b-480p", "lora-wan2.1-14b-480p", "lora-wan2.1-i2v-14b-480p",
    "lora-wan2.2-a14b", "lora-wan2.2-small", "lora-wan2.2-smallest", "full-wan2.1-1.3b-480p",
    "full-wan2.2-ti2v-5b", "full-wan2.1-14b-480p", "embedding-wan2.1-1.3b", "lora-wan-tiny",
    "full-wan-tiny-ti2v",
}  # fmt: skip


def test_these_are_there():
    assert set(preset_names()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_preset_fits_its_model(name):
    kind = name.split("-")[0]
    settings = ["embedding.word=mossling"] if kind == "embedding" else []
    config = read_config(preset=name, settings=settings, needs_data=False)
    assert config.train.trains == kind
    check_with_model(config, describe_model(config.model.name))
    assert config.flow.shift == {"lora-wan-tiny": 8.0}.get(name, 3.0 if "wan2.1" in name else 5.0)
    assert config.model.name.replace("-t2v", "").split("-")[0] in name
    assert len(preset_summary(name)) < 100


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_preset_says_nothing_twice(name):
    """Red when a preset sets a key to its default, but for what every one shows: the objective."""
    for table, entries in tomllib.loads(preset_text(name)).items():
        for key, value in entries.items():
            shown = table in ("flow", "model") or key in ("trains", "rank", "vectors")
            shown = shown or key in ("learning_rate", "remat", "batch", "steps")
            assert shown or KEYS[table][key].default != value, f"{table}.{key}"


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_command_that_a_preset_names_makes_data_for_it(name):
    """Red when a size is none of the model's, or the model another."""
    found = re.search(r"^# Clips: wan-tpu (dataset prepare .*)$", preset_text(name), re.MULTILINE)
    if name.startswith("embedding"):
        assert found is None
        return
    parsed = _parse(shlex.split(f"{found[1]} clips -o data"))
    config = read_config(preset=name, needs_data=False)
    assert parsed.model == config.model.name
    model = describe_model(parsed.model)
    (size,), (frames,) = parsed.size, parsed.frames
    roles = placeholders(min(model.kind.inputs, key=len))
    request = make_request("x", size=size, frames=int(frames))
    check_request(model, dataclasses.replace(request, **roles))
    assert re.search(rf"\b{size}\b|wan-tiny|480p", preset_summary(name))


def test_a_name_that_is_none():
    with pytest.raises(InputError, match=r"unknown preset 'lora-wan-tny'; nearest: lora-wan-tiny"):
        preset_text("lora-wan-tny")


def test_they_are_packaged():
    """Red when an installed wan-tpu has none."""
    root = pathlib.Path(wan_tpu.__file__).parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-data"]["wan_tpu.training.presets"] == ["*.toml"]
