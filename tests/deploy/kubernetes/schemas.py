"""What an API server would say of an object, and stricter: a field that it would drop is refused.

Kubernetes' own kinds have their schemas in kubernetes-validate. Of the others stands here what our
objects use, from their API references: LeaderWorkerSet 0.10, JobSet 0.12, Kueue 0.19, KEDA 2.20 and
the Prometheus Operator 0.92; pods, jobs and scaling rules in them are again Kubernetes' own. Where
WAN_TPU_CRDS names a folder of their CustomResourceDefinitions, objects are held to those, too.
"""

import functools
import json
import os
import pathlib
from importlib import resources

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

VERSION = kubernetes_validate.latest_version()
"""Of Kubernetes whose schemas are taken."""

DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
TEXT = {"type": "string"}
NUMBER = {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
LABELS = {"type": "object", "additionalProperties": TEXT}


def closed(*required: str, **properties: dict) -> dict:
    """The schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict:
    """The schema of one of some words."""
    return {"enum": list(values)}


def several(items: dict) -> dict:
    """The schema of a list that has something in it."""
    return {"type": "array", "items": items, "minItems": 1}


def kubernetes(name: str) -> dict:
    """The schema of a part of Kubernetes' own objects."""
    return {"$ref": f"{DEFINITIONS}#/$defs/io.k8s.{name}"}


_LEADER_WORKER_SET = closed(
    "leaderWorkerTemplate",
    replicas=NUMBER,
    startupPolicy=one_of("LeaderCreated", "LeaderReady"),
    rolloutStrategy=closed(
        "type",
        type=one_of("RollingUpdate"),
        rollingUpdateConfiguration=closed(partition=NUMBER, maxUnavailable=NUMBER, maxSurge=NUMBER),
    ),
    leaderWorkerTemplate=closed(
        "workerTemplate",
        size={"type": "integer", "minimum": 1},
        restartPolicy=one_of(
            "Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"
        ),
        leaderTemplate=kubernetes("api.core.v1.PodTemplateSpec"),
        workerTemplate=kubernetes("api.core.v1.PodTemplateSpec"),
    ),
)
_JOB_SET = closed(
    "replicatedJobs",
    suspend={"type": "boolean"},
    failurePolicy=closed(
        maxRestarts=NUMBER,
        restartStrategy=one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
        rules=several(
            closed(
                "name",
                "action",
                name=TEXT,
                action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                onJobFailureReasons=several(
                    one_of(
                        *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
                        *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
                    )
                ),
                targetReplicatedJobs=TEXTS,
            )
        ),
    ),
    replicatedJobs=several(
        closed(
            "name",
            "template",
            name=TEXT,
            replicas=NUMBER,
            template=kubernetes("api.batch.v1.JobTemplateSpec"),
        )
    ),
)
_SCALED_OBJECT = closed(
    "scaleTargetRef",
    "triggers",
    scaleTargetRef=closed("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
    minReplicaCount=NUMBER,
    maxReplicaCount={"type": "integer", "minimum": 1},
    pollingInterval={"type": "integer", "minimum": 1},
    cooldownPeriod=NUMBER,
    advanced=closed(
        horizontalPodAutoscalerConfig=closed(
            behavior=kubernetes("api.autoscaling.v2.HorizontalPodAutoscalerBehavior")
        )
    ),
    triggers=several(
        closed(
            "type",
            "metadata",
            type=one_of("postgresql"),
            # Of the scaler itself, which the CustomResourceDefinition leaves open.
            metadata=closed(
                *("query", "targetQueryValue"),
                query=TEXT,
                targetQueryValue=TEXT,
                activationTargetQueryValue=TEXT,
            ),
            authenticationRef=closed(
                "name",
                kind=one_of("TriggerAuthentication", "ClusterTriggerAuthentication"),
                name=TEXT,
            ),
        )
    ),
)
_TRIGGER_AUTHENTICATION = closed(
    secretTargetRef=several(
        closed("parameter", "name", "key", parameter=one_of("connection"), name=TEXT, key=TEXT)
    )
)
_SELECTOR = kubernetes("apimachinery.pkg.apis.meta.v1.LabelSelector")
_QUOTA = closed("name", "nominalQuota", name=TEXT, nominalQuota={"type": ["string", "integer"]})
_CLUSTER_QUEUE = closed(
    namespaceSelector=_SELECTOR,
    queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"),
    resourceGroups=several(
        closed(
            *("coveredResources", "flavors"),
            coveredResources=TEXTS,
            flavors=several(closed("name", "resources", name=TEXT, resources=several(_QUOTA))),
        )
    ),
)
_RULE = closed(
    *("alert", "expr", "for", "labels", "annotations"),
    **{"for": {"type": "string", "pattern": "^[0-9]+[smhd]$"}},
    alert=TEXT,
    expr=TEXT,
    labels=LABELS,
    annotations=LABELS,
)
_PROMETHEUS_RULE = closed(
    "groups", groups=several(closed("name", "rules", name=TEXT, rules=several(_RULE)))
)
_POD_MONITOR = closed(
    *("selector", "podMetricsEndpoints"),
    selector=_SELECTOR,
    podMetricsEndpoints=several(closed(port=TEXT, path=TEXT, interval=TEXT)),
)

SPECS = {
    "leaderworkerset.x-k8s.io/v1 LeaderWorkerSet": _LEADER_WORKER_SET,
    "jobset.x-k8s.io/v1alpha2 JobSet": _JOB_SET,
    "keda.sh/v1alpha1 ScaledObject": _SCALED_OBJECT,
    "keda.sh/v1alpha1 TriggerAuthentication": _TRIGGER_AUTHENTICATION,
    "kueue.x-k8s.io/v1beta2 ClusterQueue": _CLUSTER_QUEUE,
    "kueue.x-k8s.io/v1beta2 LocalQueue": closed("clusterQueue", clusterQueue=TEXT),
    "kueue.x-k8s.io/v1beta2 ResourceFlavor": closed("nodeLabels", nodeLabels=LABELS),
    "monitoring.coreos.com/v1 PrometheusRule": _PROMETHEUS_RULE,
    "monitoring.coreos.com/v1 PodMonitor": _POD_MONITOR,
}
"""The schema of `spec` by apiVersion and kind."""

WHOLE_CLUSTER = frozenset({"Namespace", "ClusterQueue", "ResourceFlavor"})
"""Kinds that belong to no namespace."""


def check(thing: dict) -> None:
    """Refuses an object that a cluster would refuse, or of which it would drop a part.

    Raises:
        jsonschema.ValidationError: says where and why.
    """
    spec = SPECS.get(_key(thing))
    if spec is None:
        kubernetes_validate.validate(thing, VERSION, strict=True)
    else:
        schema = closed(
            *("apiVersion", "kind", "metadata", "spec"),
            apiVersion=TEXT,
            kind=TEXT,
            metadata=closed("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS),
            spec=spec,
        )
        jsonschema.Draft202012Validator(schema, registry=_registry()).validate(thing)
    upstream = _definitions().get(_key(thing))
    if upstream is not None:
        jsonschema.Draft202012Validator(upstream).validate(thing)


def _key(thing: dict) -> str:
    return f"{thing['apiVersion']} {thing['kind']}"


@functools.cache
def _registry() -> Registry:
    file = resources.files(kubernetes_validate) / (
        f"kubernetes-json-schema/v{VERSION}-local-strict/_definitions.json"
    )
    return Resource.from_contents(json.loads(file.read_text())) @ Registry()


@functools.cache
def _definitions() -> dict[str, dict]:
    """The schemas of WAN_TPU_CRDS, made strict, by apiVersion and kind."""
    folder = os.environ.get("WAN_TPU_CRDS")
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.yaml")) if folder else ():
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
            found[key] = _strict(version["schema"]["openAPIV3Schema"])
            found[key]["properties"]["metadata"] = {"type": "object"}
    assert not folder or SPECS.keys() <= found.keys(), f"{folder} lacks {SPECS.keys() - found}"
    return found


def _strict(schema: dict) -> dict:
    """A copy that refuses fields of which it says nothing."""
    made = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _strict(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            made[key] = _strict(value)
        else:
            made[key] = value
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
