"""What install and start send to a worker, run for real under a scratch root on this machine.

The virtual environment is this one (WAN_TPU_VENV): making one takes minutes and gigabytes. Packages
and users are left alone under a scratch root, and systemd is `fake_systemctl.py`.
"""

import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.deploy.conftest import ROOT, WHERE, node
from tests.multihost.running import free_port
from tests.requirements import require

SYSTEMCTL = pathlib.Path(__file__).with_name("fake_systemctl.py")

STAND_IN = '''
"""Answers as the service does, at once."""
import http.server, os, socket, sys

if os.path.exists(os.path.join(os.environ["HOME"], "crash")):
    sys.exit(75)
if os.path.exists(os.path.join(os.environ["HOME"], "usage")):
    print("WAN_TPU_LAYOUT is wrong", flush=True)
    sys.exit(2)
if os.path.exists(os.path.join(os.environ["HOME"], "write")):
    open(os.path.join(os.environ["WAN_TPU_DATA_DIR"], "jobs.sqlite"), "w").close()
asked = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        code, body = 200, '{"status":"ready"}'
        if self.path == "/metrics":
            body = "wan_tpu_queue_length 2.0"
        elif asked == 1 and os.path.exists(os.path.join(os.environ["HOME"], "slow")):
            code, body = 503, '{"status":"not_ready","missing":["compiling"]}'
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

class OnSocket(http.server.HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)

    def get_request(self):
        return self.socket.accept()[0], ("", 0)


if "WAN_TPU_UNIX_SOCKET" in os.environ:
    server = OnSocket(os.environ["WAN_TPU_UNIX_SOCKET"], Handler)
else:
    address = os.environ["WAN_TPU_HOST"], int(os.environ["WAN_TPU_PORT"])
    server = http.server.HTTPServer(address, Handler)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
    systemd.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
server.serve_forever()
'''


def git(folder, *words):
    name = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    done = subprocess.run(
        ("git", *name, *words), cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def make_repository(folder: pathlib.Path, *, with_server: bool) -> pathlib.Path:
    """A repository of this checkout's files as they are now, or of a stand-in for the service."""
    folder.mkdir()
    names = [
        "deploy/wan-tpu.service", "deploy/wan-tpu-train.service", "deploy/worker.sh",
        "deploy/training.sh",
    ]  # fmt: skip
    if with_server:
        listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    else:
        (folder / "server").mkdir()
        (folder / "server" / "__main__.py").write_text(STAND_IN)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


def commit(repository: pathlib.Path, message: str) -> str:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def worker(cloud, tmp_path):
    """A cloud with one worker, which is this machine under a scratch root."""
    yield make_workers(cloud, tmp_path, node(kind="v6e-8", workers=1))
    cloud.run("stop", "wan", *WHERE)


@pytest.fixture
def two_workers(cloud, tmp_path):
    """A cloud with two workers, each this machine under a scratch root of its own."""
    yield make_workers(cloud, tmp_path, node(kind="v6e-8", workers=2))
    cloud.run("stop", "wan", *WHERE)


def make_workers(cloud, tmp_path, one_slice):
    cloud.root = tmp_path / "root" / "0"
    workers = range(len(one_slice["networkEndpoints"]))
    for number in workers:
        (tmp_path / "root" / str(number)).mkdir(parents=True)
    cloud.environment |= {"FAKE_WORKERS": str(tmp_path / "root"), "WAN_TPU_VENV": sys.prefix}
    # Everything of the worker is under its scratch root, and every file is of this user.
    cloud.tool("sudo", 'exec "${@//\\/etc\\/wan-tpu/$WAN_TPU_ROOT/etc/wan-tpu}"')
    cloud.tool("chown", 'printf "%s\\n" "$*" >> "$WAN_TPU_ROOT/chown"')
    cloud.tool("systemctl", f'exec {sys.executable} {SYSTEMCTL} "$@"')
    cloud.tool("journalctl", 'cat "$WAN_TPU_ROOT/journal"')
    cloud.slices(one_slice)
    cloud.answer("--command=true")
    cloud.answer("tar -C /var/lib")  # it would go past the scratch roots
    cloud.answer("--command=sudo", run=True)
    cloud.port = str(free_port())
    return cloud


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository", with_server=False)


def install(worker, repository, ref):
    return worker.run("install", "wan", *WHERE, "--repository", str(repository), "--ref", ref)


def start(worker, *flags):
    words = ("start", "wan", *WHERE, "--port", worker.port, "--timeout-seconds", "480")
    return worker.run(*words, *flags)


def running(worker) -> str:
    """The commit that `current` names."""
    return (worker.root / "opt/wan-tpu/current").resolve().name


def test_install_twice_is_harmless(worker, repository):
    one = commit(repository, "one")
    done = install(worker, repository, one)
    assert done.returncode == 0, done.stdout
    release = worker.root / "opt/wan-tpu/releases" / one
    assert (release / "deploy/wan-tpu.service").exists()
    assert (release / ".venv").resolve() == pathlib.Path(sys.prefix).resolve()
    shutil.rmtree(repository)  # the second time needs nothing
    before = sorted(release.rglob("*"))
    done = install(worker, repository, one)
    assert done.returncode == 0, done.stdout
    assert f"installed {one}" in done.stdout
    assert sorted(release.rglob("*")) == before


def test_a_commit_that_was_not_pushed(worker, repository):
    commit(repository, "one")
    done = install(worker, repository, "f" * 40)
    assert done.returncode == 1
    assert "was it pushed?" in done.stdout


def test_an_install_that_broke_off_is_made_anew(worker, repository):
    one = commit(repository, "one")
    half = worker.root / "opt/wan-tpu/releases" / one
    half.mkdir(parents=True)
    (half / "rest-of-the-first-try").touch()
    assert install(worker, repository, one).returncode == 0
    assert not (half / "rest-of-the-first-try").exists()


def test_start_update_and_roll_back(worker, repository):
    one = commit(repository, "one")
    install(worker, repository, one)
    (worker.root / "var/lib/wan-tpu/slow").touch()
    done = start(worker)
    (worker.root / "var/lib/wan-tpu/slow").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing" in done.stdout  # what was waited for
    assert re.search(r"wan/0: ready after \d+ s", done.stdout)
    assert running(worker) == one

    two = commit(repository, "two")
    install(worker, repository, "main")
    assert running(worker) == one  # installing changes nothing that runs
    assert start(worker).returncode == 0
    assert running(worker) == two

    assert start(worker, "--commit", "previous").returncode == 0
    assert running(worker) == one
    assert start(worker, "--commit", two[:9]).returncode == 0
    assert running(worker) == two

    done = worker.run("status", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    chips = "0" if importlib.util.find_spec("tpu_info") else "no tpu-info"
    assert f"active/running 0 {two[:12]} {chips} -" in " ".join(done.stdout.split())
    assert "wan/0: ready; 2 jobs wait" in done.stdout

    assert worker.run("stop", "wan", *WHERE).returncode == 0
    done = worker.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "inactive/dead" in done.stdout
    assert not (worker.root / "run/wan-tpu/enabled").exists()


def test_a_commit_that_is_not_installed(worker, repository):
    one = commit(repository, "one")
    install(worker, repository, one)
    done = start(worker, "--commit", "abc")
    assert done.returncode == 1
    assert f"'abc' is not one installed commit; there are: {one}" in done.stdout


def test_three_releases_are_kept_and_those_in_use(worker, repository):
    commits = [commit(repository, "one")]
    install(worker, repository, commits[0])
    start(worker)
    for number in range(4):
        commits.append(commit(repository, str(number)))
        install(worker, repository, commits[-1])
        os.utime(worker.root / "opt/wan-tpu/releases" / commits[-1], (10**9 + number,) * 2)
    kept = {path.name for path in (worker.root / "opt/wan-tpu/releases").iterdir()}
    assert commits[0] in kept  # it runs
    assert commits[-1] in kept  # it is the latest
    assert len(kept) <= 4


def test_settings_are_for_the_service_alone(worker, repository):
    install(worker, repository, commit(repository, "one"))
    start(worker, "--layout", "dp2-sp4")
    file = worker.root / "etc/wan-tpu/wan-tpu.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    state = worker.root / "var/lib/wan-tpu"
    assert file.read_text().splitlines() == [
        "WAN_TPU_HOST=127.0.0.1",
        f"WAN_TPU_PORT={worker.port}",
        "WAN_TPU_MODEL=wan-tiny",
        "WAN_TPU_LAYOUT=dp2-sp4",
        "WAN_TPU_DRAIN_SECONDS=120",
        f"WAN_TPU_DATA_DIR={state}/data",
        f"WAN_TPU_CACHE_DIR={state}/compiled",
        f"WAN_TPU_GROUP_SECRET_FILE={worker.root}/etc/wan-tpu/group-secret",
        f"HF_HOME={state}/hub",
        f"HOME={state}",
        "PYTHONUNBUFFERED=1",
    ]


def test_an_env_file_of_an_earlier_start_goes(worker, repository):
    install(worker, repository, commit(repository, "one"))
    (worker.root / "etc/wan-tpu/extra.env").write_text("WAN_TPU_LOG_LEVEL=debug\n")
    start(worker)
    assert not (worker.root / "etc/wan-tpu/extra.env").exists()


def test_a_service_on_a_unix_socket_is_asked_there(worker, repository, tmp_path_factory):
    """As behind a proxy; nothing listens on the port."""
    path = tmp_path_factory.mktemp("s") / "http.sock"
    install(worker, repository, commit(repository, "one"))
    (worker.here / "wan.env").write_text(f'WAN_TPU_UNIX_SOCKET="{path}"\n')
    done = start(worker, "--env-file", "wan.env")
    assert done.returncode == 0, done.stdout
    done = worker.run("status", "wan", *WHERE)
    assert "wan/0: ready; 2 jobs wait" in done.stdout


def test_a_service_that_keeps_ending_is_not_waited_for(worker, repository):
    install(worker, repository, commit(repository, "one"))
    state = worker.root / "var/lib/wan-tpu"
    (state / "crash").touch()
    done = start(worker)
    assert done.returncode == 1
    assert "was started again" in done.stdout
    (
        state / "crash"
    ).unlink()  # the supervisor brings it back by itself: 75 is no reason to give up
    ready = worker.run("status", "wan", *WHERE)
    while "no service answers" in ready.stdout:
        ready = worker.run("status", "wan", *WHERE)
    assert "wan/0: ready" in ready.stdout


def test_the_unit_file(worker, repository):
    install(worker, repository, commit(repository, "one"))
    start(worker)
    unit = worker.root / "etc/systemd/system/wan-tpu.service"
    text = unit.read_text()
    assert "Restart=always" in text
    assert "StartLimitIntervalSec=0" in text
    drain, grace = 120, 30  # what `start` sets; the default of WAN_TPU_STOP_GRACE_SECONDS
    assert f"TimeoutStopSec={drain + grace + 60}\n" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    done = subprocess.run(
        ("systemd-analyze", "verify", str(unit)), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_is_copied_from_its_bucket(worker, repository):
    """The worker's own gcloud copies; here it shows what it was asked."""
    install(worker, repository, commit(repository, "one"))
    worker.answer("storage rsync")
    worker.answer("storage du", out="3000000000  gs://b/wan-14b\n")
    done = start(worker, "--bucket", "gs://b", "--model", "wan-14b")
    assert done.returncode == 0, done.stdout
    folder = f"{worker.root}/var/lib/wan-tpu/models/wan-14b"
    line = f"gcloud storage rsync --recursive --quiet gs://b/wan-14b {folder}"
    assert line in worker.lines


def test_a_model_that_does_not_fit_is_said_before_it_is_copied(worker, repository):
    install(worker, repository, commit(repository, "one"))
    worker.answer("storage du", out=f"{10**18}  gs://b/wan-14b\n")
    done = start(worker, "--bucket", "gs://b", "--model", "wan-14b")
    assert done.returncode == 1
    assert re.search(r"the rest of it takes 9+ GB and \S+ has \d+ GB free", done.stdout)
    assert not any("storage rsync" in line for line in worker.lines)


@pytest.fixture
def disk(tmp_path):
    """A real block device of 64 MB; what it is mounted at comes off it in the end."""
    require(os.geteuid() == 0, "needs the right to make a loop device: run as root")
    file = tmp_path / "disk"
    with file.open("wb") as made:
        made.truncate(64 * 10**6)
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    device = run(("losetup", "--find", "--show", str(file))).stdout.strip()
    yield device
    mounted = run(("findmnt", "--list", "--noheadings", "--output", "TARGET,SOURCE")).stdout
    for line in mounted.splitlines():
        if line.split()[-1] == device:
            run(("umount", line.split()[0]))
    run(("losetup", "--detach", device))


def attach(worker, device):
    """From now on the slice has a data disk."""
    disks = [{"sourceDisk": "projects/my-project/zones/us-east5-b/disks/wan-data"}]
    made = node(kind="v6e-8", workers=1, dataDisks=disks)
    for answer in worker._answers:
        if answer["match"] == "tpu-vm list":
            answer["out"] = json.dumps([made])
    worker.answer("never")
    worker.environment["WAN_TPU_DATA_DISK"] = device


def test_a_data_disk_is_mounted_and_outlives_its_slice(worker, repository, disk):
    """Red when a disk of an earlier slice is formatted, or mounted over what is there."""
    attach(worker, disk)
    one = commit(repository, "one")
    done = install(worker, repository, one)
    assert done.returncode == 0, done.stdout
    state = worker.root / "var/lib/wan-tpu"
    assert f"data disk: a new file system on {disk}" in done.stdout
    assert os.path.ismount(state)
    assert list(state.iterdir()) == []
    (state / "video").write_text("mine")
    assert install(worker, repository, one).returncode == 0  # it is mounted already
    subprocess.run(("umount", str(state)), check=True)
    done = install(worker, repository, one)
    assert done.returncode == 0, done.stdout
    assert "new file system" not in done.stdout
    assert (state / "video").read_text() == "mine"
    subprocess.run(("umount", str(state)), check=True)
    (state / "of-the-boot-disk").touch()
    done = install(worker, repository, one)
    assert done.returncode == 1
    assert "has files, which the data disk would hide" in done.stdout
    assert not os.path.ismount(state)


LSBLK = """
declare -A type=([/dev/vda]=disk [/dev/loop0]=loop [/dev/sdb]=disk [/dev/sdc]=disk [/dev/sdd]=disk)
device=${!#}
case "$* " in
    *"--output NAME ") printf '/dev/%s\\n' vda loop0 sdb $MORE_DISKS ;;
    *TYPE,SIZE*) echo "${type[$device]} ${SIZE:-500000000000}" ;;
    *NAME,MOUNTPOINT*) [ $device = /dev/vda ] && printf 'vda\\nvda1 /\\n' || echo "sdb $MOUNTED" ;;
    *LABEL*) [ $device = /dev/sdc ] && echo wan-tpu || echo "$LABEL" ;;
esac
"""


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ({}, "/dev/sdb"),
        ({"MORE_DISKS": "sdc"}, "/dev/sdc"),
        ({"SIZE": "1000000"}, ""),
        ({"MOUNTED": "/mnt"}, ""),
        ({"LABEL": "wan-tpu"}, "/dev/sdb"),
        ({"MORE_DISKS": "sdd"}, ""),
    ],
)
def test_which_disk_is_the_data_disk(cloud, shown, found):
    """Of what lsblk shows: this machine has no disk to spare."""
    cloud.tool("lsblk", LSBLK)
    done = subprocess.run(
        ("bash", "-c", f". {ROOT}/deploy/worker.sh; find_data_disk"),
        env={**cloud.environment, **shown},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, found), done.stderr


def test_a_disk_with_something_else_stays_as_it_is(worker, repository, disk):
    subprocess.run(("mkfs.ext4", "-q", "-L", "mine", disk), check=True)
    attach(worker, disk)
    done = install(worker, repository, commit(repository, "one"))
    assert done.returncode == 1
    assert f"{disk} holds something else than wan-tpu's data" in done.stdout
    shown = subprocess.run(("blkid", "-p", disk), check=True, capture_output=True, text=True)
    assert 'LABEL="mine"' in shown.stdout


def test_a_boot_disk_that_is_full_is_said_before_a_release_is_put_there(worker, repository):
    require(os.geteuid() == 0, "needs the right to mount a tmpfs: run as root")
    opt = worker.root / "opt"
    opt.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(opt)), check=True)
    try:
        done = install(worker, repository, commit(repository, "one"))
    finally:
        subprocess.run(("umount", str(opt)), check=True)
    assert done.returncode == 1
    assert f"a release takes 3 GB and {opt}/wan-tpu has 0 GB free" in done.stdout


def test_the_scripts_pass_shellcheck():
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    scripts = [path.relative_to(ROOT / "deploy") for path in (ROOT / "deploy").rglob("*.sh")]
    assert len(scripts) >= 4
    done = subprocess.run(
        (str(shellcheck), "--external-sources", *map(str, scripts)),
        cwd=ROOT / "deploy",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_real_service_of_two_workers_from_install_to_a_video(two_workers, tmp_path):
    """The whole way on this machine: package at a commit, units, /readyz, a job, its file, stop."""
    repository = make_repository(tmp_path / "repository", with_server=True)
    wanted = commit(repository, "one")
    two_workers.environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    assert install(two_workers, repository, wanted).returncode == 0
    coordinator = f"127.0.0.1:{free_port()}"
    for number in (0, 1):
        (two_workers.root.parent / str(number) / "machine.env").write_text(
            f"WAN_TPU_COORDINATOR={coordinator}\nWAN_TPU_PROCESSES=2\n"
            f"WAN_TPU_PROCESS_ID={number}\nWAN_TPU_HOST_DEVICES=1\n"
            "JAX_DISABLE_MOST_OPTIMIZATIONS=1\n"  # as all programs of the tests are compiled
        )
    done = start(two_workers, "--layout", "dp2")
    journals = [(two_workers.root.parent / str(i) / "journal").read_text() for i in (0, 1)]
    assert done.returncode == 0, done.stdout + "".join(journals)
    done = two_workers.run("status", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("active/running") == 2

    body = {"prompt": "a red circle moving right on a black background", "num_inference_steps": 2}
    url = f"http://127.0.0.1:{two_workers.port}/v1/videos"
    headers = {"Content-Type": "application/json"}
    video = ask(urllib.request.Request(url, json.dumps(body).encode(), headers))
    while video["status"] in ("queued", "in_progress"):
        time.sleep(0.1)  # who asks without a pause has asked too much
        video = ask(f"{url}/{video['id']}")
    assert video["status"] == "completed", video
    assert video["metadata"]["num_processes"] == 2
    done = two_workers.run("fetch", "wan", str(video["id"]), *WHERE)
    assert done.returncode == 0, done.stderr
    assert b"ftyp" in (two_workers.here / video["id"] / "video.mp4").read_bytes()[:16]

    done = two_workers.run("stop", "wan", *WHERE)
    assert done.returncode == 0, done.stdout
    journal = (two_workers.root.parent / "1" / "journal").read_text()
    assert "process 0 has stopped all" in journal


def ask(request) -> dict:
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
