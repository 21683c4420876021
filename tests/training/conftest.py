"""One cache of programs for the trainings of a worker: many of them are of the same program."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="package", autouse=True)
def kept_programs(tmp_path_factory):
    """Programs that took a second to compile are read the next time; of this process alone."""
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
