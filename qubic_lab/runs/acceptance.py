"""Judge recorded results by the acceptance criteria, row by row: plain values in, plain values out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from qubic_lab.studies.accuracy_comparison import Comparison, identical_questions, percent, tokens_compared
from qubic_lab.stats import wilson_interval

Verdict = Literal["pass", "fail", "not measured here"]

CONSISTENCY_TARGET = 0.95
QUESTIONS_TARGET = 50
CONFIDENCE = 0.95
BACKENDS = {"cpu": "gloo on CPU", "cuda": "NCCL on GPU"}
NO_COMPARISON = "no finished run of this week compares a split model with the whole one"


@dataclass(frozen=True)
class Row:
    """One criterion: what is asked, what was measured, and by which run (None if by none)."""

    id: str
    what: str
    target: str
    measured: str
    verdict: Verdict
    reason: str
    run: str | None


def judge(comparisons: Mapping[str, Comparison]) -> list[Row]:
    """Return the rows for the comparisons of a week, given by run key."""
    return [_pipeline_row(comparisons), _consistency_row(comparisons)]


def _pipeline_row(comparisons: Mapping[str, Comparison]) -> Row:
    row = partial(Row, id="11.4", what="Pipeline of 1 to N ranks", target="NCCL on GPUs, gloo on CPU, same code")
    if not comparisons:
        return row(measured="", verdict="not measured here", reason=NO_COMPARISON, run=None)
    # "cuda:0" and "cuda" are the same kind of device.
    run_of_device = {compared["device"].partition(":")[0]: key for key, compared in comparisons.items()}
    measured = ", ".join(BACKENDS[device] for device in sorted(run_of_device))
    missing = [f"missing: {BACKENDS[device]}" for device in sorted(BACKENDS.keys() - run_of_device.keys())]
    return row(
        measured=f"{measured}, up to {_most_ranks(comparisons)} ranks",
        verdict="not measured here" if missing else "pass",
        reason="; ".join(missing),
        run=next(iter(run_of_device.values())),
    )


def _consistency_row(comparisons: Mapping[str, Comparison]) -> Row:
    row = partial(
        Row,
        id="11.6",
        what="Answers of the split model against the whole one",
        target=f"consistency > {percent(CONSISTENCY_TARGET)} on {QUESTIONS_TARGET} questions, aim {percent(1.0)}",
    )
    if not comparisons:
        return row(measured="", verdict="not measured here", reason=NO_COMPARISON, run=None)
    # The least favourable run decides; among equals, the one that asked least.
    run, worst = min(comparisons.items(), key=lambda item: (item[1]["token_identity"], item[1]["questions"]))
    questions, same = worst["questions"], identical_questions(worst)
    low, high = wilson_interval(same, questions, CONFIDENCE)
    return row(
        measured=(
            f"{percent(worst['token_identity'])} of the tokens in the worst case "
            f"({tokens_compared(worst):,} compared in all); "
            f"{same} of {questions} questions identical in every case "
            f"({percent(CONFIDENCE)} interval {percent(low)} to {percent(high)})"
        ),
        verdict="pass" if worst["token_identity"] > CONSISTENCY_TARGET else "fail",
        reason=_limits(worst),
        run=run,
    )


def _limits(comparison: Comparison) -> str:
    """Say what keeps a verdict from meaning all that the criterion asks."""
    limits = []
    if comparison["questions"] < QUESTIONS_TARGET:
        limits.append(f"{comparison['questions']} of {QUESTIONS_TARGET} questions: the full form asks more")
    if comparison["meaningless"]:
        limits.append("random weights: this shows the split, not a model's answers")
    return "; ".join(limits)


def _most_ranks(comparisons: Mapping[str, Comparison]) -> int:
    return max(int(case["ranks"]) for comparison in comparisons.values() for case in comparison["cases"])
