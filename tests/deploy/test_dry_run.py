"""--dry-run prints what would be run: exactly, and a shell takes it as it stands."""

import json
import shlex
import subprocess

import pytest

from tests.deploy.conftest import COMMIT, ROOT, WHERE, node, request

INSTALL = ("install", "wan", "--repository", "https://example.com/w.git", "--ref", COMMIT)
VERBS = [
    ("create", "wan"),
    ("create", "wan", "--spot", "--slices", "2"),
    ("create", "wan", "--queued", "--spot", "--valid-until-duration", "6h"),
    ("create", "wan", "--queued", "--max-run-duration", "4h", "--labels", "a=b"),
    ("create", "wan", "--data-disk", "500", "--type", "v6e-8"),
    ("create", "wan", "--data-disk", "500", "--type", "v5e-8", "--queued", "--slices", "2"),
    INSTALL,
    (*INSTALL, "--slices", "2"),
    ("start", "wan", "--layout", "dp2-sp8"),
    ("start", "wan", "--bucket", "gs://b", "--model", "m", "--env-file", "wan.env"),
    ("start", "wan", "--open", "--api-keys-file", "keys"),
    ("train", "wan", "fox.toml", "--type", "v6e-8"),
    ("train", "wan", "fox.toml", "--output", "gs://b/fox", "--data", "gs://b/clips"),
    ("train", "wan", "fox.toml", "--output", "/x/fox", "--data", "clips", "--env-file", "wan.env"),
    ("status", "wan"),
    ("logs", "wan", "--follow"),
    ("tunnel", "wan", "--local-port", "18767"),
    ("fetch", "wan", "video_1a2b"),
    ("fetch", "wan", "fox", "--trained"),
    ("stop", "wan"),
    ("delete", "wan", "--yes"),
    ("delete", "wan", "--yes", "--queued", "--slices", "2"),
]
"""Every verb, with flags that change its commands."""


def typed(words):
    """The words of a verb with where and what its slices are."""
    return (*words, *WHERE, *(() if "--type" in words else ("--type", "v6e-16")))


def dry_run(cloud, words):
    """The lines that a dry run prints; two slices, sixteen chips each, unless said otherwise."""
    for name in ("wan.env", "keys", "fox.toml", "fox-data.tar"):
        (cloud.here / name).write_text("A=b\n")
    (cloud.here / "clips").mkdir(exist_ok=True)
    done = cloud.run(*typed(words), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert cloud.calls == []
    return [line for line in done.stdout.splitlines() if line.startswith("gcloud ")]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_it_prints_what_is_run(cloud, words):
    """What a dry run prints, and then what the same words run, are the same commands."""
    printed = dry_run(cloud, words)
    names = ["wan-0", "wan-1"] if "--slices" in words else ["wan"]
    gone = words[0] == "delete"
    disks = [{"sourceDisk": f"projects/p/zones/z/disks/{name}-data"} for name in names]
    more = {"workers": 1} if "v6e-8" in words or "v5e-8" in words else {}
    more |= {"dataDisks": disks} if "--data-disk" in words else {}
    nodes = [node(name, **more) for name in names]
    cloud.answer("tpu-vm list", out=json.dumps(nodes), times=1)
    cloud.answer("tpu-vm list", out=json.dumps([] if gone else nodes))
    cloud.answer("disks list", out="[]")
    asked = [request(name) for name in names] if "--queued" in words else []
    cloud.answer("queued-resources list", out=json.dumps(asked), times=1)
    cloud.answer("queued-resources list", out="[]")
    cloud.answer("queued-resources describe", out=json.dumps(request()))
    cloud.answer("-- start |start fox", out=f"started {COMMIT}\n")
    cloud.answer("buckets describe", out='{"hierarchical_namespace": {"enabled": true}}')
    cloud.answer("-- status", out='unit=active/running\nreadyz={"status":"ready"}\n')
    empty_archive = "\0" * 1024
    cloud.answer("-- pack |result fox", out=empty_archive)
    cloud.answer("")
    done = cloud.run(*typed(words))
    assert done.returncode == 0, done.stderr
    lines = [line.partition(" < ")[0].partition(" > ")[0] for line in printed]
    looked_again = [line for line in cloud.lines if " list " in line][:2] if gone else []
    assert sorted([*lines, *looked_again]) == sorted(cloud.lines)


def test_a_shell_takes_it(cloud):
    """Every verb's lines, of one worker, as one script: the same calls come out."""
    printed = [line for words in VERBS for line in dry_run(cloud, words)]
    others = ("--worker=1", "--worker=2", "--worker=3")
    printed = [line for line in dict.fromkeys(printed) if not any(w in line for w in others)]
    cloud.answer("")
    (cloud.here / "group-secret-wan").write_text("as a start makes one")
    done = subprocess.run(
        ("bash", "-e", "-c", "\n".join(printed)),
        stdin=subprocess.DEVNULL,
        cwd=cloud.here,
        env=cloud.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert cloud.lines == [line.partition(" < ")[0].partition(" > ")[0] for line in printed]


def test_a_branch_is_shown_as_a_question_to_git(cloud):
    words = ("install", "wan", "--repository", "https://example.com/w.git", "--ref", "main")
    done = cloud.run(*words, *WHERE, "--type", "v6e-16", "--dry-run")
    assert "git ls-remote --exit-code https://example.com/w.git main 'main^{}'" in done.stdout
    assert "install https://example.com/w.git COMMIT_OF_main" in done.stdout


def test_it_needs_no_gcloud(cloud):
    (cloud.bin / "gcloud").unlink()
    cloud.environment["PATH"] = str(cloud.bin)
    assert cloud.run("stop", "wan", *WHERE, "--type", "v6e-8", "--dry-run").returncode == 0


def test_without_a_type_it_cannot_know_the_workers(cloud):
    done = cloud.run("stop", "wan", *WHERE, "--dry-run")
    assert done.returncode == 1
    assert "type is not set" in done.stderr


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """The real gcloud, signed in as nobody: it parses, and stops before any network."""
    folder = tmp_path_factory.mktemp("gcloud")
    environment = {
        "PATH": "/usr/lib/google-cloud-sdk/bin:/usr/local/bin:/usr/bin:/bin:/snap/bin",
        "HOME": str(folder),
        "CLOUDSDK_CONFIG": str(folder),
    }

    def parse(line):
        return subprocess.run(
            shlex.split(line),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    try:
        parse("gcloud version")
    except FileNotFoundError:
        pytest.skip("no real gcloud here: cloud.google.com/sdk/docs/install")
    return parse


REFUSED = 2
"""gcloud's exit code for a command line that it does not take."""


def test_the_real_gcloud_takes_every_command(cloud, parser):
    """Of each of its commands the line with the most flags."""
    longest = {}
    for words in VERBS:
        for line in dry_run(cloud, words):
            argv = shlex.split(line.partition(" < ")[0].partition(" > ")[0])
            command = (*(word for word in argv if not word.startswith(("-", "wan"))), "--" in argv)
            if len(argv) > len(longest.get(command, ())):
                longest[command] = argv
    assert len(longest) >= 9
    for argv in longest.values():
        done = parser(shlex.join(argv))
        assert done.returncode != REFUSED, f"{argv}\n{done.stderr}"
        assert "active account" in done.stderr, f"{argv}\n{done.stderr}"


def test_the_real_gcloud_refuses_what_it_does_not_know(parser):
    """Otherwise the test above could not fail."""
    assert parser("gcloud compute tpus tpu-vm list --zone=z --no-such-flag").returncode == REFUSED
    ga = "gcloud compute tpus tpu-vm ssh wan --zone=z --tunnel-through-iap --command=true"
    assert parser(ga).returncode == REFUSED  # why ssh through IAP is alpha


def test_the_page_is_what_the_command_prints():
    from tests.deploy.dry_run_page import PAGE, make_page

    assert PAGE.read_text() == make_page(), "run  python -m tests.deploy.dry_run_page"


def test_the_page_shows_every_verb():
    text = (ROOT / "docs" / "deploy-dry-run.md").read_text()
    verbs = {words[0] for words in VERBS}
    assert all(f"$ deploy/wan-tpu-deploy {verb} " in text for verb in verbs)
