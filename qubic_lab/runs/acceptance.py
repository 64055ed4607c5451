"""The acceptance table of a week: the studies judge what its runs recorded; the rest says why it is not measured."""

from collections.abc import Mapping
from dataclasses import replace

from qubic_lab.runs.records import Records
from qubic_lab.studies import (
    accuracy_comparison,
    cluster,
    concurrency,
    consensus_evaluation,
    oracle_results,
    split_strategies,
)
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, WeekResults

STUDIES = (
    cluster,
    split_strategies,
    accuracy_comparison,
    concurrency,
    consensus_evaluation,
    oracle_results,
)

CLOUD = "there are no machines in the cloud to measure, and the launch code is not written yet"

NOT_MEASURABLE = (
    ("9.1", "Cloud project as code", "a plan to review, idempotent, torn down by one command", CLOUD),
    ("9.2", "Three machines with one T4 each", "estimate and budget checked against each other", CLOUD),
    ("9.3", "Network and firewall", "a test shows that no other port is opened", CLOUD),
    ("9.4", "Set-up of a node", "each part verified on its node, with a remedy per failure", CLOUD),
    ("9.5", "Benchmark of the GPU", "DeepSeek in fp16, 100 new tokens", "no study runs it; qubic-lab bench gpu does"),
    (
        "9.6",
        "Network between all pairs of nodes",
        "RTT < 5 ms, bandwidth > 1 Gbps",
        "no study runs it; qubic-lab net check does, and there are no machines in the cloud to measure",
    ),
    (
        "10.1",
        "gRPC with mutual TLS",
        "a client without a certificate is refused",
        "a test of the service, and no study, shows it",
    ),
    (
        "10.2",
        "Registry of nodes",
        "heartbeat every 5 s, removed after 30 s of silence",
        "tests of the registry, and no study, show it",
    ),
    (
        "10.3",
        "Health score",
        "CPU 30 %, memory 30 %, response time 25 %, error rate 15 %; failures gate",
        "tests of score and gates, and no study, show it",
    ),
    (
        "13.4",
        "Price analysis",
        "indicators equal a reference library's",
        "they are TA-Lib's; tests compare them with values worked out by hand, and no study does",
    ),
    (
        "13.5",
        "Oracle's answers",
        "< 2 s sentiment, < 1 s price, < 3 s overview at p95",
        "no study runs it; qubic-lab bench oracle does",
    ),
)
"""Row id, what, target, and why no study measures it."""


def judge(runs: Mapping[str, Records]) -> list[AcceptanceRow]:
    """Return the rows for what the finished runs of a week recorded, given by the runs' names."""
    week = WeekResults(
        {run: records.results for run, records in runs.items()},
        {run: {picture.name: picture.caption for picture in records.pictures} for run, records in runs.items()},
    )
    judged = [row for study in STUDIES for row in study.acceptance(week)]
    unbuilt = [
        replace(Criterion(id, what, target).row("", "not measured here", reason), measurable=False)
        for id, what, target, reason in NOT_MEASURABLE
    ]
    return sorted(judged, key=lambda row: [int(part) for part in row.id.split(".")]) + unbuilt
