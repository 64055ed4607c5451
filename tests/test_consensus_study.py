"""Answers are recorded once and go on after a stop; votes of them are evaluated, told and drawn."""

import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from commands import Run
from examples import example
from headlines import told

from qubic_lab.bench.evaluations import bench_recorded_votes
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.confidence import load_calibration
from qubic_lab.errors import InputError
from qubic_lab.evals.consensus_eval import (
    ConsensusEvaluation,
    ConsensusPlan,
    ModelAnswers,
    VoteEvaluation,
    evaluate_answers,
    evaluate_votes,
    load_answers,
    observe,
    save_answers,
)
from qubic_lab.evals.graded import graded_questions
from qubic_lab.evals.paired import share_estimate
from qubic_lab.evals.questions import Question
from qubic_lab.evals.recorded import RecordedQuestion, RecordedSample, read_recorded
from qubic_lab.evals.recording import MOST_SAMPLES, Asking, read_answers, record_answers
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.studies import consensus_evaluation as study
from qubic_lab.studies import consensus_findings

ASKING = Asking(samples=3, max_new_tokens=4, factor=2)
QUESTIONS = (*graded_questions(6, seed=1), Question("tale-1", "Tell a tale of a fox.", "", "creative"))
KEPT = Path(__file__).parents[1] / "data" / "answers" / "smollm2.json.gz"
EASY = KEPT.with_name("easy.json.gz")
MODEL = "5" * 64
ASK = "bench consensus --voters model --k 2 --new-tokens 4"


@pytest.fixture
def asked(one_rank: Pipeline, tiny: Path) -> Pipeline:
    one_rank.configure(PipelineConfig(str(tiny), 1, dtype="fp32", threads=1, slots=6))
    return one_rank


def said(right: bool, wrong: str, logprob: float, tokens: int = 8) -> RecordedSample:
    text = "The answer is 7." if right else f"The answer is {wrong}."
    return RecordedSample(text, tokens, weight=0.5, signals=(("mean_logprob", logprob),))


def answered(number: int, share: float, kind: str, wrong: str = "12") -> RecordedQuestion:
    """A question whose five samples say 7, which is right, with a probability, and else one of the wrong numbers."""
    random = Random(f"{number} {kind}")
    drawn = [said(random.random() < share, random.choice(wrong), random.uniform(-2, -0.1)) for _ in range(5)]
    greedy = said(random.random() < share, "3", -0.1)
    row = RecordedQuestion(f"{kind}-{number}", kind, "What is 3 + 4?", "7", greedy, tuple(drawn), ((5, greedy),))
    return read_answers(Question(row.id, row.question, "7", kind), row)


def rows_of(share: float, count: int, spread: float = 0.25, wrong: str = "12") -> list[RecordedQuestion]:
    """Questions of two types, every other one easier by twice the spread: so a share of votes tells something."""
    return [
        answered(number, share + (spread if number % 2 else -spread), kind, wrong)
        for kind in ("factual", "technical")
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def calibrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrations")


@pytest.fixture(scope="module")
def many(calibrations: Path) -> VoteEvaluation:
    return evaluate_votes(rows_of(0.65, 210), 5, MODEL, calibrations=calibrations)


def test_recorded_answers_are_those_of_the_pipeline(asked: Pipeline):
    rows = record_answers(asked, QUESTIONS, ASKING)
    assert [row.id for row in rows] == [question.id for question in QUESTIONS]
    alone = asked.generate(QUESTIONS[1].question, max_new_tokens=4)
    assert (rows[1].greedy.text, rows[1].greedy.tokens) == (alone.text, len(alone.token_ids))
    longer = asked.generate(QUESTIONS[1].question, max_new_tokens=8)
    assert [(factor, each.text) for factor, each in rows[1].longer] == [(2, longer.text)]
    again = asked.samples(QUESTIONS[1].question, 3, max_new_tokens=4, temperature=0.7, seed=MOST_SAMPLES)
    assert [each.text for each in rows[1].samples] == [each.text for each in again]
    assert all(0 < each.weight < 1 and dict(each.signals)["mean_logprob"] < 0 for each in rows[1].samples)
    assert [row.is_judged for row in rows] == [True] * 6 + [False]


def test_a_question_beyond_the_models_context_is_left_out_and_told(
    asked: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    endless = replace(QUESTIONS[0], id="endless", question="why? " * 20_000)
    rows = record_answers(asked, [QUESTIONS[1], endless], ASKING)
    assert [row.id for row in rows] == [QUESTIONS[1].id]
    assert "question endless is left out" in caplog.text
    with pytest.raises(InputError, match="every question is longer than the model's context"):
        record_answers(asked, [endless], ASKING)


def test_a_stopped_recording_goes_on_and_asks_nothing_twice(asked: Pipeline, tmp_path: Path):
    whole = record_answers(asked, QUESTIONS, ASKING)
    file = tmp_path / "deeper" / "answers.jsonl"
    record_answers(asked, QUESTIONS[:2], ASKING, file)
    with file.open("a") as out:
        out.write('{"id": "killed in the mid')
    told: list[tuple[int, int]] = []
    rows = record_answers(asked, QUESTIONS, ASKING, file, lambda _, done, total: told.append((done, total)))
    assert rows == whole
    assert told == [(done, 7) for done in range(3, 8)]
    assert {row.id for row in read_recorded(file)} == {question.id for question in QUESTIONS}
    assert record_answers(asked, QUESTIONS, ASKING, file, lambda *_: pytest.fail("nothing is left to ask")) == whole


def test_a_file_of_something_else_is_an_error(asked: Pipeline, tmp_path: Path):
    file = tmp_path / "answers.jsonl"
    record_answers(asked, QUESTIONS[:1], ASKING, file)
    other = replace(QUESTIONS[0], question="What is 1 + 1?")
    with pytest.raises(InputError, match="answer to 'sums-001', whose question is different: give another file"):
        record_answers(asked, [other], ASKING, file)
    with pytest.raises(InputError, match="holds 3 samples of 'sums-001'"):
        record_answers(asked, QUESTIONS[:1], replace(ASKING, samples=2), file)
    with pytest.raises(InputError, match="samples is 7, but there are 6 slots"):
        record_answers(asked, QUESTIONS[:1], replace(ASKING, samples=7))


def test_answers_are_judged_and_grouped_by_what_they_say():
    texts = ("It is 7.", "7", "The answer is 8.", "", "3 + 4 = 7")
    samples = tuple(RecordedSample(text, 4) for text in texts)
    row = RecordedQuestion("sum", "analytical", "What is 3 + 4?", "", samples[2], samples)
    read = read_answers(Question("sum", "What is 3 + 4?", "7", "analytical"), row)
    assert [each.right for each in read.samples] == [True, True, False, False, True]
    assert [each.group for each in read.samples] == [0, 0, 1, None, 0]
    assert (read.greedy.right, read.reference) == (False, "7")


def test_cut_answers_are_judged_and_counted_by_what_they_had_concluded():
    texts = (
        "The answer is 7. To check it, we",
        "It is 7. Because",
        "First, 3 and 1 is 4. So 3 + 4 = 7",
        "<think>7",
        "The answer is 7",
    )
    samples = tuple(RecordedSample(text, 4, cut=True) for text in texts)
    row = RecordedQuestion("sum", "analytical", "What is 3 + 4?", "", replace(samples[2], cut=False), samples)
    read = read_answers(Question("sum", "What is 3 + 4?", "7", "analytical"), row)
    assert [each.right for each in read.samples] == [True, True, False, False, False]
    first, second, *rest = [each.group for each in read.samples]
    assert first == second is not None and rest == [None] * 3
    assert read.greedy.right is True, "the same text counts whole if it ended by itself"


def test_what_cannot_be_judged_is_not_called_creative():
    long = "a reference of more than six words here"
    rows = [
        *rows_of(0.5, 4),
        replace(answered(9, 1.0, "factual"), id="long", reference=long, greedy=RecordedSample("x", 1)),
    ]
    votes = evaluate_votes([replace(row, samples=tuple(replace(s, cut=True) for s in row.samples)) for row in rows], 5)
    assert (votes.questions, votes.diversity, votes.cut, votes.greedy_cut) == (8, None, 1.0, 0.0)
    assert votes.judged == "8 of 9 judged; the rest, because: 1 × the reference is a text of more than 6 words"
    assert {point.method: point.cut for point in votes.curve}["majority"] == 1.0


def test_a_vote_shows_what_the_service_sees():
    row = answered(0, 1.0, "factual")
    seen = observe(row, 3)
    assert seen is not None
    assert (seen.signals.ballots, seen.signals.vote_share, seen.signals.margin) == (3, 1.0, 1.0)
    assert seen.signals.tokens == 8
    assert seen.right
    assert observe(replace(row, samples=tuple(replace(each, group=None) for each in row.samples)), 3) is None


def test_votes_of_good_voters_are_better_and_of_bad_ones_worse(many: VoteEvaluation):
    assert many.questions == 420
    assert many.gains["all"].difference.low > 0
    assert set(many.gains) == set(many.against_greedy) == {"all", "factual", "technical"}
    points = {(point.method, point.k): point.right.value for point in many.curve}
    assert many.greedy_gains["all"].difference.value == pytest.approx(points["majority", 5] - points["greedy", 1])
    assert consensus_findings.verdict(many.gains["all"].difference) == "better"
    bad = evaluate_votes(rows_of(0.25, 40, spread=0.0, wrong="1"), 5)
    assert bad.gains["all"].difference.high < 0
    assert consensus_findings.verdict(bad.gains["all"].difference) == "worse"
    assert bad.agreeing_wrong.examples


def test_confidences_are_calibrated_on_one_half_and_judged_on_the_other(
    many: VoteEvaluation, calibrations: Path, tmp_path: Path
):
    votes = many
    assert [each.question_type for each in votes.calibrated] == ["any"]
    assert votes.uncalibrated == ("factual", "technical"), "105 votes each, and 200 are needed"
    (calibrated,) = votes.calibrated
    assert (votes.held_out, calibrated.report.items, calibrated.development) == (210, 210, 210)
    assert [at.most_wrong for at in calibrated.levels] == [0.15, 0.25, 0.40]
    assert calibrated.levels[0].votes, "the level 'answer' is given"
    assert all(share_estimate(at.wrong, at.votes).low <= at.most_wrong for at in calibrated.levels)
    assert [at.votes for at in calibrated.levels] == sorted(at.votes for at in calibrated.levels)
    saved = {path.name: load_calibration(path) for path in calibrations.iterdir()}
    assert set(saved) == {f"any-5-{MODEL[:12]}.json"}
    assert saved[f"any-5-{MODEL[:12]}.json"].ballots == (5,)
    few = evaluate_votes(rows_of(0.65, 20), 5, MODEL, calibrations=tmp_path / "none")
    assert (few.calibrated, few.uncalibrated) == ((), ("any", "factual", "technical"))
    assert not (tmp_path / "none").exists()


def test_what_was_found_is_told_with_its_interval_and_drawn(many: VoteEvaluation):
    result = example(ConsensusEvaluation, model="m", votes=many)
    json.dumps(asdict(result), allow_nan=False)
    found = consensus_findings.findings(result)
    headline, right, gained, *_ = found
    assert told(found, "voting")
    rows = {(row["vote"], row["against"], row["questions"]): row for row in study.gain_rows(result)}
    gain, longer = rows["majority", "one sample", "all"], study.baseline_rows(result)[0]
    shown = consensus_findings.SHOWN[consensus_findings.verdict(many.equal_tokens.gain.difference)]
    assert str(headline).startswith(f"5 votes are {shown} one longer answer of equal cost, ")
    interval = longer["95 % interval (points)"].replace(" to ", "\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}")
    assert headline.figure() == f"{longer['difference (points)']} points ({interval})"
    assert str(right).startswith(f"The vote of m is right on {gain['vote right']} of 420 questions, one sample on ")
    expected = f"{gain['difference (points)']} ({gain['95 % interval (points)']})"
    assert str(gained) == f"The vote minus one sample is {expected} points."
    assert len(study.baseline_rows(result)) == 2
    assert [row["n"] for row in study.confidence_rows(result)] == [210, 210]
    assert {row["method"] for row in study.curve_rows(result)} >= {"greedy", "pass@1", "majority", "weighted", "oracle"}
    for draw in (study.tokens_curve, study.gains_by_kind, study.reliability, study.risk_coverage):
        assert len(draw(result).axes[0].get_lines()) >= 2, draw.__name__
    assert study.diversity_rows(result) == []


def test_without_any_vote_there_is_no_confidence_and_no_crash():
    nothing = RecordedSample("", 1, right=False)
    silent = [replace(row, samples=(nothing, nothing)) for row in rows_of(0.5, 4)]
    votes = evaluate_votes(silent, 2)
    assert (votes.held_out, votes.undecided, votes.vote_share) == (0, 4, None)
    result = example(ConsensusEvaluation, model="m", votes=votes)
    assert "not clearly better than one longer answer" in told(consensus_findings.findings(result), "voting")[0]
    study.reliability(result)


@pytest.mark.usefixtures("shared_ranks")
def test_the_command_asks_a_model(tiny: Path, tmp_path: Path, here: Run):
    line = f"{ASK} --model {tiny} --questions 6 --calibrations {tmp_path}"
    votes = json.loads(here(f"{line} --json").out)["votes"]
    assert (votes["questions"], votes["k"]) == (6, 2)
    assert votes["uncalibrated"] == ["any", "analytical", "factual", "technical"]
    shown = here(line).out
    assert "6 questions with references, 2 samples each at temperature 0.7" in shown
    assert "| oracle" in shown


@pytest.mark.usefixtures("shared_ranks")
def test_answers_are_saved_and_judged_again_without_the_model(tiny: Path, tmp_path: Path, here: Run):
    file = tmp_path / "deep" / "answers.json.gz"
    votes = json.loads(here(f"{ASK} --model {tiny} --questions 6 --save {file} --json").out)["votes"]
    again = json.loads(json.dumps(asdict(evaluate_answers(load_answers(file)).votes)))
    assert (again["gains"], again["against_greedy"]) == (votes["gains"], votes["against_greedy"])
    found = here(f"bench stopping --recorded {file} --votes 2 --json").json
    assert (found["questions"], found["samples"], found["calibrated"]) == (6, 2, [])
    assert found["sample_right"]["value"] == votes["gains"]["all"]["baseline"]["value"]
    assert "as 200 votes are needed: any, analytical" in here(f"bench stopping --recorded {file} --votes 2").out
    assert "votes, with 2 samples of each question, is 16" in here(f"bench stopping --recorded {file}").failed(2)
    assert "questions does not apply to recorded" in here(f"bench stopping --recorded {file} --questions 9").failed(2)
    file.write_bytes(gzip.compress(b'{"plan": {}}'))
    assert "model" in here(f"bench stopping --recorded {file}").failed(2)
    file.write_bytes(b"no gzip")
    assert "holds no recorded answers" in here(f"bench stopping --recorded {file}").failed(2)


def test_what_recorded_votes_show_is_said_beside_what_is_wanted(tmp_path: Path):
    """Of rows with a first half of one answer, the second half says another one a little more often."""

    def table(turned: int, count: int) -> dict[str, tuple[str, ...]]:
        rows = []
        for number in range(count):
            texts = ["7"] * 16 + (["8"] * 17 if number < turned else ["7"] * 17)
            samples = tuple(RecordedSample(f"The answer is {text}.", 5) for text in texts)
            rows.append(RecordedQuestion(f"q{number}", "factual", "What is 3 + 4?", "7", samples[0], samples))
        save_answers(example(ModelAnswers, plan=ConsensusPlan(), answers=tuple(rows)), tmp_path / "a.gz")
        (found, *_) = bench_recorded_votes(tmp_path / "a.gz").report()
        return {row[0]: row[1:] for row in found.rows}  # type: ignore[union-attr]

    other = "certified, but not the most frequent of 33 samples"
    assert table(0, 200)[other] == ("200", "0.00% (0.00% to 1.88%)", "at most 5.00%", "yes")
    assert table(0, 20)[other][-1] == "too few to judge"
    many = table(40, 200)
    assert many[other][-1] == "no"
    assert many["tokens saved, of 16 samples"][-2:] == ("at least 50.0%", "yes")
    assert many["winner certified"][1].startswith("100.0%")


def test_the_kept_answers_differ_by_seed():
    rows = json.loads(gzip.decompress(KEPT.read_bytes()))["answers"]
    texts = [[each["text"] for each in row["samples"]] for row in rows]
    assert {len(row) for row in texts} == {32}
    differ = [len(set(row)) > 1 for row in texts]
    assert sum(differ) > 0.9 * len(differ), "no samples are copies"


@pytest.mark.slow  # the easy answers below show the same of fewer
def test_the_kept_answers_keep_the_promises():
    found = bench_recorded_votes(KEPT)
    shown = {row[0]: row[-1] for row in next(found.report()).rows}  # type: ignore[union-attr]
    assert found.questions >= 500 and shown["certified, but not the most frequent of 32 samples"] == "yes"
    assert found.calibrated and "no" not in {verdict for name, verdict in shown.items() if "wrong at" in name}


@pytest.mark.slow  # `test_consensus_bench.py` sees this on simulated votes
def test_the_best_level_keeps_its_promise_on_recorded_answers():
    found = bench_recorded_votes(EASY)
    assert (found.certified.other_winner.value, found.certified.certified.value > 0.5) == (0, True)
    calibrated, *_ = found.calibrated
    best = next(each for each in calibrated.levels if each.level == ConfidenceLevel.ANSWER)
    assert (calibrated.development >= 200, best.votes > 100, best.wrong > 0) == (True, True, True)
    assert share_estimate(best.wrong, best.votes).high < best.most_wrong


@pytest.mark.usefixtures("shared_ranks")
def test_a_users_own_questions_are_asked(tiny: Path, tmp_path: Path, here: Run):
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is\n#### {2 * n}"} for n in range(8)]
    (tmp_path / "school.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "choices.csv").write_text("Q,A,B,Key\n" + "\n".join(f"Which {n}?,one,two,A" for n in range(6)))
    line = f"{ASK} --model {tiny} --file {tmp_path}"
    result = json.loads(here(f"{line}/school.jsonl --layout gsm8k --questions 7 --json").out)
    assert result["votes"]["questions"] == 7, "the first of the file"
    assert set(result["votes"]["gains"]) == {"all", "analytical"}
    mapped = here(f"{line}/choices.csv --layout mapped --map 'question=Q,options=A|B,answer=Key'")
    assert mapped.status == 0 and "6 questions with references" in mapped.out
    assert "did you mean 'mapped'" in here(f"{line}/choices.csv --layout maped").failed(2)
