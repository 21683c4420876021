"""Textual inversion in the step: torch's gradients, and nothing else moves by a bit."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import UMT5EncoderModel

from tests.checkpoint_factory import make_random_model
from tests.tolerances import GRADIENT
from tests.training.cases import (
    batch_of,
    config_of,
    empty_text,
    geometry_of,
    make_case,
    model_on,
    torch_loss,
)
from wan_tpu.errors import InputError
from wan_tpu.training.config import EmbeddingConfig, ModelConfig, OptimiserConfig
from wan_tpu.training.embedding import KEPT_SIZE, VECTORS
from wan_tpu.training.trainer import Trainer

CAPTIONS = (
    "a zork moving left on a black background",
    "a red zork circle",
    "a red circle moving up on a gray background",
    "zork zork",
)
STEP = 5


def embedding_of(kind="input", **fields):
    return EmbeddingConfig(
        **{"word": "zork", "vectors": 3, "start": "red circle", "kind": kind, **fields}
    )


def batch_with_captions(model):
    batch = batch_of(model, geometry_of(model))
    return dataclasses.replace(batch, captions=CAPTIONS)


@pytest.fixture(scope="module")
def t2v(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("t2v"))


@pytest.fixture(scope="module")
def original_encoder(t2v):
    return UMT5EncoderModel.from_pretrained(t2v.folder / "text_encoder").eval()


def torch_text(original, tokens, vectors, kind):
    """What the text encoder of transformers makes of the captions, `vectors` in their places."""
    ids, mask, slots = (torch.from_numpy(np.array(x)).long() for x in tokens)
    rows = original.get_input_embeddings().weight
    table = torch.cat([rows, vectors]) if kind == "input" else rows
    hidden = original(inputs_embeds=table[ids], attention_mask=mask).last_hidden_state
    hidden = hidden * mask[:, :, None]
    if kind == "output":
        hidden = torch.where((slots >= 0)[:, :, None], vectors[slots.clamp(min=0)], hidden)
    return hidden


@pytest.mark.parametrize(("kind", "layout"), [("input", "dp2-sp2-tp2"), ("output", "single")])
def test_the_vectors_have_torchs_gradient(t2v, original_encoder, kind, layout):
    """Through transformer and text encoder; samples without a caption have none."""
    model = model_on(t2v.folder, layout)
    trainer = Trainer(config_of("embedding", embedding=embedding_of(kind)), model)
    states, batch = trainer.load(), batch_with_captions(model)
    inputs = trainer.inputs("transformer", batch, STEP, empty_text(model))
    program = trainer.step.gradients_stage(batch.geometry).compile()
    trained = states["embedding"].trained
    loss, gradients = program(trained, inputs)
    vectors = torch.tensor(np.asarray(trained[VECTORS]), requires_grad=True)
    tokens = trainer.step.trained.tokens(CAPTIONS)
    text = torch_text(original_encoder, tokens, vectors, kind)
    expected = torch_loss(t2v.original, trainer, batch, STEP, empty_text(model), text)
    (gradient,) = torch.autograd.grad(expected, [vectors])
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert gradients.keys() == {VECTORS}
    norms = np.linalg.norm(gradient.numpy(), axis=1)
    assert norms.min() > 1e-7
    error = np.linalg.norm(np.asarray(gradients[VECTORS]) - gradient.numpy(), axis=1) / norms
    assert error.max() <= GRADIENT


def test_steps_move_the_vectors_and_nothing_else(t2v):
    """The optimiser holds them alone, and their size is the one that they began with."""
    model = model_on(t2v.folder, "single")
    optimiser = OptimiserConfig(learning_rate=0.01)
    config = config_of("embedding", embedding=embedding_of(keeps_norm=True), optimiser=optimiser)
    trainer = Trainer(config, model)
    states, batch = trainer.load(), batch_with_captions(model)
    before = {name: np.array(x) for name, x in trainer.frozen("transformer").items()}
    start = np.array(states["embedding"].trained[VECTORS])
    assert {x.shape for x in jax.tree.leaves(states) if x.ndim} == {start.shape}
    assert "shared.weight" in before
    assert "blocks.*.attn2.to_k.weight" in before
    for step in range(3):
        states, metrics = trainer.run(states, batch, step, empty_text(model))
        assert np.isfinite(float(metrics.loss))
    for name, array in trainer.frozen("transformer").items():
        np.testing.assert_array_equal(np.array(array), before[name], err_msg=name)
    moved = np.array(states["embedding"].trained[VECTORS])
    assert (moved != start).all()
    size = before[KEPT_SIZE]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), size, rtol=1e-6)
    # Three steps of Adam move a number by some 0.03, and the norm makes up for their length.
    direction = start * size / np.linalg.norm(start, axis=1, keepdims=True)
    assert np.abs(moved - direction).max() < 0.1


def test_vectors_without_a_gradient_stay(t2v):
    """They are not decayed, whatever the configuration says."""
    model = model_on(t2v.folder, "single")
    optimiser = OptimiserConfig(learning_rate=0.1, weight_decay=1.0)
    config = config_of("embedding", embedding=embedding_of(), optimiser=optimiser)
    rule = Trainer(config, model).step.optimiser
    vectors = {VECTORS: jnp.ones((3, 40))}
    state, _ = rule.update(rule.start(vectors), {VECTORS: jnp.zeros((3, 40))}, jnp.int32(0))
    np.testing.assert_array_equal(state.trained[VECTORS], 1)


def test_captions_without_the_word(t2v, caplog):
    """Some are told of; where all are, there is nothing to learn."""
    model = model_on(t2v.folder, "single")
    trained = Trainer(config_of("embedding", embedding=embedding_of()), model).step.trained
    with caplog.at_level(logging.WARNING):
        trained.check_captions(["a zork", "embedding:zork &amp; more"])
        trained.check_captions(CAPTIONS)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 4 captions do not hold the word 'zork' and teach nothing; the first is "
        "'a red circle moving up on a gray background'"
    ]
    with pytest.raises(InputError, match="no caption of the data holds the word 'zork', so"):
        trained.check_captions(["a red circle", "a zorky one"])


def test_data_without_captions_is_refused(t2v):
    model = model_on(t2v.folder, "single")
    trainer = Trainer(config_of("embedding", embedding=embedding_of()), model)
    trainer.load()
    batch = batch_of(model, geometry_of(model))
    with pytest.raises(InputError, match="no captions beside its embeddings"):
        trainer.inputs("transformer", batch, 0, empty_text(model))


def test_a_word_that_cannot_be_is_refused_before_anything_is_read(t2v):
    model = model_on(t2v.folder, "single")
    with pytest.raises(InputError, match="'<zork>' cannot be the word"):
        Trainer(config_of("embedding", embedding=embedding_of(word="<zork>")), model)


def test_both_experts_train_the_same_vectors(tmp_path):
    """One state; the text encoder is on the devices once."""
    make_random_model(tmp_path, "t2v-a14b")
    model = model_on(tmp_path, "single")
    config = config_of("embedding", embedding=embedding_of(), model=ModelConfig(expert="both"))
    trainer = Trainer(config, model)
    assert trainer.load().keys() == {"embedding"}
    high, low = (trainer.frozen(name) for name in ("transformer", "transformer_2"))
    assert high["shared.weight"] is low["shared.weight"]
    assert high["proj_out.weight"] is not low["proj_out.weight"]
