"""What `wan_tpu` itself exports: the list, that it is all of it, and that it costs nothing."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import wan_tpu
from wan_tpu import errors

README = pathlib.Path(wan_tpu.__file__).parent.parent / "README.md"
HEAVY = ("jax", "torch", "flax", "numpy")


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def declared_for_type_checkers():
    """(name, module) of every import under `if TYPE_CHECKING`."""
    tree = ast.parse(pathlib.Path(wan_tpu.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_every_name_is_that_of_the_module_that_type_checkers_are_told():
    """Red when a name stands in one of the lists and not in the others, or elsewhere."""
    declared = declared_for_type_checkers()
    assert sorted(declared) == sorted(wan_tpu.__all__)
    for name, module in declared.items():
        assert getattr(wan_tpu, name) is getattr(importlib.import_module(module), name)
    assert set(wan_tpu.__all__) <= set(dir(wan_tpu))


def test_every_error_is_public():
    """Red when an error is added to the tree and not to the public names."""
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.WanTpuError)
    }
    assert tree <= set(wan_tpu.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'TextToImage'"):
        _ = wan_tpu.TextToImage


def test_importing_the_package_loads_nothing():
    code = f"import sys, wan_tpu; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_requests_layouts_and_options_need_no_jax():
    names = "VideoRequest, Layout, LoadOptions, Progress, WanTpuError, describe_model, make_request"
    code = f"import sys; from wan_tpu import {names}; "
    code += "print([m for m in ('jax', 'torch') if m in sys.modules])"
    assert run_python(code) == "[]"


def test_the_readme_imports_from_the_package_itself():
    """Red when README's Python, whose every line of import runs here, names an inner module."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    imports = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wan_tpu")
    ]
    assert imports
    for node in imports:
        assert node.module == "wan_tpu"
        assert {alias.name for alias in node.names} <= set(wan_tpu.__all__)
