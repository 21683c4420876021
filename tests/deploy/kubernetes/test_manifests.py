"""What no schema says: objects find each other, chips fit, settings exist, secrets stay out."""

import json
import math
import os
import re

import pytest
import sqlalchemy as sa
import yaml
from sqlalchemy.exc import ProgrammingError

from server.demo.backing import FAIRNESS
from server.environment import unknown_variables
from server.jobs.tables import jobs, metadata
from server.settings import Settings
from tests.deploy.conftest import ROOT
from tests.deploy.kubernetes.rendering import (
    FOLDER,
    OVERLAYS,
    SLICES,
    containers,
    find,
    pod_templates,
    render,
)
from tests.server.postgres import new_database, running_postgres
from wan_tpu.fleet.address import parse_fleet

PAGE = ROOT / "docs" / "kubernetes.md"
ACCELERATOR, TOPOLOGY = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"

CHIPS = {
    "v5e-8": ("tpu-v5-lite-podslice", "2x4", 8, 1),
    "v6e-8": ("tpu-v6e-slice", "2x4", 8, 1),
    "v6e-16": ("tpu-v6e-slice", "4x4", 4, 4),
    "tpu7x": ("tpu7x", "2x2x2", 4, 2),
}
"""Label of the chips, topology, chips of a host, hosts: as public manifests and xpk have them."""

RUNNING = ("overlays/v6e-16", "overlays/training")


def environment(objects: list[dict], container: dict) -> set[str]:
    """The names of a container's variables."""
    maps = [source["configMapRef"]["name"] for source in container.get("envFrom", ())]
    from_maps = {name for each in maps for name in find(objects, "ConfigMap", each)["data"]}
    return from_maps | {variable["name"] for variable in container["env"]}


def named(part, key: str) -> list:
    """Every value of a key, however deep."""
    if isinstance(part, list):
        return [each for item in part for each in named(item, key)]
    if not isinstance(part, dict):
        return []
    here = [part[key]] if key in part else []
    return here + [each for value in part.values() for each in named(value, key)]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_variable_is_a_setting(folder):
    objects = render(folder)
    names = set().union(*(environment(objects, each) for each in containers(objects)))
    assert any(name.startswith("WAN_TPU_") for name in names)
    assert unknown_variables(names) == []


@pytest.mark.parametrize("folder", RUNNING)
def test_what_a_pod_names_is_there(folder):
    objects = render(folder)
    page = PAGE.read_text()
    for thing in objects:
        for template in pod_templates(thing).values():
            spec = template["spec"]
            find(objects, "ServiceAccount", spec["serviceAccountName"])
            for reference in named(spec, "configMapRef") + named(spec, "configMap"):
                find(objects, "ConfigMap", reference["name"])
            secrets = [each["secretName"] for each in named(spec, "secret")]
            secrets += [each["name"] for each in named(spec, "secretKeyRef")]
            assert secrets
            for name in secrets:
                assert re.search(rf"create secret generic {name}\b", page), name
            volumes = {volume["name"] for volume in spec["volumes"]}
            for container in spec["containers"]:
                mounts = [mount["name"] for mount in container["volumeMounts"]]
                assert set(mounts) == volumes


@pytest.mark.parametrize("folder", OVERLAYS)
def test_nothing_is_secret(folder):
    """Neither as an object nor in a value: what is secret comes from the cluster."""
    objects = render(folder)
    assert not [thing for thing in objects if thing["kind"] == "Secret"]
    for container in containers(objects):
        for variable in container["env"]:
            if variable["name"] in ("WAN_TPU_DATABASE_URL", "HF_TOKEN"):
                assert "secretKeyRef" in variable["valueFrom"]
    text = yaml.safe_dump_all(objects)
    assert not re.search(r"://[^/\s]*:[^/\s]*@|BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{8}", text)


@pytest.mark.parametrize("name", SLICES)
def test_chips_fit_their_hosts(name):
    accelerator, topology, chips, hosts = CHIPS[name]
    slices = find(render(f"overlays/{name}"), "LeaderWorkerSet")
    group = slices["spec"]["leaderWorkerTemplate"]
    assert group["size"] == hosts
    assert math.prod(map(int, topology.split("x"))) == chips * hosts
    for template in pod_templates(slices).values():
        spec = template["spec"]
        assert spec["nodeSelector"] == {ACCELERATOR: accelerator, TOPOLOGY: topology}
        assert spec["containers"][0]["resources"]["limits"]["google.com/tpu"] == str(chips)


def test_chips_of_a_run_fit_its_hosts_and_its_queue():
    objects = render("overlays/training")
    run = find(objects, "JobSet")
    (job,) = run["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    assert job["replicas"] == 1, "the processes of one slice are one run"
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
    chips = int(pod["containers"][0]["resources"]["limits"]["google.com/tpu"])
    sides = map(int, pod["nodeSelector"][TOPOLOGY].split("x"))
    assert math.prod(sides) == chips * spec["parallelism"]
    flavor = find(objects, "ResourceFlavor")
    assert flavor["spec"]["nodeLabels"] == pod["nodeSelector"]
    (group,) = find(objects, "ClusterQueue")["spec"]["resourceGroups"]
    assert group["flavors"][0]["name"] == flavor["metadata"]["name"]
    assert int(group["flavors"][0]["resources"][0]["nominalQuota"]) >= chips * spec["parallelism"]
    # Kueue refuses a run that asks for what its queue does not list.
    assert group["coveredResources"] == list(pod["containers"][0]["resources"]["limits"])
    assert pod["containers"][0]["resources"].keys() == {"limits"}
    queue = find(objects, "LocalQueue")
    assert run["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    find(objects, "ClusterQueue", queue["spec"]["clusterQueue"])


def test_a_run_goes_on_after_75_and_ends_with_2():
    run = find(render("overlays/training"), "JobSet")["spec"]
    spec = run["replicatedJobs"][0]["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] in named(
        spec["template"]["spec"]["containers"], "name"
    )
    (rule,) = run["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "or podFailurePolicy is refused"
    assert run["failurePolicy"]["maxRestarts"] > 0


@pytest.mark.parametrize("name", SLICES)
def test_the_hosts_of_a_slice_differ_in_their_port_alone(name):
    templates = pod_templates(find(render(f"overlays/{name}"), "LeaderWorkerSet"))
    leader, worker = (templates[each]["spec"]["containers"][0] for each in ("leader", "worker"))
    only = {"ports", "startupProbe", "livenessProbe", "readinessProbe"}
    assert leader.keys() - worker.keys() == only
    assert {key: leader[key] for key in worker} == worker
    assert leader["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert leader["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert leader["ports"] == [{"name": "http", "containerPort": 8000}]
    rest = [{k: v for k, v in templates[e]["spec"].items() if k != "containers"} for e in templates]
    assert rest[0] == rest[1]


def test_a_lost_host_ends_its_slice_and_an_update_takes_one_at_a_time():
    slices = find(render("overlays/v6e-16"), "LeaderWorkerSet")
    assert slices["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    update = slices["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert update == {"maxUnavailable": 1, "maxSurge": 0}
    assert "replicas" not in slices["spec"], "KEDA's to say: each `apply` would undo it"


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_of_several_hosts_has_a_node_pool_to_itself(name):
    """And one of one host has a node: a pool has many, and would hold one alone."""
    slices = find(render(f"overlays/{name}"), "LeaderWorkerSet")
    found = slices["metadata"].get("annotations", {})
    pool = {"leaderworkerset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert found == (pool if slices["spec"]["leaderWorkerTemplate"]["size"] > 1 else {})


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_counted_for_the_model_that_they_serve(name):
    objects = render(f"overlays/{name}")
    scaled = find(objects, "ScaledObject")["spec"]
    slices = find(objects, "LeaderWorkerSet")
    assert scaled["scaleTargetRef"]["name"] == slices["metadata"]["name"]
    assert scaled["scaleTargetRef"]["apiVersion"] == slices["apiVersion"]
    served = next(
        thing["data"]["WAN_TPU_SERVED_MODEL_NAME"]
        for thing in objects
        if thing["kind"] == "ConfigMap" and "WAN_TPU_SERVED_MODEL_NAME" in thing["data"]
    )
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["query"].endswith(f"model = '{served}'")
    find(objects, "TriggerAuthentication", trigger["authenticationRef"]["name"])
    down = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 1800


def test_the_query_counts_jobs_that_wait_and_run_and_may_see_no_more():
    """On PostgreSQL, as the user that docs/kubernetes.md makes for it."""
    query = find(render("base"), "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (grants,) = re.findall(r"<!-- scaler -->\s+((?:    .*\n)+)", PAGE.read_text())
    states = ["queued", "queued", "in_progress", "completed", "failed"]
    models = ["wan2.1-t2v-14b", "other"]
    rows = [(state, model) for state in states for model in models]
    with running_postgres() as server, new_database(server) as url:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        metadata.create_all(engine)
        with engine.begin() as connection:
            for number, (state, model) in enumerate(rows):
                values = {"id": f"video_{number}", "owner": "a", "model": model, "state": state}
                values |= {"request": "{}", "attempts": 0, "created_at": 0.0}
                connection.execute(sa.insert(jobs).values(**values))
            role = f"scaler_{os.getpid()}"
            for statement in grants.replace("wan_tpu_scaler", role).split(";"):
                if statement.strip():
                    connection.execute(sa.text(statement))
        try:
            with engine.begin() as connection:
                connection.execute(sa.text(f"SET ROLE {role}"))
                assert connection.scalar(sa.text(query)) == 3
            with engine.begin() as connection:
                connection.execute(sa.text(f"SET ROLE {role}"))
                with pytest.raises(ProgrammingError, match="permission denied"):
                    connection.execute(sa.text("SELECT request FROM jobs"))
        finally:
            with engine.begin() as connection:
                connection.execute(sa.text(f"DROP OWNED BY {role}; DROP ROLE {role}"))
            engine.dispose()


@pytest.mark.parametrize("folder", OVERLAYS)
def test_there_is_one_bucket(folder):
    objects = render(folder)
    mounted = set(named(objects, "bucketName"))
    assert mounted == {"my-project-wan-tpu"}
    for thing in objects:
        files = thing.get("data", {}).get("WAN_TPU_FILES")
        assert files is None or files.split("/")[2] in mounted


def test_nobody_reaches_a_slice_but_its_like_and_prometheus():
    policies = [t for t in render("overlays/v6e-16") if t["kind"] == "NetworkPolicy"]
    by_name = {policy["metadata"]["name"]: policy["spec"] for policy in policies}
    assert by_name["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    slices = by_name["slices"]
    pods = pod_templates(find(render("overlays/v6e-16"), "LeaderWorkerSet"))
    for template in pods.values():
        assert template["metadata"]["labels"] == slices["podSelector"]["matchLabels"]
    assert slices["ingress"][0] == {"from": [{"podSelector": slices["podSelector"]}]}
    assert slices["ingress"][1]["ports"] == [{"port": "http"}]
    run = pod_templates(find(render("overlays/training"), "JobSet"))["slice"]
    policy = find(render("overlays/training"), "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == run["metadata"]["labels"]
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]


def test_a_second_model_is_its_slices_once_more(tmp_path):
    """One kustomization with the fleet and two sets of slices, each with its own names."""
    up = os.path.relpath(FOLDER, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{up}/base/fleet, {up}/base/slices, small]\n"
    )
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "kustomization.yaml").write_text(
        f"resources: [../{up}/base/slices]\nnameSuffix: -small\nconfigMapGenerator:\n"
        "  - name: wan-tpu-slices\n    namespace: wan-tpu\n    behavior: merge\n"
        "    literals: [WAN_TPU_MODEL=/models/small]\n"
    )
    objects = render(tmp_path)
    scaled = find(objects, "ScaledObject", "wan-tpu-slices-small")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "wan-tpu-slices-small"
    find(objects, "TriggerAuthentication", scaled["triggers"][0]["authenticationRef"]["name"])
    small = find(objects, "LeaderWorkerSet", "wan-tpu-slices-small")
    for template in pod_templates(small).values():
        maps = [
            find(objects, "ConfigMap", each["name"]) for each in named(template, "configMapRef")
        ]
        assert maps[0]["data"]["WAN_TPU_FLEET"]
        assert maps[1]["data"]["WAN_TPU_MODEL"] == "/models/small"
        assert template["spec"]["serviceAccountName"] == "wan-tpu-slice"


@pytest.mark.parametrize("folder", RUNNING)
def test_the_image_of_every_pod_is_the_kustomization_s(folder):
    """Pods of each kind are reached; a release is one line."""
    (image,) = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["images"]
    images = {container["image"] for container in containers(render(folder))}
    assert images == {f"{image['newName']}:{image['newTag']}"}


def test_temporal_is_set_up_as_the_fleet_needs_it():
    """The namespace of fleet.env, and what the tests' own Temporal is started with."""
    server = yaml.safe_load((FOLDER / "temporal-values.yaml").read_text())["server"]
    found = {f"{name}={json.dumps(v[0]['value'])}" for name, v in server["dynamicConfig"].items()}
    assert found == set(FAIRNESS)
    (namespace,) = server["config"]["namespaces"]["namespace"]
    fleet = (FOLDER / "base" / "fleet" / "fleet.env").read_text()
    (url,) = re.findall(r"^WAN_TPU_FLEET=(.*)", fleet, re.MULTILINE)
    assert parse_fleet(url).namespace == namespace["name"]
    days = int(namespace["retention"].removesuffix("d"))
    assert days * 86_400 <= Settings.model_fields["expiry_seconds"].default


def test_the_page_says_which_chips_an_overlay_has():
    rows = re.findall(
        r"^\| `([\w-]+)` \| [^|]* \| (\d+) (\S+) \| (\d+) \| (\S+) \|", PAGE.read_text(), re.M
    )
    assert [row[0] for row in rows] == list(CHIPS)
    for name, hosts, _, chips, topology in rows:
        assert CHIPS[name][1:] == (topology, int(chips), int(hosts))
