"""Training runs on our own kernels: the whole model's gradients through them are torch's."""

import pytest

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
from tests.training.test_gradients import gradients_of, relative_to_norm
from wan_tpu.training.trainer import Trainer


@pytest.mark.parametrize("layout", [pytest.param("single", marks=pytest.mark.slow), "dp2-sp2-tp2"])
def test_gradients_through_the_kernels_are_torchs(tmp_path, layout):
    """Flash attention to itself and to text, norm and rotation; tokens and heads padded.

    Red when a sum over the mesh is missing or taken twice in the gradient of either kernel.
    """
    case = make_case(tmp_path)
    model = model_on(case.folder, layout, attention="flash")
    trainer = Trainer(config_of("full"), model)
    batch = batch_of(model, geometry_of(model))
    loss, gradients = gradients_of(trainer, trainer.load(), batch)
    expected_loss = torch_loss(case.original, trainer, batch, 5, empty_text(model))
    expected_loss.backward()
    expected = {name: p.grad.numpy() for name, p in case.original.named_parameters()}
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    error, name = relative_to_norm(gradients, expected)
    assert error <= GRADIENT, name
