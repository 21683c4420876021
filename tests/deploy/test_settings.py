"""Flags before the file before defaults; what the tables say."""

import ast
import pathlib
import shutil
import subprocess

import pytest

from tests.deploy.conftest import COMMAND, ROOT
from wan_tpu.planner.hardware import accelerator_types, find_slice

FILE = """
[all]
zone = us-east5-b
type = v6e-8
spot = yes

[wan]
type = v6e-16
project = from-file
"""


def settings_lines(cloud, *words):
    done = cloud.run("create", *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    return "".join(line + "\n" for line in done.stdout.splitlines() if line.startswith("#   "))


def test_precedence_and_origins_are_printed(cloud):
    (cloud.here / "wan-tpu-deploy.ini").write_text(FILE)
    lines = settings_lines(cloud, "wan", "--zone", "us-east1-d")
    assert lines == (
        "#   wan-tpu-deploy.ini: project=from-file type=v6e-16 spot=yes\n"
        "#   flag: zone=us-east1-d\n"
        "#   default: slices=1 ssh=iap model=wan-tiny port=8000\n"
    )


def test_other_names_take_the_shared_section(cloud):
    (cloud.here / "wan-tpu-deploy.ini").write_text(FILE)
    lines = settings_lines(cloud, "other")
    assert "type=v6e-8" in lines
    assert "from-file" not in lines


def test_a_switch_of_the_file_can_be_turned_off(cloud):
    (cloud.here / "wan-tpu-deploy.ini").write_text(FILE)
    assert "spot" not in settings_lines(cloud, "wan", "--no-spot")


def test_another_file(cloud):
    (cloud.here / "mine.ini").write_text(FILE)
    assert "#   mine.ini: project=from-file" in settings_lines(cloud, "wan", "--config", "mine.ini")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[all]\nzoen = x\n", "unknown setting 'zoen'; there are project, zone"),
        ("[all]\nspot = perhaps\n", "yes or no"),
        ("zone = x\n", "is not a settings file"),
        ("[all]\nport = 80\n", "1024 to 65535"),
        ("[all]\nbucket = my-bucket\n", "gs://BUCKET"),
        ("[Wan]\nzone = us-east5-b\n", "the section [Wan] is no deployment's"),
        ("[ALL]\nzone = us-east5-b\n", "or [all] for every deployment"),
        ("[ wan ]\nzone = us-east5-b\n", "write [wan]"),
        ("[wan]\n[wan]\n", "line 2: the section [wan] is there twice"),
        ("[all]\nzone = a\nZone = b\n", "line 3: zone is set twice in [all]"),
        ("zone = us-east5-b\n", "line 1 stands before any section"),
        ("[all]\nzone us-east5-b\n", "line 2 is 'zone us-east5-b"),
        ("[all]\nzone = us-east5-b\n type = v6e-8\n", "begins with a space"),
        ("[all]\nenv-file = ~nosuchuser/x\n", "no such user's home"),
        ("\ufeff[all]\nzoen = x\n", "unknown setting 'zoen'"),
        ("[all]\nzone = us-east5-b\0\n", "save it as UTF-8"),
        ("[all]\nzone = us-\u00e9\n".encode("latin-1"), "not UTF-8 text (line 2)"),
        ("[all]\nzone = us-east5-b\n".encode("utf-16"), "save it as UTF-8"),
        ("[all]\nzone = us-east5-b\n".encode("utf-16-le"), "save it as UTF-8"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(cloud, text, message):
    file = cloud.here / "wan-tpu-deploy.ini"
    if text is None:
        file.mkdir()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = cloud.run("status", "wan")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert cloud.calls == []


def test_a_byte_order_mark_and_comments_after_values(cloud):
    """As Windows' editors and people write it; a # inside of a word is part of it."""
    text = "\ufeff[all]\nzone = us-east5-b ; near us\nref = a#b # the branch\nspot = On\n"
    (cloud.here / "wan-tpu-deploy.ini").write_text(text)
    lines = settings_lines(cloud, "wan", "--type", "v6e-8")
    assert "wan-tpu-deploy.ini: zone=us-east5-b spot=yes ref=a#b\n" in lines


def test_a_home_folder_is_meant_as_the_shell_does(cloud):
    (cloud.here / "wan-tpu-deploy.ini").write_text("[all]\nenv-file = ~/x.env\n")
    lines = settings_lines(cloud, "wan", "--type", "v6e-8")
    assert f"env-file={cloud.folder}/x.env" in lines


def test_a_section_for_others_alone_is_noted(cloud):
    (cloud.here / "mine.ini").write_text("[prod]\ntype = v6e-8\n[test]\n")
    done = cloud.run("status", "wan", "--config", "mine.ini", "--type", "v6e-8", "--dry-run")
    assert "# note: mine.ini has no section [wan], only [prod], [test]\n" in done.stdout
    done = cloud.run("status", "prod", "--config", "mine.ini", "--dry-run")
    assert "note" not in done.stdout


def test_what_is_not_set_names_the_file_and_its_sections(cloud):
    (cloud.here / "mine.ini").write_text("[other]\ntype = v6e-8\n")
    done = cloud.run("create", "wan", "--config", "mine.ini")
    assert "write it in mine.ini under [wan] or [all]" in done.stderr


def test_a_file_that_is_not_there(cloud):
    done = cloud.run("status", "wan", "--config", "nowhere.ini")
    assert done.returncode == 1
    assert "no settings file nowhere.ini" in done.stderr


def test_the_example_is_good(cloud):
    example = str(ROOT / "deploy" / "example.ini")
    assert "type=v6e-16" in settings_lines(cloud, "wan", "--config", example)


def test_workers_agree_with_the_planner(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))
    from wan_tpu_deploy.accelerators import find_type

    names = [name for name in accelerator_types() if not name.startswith("v7x")]
    assert len(names) > 20
    for name in names:
        kind, planned = find_type(name), find_slice(name)
        assert (kind.num_chips, kind.num_workers) == (planned.num_chips, planned.num_hosts), name


def test_its_syntax_is_python_3_9():
    for path in (COMMAND, *(ROOT / "deploy" / "wan_tpu_deploy").glob("*.py")):
        ast.parse(path.read_text(), feature_version=(3, 9))


def test_it_runs_on_python_3_9(cloud):
    versions = (pathlib.Path.home() / ".pyenv" / "versions").glob("3.9.*/bin/python")
    python = next(map(str, versions), None) or shutil.which("python3.9")
    if python is None:
        pytest.skip("no Python 3.9 here: install it as python3.9, or with pyenv install 3.9")
    words = ("start", "wan", "--type", "v6e-16", "--dry-run")
    done = subprocess.run(
        (python, str(COMMAND), *words), cwd=cloud.here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
