"""What attention a user can choose, without JAX: help and wrong usage answer at once."""

IMPLEMENTATIONS = ("auto", "reference", "dot_product", "chunked", "splash", "flash")
"""`auto` becomes one of the others; see `wan_tpu.attention.api.resolve_implementation`."""

ATTENTION_OUT, ATTENTION_LOGSUMEXP = "attention_out", "attention_logsumexp"
"""What `jax.checkpoint` policies call what attention's backward needs of its forward."""
