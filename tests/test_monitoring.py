"""What monitors read: metrics from values, rules that fire and are silent, log lines, and who asks for traces."""

import asyncio
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grafana_dashboards
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from record_healthy import values_of
from sqlalchemy import Engine
from test_fleet import fleet_of, record

from qubic_lab import tracing
from qubic_lab.api.cluster_metrics import node_families
from qubic_lab.cluster.health import DEFAULT_LIMITS
from qubic_lab.errors import InputError
from qubic_lab.logs import JsonFormatter, TextFormatter
from qubic_lab.metrics import MOST_VALUES, Latest
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog
from qubic_lab.oracle.store.source_metrics import source_families

MONITORING = Path(__file__).parents[1] / "launch" / "monitoring"
SECOND_US = 1_000_000


def values(families: list[Metric]) -> dict[tuple[str, ...], float]:
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_nodes_have_metrics_from_their_heartbeats_while_they_can_be_heard() -> None:
    heard = record("a", cpu_share=0.25, tokens=7, context_tokens=3, certificate_ends_s=9)
    silent = record("b", cpu_share=0.5, age_s=DEFAULT_LIMITS.silent_after_s)
    found = values(node_families(fleet_of(heard, silent).views(100.0)))
    assert found["qubic_lab_node_cpu_ratio", "a"] == 0.25
    assert found["qubic_lab_node_tokens_total", "a"] == 7
    assert found["qubic_lab_node_certificate_expiry_timestamp_seconds", "a"] == 9
    assert ("qubic_lab_node_response_seconds", "a") not in found, "it is not known yet"
    assert (found["qubic_lab_node_up", "a"], found["qubic_lab_node_up", "b"]) == (1, 0)
    assert {name for name, node, *_ in (key for key in found if len(key) > 1) if node == "b"} == {
        f"qubic_lab_node_{name}" for name in ("up", "draining", "heartbeat_age_seconds")
    }
    registry = CollectorRegistry()
    latest = Latest(registry)
    latest.families = node_families(fleet_of(heard).views(100.0))
    assert b'node="a"' in generate_latest(registry)
    latest.families = node_families(fleet_of().views(100.0))
    assert b'node="a"' not in generate_latest(registry), "it was removed"


def test_a_label_has_only_so_many_values() -> None:
    families = node_families(fleet_of(*(record(f"node-{number:03}") for number in range(MOST_VALUES + 3))).views(100.0))
    assert values(families)["qubic_lab_nodes_left_out",] == 3
    assert max(len(family.samples) for family in families) == MOST_VALUES


def test_sources_have_their_age_and_what_they_gave(sqlite: Engine) -> None:
    log = FetchLog(sqlite)
    for started_s, outcome in ((10, "ok"), (20, "failed")):
        fetch = Fetch("feed", "feed", "/", started_s * SECOND_US, 1.0, 1, 200, outcome, rows_added=2)  # type: ignore[arg-type]
        log.record(fetch)
    found = values(source_families(sqlite, 60 * SECOND_US, 0))
    assert found["qubic_lab_oracle_source_age_seconds", "feed"] == 49
    assert found["qubic_lab_oracle_source_up", "feed"] == 0
    assert found["qubic_lab_oracle_source_requests_total", "feed", "failed"] == 1
    assert found["qubic_lab_oracle_source_rows_total", "feed"] == 4


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
@pytest.mark.parametrize("test", ["alerts_test.yml", "healthy_test.yml"])
def test_alerts_fire_when_they_should_and_are_silent_on_healthy_data(test: str) -> None:
    tried = subprocess.run(["promtool", "test", "rules", test], cwd=MONITORING, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_prometheus_takes_its_configuration() -> None:
    checked = subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=MONITORING, capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="no amtool: apt-get install prometheus-alertmanager")
def test_alertmanager_takes_its_configuration() -> None:
    checked = subprocess.run(["amtool", "check-config", "alertmanager.yml"], cwd=MONITORING, capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tested_and_has_hysteresis() -> None:
    rules = [
        rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]
    ]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    assert all({"for", "keep_firing_for"} <= rule.keys() for rule in alerts.values())
    tested = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    fired = {
        name
        for test in tested
        for case in test["promql_expr_test"]
        if case["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', case["expr"])
    }
    assert fired == alerts.keys()
    known = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())["inhibit_rules"][0]["target_matchers"][0]
    assert set(re.findall(r"[A-Z]\w+", known)) <= alerts.keys()


def test_compose_and_grafana_name_files_that_are_there() -> None:
    services = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for each in services.values() for volume in each["volumes"]]
    assert all((MONITORING / path).exists() for path in mounted if path.startswith("."))
    known = {name: " ".join(each["command"]) for name, each in services.items() if "command" in each}
    prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    [alertmanager] = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert f"--web.listen-address={alertmanager}" in known["alertmanager"]
    provisioned = MONITORING / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioned / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in known["prometheus"]
    [provider] = yaml.safe_load((provisioned / "dashboards" / "files.yaml").read_text())["providers"]
    inside = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in inside and "/etc/grafana/provisioning" in inside
    for name, path in (("prometheus", "prometheus.yml"), ("alertmanager", "alertmanager.yml")):
        inside = [volume.split(":")[1] for volume in services[name]["volumes"]]
        assert f"--config.file=/etc/{name}/{path}" in known[name] and f"/etc/{name}/{path}" in inside
    assert "/etc/prometheus/rules.yml" in [volume.split(":")[1] for volume in services["prometheus"]["volumes"]]
    for name in grafana_dashboards.DASHBOARDS:
        written = json.loads((grafana_dashboards.FOLDER / f"{name}.json").read_text())
        assert written == grafana_dashboards.dashboard(name), "run python scripts/grafana_dashboards.py"


def test_recorded_values_in_promtools_notation() -> None:
    assert values_of([1.0, 1.0, 1.0, None, None, 2.5, 3.0]) == "1x2 _x2 2.5 3"


def test_lines_of_the_log_name_the_request() -> None:
    line = logging.LogRecord("there", logging.WARNING, "", 0, "it %s", ("came",), None)
    with tracing.following({tracing.REQUEST_ID: "req-1"}):
        found: dict[str, Any] = json.loads(JsonFormatter().format(line))
        assert TextFormatter().format(line) == "it came [req-1]"
    assert (found["level"], found["logger"], found["message"]) == ("warning", "there", "it came")
    assert (found["request_id"], found["time"][-6:]) == ("req-1", "+00:00")
    assert "request_id" not in json.loads(JsonFormatter().format(line))


@pytest.mark.anyio
async def test_requests_that_run_side_by_side_keep_their_ids() -> None:
    async def follow(name: str) -> dict[str, str]:
        with tracing.following({tracing.REQUEST_ID: name}):
            await asyncio.sleep(0)
            return tracing.headers()

    assert await asyncio.gather(follow("a"), follow("b")) == [{tracing.REQUEST_ID: "a"}, {tracing.REQUEST_ID: "b"}]
    assert tracing.headers() == {}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_who_asks_for_traces(environment: dict[str, str], wanted: bool) -> None:
    assert tracing.is_wanted(environment) is wanted


def test_an_exporter_that_is_not_ours_is_refused() -> None:
    with pytest.raises(InputError, match="unknown OTEL_TRACES_EXPORTER 'zipkin': known: none, otlp"):
        tracing.is_wanted({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys; from qubic_lab import tracing; tracing.start('test'); print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
