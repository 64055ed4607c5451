"""Read a recorded comparison (`qubic_lab.evals.compare`): which cases count, what they say in words and pictures.

A comparison is what `Comparison.to_dict` gives: plain values, here only looked at.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from matplotlib.figure import Figure

from qubic_lab.studies.style import DARK, INK, PALE, rows

Comparison = Mapping[str, Any]
Case = Mapping[str, Any]

# Where the reference's two best logits are closer than this, rounding in fp32 may turn the choice.
ROUNDING_MARGIN = 1e-3
# The logarithmic axis begins here; exact zeros stand apart to the left of it.
SMALLEST_SHOWN = 1e-8


def measured_cases(comparison: Comparison) -> list[Case]:
    """Return the cases that were run; one with the layers of another strategy only points to it."""
    return [case for case in comparison["cases"] if case["measured_as"] is None]


def strategies_of(case: Case, comparison: Comparison) -> list[str]:
    """Return the strategies that a measured case stands for: its own, and those that put the same layers."""
    same = ("dtype", "ranks", "batch")
    return sorted(
        other["strategy"]
        for other in comparison["cases"]
        if (other["measured_as"] or other["strategy"]) == case["strategy"]
        and all(other[name] == case[name] for name in same)
    )


def case_label(case: Case, comparison: Comparison) -> str:
    """Return a short name of a measured case, as in 'fp32, 2 ranks, A = B, batch 1'."""
    strategies = " = ".join(strategies_of(case, comparison))
    return f"{case['dtype']}, {case['ranks']} ranks, {strategies}, batch {case['batch']}"


def is_identical(case: Case) -> bool:
    """Tell whether a split gave the same tokens and bit-equal logits."""
    return bool(case["token_identity"] == 1.0 and case["logits_max_abs"] == 0.0)


def identical_questions(comparison: Comparison) -> int:
    """Count the questions whose answer has the same tokens in every case."""
    diverged = {divergence["id"] for case in measured_cases(comparison) for divergence in case["divergences"]}
    return int(comparison["questions"]) - len(diverged)


def tokens_compared(comparison: Comparison) -> int:
    """Count the tokens that were compared over all measured cases."""
    return sum(case["tokens"] for case in measured_cases(comparison))


def unexplained_differences(comparison: Comparison) -> list[Mapping[str, Any]]:
    """Return the fp32 differences from the reference library that rounding does not explain."""
    return [
        each
        for reference in comparison["reference"]
        if reference["dtype"] == "fp32"
        for each in reference["differences"]
        if each["margin"] >= ROUNDING_MARGIN
    ]


def example_answers(comparison: Comparison) -> list[Mapping[str, Any]]:
    """Return the first answer of each kind of question, in the order of the questions."""
    first_of_kind: dict[str, Mapping[str, Any]] = {}
    for answer in comparison["answers"]:
        first_of_kind.setdefault(answer["kind"], answer)
    return list(first_of_kind.values())


def identity_sentence(comparison: Comparison) -> str:
    """Say whether the split model is the whole model."""
    cases = measured_cases(comparison)
    different = [case for case in cases if not is_identical(case)]
    dtypes = " and ".join(dict.fromkeys(case["dtype"] for case in cases))
    compared = f"{dtypes}, {tokens_compared(comparison):,} tokens compared"
    if not different:
        return (
            f"The split {comparison['model']} gave the same tokens as the whole model "
            f"in {_all_of(len(cases), 'case')} ({compared}); its logits are equal bit for bit."
        )
    worst = min(different, key=lambda case: (case["token_identity"], -case["logits_max_abs"]))
    extent = f"logits differ by up to {difference(comparison['logits_max_abs'])}"
    if worst["token_identity"] == 1.0:
        return (
            f"The split {comparison['model']} gave the same tokens as the whole model "
            f"in {_all_of(len(cases), 'case')} ({compared}), but not bit for bit: "
            f"{extent} in {len(different)} of {len(cases)} cases."
        )
    return (
        f"The split {comparison['model']} is not the whole model: {len(different)} of {len(cases)} cases differ; "
        f"in the worst ({case_label(worst, comparison)}) only {percent(worst['token_identity'])} of the tokens agree, "
        f"and {extent}."
    )


def reference_sentences(comparison: Comparison) -> list[str]:
    """Say, one sentence a dtype, how our engine on one rank compares with the reference library."""
    return [_reference_sentence(reference) for reference in comparison["reference"]]


def _reference_sentence(reference: Mapping[str, Any]) -> str:
    subject = f"In {reference['dtype']} the engine on one rank and {reference['library']}"
    differences: Sequence[Mapping[str, Any]] = reference["differences"]
    extent = f"the largest difference of a logit is {difference(reference['logits_max_abs'])}"
    if not differences:
        return f"{subject} chose the same {reference['tokens']:,} tokens; {extent}."
    chose = f"{subject} part ways in {len(differences)} of {reference['questions']} answers"
    widest = max(each["margin"] for each in differences)
    if reference["dtype"] != "fp32":
        return f"{chose}, where the reference's own margin is up to about {magnitude(widest)}; {extent}."
    if widest < ROUNDING_MARGIN:
        return f"{chose}, each where the margin is below {ROUNDING_MARGIN:g}, which rounding explains; {extent}."
    return f"{chose}, with a margin of up to about {magnitude(widest)}, which rounding does not explain; {extent}."


def magnitude(value: float) -> str:
    """Write a number with two significant digits and no exponent."""
    return f"{Decimal(f'{value:.2g}'):f}"


def difference(value: float) -> str:
    """Write a difference so that none at all cannot be taken for a small one."""
    return "0 exactly" if value == 0.0 else magnitude(value)


def percent(share: float) -> str:
    """Write a share as a percentage; 100 is said only of all."""
    rounded = round(share * 100, 1)
    return f"{min(rounded, 99.9) if share < 1.0 else rounded:g}\N{NO-BREAK SPACE}%"


def _all_of(count: int, noun: str) -> str:
    return f"the one {noun}" if count == 1 else f"all {count} {noun}s"


def logit_differences(comparison: Comparison) -> Figure:
    """Draw each case's largest logit difference, split against whole, beside ours against the reference library."""
    cases = measured_cases(comparison)
    references = comparison["reference"]
    labels = [case_label(case, comparison) for case in cases] + [f"{each['dtype']}, one rank" for each in references]
    with rows(labels) as (figure, axes):
        axes.set_xscale("symlog", linthresh=SMALLEST_SHOWN, linscale=0.6)
        axes.axvline(SMALLEST_SHOWN, color=INK, linewidth=0.8, linestyle=":")
        axes.axhline(len(cases) - 0.5, color=INK, linewidth=0.8, linestyle=":")
        split = [case["logits_max_abs"] for case in cases]
        axes.plot(split, range(len(cases)), "o", color=DARK, markersize=7, label="split against whole")
        if references:
            axes.plot(
                [each["logits_max_abs"] for each in references],
                range(len(cases), len(labels)),
                "D",
                color=DARK,
                markerfacecolor="white",
                markersize=7,
                label=f"ours against {references[0]['library']}",
            )
        top = max(1.0, comparison["logits_max_abs"], *(each["logits_max_abs"] for each in references))
        axes.set_xlim(-SMALLEST_SHOWN / 2, top * 3)
        axes.set_xticks([0.0, 1e-6, 1e-4, 1e-2, 1.0], ["0\nexactly", "10⁻⁶", "10⁻⁴", "10⁻²", "1"])
        axes.minorticks_off()
        axes.set_xlabel("largest difference of a logit (no unit)")
    return figure


def speeds(comparison: Comparison) -> Figure:
    """Draw the tokens per second of each case beside those of one rank."""
    cases = measured_cases(comparison)
    places = range(len(cases))
    with rows([case_label(case, comparison) for case in cases], inches_per_row=0.42) as (figure, axes):
        split = [case["tokens_per_s"] for case in cases]
        whole = [case["one_rank_tokens_per_s"] for case in cases]
        axes.barh([place - 0.19 for place in places], split, height=0.36, color=DARK, label="split")
        axes.barh(
            [place + 0.19 for place in places],
            whole,
            height=0.36,
            color=PALE,
            edgecolor=DARK,
            linewidth=0.6,
            hatch="////",
            label="one rank",
        )
        axes.set_xlabel("speed of the whole batch (tokens/s)")
    return figure
