"""Text to video with the Wan diffusion models on TPU slices.

The public names live in the modules; this package imports nothing, so that `import wan_tpu` is
free and a server can validate requests (`wan_tpu.geometry`, `wan_tpu.request`) without JAX.
"""

__version__ = "0.1.0"
