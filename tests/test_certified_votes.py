"""Certificates of votes: which ballots count, and in which order; samples are asked for only while they are needed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Run

from qubic_lab.bench.stopping import bench_stopping, follow
from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.dependence import find_copies
from qubic_lab.consensus.stopping import replay
from qubic_lab.consensus.voting import Absence, AbsenceReason, AnswerSource, Ballot, Vote
from qubic_lab.core import Completion, Request, SamplingParams
from qubic_lab.errors import InputError
from qubic_lab.evals.recorded import RecordedQuestion, RecordedSample
from qubic_lab.evals.self_consistency import certified_votes
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.votes.certify import certificate_of, certify
from qubic_lab.votes.samples import vote_on_samples
from qubic_lab.votes.voters import CERTIFIED, VoteRequest
from qubic_lab.wire import pipeline_pb2

QUESTION = "What is 5 + 7?"
RIGHT, WRONG = "The answer is 12.", "The answer is 13."
REQUEST = VoteRequest(
    pipeline_pb2.GenerateRequest(), 1, 16, 1, 10.0, VotingConfig("majority"), "any", stop_rule=CERTIFIED
)
SAMPLING = SamplingParams(temperature=0.7, seed=11)


def vote(voter: str, text: str = RIGHT, model: str = "m", seed: int | None = None) -> Vote:
    sampling = replace(SAMPLING, seed=hash(voter) % 2**40 if seed is None else seed)
    return Vote(voter, voter[0], model, AnswerSource(model, QUESTION, sampling), text, "stop", 4, 1.0)


def result_of(votes: Sequence[Vote], *absences: Absence) -> Consensus:
    return deliberate(QUESTION, votes, absences, VoteContext(), VotingConfig("majority"))


def column(names: str) -> list[tuple[str, ...]]:
    return [(name,) for name in names]


def test_ballots_of_one_source_count_in_the_order_asked_up_to_the_first_that_is_missing():
    names = "abcde"
    whole = result_of([vote(name) for name in reversed(names)])
    assert certificate_of(whole, column(names), REQUEST).winner == whole.decision.winner == 0
    rest = [vote(name) for name in names if name != "a"] + [vote("g"), vote("h")]
    certifier = certify(result_of(rest), column("abcdefgh"), REQUEST)
    assert (certifier.certificate.ballots, certifier.missing) == (0, 5), "the quickest ones prove nothing"
    failed = Absence("a", AbsenceReason.FAILED, "gone")
    assert certify(result_of(rest, failed), column("abcdegh"), REQUEST).certificate.winner == 0
    late = Absence("a", AbsenceReason.LATE, "after 5 s")
    assert certify(result_of(rest, late), column("abcdegh"), REQUEST).certificate.winner is None


def test_copies_are_one_ballot_and_never_certified():
    copies = result_of([vote(name, seed=7) for name in "abcdefgh"])
    assert certificate_of(copies, column("abcdefgh"), REQUEST).winner is None
    assert certify(copies, column("abcdefgh"), REQUEST).certificate.ballots == 1


def test_several_sources_count_in_whole_rows():
    rows = [(f"a{n}", f"b{n}") for n in range(4)]
    votes = [vote(name, model=f"model {name[0]}") for row in rows for name in row]
    assert certificate_of(result_of(votes), rows, REQUEST).ballots == 8
    assert certificate_of(result_of(votes), rows, REQUEST).winner == 0
    without = [each for each in votes if each.voter != "b0"]
    failed = Absence("b0", AbsenceReason.FAILED, "gone")
    assert certify(result_of(without, failed), rows, REQUEST).certificate.ballots == 6
    other = [replace(each, source=votes[0].source) if each.voter == "b1" else each for each in votes]
    assert certify(result_of(other), rows, REQUEST).certificate.ballots == 6, "of other sources than the first row"


def test_a_reply_that_is_not_the_winners_is_not_certified():
    whole = result_of([vote(name) for name in "abcdef"])
    assert certificate_of(whole.cautious(), column("abcdef"), REQUEST).winner is None
    assert whole.level is ConfidenceLevel.NOTE


class Parrot:
    """A pipeline that says given texts, by seed, and counts what it was asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.seeds, self.config = texts, list[int](), SimpleNamespace(slots=32)

    def samples(self, request: Request, count: int) -> list[Completion]:
        seeds = range(request.sampling.seed, request.sampling.seed + count)
        self.seeds += seeds
        texts = [self.texts[(seed - SAMPLING.seed) % len(self.texts)] for seed in seeds]
        return [Completion(request.prompt, text, (1, 2, 3), "stop", 4, 1.0, 1.0) for text in texts]


@pytest.mark.parametrize(
    ("texts", "asked", "told"),
    [
        ((RIGHT,), 5, "certified at 5 %"),
        ((RIGHT, WRONG, *(RIGHT,) * 14), 10, "certified at 5 %"),
        ((RIGHT, WRONG, "It is 14."), 16, "not certified after 16"),
    ],
)
def test_samples_are_asked_for_until_the_winner_is_certified(texts: Sequence[str], asked: int, told: str):
    parrot = Parrot(texts)
    found = vote_on_samples(parrot, Request(QUESTION, sampling=SAMPLING))  # type: ignore[arg-type]
    assert (str(found.certificate), parrot.seeds) == (told, list(range(11, 11 + asked)))
    assert (found.tokens, found.tokens_saved) == (3 * asked, 3 * (16 - asked))
    assert found.result.text in (RIGHT, WRONG, "It is 14.")
    sources = {each.vote.voter: each.vote.source for each in found.result.voters}
    assert len(sources) == asked and find_copies(sources) == (), "no two samples are copies"


def test_samples_of_a_pipeline_are_those_of_one_request_and_no_copies(one_rank: Pipeline, tiny: Path):
    one_rank.configure(PipelineConfig(str(tiny), 1, dtype="fp32", threads=1, slots=16))
    request = Request("two words", sampling=replace(SAMPLING, max_new_tokens=6, temperature=2.0))
    whole = [each.text for each in one_rank.samples(request, 16)]
    found = vote_on_samples(one_rank, request)
    texts = [each.vote.text for each in found.result.voters]
    assert texts == whole[: len(texts)]
    assert len(set(whole)) > 8
    with pytest.raises(InputError, match="temperature is 0: all samples would be copies"):
        vote_on_samples(one_rank, Request("two words"))
    with pytest.raises(InputError, match="samples is 17: it must be at most 16"):
        vote_on_samples(one_rank, request, 17)


@pytest.mark.usefixtures("shared_ranks")
def test_the_command_tells_whether_its_answer_is_certified(tiny: Path, tmp_path: Path, here: Run):
    ask = f"generate --model {tiny} --prompt hi --max-new-tokens 3 --temperature 0.01 --vote 16"
    found = here(f"{ask} --json").json
    assert (found["certificate"], found["samples"]) == ("certified at 5 %", 5)
    assert found["tokens_saved"] == 33
    assert "certified at 5 %; 5 of 16 samples, 15 tokens, 33 saved" in here(ask).out
    (tmp_path / "prompts.txt").write_text("hi\nho")
    two = here(f"generate --model {tiny} --prompts-file {tmp_path}/prompts.txt --vote 3").failed(2)
    assert "--vote takes one prompt, not 2: give --prompt" in two


def test_recorded_votes_stop_and_are_compared_with_all_samples():
    def row(groups: str) -> RecordedQuestion:
        samples = tuple(RecordedSample(g, 10, None if g == "-" else ord(g), g == "a") for g in groups)
        return RecordedQuestion(groups, "factual", "?", "a", samples[0], samples)

    found = certified_votes([row("a" * 16), row("a" * 5 + "b" * 11), row("abcd" * 4), row("-" * 16)], 16)
    assert (found.certified.value, found.other_winner.value) == (0.5, 0.25)
    assert found.saved.value == pytest.approx(2 * 11 / 16 / 4)
    assert found.difference.value == 0.25, "the first five were right, and the later eleven wrong"
    later = certified_votes([row("a" * 16 + "b" * 17), row("a" * 16 + "b" * 16)], 16)
    assert later.other_winner.value == 0.5, "one has fewer of all samples than the other answer, one as many"


def test_simulated_votes_stop_as_replayed_ones():
    for answers in [(0,) * 16, (0, 1) + (0,) * 14, (0, 1, 2, 3) * 4, (1,) + (0,) * 15, (0, 0, 1, 1) * 4]:
        done = follow(answers, 0.05)
        ballots = [Ballot(f"v{number:02}", group) for number, group in enumerate(answers)]
        real = replay(ballots, [1] * 16, rule="plurality", error=0.05)
        assert (done.taken, done.winner, done.certified) == (real.taken, real.winner, real.certified), answers


def test_promises_hold_in_simulations_and_what_is_not_promised_does_not():
    result = bench_stopping(questions=1500, seed=3)
    by_name = {each.name: each for each in result.settings}
    assert all(each.wrong_interval[0] <= 0.05 for each in result.settings if each.promised)
    (untold,) = (each for each in result.settings if not each.promised)
    assert untold.wrong_interval[0] > 0.05
    told = by_name["correlated, 0 to 0.6, told: of others"]
    assert told.certified < untold.certified
    same = by_name["correlated, 0 to 0.6: of the same voters"]
    assert same.saved > 0.4 and same.difference > -0.02
    assert bench_stopping(questions=100, seed=3) == bench_stopping(questions=100, seed=3)
    for wrong, problem in [({"questions": 5}, "questions is 5"), ({"correlation": 2.0}, "correlation is 2.0")]:
        with pytest.raises(InputError, match=problem):
            bench_stopping(**wrong)
