"""What textual inversion is made of: tokens, first vectors, sizes that are kept, files."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.load import place_model
from wan_tpu.sharding.layout import Layout
from wan_tpu.text.embedding_file import read_embedding
from wan_tpu.text.prompt import tokenize
from wan_tpu.text.tokenizer import load_tokenizer
from wan_tpu.training.config import EmbeddingConfig
from wan_tpu.training.embedding import (
    kept_at_size,
    make_word_tokenizer,
    median_norm,
    start_vectors,
    tokens_of,
    vector_weight,
    write_embedding,
)

ZORK = EmbeddingConfig(word="zork", vectors=3, start="red circle")
CAPTIONS = ("a zork moving left", "a red circle moving left")


def of(kind, **fields):
    return EmbeddingConfig(**{"word": "zork", "vectors": 3, "kind": kind, **fields})


@pytest.fixture(scope="module")
def encoder_and_params(devices):
    description = open_model("wan-tiny")
    model = place_model(description, layout=Layout(), devices=devices[:1])
    encoder = model.text_encoder
    source = description.source("text_encoder")
    return encoder, load_weights("text_encoder", encoder.weights(), source, model.mesh), model.mesh


@pytest.fixture(scope="module")
def plain():
    return load_tokenizer(open_model("wan-tiny").component_folder("tokenizer"))


@pytest.mark.parametrize("kind", ["input", "output"])
def test_captions_with_the_word_have_its_vectors(plain, kind):
    tokenizer = make_word_tokenizer(of(kind), plain, 32)
    ids, mask, slots = tokens_of(tokenizer, CAPTIONS)
    ids_alone, mask_alone = tokenize(plain, CAPTIONS)
    np.testing.assert_array_equal(ids[1], ids_alone[1])
    np.testing.assert_array_equal(mask[1], mask_alone[1])
    np.testing.assert_array_equal(slots[1], -1)
    if kind == "input":
        assert ids[0, :5].tolist() == [ids_alone[0, 0], 32, 33, 34, ids_alone[0, 2]]
        assert mask[0].sum() == mask_alone[0].sum() + 2
        np.testing.assert_array_equal(slots, -1)
    else:
        assert slots[0, :5].tolist() == [-1, 0, 1, 2, -1]
        assert mask[0, :5].tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(InputError, match="no captions beside its embeddings"):
        tokens_of(tokenizer, ())


def test_rows_begin_as_the_start_texts(encoder_and_params, plain):
    """Begun again where the text has too few tokens, cut where it has too many."""
    encoder, params, mesh = encoder_and_params
    table = np.asarray(params["shared.weight"])
    red, circle = table[list(plain.encode("red circle")[:2])]
    tokenizer = make_word_tokenizer(ZORK, plain, 32)
    rows, size = start_vectors(encoder, params, tokenizer, ZORK, mesh)
    np.testing.assert_array_equal(rows, np.stack([red, circle, red]))
    assert size == pytest.approx(np.median(np.linalg.norm(table, axis=1)), rel=1e-6)
    one = of("input", vectors=1, start="red circle")
    rows, _ = start_vectors(encoder, params, make_word_tokenizer(one, plain, 32), one, mesh)
    np.testing.assert_array_equal(rows, red[None])


def test_outputs_begin_as_the_start_text_comes_out(encoder_and_params, plain):
    encoder, params, mesh = encoder_and_params
    config = of("output", start="red circle")
    tokenizer = make_word_tokenizer(config, plain, 32)
    vectors, size = start_vectors(encoder, params, tokenizer, config, mesh)
    with jax.set_mesh(mesh):
        out = np.asarray(jax.jit(encoder.encode)(params, *tokenize(plain, ["red circle"])))[0, :2]
    np.testing.assert_allclose(vectors, out[[0, 1, 0]], atol=1e-6)  # two programs' rounding
    assert size == pytest.approx(out.std(), rel=1e-5)


def test_a_start_text_of_no_token_is_refused(encoder_and_params, plain):
    encoder, params, mesh = encoder_and_params
    with pytest.raises(InputError, match=r"embedding\.start '\*' is no token of this model"):
        start_vectors(
            encoder, params, make_word_tokenizer(of("input"), plain, 32), of("input"), mesh
        )


def test_sizes_are_kept():
    vectors = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [0.3, -0.4]])
    kept = np.asarray(kept_at_size(vectors, jnp.float32(2.0), "input"))
    np.testing.assert_allclose(kept, [[1.2, 1.6], [0, 0], [1.2, -1.6]], rtol=1e-6)
    kept = np.asarray(kept_at_size(vectors, jnp.float32(2.0), "output"))
    np.testing.assert_allclose(kept.std(axis=1), [2, 0, 2], rtol=1e-6)
    np.testing.assert_allclose(kept[0], np.asarray([3.0, 4.0]) * 4, rtol=1e-6)
    assert median_norm(jnp.asarray([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]])) == 2.0


def test_a_word_that_cannot_be_is_refused_at_once():
    for config, message in (
        (of("input", word="<zork>"), "cannot be the word"),
        (of("input", word=""), "word of an embedding is empty"),
        (of("output", vectors=512), "512 vectors; a prompt takes 1 to 511"),
    ):
        with pytest.raises(InputError, match=message):
            vector_weight(config, 64)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_the_file_is_what_generate_takes(tmp_path, kind):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = write_embedding(tmp_path / "moss.safetensors", of(kind), vectors, {"steps": "7"})
    found = read_embedding(str(path))
    assert found.word == "zork"
    np.testing.assert_array_equal(found.rows if kind == "input" else found.outputs, vectors)
    with safe_open(path, "np") as file:
        assert file.metadata()["steps"] == "7"
        assert list(file.keys()) == ["umt5xxl" if kind == "input" else "umt5xxl_out"]
    assert os.listdir(tmp_path) == ["moss.safetensors"]


def test_a_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    old = np.zeros((3, 4), np.float32)
    path = write_embedding(tmp_path / "moss.safetensors", ZORK, old, {})
    with pytest.raises(InputError, match="NaN or infinite"):
        write_embedding(path, ZORK, old + np.nan, {})
    with pytest.raises(OutputError, match="there is no folder"):
        write_embedding(tmp_path / "nowhere" / "moss.safetensors", ZORK, old, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wan_tpu.training.embedding.publish", full)
    with pytest.raises(OutputError, match=r"cannot write .*moss\.safetensors: No space left"):
        write_embedding(path, ZORK, old + 1, {})
    np.testing.assert_array_equal(read_embedding(str(path)).rows, old)
    assert os.listdir(tmp_path) == ["moss.safetensors"]
