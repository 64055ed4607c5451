"""The scores of other people's harnesses beside our own (`qubic_lab.bench.harnesses`): in words, a table, a picture."""

from typing import Any

from matplotlib.figure import Figure

from qubic_lab.bench.harnesses import LM_EVAL, OURS, HarnessResult
from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.style import dots, rows

QUESTION = "sameness"


def score_rows(result: HarnessResult) -> list[dict[str, Any]]:
    """Return one row a harness and task: its share of right answers, and on how many items it got what ours got."""
    return [
        {"task": each.task, "harness": each.harness, "version": result.versions.get(each.harness, "")}
        | {"right": each.right.count, "of": each.right.runs, "share_pct": 100 * each.right.value}
        | {"low_pct": 100 * each.right.low, "high_pct": 100 * each.right.high, "as_ours": each.same}
        for each in result.scores
    ]


def findings(result: HarnessResult) -> list[Finding]:
    """Say whether harnesses got over HTTP what the pipeline says, and which ones were not measured."""
    measured = [each for each in result.scores if each.harness != OURS]
    said = [
        say(
            "{harness} got over HTTP what the pipeline says on {same} of {items:item}.",
            harness=each.harness,
            same=each.same,
            items=each.right.runs,
        )
        for each in measured
    ]
    if result.largest_difference is not None:
        text = "Log-likelihoods in {harness} differ from the pipeline's by {most:.2g} at most."
        said.append(say(text, harness=LM_EVAL, most=result.largest_difference))
    for harness, reason in result.not_measured.items():
        said.append(say("{harness} was not measured here: {reason}.", harness=harness, reason=reason))
    return answering(QUESTION, said)


def scores(result: HarnessResult) -> Figure:
    """Draw the share of right answers of each harness and of ours, with its 95 % interval (Wilson)."""
    with rows([f"{each.task}, {each.harness}" for each in result.scores]) as (figure, axes):
        shares = [each.right for each in result.scores]
        dots(axes, range(len(shares)), shares, label="share, with 95 % interval", scale=100, across=True)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("questions answered correctly (%)")
    return figure
