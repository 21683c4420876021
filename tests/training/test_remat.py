"""What a backward pass finds kept, by the policy that a configuration names."""

import collections

import jax
import pytest

from tests.training.cases import batch_of, config_of, empty_text, geometry_of, make_case, model_on
from wan_tpu.training.config import MachineConfig
from wan_tpu.training.trainer import Trainer

# Three layers, four samples of 18 tokens, three heads of 24.
BLOCK_INPUTS, RESULTS, LOGSUMEXPS = (3, 4, 18, 72), (3, 4, 18, 3, 24), (3, 4, 3, 18)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """How many arrays of each shape a policy keeps of a step of LoRA."""
    folder = make_case(tmp_path_factory.mktemp("t2v")).folder

    def of(remat, attention="chunked"):
        model = model_on(folder, "single", attention)
        trainer = Trainer(config_of("lora", machine=MachineConfig(remat=remat)), model)
        geometry = geometry_of(model)
        batch = batch_of(model, geometry)
        states = trainer.load()
        inputs = trainer.inputs("transformer", batch, 0, empty_text(model))

        def backward(trained):
            return jax.vjp(lambda t: trainer.step.loss(t, inputs, 0, geometry)[0], trained)[1]

        arrays = jax.tree.leaves(jax.eval_shape(backward, states["transformer"].trained))
        return collections.Counter(x.shape for x in arrays)

    return of


def test_full_keeps_the_blocks_inputs_alone(kept):
    found = kept("full")
    assert found[BLOCK_INPUTS] == 1
    assert not found[RESULTS]
    assert not found[LOGSUMEXPS]


def test_attention_keeps_self_attention_s_result_and_not_cross_attention_s(kept):
    """Red when the policy finds cross-attention's, too: there would be two of each."""
    found = kept("attention")
    assert found[BLOCK_INPUTS] == found[RESULTS] == found[LOGSUMEXPS] == 1


def test_none_keeps_both(kept):
    assert kept("none")[LOGSUMEXPS] == 2
