"""The shapes that are known without JAX are those of the models."""

import pytest

from wan_tpu.adapters.known_shapes import transformer_shapes
from wan_tpu.checkpoints.known import KNOWN_MODELS, embedded_folders
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.checkpoints.weights import expected_tensors
from wan_tpu.sharding.layout import Layout
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.weights import denoiser_weights


@pytest.mark.parametrize("name", [*embedded_folders(), *KNOWN_MODELS])
def test_every_tensor_of_a_model(name):
    """Red when a name or a size is another than what is loaded."""
    config = describe_model(name).configs["transformer"]
    weights = denoiser_weights(TransformerConfig.from_json(config), Layout(), "float32")
    assert transformer_shapes(config) == expected_tensors(weights)
