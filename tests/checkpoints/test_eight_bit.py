"""fp8 weights times their scales, one for all rows or one for each."""

import ml_dtypes
import numpy as np
import pytest

from wan_tpu.checkpoints.eight_bit import as_weights
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.errors import CheckpointError

FP8 = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
NUMBERS = np.arange(-12, 12, dtype=np.float32).reshape(4, 6)
PER_ROW = np.array([0.5, 0.25, 2.0, 0.125], np.float32)


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("name", ["q.scale_weight", "q.weight_scale"])
@pytest.mark.parametrize(
    "scale", [np.float32(0.3), np.full(1, 0.3, np.float32), PER_ROW, PER_ROW[:, None]]
)
def test_weights_are_products_in_float32(kind, name, scale):
    stored = NUMBERS.astype(FP8[kind])
    source = as_weights(ArraySource({"q.weight": stored, name: np.asarray(scale)}))
    whole = stored.astype(np.float32) * (scale if np.ndim(scale) != 1 else scale[:, None])
    assert dict(source.shapes) == {"q.weight": (4, 6)}
    assert source.dtypes["q.weight"] == "F32"
    np.testing.assert_array_equal(source.read("q.weight"), whole)
    part = source.read("q.weight", (slice(1, 3), slice(2, 5)))
    np.testing.assert_array_equal(part, whole[1:3, 2:5])


def test_what_belongs_to_arithmetic_in_fp8_is_left_out():
    arrays = {
        "q.weight": NUMBERS.astype(FP8["e4m3"]),
        "q.scale_weight": np.float32(2).reshape(()),
        "q.scale_input": np.ones((), np.float32),
        "k.weight": NUMBERS,
        "model.scaled_fp8": np.zeros(2, FP8["e4m3"]),
        "spiece_model": np.zeros(9, np.uint8),
    }
    source = as_weights(ArraySource(arrays))
    assert set(source.shapes) == {"q.weight", "k.weight"}
    np.testing.assert_array_equal(source.read("k.weight"), NUMBERS)


def test_plain_fp8_is_read_as_it_stands_and_said(caplog):
    stored = NUMBERS.astype(FP8["e4m3"])
    source = as_weights(ArraySource({"q.weight": stored, "q.bias": NUMBERS[0]}, "kijai"))
    np.testing.assert_array_equal(source.read("q.weight").astype(np.float32), NUMBERS)
    assert "kijai: 1 tensors are fp8 without scales, read as they stand" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"q.scale_weight": np.ones(1)}, "q.scale_weight is the scale of no weight"),
        ({"q.weight": NUMBERS.astype(np.int8)}, "q.weight is I8, and only BF16"),
        ({"q.weight": NUMBERS.astype(np.uint8)}, "q.weight is U8, and only BF16"),
        ({"q.weight": NUMBERS.astype(np.int64)}, "q.weight is I64, and only BF16"),
        ({"q.weight": NUMBERS > 0}, "q.weight is BOOL, and only BF16"),
        ({"q.weight": (448 * NUMBERS).astype(FP8["e5m2"])}, "values up to 5120, which only scales"),
        (
            {"q.weight": NUMBERS, "q.scale_weight": np.ones(1), "q.weight_scale": np.ones(1)},
            "q.weight has two scales",
        ),
        ({"q.comfy_quant": np.zeros(3, np.uint8)}, "tells of the form None"),
    ],
)
def test_what_cannot_be_read_is_named(arrays, message):
    with pytest.raises(CheckpointError, match=message):
        as_weights(ArraySource(arrays))
