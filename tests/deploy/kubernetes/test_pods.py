"""The pods as plain processes: their settings, which host leads, and what their exit codes mean."""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess

import httpx
import pytest

from server.settings import Settings
from tests.deploy.kubernetes.pods import Pod, of_a_leader_worker_set
from tests.deploy.kubernetes.rendering import SLICES, find, pod_templates, render
from tests.multihost.running import free_port
from tests.server.fleet.servers import TemporalServer
from tests.server.postgres import new_database, running_postgres
from tests.server.running import SCRIPTED, wait_for
from wan_tpu.multihost import group as multihost
from wan_tpu.multihost.lockstep import EXIT_LOST

SECRETS = {
    ("wan-tpu-group", "secret"): "0123456789abcdef" * 4 + "\n",
    ("wan-tpu-database", "url"): "postgresql://wan_tpu:p@10.0.0.3/wan_tpu",
    ("wan-tpu-keys", "keys"): "",
}
MANY_HOSTS = [name for name in SLICES if name not in ("v5e-8", "v6e-8")]


def pod_of(overlay: str, kind: str, folder, template: str = "pod", **more) -> Pod:
    objects = render(f"overlays/{overlay}")
    spec = pod_templates(find(objects, kind))[template]["spec"]
    pod = Pod(objects=objects, spec=spec, folder=folder, secrets=SECRETS, **more)
    pod.make_volumes()
    return pod


def slice_pods(overlay: str, folder, hosts=None) -> list[Pod]:
    """The pods of one slice, as LeaderWorkerSet makes them."""
    slices = find(render(f"overlays/{overlay}"), "LeaderWorkerSet")
    return [
        pod_of(
            overlay,
            "LeaderWorkerSet",
            folder / str(worker),
            "worker" if worker else "leader",
            given=of_a_leader_worker_set(slices, worker, hosts),
        )
        for worker in range(slices["spec"]["leaderWorkerTemplate"]["size"])
    ]


def settings_in(monkeypatch, environment: dict[str, str]) -> Settings:
    """The settings of a server with this environment alone."""
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.fixture
def on_a_tpu_machine(monkeypatch):
    """Groups are looked for as where there are chips."""
    monkeypatch.setattr(multihost, "TPU_FILES", ("/dev/null",))


@pytest.mark.parametrize("overlay", SLICES)
def test_the_api_takes_its_environment(overlay, tmp_path, monkeypatch):
    pod = pod_of(overlay, "Deployment", tmp_path)
    settings = settings_in(monkeypatch, pod.environment())
    assert (settings.role, settings.host, settings.port) == ("api", "0.0.0.0", 8000)
    assert settings.database == SECRETS["wan-tpu-database", "url"]
    assert settings.api_keys_file is not None
    assert settings.api_keys_file.is_file()
    assert settings.files == "gs://my-project-wan-tpu/fleet"
    assert settings.group.leads
    assert {"localhost"} <= settings.hosts or "*" in settings.hosts  # as probes call it


@pytest.mark.parametrize("overlay", SLICES)
def test_a_slice_s_hosts_know_who_leads(overlay, tmp_path, monkeypatch, on_a_tpu_machine):
    pods = slice_pods(overlay, tmp_path)
    groups = []
    for pod in pods:
        with monkeypatch.context() as patch:
            settings = settings_in(patch, pod.environment())
            groups.append(settings.group)
        assert (settings.role, settings.host, settings.port) == ("slice", "0.0.0.0", 8000)
        assert settings.drain_seconds == 0
        assert settings.database_url is None
        assert settings.cache_dir is not None
        assert settings.cache_dir.is_dir()
    assert [group.leads for group in groups] == [True] + [False] * (len(pods) - 1)
    assert [group.process_id for group in groups] == list(range(len(pods)))
    assert {group.num_processes for group in groups} == {len(pods)}
    if len(pods) > 1:
        assert {group.coordinator for group in groups} == {"wan-tpu-slices-0.wan-tpu-slices:8490"}
        assert all(group.secret for group in groups)


@pytest.mark.parametrize("overlay", MANY_HOSTS)
def test_a_slice_of_several_hosts_without_the_secret_does_not_start(
    overlay, tmp_path, monkeypatch, on_a_tpu_machine
):
    pod = slice_pods(overlay, tmp_path)[0]
    environment = pod.environment()
    del environment["WAN_TPU_GROUP_SECRET_FILE"]
    settings = settings_in(monkeypatch, environment)
    with pytest.raises(multihost.InputError, match="the slice has no secret"):
        _ = settings.group


def test_the_hosts_of_a_run_know_who_leads(tmp_path):
    """With the variables that GKE gives the pods of an indexed Job with a headless service."""
    pod = run_pod(tmp_path)
    secret = pod.here("/etc/wan-tpu/group/secret")
    hosts = ",".join(f"wan-tpu-train-slice-0-{i}.wan-tpu-train" for i in range(4))
    for worker in range(4):
        given = {"TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": str(worker)}
        group = multihost.from_kubernetes(given, secret)
        assert group is not None
        assert (group.process_id, group.num_processes) == (worker, 4)
        assert group.coordinator == "wan-tpu-train-slice-0-0.wan-tpu-train:8490"


def run_pod(folder) -> Pod:
    name = {"metadata.labels['jobset.sigs.k8s.io/jobset-name']": "wan-tpu-train"}
    return pod_of("training", "JobSet", folder, "slice", fields=name)


def test_a_run_that_cannot_be_meant_ends_as_the_job_expects(tmp_path):
    """The real command on the real run.toml; there is no data in the bucket."""
    job = find(render("overlays/training"), "JobSet")["spec"]["replicatedJobs"][0]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    pod = run_pod(tmp_path)
    status = pod.start().wait(timeout=300)
    assert "data.path is /bucket/data/fox, and nothing is there" in pod.log()
    assert status in rule["onExitCodes"]["values"]
    assert EXIT_LOST not in rule["onExitCodes"]["values"]


@pytest.fixture(scope="module")
def temporal():
    with contextlib.closing(TemporalServer()) as server:
        yield server.start()


@pytest.mark.parametrize(
    "engine",
    [SCRIPTED, pytest.param("server.engine.pipeline:PipelineEngine", marks=pytest.mark.slow)],
)
def test_a_slice_of_two_hosts_comes_up_and_ends_as_one(engine, tmp_path, temporal):
    """The real processes: both hosts of the overlay with two, on an address of their own.

    A host looks for its group where there are chips, and here are none: what it would find there
    is said by the three variables that say it elsewhere.
    """
    address = "127." + ".".join(str(random.randint(1, 254)) for _ in range(3))
    pods = slice_pods("tpu7x", tmp_path, hosts=[address, address])
    port = free_port()
    ours = {
        "WAN_TPU_FLEET": temporal.new_fleet(),
        "WAN_TPU_FILES": str(tmp_path / "files"),
        "WAN_TPU_MODEL": "wan-tiny",
        "WAN_TPU_HOST_DEVICES": "4",
        "WAN_TPU_LAYOUT": "dp2-sp4",
        "WAN_TPU_ENGINE": engine,
        "WAN_TPU_MIN_FREE_BYTES": "0",
        "WAN_TPU_PORT": str(port),
        "WAN_TPU_ALLOWED_HOSTS": "wan.example.com",  # with which probes must live
    }
    processes = []
    try:
        for pod in pods:
            given = multihost.from_kubernetes(
                pod.environment(), pod.here("/etc/wan-tpu/group/secret")
            )
            assert given is not None
            group = {
                "WAN_TPU_COORDINATOR": given.coordinator,
                "WAN_TPU_PROCESSES": str(given.num_processes),
                "WAN_TPU_PROCESS_ID": str(given.process_id),
            }
            processes.append(pod.start(**ours, **group))
        leader, follower = processes

        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            wait_for(lambda probe=probe: answers(pods[0], leader, probe, port))
        follower.send_signal(signal.SIGKILL)
        assert leader.wait(timeout=120) == EXIT_LOST
    finally:
        for process in processes:
            process.kill()
            process.wait()


def answers(pod: Pod, process: subprocess.Popen, probe: str, port: int) -> bool:
    """Asks as the kubelet does, at the pod's address; whether the answer is 200."""
    assert process.poll() is None, pod.log()
    asked = pod.container[probe]["httpGet"]
    headers = {header["name"]: header["value"] for header in asked["httpHeaders"]}
    url = f"http://{own_address()}:{port}{asked['path']}"
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, headers=headers, timeout=10).status_code == 200
    return False


def own_address() -> str:
    """An address of this machine that is not loopback, if it has one."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return probe.getsockname()[0]
    return "127.0.0.1"


def test_the_api_comes_up_and_is_asked_as_the_kubelet_asks(tmp_path, temporal):
    """The real process, with PostgreSQL, Temporal and a folder as the bucket."""
    port = free_port()
    with running_postgres() as server, new_database(server) as url:
        secrets = {**SECRETS, ("wan-tpu-database", "url"): url}
        pod = dataclasses.replace(pod_of("v6e-16", "Deployment", tmp_path), secrets=secrets)
        process = pod.start(
            WAN_TPU_FLEET=temporal.new_fleet(),
            WAN_TPU_FILES=str(tmp_path / "files"),
            WAN_TPU_PORT=str(port),
            WAN_TPU_ALLOWED_HOSTS="wan.example.com",
        )
        try:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                wait_for(lambda probe=probe: answers(pod, process, probe, port))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0, pod.log()
        finally:
            process.kill()
            process.wait()
