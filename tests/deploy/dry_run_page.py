"""Writes docs/deploy-dry-run.md, a slice's life: python -m tests.deploy.dry_run_page."""

import pathlib
import subprocess
import sys
import tempfile

from tests.deploy.conftest import ROOT

PAGE = ROOT / "docs" / "deploy-dry-run.md"
SETTINGS = """\
[all]
project = my-project
zone = us-east5-b
type = v6e-16

[wan]
queued = yes
spot = yes
valid-until-duration = 6h
repository = https://example.com/wan-tpu.git
ref = 0123456789abcdef0123456789abcdef01234567
model = Wan-AI/Wan2.1-T2V-14B-Diffusers
layout = dp2-sp8
"""
VERBS = (
    "create wan",
    "install wan",
    "start wan",
    "status wan",
    "logs wan --worker 2",
    "tunnel wan",
    "train wan fox.toml --output gs://my-bucket/runs/fox --data gs://my-bucket/clips",
    "fetch wan video_1a2b3c",
    "start wan --commit previous",
    "stop wan",
    "delete wan",
    "train fox fox.toml --kubernetes --spot --image example.com/wan-tpu:v1 "
    "--output gs://my-bucket/runs/fox --data gs://my-bucket/data",
    "status fox --kubernetes",
    "logs fox --kubernetes --worker 0",
    "fetch fox gs://my-bucket/runs/fox --trained --kubernetes --image example.com/wan-tpu:v1",
    "stop fox --kubernetes",
)
HEAD = """\
# A v6e-16 from create to delete: every command

2026-11-21. Four machines, sixteen chips, spot capacity from the queue. This is what
`deploy/wan-tpu-deploy VERB ... --dry-run` prints with the settings below: each line that begins
with `gcloud` or `kubectl` is what would be run, as a shell takes it, in the checkout's folder;
lines after `#` say the rest. The commands under one `#` run at once, one for each worker. The last
five are a run of training on a Kubernetes cluster.

`python -m tests.deploy.dry_run_page` writes this page and a test compares it, so it is what the
command does now. None of it has been run against Google's cloud: the commands have gone through the
argument parser of gcloud 528.0.0, and what they do on a worker has been run on a Linux machine,
under a scratch root.

`wan-tpu-deploy.ini`:

```ini
"""


def make_page() -> str:
    """The whole page."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "fox.toml").write_text('preset = "lora-wan2.1-14b-480p"\n')
        file = pathlib.Path(folder) / "wan-tpu-deploy.ini"
        file.write_text(SETTINGS)
        parts = [transcript(verb, file) for verb in VERBS]
    return HEAD + SETTINGS + "```\n" + "".join(parts)


def transcript(words: str, file: pathlib.Path) -> str:
    """One verb as a person sees it."""
    done = subprocess.run(
        (
            sys.executable,
            "deploy/wan-tpu-deploy",
            *words.replace("fox.toml", str(file.with_name("fox.toml"))).split(),
            "--config",
            str(file),
            "--dry-run",
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    out = done.stdout.replace(f"{file.parent}/", "").strip()
    return f"\n## {words}\n\n```console\n$ deploy/wan-tpu-deploy {words} --dry-run\n{out}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(make_page())
