"""Every worker at once: prefixes, retries, tables, exit codes, Ctrl-C."""

import signal
import subprocess
import time

import psutil

from tests.deploy.conftest import COMMIT, WHERE, node

INSTALL = ("install", "wan", *WHERE, "--repository", "https://example.com/w.git", "--ref", COMMIT)
FLAKE = {"err": "ERROR: [/usr/bin/ssh] exited with return code [255].\n", "exit": 255}


def row(out: str, where: str) -> list[str]:
    """The last line of a table about a worker."""
    return next(
        line for line in reversed(out.splitlines()) if line.startswith(f"  {where} ")
    ).split()


def test_output_is_prefixed_and_summed_up(cloud):
    cloud.slices(node())
    cloud.answer("--command=true")
    for worker in range(4):
        cloud.answer(f"--worker={worker} .* install", out=f"line one\ninstalled on {worker}\n")
    done = cloud.run(*INSTALL)
    assert done.returncode == 0, done.stderr
    for worker in range(4):
        assert f"\nwan/{worker}: line one\n" in done.stdout
        cells = row(done.stdout, f"wan/{worker}")
        assert cells[1:3] == ["ok", "1"]
        assert cells[-3:] == ["installed", "on", str(worker)]


def test_ssh_flakes_are_tried_again(cloud):
    cloud.slices(node())
    cloud.answer("--command=true")
    cloud.answer("--worker=2 .* install", times=2, **FLAKE)
    cloud.answer("install", out=f"installed {COMMIT}\n")
    done = cloud.run(*INSTALL)
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "wan/2")[1:3] == ["ok", "3"]
    assert row(done.stdout, "wan/1")[1:3] == ["ok", "1"]
    assert done.stdout.count("wan/2: ssh failed; trying again") == 2


def test_gclouds_own_second_try_is_not_taken_for_success(cloud):
    """gcloud connects again with standard input at its end: bash gets no script, and exits 0."""
    cloud.slices(node())
    cloud.answer("--command=true")
    cloud.answer("--worker=2 .* install", silent=True, times=1)
    cloud.answer("install", out=f"installed {COMMIT}\n")
    done = cloud.run(*INSTALL)
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "wan/2")[1:3] == ["ok", "2"]
    assert row(done.stdout, "wan/1")[1:3] == ["ok", "1"]


def test_a_worker_without_ssh_is_named_in_the_end(cloud):
    cloud.slices(node())
    cloud.answer("--command=true")
    cloud.answer("--worker=3 .* install", **FLAKE)
    cloud.answer("install", out=f"installed {COMMIT}\n")
    done = cloud.run(*INSTALL)
    assert done.returncode == 1
    assert row(done.stdout, "wan/3")[1:4] == ["no", "ssh", "4"]
    assert "install failed on wan/3" in done.stderr
    assert "wan/0" not in done.stderr


def test_half_of_the_workers_fail_and_are_not_tried_again(cloud):
    cloud.slices(node())
    cloud.answer("--command=true")
    for worker in (1, 3):
        cloud.answer(f"--worker={worker} .* install", err="error: the disk is full\n", exit=7)
    cloud.answer("install", out=f"installed {COMMIT}\n")
    done = cloud.run(*INSTALL)
    assert done.returncode == 1
    assert "install failed on wan/1, wan/3" in done.stderr
    cells = row(done.stdout, "wan/3")
    assert cells[1:4] == ["failed", "(7)", "1"]
    assert "disk is full" in " ".join(cells)
    assert sum(" install " in line for line in cloud.lines) == 4


def test_a_flake_of_iap_says_what_iap_needs(cloud):
    cloud.slices(node(workers=1, kind="v6e-8"))
    error = "ERROR: (gcloud.compute.start-iap-tunnel) Error while connecting [4003: 'failed']\n"
    cloud.answer("ssh", err=error, exit=255)
    done = cloud.run(*INSTALL)
    assert done.returncode == 1
    assert "35.235.240.0/20" in done.stdout


def test_workers_run_at_once(cloud):
    """Sixteen workers that each take a while take that while, not sixteen of it."""
    cloud.slices(node(kind="v6e-64", workers=16))
    cloud.answer("--command=true")
    # Each waits until all have begun; one after another the first would give up.
    all_begun = f'[ "$(grep -c "bash -s -- install" {cloud.folder}/calls.jsonl)" = 16 ]'
    cloud.answer("install", run=True)
    wait = f"for _ in {{1..300}}; do {all_begun} && break; sleep 0.2; done; {all_begun} || exit 1"
    cloud.tool("sudo", f"{wait}; echo wan-tpu-worker: done")
    assert cloud.run(*INSTALL).returncode == 0


def test_ctrl_c_says_what_was_left(cloud):
    cloud.slices(node())
    cloud.answer("--command=true")
    cloud.answer("--worker=[02] .* install", out="installed\n")
    cloud.answer("install", sleep=60)
    pipe = subprocess.PIPE
    process = cloud.start(*INSTALL, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    out = ""
    while not ("wan/0: installed" in out and "wan/2: installed" in out):
        out += process.stdout.readline()
    while len(psutil.Process(process.pid).children()) != 2 or len(cloud.calls) < 6:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Finished: wan/0, wan/2" in err
    assert "not finished: wan/1, wan/3" in err
    assert "harmless" in err
