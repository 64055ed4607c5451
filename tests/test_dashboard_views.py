"""What the dashboard shows, as plain values from answers of the interface; no browser and no server."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qubic_lab.dashboard import cluster_view, consensus_view, oracle_view
from qubic_lab.dashboard.playground import spans, voter_spans
from qubic_lab.dashboard.rendering import age_text, render, vote_html
from qubic_lab.dashboard.traces import Traces, span_columns
from qubic_lab.runs.language import language, translated_text

EXAMPLES = json.loads(resources.files("qubic_lab.api").joinpath("examples.json").read_text())
GOLDEN = json.loads((Path(__file__).parent / "golden" / "oracle_routes.json").read_text())
AT = "2021-12-29T13%3A51%3A00Z"
METRICS = """
# TYPE qubic_lab_http_seconds histogram
qubic_lab_http_seconds_bucket{le="1.0",route="/api/ai/query"} 50
qubic_lab_http_seconds_bucket{le="2.0",route="/api/ai/query"} 90
qubic_lab_http_seconds_bucket{le="+Inf",route="/api/ai/query"} 100
qubic_lab_http_seconds_bucket{le="1.0",route="/health"} 1000
# TYPE qubic_lab_http_requests counter
qubic_lab_http_requests_total{route="/api/ai/query",status="200"} 90
qubic_lab_http_requests_total{route="/api/ai/query",status="503"} 7
qubic_lab_http_requests_total{route="none",status="503"} 3
"""


def example(route: str) -> Any:
    return EXAMPLES[route]["answers"]["application/json"]


def trail() -> Any:
    """Return the trail of the example, which has two of eight voters, with the standing of these."""
    found = example("GET /api/consensus/history/{vote_id}")
    decision = found["decision"]
    standings = [{**each, "voters": ["a#2"]} for each in decision["standings"] if "a#2" in each["voters"]]
    return {**found, "decision": {**decision, "standings": standings}}


def analysis(frame: str = "1h") -> Any:
    body = json.loads(json.dumps(GOLDEN[f"price_analysis?coin=bitcoin&as_of={AT}&frame={frame}"]["body"]))
    bars = body["bars"]
    if isinstance(bars.get("bars"), dict):  # long lists are kept in short
        bars["bars"] = [bars["bars"]["first"][0], bars["bars"]["last"]]
    body["levels"] = (
        body["levels"]["first"] if isinstance(body["levels"], dict) and "first" in body["levels"] else body["levels"]
    )
    return body


def test_a_node_s_score_is_the_sum_of_the_parts_that_are_shown() -> None:
    for row in cluster_view.node_rows(example("GET /api/cluster/nodes")):
        assert sum(part.points for part in row.parts) == pytest.approx(row.node.score, abs=0.01)


def test_closed_nodes_come_first_and_say_why() -> None:
    (node, *_) = example("GET /api/cluster/nodes")
    rows = cluster_view.node_rows([{**node, "name": "a"}, {**node, "name": "b", "gate": "no heartbeat"}])
    assert [row.node.name for row in rows] == ["b", "a"]
    shown = render("nodes", rows=rows, waited_s=3.0)
    assert "no heartbeat" in shown
    assert shown.index('data-node="b"') < shown.index('data-node="a"')


def test_percentiles_are_of_questions_alone_and_lie_within_their_buckets() -> None:
    counts = cluster_view.http_counts(METRICS)
    assert counts.errors == {"503": 7}
    found = {each.percent: each for each in cluster_view.percentiles(counts)}
    assert (found[50].seconds, found[90].seconds, found[99].at_least) == (1.0, 2.0, True)


def test_recent_percentiles_leave_out_what_was_before_and_start_anew_with_the_coordinator() -> None:
    then = cluster_view.http_counts(METRICS)
    now = cluster_view.HttpCounts(then.bounds_s, (50.0, 190.0, 200.0), {})
    recent = cluster_view.recent_percentiles(((0.0, then), (100.0, now)))
    assert recent[0].seconds == pytest.approx(1.5)  # of 100 new answers all but 0 took 1 s to 2 s
    restarted = cluster_view.HttpCounts(then.bounds_s, (1.0, 1.0, 1.0), {})
    assert cluster_view.recent_percentiles(((0.0, then), (100.0, restarted)))[0].seconds == pytest.approx(0.5)
    assert cluster_view.recent_percentiles(()) == []


def test_token_rates_survive_a_restart_of_a_node() -> None:
    course = ((0.0, {"a": 100, "b": 5}), (2.0, {"a": 140, "b": 5}), (4.0, {"a": 10}), (6.0, {"a": 20, "b": 90}))
    rates = cluster_view.token_rates(course)
    assert rates["tokens_per_s"] == [20.0, 20.0, 5.0, 5.0, 5.0, 5.0]  # at the beginning and the end of each time
    assert rates["at_s"] == [0.0, 2.0, 2.0, 4.0, 4.0, 6.0]


def test_a_held_vote_shows_who_said_what_and_why_some_do_not_count() -> None:
    vote = consensus_view.vote_view(trail())
    assert [voice.voter for voice in vote.voices] == ["a#1", "a#2"]
    assert vote.voices[0].why_not.startswith("truncated")
    shown = vote_html(vote)
    assert "The sky is blue because it is composed" in shown
    assert "25 %" in shown


def test_a_running_vote_shows_the_last_count_and_the_last_round() -> None:
    count = {"answered": 1, "missing": 2, "standings": [{"answer": "12", "voters": ["a"], "share": 1.0}]}
    later = {**count, "answered": 2, "missing": 1}
    vote = consensus_view.live_view(
        "7 + 5?", [("count", count), ("count", later), ("round", {"level": "recompute", "confidence": 0.4})]
    )
    assert (vote.answered, vote.missing, vote.level, vote.confidence) == (2, 1, "recompute", 0.4)
    assert consensus_view.live_view("7 + 5?", []).standings == ()


def test_bands_count_every_vote_once() -> None:
    votes = [{"level": "fallback"}, {"level": "answer"}, {"level": "fallback"}, {"level": "new"}]
    bands = {band.level: band.votes for band in consensus_view.bands(votes)}
    assert (bands["fallback"], bands["answer"], bands["recompute"], bands["new"]) == (2, 1, 0, 1)


def test_answers_by_mode_have_labels_where_the_head_is_hidden() -> None:
    shown = render("modes", modes=example("GET /api/consensus/metrics"))
    assert '<td data-label="in conflict">1</td>' in shown


def test_what_a_model_says_is_never_markup() -> None:
    vote = consensus_view.live_view("<script>alert(1)</script>", [])
    assert "<script>" not in vote_html(vote)


def test_candles_have_bands_only_once_there_are_bars_enough() -> None:
    closes = [float(number) for number in range(1, 23)]
    middle, low, high = oracle_view.bollinger(closes)
    assert all(value != value for value in middle[:19])
    assert middle[19] == pytest.approx(10.5)
    assert high[19] - middle[19] == pytest.approx(middle[19] - low[19]) == pytest.approx(2 * 5.766281297335398)


def test_forecasts_begin_at_the_last_close() -> None:
    price = analysis()
    columns = oracle_view.forecast_columns(price)
    assert columns["price"][0] == price["bars"]["bars"][-1]["close"]
    assert columns["at"] == sorted(columns["at"])
    assert [row["hours"] for row in oracle_view.forecast_rows(price)] == [1, 2, 3, 4]


def test_a_part_that_is_missing_says_why_and_breaks_nothing() -> None:
    price = analysis()
    for name in ("bars", "forecasts", "levels", "anomalies", "breakouts", "patterns", "indicators", "trend_details"):
        price[name] = {"available": False, "reason": "no bars at all"}
    assert oracle_view.candles(price)["at"] == oracle_view.forecast_columns(price)["at"] == []
    assert oracle_view.levels(price)["xs"] == oracle_view.unusual_columns(price)["at"] == []
    assert oracle_view.day_before(price) is None
    for shown in (
        render("price", price=price, waited_s=0.0),
        render("indicators", price=price),
        render("forecasts", price=price, rows=[]),
        render("unusual", found=[], reasons=oracle_view.reasons(price)),
    ):
        assert "no bars at all" in shown


def test_risk_shows_its_evidence() -> None:
    risk = GOLDEN[f"risk?coin=bitcoin&as_of={AT}&frame=1h"]["body"]
    shown = render("risk", risk=risk)
    assert risk["level"]["evidence"][0]["rule"] in shown


@pytest.mark.parametrize(("value", "shown"), [(46934.8, "46,934.80"), (1.23e-6, "0.0000012300"), (None, "–")])
def test_prices_have_the_digits_that_they_need(value: float | None, shown: str) -> None:
    assert oracle_view.price_text(value) == shown


def test_ages_are_written_in_the_language_of_the_page() -> None:
    assert (age_text(3.2), age_text(300), age_text(None)) == ("3 s ago", "5 min ago", "not known yet")
    with language("zh-TW"):
        assert age_text(3.2) == "3 秒前"


def test_the_timeline_of_an_answer_has_no_gap() -> None:
    answer = {"queue_ms": 5.0, "prefill_ms": 40.0, "decode_ms": 100.0, "prompt_tokens": 30, "new_tokens": 11}
    columns = spans({"total_ms": 160.0, "answers": [answer]})
    assert columns["ms"] == [15.0, 5.0, 40.0, 100.0]
    assert columns["start"][1:] == columns["end"][:-1]


def test_spans_of_a_question_that_was_asked_here_are_drawn_by_rank() -> None:
    traces = Traces()
    parent = traces.begin()
    message = ExportTraceServiceRequest()
    added = message.resource_spans.add().scope_spans.add().spans
    for name, rank, start, end in (("queue", None, 1, 2), ("rank decode", 1, 7, 9), ("rank prefill", 0, 0, 5)):
        span = added.add(name=name, start_time_unix_nano=start * 10**6, end_time_unix_nano=end * 10**6)
        span.trace_id = bytes.fromhex(parent.split("-")[1])
        if rank is not None:
            span.attributes.add(key="rank").value.int_value = rank
    added.add(name="of somebody else", trace_id=b"0" * 16)
    traces.add(message.SerializeToString())
    columns = span_columns(traces.spans(parent))
    assert columns["what"] == ["queue", "rank 0: prefill", "rank 1: decode"]
    assert columns["start"] == [0.0, 0.0, 6.0]
    for _ in range(40):
        traces.begin()
    assert traces.spans(parent) == ()


def test_the_timeline_of_a_vote_has_each_voter() -> None:
    columns = voter_spans(trail())
    assert columns["what"] == ["a#1", "a#2"]
    assert columns["end"][0] == pytest.approx(867.08, abs=0.01)


@pytest.mark.parametrize(
    "said",
    [
        "no voter gave an answer",
        "group 0 has 3 of 3 ballots, which meets majority (more than 1/2)",
        "groups 0 and 1 have 2 of 4 ballots each, which falls short of super-majority (more than 2/3)",
        "group 1 has 51.5% of the weight, which meets weighted (more than 1/2); 1 was chosen by weight",
        "uncalibrated: none for this model and factual questions",
    ],
)
def test_why_a_vote_was_decided_is_told_in_chinese(said: str) -> None:
    with language("zh-TW"):
        told = translated_text(said)
    assert not re.search("[a-z]{4}", told), told
    assert re.findall(r"[\d./%]+", told) == re.findall(r"[\d./%]+", said)
