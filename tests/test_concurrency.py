"""The study of many clients at once: quantiles and intervals by hand, what is summed up, said and drawn."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Run
from examples import example
from headlines import told

from qubic_lab.bench.concurrency import (
    ClientBlock,
    ClientRequest,
    ConcurrencyLevel,
    ConcurrencyResult,
    compute_shares,
    make_questions,
    plan_blocks,
    summarize,
)
from qubic_lab.bench.result import quantile, quantile_interval
from qubic_lab.core import Completion
from qubic_lab.pipeline.calls import PipelineAnswer
from qubic_lab.studies import concurrency as study

EXPECTED = {0: (1, 2, 3), 1: (4, 5)}


def asked(index: int, latency_s: float, number: int, tokens: tuple[int, ...]) -> ClientRequest:
    completion = Completion("", "", tokens, "length", 8, ttft_ms=100.0 * latency_s, tokens_per_s=1.0)
    return ClientRequest(index, latency_s, PipelineAnswer(number, completion))


def block(latency_s: float, *, number: int = 0, second: tuple[int, ...] = (4, 5)) -> ClientBlock:
    """Two questions; their answers have five tokens and take as long as the slower one."""
    answers = (asked(0, latency_s, number, (1, 2, 3)), asked(1, 2 * latency_s, number + 1, second))
    return ClientBlock(clients=2, seconds=2 * latency_s, asked=answers, finished=2)


def level(*blocks: ClientBlock) -> ConcurrencyLevel:
    queue_s = {number: 0.25 * number for each in blocks for number in each.numbers}
    return summarize(blocks, EXPECTED, queue_s, dict.fromkeys(blocks, (0.5, 0.75)))


def result(**changes: Any) -> ConcurrencyResult:
    """A result of two levels, of which the second one has changes."""
    one = level(block(1.0), block(2.0, number=2))
    many = replace(one, clients=10, p50_s=3.0, tokens_per_s=10.0, **changes)
    return example(ConcurrencyResult, levels=(one, many), requests=2)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(5, 0.5, 3), (4, 0.5, 2), (20, 0.95, 19), (99, 0.99, 99), (100, 0.99, 99), (1, 0.99, 1)],
)
def test_a_quantile_is_the_value_at_its_rank(count: int, share: float, rank: int) -> None:
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    assert quantile(values, share) == rank


def test_an_interval_has_the_ranks_of_the_binomial() -> None:
    assert quantile_interval(range(1, 11), 0.5) == (2, 9)  # (1 + 10) / 2¹⁰ = 1.07 %, with the third 5.5 %
    assert quantile_interval(range(1, 6), 0.5) == (None, None)  # 1 / 2⁵ is more than 2.5 %
    # 0.95⁷¹ is more than 2.5 %, 0.95⁷² is less: only then may the largest be an upper end.
    assert quantile_interval(range(1, 72), 0.95)[1] is None
    assert quantile_interval(range(1, 73), 0.95)[1] == 72


def test_questions_are_mixed_and_the_same_each_time() -> None:
    questions = make_questions(300, 30, most_prompt_tokens=20, most_new_tokens=6)
    assert questions == make_questions(300, 30, most_prompt_tokens=20, most_new_tokens=6)
    assert {len(question.token_ids) for question in questions} <= set(range(8, 21))
    assert {question.sampling.max_new_tokens for question in questions} == set(range(2, 7))
    assert len({question.sampling.temperature for question in questions}) == 3
    assert len({question.sampling.seed for question in questions}) == 30


def test_each_block_asks_every_question_once_and_repeats_have_other_neighbours() -> None:
    blocks = list(plan_blocks([1, 4], requests=8, repeat=2))
    assert [clients for clients, _ in blocks] == [1, 4, 1, 4], "levels take turns"
    assert all(sorted(order) == list(range(8)) for _, order in blocks)
    assert blocks[0][1] == blocks[1][1] != blocks[2][1]


def test_a_level_sums_up_its_blocks() -> None:
    found = level(block(1.0), block(2.0, number=2))
    assert found.latencies_s == (1.0, 2.0, 2.0, 4.0)
    assert (found.requests, found.answered, found.p50_s, found.p95_s, found.p99_s) == (4, 4, 2.0, 4.0, 4.0)
    assert (found.ttft_p50_s, found.ttft_p95_s) == pytest.approx((0.2, 0.4))
    assert (found.queue_p50_s, found.queue_p95_s) == (0.25, 0.75)
    assert found.tokens_per_s_samples == (2.5, 1.25)
    assert found.tokens_per_s == 1.875
    assert found.compute_shares == (0.5, 0.75)
    assert found.answers_unchanged and not found.changed
    assert level(block(1.0), block(2.0, number=2, second=(4, 6))).changed == (1,), "one other token is a change"


def test_shares_of_computing_are_those_of_a_blocks_own_time() -> None:
    rows = [
        ("queue", 0, (5,), 100.0, 110.0),
        ("compute", 0, (5,), 110.0, 150.0),
        ("sample", 1, (5, 6), 150.0, 200.0),
        ("receive", 0, (5,), 150.0, 200.0),
        ("compute", 0, (7,), 0.0, 90.0),  # of another block
        ("memory", 0, (), 120.0, 120.0),
    ]
    spans = pd.DataFrame(rows, columns=["kind", "rank", "requests", "start_ms", "end_ms"])
    assert compute_shares(spans, (5, 6), ranks=2) == (0.4, 0.5)


@pytest.mark.dist
def test_the_command_measures_levels_and_prints_them(shared_ranks: None, tiny: Path, here: Run) -> None:
    line = f"bench concurrency --model {tiny} --ranks 2 --slots 2 --clients 1,3 --requests 4 --repeat 2 --new-tokens 6"
    found = here(f"{line} --json").json
    assert [each["clients"] for each in found["levels"]] == [1, 3]
    for each in found["levels"]:
        assert each["answered"] == each["requests"] == 8
        assert each["answers_unchanged"]
        assert 0 < each["queue_p50_s"] <= each["ttft_p50_s"] <= each["p50_s"] <= each["p95_s"] <= each["p99_s"]
        assert all(0 < share <= 1 for share in each["compute_shares"]) and len(each["compute_shares"]) == 2
        assert len(each["tokens_per_s_samples"]) == 2
    assert "lanes: 2, slots: 2" in here(line).out


def test_findings_do_not_hide_what_is_wrong() -> None:
    found = study.findings(result(p95_s=11.0, answers_unchanged=False, changed=(1,)))
    latency, answers, *_ = found
    assert told(found, "speed")
    assert "over the 10 s target" in str(latency) and latency.figure() == "11.00 s at p95"
    assert str(answers) == "Concurrency changes answers: with 10 clients, 1 of 2 questions got other tokens than alone."
