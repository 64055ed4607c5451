"""`qubic-lab generate` and `ask`: answers to prompts by a model that is started, or by a running cluster."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, note_meaningless, print_json, print_pieces, progress_bar, split_numbers
from qubic_lab.core import Completion, Request, SamplingParams, attributes
from qubic_lab.errors import InputError, check_choice, check_range

if TYPE_CHECKING:
    from qubic_lab.pipeline import PipelineConfig
    from qubic_lab.pipeline.config import ResolvedConfig

MOST_SLOTS = 8
MOST_TRACED = 4_096
"""Tokens of an answer whose time is traced by rank; a longer one would leave large files."""
MOST_SAMPLES = 32
MODES = ("auto", "consensus", "single")
ABOUT = ("market_overview", "sentiment", "price_analysis", "risk", "prices", "texts", "alerts", "status")


def generate(
    prompt: Annotated[str | None, Option(help="The question.")] = None,
    prompts_file: Annotated[Path | None, Option(help="A text file with one prompt per line.")] = None,
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    strategy: options.Strategy = None,
    cut: options.Cut = None,
    layers: options.Layers = None,
    dtype: options.Dtype = "bf16",
    raw: Annotated[bool, Option("--raw", help="Send prompts without the chat template.")] = False,
    max_new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, Option(help="Keep the likeliest tokens up to this share; 1 keeps all.")] = 1.0,
    top_k: Annotated[int, Option(help="Keep this many of the likeliest tokens; 0 keeps all.")] = 0,
    seed: options.Seed = 0,
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Continue after the model's end token.")] = False,
    stop: Annotated[list[str] | None, Option(help="End an answer before this text; may be repeated.")] = None,
    vote: Annotated[
        int | None, Option(help="Most samples of a vote, which ends when the winner is certified.", show_default=False)
    ] = None,
    threads: options.Threads = None,
    compression: options.Compression = None,
    speculation: options.Speculation = None,
    quantization: options.Quantization = None,
    json: options.Json = False,
) -> None:
    """Answer prompts with a model split over local ranks.

    The answer to one prompt is printed as it comes, and then, on stderr, its speed and where the time went.
    """
    from qubic_lab.pipeline import Pipeline, PipelineConfig

    sampling = SamplingParams(max_new_tokens, temperature, top_p, top_k, seed, ignore_eos, tuple(stop or ()))
    requests = [Request(prompt=text, raw=raw, sampling=sampling) for text in _prompts(prompt, prompts_file)]
    division = split_numbers("--layers", layers) if layers is not None else None
    slots = slots_for(len(requests), len(division) if division else ranks or 1, dtype)
    if vote is not None:
        if len(requests) > 1:
            raise InputError(f"--vote takes one prompt, not {len(requests)}: give --prompt")
        slots = check_range("--vote", vote, 1, MOST_SAMPLES)
    config = PipelineConfig(
        *(model, ranks, strategy, cut, dtype),
        threads=threads,
        slots=slots,
        layers=division,
        compression=compression,
        speculation=speculation,
        quantization=quantization,
    )
    if vote is not None:
        _vote(config, requests[0], vote, json)
        return
    if len(requests) == 1 and not json:
        _stream(config, requests[0])
        return
    with progress_bar() as progress, Pipeline.launch(config) as pipeline:
        completions = []
        for answer in pipeline.answer_all(requests):
            completions.append(answer.completion)
            progress("answering", len(completions), len(requests))
        used = pipeline.config
    note_meaningless(used.meaningless)
    if not json:
        _print_texts(completions)
        return
    print_json({"completions": [asdict(completion) for completion in completions], **_settings(used)})


def ask(
    prompt: Annotated[str | None, Argument(help="The question.")] = None,
    mode: Annotated[str, Option(help="auto, consensus or single; auto: a vote unless the cluster is busy.")] = "auto",
    nodes: Annotated[int, Option(help="Nodes that vote.")] = 3,
    samples: Annotated[int, Option(help="Answers of each node.")] = 1,
    max_new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 128,
    oracle: Annotated[str | None, Option(help="Ask the oracle instead, such as market_overview.")] = None,
    coin: Annotated[str | None, Option(help="The oracle's coin, such as BTC.")] = None,
    url: Annotated[str | None, Option(help="The coordinator.", show_default="QUBIC_LAB_COORDINATOR")] = None,
    json: options.Json = False,
) -> None:
    """Ask a cluster, by one node or a vote, or its market oracle.

    Prints the answer, who is for it, and how sure that is. What the oracle says is JSON.
    """
    from qubic_lab.api.client import CoordinatorClient

    if (prompt is None) == (oracle is None):
        raise InputError("give either a question or --oracle")
    check_choice("--mode", mode, MODES)
    with CoordinatorClient(url) as client:
        if prompt is None:
            about = {} if coin is None else {"coins" if oracle == "market_overview" else "coin": coin}
            print_json(client.oracle(check_choice("--oracle", str(oracle), ABOUT), **about))
            return
        answer = client.vote(prompt, mode=mode, nodes=nodes, samples=samples, max_new_tokens=max_new_tokens)
    if json:
        print_json(answer.model_dump())
        return
    confidence = "no confidence" if answer.confidence is None else f"confidence {answer.confidence:.0%}"
    typer.echo(answer.text)
    typer.echo(f"{answer.mode} ({answer.mode_reason}); {answer.level}; {confidence} ({answer.confidence_note})")
    for each in (answer.trail or {}).get("nodes", ()):
        own = "unknown" if each["confidence"] is None else f"{each['confidence']:.0%}"
        typer.echo(f"{each['node']}: {each['for_leader']} of {each['answers']} for it, own confidence {own}")
    if answer.page:
        typer.echo(f"{client.url}{answer.page}")


def _stream(config: "PipelineConfig", request: Request) -> None:
    """Print the answer to one prompt as it comes, and then its speed and where the time went."""
    from qubic_lab.pipeline import Pipeline
    from qubic_lab.pipeline.config import resolve_config
    from qubic_lab.trace import read_work_ms

    model = str(resolve_config(config).folder)  # before anything is written
    with TemporaryDirectory(prefix="qubic-lab-") as folder:
        traced = request.sampling.max_new_tokens <= MOST_TRACED
        started_s = perf_counter()
        with progress_bar():
            launched = Pipeline.launch(replace(config, model=model, trace=Path(folder) if traced else None))
        with launched as pipeline:
            load_s = perf_counter() - started_s
            note_meaningless(pipeline.config.meaningless)
            stream = pipeline.stream(request)
            print_pieces(token.text for token in stream)
        work_ms: tuple[float, ...] = ()
        with suppress(InputError):  # a full disk ends a trace, and no answer
            work_ms = read_work_ms(Path(folder)) if traced else ()
        note(speed_text(stream.completion, load_s, work_ms))


def speed_text(done: Completion, load_s: float, work_ms: Sequence[float]) -> str:
    """Return the speed of an answer in one line: where its time went, and the ranks' shares of work, if known."""
    count = len(done.token_ids)
    decode_s = (count - 1) / done.tokens_per_s if done.tokens_per_s and count > 1 else 0.0
    prefill_s = (done.ttft_ms - done.queue_ms) / 1e3
    steps = {"load": load_s, "queue": done.queue_ms / 1e3, "prefill": prefill_s, "decode": decode_s}
    spent = ", ".join(f"{name} {_short_time(seconds)}" for name, seconds in steps.items())
    drafted = f" ({done.drafted_tokens} of them drafted)" if done.drafted_tokens else ""
    text = f"{count} tokens{drafted}, {done.tokens_per_s:.1f} tokens/s, the first after {done.ttft_ms:.0f} ms; {spent}"
    shares = [each_ms / 1e3 / (prefill_s + decode_s) for each_ms in work_ms]
    ranks = ", ".join(f"rank {rank} {share:.0%}" for rank, share in enumerate(shares))
    return f"{text}; at work: {ranks}" if ranks else text


def _short_time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def _settings(used: "ResolvedConfig") -> dict[str, Any]:
    from qubic_lab.provenance import source_commit

    names = (
        "model",
        "meaningless",
        "device",
        "dtype",
        "ranks",
        "strategy",
        "layers",
        "threads",
        "speculation",
        "quantization",
    )
    return {**attributes(used, *names), "commit": str(source_commit())}


def _vote(config: "PipelineConfig", request: Request, most: int, json: bool) -> None:
    """Vote on samples of one prompt, and print the answer, whether it is certified, and the cost."""
    from qubic_lab.pipeline import Pipeline
    from qubic_lab.votes.samples import vote_on_samples

    with Pipeline.launch(config) as pipeline:
        vote, used = vote_on_samples(pipeline, request, most), pipeline.config
    note_meaningless(used.meaningless)
    samples = len(vote.result.voters)
    if json:
        found = {"text": vote.result.text, "certificate": str(vote.certificate), "samples": samples}
        cost = {"tokens": vote.tokens, "tokens_saved": vote.tokens_saved}
        print_json({**found, **cost, **_settings(used)})
        return
    typer.echo(vote.result.text)
    typer.echo(f"{vote.certificate}; {samples} of {most} samples, {vote.tokens} tokens, {vote.tokens_saved} saved")


def slots_for(prompts: int, ranks: int, dtype: str) -> int:
    """Return the number of slots of a lane for a number of prompts.

    In 16 bit every number of slots gives the same bits, so it follows the load. In fp32 the matrix kernel depends on
    the number of rows, and a prompt must get the same answer alone and in a file.
    """
    return 1 if dtype == "fp32" else min(MOST_SLOTS, math.ceil(prompts / ranks))


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if (prompt is None) == (file is None):
        raise InputError("give either --prompt TEXT or --prompts-file FILE")
    if prompt is not None:
        return [prompt]
    assert file is not None
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"prompts file {file} cannot be read ({reason}): give one prompt per line") from error
    if not lines:
        raise InputError(f"prompts file {file} is empty: give one prompt per line")
    return lines


def _print_texts(completions: list[Completion]) -> None:
    for completion in completions:
        if len(completions) > 1:
            typer.echo(f"> {completion.prompt}")
        typer.echo(completion.text)
        if len(completions) > 1:
            typer.echo()
