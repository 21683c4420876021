"""Eight virtual CPU devices for every test; set before JAX starts."""

import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask on an ordinary machine
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compile-only processes may share libtpu
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

# Started in the background, this process ignores Ctrl-C and its children inherit that; the tests of
# Ctrl-C need what a terminal gives.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def devices():
    """The eight devices that sharding tests need."""
    found = jax.devices()
    assert len(found) == 8, f"sharding tests need 8 virtual devices, found {len(found)}"
    return found
