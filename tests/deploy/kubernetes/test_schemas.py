"""Every object is held to the strict schema of its kind: what a cluster would refuse, or drop."""

import copy

import jsonschema
import pytest

from tests.deploy.kubernetes import schemas
from tests.deploy.kubernetes.rendering import OVERLAYS, find, render

FOLDERS = (*OVERLAYS, "monitoring")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_cluster_would_take_every_object(folder):
    objects = render(folder)
    assert objects
    for thing in objects:
        schemas.check(thing)


@pytest.mark.parametrize("folder", FOLDERS)
def test_who_belongs_to_a_namespace_says_so(folder):
    for thing in render(folder):
        is_everywhere = thing["kind"] in schemas.WHOLE_CLUSTER
        assert ("namespace" in thing["metadata"]) is not is_everywhere, thing["kind"]


def test_nothing_is_there_twice():
    for folder in FOLDERS:
        names = [(thing["kind"], thing["metadata"]["name"]) for thing in render(folder)]
        assert len(names) == len(set(names))


GROUP = ("spec", "leaderWorkerTemplate")
JOB = ("spec", "replicatedJobs", 0, "template", "spec")
SCALE_DOWN = ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleDown")
LEADER = (*GROUP, "leaderTemplate", "spec", "containers", 0)

FAULTS = [
    ("LeaderWorkerSet", (*GROUP, "restartPolicy"), "RecreateGroup"),
    ("LeaderWorkerSet", (*GROUP, "sizes"), 4),
    ("LeaderWorkerSet", (*LEADER, "imgae"), "wan-tpu"),
    ("LeaderWorkerSet", (*GROUP, "workerTemplate", "spec", "containers", 0, "imgae"), "wan-tpu"),
    ("LeaderWorkerSet", (*LEADER, "readinessProbe", "httpGet", "pathh"), "/readyz"),
    ("LeaderWorkerSet", ("spec", "rolloutStrategy", "type"), "Recreate"),
    ("ScaledObject", ("spec", "minReplicas"), 0),
    ("ScaledObject", (*SCALE_DOWN, "stabilisationWindowSeconds"), 60),
    ("ScaledObject", ("spec", "triggers", 0, "metadata", "targetQueryValue"), 1),
    ("ScaledObject", ("spec", "triggers", 0, "metadata", "targetValue"), "1"),
    ("TriggerAuthentication", ("spec", "secretTargetRef", 0, "secret"), "wan-tpu-database"),
    ("Deployment", ("spec", "template", "spec", "containers", 0, "imgae"), "wan-tpu"),
    ("Deployment", ("spec", "replica"), 2),
    ("NetworkPolicy", ("spec", "ingres"), []),
]
TRAINING_FAULTS = [
    ("JobSet", (*JOB, "template", "spec", "containers", 0, "imgae"), "wan-tpu"),
    ("JobSet", (*JOB, "podFailurePolicy", "rules", 0, "onExitCodes", "value"), [2]),
    ("JobSet", ("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
    ("JobSet", ("spec", "failurePolicy", "maxRestart"), 3),
    ("ClusterQueue", ("spec", "resourceGroups", 0, "coveredResource"), ["google.com/tpu"]),
    ("LocalQueue", ("spec", "clusterQueues"), "wan-tpu-training"),
    ("ResourceFlavor", ("spec", "nodeLabel"), {}),
]


@pytest.mark.parametrize(
    ("folder", "kind", "path", "value"),
    [("overlays/v6e-16", *fault) for fault in FAULTS]
    + [("overlays/training", *fault) for fault in TRAINING_FAULTS],
)
def test_what_is_misspelt_or_of_another_kind_is_refused(folder, kind, path, value):
    objects = render(folder)
    names = {"NetworkPolicy": "slices"}
    thing = copy.deepcopy(find(objects, kind, names.get(kind)))
    part = thing
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        schemas.check(thing)
