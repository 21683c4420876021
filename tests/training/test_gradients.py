"""Gradients on a mesh against torch autograd through diffusers' transformer."""

import copy

import numpy as np
import pytest
import torch

from tests.tolerances import GRADIENT
from tests.training.cases import (
    as_tensors,
    batch_of,
    config_of,
    empty_text,
    geometry_of,
    make_case,
    model_on,
    torch_loss,
)
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.training.config import DataConfig, LoraConfig, MachineConfig, ModelConfig
from wan_tpu.training.trainer import Trainer

LAYOUTS = ["single", "dp2-sp2-tp2", "sp8", "tp8"]


def layouts(*ordinary):
    """All of them; those not named are slow. Each is ordinary for one kind of training."""
    return [
        layout if layout in ordinary else pytest.param(layout, marks=pytest.mark.slow)
        for layout in LAYOUTS
    ]


@pytest.fixture(scope="module")
def t2v(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("t2v"))


def gradients_of(trainer, states, batch, step=5):
    """Loss and gradients of a step in the checkpoint's order."""
    expert = trainer.expert_of(step)
    inputs = trainer.inputs(expert, batch, step, empty_text(trainer.model))
    program = trainer.step.gradients_stage(batch.geometry).compile()
    loss, gradients = program(states[expert].trained, inputs)
    return float(loss), as_tensors(trainer.step.trained.weights(), gradients)


def relative_to_norm(actual, expected):
    """The worst difference's norm over the norm of its gradient."""
    worst = {}
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        norm = np.linalg.norm(value)
        worst[name] = np.linalg.norm(actual[name] - value) / max(norm, 1e-6)
    return max(worst.values()), max(worst, key=worst.get)


@pytest.mark.parametrize("layout", layouts("sp8", "tp8"))
def test_full_training_has_torchs_gradients(t2v, layout):
    model = model_on(t2v.folder, layout)
    trainer = Trainer(config_of("full", machine=MachineConfig(remat="full")), model)
    batch = batch_of(model, geometry_of(model))
    loss, gradients = gradients_of(trainer, trainer.load(), batch)
    original = t2v.original.train(False)
    original.zero_grad()
    expected_loss = torch_loss(original, trainer, batch, 5, empty_text(model))
    expected_loss.backward()
    expected = {name: p.grad.numpy() for name, p in original.named_parameters()}
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    error, name = relative_to_norm(gradients, expected)
    assert error <= GRADIENT, name


def test_padding_gets_no_gradient(t2v):
    """Three heads of eight on tp8, and a feed-forward width that 8 does not divide."""
    model = model_on(t2v.folder, "tp8")
    trainer = Trainer(config_of("full", machine=MachineConfig(remat="full")), model)
    states = trainer.load()
    inputs = trainer.inputs(
        "transformer", batch_of(model, geometry_of(model)), 0, empty_text(model)
    )
    program = trainer.step.gradients_stage(geometry_of(model)).compile()
    _, gradients = program(states["transformer"].trained, inputs)
    padded = 0
    for weight in trainer.step.trained.weights():
        gradient = np.asarray(gradients[weight.name])
        for dim, rows in weight.rows.items():
            padding = np.take(gradient, np.flatnonzero(rows == -1), axis=dim + weight.stacked)
            assert not padding.any(), weight.name
            padded += padding.size
    assert padded > 0


@pytest.mark.parametrize("layout", layouts("single", "dp2-sp2-tp2"))
def test_lora_has_the_gradients_that_follow_from_torchs(t2v, layout):
    """Of W + s B A: dB = s dW A^T and dA = s B^T dW, dW being torch's at the merged weights."""
    model = model_on(t2v.folder, layout)
    machine = MachineConfig(remat="attention")
    config = config_of("lora", lora=LoraConfig(rank=3, alpha=6.0), machine=machine)
    trainer = Trainer(config, model)
    states = trainer.load()
    weights = trainer.step.trained.weights()
    factors = random_factors(weights)
    state = states["transformer"]
    arrays = load_weights("lora", weights, ArraySource(factors), model.mesh)
    states["transformer"] = state._replace(trained=arrays)
    batch = batch_of(model, geometry_of(model))
    loss, gradients = gradients_of(trainer, states, batch)

    original = copy.deepcopy(t2v.original)
    targets = {name.removesuffix(".lora_A.weight") for name in factors if "lora_A" in name}
    pairs = {t: (factors[f"{t}.lora_A.weight"], factors[f"{t}.lora_B.weight"]) for t in targets}
    assert len(pairs) == 10 * 3
    for target, (down, up) in pairs.items():
        linear = original.get_submodule(target)
        linear.weight.data += 2.0 * torch.from_numpy(up @ down)
    expected_loss = torch_loss(original, trainer, batch, 5, empty_text(model))
    expected_loss.backward()
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    expected = {}
    for target, (down, up) in pairs.items():
        whole = original.get_submodule(target).weight.grad.numpy()
        expected[f"{target}.lora_A.weight"] = 2.0 * up.T @ whole
        expected[f"{target}.lora_B.weight"] = 2.0 * whole @ down.T
    error, name = relative_to_norm(gradients, expected)
    assert error <= GRADIENT, name


def random_factors(weights):
    """B is not zero, as it is after a while."""
    numbers = np.random.default_rng(7)
    return {
        tensor: (0.1 * numbers.normal(size=weight.tensor_shape)).astype(np.float32)
        for weight in weights
        for tensor in weight.tensors
    }


@pytest.mark.parametrize(
    "kind", [pytest.param("i2v", marks=pytest.mark.slow), "flf2v", "i2v-a14b", "ti2v"]
)
def test_pictures_enter_training_as_they_enter_a_video(tmp_path, kind):
    """Channels and image tokens; a first frame that is given to some samples, and not counted."""
    case = make_case(tmp_path, kind)
    model = model_on(case.folder, "dp2-sp2-tp2")
    data = DataConfig(caption_dropout=0.3, image_probability=0.5 if kind == "ti2v" else 0.0)
    expert = ModelConfig(expert="high" if "a14b" in kind else None)
    trainer = Trainer(config_of("full", data=data, model=expert), model)
    geometry = geometry_of(model, width=64, height=64) if kind == "ti2v" else geometry_of(model)
    batch = batch_of(model, geometry)
    loss, gradients = gradients_of(trainer, trainer.load(), batch)
    case.original.zero_grad()
    expected_loss = torch_loss(case.original, trainer, batch, 5, empty_text(model))
    expected_loss.backward()
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    expected = {name: p.grad.numpy() for name, p in case.original.named_parameters()}
    error, name = relative_to_norm(gradients, expected)
    assert error <= GRADIENT, name
