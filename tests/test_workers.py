"""How `make test` shares the tests among its workers."""

import pathlib
import subprocess
import sys
import types

from tests.conftest import LONG_FILES, pytest_collection_modifyitems

ROOT = pathlib.Path(__file__).parents[1]

TESTS = r"""
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(4))
def test_where(number):
    with pathlib.Path(__file__).with_suffix(".workers").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
"""


def test_a_files_tests_run_in_one_worker(tmp_path):
    """What they share would be made again in each. Red with pytest-xdist's `loadgroup`, whose marks
    were without effect: slices of processes started twice."""
    for name in ("first", "second"):
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-n", "2", tmp_path]
    ran = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--rootdir", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    workers = [path.read_text().split() for path in tmp_path.glob("*.workers")]
    assert [len(each) for each in workers] == [4, 4]
    assert all(len(set(each)) == 1 for each in workers)


def test_long_files_are_begun_first(request):
    """And else in the order of the files, within them in that of the tests."""
    tests = pathlib.Path(__file__).parent
    names = ["adapters/test_a.py", "training/test_b.py", "training/test_b.py", "vae/test_a.py"]
    items = [types.SimpleNamespace(path=tests / name, number=n) for n, name in enumerate(names)]
    pytest_collection_modifyitems(request.config, items)
    assert [item.number for item in items] == [1, 2, 3, 0]
    assert all((tests / name).is_dir() for name in LONG_FILES)
