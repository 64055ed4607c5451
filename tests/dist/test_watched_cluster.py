"""A cluster of real processes as monitors see it: a trace from HTTP to the last rank, logs with its id, Prometheus."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grafana_dashboards
import httpx2
import pytest
import yaml
from clusters import Process, cache_with_kernels, processes, wait_until
from forked_python import PYTHON
from prometheus_client import start_http_server

from qubic_lab.database import open_database
from qubic_lab.metrics import MOST_VALUES
from qubic_lab.oracle.ingest.collector import Collector
from qubic_lab.oracle.ingest.collector_config import CollectorConfig
from qubic_lab.oracle.ingest.collector_metrics import make_registry

pytestmark = pytest.mark.dist

MONITORING = Path(__file__).resolve().parents[2] / "launch" / "monitoring"
NAME, VOTE = "request-of-the-test", "vote-of-the-test"
REQUEST = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8, "temperature": 0}


@dataclass
class Received:
    """The spans that came, each with the service it is from."""

    spans: list[tuple[str, Any]] = field(default_factory=list)

    def of(self, request: str) -> dict[str, list[tuple[str, Any]]]:
        """Return the spans by name of the one trace that has a request."""
        traces = {span.trace_id for _, span in self.spans if attributes(span).get("request_id") == request}
        assert len(traces) <= 1
        found: dict[str, list[tuple[str, Any]]] = {}
        for service, span in self.spans:
            if span.trace_id in traces:
                found.setdefault(span.name, []).append((service, span))
        return found


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.fixture(scope="module")
def received() -> Iterator[tuple[str, Received]]:
    """A collector of OTLP over HTTP that keeps everything in memory."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="no extra: pip install qubic-lab[tracing]")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    kept = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            for each in ExportTraceServiceRequest.FromString(content).resource_spans:
                [service] = [one.value.string_value for one in each.resource.attributes if one.key == "service.name"]
                kept.spans += [(service, span) for scope in each.scope_spans for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kept
        server.shutdown()


@dataclass
class Watched:
    """A running cluster: where it answers, its processes by name, and the tokens of the answer to REQUEST."""

    url: str
    client: httpx2.Client
    coordinator: Process
    node: Process
    folder: Path
    tokens: int


@pytest.fixture(scope="module")
def watched(received: tuple[str, Received], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A coordinator and a node of two ranks, which answered one request and held one vote."""
    folder = tmp_path_factory.mktemp("watched")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": received[0],
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "QUBIC_LAB_LOG_FORMAT": "json",
        "QUBIC_LAB_LOG_LEVEL": "info",
        "QUBIC_LAB_CACHE": str(cache_with_kernels(folder / "cache")),
        "QUBIC_LAB_DATA": str(folder),
        "TMPDIR": str(folder),
    }
    cli = "qubic_lab.cli.main"
    with processes(PYTHON) as start:
        nodes = f"unix:{folder}/nodes.sock"
        coordinator = start(
            folder, "coordinator", cli, "coordinator", "--listen", "127.0.0.1:0", "--nodes", nodes, **environment
        )
        node = start(
            *(folder, "node", cli, "node", "--coordinator", nodes, "--listen", f"unix:{folder}/node.sock"),
            *("--name", "a", "--model", str(tiny), "--ranks", "2", "--threads", "1"),
            **environment,
        )
        wait_until(lambda: re.search(r"serves clients at (\S+),", coordinator.log))
        found = re.search(r"serves clients at (\S+),", coordinator.log)
        assert found is not None
        with httpx2.Client(base_url=found[1], timeout=60, trust_env=False) as client:
            wait_until(lambda: time.sleep(0.2) or client.get("/ready").status_code == 200)
            asked = client.post("/v1/chat/completions", json=REQUEST, headers={"X-Request-Id": NAME})
            assert asked.status_code == 200, asked.text
            vote = {"prompt": "Why?", "max_new_tokens": 4, "nodes": 1, "samples": 2, "rounds": 1}
            voted = client.post("/api/ai/consensus_query", json=vote, headers={"X-Request-Id": VOTE})
            assert voted.status_code == 200, voted.text
            tokens = asked.json()["usage"]["completion_tokens"]
            yield Watched(found[1], client, coordinator, node, folder, tokens)


def test_one_trace_goes_from_http_to_the_last_rank(received: tuple[str, Received], watched: Watched) -> None:
    kept = received[1]
    wait_until(lambda: len(kept.of(NAME).get("rank decode", ())) == 2 and {"POST", "node"} <= kept.of(NAME).keys())
    spans = kept.of(NAME)
    services = {name: {service for service, _ in found} for name, found in spans.items()}
    assert services == {
        "POST": {"qubic-lab-coordinator"},
        "queue": {"qubic-lab-coordinator"},
        "dispatch": {"qubic-lab-coordinator"},
        "node": {"qubic-lab-node"},
        **{
            name: {"qubic-lab-rank"}
            for name in ("pipeline", "wait", "prefill", "decode", "rank prefill", "rank decode")
        },
    }
    above = {"queue": "POST", "dispatch": "POST", "node": "dispatch", "pipeline": "node", "rank decode": "pipeline"}
    for name, parent in above.items():
        [(_, span)] = spans[parent]
        assert {each.parent_span_id for _, each in spans[name]} == {span.span_id}
        assert all(span.start_time_unix_nano <= each.start_time_unix_nano for _, each in spans[name])
    ranks = [attributes(span) for _, span in spans["rank decode"]]
    assert {each["rank"] for each in ranks} == {0, 1}
    assert all(each["compute_ms"] > 0 for each in ranks)
    [(_, pipeline)] = spans["pipeline"]
    assert attributes(pipeline)["tokens"] == watched.tokens


def test_a_vote_is_one_trace_with_all_that_it_asked(received: tuple[str, Received], watched: Watched) -> None:
    kept = received[1]
    wait_until(lambda: {"POST", "rank prefill"} <= kept.of(VOTE).keys())
    spans = kept.of(VOTE)
    assert {"POST", "vote", "count", "dispatch", "node", "pipeline"} <= spans.keys()
    [(_, vote)] = spans["vote"]
    assert {each.parent_span_id for _, each in spans["dispatch"]} == {vote.span_id}


def test_logs_of_all_processes_and_examples_of_metrics_name_the_request(
    received: tuple[str, Received], watched: Watched
) -> None:
    [(_, root)] = received[1].of(NAME)["POST"]
    ranks = next(watched.folder.glob("qubic-lab-*/ranks.log"))
    wait_until(lambda: "has ended" in ranks.read_text())  # of the last rank, which is told later
    for log, writers in ((watched.coordinator.log, 1), (watched.node.log, 1), (ranks.read_text(), 2)):
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        about = [line for line in lines if line.get("request_id") == NAME]
        assert {line["trace_id"] for line in about} == {root.trace_id.hex()}
        assert len({line["logger"] for line in about}) >= writers
    shown = watched.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}).text
    assert f'# {{request_id="{NAME}",trace_id="{root.trace_id.hex()}"}}' in shown


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook for Alertmanager, and the alerts that came."""
    alerts: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/alerts", alerts
        server.shutdown()


def configured(folder: Path, targets: dict[str, str], alertmanager: str, webhook: str) -> None:
    """Write what launch/monitoring has, with the addresses of a test and without its waits."""
    config, rules, receivers = (
        yaml.safe_load((MONITORING / f"{name}.yml").read_text()) for name in ("prometheus", "rules", "alertmanager")
    )
    assert {each["job_name"] for each in config["scrape_configs"]} == targets.keys()
    for each in config["scrape_configs"]:
        each["static_configs"] = [{"targets": [targets[each["job_name"]]]}]
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == "TargetDown"):
        rule["for"] = "0s"
    receivers["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    receivers["receivers"][0]["webhook_configs"][0]["url"] = webhook
    for name, content in (("prometheus", config), ("rules", rules), ("alertmanager", receivers)):
        (folder / f"{name}.yml").write_text(yaml.safe_dump(content))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")),
    reason="no prometheus or no alertmanager: apt-get install prometheus prometheus-alertmanager",
)
def test_prometheus_scrapes_all_processes_and_alertmanager_tells_what_fires(
    watched: Watched, tmp_path: Path, told: tuple[str, list[dict[str, Any]]]
) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'oracle.db'}")
    server, _ = start_http_server(0, "127.0.0.1", make_registry(Collector(CollectorConfig(), engine), engine))
    port, alert_port = free_port(), free_port()
    pipeline = next(watched.folder.glob("qubic-lab-*/engine.sock"))
    with processes(PYTHON) as start:
        arguments = ("qubic_lab.cli.main", "serve", "--pipeline", f"unix:{pipeline}", "--listen", "127.0.0.1:0")
        serve = start(tmp_path, "serve", *arguments, QUBIC_LAB_CACHE=str(tmp_path))
        wait_until(lambda: re.search(r"at http://(\S+)/v1;", serve.log))
        found = re.search(r"at http://(\S+)/v1;", serve.log)
        assert found is not None
        targets = {
            "coordinator": watched.url.removeprefix("http://"),
            "serve": found[1],
            "collector": f"127.0.0.1:{server.server_port}",
        }
        configured(tmp_path, targets, f"127.0.0.1:{alert_port}", told[0])
        start(
            *(tmp_path, "alertmanager", shutil.which("prometheus-alertmanager"), "--cluster.listen-address="),
            *(f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/alerts"),
            f"--web.listen-address=127.0.0.1:{alert_port}",
        )
        start(
            *(tmp_path, "prometheus", shutil.which("prometheus"), f"--config.file={tmp_path}/prometheus.yml"),
            *(f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"),
        )
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10, trust_env=False) as client:

            def ask(path: str, **parameters: str) -> Any:
                try:
                    reply = client.get(path, params=parameters)
                except httpx2.HTTPError:
                    return None
                return reply.json()["data"] if reply.status_code == 200 else None

            def all_up() -> bool:
                found = (ask("targets") or {}).get("activeTargets", [])
                return len(found) == len(targets) and all(each["health"] == "up" for each in found)

            wait_until(all_up)
            shown = json.dumps([grafana_dashboards.dashboard(name) for name in grafana_dashboards.DASHBOARDS])
            asked = set(re.findall(r"\bqubic_lab[\w:]+", shown)) - IDLE
            wait_until(lambda: asked <= set(ask("label/__name__/values")))  # what the dashboards show
            rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            names, metadata = set(ask("label/__name__/values")), ask("metadata")
            assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
            families = {re.sub(r"_(bucket|count|sum|total|created|info)$", "", name) for name in names}
            helped = {re.sub(r"_(total|info)$", "", name) for name, (about, *_) in metadata.items() if about["help"]}
            scraped = {name for name in families if not re.match(r"up$|scrape_|ALERTS|qubic_lab:", name)}
            assert scraped - helped == set(), "without help"
            for label in ask("labels"):
                if label not in ("__name__", "le"):
                    assert len(ask(f"label/{label}/values")) <= MOST_VALUES, label
            steps = ask("query", query="qubic_lab_rank_steps_total > 0")["result"]
            ranks = {(each["metric"]["job"], each["metric"].get("node"), each["metric"]["rank"]) for each in steps}
            assert ranks == {(*who, rank) for who in (("coordinator", "a"), ("serve", None)) for rank in "01"}

            engine.dispose()
            server.shutdown()
            server.server_close()
            wait_until(lambda: told[1])
            alert, *_ = [alert for alert in told[1] if alert["labels"]["job"] == "collector"]
            assert (alert["status"], alert["labels"]["alertname"]) == ("firing", "TargetDown")
            assert alert["annotations"]["summary"] == f"collector at {targets['collector']} does not answer"


IDLE = {
    # What appears with its first event only: sources that were asked, certificates, two values in time.
    "qubic_lab_oracle_price_age_seconds",
    "qubic_lab_oracle_source_age_seconds",
    "qubic_lab_oracle_source_requests_total",
    "qubic_lab_oracle_source_rows_total",
    "qubic_lab:certificate_left_seconds:min",
    "qubic_lab_redis_errors_total",
}


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
