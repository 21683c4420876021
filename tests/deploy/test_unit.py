"""wan-tpu.service: what systemd is told, and what it does with it where systemd can be asked."""

import configparser
import re
import stat

import pytest

from tests.deploy.conftest import ROOT
from tests.deploy.test_worker import (  # noqa: F401  # the fixtures
    commit,
    install,
    repository,
    start,
    worker,
)

UNIT = ROOT / "deploy" / "wan-tpu.service"


@pytest.fixture(scope="module")
def service():
    """The section [Service]; of keys that are there twice, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_systemd_watches_over_its_event_loop(service):
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"  # the engine's process may not speak for it
    assert 10 <= int(service["WatchdogSec"]) <= 120
    assert int(service["TimeoutStartSec"]) > 60


def test_what_it_keeps_is_private(service):
    assert service["UMask"] == "0077"
    assert service["StateDirectory"] == service["RuntimeDirectory"] == "wan-tpu"
    assert service["StateDirectoryMode"] == "0700"
    assert service["LimitCORE"] == "0"  # memory holds prompts and keys


def test_which_ends_bring_it_back(service):
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"


def test_what_the_service_writes_nobody_else_reads(worker, repository):  # noqa: F811
    install(worker, repository, commit(repository, "one"))
    writer = worker.root / "var/lib/wan-tpu/write"
    writer.write_text("")
    assert start(worker).returncode == 0
    (written,) = (worker.root / "var/lib/wan-tpu/data").glob("*.sqlite")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_it_is_heard_when_it_says_that_it_listens(worker, repository):  # noqa: F811
    install(worker, repository, commit(repository, "one"))
    assert start(worker).returncode == 0
    heard = (worker.root / "run/wan-tpu/notified").read_text().splitlines()
    assert "READY=1" in heard


def test_a_setting_that_cannot_be_meant_is_not_tried_for_an_hour(worker, repository):  # noqa: F811
    """Exit code 2 stays down, and `start` says so at once, with the service's last words."""
    install(worker, repository, commit(repository, "one"))
    (worker.root / "var/lib/wan-tpu/usage").touch()
    done = start(worker)
    assert done.returncode == 1
    assert "the service ended and stays down" in done.stdout
    assert "WAN_TPU_LAYOUT is wrong" in done.stdout
    assert "failed/failed" in done.stdout


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ("WAN_TPU_DRAIN_SECONDS=600\n", 600 + 30 + 60),
        ("WAN_TPU_STOP_GRACE_SECONDS='90'\nA=b\n", 120 + 90 + 60),
        ('WAN_TPU_DRAIN_SECONDS="1800.5"\n', 1800 + 30 + 60),
        ("WAN_TPU_DRAIN_SECONDS=08\n", 8 + 30 + 60),
        ("WAN_TPU_DRAIN_SECONDS=soon\n", 30 + 30 + 60),
    ],
)
def test_stopping_may_take_as_long_as_the_drain(worker, repository, lines, seconds):  # noqa: F811
    """The user's own file overrides what `start` says, and systemd must not kill before it."""
    install(worker, repository, commit(repository, "one"))
    (worker.here / "wan.env").write_text(lines)
    assert start(worker, "--env-file", "wan.env").returncode == 0
    text = (worker.root / "etc/systemd/system/wan-tpu.service").read_text()
    assert re.findall(r"^TimeoutStopSec=(.*)$", text, re.MULTILINE) == [str(seconds)]
