"""Lines of a log, for tests."""

from wan_tpu.training.metrics import Step


def step_line(step, *, steps=10, loss=0.5, seconds=2.0, **others):
    """A line of one step."""
    values = {
        "step": step, "steps": steps, "time": 1000.0 + step, "loss": loss,
        "loss_by_sigma": {"0.2-0.4": loss}, "loss_by_expert": {}, "gradient_norm": 0.25,
        "learning_rate": 1e-4, "seconds": seconds, "samples_per_second": 4.0,
        "tokens_per_second": 26_214.0, "mfu": 0.35, "epoch": step / 4,
    }  # fmt: skip
    return Step(**(values | others))
