"""What a backward pass finds kept, by the policy that a configuration names."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import GRADIENT
from tests.training.cases import batch_of, config_of, empty_text, geometry_of, make_case, model_on
from wan_tpu.training.config import MachineConfig
from wan_tpu.training.trainer import Trainer
from wan_tpu.transformer import processors

# Three layers, four samples, three heads of 24.
SHORT, LONG = 18, 5120  # tokens


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("t2v"))


def step_of(case, remat, tokens=SHORT):
    """The trainer, what is trained, and what a step takes besides."""
    model = model_on(case.folder, "single", "chunked")
    trainer = Trainer(config_of("lora", machine=MachineConfig(remat=remat)), model)
    size = {} if tokens == SHORT else {"width": 512, "height": 512, "num_frames": 17}
    geometry = geometry_of(model, **size)
    assert geometry.num_tokens == tokens
    batch = batch_of(model, geometry)
    states = trainer.load()
    inputs = trainer.inputs("transformer", batch, 0, empty_text(model))
    return trainer, states["transformer"].trained, inputs, geometry


@pytest.fixture(scope="module")
def kept(case):
    """How many arrays of each shape a policy keeps of a step of LoRA."""

    def of(remat, tokens):
        trainer, trained, inputs, geometry = step_of(case, remat, tokens)

        part = jnp.zeros((), jnp.int32)

        def backward(trained):
            return jax.vjp(lambda t: trainer.step.loss(t, inputs, part, geometry)[0], trained)[1]

        arrays = jax.tree.leaves(jax.eval_shape(backward, trained))
        found = collections.Counter(x.shape for x in arrays)
        return {
            "inputs": found[(3, 4, tokens, 72)],
            "results": found[(3, 4, tokens, 3, 24)],
            "logsumexps": found[(3, 4, 3, tokens)],
        }

    return of


def test_full_keeps_the_blocks_inputs_alone(kept):
    assert kept("full", SHORT) == {"inputs": 1, "results": 0, "logsumexps": 0}


def test_attention_keeps_self_attention_s_result_and_not_cross_attention_s(kept):
    """Red when the policy finds cross-attention's, too: there would be two of each."""
    assert kept("attention", LONG) == {"inputs": 1, "results": 1, "logsumexps": 1}


def test_attention_keeps_both_of_a_short_video(kept):
    """512 keys of 18 tokens are most of the work."""
    found = kept("attention", SHORT)
    assert (found["inputs"], found["logsumexps"]) == (1, 2)


def test_none_keeps_both(kept):
    assert kept("none", SHORT)["logsumexps"] == 2


def test_what_is_computed_again_has_the_same_gradients(case, monkeypatch):
    def gradients():
        trainer, trained, inputs, geometry = step_of(case, "attention")
        program = trainer.step.gradients_stage(geometry).compile()
        return program(trained, inputs)

    loss, kept = gradients()
    monkeypatch.setattr(processors, "TOKENS_A_KEY", 0)  # any keys are few
    again_loss, again = gradients()
    assert float(loss) == float(again_loss)
    for name, gradient in kept.items():
        norm = np.linalg.norm(gradient)
        assert np.linalg.norm(np.asarray(again[name]) - gradient) <= GRADIENT * max(norm, 1e-6)
