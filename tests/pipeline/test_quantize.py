"""`--quantize int8` from the command line to the file, and what refuses a model in int8."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.adapted import write_lora
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.cli import main as command
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.family import TRANSFORMER
from wan_tpu.pipeline.consistency import TOLERANCES, Run, compare
from wan_tpu.pipeline.fast import embedded_adapters, find_preset
from wan_tpu.pipeline.load import on_one_branch, place_model
from wan_tpu.pipeline.request_adapters import AdapterChooser
from wan_tpu.request import make_request
from wan_tpu.sharding.layout import Layout, parse_layout
from wan_tpu.training.trainer import Trainer

PROMPT = "a red circle moving right on a black background"


def test_the_story_tells(tmp_path, capfd):
    """Of one frame in one step; how near int8 is, `tests/transformer/test_int8.py` measures."""
    path = tmp_path / "out.npy"
    words = ("--steps", "1", "--frames", "1", "--no-cache", "-o", str(path))
    assert command.main(["generate", PROMPT, *words, "--quantize", "int8"]) == 0
    story = json.loads(path.with_suffix(".json").read_text())
    assert (story["dtype"], story["quantize"]) == ("float32", "int8")
    assert ", float32 and int8, " in capfd.readouterr().err
    assert np.load(path).std() > 1


def test_the_model_says_what_it_is_on_every_mesh(devices):
    """Who merges into resident weights asks for it; steps without guidance are in int8, too."""
    model = place_model(
        describe_model("wan-tiny"),
        layout=parse_layout("dp2-sp2"),
        devices=devices[:4],
        quantize="int8",
    )
    assert model.quantize == on_one_branch(model).quantize == "int8"
    assert on_one_branch(model).layout != model.layout
    assert place_model(describe_model("wan-tiny"), devices=devices[:1]).quantize is None
    with pytest.raises(UnknownNameError, match="unknown quantization 'int4'; known: int8"):
        place_model(describe_model("wan-tiny"), devices=devices[:1], quantize="int4")


def test_whole_numbers_are_not_trained(devices):
    model = place_model(describe_model("wan-tiny"), devices=devices[:1], quantize="int8")
    with pytest.raises(InputError, match="quantised to int8"):
        Trainer(None, model)  # pyright: ignore[reportArgumentType]


def test_a_request_s_adapters_are_refused_and_those_that_were_loaded_are_not(tmp_path, devices):
    """Red when they are merged into whole numbers, or a preset's, already loaded, is refused."""
    shapes = open_model("wan-tiny").source(TRANSFORMER).shapes
    write_lora(tmp_path / "fox.safetensors", shapes, ".to_q.weight")
    request = make_request(PROMPT, adapters=["fox.safetensors"])

    def choose(quantize, loaded=()):
        model = place_model(describe_model("wan-tiny"), devices=devices[:1], quantize=quantize)
        return AdapterChooser(model, tmp_path).choose(request, None, loaded, alike=False)

    chosen = choose(None)
    assert chosen is not None
    with pytest.raises(InputError, match=r"fox.safetensors cannot be added to wan-tiny, whose wei"):
        choose("int8")
    fast = find_preset(describe_model("wan-tiny"), True)
    model = place_model(describe_model("wan-tiny"), devices=devices[:1], quantize="int8")
    loaded = [{"file": Path(path).name} for path in embedded_adapters(fast)]
    plain = dataclasses.replace(request, adapters=())
    assert loaded
    assert AdapterChooser(model).choose(plain, fast, loaded, alike=False) is None


def test_the_coarsest_rounding_decides_what_a_layout_may_differ():
    """Red when int8 is held to float32's roundings, or excuses more where nothing is quantised."""
    ones = np.ones((1, 2), np.float32)
    frames = np.full((1, 16, 16, 3), 100, np.uint8)
    one = Run(
        layout=Layout(), attention="reference", dtype="float32",
        velocity=ones, latents=ones, frames=frames,
    )  # fmt: skip
    other = dataclasses.replace(one, velocity=ones * 1.05, latents=ones * 0.95)
    assert not compare(other, one).consistent
    assert compare(dataclasses.replace(other, quantize="int8"), one).consistent
    wrong = dataclasses.replace(other, quantize="int8", latents=ones * 1.2)
    assert not compare(wrong, one).consistent
    coarse = dataclasses.replace(wrong, dtype="bfloat16", latents=ones * 1.14)
    assert coarse.tolerances == TOLERANCES["bfloat16"]
    assert compare(coarse, one).consistent
