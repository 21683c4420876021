"""A model as training places it, on slices that are not here."""

import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.training.config import MachineConfig, ModelConfig, TrainingConfig
from wan_tpu.training.place import place_for_training


@pytest.mark.parametrize(
    ("where", "attention", "expected"),
    [("v6e-4", "auto", "flash"), ("v5p-8", "auto", "splash"), ("v5p-8", "flash", "flash")],
)
def test_attention_goes_by_its_gradient(where, attention, expected):
    """Red when a v5p trains with the kernel that makes videos there: its gradient is slower."""
    name = "wan2.1-t2v-1.3b"
    config = TrainingConfig(
        model=ModelConfig(name=name), machine=MachineConfig(attention=attention)
    )
    devices = slice_devices(find_slice(where))
    model = place_for_training(config, describe_model(name), devices)
    assert model.denoiser.setting.implementation == expected
