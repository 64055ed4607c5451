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


def case_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table of split against whole, a row a case."""
    return [
        {
            "case": f"{case['dtype']}, {case['ranks']} ranks, {case['strategy']}, batch {case['batch']}",
            "layers": "/".join(map(str, case["layers"])),
            "measured as": case["measured_as"] or "",
            **_likeness_cells(case),
        }
        for case in comparison["cases"]
    ]


def reference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table of the whole model against the reference library, a row a dtype."""
    return [
        {"dtype": each["dtype"], "library": each["library"], **_likeness_cells(each)}
        for each in comparison["reference"]
    ]


def difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return where answers part from the reference library's, a row an answer."""
    return [
        {
            "dtype": reference["dtype"],
            "question": each["id"],
            "token": each["position"],
            "ours": repr(each["ours"]),
            "theirs": repr(each["theirs"]),
            "their margin": each["margin"],
        }
        for reference in comparison["reference"]
        for each in reference["differences"]
    ]


def variant_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table of what else was changed on one rank."""
    return [
        {"dtype": each["dtype"], "change": f"{each['what']} {each['base']} → {each['other']}", **_likeness_cells(each)}
        for each in comparison["variants"]
    ]


def _likeness_cells(measured: Mapping[str, Any]) -> dict[str, Any]:
    margins = [each["margin"] for each in measured["divergences"]]
    return {
        "tokens": measured["tokens"],
        "tokens equal": percent(measured["token_identity"]),
        "answers that part": len(measured["divergences"]),
        "first at token": min((each["position"] for each in measured["divergences"]), default=None),
        "logits differ by": difference(measured["logits_max_abs"]),
        "mean KL (nats)": _nats(measured["kl_mean"]),
        "largest KL (nats)": _nats(measured["kl_max"]),
        "smallest margin": measured["margin_min"],
        "largest margin where they part": max(margins, default=None),
    }


def accuracy_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table of right answers with their 95 % Wilson intervals, a row a way of running."""
    return [
        {
            "dtype": each["dtype"],
            "way": each["system"],
            "right": each["correct"],
            "of": each["questions"],
            "share": percent(each["correct"] / each["questions"]),
            "95 % interval": f"{percent(each['low'])} to {percent(each['high'])}",
            "cut": each["cut"],
        }
        for each in comparison["accuracy"]
    ]


def paired_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table of paired tests, a row a pair of ways."""
    return [
        {
            "dtype": pair["dtype"],
            "way": pair["other"],
            "against": pair["baseline"],
            "only the first right": pair["only_other"],
            "only the second right": pair["only_baseline"],
            "result": _pair_result(pair, comparison["equivalence_margin"]),
        }
        for pair in comparison["paired"]
    ]


def answer_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return an example answer of each kind of question, and whether it is right."""
    verdicts = {True: "right", False: "wrong", None: "not checkable"}
    return [
        {
            "kind": each["kind"],
            "question": each["question"],
            "reference": each["answer"],
            "answer": each["text"] + (" … (cut)" if each["cut"] else ""),
            "verdict": verdicts[each["correct"]],
        }
        for each in example_answers(comparison)
    ]


def findings(comparison: Comparison) -> list[str]:
    """Say all that a comparison found, the split first."""
    return [
        identity_sentence(comparison),
        *reference_sentences(comparison),
        *variant_sentences(comparison),
        *accuracy_sentences(comparison),
        *paired_sentences(comparison),
    ]


def identity_sentence(comparison: Comparison) -> str:
    """Say whether the split model is the whole model."""
    cases = measured_cases(comparison)
    different = [case for case in cases if not is_identical(case)]
    dtypes = " and ".join(dict.fromkeys(case["dtype"] for case in cases))
    compared = f"{dtypes}, {tokens_compared(comparison):,} tokens compared"
    subject, whole = f"The split {comparison['model']}", "the whole model"
    if comparison["candidate"]:
        subject, whole = f"The split candidate {comparison['candidate']}", f"the whole {comparison['model']}"
    same = f"{subject} gave the same tokens as {whole} in {_all_of(len(cases), 'case')} ({compared})"
    if not different:
        return f"{same}; its logits are equal bit for bit."
    worst = min(different, key=lambda case: (case["token_identity"], -case["logits_max_abs"]))
    extent = f"logits differ by up to {difference(comparison['logits_max_abs'])}"
    if worst["token_identity"] == 1.0:
        return f"{same}, but not bit for bit: {extent} in {len(different)} of {len(cases)} cases."
    return (
        f"{subject} is not {whole}: {len(different)} of {len(cases)} cases differ; "
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


def variant_sentences(comparison: Comparison) -> list[str]:
    """Say, one sentence a change, what other threads or another batch do to the answers of one rank."""
    return [_variant_sentence(variant) for variant in comparison["variants"]]


def _variant_sentence(variant: Mapping[str, Any]) -> str:
    change = f"In {variant['dtype']}, {variant['what']} {variant['other']} instead of {variant['base']}"
    if is_identical(variant):
        return f"{change} changed nothing: tokens and logits are equal bit for bit."
    extent = f"logits differ by up to {difference(variant['logits_max_abs'])}"
    if not (parted := variant["divergences"]):
        return f"{change} changed no token; {extent}."
    widest = max(each["margin"] for each in parted)
    return (
        f"{change} changed {len(parted)} of {variant['questions']} answers, "
        f"where the model's own margin is up to about {magnitude(widest)}; {extent}."
    )


def accuracy_sentences(comparison: Comparison) -> list[str]:
    """Say, one sentence a dtype, how many questions the whole model answers rightly."""
    first_of_dtype: dict[str, Mapping[str, Any]] = {}
    for each in comparison["accuracy"]:
        first_of_dtype.setdefault(each["dtype"], each)
    return [
        f"In {dtype} the whole {comparison['model']} answered {each['correct']} of {each['questions']} checkable "
        f"questions rightly ({percent(each['correct'] / each['questions'])}, 95\N{NO-BREAK SPACE}% interval "
        f"{percent(each['low'])} to {percent(each['high'])}); "
        f"{each['cut']} of its answers were cut after {comparison['max_new_tokens']} tokens."
        for dtype, each in first_of_dtype.items()
    ]


def paired_sentences(comparison: Comparison) -> list[str]:
    """Say whether the ways of running are equally often right; identical answers need no test."""
    margin = comparison["equivalence_margin"]
    same = [pair for pair in comparison["paired"] if pair["identical"]]
    splits = [pair for pair in same if pair["other"].startswith("split")]
    named = [f"{pair['other']} in {pair['dtype']}" for pair in same if pair not in splits]
    if splits:
        named.insert(0, f"{len(splits)} run{'s' * (len(splits) > 1)} of the split model")
    return [
        *([f"Identical to the whole model's answers, no test needed: {', '.join(named)}."] if same else []),
        *(
            f"In {pair['dtype']}, {pair['other']} against {pair['baseline']}: {_pair_result(pair, margin)}."
            for pair in comparison["paired"]
            if not pair["identical"]
        ),
    ]


def _pair_result(pair: Mapping[str, Any], margin: float) -> str:
    if pair["identical"]:
        return "identical, no test needed"
    tests = pair["tests"]
    equivalent = "equivalent" if tests["equivalent"] else "not shown to be equivalent"
    least = tests["minimum_detectable"]
    found = (
        "no difference could be found"
        if least is None
        else f"a difference of {points(least)} points would be found with power 80\N{NO-BREAK SPACE}%"
    )
    return (
        f"right answers differ by {points(tests['difference'])} points "
        f"(95\N{NO-BREAK SPACE}% interval {points(tests['low'])} to {points(tests['high'])}), "
        f"McNemar p = {tests['mcnemar_p']:.2g}, {equivalent} within {points(margin)} points; "
        f"with {pair['questions']} questions {found}"
    )


def points(share: float) -> str:
    """Write a difference of shares in percentage points."""
    return f"{share * 100:.1f}".replace("-", "−")


def _nats(kl: float) -> str:
    return "0 exactly" if kl == 0.0 else f"{kl:.1e}"


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


def accuracies(comparison: Comparison) -> Figure:
    """Draw the share of right answers with its 95 % Wilson interval; ways with identical answers are drawn once."""
    identical = {(pair["dtype"], pair["other"]) for pair in comparison["paired"] if pair["identical"]}
    ways = [each for each in comparison["accuracy"] if (each["dtype"], each["system"]) not in identical]
    with rows([f"{each['dtype']}, {each['system']}" for each in ways]) as (figure, axes):
        shares = [100 * each["correct"] / each["questions"] for each in ways]
        lows = [share - 100 * each["low"] for share, each in zip(shares, ways, strict=True)]
        highs = [100 * each["high"] - share for share, each in zip(shares, ways, strict=True)]
        axes.errorbar(
            shares,
            range(len(ways)),
            xerr=[lows, highs],
            fmt="o",
            color=DARK,
            capsize=3,
            label="share, with 95 % interval",
        )
        axes.set_xlim(-2, 102)
        axes.set_xlabel("questions answered rightly (%)")
    return figure
