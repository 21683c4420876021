"""What a run has chosen, for its log."""

from collections.abc import Mapping

import jax
import numpy as np

from wan_tpu.training.trainer import Trainer


def settings_of(trainer: Trainer) -> Mapping[str, object]:
    """What was chosen, for the log: where a default or a fallback ran, it stands here."""
    model, step = trainer.model, trainer.step
    return {
        "model": model.description.name,
        "layout": str(model.layout),
        "weights": model.layout.weights,
        "attention": step.denoiser.setting.implementation,
        "dtype": str(np.dtype(model.dtype)),
        "remat": trainer.config.machine.remat,
        "experts": list(trainer.experts),
        "devices": f"{model.mesh.size} x {model.mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "trained_parameters": sum(
            int(np.prod(w.tensor_shape)) * len(w.tensors) for w in step.trained.weights()
        ),
    }
