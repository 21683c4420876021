"""Names that a user can choose from besides the attention's, without JAX."""

from wan_tpu.errors import UnknownNameError

DTYPES = ("bfloat16", "float32")
"""Of weights and activations."""

QUANTIZE = ("int8",)
"""What weights and products of a transformer's blocks can be instead of `DTYPES`."""

VAES = ("flax", "maxdiffusion")
"""The keys of `wan_tpu.vae.backends.BACKENDS`."""

VAES_THAT_ENCODE = ("flax",)
"""Those of `VAES` that a request with pictures can use."""


def check_quantize(name: str | None) -> str | None:
    """The name itself; None is not to quantise.

    Raises:
        UnknownNameError: it is not one of `QUANTIZE`.
    """
    if name is not None and name not in QUANTIZE:
        raise UnknownNameError("quantization", name, QUANTIZE)
    return name
