"""The file of the slice's secret: what is taken and what is refused, and that nothing starts."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.multihost.running import clean_environment
from wan_tpu.errors import InputError
from wan_tpu.multihost.secret import HOW_TO_MAKE, read_secret

SECRET = "0123456789abcdef0123456789abcdef"
WAN_TPU = pathlib.Path(sys.executable).with_name("wan-tpu")


@pytest.fixture
def write(tmp_path):
    def write_file(content, mode=0o600):
        file = tmp_path / "secret"
        file.write_bytes(content)
        file.chmod(mode)
        return file

    return write_file


@pytest.mark.parametrize(
    "content",
    [SECRET, f"{SECRET}\n", f"  {SECRET}\t\r\n", f"{SECRET}\nwhat else there is\n"],
)
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_the_first_line_is_the_secret(write, content, mode):
    assert read_secret(write(content.encode(), mode)) == SECRET


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"", 0o600, "has 0 characters, at least 32"),
        (f"\n{SECRET}\n".encode(), 0o600, "has 0 characters, at least 32"),
        (f" {SECRET[1:]} ".encode(), 0o600, "has 31 characters, at least 32"),
        (b"\xff\xfe" * 40, 0o600, "is no text"),
        (SECRET.encode(), 0o644, "mode 0644, so others may read or change it; chmod 600"),
        (SECRET.encode(), 0o602, "mode 0602"),
        (SECRET.encode(), 0o660, "mode 0660"),
    ],
)
def test_what_is_no_secret(write, content, mode, words):
    with pytest.raises(InputError, match=words) as caught:
        read_secret(write(content, mode))
    assert SECRET[1:] not in str(caught.value)


def test_what_is_no_file(tmp_path):
    """Red when a named pipe is waited for."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, words in (("pipe", "is no file"), ("none", "cannot be read"), (".", "is no file")):
        with pytest.raises(InputError, match=words):
            read_secret(tmp_path / name)


def test_the_advice_makes_one(tmp_path):
    subprocess.run(HOW_TO_MAKE, shell=True, cwd=tmp_path, check=True)
    assert len(read_secret(tmp_path / "group.secret")) == 64


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "command", [[str(WAN_TPU), "generate", "a prompt"], [sys.executable, "-m", "server"]]
)
def test_nothing_starts_on_a_network_without_one(command, number, tmp_path):
    where = ["--coordinator", "192.0.2.1:8490", "--processes", "2", "--process-id", str(number)]
    done = subprocess.run(
        [*command, *where],
        cwd=tmp_path,
        env=clean_environment(WAN_TPU_DATA_DIR=str(tmp_path / "data")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    said = done.stderr.strip()
    assert re.search("192.0.2.1 is open to the network and the slice has no secret", said)
    assert HOW_TO_MAKE in said
    assert "\n" not in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_secret_that_is_none_is_said_in_one_line(write, by, tmp_path):
    """Of both commands; with the option, or with the variable that stands for it."""
    file = write(SECRET.encode(), 0o644)
    option = ["--group-secret-file", str(file)] if by == "option" else []
    variable = {"WAN_TPU_GROUP_SECRET_FILE": str(file)} if by == "variable" else {}
    where = ["--coordinator", "127.0.0.1:8490", "--processes", "2", "--process-id", "1"]
    for command in ([str(WAN_TPU), "generate", "a prompt"], [sys.executable, "-m", "server"]):
        done = subprocess.run(
            [*command, *where, *option],
            cwd=tmp_path,
            env=clean_environment(**variable),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert re.fullmatch(r"wan-tpu: .* has mode 0644, .*\n", done.stderr), done.stderr
