"""docs/remote.md, run as it stands there, with the real engine; its tables are the command's."""

import os
import pathlib
import re
import subprocess
import sys

from wan_tpu.cli.remote import ACTIONS
from wan_tpu.pipeline.video_file import read_frames

ROOT = pathlib.Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "remote.md").read_text()


def test_the_commands_of_the_page(tiny, tmp_path):
    (block,) = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = block.replace("http://127.0.0.1:8000", tiny.url).replace('" --', '" --steps 4 --')
    script = f'wan-tpu() {{ "{sys.executable}" -m wan_tpu.cli.main "$@"; }}\n{lines}'
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("red.mp4", "blue.mp4", "green.mp4", "white-1.mp4", "white-2.mp4"):
        assert read_frames(tmp_path / name).shape == (17, 64, 64, 3)
    assert (tmp_path / "green.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert "a green triangle" in done.stdout
    assert "s per step" in done.stderr  # what ran, as generate tells it
    assert "wan-tiny, layout single" in done.stderr


def test_every_action_is_on_the_page():
    assert re.findall(r"^\| `(\w+)", TEXT, re.MULTILINE) == list(ACTIONS)
