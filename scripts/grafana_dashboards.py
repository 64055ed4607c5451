"""Write the dashboards of Grafana in `launch/monitoring/grafana/dashboards` from the list of their panels here.

They were never rendered in Grafana; a test compares the names of metrics with those of a running cluster.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "launch" / "monitoring" / "grafana" / "dashboards"
WIDTH, HEIGHT = 12, 8
Panel = tuple[str, str, dict[str, str]]
"""Title, unit, and expressions by legend."""

CLUSTER: tuple[Panel, ...] = (
    ("Nodes by gate", "short", {"{{gate}}": "max by (gate) (qubic_lab_nodes)"}),
    ("Health of nodes", "short", {"{{node}}": "max by (node) (qubic_lab_node_health_score)"}),
    ("Tasks that wait or run", "short", {"{{state}}": "max by (state) (qubic_lab_tasks)"}),
    (
        "Tasks ended",
        "ops",
        {"{{state}}": "max by (state) (rate(qubic_lab_tasks_ended_total[5m]))"},
    ),
    ("Tokens of nodes", "short", {"{{node}} tokens/s": "qubic_lab:node_tokens:rate1m"}),
    (
        "Requests of nodes, and their slots",
        "short",
        {
            "{{node}}": "max by (node) (qubic_lab_node_outstanding_requests)",
            "{{node}} slots": "max by (node) (qubic_lab_node_slots)",
        },
    ),
    (
        "Requests over HTTP",
        "reqps",
        {"{{job}} {{status}}": "sum by (job, status) (rate(qubic_lab_http_requests_total[5m]))"},
    ),
    (
        "Time of answers",
        "s",
        {
            "{{job}} p95": "qubic_lab:answer_seconds:p95_5m",
            "{{job}} p50": (
                "histogram_quantile(0.5, sum by (job, le) "
                '(rate(qubic_lab_http_seconds_bucket{route=~"/v1/.+|/api/ai/.+"}[5m])))'
            ),
        },
    ),
    (
        "Time until a node is chosen",
        "s",
        {"p95": "histogram_quantile(0.95, sum by (le) (rate(qubic_lab_dispatch_seconds_bucket[5m])))"},
    ),
    ("Calls of nodes", "ops", {"{{end}}": "sum by (end) (rate(qubic_lab_node_calls_total[5m]))"}),
    (
        "Keys and values held",
        "percentunit",
        {"{{node}}": "max by (node) (qubic_lab_node_context_tokens / qubic_lab_node_context_limit_tokens)"},
    ),
    (
        "Processor and memory of nodes",
        "percentunit",
        {
            "{{node}} processor": "max by (node) (qubic_lab_node_cpu_ratio)",
            "{{node}} memory": "max by (node) (qubic_lab_node_memory_ratio)",
        },
    ),
    ("Memory of processes", "bytes", {"{{node}}": "max by (node) (qubic_lab_node_resident_memory_bytes)"}),
    (
        "Time in which ranks compute, and wait for the rank before them",
        "percentunit",
        {
            "{{node}} rank {{rank}}": "max by (job, node, rank) (rate(qubic_lab_rank_compute_seconds_total[1m]))",
            "{{node}} rank {{rank}} waits": "max by (job, node, rank) (rate(qubic_lab_rank_wait_seconds_total[1m]))",
        },
    ),
    (
        "Time of a rank's step",
        "s",
        {
            "{{node}} rank {{rank}}": (
                "max by (job, node, rank) (rate(qubic_lab_rank_compute_seconds_total[1m])"
                " / rate(qubic_lab_rank_steps_total[1m]))"
            )
        },
    ),
    (
        "Tokens of ranks",
        "short",
        {"{{node}} rank {{rank}} tokens/s": "max by (job, node, rank) (rate(qubic_lab_rank_tokens_total[1m]))"},
    ),
    (
        "Memory of ranks",
        "bytes",
        {"{{node}} rank {{rank}}": "max by (job, node, rank) (qubic_lab_rank_resident_memory_bytes)"},
    ),
    ("Free space", "percentunit", {"{{node}}{{instance}}": "qubic_lab:disk_free:ratio"}),
    ("Certificates", "s", {"{{node}}{{instance}}": "qubic_lab:certificate_left_seconds:min"}),
    (
        "Errors of Redis and of the database",
        "ops",
        {
            "Redis, {{kind}}": "sum by (kind) (rate(qubic_lab_redis_errors_total[5m]))",
            "database": "sum(rate(qubic_lab_database_errors_total[5m]))",
        },
    ),
)
VOTES_AND_ORACLE: tuple[Panel, ...] = (
    ("Votes by level", "ops", {"{{level}}": "sum by (level) (rate(qubic_lab_votes_total[15m]))"}),
    (
        "Time of votes",
        "s",
        {"p95": "histogram_quantile(0.95, sum by (le) (rate(qubic_lab_vote_seconds_bucket[15m])))"},
    ),
    ("Votes with a conflict", "ops", {"conflicts": "sum(rate(qubic_lab_vote_conflicts_total[15m]))"}),
    ("Votes held now", "short", {"votes": "sum(qubic_lab_votes_running)"}),
    ("Age of the newest price", "s", {"{{coin}}": "min by (coin) (qubic_lab_oracle_price_age_seconds)"}),
    ("Time since sources answered", "s", {"{{source}}": "min by (source) (qubic_lab_oracle_source_age_seconds)"}),
    (
        "Requests to sources",
        "ops",
        {"{{source}} {{outcome}}": "max by (source, outcome) (rate(qubic_lab_oracle_source_requests_total[15m]))"},
    ),
    ("New rows", "ops", {"{{source}}": "max by (source) (rate(qubic_lab_oracle_source_rows_total[15m]))"}),
)
DASHBOARDS = {"cluster": ("Qubic Lab: cluster", CLUSTER), "oracle": ("Qubic Lab: votes and oracle", VOTES_AND_ORACLE)}


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard in Grafana's form: its panels in two columns."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"qubic-lab-{name}",
        "title": title,
        "tags": ["qubic-lab"],
        "timezone": "browser",
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "schemaVersion": 39,
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    title, unit, expressions = panel
    source = {"type": "prometheus", "uid": "prometheus"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": source, "expr": expression, "legendFormat": legend}
            for place, (legend, expression) in enumerate(expressions.items())
        ],
    }


def main() -> None:
    """Write all dashboards."""
    for name in DASHBOARDS:
        text = json.dumps(dashboard(name), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
