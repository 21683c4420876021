"""Who knows the planner, and what the planner knows of the pipeline."""

import ast
import pathlib
import subprocess
import sys

import pytest

import benchmarks
import server
import wan_tpu
from wan_tpu import planner

LIBRARY, SERVICE, BENCHMARKS = (
    pathlib.Path(package.__path__[0]) for package in (wan_tpu, server, benchmarks)
)
PLANNER = LIBRARY / "planner"


def imports(path):
    """(module, name) of every import from our own packages; the name of a whole module is empty."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                is_module = (LIBRARY.parent / module.replace(".", "/")).with_suffix(".py").exists()
                is_package = (LIBRARY.parent / module.replace(".", "/")).is_dir()
                yield (module, "") if is_module or is_package else (node.module, alias.name)


def outsiders():
    for root in (LIBRARY, SERVICE, BENCHMARKS):
        yield from (path for path in root.rglob("*.py") if PLANNER not in path.parents)


def test_commands_and_the_benchmarks_alone_know_the_planner():
    """Red when, for example, the pipeline or the server imports it."""
    knowing = {
        str(path.relative_to(LIBRARY.parent))
        for path in outsiders()
        for module, _ in imports(path)
        if module.startswith("wan_tpu.planner")
    }
    assert knowing == {
        "wan_tpu/cli/plan.py",
        "wan_tpu/cli/train_plan.py",
        "wan_tpu/cli/train_run.py",  # a device's peak, for MFU
        "benchmarks/calibration.py",
        "benchmarks/layouts.py",
        "benchmarks/together.py",
    }


def test_they_know_its_public_names_alone():
    """Red for `from wan_tpu.planner.hardware import Chip`."""
    wrong = [
        f"{path.name}: {module} {name}"
        for path in outsiders()
        for module, name in imports(path)
        if module.startswith("wan_tpu.planner")
        if module != "wan_tpu.planner" or name not in ("", *planner.__all__)
    ]
    assert not wrong, wrong


def test_the_planner_knows_public_names_alone():
    """Of the pipeline and everything else of ours, attributes included: no `model._stage(...)`."""
    wrong = []
    for path in PLANNER.glob("*.py"):
        wrong += [
            f"{path.name}: {module} {name}"
            for module, name in imports(path)
            if module.startswith("wan_tpu") and name.startswith("_")
        ]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if not own and not node.attr.startswith("__"):
                wrong.append(f"{path.name}: {ast.unparse(node)}")
    assert not wrong, wrong


@pytest.mark.parametrize("name", planner.__all__)
def test_every_public_name_is_there(name):
    assert getattr(planner, name) is not None


def test_another_name_is_not():
    with pytest.raises(AttributeError, match="no attribute 'read_program'"):
        planner.read_program  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_door_opens_without_jax():
    code = "import sys; from wan_tpu.planner import find_slice; find_slice('v6e-8')"
    code += "; print([m for m in ('jax', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
