"""Commands about models: their files (model-path, model fetch, split, random-model), their layers, and plans."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.bench import show
from qubic_lab.cli.console import (
    Commands,
    note_meaningless,
    print_json,
    print_table,
    progress_bar,
    split_list,
    split_numbers,
)
from qubic_lab.errors import InputError, QubicLabError

if TYPE_CHECKING:
    from qubic_lab.model.download import ModelSource
    from qubic_lab.model.recommend import Advice, Baseline


def _new_folder(out: Path) -> Path:
    """Refuse an empty name and `.`, which mean the current folder."""
    if out == Path():
        raise InputError(f"--out is {str(out)!r}, the current folder: give a new one")
    return out


Out = Annotated[Path, Option(help="A new folder.", show_default=False, callback=_new_folder)]


def analyse(
    model: Annotated[str, Option(help="As of generate; with --no-time deepseek, smollm2 or a folder.")] = "smollm2",
    dtype: options.Dtype = "bf16",
    context: Annotated[int, Option(help="Tokens in the KV cache.")] = 256,
    repeat: Annotated[int, Option(help="Decode steps that are timed.")] = 20,
    threads: Annotated[int, Option(help="Compute threads; to wake several takes time in each layer.")] = 1,
    time: Annotated[bool, Option(help="Measure the time of each layer; else no weights are read.")] = True,
    json: options.Json = False,
) -> None:
    """Show parameters, bytes, FLOPs and time of each layer.

    FLOPs and times are those of one token of a single sequence.
    """
    from qubic_lab.bench.layers import analyse_layers

    with progress_bar() as progress:
        result = analyse_layers(model, dtype, context, repeat, threads, time, progress)
    note_meaningless(result.meaningless)
    show(result, json)


def model_path(model: Annotated[str, Argument(metavar="MODEL", help="Alias, hub id, folder or .gguf file.")]) -> None:
    """Print a model's local folder; fetch or convert it if needed."""
    from qubic_lab.model.resolve import resolve_model

    typer.echo(resolve_model(model))


def fetch(
    source: Annotated[
        str, Argument(metavar="URL|NAME", help="Of a folder with a manifest.json; NAME: of QUBIC_LAB_COORDINATOR.")
    ],
    out: Annotated[Path, Argument(metavar="OUT", help="The folder to make, or with --file the file.")],
    rank: Annotated[str | None, Option(help="Only these ranks of a split, such as 0,2.", show_default="all")] = None,
    sha256: Annotated[str, Option(help="What the manifest.json, or the file, must have.", show_default="any")] = "",
    file: Annotated[bool, Option("--file", help="Fetch one file, which needs --sha256.")] = False,
    json: options.Json = False,
) -> None:
    """Fetch a model or parts of a split over HTTP.

    A command that was cut continues where it was. Each file is checked by its SHA-256, and OUT is there only when all
    of it is. Coordinators serve the folder QUBIC_LAB_MODELS to who has a token (QUBIC_LAB_API_TOKEN).
    """
    from qubic_lab.model.download import fetch_model

    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InputError(f"--sha256 is {sha256!r}: give 64 hexadecimal digits in lower case")
    if file and not sha256:
        raise InputError("--file needs --sha256: nothing else says what the file should be")
    ranks = () if rank is None else split_numbers("--rank", rank)
    with progress_bar() as progress, _source(source) as chosen:
        if file:
            chosen.fetch_file("", out, sha256, progress=progress)
            made = [out]
        else:
            made = fetch_model(chosen, out, ranks, sha256, progress)
    if json:
        print_json({"paths": [str(path) for path in made]})
        return
    for path in made:
        typer.echo(path)


def _source(source: str) -> "ModelSource":
    """Return the server of a URL, or of a name at the coordinator of the settings, which alone gets our token."""
    from qubic_lab.api.client import CoordinatorClient
    from qubic_lab.model.download import ModelSource
    from qubic_lab.settings import settings

    own = f"{settings().coordinators[0]}/models/"
    url = source if "://" in source else own + source
    if not url.startswith(own):
        return ModelSource(url)
    CoordinatorClient().close()  # checks that the token does not travel in clear text
    return ModelSource(url, settings().api_token or "", settings().tls_authority)


def split(
    out: Out,
    model: options.Model = "smollm2",
    ranks: Annotated[int, Option(help="Number of parts.")] = 2,
    strategy: Annotated[str, Option(help=options.STRATEGIES)] = "C",
    cut: options.Cut = None,
    json: options.Json = False,
) -> None:
    """Write one folder per rank with its part of the model.

    Each folder has its own weights, config, tokenizer and a manifest of hashes.
    """
    from qubic_lab.model.config import load_config
    from qubic_lab.model.folders import check_new
    from qubic_lab.model.layout import stage_ranges
    from qubic_lab.model.plan import check_strategy, plan_layers
    from qubic_lab.model.resolve import resolve_whole
    from qubic_lab.model.split import split_checkpoint

    check_new(out)  # before the model is fetched or converted, which takes time
    check_strategy(ranks, strategy, cut)
    source = resolve_whole(model)
    layers = plan_layers(load_config(source), ranks, strategy, cut)
    with progress_bar() as progress:
        split_checkpoint(source, out, layers, strategy, lambda share: progress("splitting", round(100 * share), 100))
    if json:
        print_json({"folder": str(out), "strategy": strategy, "layers": list(layers)})
        return
    typer.echo(f"{out}: " + "; ".join(f"rank {rank}: {stage}" for rank, stage in enumerate(stage_ranges(layers))))


def random_model(
    out: Out,
    config: Annotated[str, Option(help="deepseek, smollm2, a config.json or a folder with one.")] = "deepseek",
    layers: Annotated[int | None, Option(help="Number of layers.", show_default="as in the config")] = None,
    seed: options.Seed = 0,
) -> None:
    """Write a model with random weights, to measure speed.

    Its shapes are those of the config; its answers are meaningless.
    """
    from qubic_lab.model.random_model import write_random_model

    with progress_bar() as progress:
        write_random_model(config, out, layers, seed, lambda share: progress("writing", round(100 * share), 100))
    typer.echo(f"{out}: random weights, its answers are meaningless")


def plan(
    model: Annotated[str, Option(help="deepseek, smollm2, or a folder with a config.json.")] = "deepseek",
    devices: Annotated[
        str,
        Option(
            help="One per rank: t4, p4, p100, v100, l4, a10, a100-40, a100-80, h100, or measured figures such as "
            "name=16GB@259GB/s@65TFLOPS."
        ),
    ] = "t4,t4,t4",
    link: Annotated[str, Option(help="Bandwidth and one-way latency between ranks.")] = "10Gbps:0.1ms",
    goal: Annotated[
        str,
        Option(
            help="throughput: tokens/s of all requests; latency: ms per token of a single request; memory: the "
            "largest rank."
        ),
    ] = "throughput",
    context: Annotated[int, Option(help="Tokens in the KV cache of each request.")] = 1024,
    batch: Annotated[int, Option(help="Requests per lane; a pipeline has as many lanes as ranks.")] = 1,
    dtype: Annotated[str, Option(help="fp16, fp32, or bf16 if the devices support it.")] = "fp16",
    answer_tokens: Annotated[int, Option(help="New tokens of a request, for requests per second.")] = 512,
    quantization: options.Quantization = None,
    accepted: Annotated[float, Option(help="Chance that a drafted token is right; 0: none is drafted.")] = 0.0,
    json: options.Json = False,
) -> None:
    """Predict the speed of splits and replicas, and recommend one.

    The prediction uses only the model's shape; nothing is run and no weights are read. In the JSON, latency_ms is the
    time between two tokens of a single request, loaded_latency_ms the same while all requests run.
    """
    advice = advise(model, devices, link, goal, context, batch, dtype, answer_tokens, quantization or "", accepted)
    accelerate, remark = _accelerate(advice)
    if json:
        baseline = vars(accelerate) if accelerate else None
        print_json({"model": model} | advice.to_dict() | {"accelerate": baseline, "accelerate_note": remark})
        return
    _show(model, advice, accelerate, remark)


def advise(
    model: str,
    devices: str,
    link: str,
    goal: str,
    context: int,
    batch: int,
    dtype: str,
    answer_tokens: int,
    quantization: str = "",
    accepted: float = 0.0,
) -> "Advice":
    """Return the prediction that the options of `plan` ask for.

    Raises:
        InputError: an option is wrong.
    """
    from qubic_lab.model.config import resolve_shape
    from qubic_lab.model.device import parse_devices, parse_link
    from qubic_lab.model.recommend import plan as make_plan

    places = parse_devices(split_list("--devices", devices))
    shape, hop = resolve_shape(model), parse_link(link)
    return make_plan(shape, places, hop, goal, context, batch, dtype, answer_tokens, quantization, accepted)


def _accelerate(advice: "Advice") -> "tuple[Baseline | None, str]":
    """Return the split that accelerate chooses, or None, and a remark about it."""
    from qubic_lab.model.device_map import accelerate_baseline

    if advice.setup.packed:
        return None, "accelerate has no such weights"
    try:
        baseline = accelerate_baseline(advice.setup)
    except QubicLabError as error:
        return None, str(error)
    return baseline, "accelerate runs the devices one after the other, and only if all of them are in one host"


def _show(model: str, advice: "Advice", accelerate: "Baseline | None", remark: str) -> None:
    setup = advice.setup
    weights = f" with weights in {setup.quantization}" if setup.quantization else ""
    typer.echo(
        f"{model} in {setup.dtype}{weights} on {', '.join(device.name for device in setup.devices)}; "
        f"goal: {advice.goal}; "
        f"{setup.batch} request{'s' if setup.batch > 1 else ''} per lane of {setup.context:,} tokens each\n"
    )
    _show_plans(advice)
    for refused in advice.refused:
        typer.echo(f"{refused.strategy} refused: {refused.reason}")
    typer.echo(f"\nRecommended: {advice.recommendation or 'none'}. {advice.reason}")
    _show_lines("When the recommendation changes", advice.changes)
    typer.echo("\nFor comparison")
    _show_baselines([*advice.baselines, *([accelerate] if accelerate else [])])
    typer.echo(remark)
    _show_lines("Assumptions", advice.assumptions)
    _show_lines("Sources of the figures", [f"{name}: {text}" for name, text in advice.sources.items()])


def _show_plans(advice: "Advice") -> None:
    if not advice.plans:
        return
    speeds = ("requests", "tokens/s", "ms alone", "ms loaded")
    rows = [
        (
            *(plan.strategy, _each(plan.layers), f"{plan.requests}", f"{plan.tokens_per_s:.1f}"),
            *(
                f"{plan.latency_ms:.1f}" + f" ({plan.drafted} drafted)" * bool(plan.drafted),
                f"{plan.loaded_latency_ms:.1f}",
                _gigabytes(plan.memory_bytes),
            ),
            " / ".join(f"{100 * share:.0f}" for share in plan.idle_share),
            f"{plan.most_tokens_per_s / advice.answer_tokens:.3g}",
        )
        for plan in advice.plans
    ]
    print_table(("strategy", "layers", *speeds, "memory GB", "idle %", "requests/s"), rows)
    typer.echo(
        f"ms: between two tokens of a request; requests/s: of {advice.answer_tokens} tokens each, with as many "
        "concurrent requests as fit"
    )


def _show_baselines(baselines: "list[Baseline]") -> None:
    if not baselines:
        return
    rows = [
        (
            *(baseline.name, _each(baseline.layers), f"{baseline.requests}", f"{baseline.tokens_per_s:.1f}"),
            *(f"{baseline.latency_ms:.1f}", _gigabytes(baseline.memory_bytes)),
        )
        for baseline in baselines
    ]
    print_table(("", "layers", "requests", "tokens/s", "ms alone", "memory GB"), rows)


def _show_lines(title: str, lines: "list[str] | tuple[str, ...]") -> None:
    typer.echo(f"\n{title}")
    for line in lines:
        typer.echo(f"- {line}")


def _each(counts: tuple[int, ...]) -> str:
    return " / ".join(map(str, counts))


def _gigabytes(counts: tuple[int, ...]) -> str:
    return " / ".join(f"{count / 1e9:.1f}" for count in counts)


COMMANDS: Commands = {
    "analyse": (analyse, "--model smollm2 --context 1024"),
    "fetch": (fetch, "https://10.0.0.10:5000/models/parts parts --rank 1"),
}
