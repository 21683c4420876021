"""How an entry point starts JAX, in processes of their own."""

import os
import subprocess
import sys

import pytest

from wan_tpu import runtime


def run(code: str, **environment: str) -> str:
    keep = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=keep | environment,
        check=True,
    )
    return done.stdout.strip() + done.stderr


def test_virtual_devices():
    code = """
from wan_tpu import runtime
runtime.start(host_devices=3)
import jax
print(len(jax.devices()), jax.devices()[0].platform)"""
    assert run(code) == "3 cpu"


def test_without_an_accelerator_libtpu_stays_quiet():
    """Red when JAX looks for a TPU: libtpu, a test dependency, then prints errors."""
    code = """
from wan_tpu import runtime
runtime.start()
import jax
print(jax.devices()[0].platform)"""
    assert run(code) == "cpu"


def test_programs_are_kept(tmp_path):
    code = f"""
import pathlib
from wan_tpu import runtime
runtime.start(cache_folder=pathlib.Path({str(tmp_path)!r}) / "new")
import jax
jax.jit(lambda x: x + 1)(1.0)"""
    run(code)
    assert list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("file", "is_one"),
    [
        ("dev/accel0", True),
        ("dev/vfio/3", True),
        ("dev/nvidia0", True),
        ("dev/kfd", True),
        ("dev/dxg", True),
        ("dev/nvidiactl", False),
        ("dev/vfio/vfio", False),
        ("dev/tty0", False),
    ],
)
def test_an_accelerator_is_seen_by_its_file(tmp_path, file, is_one):
    """Red when a kind of accelerator is left out: JAX would be held to the CPU beside it."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert runtime.accelerator_present(tmp_path) == is_one
