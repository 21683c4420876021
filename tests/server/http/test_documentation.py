"""Every call of docs/http-api.md, run as it stands there against a real server."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from server.metrics import Metrics
from server.settings import Settings
from tests.requirements import require

TEXT = (pathlib.Path(__file__).parents[3] / "docs" / "http-api.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def calls(language, word):
    return [block for kind, block in BLOCKS if kind == language and word in block]


def test_the_shell_calls(tiny, tmp_path):
    require(shutil.which("curl"), "needs curl: apt-get install curl")
    video = tiny.finish(tiny.create(num_inference_steps=2))
    blocks = calls("sh", "curl")
    assert len(blocks) >= 8
    for block in blocks:
        script = "set -eo pipefail\ncurl() { command curl --silent --show-error --fail-with-body"
        script += ' "$@"; }\n' + block
        if "/cancel" in block:
            video = tiny.create(num_inference_steps=1000)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "BASE": tiny.url, "ID": video["id"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert b"ftyp" in (tmp_path / "video.mp4").read_bytes()[:12]
    assert len((tmp_path / "part-of-it").read_bytes()) == 100


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_the_python_calls(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = calls("python", "")
    assert len(blocks) >= 6
    names = {"BASE": tiny.url}
    for block in blocks:
        exec(compile(block, "docs/http-api.md", "exec"), names)
    said = capsys.readouterr().out
    assert "completed None" in said
    assert "True" in said
    assert b"ftyp" in (tmp_path / "video.mp4").read_bytes()[:12]
    names["client"].close()


def test_the_keys_calls(tmp_path):
    (block,) = calls("sh", "keys add")
    lines = [line for line in block.splitlines() if not line.endswith("python -m server")]
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(pathlib.Path(__file__).parents[3]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    key, listed, second = done.stdout.splitlines()
    assert key.startswith("wt-")
    assert second.startswith("wt-")
    assert listed.split()[0] == "ada"
    assert (tmp_path / "keys").read_text() == ""


def test_every_error_code_of_the_server_is_documented():
    rooms = pathlib.Path(__file__).parents[3] / "server"
    code = "".join(path.read_text() for path in rooms.rglob("*.py"))
    used = set(re.findall(r'ApiError\(\s*\d{3},\s*"(\w+)"', code))
    assert len(used) > 20
    missing = {word for word in used - {"http_error"} if f"`{word}`" not in TEXT}
    assert not missing


def test_every_metric_is_documented():
    names = {metric.name for metric in Metrics().registry.collect()}
    assert len(names) > 8
    missing = {name for name in names if f"`{name}`" not in TEXT and f"`{name}_total`" not in TEXT}
    assert not missing


def test_every_setting_that_bounds_a_client_is_documented():
    bounds = {name for name in Settings.model_fields if name.startswith("max_")}
    own = {"max_attempts", "max_failures"}
    assert not {name for name in bounds - own if f"`WAN_TPU_{name.upper()}`" not in TEXT}
