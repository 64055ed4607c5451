"""Is the split model the same model? Tables, pictures and sentences of a comparison (`qubic_lab.evals.compare`)."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.figure import Figure

from qubic_lab.bench.compression import CompressionResult
from qubic_lab.evals.comparison import (
    Case,
    PairedAccuracy,
    RunLikeness,
    SplitComparison,
    SystemAccuracy,
    TokenDifference,
)
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
from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.style import DARK, INK, Dot, columns, dots, magnitude, percent, rows

T = TypeVar("T")
QUESTION = "sameness"
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
            "result": str(_pair_result(pair, comparison.equivalence_margin)),
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


def findings(comparison: SplitComparison) -> list[Finding]:
    """Say all that a comparison found, the split first."""
    found = [
        *identity_findings(comparison),
        *reference_findings(comparison),
        *variant_findings(comparison),
        *accuracy_findings(comparison),
        *paired_findings(comparison),
    ]
    return answering(QUESTION, found)


def identity_findings(comparison: SplitComparison) -> list[Finding]:
    """Say whether the split model is the whole model, and what was compared."""
    cases = measured_cases(comparison)
    different = [case for case in cases if not is_identical(case)]
    questions, same = comparison.questions, _same_questions(comparison)
    low, high = wilson_interval(same, questions, CONFIDENCE)
    split = say("The split {model}", model=comparison.model)
    if comparison.candidate:
        split = say("The split candidate {candidate}", candidate=comparison.candidate)
    values = {"split": split, "whole": comparison.model, "questions": questions, "key": same / questions}
    values |= {"low": low, "high": high, "unit": say("equal answers"), "cases": len(cases)}
    compared = [
        say(
            "{tokens} tokens were compared in {cases:case} ({dtypes}).",
            tokens=tokens_compared(comparison),
            cases=len(cases),
            dtypes=list(dict.fromkeys(case.dtype for case in cases)),
        )
    ]
    if not comparison.same_model:
        compared.insert(
            0, say("By the hash of its weights the candidate is another model: this is not about the split.")
        )
    if not different:
        text = "{split} equals {whole} bit for bit in {questions:answer}."
        return [say(text, rule="percent", **values), *compared]
    worst = min(different, key=lambda case: (case.token_identity, -case.logits_max_abs))
    extent = difference(comparison.logits_max_abs)
    values |= {"different": len(different)}
    if worst.token_identity == 1.0:
        text = (
            "{split} gives the same tokens as {whole} ({key:percent} of {questions:question}), but not bit-equal "
            "logits."
        )
        logits = "Logits differ by up to {extent} in {different} of {cases} cases."
        return [say(text, **values), say(logits, extent=extent, different=len(different), cases=len(cases)), *compared]
    text = (
        "{split} is not {whole}: {key:percent} of {questions:question} have identical answers; {different} of {cases} "
        "cases differ."
    )
    return [
        say(text, **values),
        say(
            "In the worst case ({case}), {identity:percent} of the tokens agree.",
            case=case_label(worst, comparison),
            identity=worst.token_identity,
        ),
        say("Logits differ by up to {extent}.", extent=extent),
        *compared,
    ]


def reference_findings(comparison: SplitComparison) -> list[Finding]:
    """Say, for each dtype, how our engine on one rank compares with the reference library."""
    said = []
    for reference in comparison.reference:
        values = columns(reference, "dtype", "library", "tokens", "questions")
        values |= {"extent": difference(reference.logits_max_abs), "parted": len(reference.differences)}
        if not reference.differences:
            said.append(
                say(
                    "In {dtype}, the engine on one rank and {library} chose the same {tokens} tokens; logits differ by "
                    "up to {extent}.",
                    **values,
                )
            )
            continue
        widest = max(each.margin for each in reference.differences)
        values |= {"margin": magnitude(widest)}
        if reference.dtype != "fp32":
            text = (
                "In {dtype}, the engine on one rank and {library} differ in {parted} of {questions} answers; the "
                "reference's own margin there is up to {margin}; logits differ by up to {extent}."
            )
        elif widest < ROUNDING_MARGIN:
            text = (
                "In {dtype}, the engine on one rank and {library} differ in {parted} of {questions} answers; rounding "
                "explains it (margin up to {margin}); logits differ by up to {extent}."
            )
        else:
            text = (
                "In {dtype}, the engine on one rank and {library} differ in {parted} of {questions} answers; rounding "
                "does not explain it (margin up to {margin}); logits differ by up to {extent}."
            )
        said.append(say(text, **values))
    return said


def variant_findings(comparison: SplitComparison) -> list[Finding]:
    """Say, for each change, what other threads or another batch do to the answers of one rank."""
    said = []
    for variant in comparison.variants:
        what = say("threads") if variant.what == "threads" else say("batch")
        change = say(
            "In {dtype}, {what} {other} instead of {base}", what=what, **columns(variant, "dtype", "other", "base")
        )
        values = {"change": change, "extent": difference(variant.logits_max_abs)}
        if is_identical(variant):
            said.append(say("{change} changed nothing: tokens and logits are equal bit for bit.", change=change))
        elif not variant.divergences:
            said.append(say("{change} changed no token; logits differ by up to {extent}.", **values))
        else:
            said.append(
                say(
                    "{change} changed {changed} of {questions} answers (the model's own margin is up to {margin}); "
                    "logits differ by up to {extent}.",
                    changed=len(variant.divergences),
                    questions=variant.questions,
                    margin=magnitude(max(each.margin for each in variant.divergences)),
                    **values,
                )
            )
    return said


def accuracy_findings(comparison: SplitComparison) -> list[Finding]:
    """Say, for each dtype, how many questions the `main_ways` answer correctly."""
    ways = {"whole": say("the whole model"), "split": say("the split model")}
    return [
        say(
            "In {dtype}, {way} answered {correct} of {questions} checkable questions correctly "
            "({share:percent}, 95 % interval {low:percent} to {high:percent}); {cut:percent} of the answers were cut "
            "at {limit} tokens.",
            way=ways.get(each.system.partition(",")[0], each.system),
            share=each.correct / each.questions,
            cut=each.cut_share,
            limit=comparison.max_new_tokens,
            **columns(each, "dtype", "correct", "questions", "low", "high"),
        )
        for each in main_ways(comparison)
    ]


def paired_findings(comparison: SplitComparison) -> list[Finding]:
    """Say whether the ways of running are equally often right; identical answers need no test."""
    same = [pair for pair in comparison.paired if pair.identical]
    splits = [pair for pair in same if pair.other.startswith("split")]
    named = [say("{way} in {dtype}", way=pair.other, dtype=pair.dtype) for pair in same if pair not in splits]
    if splits:
        named.insert(0, say("{runs:run} of the split model", runs=len(splits)))
    text = "These answers are identical to the whole model's and need no test: {named}."
    said = [say(text, named=named)] if same else []
    return said + [
        say(
            "In {dtype}, {other} against {baseline}: {result}.",
            result=_pair_result(pair, comparison.equivalence_margin),
            **columns(pair, "dtype", "other", "baseline"),
        )
        for pair in comparison.paired
        if not pair.identical
    ]


def _pair_result(pair: PairedAccuracy, margin: float) -> Finding:
    tests = pair.tests
    if pair.identical or tests is None:
        return say("identical, no test needed")
    values = columns(tests, "difference", "low", "high") | {"p": tests.mcnemar_p, "margin": 100 * margin}
    values |= {"equivalent": say("equivalent") if tests.equivalent else say("not shown to be equivalent")}
    values |= {"questions": pair.questions, "detectable": 100 * (tests.minimum_detectable or 0.0)}
    if tests.minimum_detectable is None:
        return say(
            "accuracy differs by {difference:points} points (95 % interval {low:points} to {high:points}), McNemar p "
            "{p:p}, {equivalent} within {margin:g} points; with {questions} questions no difference is detectable "
            "(power 80 %)",
            **values,
        )
    return say(
        "accuracy differs by {difference:points} points (95 % interval {low:points} to {high:points}), McNemar p "
        "{p:p}, {equivalent} within {margin:g} points; with {questions} questions a difference of {detectable:.1f} "
        "points is detectable (power 80 %)",
        **values,
    )


def packing_finding(packing: CompressionResult) -> Finding:
    """Say what lossless packing of the hidden states between ranks does."""
    decode, prompt = packing.sizes[0], packing.sizes[-1]
    values = {"token": decode.saved, "prompt": prompt.saved, "ratio": packing.ratio}
    values |= {"token_gbps": decode.pays_below_gbps, "prompt_gbps": prompt.pays_below_gbps}
    if packing.equal_tokens:
        return say(
            "Lossless packing of hidden states saves {token:percent} of the bytes of a token and {prompt:percent} of "
            "those of a prompt; it pays on links slower than {token_gbps:.2g} and {prompt_gbps:.2g} Gbit/s. On this "
            "machine answers take {ratio:.3f} times as long, and no token changes.",
            **values,
        )
    return say("PACKING CHANGES TOKENS; on this machine answers take {ratio:.3f} times as long.", ratio=packing.ratio)


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
        return min(compared.token_identity, _same_questions(compared) / compared.questions)

    # The least favourable run decides; among equals, the one that asked least.
    run, worst = min(comparisons.items(), key=lambda item: (consistency(item[1]), item[1].questions))
    questions, same = worst.questions, _same_questions(worst)
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


def main_ways(comparison: SplitComparison) -> list[SystemAccuracy]:
    """Return the whole model, the split one and the reference library, once for each dtype, and what differs from them.

    A split with the whole model's answers stands for all others of its dtype that have them.
    """
    identical = {(pair.dtype, pair.other) for pair in comparison.paired if pair.identical}
    kept, seen = [], set()
    for each in comparison.accuracy:
        kind = (each.dtype, each.system.partition(",")[0])
        if kind not in seen or (each.dtype, each.system) not in identical:
            kept.append(each)
        seen.add(kind)
    return kept


def accuracies(comparison: SplitComparison) -> Figure:
    """Draw the share of right answers of the `main_ways` with its 95 % Wilson interval."""
    ways = main_ways(comparison)
    with rows([f"{each.dtype}, {each.system}" for each in ways]) as (figure, axes):
        shares = [Dot(each.correct / each.questions, each.low, each.high) for each in ways]
        dots(axes, range(len(ways)), shares, label="share, with 95 % interval", scale=100, across=True)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("questions answered correctly (%)")
    return figure
