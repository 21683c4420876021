"""What every test stands on: eight virtual CPU devices, one cache of programs, fixed draws.

`make test` compares like with like and ends the same way every time: hypothesis draws what it drew
the last time, and LLVM's late passes, most of the time of a test that compiles, are left out. The
slow set draws anew and compiles as users do.
"""

import os
import pathlib
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each worker is a process: torch's threads of all of them together wait for each other, spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PJRT_NPROC", "32")  # as `wan_tpu.runtime.give_threads` says why
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask on an ordinary machine
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compile-only processes may share libtpu
# Some hundreds of processes are started, and each would compile our modules for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.internal.constants_ast import Constants

from tests import type_checks

# In the tests' own process alone, and before anything imports one of the packages.
jaxtyping.install_import_hook(type_checks.PACKAGES, "tests.type_checks.check")

# Started in the background, this process ignores Ctrl-C and its children inherit that; the tests of
# Ctrl-C need what a terminal gives.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONG_FILES = ("training", "transformer", "vae")
"""Folders at the end of the alphabet whose files take a minute or two."""

# A machine with other work must not decide what fails, nor what an earlier run has found.
settings.register_profile(
    "fresh", database=None, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("fixed", settings.get_profile("fresh"), derandomize=True)


def runs_slow_tests(config: pytest.Config) -> bool:
    """Whether `-m` was given: `make test` takes pyproject's."""
    return config.getoption("markexpr") != "not slow"


def pytest_configure(config):
    """Chooses the draws and how programs are compiled; makes the run's folder."""
    if runs_slow_tests(config):
        settings.load_profile("fresh")
    else:
        settings.load_profile("fixed")
        # It also draws the constants of whichever modules of ours are imported: with them a test
        # would depend on the tests that this process happened to run before.
        HypothesisProvider._local_constants = Constants()
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
        jax.config.update("jax_disable_most_optimizations", True)
    if not hasattr(config, "workerinput"):  # xdist's workers inherit the environment
        share_compiled_programs(config)


def share_compiled_programs(config: pytest.Config) -> None:
    """Gives the processes that this run's tests start one empty cache folder.

    Never the user's: programs of an earlier run could hide that they cannot be made any more.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="wan-tpu-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["XDG_CACHE_HOME"] = str(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are cores: a quarter of the time goes by with waiting for servers."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Long files first: what one worker does in the end, while the others have nothing, is short.

    In the slow set every property is tried on fresh draws, too.
    """
    items.sort(key=lambda item: item.path.parent.name not in LONG_FILES)
    if runs_slow_tests(config):
        for item in items:
            if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
                item.add_marker("slow")


@pytest.fixture(scope="session")
def devices():
    """The eight devices that sharding tests need."""
    found = jax.devices()
    assert len(found) == 8, f"sharding tests need 8 virtual devices, found {len(found)}"
    return found


@pytest.fixture
def compiled_as_users_do():
    """All of LLVM's passes for this test's programs."""
    quick = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture
def heeds_hangups():
    """SIGHUP ends the processes of this test, though the tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
