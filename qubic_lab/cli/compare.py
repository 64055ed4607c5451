"""`qubic-lab compare`: whether the split model gives the same answers as the whole model."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note_meaningless, print_json, progress_bar, split_list, split_numbers

if TYPE_CHECKING:
    from qubic_lab.evals.comparison import PairedAccuracy, RunLikeness, SplitComparison


def compare(
    model: options.Model = "smollm2",
    ranks: Annotated[str, Option(help="Numbers of ranks, such as 2 or 2,3.")] = "2",
    strategy: Annotated[str | None, Option(help="Strategies.", show_default="A,B,C; A for two ranks only")] = None,
    batch: Annotated[str, Option(help="Requests that decode together in a lane.")] = "1,4",
    dtype: Annotated[str, Option(help="fp32, bf16, fp16.")] = "fp32,bf16",
    candidate: Annotated[str, Option(help="What the ranks run instead: another model, or a split folder.")] = "",
    quantization: options.Quantization = None,
    questions: Annotated[
        Path | None, Option(help="A file of questions: JSON, JSON lines, CSV.", show_default="ours")
    ] = None,
    columns: Annotated[str, Option("--map", help="Its columns, as in question=Q,answer=A.", show_default="found")] = "",
    limit: Annotated[int | None, Option(help="Use only the first questions.", show_default="all")] = None,
    seed: Annotated[int, Option(help="Seed of generated questions and of the order of options.")] = 0,
    max_new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 32,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Compare N ranks with one rank and with transformers.

    Answers are compared token by token and bit by bit. The first line says SAME or DIFFERENT, with the numbers behind
    it; if something differs, the exit status is 1.
    """
    from qubic_lab.evals.compare import compare as run_comparison
    from qubic_lab.evals.comparison_plan import ComparisonConfig

    config = ComparisonConfig(
        model=model,
        ranks=split_numbers("--ranks", ranks),
        strategies=split_list("--strategy", strategy) if strategy is not None else None,
        batches=split_numbers("--batch", batch),
        dtypes=split_list("--dtype", dtype),
        questions=questions,
        columns=columns,
        limit=limit,
        max_new_tokens=max_new_tokens,
        threads=threads,
        candidate=candidate,
        seed=seed,
        quantization=quantization,
    )
    with progress_bar() as progress:
        comparison = run_comparison(config, progress)
    note_meaningless(comparison.meaningless)
    if json:
        print_json({"verdict": comparison.verdict, "same_model": comparison.same_model, **asdict(comparison)})
    else:
        for line in (_conclusion(comparison), *_lines(comparison)):
            typer.echo(line)
    if comparison.verdict != "SAME":
        raise typer.Exit(1)


def _lines(comparison: "SplitComparison") -> Iterator[str]:
    from qubic_lab.evals.scoring import cut_text

    for case in comparison.cases:
        same = f" (same layers as {case.measured_as})" if case.measured_as else ""
        yield (
            f"{case.ranks} ranks, strategy {case.strategy}{same}, layers {'/'.join(map(str, case.layers))}, "
            f"{case.dtype}, batch {case.batch}: {_likeness(case)}"
        )
    for reference in comparison.reference:
        yield f"against {reference.library}, {reference.dtype}: {_likeness(reference)}"
        for d in reference.differences:
            yield f"  {d.id}, token {d.position}: ours {d.ours!r}, theirs {d.theirs!r}, margin {d.margin:.2g}"
    for variant in comparison.variants:
        yield f"1 rank, {variant.dtype}, {variant.what} {variant.other} against {variant.base}: {_likeness(variant)}"
    yield f"Questions: {comparison.judged}."
    for each in comparison.accuracy:
        yield (
            f"{each.system}, {each.dtype}: {each.correct} of {each.questions} checkable questions right "
            f"(95% interval {each.low:.1%} to {each.high:.1%}); "
            f"{cut_text(each.cut_share, comparison.max_new_tokens, '--max-new-tokens')}"
        )
    for pair in comparison.paired:
        yield f"{pair.other} against {pair.baseline}, {pair.dtype}: {_verdict(pair, comparison.equivalence_margin)}"
    ran = f"candidate {comparison.candidate} against {comparison.model}" if comparison.candidate else comparison.model
    yield (
        f"{ran}, questions: {comparison.questions}, {comparison.device}, "
        f"threads a rank: {comparison.threads}, commit {comparison.commit}"
    )


def _conclusion(comparison: "SplitComparison") -> str:
    """Say in one line whether all is the same, with the numbers behind it."""
    measured = [case for case in comparison.cases if case.measured_as is None]
    tokens = (
        f"{sum(case.tokens for case in measured):,} tokens in {len(measured)} comparison{'s' * (len(measured) > 1)}"
    )
    if comparison.verdict == "SAME":
        return f"SAME: {tokens}, all equal, and their logits equal bit for bit"
    worst = min(measured, key=lambda case: (case.token_identity, -case.logits_max_abs))
    where = f"{worst.ranks} ranks, strategy {worst.strategy}, {worst.dtype}, batch {worst.batch}"
    found = f"DIFFERENT: {tokens}; at worst ({where}) {_likeness(worst)}"
    if comparison.same_model:
        return found
    hashes = f"{comparison.candidate_hash[:12]} and {comparison.model_hash[:12]}"
    return f"{found}; {comparison.candidate} has other weights than {comparison.model} (hashes {hashes})"


def _likeness(found: "RunLikeness") -> str:
    first = min((divergence.position for divergence in found.divergences), default=None)
    diverged = "" if first is None else f", {len(found.divergences)} answers diverge, the first at token {first}"
    return (
        f"{found.token_identity:.2%} of {found.tokens} tokens equal{diverged}, "
        f"logits differ by at most {found.logits_max_abs:.3g}, KL at most {found.kl_max:.3g} nats"
    )


def _verdict(pair: "PairedAccuracy", margin: float) -> str:
    if pair.tests is None:
        return "identical, no test needed"
    tests = pair.tests
    equivalent = "equivalent" if tests.equivalent else "not shown to be equivalent"
    return (
        f"difference {tests.difference:+.1%} (95% interval {tests.low:+.1%} to {tests.high:+.1%}), "
        f"McNemar p = {tests.mcnemar_p:.2g}, {equivalent} within {margin:.0%}"
    )
