"""New words in the pipeline: their vectors act as rows would, and without them nothing changes."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import InputError, PromptError
from wan_tpu.pipeline.load import place_model
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout
from wan_tpu.text.embedding_file import INPUT_KEY, OUTPUT_KEY, embedding_bytes, read_embedding

SMALL: Any = {"num_frames": 5, "num_inference_steps": 1}
RED = "a red circle moving right on a black background"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`zork` is the row of `red`; `blip` and `moss` come out as noise, the latter goes in red."""
    folder = tmp_path_factory.mktemp("embeddings")
    description = open_model("wan-tiny")
    table = description.source("text_encoder").read("shared.weight")
    vocabulary = json.loads((folder_of(description) / "tokenizer.json").read_text())
    red = table[[vocabulary["model"]["vocab"]["red"]]].astype(np.float32)
    noise = np.random.default_rng(0).normal(size=red.shape).astype(np.float32)
    for word, rows, outputs in (("zork", red, None), ("blip", None, noise), ("moss", red, noise)):
        content = embedding_bytes(word, rows, outputs, {})
        (folder / f"{word}.safetensors").write_bytes(content)
    return folder


def folder_of(description):
    return description.component_folder("tokenizer")


def arguments_of(files):
    return tuple(str(files / f"{word}.safetensors") for word in ("zork", "blip", "moss"))


@pytest.fixture(scope="module")
def pipeline(files, devices):
    options = LoadOptions(layout=Layout(), embeddings=arguments_of(files))
    return options.load(options.open_model(), devices=devices[:1])


def test_a_word_of_a_rows_numbers_makes_the_rows_video(pipeline, files):
    """Bit for bit; and words need no program of their own."""
    expected = pipeline(VideoRequest(prompt=RED, **SMALL))
    seen = []
    for prompt in (RED.replace("red", "zork"), RED.replace("a red", "a embedding:zork")):
        video = pipeline(VideoRequest(prompt=prompt, **SMALL), on_progress=seen.append)
        np.testing.assert_array_equal(video.frames, expected.frames)
    other = pipeline(VideoRequest(prompt=RED.replace("red", "blue"), **SMALL))
    assert (other.frames != expected.frames).any()
    assert not [p.stage for p in seen if p.stage.startswith("compile")]
    told = json.loads(json.dumps(expected.metadata))["embeddings"]
    assert [entry["word"] for entry in told] == ["zork", "blip", "moss"]
    assert told[0] == read_embedding(str(files / "zork.safetensors")).told()


def test_what_comes_out_is_the_vector_whatever_goes_in(pipeline):
    """The place of `blip` is hidden from the text around it, that of `moss` seen as red."""
    frames = {
        word: pipeline(VideoRequest(prompt=RED.replace("red", word), **SMALL)).frames
        for word in ("red", "blip", "moss", "blip moss")
    }
    for word, other in (("blip", "red"), ("moss", "red"), ("blip", "moss"), ("blip moss", "moss")):
        assert (frames[word] != frames[other]).any(), (word, other)


def test_an_unknown_embedding_is_refused_before_anything_runs(pipeline):
    with pytest.raises(PromptError, match="embedding 'fern' and there is none; known: zork, blip"):
        pipeline(VideoRequest(prompt="a embedding:fern circle", **SMALL))
    with pytest.raises(PromptError, match="embedding 'fern'"):
        pipeline.prepare(VideoRequest(prompt="a", negative_prompt="embedding:fern", **SMALL))


def test_without_embeddings_the_text_stage_is_what_it_was(devices):
    """Three arguments and the encoder's function of them: the program of before."""
    model = place_model(describe_model("wan-tiny"), layout=Layout(), devices=devices[:1])
    plain, again, new = (model.text_stage(2, *n) for n in ((), (0,), (16,)))
    assert plain.key == again.key != new.key
    weights, ids, mask = plain.arguments
    assert new.arguments == (weights, ids, mask, *new.arguments[3:])
    assert [(x.shape, x.dtype) for x in new.arguments[3:]] == [
        ((16, 64), jnp.float32), ((2, 512), jnp.int32)
    ]  # fmt: skip

    def before(params, ids, mask):
        embeddings = model.text_encoder.encode(params, ids, mask)
        return embeddings, jnp.isfinite(embeddings).all()

    written = dataclasses.replace(plain, function=before).lower().as_text()
    assert plain.lower().as_text() == written.replace("jit_before", "jit_encode")


def test_files_are_checked_against_the_model(files, tmp_path):
    wide = tmp_path / "wide.safetensors"
    save_file({INPUT_KEY: np.zeros((1, 65), np.float32)}, wide)
    zork = str(files / "zork.safetensors")
    model = describe_model("wan-tiny")
    for arguments, message in (
        ((str(wide),), r"wide\.safetensors holds vectors of 65 numbers; .* wan-tiny takes 64"),
        ((zork, f"{wide}:zork"), "of 65 numbers"),
        ((zork, zork), r"zork\.safetensors and zork\.safetensors are both for the word 'zork'"),
    ):
        with pytest.raises(InputError, match=message):
            LoadOptions(embeddings=arguments).open_embeddings(model)
    assert LoadOptions(embeddings=(zork, f"{zork}:red2")).open_embeddings(model)[1].word == "red2"


def test_all_processes_share_the_files_content(files, tmp_path):
    """Not their paths: another content in one of them is another identity."""
    (argument, *_) = arguments_of(files)
    ours = LoadOptions(embeddings=(argument,)).identity()
    copy = tmp_path / "zork.safetensors"
    copy.write_bytes((files / "zork.safetensors").read_bytes())
    assert LoadOptions(embeddings=(str(copy),)).identity() == json.loads(json.dumps(ours))
    save_file({OUTPUT_KEY: np.zeros((1, 64), np.float32)}, copy, {"word": "zork"})
    assert LoadOptions(embeddings=(str(copy),)).identity() != ours
