"""The engine around the library's pipeline: what it refuses, and what its failures are called."""

import pytest

from server.engine.failure import Failure
from server.engine.pipeline import PipelineEngine
from server.settings import Settings
from wan_tpu import errors, runtime


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OutOfMemoryError("out of memory: 832x480, 81 frames"), Failure.OUT_OF_MEMORY),
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (errors.Cancelled("cancelled"), Failure.CANCELLED),
        (errors.GeometryError("too wide"), Failure.INVALID_REQUEST),
        (errors.BadNumbersError("step 3"), Failure.BAD_NUMBERS),
        (errors.CheckpointError("damaged"), Failure.ENGINE_ERROR),
        (errors.AdapterError("unknown adapter 'fox'"), Failure.ADAPTER_LOST),
        (ValueError("ours"), Failure.ENGINE_ERROR),
    ],
)
def test_failures_have_the_words_that_clients_get(error, code):
    assert PipelineEngine(Settings()).failure_of(error) is code


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "wan-huge"}, "unknown model 'wan-huge'"),
        ({"warm_up": ("4096x4096x17",)}, "the model knows 128 positions"),
    ],
)
def test_what_cannot_be_is_refused_before_jax_starts(monkeypatch, settings, words):
    """Red when the engine loads first and checks later."""

    def start(**_):
        raise AssertionError("JAX was started")

    monkeypatch.setattr(runtime, "start", start)
    with pytest.raises(errors.InputError, match=words):
        PipelineEngine(Settings(**settings)).start()
