"""Is the split model the same model? Tables, pictures and sentences of a comparison (`qubic_lab.evals.compare`)."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.figure import Figure

from qubic_lab.evals.comparison import Case, PairedAccuracy, RunLikeness, SplitComparison, TokenDifference
from qubic_lab.evals.scoring import cut_text
from qubic_lab.stats import wilson_interval
from qubic_lab.studies.acceptance import CONFIDENCE, AcceptanceRow, Criterion, WeekResults, meaningless_note, too_few
from qubic_lab.studies.style import DARK, INK, Dot, counted, dots, magnitude, percent, points, rows

T = TypeVar("T")
# Where the reference's two best logits are closer than this, rounding in fp32 may turn the choice.
ROUNDING_MARGIN = 1e-3
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


def measured_cases(comparison: SplitComparison) -> list[Case]:
    """Return the cases that were run; one with the layers of another strategy only points to it."""
    return [case for case in comparison.cases if case.measured_as is None]


def case_label(case: Case, comparison: SplitComparison) -> str:
    """Return a short name of a measured case with all strategies that put the same layers: 'fp32, 2 ranks, A = B'."""
    same = sorted(
        other.strategy
        for other in comparison.cases
        if (other.measured_as or other.strategy) == case.strategy
        and (other.dtype, other.ranks, other.batch) == (case.dtype, case.ranks, case.batch)
    )
    return f"{case.dtype}, {case.ranks} ranks, {' = '.join(same)}, batch {case.batch}"


def is_identical(case: RunLikeness) -> bool:
    """Tell whether a split gave the same tokens and bit-equal logits."""
    return case.token_identity == 1.0 and case.logits_max_abs == 0.0


def tokens_compared(comparison: SplitComparison) -> int:
    """Count the tokens that were compared over all measured cases."""
    return sum(case.tokens for case in measured_cases(comparison))


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
            "result": _pair_result(pair, comparison.equivalence_margin),
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


def findings(comparison: SplitComparison) -> list[str]:
    """Say all that a comparison found, the split first."""
    return [
        *identity_sentences(comparison),
        *reference_sentences(comparison),
        *variant_sentences(comparison),
        *accuracy_sentences(comparison),
        *paired_sentences(comparison),
    ]


def identity_sentences(comparison: SplitComparison) -> list[str]:
    """Say whether the split model is the whole model, and what was compared."""
    cases = measured_cases(comparison)
    different = [case for case in cases if not is_identical(case)]
    subject, whole = f"The split {comparison.model}", "the whole model"
    if comparison.candidate:
        subject, whole = f"The split candidate {comparison.candidate}", f"the whole {comparison.model}"
    dtypes = " and ".join(dict.fromkeys(case.dtype for case in cases))
    compared = f"{tokens_compared(comparison):,} tokens were compared in {counted(len(cases), 'case')} ({dtypes})."
    if not comparison.same_model:
        compared = f"By the hash of its weights the candidate is another model: this is not about the split. {compared}"
    if not different:
        return [f"{subject} equals {whole}: the same tokens, and logits equal bit for bit.", compared]
    worst = min(different, key=lambda case: (case.token_identity, -case.logits_max_abs))
    extent = f"Logits differ by up to {difference(comparison.logits_max_abs)}"
    if worst.token_identity == 1.0:
        return [
            f"{subject} gave the same tokens as {whole}, but its logits are not equal bit for bit.",
            f"{extent} in {len(different)} of {len(cases)} cases.",
            compared,
        ]
    return [
        f"{subject} is not {whole}: {len(different)} of {len(cases)} cases differ.",
        f"In the worst case ({case_label(worst, comparison)}), {percent(worst.token_identity)} of the tokens agree.",
        f"{extent}.",
        compared,
    ]


def reference_sentences(comparison: SplitComparison) -> list[str]:
    """Say, for each dtype, how our engine on one rank compares with the reference library."""
    said = []
    for reference in comparison.reference:
        subject = f"In {reference.dtype}, the engine on one rank and {reference.library}"
        extent = f"logits differ by up to {difference(reference.logits_max_abs)}"
        if not reference.differences:
            said.append(f"{subject} chose the same {reference.tokens:,} tokens; {extent}.")
            continue
        widest = max(each.margin for each in reference.differences)
        margin = f"the reference's own margin there is up to {magnitude(widest)}"
        if reference.dtype == "fp32":
            explains = "explains" if widest < ROUNDING_MARGIN else "does not explain"
            margin = f"rounding {explains} it (margin up to {magnitude(widest)})"
        parted = f"{len(reference.differences)} of {reference.questions} answers"
        said.append(f"{subject} differ in {parted}; {margin}; {extent}.")
    return said


def variant_sentences(comparison: SplitComparison) -> list[str]:
    """Say, for each change, what other threads or another batch do to the answers of one rank."""
    said = []
    for variant in comparison.variants:
        change = f"In {variant.dtype}, {variant.what} {variant.other} instead of {variant.base}"
        extent = f"logits differ by up to {difference(variant.logits_max_abs)}"
        if is_identical(variant):
            said.append(f"{change} changed nothing: tokens and logits are equal bit for bit.")
        elif not variant.divergences:
            said.append(f"{change} changed no token; {extent}.")
        else:
            widest = max(each.margin for each in variant.divergences)
            changed = f"changed {len(variant.divergences)} of {variant.questions} answers"
            said.append(f"{change} {changed} (the model's own margin is up to {magnitude(widest)}); {extent}.")
    return said


def accuracy_sentences(comparison: SplitComparison) -> list[str]:
    """Say, for each dtype, how many questions the whole model answers correctly."""
    return [
        f"In {each.dtype}, the whole model answered {each.correct} of {each.questions} checkable questions correctly "
        f"({percent(each.correct / each.questions)}, 95\N{NO-BREAK SPACE}% interval {percent(each.low)} to "
        f"{percent(each.high)}); {cut_text(each.cut_share, comparison.max_new_tokens, 'max_new_tokens')}."
        for each in _firsts(comparison.accuracy, "dtype")
    ]


def paired_sentences(comparison: SplitComparison) -> list[str]:
    """Say whether the ways of running are equally often right; identical answers need no test."""
    same = [pair for pair in comparison.paired if pair.identical]
    splits = [pair for pair in same if pair.other.startswith("split")]
    named = [f"{pair.other} in {pair.dtype}" for pair in same if pair not in splits]
    if splits:
        named.insert(0, f"{len(splits)} run{'s' * (len(splits) > 1)} of the split model")
    return [
        *([f"These answers are identical to the whole model's and need no test: {', '.join(named)}."] if same else []),
        *(
            f"In {pair.dtype}, {pair.other} against {pair.baseline}: "
            f"{_pair_result(pair, comparison.equivalence_margin)}."
            for pair in comparison.paired
            if not pair.identical
        ),
    ]


def _pair_result(pair: PairedAccuracy, margin: float) -> str:
    tests = pair.tests
    if pair.identical or tests is None:
        return "identical, no test needed"
    equivalent = "equivalent" if tests.equivalent else "not shown to be equivalent"
    detectable = "no difference is detectable"
    if tests.minimum_detectable is not None:
        detectable = f"a difference of {points(tests.minimum_detectable)} points is detectable"
    return (
        f"accuracy differs by {points(tests.difference)} points (95\N{NO-BREAK SPACE}% interval "
        f"{points(tests.low)} to {points(tests.high)}), McNemar p = {tests.mcnemar_p:.2g}, {equivalent} within "
        f"{points(margin)} points; with {pair.questions} questions {detectable} (power 80\N{NO-BREAK SPACE}%)"
    )


def _nats(kl: float) -> str:
    return "0 exactly" if kl == 0.0 else f"{kl:.1e}"


def difference(value: float) -> str:
    """Write a difference so that none at all cannot be taken for a small one."""
    return "0 exactly" if value == 0.0 else magnitude(value)


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge the backends that ran, and the consistency of the split model with the whole one.

    Neither is shown by one rank, or by a candidate that is another model.
    """
    found = week.read("comparison", SplitComparison)
    comparisons = {
        run: each for run, each in found.items() if each.same_model and any(case.ranks > 1 for case in each.cases)
    }
    if not comparisons:
        more = " split the model itself" if found else ""
        return [PIPELINE.not_measured(more), CONSISTENCY.not_measured(more)]
    return [_pipeline_row(comparisons), _consistency_row(comparisons)]


def _pipeline_row(comparisons: Mapping[str, SplitComparison]) -> AcceptanceRow:
    # "cuda:0" and "cuda" are the same kind of device.
    run_of_device = {compared.device.partition(":")[0]: run for run, compared in comparisons.items()}
    backends = ", ".join(BACKENDS[device] for device in sorted(run_of_device))
    most_ranks = max(case.ranks for compared in comparisons.values() for case in compared.cases)
    missing = [BACKENDS[device] for device in sorted(BACKENDS.keys() - run_of_device.keys())]
    return PIPELINE.complete(f"{backends}, up to {most_ranks} ranks", missing, next(iter(run_of_device.values())))


def _consistency_row(comparisons: Mapping[str, SplitComparison]) -> AcceptanceRow:
    def consistency(compared: SplitComparison) -> float:
        return min(compared.token_identity, _same_questions(compared) / compared.questions)

    # The least favourable run decides; among equals, the one that asked least.
    run, worst = min(comparisons.items(), key=lambda item: (consistency(item[1]), item[1].questions))
    questions, same = worst.questions, _same_questions(worst)
    low, high = wilson_interval(same, questions, CONFIDENCE)
    return CONSISTENCY.row(
        f"{percent(worst.token_identity)} of the tokens in the worst case ({tokens_compared(worst):,} compared in "
        f"all); {same} of {questions} questions identical in every case "
        f"({percent(CONFIDENCE)} interval {percent(low)} to {percent(high)})",
        consistency(worst) > CONSISTENCY_TARGET,
        meaningless_note(worst.meaningless),
        run,
        few=too_few(questions, QUESTIONS_TARGET, "questions"),
    )


def _same_questions(comparison: SplitComparison) -> int:
    """Count the questions whose answers are identical in every case."""
    diverged = {divergence.id for case in measured_cases(comparison) for divergence in case.divergences}
    return comparison.questions - len(diverged)


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
    """Draw the share of right answers with its 95 % Wilson interval; ways with identical answers are drawn once."""
    identical = {(pair.dtype, pair.other) for pair in comparison.paired if pair.identical}
    ways = [each for each in comparison.accuracy if (each.dtype, each.system) not in identical]
    with rows([f"{each.dtype}, {each.system}" for each in ways]) as (figure, axes):
        shares = [Dot(each.correct / each.questions, each.low, each.high) for each in ways]
        dots(axes, range(len(ways)), shares, label="share, with 95 % interval", scale=100, across=True)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("questions answered correctly (%)")
    return figure
