"""requirements/*.txt: exact, hashed, in keeping with pyproject.toml, and what runs here."""

import importlib.metadata
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    "library": (),
    "server": ("server",),
    "train": ("train",),
    "slice": ("server", "postgres", "train", "tpu"),
    "fleet": ("fleet", "train", "tpu"),
    "fleet-demo": ("fleet-demo",),
    "cuda": ("server", "train", "cuda"),
    "dev": ("dev", "tpu"),
}
"""The extras that `make lock` puts into each list."""

PYTHONS = ("3.11", "3.12")
INSTALLERS = ("Makefile", "deploy/worker.sh", ".ci/run")


def read_list(name: str) -> dict[str, tuple[Requirement, int]]:
    """The requirements of a list by name, each with the number of its hashes."""
    text = (FOLDER / f"{name}.txt").read_text()
    lines = re.sub(r"\\\n", "", text).splitlines()
    entries = {}
    for line in lines:
        if line and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line)
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), line
            parsed = Requirement(requirement)
            assert parsed.name not in entries, f"{parsed.name} is there twice"
            entries[canonicalize_name(parsed.name)] = parsed, len(hashes)
    return entries


def version(requirement: Requirement) -> str:
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    assert not pin.version.endswith("*"), requirement
    return pin.version


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for, extras of our own followed."""
    optional = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *(t for e in extras for t in optional[e])]
    found = []
    for requirement in map(Requirement, texts):
        if canonicalize_name(requirement.name) == "wan-tpu":
            found += wanted(tuple(requirement.extras))
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("name", [*EXTRAS, "uv"])
def test_every_version_is_exact_and_has_hashes(name):
    entries = read_list(name)
    assert entries
    for requirement, num_hashes in entries.values():
        assert version(requirement)
        assert requirement.url is None
        assert num_hashes >= 1, requirement


@pytest.mark.parametrize("name", [*EXTRAS, "uv"])
def test_no_list_says_where_packages_come_from(name):
    text = (FOLDER / f"{name}.txt").read_text()
    for line in text.splitlines():
        assert not line.startswith("-"), line
        assert "://" not in line, line


@pytest.mark.parametrize("name", EXTRAS)
def test_torch_stands_apart(name):
    entries = read_list(name)
    assert "torchax" in entries
    assert not {"torch", "triton"} & entries.keys()


@pytest.mark.parametrize("name", EXTRAS)
def test_cuda_comes_where_it_is_asked_for(name):
    """JAX's, of one version: torch stays on the CPU, whatever its build."""
    found = {key for key in read_list(name) if key.startswith(("nvidia", "cuda", "jax-"))}
    if name == "cuda":
        assert {"jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cublas"} <= found
        assert not [key for key in found if "12" in key]
    else:
        assert not found


@pytest.mark.parametrize("name", EXTRAS)
def test_what_torch_needs_is_there(name):
    """It is installed after the list and must find everything at the list's version."""
    entries = read_list(name)
    for text in importlib.metadata.distribution("torch").requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = entries[canonicalize_name(requirement.name)][0]
            assert version(found) in requirement.specifier, requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", EXTRAS)
def test_pyproject_and_the_list_agree(name, python):
    entries = read_list(name)
    here = {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}
    for requirement in wanted(EXTRAS[name]):
        if requirement.name == "torch":
            continue
        found = entries.get(canonicalize_name(requirement.name))
        assert found is not None, f"{requirement} is not in {name}.txt: run  make lock"
        assert found[0].marker is None or found[0].marker.evaluate(here), found[0]
        assert version(found[0]) in requirement.specifier, f"{found[0]}: run  make lock"


def test_uv_is_the_one_of_pyproject():
    (text,) = PROJECT["dependency-groups"]["lock"]
    requirement = Requirement(text)
    (found,) = (entry for entry, _ in read_list("uv").values())
    assert found.name == requirement.name
    assert version(found) in requirement.specifier


@pytest.mark.parametrize("name", EXTRAS)
def test_what_runs_is_what_is_checked(name):
    """CUDA's own packages apart: no test has them."""
    checked = read_list("dev")
    for key, (requirement, _) in read_list(name).items():
        if key in checked or name != "cuda":
            assert version(requirement) == version(checked[key][0])


def test_what_is_installed_here_is_what_the_list_says():
    differences = []
    for key, (requirement, _) in read_list("dev").items():
        try:
            here = importlib.metadata.version(key)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system, or for a TPU
        if here != version(requirement):
            differences.append(f"{key} is {here} here, {version(requirement)} in dev.txt")
    assert differences == [], "run  make install"


@pytest.mark.parametrize("file", INSTALLERS)
def test_nothing_is_installed_past_the_lists(file):
    text = (ROOT / file).read_text().replace("\\\n", " ")
    commands = [
        line
        for line in text.splitlines()
        if re.search(r"pip install|into_venv ", line) and not re.search(r"into_venv\(\)", line)
    ]
    for line in commands:
        assert "--no-deps" in line or re.search(r"\$[({]?\"?TORCH|\"\$TORCH\"", line), line
        if "-r" in line.split() or "--requirement" in line:
            assert "--require-hashes" in line, line
