"""Votes against single answers (`qubic_lab.evals.consensus_eval`): tables, pictures and what they say in words."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.evals.consensus_eval import ANY, ConsensusEvaluation, VoteEvaluation
from qubic_lab.evals.paired import MeanEstimate
from qubic_lab.evals.self_consistency import ALL, Gain
from qubic_lab.studies.acceptance import (
    CONFIDENCE,
    AcceptanceRow,
    Criterion,
    Text,
    Verdict,
    WeekResults,
    joined,
    too_few,
)
from qubic_lab.studies.consensus_findings import VERDICTS, reports, verdict
from qubic_lab.studies.finding import RULES, Finding, say
from qubic_lab.studies.style import DARK, INK, PALE, WIDTH_INCHES, Dot, columns, dots, percent, plot, points, rows

VOTED_QUESTIONS_TARGET = 300
CALIBRATED_VOTES_TARGET = 200
"""Votes to calibrate on, and as many others to judge that by: with fewer, chance alone explains most errors."""
CALIBRATION = Criterion(
    "12.7",
    "Calibrated confidence",
    f"on {CALIBRATED_VOTES_TARGET} held-out votes, after as many to calibrate on, an error (ECE) no larger than 95 % "
    "of those of perfect confidences",
    "consensus_evaluation",
)
VOTES = Criterion(
    "12.9",
    "Votes against single answers",
    "more right answers, by the intervals, than one sample, than the greedy answer, and at equal tokens than a longer "
    f"greedy answer; {VOTED_QUESTIONS_TARGET} questions",
    "consensus_evaluation",
)
_TALL = (WIDTH_INCHES, 3.4)


def curve_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return every method at every k: tokens a question, right answers with their interval, cut answers, ties."""
    return [
        {
            "method": point.method,
            "k": point.k,
            "tokens": round(point.tokens, 1),
            "right": percent(point.right.value),
            "95 % interval": _interval(point.right),
            "cut": percent(point.cut),
            "tied": percent(point.tied) if point.method in ("majority", "weighted") else "",
        }
        for point in result.votes.curve
    ]


def gain_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return what a vote has over one answer, a row for each type of question, way of voting and kind of answer."""
    votes = result.votes
    ways = (
        ("majority", "one sample", votes.gains),
        ("weighted", "one sample", votes.weighted_gains),
        ("majority", "greedy", votes.greedy_gains),
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
        for way, baseline, gains in ways
        for kind, gain in gains.items()
    ]


def greedy_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return the exact tests of the vote against the greedy answer, a row for each type of question."""
    return [
        {
            "questions": kind,
            "n": test.difference.n,
            "only the vote right": test.only_first,
            "only greedy right": test.only_second,
            "difference (points)": RULES["points"](test.difference.value),
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
    longer = f"greedy with {equal.factor} times the limit: {equal.greedy_tokens:.0f} tokens"
    signal = f"best single signal: {votes.best_rule} of {votes.k}"

    def row(vote: str, baseline: str, gain: Gain) -> dict[str, Any]:
        return {"vote": vote, "against": baseline, "n": gain.difference.n, **_gain_cells(gain)}

    return [
        row(f"vote of {equal.k}: {equal.vote_tokens:.0f} tokens", longer, equal.gain),
        row(f"vote of {votes.k}", signal, votes.rule_gain),
    ]


def _gain_cells(gain: Gain) -> dict[str, str]:
    return {
        "vote right": percent(gain.method.value),
        "baseline right": percent(gain.baseline.value),
        "difference (points)": RULES["points"](gain.difference.value),
        "95 % interval (points)": _point_interval(gain.difference),
    }


def confidence_rows(result: ConsensusEvaluation) -> list[dict[str, Any]]:
    """Return how good confidences are on held-out votes: the share of the vote as it is, and each calibration."""
    return [
        {
            "confidence": str(name),
            "n": report.items,
            "right": percent(report.accuracy),
            "ECE": round(report.ece, 3),
            "95 % interval": _plain_interval(report.ece_interval),
            "ECE if calibrated": round(report.ece_if_calibrated, 3),
            "Brier": round(report.brier, 3),
            "Brier, 95 % interval": _plain_interval(report.brier_interval),
            "area of risk": round(report.aurc, 3),
        }
        for name, report in reports(result)
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


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge the calibration of confidences, and votes against single answers; random weights show neither."""
    found = week.read("consensus", ConsensusEvaluation)
    results = {run: each for run, each in found.items() if not each.meaningless}
    if not results:
        more = say("had a model with real weights") if found else ""
        return [CALIBRATION.not_measured(more), VOTES.not_measured(more)]
    return [_calibration_row(results), _votes_row(results)]


def _calibration_row(results: dict[str, ConsensusEvaluation]) -> AcceptanceRow:
    calibrated = {
        run: each for run, result in results.items() for each in result.votes.calibrated if each.question_type == ANY
    }
    if not calibrated:
        return CALIBRATION.not_measured(say("asked enough questions to calibrate"))
    reports = {run: each.report for run, each in calibrated.items()}
    run, worst = max(reports.items(), key=lambda item: item[1].ece - item[1].ece_if_calibrated_95)
    low, high = worst.ece_interval
    fewest = min(calibrated[run].development, worst.items)
    error = say(
        "ECE {ece:.3f} ({confidence:percent} interval {low:.3f} to {high:.3f}), up to {chance:.3f} by chance alone",
        ece=worst.ece,
        confidence=CONFIDENCE,
        low=low,
        high=high,
        chance=worst.ece_if_calibrated_95,
    )
    votes = say("Brier score {brier:.3f} of {votes:vote}", brier=worst.brier, votes=worst.items)
    return CALIBRATION.row(
        joined(error, votes, _asked(results[run])),
        worst.ece <= worst.ece_if_calibrated_95,
        "",
        run,
        few=too_few(fewest, CALIBRATED_VOTES_TARGET, say("votes to calibrate on, or to judge that by,")),
    )


def _votes_row(results: dict[str, ConsensusEvaluation]) -> AcceptanceRow:
    found = {run: each.votes for run, each in results.items()}
    enough = {run: votes for run, votes in found.items() if votes.questions >= VOTED_QUESTIONS_TARGET} or found
    run, votes = min(enough.items(), key=lambda item: min(each.low for _, each in _vote_gains(item[1])))
    gains = _vote_gains(votes)
    said = [(name, verdict(each)) for name, each in gains]
    judged: Verdict = "pass" if {each for _, each in said} == {"better"} else "measured, no benefit"
    if "worse" in {each for _, each in said}:
        judged = "fail"
    few = too_few(votes.questions, VOTED_QUESTIONS_TARGET, say("questions"))
    minus = "minus {name} {value:points} points ({low:points} to {high:points})"
    return VOTES.row(
        joined(
            say("a vote of {k} on {questions:question}", k=votes.k, questions=votes.questions),
            _asked(results[run]),
            *(say(minus, name=name, **columns(each, "value", "low", "high")) for name, each in gains),
        ),
        "partial" if few else judged,
        joined(*(say("against {name}: {verdict}", name=name, verdict=say(VERDICTS[each])) for name, each in said)),
        run,
        few=few,
        certain=True,  # worse is said only of a whole interval
    )


def _asked(result: ConsensusEvaluation) -> Text:
    return say("asked on {day}", day=result.asked_utc[:10]) if result.asked_utc else ""


def _vote_gains(votes: VoteEvaluation) -> list[tuple[Finding, MeanEstimate]]:
    """Return what the vote has over each kind of single answer."""
    return [
        (say("one sample"), votes.gains[ALL].difference),
        (say("the greedy answer"), votes.greedy_gains[ALL].difference),
        (say("a longer greedy answer at equal tokens"), votes.equal_tokens.gain.difference),
    ]


def tokens_curve(result: ConsensusEvaluation) -> Figure:
    """Draw how often each method is right against the tokens that a question takes."""
    looks = (("oracle", ":^"), ("weighted", "--s"), ("majority", "-o"), ("greedy", "D"), ("longer greedy", "X"))
    with plot(size=_TALL) as (figure, axes):
        for method, look in (*looks, ("pass@1", "*")):
            points = [point for point in result.votes.curve if point.method == method]
            name = f"{method} of k" if look[0] in ":-" else method
            dots(
                axes,
                [each.tokens for each in points],
                [each.right for each in points],
                look,
                PALE,
                str(name),
                scale=100,
            )
        axes.set_xscale("log")
        votes = [point.tokens for point in result.votes.curve if point.method == "majority"]
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
        ("minus one sample", votes.gains, -0.15, "o", DARK),
        ("minus the greedy answer", votes.greedy_gains, 0.15, "D", PALE),
    )
    with rows([f"{kind} ({votes.gains[kind].difference.n})" for kind in kinds], 0.5) as (figure, axes):
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        for label, gains, offset, mark, fill in shown:
            places = [place + offset for place in range(len(kinds))]
            differences = [gains[kind].difference for kind in kinds]
            dots(axes, places, differences, mark, fill, label, scale=100, across=True)
        axes.set_xlabel(f"right answers: vote of {votes.k} minus … (points)")
    return figure


def reliability(result: ConsensusEvaluation) -> Figure:
    """Draw how often held-out winners are right against their confidence."""
    with plot(size=_TALL) as (figure, axes):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8)
        for (name, report), look in zip(reports(result)[:2], ("--s", "-o"), strict=False):
            shares = [Dot(each.share, each.share_low, each.share_high) for each in report.reliability]
            at, short = [100 * each.mean for each in report.reliability], str(name).partition(" (")[0]
            dots(axes, at, shares, look, PALE if look == "-o" else "white", short, scale=100)
        _to_all(axes, "confidence (%)", "winners that are right (%)")
    return figure


def risk_coverage(result: ConsensusEvaluation) -> Figure:
    """Draw how often answers are wrong when only those above a confidence are given, against how many that are."""
    with plot(size=_TALL) as (figure, axes):
        for (name, report), look in zip(reports(result)[:2], ("--s", "-o"), strict=False):
            covered = [100 * each.coverage for each in report.risk_coverage]
            risks = [100 * each.risk for each in report.risk_coverage]
            axes.plot(covered, risks, look, color=DARK, markerfacecolor=PALE, label=str(name).partition(" (")[0])
        _to_all(axes, "questions that are answered (%)", "answers that are wrong (%)")
    return figure


def _to_all(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 101)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _interval(estimate: MeanEstimate) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def _point_interval(estimate: MeanEstimate) -> str:
    return f"{RULES['points'](estimate.low)} to {RULES['points'](estimate.high)}"


def _plain_interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
