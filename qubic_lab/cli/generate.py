"""`qubic-lab generate`: answers to one prompt or to a file of prompts."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import add_commands, note_meaningless, print_json, progress_bar, split_numbers
from qubic_lab.core import Completion, Request, SamplingParams
from qubic_lab.errors import InputError, check_range

if TYPE_CHECKING:
    from qubic_lab.pipeline import PipelineConfig
    from qubic_lab.pipeline.config import ResolvedConfig

MOST_SLOTS = 8
MOST_SAMPLES = 32


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_commands(app, {"generate": (generate, '--ranks 2 --prompt "Why is the sky blue?"')})


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
        int | None, Option(help="Vote on up to so many samples, until the winner is certified.", show_default=False)
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Answer prompts with a model split over local ranks."""
    from qubic_lab.pipeline import Pipeline, PipelineConfig

    sampling = SamplingParams(max_new_tokens, temperature, top_p, top_k, seed, ignore_eos, tuple(stop or ()))
    requests = [Request(prompt=text, raw=raw, sampling=sampling) for text in _prompts(prompt, prompts_file)]
    division = split_numbers("--layers", layers) if layers is not None else None
    slots = slots_for(len(requests), len(division) if division else ranks or 1, dtype)
    if vote is not None:
        if len(requests) > 1:
            raise InputError(f"--vote takes one prompt, not {len(requests)}: give --prompt")
        slots = check_range("--vote", vote, 1, MOST_SAMPLES)
    config = PipelineConfig(model, ranks, strategy, cut, dtype, threads=threads, slots=slots, layers=division)
    if vote is not None:
        _vote(config, requests[0], vote, json)
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


def _settings(used: "ResolvedConfig") -> dict[str, Any]:
    from qubic_lab.provenance import source_commit

    names = ("model", "meaningless", "device", "dtype", "ranks", "strategy", "layers", "threads")
    return {**{name: getattr(used, name) for name in names}, "commit": str(source_commit())}


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
