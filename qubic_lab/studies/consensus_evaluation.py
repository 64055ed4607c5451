"""Votes against single answers (`qubic_lab.evals.consensus_eval`): tables, pictures and what they say in words.

What is read is what `ConsensusEvaluation.to_dict` gives: plain values.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.studies.accuracy_comparison import percent, points
from qubic_lab.studies.style import DARK, INK, PALE, STYLE, WIDTH_INCHES, rows

Evaluation = Mapping[str, Any]
Estimate = Mapping[str, Any]

ANY = "any"
"""The calibration that is of all types of questions together."""
ALL = "all"
"""Stands beside the types of questions for all of them together."""
SMALL_P = 0.05
_DRAWN = (("oracle", ":", "^"), ("weighted", "--", "s"), ("majority", "-", "o"))


def curve_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return every method at every k: tokens a question, right answers with their interval, ties."""
    return [
        {
            "method": point["method"],
            "k": point["k"],
            "tokens": round(point["tokens"], 1),
            "right": percent(point["right"]["value"]),
            "95 % interval": _interval(point["right"]),
            "tied": percent(point["tied"]) if point["method"] in ("majority", "weighted") else "",
        }
        for point in result["votes"]["curve"]
    ]


def gain_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return what a vote has over one answer, a row for each type of question, way of voting and kind of answer."""
    ways = (
        ("majority", "one sample", "gains"),
        ("weighted", "one sample", "weighted_gains"),
        ("majority", "greedy", "greedy_gains"),
    )
    return [
        {
            "questions": kind,
            "n": gain["difference"]["n"],
            "vote": way,
            "against": rival,
            "vote right": percent(gain["method"]["value"]),
            "rival right": percent(gain["baseline"]["value"]),
            "difference (points)": signed_points(gain["difference"]["value"]),
            "95 % interval (points)": _point_interval(gain["difference"]),
            "detectable (points)": "" if gain["detectable"] is None else points(gain["detectable"]),
            "verdict": verdict(gain["difference"]),
        }
        for way, rival, name in ways
        for kind, gain in result["votes"][name].items()
    ]


def greedy_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return the exact tests of the vote against the greedy answer, a row for each type of question."""
    return [
        {
            "questions": kind,
            "n": test["difference"]["n"],
            "only the vote right": test["only_first"],
            "only greedy right": test["only_second"],
            "difference (points)": signed_points(test["difference"]["value"]),
            "95 % interval (points)": _point_interval(test["difference"]),
            "p": f"{test['p']:.2g}",
            "p by Holm": f"{test['holm_p']:.2g}",
            "detectable (points)": "" if test["detectable"] is None else points(test["detectable"]),
        }
        for kind, test in result["votes"]["against_greedy"].items()
    ]


def rival_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return what else the tokens could buy, judged on the held-out half."""
    votes = result["votes"]
    equal = votes["equal_tokens"]
    rivals = (
        (
            f"vote of {equal['k']}: {equal['vote_tokens']:.0f} tokens",
            f"greedy with {equal['factor']} times the limit: {equal['greedy_tokens']:.0f} tokens",
            equal["gain"],
        ),
        (f"vote of {votes['k']}", f"best single signal: {votes['best_rule']} of {votes['k']}", votes["rule_gain"]),
    )
    return [
        {
            "vote": vote,
            "against": rival,
            "n": gain["difference"]["n"],
            "vote right": percent(gain["method"]["value"]),
            "rival right": percent(gain["baseline"]["value"]),
            "difference (points)": signed_points(gain["difference"]["value"]),
            "95 % interval (points)": _point_interval(gain["difference"]),
        }
        for vote, rival, gain in rivals
    ]


def confidence_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return how good confidences are on held-out votes: the share of the vote as it is, and each calibration."""
    return [
        {
            "confidence": name,
            "n": report["items"],
            "right": percent(report["accuracy"]),
            "ECE": round(report["ece"], 3),
            "95 % interval": _plain_interval(report["ece_interval"]),
            "ECE if calibrated": round(report["ece_if_calibrated"], 3),
            "Brier": round(report["brier"], 3),
            "Brier, 95 % interval": _plain_interval(report["brier_interval"]),
            "area of risk": round(report["aurc"], 3),
        }
        for name, report in _reports(result)
    ]


def agreed_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return examples of wrong answers on which more than half of a question's samples agree."""
    return [
        {
            "question": each["question"],
            "reference": each["reference"],
            "answer": each["text"].strip(),
            "ballots": f"{each['ballots']} of {each['samples']}",
        }
        for each in result["votes"]["agreeing_wrong"]["examples"]
    ]


def diversity_rows(result: Evaluation) -> list[dict[str, Any]]:
    """Return how varied the answers to creative questions are; none where none were asked."""
    found = result["votes"]["diversity"]
    if found is None:
        return []
    figures = {
        "different words ÷ all": found["distinct_1"],
        "different pairs of words ÷ all": found["distinct_2"],
        "words that two samples share": found["self_overlap"],
        "repetition within an answer": found["repetition"],
        "empty answers": found["empty"],
    }
    return [
        {"figure": name, "mean": round(each["value"], 3), "95 % interval": _plain_interval((each["low"], each["high"]))}
        for name, each in figures.items()
        if each is not None
    ]


def findings(result: Evaluation) -> list[str]:
    """Say what voting gains, for which questions, at which cost, and what its confidence is worth."""
    return [
        gain_sentence(result),
        *_kind_sentences(result),
        _greedy_sentence(result),
        *_rival_sentences(result),
        _oracle_sentence(result),
        _agreeing_sentence(result),
        *_confidence_sentences(result),
        *_creative_sentences(result),
    ]


def verdict(difference: Estimate) -> str:
    """Say what the interval of a difference shows: better, worse, or neither."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "no difference shown"


def difference_text(difference: Estimate) -> str:
    """Say a difference in points with its interval."""
    return f"{signed_points(difference['value'])} points ({_point_interval(difference)})"


def gain_sentence(result: Evaluation) -> str:
    """Say whether a vote is better than one sample over all types of questions."""
    votes, gain = result["votes"], result["votes"]["gains"][ALL]
    return (
        f"A vote of {votes['k']} samples of {result['model']} is right on {percent(gain['method']['value'])} of "
        f"{votes['questions']} questions, one sample on {percent(gain['baseline']['value'])}: "
        f"{signed_points(gain['difference']['value'])} points (95 % interval "
        f"{_point_interval(gain['difference'])}), {verdict(gain['difference'])}; it takes {votes['k']} times the "
        f"{votes['tokens']:.0f} tokens."
    )


def _kind_sentences(result: Evaluation) -> list[str]:
    gains = {kind: gain for kind, gain in result["votes"]["gains"].items() if kind != ALL}
    said = [
        f"{kind} {signed_points(gain['difference']['value'])} ({_point_interval(gain['difference'])}, "
        f"n = {gain['difference']['n']})"
        for kind, gain in gains.items()
    ]
    return [f"By type of question, in points: {', '.join(said)}."] if said else []


def _greedy_sentence(result: Evaluation) -> str:
    votes = result["votes"]
    gain, tests = votes["greedy_gains"][ALL], votes["against_greedy"]
    shown = [kind for kind, test in tests.items() if kind != ALL and test["holm_p"] < SMALL_P]
    types = f"shown for {', '.join(shown)}" if shown else "shown for no type of question"
    return (
        f"The greedy answer, for the tokens of one, is right on {percent(gain['baseline']['value'])}; against it the "
        f"vote has {signed_points(gain['difference']['value'])} points ({_point_interval(gain['difference'])}), "
        f"{verdict(gain['difference'])}; a single vote of the first {votes['k']}: exact McNemar p = "
        f"{tests[ALL]['p']:.2g}, a difference {types} (Holm)."
    )


def _rival_sentences(result: Evaluation) -> list[str]:
    equal, signal = rival_rows(result)
    return [
        f"At equal tokens, on held-out questions: {equal['vote']}, {equal['vote right']} right; {equal['against']}, "
        f"{equal['rival right']} right; difference {equal['difference (points)']} points "
        f"({equal['95 % interval (points)']}, n = {equal['n']}).",
        f"Against the {signal['against']} the vote has {signal['difference (points)']} points "
        f"({signal['95 % interval (points)']}, held out, n = {signal['n']}).",
    ]


def _oracle_sentence(result: Evaluation) -> str:
    k = result["votes"]["k"]
    oracle = next(each for each in result["votes"]["curve"] if (each["method"], each["k"]) == ("oracle", k))
    return (
        f"Among {k} samples at least one is right on {percent(oracle['right']['value'])} of the questions "
        f"({_interval(oracle['right'])}): so much a perfect choice could reach."
    )


def _agreeing_sentence(result: Evaluation) -> str:
    agreeing, worth = result["votes"]["agreeing_wrong"], result["votes"]["effective_votes"]
    pairs = agreeing["pairs"]
    alike = "" if pairs is None else f"; two wrong samples say the same {percent(pairs['value'])} of the time"
    counted = "" if worth is None else f"; {result['votes']['k']} samples are worth {worth:.1f} independent votes"
    return (
        f"On {percent(agreeing['questions']['value'])} of the questions ({_interval(agreeing['questions'])}) more than "
        f"half of the samples agree on a wrong answer, which no vote can notice{alike}{counted}."
    )


def _confidence_sentences(result: Evaluation) -> list[str]:
    sentences = [
        f"On held-out votes the confidence by {name} is off by {report['ece']:.3f} on average (ECE, 95 % interval "
        f"{_plain_interval(report['ece_interval'])}; {report['ece_if_calibrated']:.3f} if it were perfect), Brier "
        f"{report['brier']:.3f}, n = {report['items']}."
        for name, report in _reports(result)
    ]
    if missing := result["votes"]["uncalibrated"]:
        sentences.append(f"Too few questions for a calibration: {', '.join(missing)}; they stay uncalibrated.")
    return sentences


def _creative_sentences(result: Evaluation) -> list[str]:
    found = result["votes"]["diversity"]
    if found is None:
        return []
    return [
        f"Creative questions have no right answer, so nothing is claimed of them but variety: in {found['samples']} "
        f"samples of {found['questions']}, {percent(found['distinct_2']['value'])} of the pairs of words are different."
    ]


def _reports(result: Evaluation) -> list[tuple[str, Mapping[str, Any]]]:
    votes = result["votes"]
    found = [] if votes["vote_share"] is None else [("the vote's share", votes["vote_share"])]
    for each in votes["calibrated"]:
        signals = " and ".join(each["signals"]).replace("_", " ") or "no signal"
        found.append((f"calibration for {each['question_type']} ({each['method']}, {signals})", each["report"]))
    return found


def tokens_curve(result: Evaluation) -> Figure:
    """Draw how often each method is right against the tokens that a question takes."""
    curve = result["votes"]["curve"]
    with _axes() as (figure, axes):
        for method, line, mark in _DRAWN:
            found = [point for point in curve if point["method"] == method]
            _draw(axes, found, f"{method} of k", fmt=f"{line}{mark}", color=DARK, markerfacecolor=PALE)
        for method, mark in (("greedy", "D"), ("longer greedy", "X"), ("pass@1", "*")):
            found = [point for point in curve if point["method"] == method]
            _draw(axes, found, method, fmt=mark, color=INK, markersize=8)
        axes.set_xscale("log")
        votes = [point["tokens"] for point in curve if point["method"] == "majority"]
        axes.set_xticks(votes, [f"{tokens:.0f}" for tokens in votes])
        axes.minorticks_off()
        axes.set_ylim(0, 101)
        axes.set_xlabel("tokens a question (number, logarithmic)")
        axes.set_ylabel("right answers (%)")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def gains_by_kind(result: Evaluation) -> Figure:
    """Draw what a vote has over one sample and over the greedy answer, for each type of question."""
    votes = result["votes"]
    kinds = list(votes["gains"])
    shown = (
        ("one sample", [votes["gains"][kind]["difference"] for kind in kinds], -0.15, "o", DARK),
        ("the greedy answer", [votes["greedy_gains"][kind]["difference"] for kind in kinds], 0.15, "D", PALE),
    )
    with rows([f"{kind} ({votes['gains'][kind]['difference']['n']})" for kind in kinds], 0.5) as (figure, axes):
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        for label, found, offset, mark, fill in shown:
            axes.errorbar(
                [100 * each["value"] for each in found],
                [place + offset for place in range(len(kinds))],
                xerr=_errors(found),
                fmt=mark,
                color=DARK,
                markerfacecolor=fill,
                capsize=3,
                label=f"less {label}",
            )
        axes.set_xlabel(f"right answers: vote of {votes['k']} less … (points)")
    return figure


def reliability(result: Evaluation) -> Figure:
    """Draw how often held-out winners are right against their confidence."""
    with _axes() as (figure, axes):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8)
        for (name, report), line, mark in zip(_shown(result), ("--", "-"), ("s", "o"), strict=False):
            bins = report["reliability"]
            shares = [{"value": each["share"], "low": each["share_low"], "high": each["share_high"]} for each in bins]
            axes.errorbar(
                [100 * each["mean"] for each in bins],
                [100 * each["value"] for each in shares],
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
        if axes.get_legend_handles_labels()[0]:  # none where nobody voted
            figure.legend(loc="outside upper left")
    return figure


def risk_coverage(result: Evaluation) -> Figure:
    """Draw how often answers are wrong when only those above a confidence are given, against how many that are."""
    with _axes() as (figure, axes):
        for (name, report), line, mark in zip(_shown(result), ("--", "-"), ("s", "o"), strict=False):
            curve = report["risk_coverage"]
            covered, risks = ([100 * each[part] for each in curve] for part in ("coverage", "risk"))
            axes.plot(covered, risks, f"{line}{mark}", color=DARK, markerfacecolor=PALE, label=name)
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("questions that are answered (%)")
        axes.set_ylabel("answers that are wrong (%)")
        if axes.get_legend_handles_labels()[0]:  # none where nobody voted
            figure.legend(loc="outside upper left")
    return figure


def _shown(result: Evaluation) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the vote's share and the calibration for all types: more would not be told apart."""
    return _reports(result)[:2]


@contextmanager
def _axes() -> Iterator[tuple[Figure, Axes]]:
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        yield plt.subplots(figsize=(WIDTH_INCHES, 3.4), layout="constrained")


def _draw(axes: Axes, found: Sequence[Mapping[str, Any]], label: str, **style: Any) -> None:
    right = [point["right"] for point in found]
    axes.errorbar(
        [point["tokens"] for point in found],
        [100 * each["value"] for each in right],
        yerr=_errors(right),
        capsize=2,
        elinewidth=0.8,
        label=label,
        **style,
    )


def _errors(found: Sequence[Estimate]) -> list[list[float]]:
    """Return the lengths of error bars in percent; a bootstrap's end may miss the mean by rounding."""
    low = [max(0.0, 100 * (each["value"] - each["low"])) for each in found]
    return [low, [max(0.0, 100 * (each["high"] - each["value"])) for each in found]]


def signed_points(share: float) -> str:
    """Write a difference of shares in percentage points with its sign; none at all has none."""
    written = points(share)
    return "0" if written in ("0.0", "−0.0") else written if share < 0 else f"+{written}"


def _interval(estimate: Estimate) -> str:
    return f"{percent(estimate['low'])} to {percent(estimate['high'])}"


def _point_interval(estimate: Estimate) -> str:
    return f"{signed_points(estimate['low'])} to {signed_points(estimate['high'])}"


def _plain_interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
