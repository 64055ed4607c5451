"""Does voting improve a model's answers, for which question types, and at how many tokens?

Questions with computed answers are asked many times (`recording`); everything else is computed from the records.
Choices (a calibration, a rule, a k for equal tokens) are made on one half of the questions and judged on the other.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from qubic_lab.checked_yaml import STRICT, check_content
from qubic_lab.consensus.bands import MOST_WRONG, ConfidenceLevel
from qubic_lab.consensus.certificate import MOST_BALLOTS
from qubic_lab.consensus.confidence import (
    FEWEST_QUESTIONS,
    ConfidenceReport,
    Observation,
    Signals,
    calibrate,
    judge_confidence,
    save_calibration,
)
from qubic_lab.consensus.dependence import ErrorCorrelation, PastVote, effective_votes, error_correlation
from qubic_lab.consensus.voting import Ballot, decide
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_choice, check_range
from qubic_lab.evals.diversity import Diversity, diversity
from qubic_lab.evals.graded import MOST_GRADED, graded_questions
from qubic_lab.evals.loaders import load_user_questions
from qubic_lab.evals.paired import McNemar
from qubic_lab.evals.questions import Question, committed_by_kind
from qubic_lab.evals.recorded import RecordedQuestion, halves
from qubic_lab.evals.recording import Asking, ask_question, read_answers, record_answers
from qubic_lab.evals.scoring import judged_text
from qubic_lab.evals.self_consistency import (
    ALL,
    KS,
    AgreeingWrong,
    CertifiedVotes,
    CurvePoint,
    EqualTokens,
    Gain,
    agreeing_wrong,
    best_rule,
    certified_votes,
    curve,
    cut_share,
    equal_tokens,
    gains,
    votes_against_greedy,
)
from qubic_lab.model.checkpoint import model_hash
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, resolve_config
from qubic_lab.provenance import machine, source_commit
from qubic_lab.settings import cache_folder

RULE, FALLBACK = "majority", "plurality"
"""The default rules of the service."""
ANY = "any"
"""The question type of a calibration for all types."""
FEWEST_ASKED = 6
"""Questions with references: each half needs one of each of the three types."""
SLOTS = 32
"""The least number of slots that decode together; there are enough for the samples of two questions."""
DECIMALS = 4
"""Of the numbers in a file of recorded answers."""


@dataclass(frozen=True)
class QuestionReading:
    """How a user's file of questions is read: see `load_user_questions`."""

    __pydantic_config__ = STRICT

    layout: str = "auto"
    columns: str = ""


@dataclass(frozen=True)
class ConsensusPlan:
    """Which model (alias, hub id, folder or GGUF file) is asked what; `k` is the number of ballots.

    `questions` is the number of questions with computed answers (`graded_questions`), or the maximum from `file`, a
    user's file, read as `reading` says. `creative` questions of the project are added;
    they have no right answer.
    `threads` None means one per core. `seed` is that of the questions, the halves and the intervals.

    Raises:
        InputError: a number is out of its range.
    """

    __pydantic_config__ = STRICT
    model: str = "smollm2"
    questions: int = 45
    creative: int = 3
    k: int = 5
    asking: Asking = field(default_factory=Asking)
    dtype: str = "bf16"
    threads: int | None = 1
    seed: int = 1
    file: str = ""
    reading: QuestionReading = QuestionReading()

    def __post_init__(self) -> None:
        check_range("questions", self.questions, FEWEST_ASKED, MOST_GRADED)
        check_range("creative questions", self.creative, 0, len(committed_by_kind("creative")))
        check_range(f"k, with {self.asking.samples} samples,", self.k, 1, self.asking.samples)


@dataclass(frozen=True)
class JudgedLevel:
    """Of the held-out `votes` at a level or a better one, `wrong` were wrong; at most the share `most_wrong` may be."""

    level: ConfidenceLevel
    votes: int
    wrong: int
    most_wrong: float


@dataclass(frozen=True)
class CalibratedType:
    """A calibration of the development half, and its confidences and levels on the held-out half.

    `file` is where it was saved, if it was.
    """

    question_type: str
    development: int
    method: str
    signals: tuple[str, ...]
    report: ConfidenceReport
    file: str | None
    levels: tuple[JudgedLevel, ...] = ()


@dataclass(frozen=True)
class VoteEvaluation:
    """The evaluation of recorded answers for votes of k ballots; dictionaries are by question type, or `all`.

    `judged` says how many questions could be judged and why the others could not, creative ones aside; `cut` and
    `greedy_cut` are the shares of samples and greedy answers that reached the token limit. `tokens` is the mean of one
    sample. `curve` has every method at every k. `gains` compare the vote with one sample (pass@1), `weighted_gains`
    the weighted vote, `greedy_gains` the vote with the greedy answer, and `against_greedy` is the exact McNemar test
    of the vote of the first k samples. On the held-out half: `equal_tokens` compares a vote with one longer greedy
    answer, and `rule_gain` the vote with `best_rule`, which chooses one of k answers by length or a signal.
    `correlation` is that of the samples' errors, and `effective_votes` what k samples are worth; None: unknown.

    Confidences are judged on the `held_out` votes with a leader (`undecided` ones have none): `vote_share` takes the
    share as the confidence, `calibrated` are calibrations, and `uncalibrated` the types with too few questions.
    `diversity` describes creative answers, not their quality. `certified` stops votes of up to MOST_BALLOTS samples.
    """

    k: int
    questions: int
    tokens: float
    curve: tuple[CurvePoint, ...]
    gains: dict[str, Gain]
    weighted_gains: dict[str, Gain]
    greedy_gains: dict[str, Gain]
    against_greedy: dict[str, McNemar]
    equal_tokens: EqualTokens
    best_rule: str
    rule_gain: Gain
    agreeing_wrong: AgreeingWrong
    correlation: ErrorCorrelation | None
    effective_votes: float | None
    held_out: int
    undecided: int
    vote_share: ConfidenceReport | None
    calibrated: tuple[CalibratedType, ...]
    uncalibrated: tuple[str, ...]
    diversity: Diversity | None
    judged: str = ""
    cut: float = 0.0
    greedy_cut: float = 0.0
    certified: CertifiedVotes | None = None


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """The plan, the model that was asked, and where and when."""

    plan: ConsensusPlan
    model: str
    model_hash: str
    meaningless: bool
    device: str
    threads: int
    machine: str
    commit: str
    asked_utc: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelAnswers(AskedModel):
    """What it answered to each question, judged and grouped."""

    __pydantic_config__ = STRICT
    answers: tuple[RecordedQuestion, ...]


@dataclass(frozen=True, kw_only=True)
class ConsensusEvaluation(AskedModel):
    """The evaluation of its votes."""

    votes: VoteEvaluation


def ask_model(plan: ConsensusPlan, progress: Progress = no_progress, *, keep: bool = False) -> ModelAnswers:
    """Ask a model on one rank; `progress` is called after each question.

    With `keep`, answers are stored in the cache folder as they arrive, so that the same plan and code resume after a
    stop.

    Raises:
        InputError: the model or the question file cannot be read.
        QubicLabError: whatever the pipeline raises.
    """
    config = _pipeline(plan)
    resolved = resolve_config(config)
    questions = _questions(plan)
    hashed, commit = model_hash(resolved.folder), str(source_commit())
    file = _answers_file(hashed, commit, plan, questions) if keep else None
    with Pipeline.launch(config) as pipeline:
        rows = record_answers(pipeline, questions, plan.asking, file, progress)
    return ModelAnswers(
        plan=plan,
        model=resolved.model,
        model_hash=hashed,
        meaningless=resolved.meaningless,
        device=resolved.device,
        threads=resolved.threads,
        machine=str(machine()),
        commit=commit,
        asked_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
        answers=rows,
    )


def ask_again(asked: ModelAnswers, ids: Sequence[str]) -> Iterator[RecordedQuestion]:
    """Yield the answers to questions of these ids once more, with the seeds and threads that they were asked with.

    Raises:
        InputError: the model or the question file cannot be read, or the plan has no such question.
        QubicLabError: whatever the pipeline raises.
    """
    plan = replace(asked.plan, threads=asked.threads)
    questions = _questions(plan)
    known = {question.id: place for place, question in enumerate(questions)}
    for id in ids:
        check_choice("question", id, known)
    with Pipeline.launch(_pipeline(plan)) as pipeline:
        for place in map(known.__getitem__, ids):
            yield read_answers(questions[place], ask_question(pipeline, place, questions[place], plan.asking))


def _pipeline(plan: ConsensusPlan) -> PipelineConfig:
    slots = max(SLOTS, 2 * plan.asking.samples)
    return PipelineConfig(plan.model, 1, dtype=plan.dtype, threads=plan.threads, slots=slots)


def save_answers(asked: ModelAnswers, file: Path) -> None:
    """Write answers as gzipped JSON, without what is computed when they are read; numbers have DECIMALS decimals.

    Raises:
        InputError: the file cannot be written.
    """
    content = asdict(asked)
    for row in content["answers"]:
        for sample in (row["greedy"], *row["samples"], *(longer for _, longer in row["longer"])):
            sample["weight"] = round(sample["weight"], DECIMALS)
            sample["signals"] = [(name, round(value, DECIMALS)) for name, value in sample["signals"]]
            for name in ("group", "right"):
                del sample[name]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0))
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): give a file that can") from error


def load_answers(file: Path) -> ModelAnswers:
    """Read answers that `save_answers` wrote, and judge and group them by the rules of now.

    Raises:
        InputError: the file cannot be read, or holds no such answers.
    """
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{file} holds no recorded answers ({error}): give a file of `--save`") from error
    return judge_again(check_content(ModelAnswers, content, file))


def judge_again(asked: ModelAnswers) -> ModelAnswers:
    """Judge and group recorded answers by the rules of now."""
    questions = [Question(row.id, row.question, row.reference, row.kind) for row in asked.answers]
    return replace(asked, answers=tuple(map(read_answers, questions, asked.answers)))


def evaluate_answers(asked: ModelAnswers, calibrations: Path | None = None) -> ConsensusEvaluation:
    """Evaluate the votes of a model's answers.

    `calibrations` is a folder for one file per question type; None: they are not saved.

    Raises:
        InputError: too few questions.
    """
    about = {each.name: getattr(asked, each.name) for each in fields(AskedModel)}
    votes = evaluate_votes(asked.answers, asked.plan.k, asked.model_hash, asked.plan.seed, calibrations)
    return ConsensusEvaluation(**about, votes=votes)


def evaluate_votes(
    rows: Sequence[RecordedQuestion], k: int, model: str = "", seed: int = 0, calibrations: Path | None = None
) -> VoteEvaluation:
    """Evaluate recorded answers; those that no rule can judge are counted, and creative ones described.

    Every row needs at least k samples and one factor of longer greedy answers. `model` is a hash, for the calibrations.

    Raises:
        InputError: too few questions or samples.
    """
    judged = [row for row in rows if row.is_judged]
    creative = [row for row in rows if row.kind == "creative"]
    development, held_out = halves(judged, seed)
    if not development:
        raise InputError(f"{_judged_text(rows)}: at least two of a type are needed, one for each half")
    ks = sorted({k, *(each for each in KS if each <= min(len(row.samples) for row in judged))})
    points = curve(judged, ks, seed)
    rule = best_rule(development, k)
    correlation = error_correlation(_history(judged), seed=seed)
    votes = [each for row in held_out if (each := observe(row, k))]
    right = [vote.right for vote in votes]
    calibrated, uncalibrated = calibrated_types(development, held_out, k, model, seed, calibrations)
    return VoteEvaluation(
        k=k,
        questions=len(judged),
        judged=_judged_text(rows),
        cut=cut_share(judged),
        greedy_cut=cut_share(judged, "greedy"),
        tokens=next(point.tokens for point in points if point.method == "pass@1"),
        curve=points,
        gains=gains(judged, k, seed=seed),
        weighted_gains=gains(judged, k, "weighted", seed=seed),
        greedy_gains=gains(judged, k, "majority", "greedy", seed),
        against_greedy=votes_against_greedy(judged, k),
        equal_tokens=equal_tokens(development, held_out, judged[0].longer[0][0], ks, seed=seed),
        best_rule=rule,
        rule_gain=gains(held_out, k, "majority", rule, seed)[ALL],
        agreeing_wrong=agreeing_wrong(judged, seed=seed),
        correlation=correlation,
        effective_votes=effective_votes([1.0] * k, correlation.rho) if correlation else None,
        held_out=len(votes),
        undecided=len(held_out) - len(votes),
        vote_share=judge_confidence([vote.signals.vote_share for vote in votes], right, seed=seed) if votes else None,
        calibrated=calibrated,
        uncalibrated=uncalibrated,
        diversity=diversity(creative, seed) if creative else None,
        certified=certified_votes(judged, min(MOST_BALLOTS, *(len(row.samples) for row in judged)), seed=seed),
    )


def _judged_text(rows: Sequence[RecordedQuestion]) -> str:
    return judged_text(
        Question(row.id, row.question, row.reference, row.kind) for row in rows if row.kind != "creative"
    )


def observe(row: RecordedQuestion, k: int) -> Observation | None:
    """Return the signals of a question's vote, of its first k samples, as the service sees them; None without a leader.

    Similarity is left out: with embeddings the service would see another value.
    """
    samples = row.samples[:k]
    decision = decide([Ballot(f"{n:02}", each.group) for n, each in enumerate(samples)], RULE, FALLBACK)
    if not decision.standings:
        return None
    members = [samples[int(voter)] for voter in decision.standings[0].voters]
    logprobs = [dict(each.signals).get("mean_logprob") for each in members]
    signals = Signals.of(decision, logprobs, [each.tokens for each in members])
    return Observation(row.id, signals, bool(members[0].right))


def calibrated_types(
    development: Sequence[RecordedQuestion],
    held_out: Sequence[RecordedQuestion],
    k: int,
    model: str = "",
    seed: int = 0,
    folder: Path | None = None,
) -> tuple[tuple[CalibratedType, ...], tuple[str, ...]]:
    """Calibrate all types together and each type with enough questions; also return the types without."""
    made_utc = datetime.now(UTC)
    done, missing = [], []
    for kind in (ANY, *sorted({row.kind for row in development})):
        ours, theirs = (
            [each for row in rows if kind in (ANY, row.kind) and (each := observe(row, k))]
            for rows in (development, held_out)
        )
        if len(ours) < FEWEST_QUESTIONS or not theirs:
            missing.append(kind)
            continue
        calibration = calibrate(ours, model, kind, made_utc)
        file = None if folder is None else folder / f"{kind}-{k}-{model[:12]}.json"
        if file:
            save_calibration(calibration, file)
        signals = [each.signals for each in theirs]
        done.append(
            CalibratedType(
                question_type=kind,
                development=len(ours),
                method=calibration.probability.method,
                signals=calibration.probability.signals,
                report=judge_confidence(calibration.probability(signals), [each.right for each in theirs], seed=seed),
                file=str(file) if file else None,
                levels=_judged_levels(calibration.levels(signals), theirs),
            )
        )
    return tuple(done), tuple(missing)


def _judged_levels(levels: Sequence[ConfidenceLevel], votes: Sequence[Observation]) -> tuple[JudgedLevel, ...]:
    found, at = [], list[Observation]()
    for level, most_wrong in MOST_WRONG.items():
        at += [vote for vote, given in zip(votes, levels, strict=True) if given is level]
        found.append(JudgedLevel(level, len(at), sum(not vote.right for vote in at), most_wrong))
    return tuple(found)


def _history(rows: Sequence[RecordedQuestion]) -> list[PastVote]:
    """Return all samples as votes; one without a final answer agrees with nobody."""
    return [
        PastVote(row.id, f"{number:02}", -1 - number if each.group is None else each.group, bool(each.right))
        for row in rows
        for number, each in enumerate(row.samples)
    ]


def _questions(plan: ConsensusPlan) -> tuple[Question, ...]:
    if plan.file:
        reading = plan.reading
        asked = load_user_questions(Path(plan.file), reading.layout, reading.columns, plan.questions, plan.seed)
    else:
        asked = graded_questions(plan.questions, plan.seed)
    return (*asked, *committed_by_kind("creative")[: plan.creative])


def _answers_file(model: str, commit: str, plan: ConsensusPlan, questions: Sequence[Question]) -> Path:
    """Return the answers file for this model, plan, questions and code."""
    asked = [(each.id, each.question) for each in questions]
    decides = [model, commit, plan.dtype, plan.threads, asdict(plan.asking), asked]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return cache_folder("answers") / f"{key}.jsonl"
