"""Names that a user can choose from besides the attention's, without JAX."""

DTYPES = ("bfloat16", "float32")
"""Of weights and activations."""

VAES = ("flax", "maxdiffusion")
"""The keys of `wan_tpu.vae.backends.BACKENDS`."""

VAES_THAT_ENCODE = ("flax",)
"""Those of `VAES` that a request with pictures can use."""
