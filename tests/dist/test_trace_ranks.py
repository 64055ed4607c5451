"""Traces of running ranks: every span and token is there, and answers do not know of it."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.calls import PipelineAnswer
from qubic_lab.trace import read_trace, request_times, trace_cost

pytestmark = pytest.mark.dist

SAMPLED = SamplingParams(max_new_tokens=9, ignore_eos=True, temperature=1.0, seed=5)
PROMPT_LENGTHS = (3, 130, 40, 300, 7)


def ask(pipeline: Pipeline, config: PipelineConfig) -> list[PipelineAnswer]:
    """Answer prompts of several lengths, and have the ranks write out what they noted."""
    pipeline.configure(config)
    prompts = [tuple(range(length)) for length in PROMPT_LENGTHS]
    answers = list(pipeline.answer_all([Request(token_ids=prompt, sampling=SAMPLED) for prompt in prompts]))
    pipeline.describe()
    return answers


@pytest.fixture
def off(tiny: Path) -> PipelineConfig:
    return PipelineConfig(model=str(tiny), ranks=2, slots=2, threads=1)


def test_both_ranks_account_for_every_token(off: PipelineConfig, two_ranks: Pipeline, tmp_path: Path) -> None:
    answers = ask(two_ranks, replace(off, trace=tmp_path))
    table = read_trace(tmp_path)
    kinds = {rank: set(spans["kind"]) for rank, spans in table.groupby("rank")}
    assert kinds == {
        0: {"queue", "compute", "send", "receive", "memory"},
        1: {"compute", "sample", "send", "receive", "memory"},
    }
    computed = table[table["kind"] == "compute"].groupby(["rank", "phase"])["tokens"].sum()
    steps = len(answers) * (SAMPLED.max_new_tokens - 1)  # the last token is not computed on
    assert computed.to_dict() == {
        (rank, phase): tokens
        for rank in (0, 1)
        for phase, tokens in (("prefill", sum(PROMPT_LENGTHS)), ("decode", steps))
    }
    times = request_times(table)
    assert set(times.index) == {(answer.number, rank) for answer in answers for rank in (0, 1)}
    assert (times >= 0).all(axis=None)
    assert trace_cost(table) > 0
    for _, spans in table[~table["kind"].isin(["queue", "memory"])].groupby("rank"):
        busy = list(zip(spans["start_ms"], spans["end_ms"], strict=True))
        assert all(first[1] <= second[0] for first, second in pairwise(busy)), "a rank does one thing at a time"
    steps = table[table["kind"] == "compute"].pivot(index="sequence", columns="rank", values=["start_ms", "end_ms"])
    assert (steps["start_ms"][1] >= steps["end_ms"][0]).all(), "a micro-batch reaches rank 1 after rank 0"


def test_answers_are_the_same_and_off_writes_nothing(off: PipelineConfig, two_ranks: Pipeline, tmp_path: Path) -> None:
    tokens = [[a.completion.token_ids for a in ask(two_ranks, replace(off, trace=tmp_path))]]
    two_ranks.configure(off)  # before looking: while the trace is on, an idle ring's beat is noted too
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(written) == ["rank-0.jsonl", "rank-1.jsonl"]
    tokens.append([a.completion.token_ids for a in ask(two_ranks, off)])
    assert tokens[0] == tokens[1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_one_rank_is_traced_too(off: PipelineConfig, one_rank: Pipeline, tmp_path: Path) -> None:
    ask(one_rank, replace(off, ranks=1, trace=tmp_path))
    assert {"queue", "compute", "sample", "send", "receive"} <= set(read_trace(tmp_path)["kind"])


def test_a_folder_that_cannot_be_written_is_refused(off: PipelineConfig, two_ranks: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        two_ranks.configure(replace(off, trace=tmp_path / "file"))
    assert len(ask(two_ranks, off)) == len(PROMPT_LENGTHS)
