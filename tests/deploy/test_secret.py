"""The secret that a slice's workers know each other by: made once, sent, kept, never said."""

import re
import stat

import pytest

from tests.deploy.conftest import COMMIT, WHERE, node
from tests.deploy.test_worker import (  # noqa: F401  # the fixtures
    commit,
    install,
    repository,
    start,
    two_workers,
    worker,
)

PLACE = "etc/wan-tpu/group-secret"


def sent(cloud) -> list[str]:
    """The secrets that went over standard input."""
    calls = [call for call in cloud.calls if "cat >/etc/wan-tpu/group-secret" in str(call["argv"])]
    return [call["stdin"] for call in calls]


@pytest.fixture
def slice_(cloud):
    cloud.slices(node())
    cloud.answer("-- start ", out=f"started {COMMIT}\n")
    return cloud


def test_every_worker_gets_the_same_over_standard_input_alone(slice_):
    slice_.answer("-- secret", out="secret=none\n")
    slice_.answer("")
    done = slice_.run("start", "wan", *WHERE)
    assert done.returncode == 0, done.stderr
    (secret,) = set(sent(slice_))
    assert len(sent(slice_)) == 4
    assert re.fullmatch(r"[A-Za-z0-9_-]{64}\n", secret)
    said = "".join(slice_.lines) + done.stdout + done.stderr
    assert secret.strip() not in said
    order = [re.search(r"-- (\w+)|cat >", line) for line in slice_.lines]
    words = list(dict.fromkeys(match[1] or "send" for match in order if match))
    assert words[:4] == ["stop", "secret", "send", "start"]
    assert not list(slice_.folder.rglob("group-secret*"))


def test_two_slices_have_two(cloud):
    cloud.slices(node("wan-0", workers=2), node("wan-1", workers=2))
    cloud.answer("-- start ", out=f"started {COMMIT}\n")
    cloud.answer("")
    assert cloud.run("start", "wan", *WHERE).returncode == 0
    assert len(sent(cloud)) == 4
    assert len(set(sent(cloud))) == 2


def test_one_that_all_have_is_kept(slice_):
    slice_.answer("-- secret", out="secret=0123456789abcdef\n")
    slice_.answer("")
    assert slice_.run("start", "wan", *WHERE).returncode == 0
    assert sent(slice_) == []


@pytest.mark.parametrize("odd", ["secret=fedcba9876543210\n", "secret=none\n", ""])
def test_one_worker_that_differs_makes_it_anew(slice_, odd):
    slice_.answer("--worker=2 .*-- secret", out=odd)
    slice_.answer("-- secret", out="secret=0123456789abcdef\n")
    slice_.answer("")
    assert slice_.run("start", "wan", *WHERE).returncode == 0
    assert len(set(sent(slice_))) == 1
    assert len(sent(slice_)) == 4


def test_it_is_changed_when_that_is_asked_for(slice_):
    slice_.answer("-- secret", out="secret=0123456789abcdef\n")
    slice_.answer("")
    assert slice_.run("start", "wan", *WHERE, "--new-group-secret").returncode == 0
    assert len(sent(slice_)) == 4


def test_a_worker_that_cannot_take_it_stops_the_start(slice_):
    slice_.answer("--worker=3 .*cat >/etc/wan-tpu/group-secret", err="No space left\n", exit=1)
    slice_.answer("")
    done = slice_.run("start", "wan", *WHERE)
    assert done.returncode == 1
    assert "sending group-secret-wan failed on wan/3" in done.stderr
    assert not any("-- start " in line for line in slice_.lines)


def read(cloud, number: int) -> str:
    return (cloud.root.parent / str(number) / PLACE).read_text()


def test_on_the_workers_it_is_private_and_survives(two_workers, repository):  # noqa: F811
    """Restarts, another commit and the way back keep it; only who asks gets another."""
    cloud = two_workers
    install(cloud, repository, commit(repository, "one"))
    assert start(cloud).returncode == 0
    secret = read(cloud, 0)
    assert len(secret.strip()) >= 32
    assert read(cloud, 1) == secret
    for number in (0, 1):
        root = cloud.root.parent / str(number)
        assert stat.S_IMODE((root / PLACE).stat().st_mode) == 0o600
        chown = (root / "chown").read_text()
        assert chown == f"wan-tpu: {root}/{PLACE}.new\n"
        environment = (root / "etc/wan-tpu/wan-tpu.env").read_text()
        assert f"WAN_TPU_GROUP_SECRET_FILE={root}/{PLACE}\n" in environment
        assert secret.strip() not in environment
    install(cloud, repository, commit(repository, "two"))
    assert start(cloud).returncode == 0
    assert start(cloud, "--commit", "previous").returncode == 0
    assert (read(cloud, 0), read(cloud, 1)) == (secret, secret)

    assert start(cloud, "--new-group-secret").returncode == 0
    assert read(cloud, 0) == read(cloud, 1) != secret
    journals = [(cloud.root.parent / str(n) / "journal").read_text() for n in (0, 1)]
    assert secret.strip() not in "".join([*journals, *cloud.lines])


def test_one_that_others_could_read_is_replaced(worker, repository):  # noqa: F811
    install(worker, repository, commit(repository, "one"))
    start(worker)
    before = read(worker, 0)
    (worker.root / PLACE).chmod(0o644)
    start(worker)
    assert read(worker, 0) != before
    assert stat.S_IMODE((worker.root / PLACE).stat().st_mode) == 0o600
