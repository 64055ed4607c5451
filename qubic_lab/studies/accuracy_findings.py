"""What a comparison of a split model (`qubic_lab.evals.compare`) says, in words."""

from qubic_lab.bench.compression import CompressionResult
from qubic_lab.evals.comparison import Case, PairedAccuracy, RunLikeness, SplitComparison, SystemAccuracy
from qubic_lab.stats import wilson_interval
from qubic_lab.studies.acceptance import CONFIDENCE
from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.style import columns, magnitude

QUESTION = "sameness"
# Where the reference's two best logits are closer than this, rounding in fp32 may turn the choice.
ROUNDING_MARGIN = 1e-3


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


def same_questions(comparison: SplitComparison) -> int:
    """Count the questions whose answers are identical in every case."""
    diverged = {divergence.id for case in measured_cases(comparison) for divergence in case.divergences}
    return comparison.questions - len(diverged)


def difference(value: float) -> str:
    """Write a difference so that none at all cannot be taken for a small one."""
    return "0 exactly" if value == 0.0 else magnitude(value)


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
    questions, same = comparison.questions, same_questions(comparison)
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
            result=pair_result(pair, comparison.equivalence_margin),
            **columns(pair, "dtype", "other", "baseline"),
        )
        for pair in comparison.paired
        if not pair.identical
    ]


def pair_result(pair: PairedAccuracy, margin: float) -> Finding:
    """Say what the paired tests of two ways show; differences within `margin` are none."""
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
