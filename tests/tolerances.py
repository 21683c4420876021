"""Tolerances in one place, and how errors are measured.

float32: 1e-5 on one device is about a hundred roundings deep; a layout reorders sums over devices,
which costs another digit at most (1e-4). bfloat16 keeps 8 bits: 2^-8 = 4e-3 per rounding, and a
chain of roundings adds up to a few per cent.
"""

import numpy as np

PARITY = 1e-5
"""Ours against the original, float32, one device."""

GRADIENT = 5e-5
"""Of a gradient, float32, on any layout against torch autograd: relative to its norm. The backward
pass is about twice as deep as the forward one, and the tokens of all samples are added up in it."""

LAYOUT = 1e-4
"""A layout against one device, or against the original, float32."""

BFLOAT16_GRADIENT = 1e-2
"""Attention's gradients in bfloat16: queries, the result, weights and the scores' gradients are
each rounded to 8 bits, 2^-8 = 4e-3, and so is what comes out: 5e-3 together, twice that allowed."""

INT8 = 0.03
"""A prediction in int8 on a layout against one device's, float32 around it: where sums differ by
1e-7 a number half way between two of 127 steps may go to the other, 1/127 = 8e-3 of its token's
largest away, and the products after it are rounded anew: a few such steps add up. Products of equal
whole numbers are exact, which has tests of its own."""

INT8_COSINE = 0.999
"""A block in int8 against bfloat16, as a cosine: each product is off by some 1/127 of 127 steps'
noise, 1 % of its size at worst, and 1 - 0.01^2 / 2 = 0.99995 a product; ten follow one another."""

INT8_ATTENTION = 0.02
"""A prediction whose attention has scores of 8 bits against the exact one, float32 around it: a
score of standard deviation 1 is off by some 1 %, and so is what a head attends to; gates and the
residual stream make that less. 0.004 to 0.006 measured, whatever the layout."""

INT8_ATTENTION_LAYOUT = 0.06
"""Attention with scores of 8 bits on a layout against one device. Keys are the same whole numbers
on each, but an exponent is rounded to bfloat16 (2^-9 of it, 1 % of a weight 8 powers of two away)
where it stands beside a reference that depends on the block of keys: 0.03 of the largest."""

MERGED = 1e-6
"""Weights with an adapter merged into them, float32: a sum of at most a few dozen products and
three roundings more, in whichever order."""


SIMILARITY = 1e-11
"""Of PSNR and SSIM, float64: moments around zero, of values up to 255^2, keep 13 of a small
variance's digits at worst, and a window adds up 121 of them."""


def relative_error(actual, expected) -> float:
    """Largest absolute difference over the largest absolute expected value; NaN never passes."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def psnr(actual, expected) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; infinite when equal."""
    error = np.mean((np.asarray(actual, np.float64) - np.asarray(expected, np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))
