"""How annotations are checked at run time: what `conftest.py` tells jaxtyping's import hook."""

from beartype import BeartypeConf, beartype

PACKAGES = [
    "wan_tpu.attention",
    "wan_tpu.image",
    "wan_tpu.int8",
    "wan_tpu.schedulers",
    "wan_tpu.text",
    "wan_tpu.transformer",
    "wan_tpu.torch_module",
    "wan_tpu.vae",
]
"""Where every call is held to its annotations, shapes of arrays included."""

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int serves as a float, as type checkers have it."""
