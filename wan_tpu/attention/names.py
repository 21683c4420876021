"""What attention a user can choose, without JAX: help and wrong usage answer at once."""

FLASH, FLASH_INT8 = "flash", "flash-int8"

IMPLEMENTATIONS = ("auto", "reference", "dot_product", "chunked", "splash", FLASH, FLASH_INT8)
"""`auto` becomes one of the others; see `wan_tpu.attention.resolve.resolve_implementation`."""

TOKEN_MAJOR = (FLASH, FLASH_INT8)
"""Those that take tokens as the products around them leave them: our own kernels."""

EXACT_INSTEAD = {FLASH_INT8: FLASH}
"""What takes the place of one that is not exact, where it must be."""

ATTENTION_OUT, ATTENTION_LOGSUMEXP = "attention_out", "attention_logsumexp"
"""What `jax.checkpoint` policies call what attention's backward needs of its forward."""
