"""The container, the Nix flake and the script that both make the environment with.

There is no Nix here: its file is parsed, and what it names is looked for. The image is built where
an engine is; else its steps run as a script under a scratch root, as far as they go (slow).
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.deploy.conftest import ROOT

CONTAINER = ROOT / "deploy" / "container"
CONTAINERFILE = CONTAINER / "Containerfile"
FLAKE = ROOT / "deploy" / "nix" / "flake.nix"
SCRIPT = ROOT / "deploy" / "environment.sh"
INSTRUCTIONS = {
    "ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "STOPSIGNAL", "ENTRYPOINT",
    "CMD",
}  # fmt: skip


def steps() -> list[tuple[str, str]]:
    """Instruction and words of each line; comments and line ends are gone."""
    text = re.sub(r"\\\n", " ", CONTAINERFILE.read_text())
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def stages() -> list[list[tuple[str, str]]]:
    """The steps of each image, from its FROM on."""
    found: list[list[tuple[str, str]]] = []
    for step in steps():
        if step[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(step)
    return found


def copied() -> list[str]:
    """What the container takes from the checkout."""
    words = [words.split() for key, words in steps() if key == "COPY" and "--from" not in words]
    return [source for each in words for source in each[:-1]]


def test_the_container_file_has_steps_that_engines_know():
    assert {key for key, _ in steps()} == INSTRUCTIONS
    assert [len(words) for words in stages()] == [10, 17]


def test_every_file_that_the_container_takes_is_there():
    assert len(copied()) >= 8
    for source in copied():
        assert (ROOT / source).exists(), source


def test_what_the_context_leaves_out_the_container_does_not_take():
    lines = (CONTAINER / "Containerfile.dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {source.rstrip("/") for source in copied()}


def test_the_container_runs_as_nobody_in_particular():
    last = stages()[-1]
    keys = [key for key, _ in last]
    user = dict(last)["USER"]
    assert user == "wan-tpu"
    assert any("useradd" in words and user in words for key, words in last if key == "RUN")
    assert "RUN" not in keys[keys.index("USER") :]
    volume = dict(last)["VOLUME"]
    homes = [words.partition("=") for key, words in last if key == "ENV"]
    for name, _, value in homes:
        if name not in ("PATH", "PYTHONUNBUFFERED"):
            assert value.startswith(volume), name


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (("serve",), ["python", "-m", "server"]),
        (("train", "fox.toml", "-o", "my runs/fox"), None),
        ((), ["wan-tpu"]),
    ],
)
def test_what_the_container_starts(tmp_path, words, runs):
    """By exec: the process that gets SIGTERM is the service or the training itself."""
    for name in ("python", "wan-tpu"):
        (tmp_path / name).write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            f"print(json.dumps([os.getpid(), {name!r}, *sys.argv[1:]]))\n"
        )
        (tmp_path / name).chmod(0o755)
    process = subprocess.Popen(
        (str(CONTAINER / "entrypoint.sh"), *words),
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, *ran = json.loads(process.communicate(timeout=60)[0])
    assert ran == (runs or ["wan-tpu", *words])
    assert pid == process.pid


# --- the flake -----------------------------------------------------------------------------------

NIX_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)|(?P<indented>''(?:[^']|'(?!')|''[$'\\])*''(?![$'\\]))
    |(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z_][\w'-]*)|(?P<sign>//|[^\s\w])""",
    re.VERBOSE,
)
PAIRS = {")": "(", "]": "[", "}": "{", "in": "let"}


def nix_tokens() -> list[tuple[str, str]]:
    """The flake's tokens; red where something is none."""
    text, at, found = FLAKE.read_text(), 0, []
    while at < len(text):
        match = NIX_TOKEN.match(text, at)
        assert match is not None, text[at : at + 40]
        assert match.lastgroup is not None
        if match.lastgroup != "skip":
            found.append((match.lastgroup, match[0]))
        at = match.end()
    return found


def test_what_is_opened_in_the_flake_is_closed():
    open_ones = []
    for kind, token in nix_tokens():
        if kind in ("sign", "word") and token in PAIRS.values():
            open_ones.append(token)
        elif kind in ("sign", "word") and token in PAIRS:
            assert open_ones[-1:] == [PAIRS[token]], token
            open_ones.pop()
    assert open_ones == []


def test_the_flake_names_lists_and_scripts_that_are_there():
    tokens = nix_tokens()
    first = [token for _, token in tokens].index("lists")
    assert tokens[first + 1][1] == "="
    last = [token for _, token in tokens].index("]", first)
    lists = {token.strip('"') for _, token in tokens[first + 3 : last]}
    assert lists == {path.stem for path in (ROOT / "requirements").glob("*.txt")} - {"uv"}
    scripts = re.findall(r"deploy/[\w./-]+\.sh", FLAKE.read_text())
    assert scripts
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_flake_s_python_is_one_that_runs_it():
    (found,) = set(re.findall(r"pkgs\.python(3)(\d+)", FLAKE.read_text()))
    assert f"{found[0]}.{found[1]}" in ("3.11", "3.12")


# --- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected LIST and FOLDER"),
        (("tpu", "x"), "there is no list 'tpu'; there are: cuda.txt dev.txt"),
        (("train", "x", "--edit"), "'--edit' is not known"),
    ],
)
def test_what_the_script_cannot_mean(tmp_path, words, message):
    done = subprocess.run(
        (str(SCRIPT), *words), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_its_torch_is_that_of_the_others():
    pin = re.findall(r"torch==[\d.]+", (ROOT / "Makefile").read_text())[0]
    for file in (SCRIPT, ROOT / "deploy" / "worker.sh"):
        assert f"TORCH={pin}\n" in file.read_text()


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(
        ("git", "ls-files", "-z", *folders), cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [name for name in listed.split("\0") if name]


def test_what_is_installed_is_all_there_is(tmp_path):
    """Red when a file that is no Python is named nowhere in pyproject.toml: a preset, a page."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    for name in ("wan_tpu", "server"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path / "target"
    subprocess.run(
        (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", str(target), str(source)),
        check=True, capture_output=True,
    )  # fmt: skip
    missing = [name for name in tracked("wan_tpu", "server") if not (target / name).is_file()]
    assert missing == []


def engine() -> str | None:
    """A program that can build an image here: a client alone cannot."""
    for name in ("podman", "docker", "buildah"):
        if shutil.which(name):
            done = subprocess.run((name, "info"), capture_output=True, check=False)
            if done.returncode == 0:
                return name
    return None


@pytest.mark.slow
def test_the_container(tmp_path):
    """Built, and asked who it is; or its steps, as a script."""
    name = engine()
    if name is None:
        take_the_steps(tmp_path)
        return
    tag = "wan-tpu:test"
    build = (name, "build", "--file", str(CONTAINERFILE), "--tag", tag, ".")
    subprocess.run(build, cwd=ROOT, check=True)
    if name != "buildah":  # which builds alone
        for words, said in SAID.items():
            done = subprocess.run(
                (name, "run", "--rm", tag, *words.split()),
                capture_output=True,
                text=True,
                check=True,
            )
            assert said in done.stdout


SAID = {
    "--version": "wan-tpu 0",
    "train presets": "lora-wan2.1-1.3b-480p",
    "serve --help": "WAN_TPU_ROLE",
}
"""What the image answers to some words."""


def take_the_steps(tmp_path):
    """Both images, as a script: places under a scratch root, and no user is made."""
    chosen = dict(words.partition("=")[::2] for key, words in steps() if key == "ARG")
    assert chosen["LIST"] == "fleet"
    variables = {"LIST": chosen["LIST"], "PYTHON": sys.executable}
    variables["TORCH_BACKEND"] = chosen["TORCH_BACKEND"]
    if "PIP_FIND_LINKS" in os.environ:  # a CPU build that lies on this machine
        variables |= {"TORCH_BACKEND": "any", "UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]}

    def place(path: str) -> pathlib.Path:
        return tmp_path / path.lstrip("/")

    folder = place("/")
    for key, words in (step for stage in stages() for step in stage):
        if key == "WORKDIR":
            folder = place(words)
            folder.mkdir(parents=True, exist_ok=True)
        elif key == "COPY" and "--from" not in words:
            *sources, to = words.split()
            there = folder / to if not to.startswith("/") else place(to)
            there.mkdir(parents=True, exist_ok=True)
            for source in sources:
                copy_into(ROOT / source, there)
        elif key == "RUN" and "useradd" not in words:
            command = words.replace("/opt/wan-tpu", str(place("/opt/wan-tpu")))
            environment = {**os.environ, **variables}
            subprocess.run(("bash", "-ec", command), cwd=folder, env=environment, check=True)
    entry = shlex.quote(str(place("/opt/wan-tpu/entrypoint.sh")))
    path = f"{place('/opt/wan-tpu/.venv/bin')}:/usr/bin:/bin"
    for words, said in SAID.items():
        done = subprocess.run(
            f"{entry} {words}", shell=True, env={"PATH": path, "HOME": str(folder)}, cwd=folder,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert said in done.stdout


def copy_into(source: pathlib.Path, folder: pathlib.Path) -> None:
    """As COPY does: a folder's contents, a file as it is."""
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=ignored)
    else:
        shutil.copy2(source, folder)
