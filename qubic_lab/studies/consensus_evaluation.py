"""Votes against single answers (`qubic_lab.evals.consensus_eval`): tables, pictures and what they say in words."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.consensus.confidence import ConfidenceReport
from qubic_lab.evals.consensus_eval import ANY, ConsensusEvaluation
from qubic_lab.evals.paired import MeanEstimate
from qubic_lab.evals.self_consistency import ALL, CurvePoint, Gain
from qubic_lab.studies.acceptance import CONFIDENCE, AcceptanceRow, Criterion, WeekResults, meaningless_note
from qubic_lab.studies.style import DARK, INK, PALE, WIDTH_INCHES, percent, plot, points, rows

SMALL_P = 0.05
VOTED_QUESTIONS_TARGET = 300
CALIBRATION = Criterion(
    "12.7",
    "Calibrated confidence",
    "on held-out votes an error (ECE) no larger than 95 % of those of perfect confidences",
    "consensus_evaluation",
)
VOTES = Criterion(
    "12.9",
    "Votes against single answers",
    f"more right answers than one sample, by the interval, on {VOTED_QUESTIONS_TARGET} questions or more",
    "consensus_evaluation",
)
_DRAWN = (("oracle", ":", "^"), ("weighted", "--", "s"), ("majority", "-", "o"))
_TALL = (WIDTH_INCHES, 3.4)


def curve_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return every method at every k: tokens a question, right answers with their interval, ties."""
    return [
        {
            "method": point.method,
            "k": point.k,
            "tokens": round(point.tokens, 1),
            "right": percent(point.right.value),
            "95 % interval": _interval(point.right),
            "tied": percent(point.tied) if point.method in ("majority", "weighted") else "",
        }
        for point in result.votes.curve
    ]


def gain_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return what a vote has over one answer, a row for each type of question, way of voting and kind of answer."""
    ways = (
        ("majority", "one sample", "gains"),
        ("weighted", "one sample", "weighted_gains"),
        ("majority", "greedy", "greedy_gains"),
    )
    return [
        {
            "questions": kind,
            "n": gain.difference.n,
            "vote": way,
            "against": baseline,
            **_gain_cells(gain),
            "detectable (points)": "" if gain.detectable is None else points(gain.detectable),
            "verdict": verdict(gain.difference),
        }
        for way, baseline, name in ways
        for kind, gain in getattr(result.votes, name).items()
    ]


def greedy_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return the exact tests of the vote against the greedy answer, a row for each type of question."""
    return [
        {
            "questions": kind,
            "n": test.difference.n,
            "only the vote right": test.only_first,
            "only greedy right": test.only_second,
            "difference (points)": signed_points(test.difference.value),
            "95 % interval (points)": _point_interval(test.difference),
            "p": f"{test.p:.2g}",
            "p by Holm": f"{test.holm_p:.2g}",
            "detectable (points)": "" if test.detectable is None else points(test.detectable),
        }
        for kind, test in result.votes.against_greedy.items()
    ]


def baseline_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return what else the tokens could buy, judged on the held-out half."""
    votes, equal = result.votes, result.votes.equal_tokens
    baselines = (
        (
            f"vote of {equal.k}: {equal.vote_tokens:.0f} tokens",
            f"greedy with {equal.factor} times the limit: {equal.greedy_tokens:.0f} tokens",
            equal.gain,
        ),
        (f"vote of {votes.k}", f"best single signal: {votes.best_rule} of {votes.k}", votes.rule_gain),
    )
    return [
        {"vote": vote, "against": baseline, "n": gain.difference.n, **_gain_cells(gain)}
        for vote, baseline, gain in baselines
    ]


def _gain_cells(gain: Gain) -> dict[str, str]:
    return {
        "vote right": percent(gain.method.value),
        "rival right": percent(gain.baseline.value),
        "difference (points)": signed_points(gain.difference.value),
        "95 % interval (points)": _point_interval(gain.difference),
    }


def confidence_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return how good confidences are on held-out votes: the share of the vote as it is, and each calibration."""
    return [
        {
            "confidence": name,
            "n": report.items,
            "right": percent(report.accuracy),
            "ECE": round(report.ece, 3),
            "95 % interval": _plain_interval(report.ece_interval),
            "ECE if calibrated": round(report.ece_if_calibrated, 3),
            "Brier": round(report.brier, 3),
            "Brier, 95 % interval": _plain_interval(report.brier_interval),
            "area of risk": round(report.aurc, 3),
        }
        for name, report in _reports(result)
    ]


def agreed_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return examples of wrong answers on which more than half of a question's samples agree."""
    return [
        {
            "question": each.question,
            "reference": each.reference,
            "answer": each.text.strip(),
            "ballots": f"{each.ballots} of {each.samples}",
        }
        for each in result.votes.agreeing_wrong.examples
    ]


def diversity_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return how varied the answers to creative questions are; none where none were asked."""
    found = result.votes.diversity
    if found is None:
        return []
    figures = {
        "different words ÷ all": found.distinct_1,
        "different pairs of words ÷ all": found.distinct_2,
        "words that two samples share": found.self_overlap,
        "repetition within an answer": found.repetition,
        "empty answers": found.empty,
    }
    return [
        {"figure": name, "mean": round(each.value, 3), "95 % interval": _plain_interval((each.low, each.high))}
        for name, each in figures.items()
        if each is not None
    ]


def findings(result: ConsensusEvaluation) -> list[str]:
    """Say what voting gains, for which questions, at which cost, and what its confidence is worth."""
    return [
        *gain_sentences(result),
        *_greedy_sentences(result),
        *_baseline_sentences(result),
        *_error_sentences(result),
        *_confidence_sentences(result),
        *_creative_sentences(result),
    ]


def verdict(difference: MeanEstimate) -> str:
    """Say what the interval of a difference shows: better, worse, or neither."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference shown"


def difference_text(difference: MeanEstimate) -> str:
    """Say a difference in points with its interval."""
    return f"{signed_points(difference.value)} points ({_point_interval(difference)})"


def gain_sentences(result: ConsensusEvaluation) -> list[str]:
    """Say whether a vote is better than one sample, over all questions and by type."""
    votes, gain = result.votes, result.votes.gains[ALL]
    shown = {"better": "beats", "worse": "is worse than"}.get(verdict(gain.difference), "is not shown to beat")
    kinds = [
        f"{kind} {signed_points(each.difference.value)} ({_point_interval(each.difference)}, n = {each.difference.n})"
        for kind, each in votes.gains.items()
        if kind != ALL
    ]
    return [
        f"A vote of {votes.k} {shown} one sample: {difference_text(gain.difference)}, {votes.questions} questions.",
        f"The vote of {result.model} is right on {percent(gain.method.value)} of the questions, one sample on "
        f"{percent(gain.baseline.value)}.",
        f"The vote takes {votes.k} times the {votes.tokens:.0f} tokens of one sample.",
        *([f"By type of question, the difference in points is: {', '.join(kinds)}."] if kinds else []),
    ]


def _greedy_sentences(result: ConsensusEvaluation) -> list[str]:
    votes = result.votes
    gain, tests = votes.greedy_gains[ALL], votes.against_greedy
    shown = [kind for kind, test in tests.items() if kind != ALL and test.holm_p < SMALL_P]
    return [
        f"The greedy answer is right on {percent(gain.baseline.value)} for the tokens of one sample; the vote less "
        f"greedy is {difference_text(gain.difference)}, {verdict(gain.difference)}.",
        f"For a single vote, the exact McNemar test gives p = {tests[ALL].p:.2g}; after Holm, a difference is shown "
        f"for {', '.join(shown) or 'no type of question'}.",
    ]


def _baseline_sentences(result: ConsensusEvaluation) -> list[str]:
    equal, signal = result.votes.equal_tokens, result.votes.rule_gain
    return [
        f"At equal tokens, the vote less a longer greedy answer is {difference_text(equal.gain.difference)} "
        f"(held out, n = {equal.gain.difference.n}).",
        f"The vote less the best single signal ({result.votes.best_rule} of {result.votes.k}) is "
        f"{difference_text(signal.difference)} (held out, n = {signal.difference.n}).",
    ]


def _error_sentences(result: ConsensusEvaluation) -> list[str]:
    votes, agreeing = result.votes, result.votes.agreeing_wrong
    oracle = next(each for each in votes.curve if (each.method, each.k) == ("oracle", votes.k))
    said = [
        f"At least one of {votes.k} samples is right on {percent(oracle.right.value)} of the questions "
        f"({_interval(oracle.right)}): a perfect choice would reach that.",
        f"On {percent(agreeing.questions.value)} of the questions ({_interval(agreeing.questions)}), more than half of "
        "the samples agree on a wrong answer, which no vote can notice.",
    ]
    if agreeing.pairs is not None:
        said.append(f"Two wrong samples say the same {percent(agreeing.pairs.value)} of the time.")
    if votes.effective_votes is not None:
        said.append(f"{votes.k} samples are worth {votes.effective_votes:.1f} independent votes.")
    return said


def _confidence_sentences(result: ConsensusEvaluation) -> list[str]:
    sentences = [
        f"The confidence by {name} has an ECE of {report.ece:.3f} on {report.items} held-out votes (95 % interval "
        f"{_plain_interval(report.ece_interval)}; {report.ece_if_calibrated:.3f} if perfect), Brier {report.brier:.3f}."
        for name, report in _reports(result)
    ]
    if missing := result.votes.uncalibrated:
        sentences.append(f"There are too few questions to calibrate: {', '.join(missing)}.")
    return sentences


def _creative_sentences(result: ConsensusEvaluation) -> list[str]:
    found = result.votes.diversity
    if found is None:
        return []
    return [
        "Creative questions have no right answer, so only the variety of answers is measured.",
        f"In {found.samples} samples of {found.questions} creative questions, {percent(found.distinct_2.value)} of the "
        "pairs of words are different.",
    ]


def _reports(result: ConsensusEvaluation) -> list[tuple[str, ConfidenceReport]]:
    votes = result.votes
    found = [] if votes.vote_share is None else [("the vote's share", votes.vote_share)]
    for each in votes.calibrated:
        signals = " and ".join(each.signals).replace("_", " ") or "no signal"
        found.append((f"calibration for {each.question_type} ({each.method}, {signals})", each.report))
    return found


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge the calibration of confidences, and votes against single answers."""
    results = week.read("consensus", ConsensusEvaluation)
    return [_calibration_row(results), _votes_row(results)]


def _calibration_row(results: dict[str, ConsensusEvaluation]) -> AcceptanceRow:
    reports = {
        run: each.report
        for run, result in results.items()
        for each in result.votes.calibrated
        if each.question_type == ANY
    }
    if not reports:
        return CALIBRATION.not_measured(" asked enough questions to calibrate" if results else "")
    run = max(reports, key=lambda run: reports[run].ece - reports[run].ece_if_calibrated_95)
    worst = reports[run]
    low, high = worst.ece_interval
    return CALIBRATION.row(
        f"ECE {worst.ece:.3f} ({percent(CONFIDENCE)} interval {low:.3f} to {high:.3f}), up to "
        f"{worst.ece_if_calibrated_95:.3f} by chance alone; Brier {worst.brier:.3f}; {worst.items} votes",
        worst.ece <= worst.ece_if_calibrated_95,
        meaningless_note(results[run].meaningless),
        run,
    )


def _votes_row(results: dict[str, ConsensusEvaluation]) -> AcceptanceRow:
    enough = {run: each for run, each in results.items() if each.votes.questions >= VOTED_QUESTIONS_TARGET}
    if not enough:
        return VOTES.not_measured(f" asked {VOTED_QUESTIONS_TARGET} questions: the full form does" if results else "")
    run, worst = min(enough.items(), key=lambda item: item[1].votes.gains[ALL].difference.low)
    votes = worst.votes
    gain = votes.gains[ALL].difference
    baselines = {
        "the greedy answer": votes.greedy_gains[ALL].difference,
        "a greedy answer with as many tokens": votes.equal_tokens.gain.difference,
    }
    beside = ", ".join(f"{name} {difference_text(each)}" for name, each in baselines.items())
    return VOTES.row(
        f"a vote of {votes.k} less one sample: {difference_text(gain)} of {votes.questions} questions; less {beside}",
        verdict(gain) == "better",
        meaningless_note(worst.meaningless) or verdict(gain),
        run,
    )


def tokens_curve(result: ConsensusEvaluation) -> Figure:
    """Draw how often each method is right against the tokens that a question takes."""
    curve = result.votes.curve
    with plot(size=_TALL) as (figure, axes):
        for method, line, mark in _DRAWN:
            found = [point for point in curve if point.method == method]
            _draw(axes, found, f"{method} of k", fmt=f"{line}{mark}", color=DARK, markerfacecolor=PALE)
        for method, mark in (("greedy", "D"), ("longer greedy", "X"), ("pass@1", "*")):
            found = [point for point in curve if point.method == method]
            _draw(axes, found, method, fmt=mark, color=INK, markersize=8)
        axes.set_xscale("log")
        votes = [point.tokens for point in curve if point.method == "majority"]
        axes.set_xticks(votes, [f"{tokens:.0f}" for tokens in votes])
        axes.minorticks_off()
        axes.set_ylim(0, 101)
        axes.set_xlabel("tokens a question (number, logarithmic)")
        axes.set_ylabel("right answers (%)")
    return figure


def gains_by_kind(result: ConsensusEvaluation) -> Figure:
    """Draw what a vote has over one sample and over the greedy answer, for each type of question."""
    votes = result.votes
    kinds = list(votes.gains)
    shown = (
        ("one sample", [votes.gains[kind].difference for kind in kinds], -0.15, "o", DARK),
        ("the greedy answer", [votes.greedy_gains[kind].difference for kind in kinds], 0.15, "D", PALE),
    )
    with rows([f"{kind} ({votes.gains[kind].difference.n})" for kind in kinds], 0.5) as (figure, axes):
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        for label, found, offset, mark, fill in shown:
            axes.errorbar(
                [100 * each.value for each in found],
                [place + offset for place in range(len(kinds))],
                xerr=_errors(found),
                fmt=mark,
                color=DARK,
                markerfacecolor=fill,
                capsize=3,
                label=f"less {label}",
            )
        axes.set_xlabel(f"right answers: vote of {votes.k} less … (points)")
    return figure


def reliability(result: ConsensusEvaluation) -> Figure:
    """Draw how often held-out winners are right against their confidence."""
    with plot(size=_TALL) as (figure, axes):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8)
        for (name, report), line, mark in zip(_reports(result)[:2], ("--", "-"), ("s", "o"), strict=False):
            bins = report.reliability
            shares = [MeanEstimate(each.share, each.share_low, each.share_high, each.items) for each in bins]
            axes.errorbar(
                [100 * each.mean for each in bins],
                [100 * each.value for each in shares],
                yerr=_errors(shares),
                fmt=f"{line}{mark}",
                color=DARK,
                markerfacecolor=PALE,
                capsize=3,
                label=name,
            )
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("confidence (%)")
        axes.set_ylabel("winners that are right (%)")
    return figure


def risk_coverage(result: ConsensusEvaluation) -> Figure:
    """Draw how often answers are wrong when only those above a confidence are given, against how many that are."""
    with plot(size=_TALL) as (figure, axes):
        for (name, report), line, mark in zip(_reports(result)[:2], ("--", "-"), ("s", "o"), strict=False):
            covered = [100 * each.coverage for each in report.risk_coverage]
            risks = [100 * each.risk for each in report.risk_coverage]
            axes.plot(covered, risks, f"{line}{mark}", color=DARK, markerfacecolor=PALE, label=name)
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("questions that are answered (%)")
        axes.set_ylabel("answers that are wrong (%)")
    return figure


def _draw(axes: Axes, found: Sequence[CurvePoint], label: str, **style: Any) -> None:
    right = [point.right for point in found]
    axes.errorbar(
        [point.tokens for point in found],
        [100 * each.value for each in right],
        yerr=_errors(right),
        capsize=2,
        elinewidth=0.8,
        label=label,
        **style,
    )


def _errors(found: Sequence[MeanEstimate]) -> list[list[float]]:
    """Return the lengths of error bars in percent; a bootstrap's end may miss the mean by rounding."""
    low = [max(0.0, 100 * (each.value - each.low)) for each in found]
    return [low, [max(0.0, 100 * (each.high - each.value)) for each in found]]


def signed_points(share: float) -> str:
    """Write a difference of shares in percentage points with its sign; none at all has none."""
    written = points(share)
    return "0" if written in ("0.0", "−0.0") else written if share < 0 else f"+{written}"


def _interval(estimate: MeanEstimate) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def _point_interval(estimate: MeanEstimate) -> str:
    return f"{signed_points(estimate.low)} to {signed_points(estimate.high)}"


def _plain_interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
