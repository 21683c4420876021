"""Alerts and dashboard ask for what a running server says, in PromQL that can be read."""

import ast
import functools
import json
import re

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.failure import Failure
from server.metrics import TpuCollector
from tests.deploy.conftest import ROOT
from tests.deploy.kubernetes.rendering import FOLDER, find, render
from tests.requirements import require
from tests.server.running import SCRIPTED, RunningServer

RULES = yaml.safe_load((FOLDER / "monitoring" / "rules.yaml").read_text())
DASHBOARD = json.loads((FOLDER / "monitoring" / "dashboard.json").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [each["expr"] for each in (*ALERTS, *TARGETS)]
BY_PROMETHEUS = {"instance", "pod", "namespace", "job"}
"""Labels that it puts onto what it reads."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Labels and their values by name of a sample, of a server that has lived a little."""
    server = RunningServer(tmp_path_factory.mktemp("monitored") / "data", engine=SCRIPTED)
    try:
        text = server.client.get("/metrics").text  # not ready yet, and says why
        server.wait_ready()
        server.finish(server.create(num_inference_steps=2))
        server.finish(server.create(prompt="boom"))
        server.client.get("/v1/videos/video_none")
        text += server.client.get("/metrics").text
    finally:
        server.stop()
    chips = CollectorRegistry()
    chips.register(TpuCollector(lambda: [(0, 10, 100, 50.0)]))
    text += generate_latest(chips).decode()
    found: dict[str, dict[str, set[str]]] = {}
    for line in dict.fromkeys(text.splitlines()):
        for family in () if line.startswith("#") else text_string_to_metric_families(line + "\n"):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


def selectors_and_groups(expression: str):
    """Vector selectors of an expression, and the labels by which it groups.

    Raises:
        ValueError: it is no PromQL.
    """
    try:
        import promql_parser
    except ImportError:
        require(False, "promql-parser of the extra `test` reads PromQL")
        raise
    selectors, groups = [], set()

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            groups.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return selectors, groups


@functools.cache
def texts_of_the_server() -> set[str]:
    """What stands in its source as text, up to a colon."""
    nodes = (
        node
        for path in (ROOT / "server").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    )
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {value.partition(":")[0] for value in constants if isinstance(value, str)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_is_said(expression, said):
    selectors, groups = selectors_and_groups(expression)
    assert selectors
    for selector in selectors:
        assert selector.name in said
        labels = said[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels
        assert groups <= labels.keys() | BY_PROMETHEUS


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_values_that_are_named_there_are(expression):
    known = {"outcome": {"completed", "deleted", *Failure}, "status": {"500", "503"}}
    known |= {"route": {"/readyz", "/livez"}, "what": texts_of_the_server()}
    for selector in selectors_and_groups(expression)[0]:
        for matcher in selector.matchers.matchers:
            for value in matcher.value.split("|"):
                assert any(re.fullmatch(value, each) for each in known[matcher.name])


def test_expressions_that_are_wrong_are_seen(said):
    with pytest.raises(ValueError, match="unclosed"):
        selectors_and_groups("sum(rate(wan_tpu_jobs_total[5m])")
    (selector,) = selectors_and_groups("wan_tpu_jobs")[0]
    assert selector.name not in said


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_speaks_of_labels_that_it_has(alert, said):
    selectors, groups = selectors_and_groups(alert["expr"])
    is_grouped = bool(re.search(r"\b(sum|max|absent)\b", alert["expr"]))
    has = groups if is_grouped else BY_PROMETHEUS | said[selectors[0].name].keys()
    for text in alert["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= has
    assert alert["labels"]["severity"] in ("info", "warning", "critical")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target["legendFormat"])
def test_a_panel_speaks_of_labels_that_it_has(target, said):
    selectors, groups = selectors_and_groups(target["expr"])
    is_grouped = bool(re.search(r"\b(sum|max|min|count)\b", target["expr"]))
    has = groups if is_grouped else BY_PROMETHEUS | said[selectors[0].name].keys()
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= has


def test_every_meter_is_on_the_dashboard(said):
    names = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in said}
    shown = " ".join(target["expr"] for target in TARGETS)
    assert not {name for name in names if name.startswith("wan_tpu_") and name not in shown}


def test_both_forms_of_the_rules_are_the_same():
    assert find(render("monitoring"), "PrometheusRule")["spec"] == RULES


def test_panels_lie_beside_each_other():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_prometheus_asks_the_port_that_is_there():
    (endpoint,) = find(render("monitoring"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
