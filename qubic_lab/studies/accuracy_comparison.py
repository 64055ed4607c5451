"""Is the split model the same model? Tables, pictures and sentences of a comparison (`qubic_lab.evals.compare`)."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.figure import Figure

from qubic_lab.evals.comparison import RunLikeness, SplitComparison, TokenDifference
from qubic_lab.stats import wilson_interval
from qubic_lab.studies.acceptance import (
    CONFIDENCE,
    AcceptanceRow,
    Criterion,
    WeekResults,
    joined,
    meaningless_note,
    too_few,
)
from qubic_lab.studies.accuracy_findings import (
    ROUNDING_MARGIN,
    case_label,
    difference,
    main_ways,
    measured_cases,
    pair_result,
    same_questions,
    tokens_compared,
)
from qubic_lab.studies.finding import say
from qubic_lab.studies.style import DARK, INK, Dot, dots, percent, rows

T = TypeVar("T")
# The logarithmic axis begins here; exact zeros stand apart to the left of it.
SMALLEST_SHOWN = 1e-8
CONSISTENCY_TARGET = 0.95
QUESTIONS_TARGET = 50
BACKENDS = {"cpu": "gloo on CPU", "cuda": "NCCL on GPU"}
PIPELINE = Criterion("11.4", "Pipeline of 1 to N ranks", "NCCL on GPUs, gloo on CPU, same code", "accuracy_comparison")
CONSISTENCY = Criterion(
    "11.6",
    "Answers of the split model against the whole one",
    f"consistency > {percent(CONSISTENCY_TARGET)} on {QUESTIONS_TARGET} questions, aim {percent(1.0)}",
    "accuracy_comparison",
)


def unexplained_differences(comparison: SplitComparison) -> list[TokenDifference]:
    """Return the fp32 differences from the reference library that rounding does not explain."""
    return [
        each
        for reference in comparison.reference
        for each in reference.differences
        if reference.dtype == "fp32" and each.margin >= ROUNDING_MARGIN
    ]


def case_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return the table of split against whole, a row a case."""
    return [
        {
            "case": f"{case.dtype}, {case.ranks} ranks, {case.strategy}, batch {case.batch}",
            "layers": "/".join(map(str, case.layers)),
            "measured as": case.measured_as or "",
            **_likeness_cells(case),
        }
        for case in comparison.cases
    ]


def reference_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return the table of the whole model against the reference library, a row a dtype."""
    return [{"dtype": each.dtype, "library": each.library, **_likeness_cells(each)} for each in comparison.reference]


def difference_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return where answers part from the reference library's, a row an answer."""
    return [
        {
            "dtype": reference.dtype,
            "question": each.id,
            "token": each.position,
            "ours": repr(each.ours),
            "theirs": repr(each.theirs),
            "their margin": each.margin,
        }
        for reference in comparison.reference
        for each in reference.differences
    ]


def variant_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return the table of what else was changed on one rank."""
    return [
        {"dtype": each.dtype, "change": f"{each.what} {each.base} → {each.other}", **_likeness_cells(each)}
        for each in comparison.variants
    ]


def _likeness_cells(measured: RunLikeness) -> dict[str, Any]:
    margins = [each.margin for each in measured.divergences]
    return {
        "tokens": measured.tokens,
        "tokens equal": percent(measured.token_identity),
        "answers that part": len(measured.divergences),
        "first at token": min((each.position for each in measured.divergences), default=None),
        "logits differ by": difference(measured.logits_max_abs),
        "mean KL (nats)": _nats(measured.kl_mean),
        "largest KL (nats)": _nats(measured.kl_max),
        "smallest margin": measured.margin_min,
        "largest margin where they part": max(margins, default=None),
    }


def accuracy_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return the table of right answers with their 95 % Wilson intervals, a row a way of running."""
    return [
        {
            "dtype": each.dtype,
            "way": each.system,
            "right": each.correct,
            "of": each.questions,
            "share": percent(each.correct / each.questions),
            "95 % interval": f"{percent(each.low)} to {percent(each.high)}",
            "cut": f"{each.cut} ({percent(each.cut_share)})",
        }
        for each in comparison.accuracy
    ]


def paired_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return the table of paired tests, a row a pair of ways."""
    return [
        {
            "dtype": pair.dtype,
            "way": pair.other,
            "against": pair.baseline,
            "only the first right": pair.only_other,
            "only the second right": pair.only_baseline,
            "result": str(pair_result(pair, comparison.equivalence_margin)),
        }
        for pair in comparison.paired
    ]


def answer_rows(comparison: SplitComparison) -> list[dict[str, Any]]:
    """Return an example answer of each kind of question, and whether it is right."""
    verdicts = {True: "right", False: "wrong", None: "not checkable"}
    return [
        {
            "kind": each.kind,
            "question": each.question,
            "reference": each.answer,
            "answer": each.text + (" … (cut)" if each.cut else ""),
            "verdict": verdicts[each.correct],
        }
        for each in _firsts(comparison.answers, "kind")
    ]


def _firsts(found: Sequence[T], name: str) -> list[T]:
    """Return the first one for each value of an attribute."""
    firsts: dict[str, T] = {}
    for each in found:
        firsts.setdefault(getattr(each, name), each)
    return list(firsts.values())


def _nats(kl: float) -> str:
    return "0 exactly" if kl == 0.0 else f"{kl:.1e}"


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge the backends that ran, and the consistency of the split model with the whole one.

    Neither is shown by one rank, or by a candidate that is another model.
    """
    found = week.read("comparison", SplitComparison)
    comparisons = {
        run: each for run, each in found.items() if each.same_model and any(case.ranks > 1 for case in each.cases)
    }
    if not comparisons:
        more = say("split the model itself") if found else ""
        return [PIPELINE.not_measured(more), CONSISTENCY.not_measured(more)]
    return [_pipeline_row(comparisons), _consistency_row(comparisons)]


def _pipeline_row(comparisons: Mapping[str, SplitComparison]) -> AcceptanceRow:
    # "cuda:0" and "cuda" are the same kind of device.
    run_of_device = {compared.device.partition(":")[0]: run for run, compared in comparisons.items()}
    backends = [say(BACKENDS[device]) for device in sorted(run_of_device)]
    most_ranks = max(case.ranks for compared in comparisons.values() for case in compared.cases)
    missing = [say(BACKENDS[device]) for device in sorted(BACKENDS.keys() - run_of_device.keys())]
    measured = say("{backends}, up to {ranks:rank}", backends=backends, ranks=most_ranks)
    return PIPELINE.complete(measured, missing, next(iter(run_of_device.values())))


def _consistency_row(comparisons: Mapping[str, SplitComparison]) -> AcceptanceRow:
    def consistency(compared: SplitComparison) -> float:
        return min(compared.token_identity, same_questions(compared) / compared.questions)

    # The least favourable run decides; among equals, the one that asked least.
    run, worst = min(comparisons.items(), key=lambda item: (consistency(item[1]), item[1].questions))
    questions, same = worst.questions, same_questions(worst)
    low, high = wilson_interval(same, questions, CONFIDENCE)
    tokens = say(
        "{identity:percent} of the tokens in the worst case ({compared} compared in all)",
        identity=worst.token_identity,
        compared=tokens_compared(worst),
    )
    answers = say(
        "{same} of {questions:question} identical in every case ({confidence:percent} interval {low:percent} to "
        "{high:percent})",
        same=same,
        questions=questions,
        confidence=CONFIDENCE,
        low=low,
        high=high,
    )
    return CONSISTENCY.row(
        joined(tokens, answers),
        consistency(worst) > CONSISTENCY_TARGET,
        meaningless_note(worst.meaningless),
        run,
        few=too_few(questions, QUESTIONS_TARGET, say("questions")),
    )


def logit_differences(comparison: SplitComparison) -> Figure:
    """Draw each case's largest logit difference, split against whole, beside ours against the reference library."""
    cases = measured_cases(comparison)
    references = comparison.reference
    labels = [case_label(case, comparison) for case in cases] + [f"{each.dtype}, one rank" for each in references]
    with rows(labels) as (figure, axes):
        axes.set_xscale("symlog", linthresh=SMALLEST_SHOWN, linscale=0.6)
        axes.axvline(SMALLEST_SHOWN, color=INK, linewidth=0.8, linestyle=":")
        axes.axhline(len(cases) - 0.5, color=INK, linewidth=0.8, linestyle=":")
        split = [case.logits_max_abs for case in cases]
        axes.plot(split, range(len(cases)), "o", color=DARK, label="split against whole")
        others = [each.logits_max_abs for each in references]
        if references:
            label = f"ours against {references[0].library}"
            axes.plot(others, range(len(cases), len(labels)), "D", color=DARK, markerfacecolor="white", label=label)
        top = max(1.0, comparison.logits_max_abs, *others)
        axes.set_xlim(-SMALLEST_SHOWN / 2, top * 3)
        axes.set_xticks([0.0, 1e-6, 1e-4, 1e-2, 1.0], ["0\nexactly", "10⁻⁶", "10⁻⁴", "10⁻²", "1"])
        axes.minorticks_off()
        axes.set_xlabel("largest difference of a logit (no unit)")
    return figure


def accuracies(comparison: SplitComparison) -> Figure:
    """Draw the share of right answers of the `main_ways` with its 95 % Wilson interval."""
    ways = main_ways(comparison)
    with rows([f"{each.dtype}, {each.system}" for each in ways]) as (figure, axes):
        shares = [Dot(each.correct / each.questions, each.low, each.high) for each in ways]
        dots(axes, range(len(ways)), shares, label="share, with 95 % interval", scale=100, across=True)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("questions answered correctly (%)")
    return figure
