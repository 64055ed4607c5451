"""`qubic-lab bench …`: measurements of pipelines, clusters, votes and the oracle on this machine."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from qubic_lab.cli import console, options
from qubic_lab.core import Progress
from qubic_lab.errors import InputError, check_at_least, check_choice

if TYPE_CHECKING:
    from qubic_lab.bench.result import BenchResult, Table

EchoNodes = Annotated[int, Option(help="Echo nodes: real nodes whose engine only waits.")]
PromptTokens = Annotated[int, Option(help="Tokens of each prompt.")]
NewTokens = Annotated[int, Option(help="Tokens of each answer.")]
Repeat = Annotated[int, Option(help="Number of measurements.")]
RankCount = Annotated[int, Option(help="Ranks to split the layers over.")]
RankCounts = Annotated[str, Option(help="Numbers of ranks, such as 1,2.")]
Batches = Annotated[str, Option(help="Requests that decode together in a lane.")]

Record = Annotated[bool, Option("--record", help="Also keep the JSON in reports/benchmarks, for bench compare.")]

Bench = Callable[..., "BenchResult"]
BENCHES: dict[str, tuple[Callable[..., None], str]] = {}


def bench(example: str, *modules: str) -> Callable[[Bench], Bench]:
    """Make a function a command of this group; it gets a progress callback and options, and returns a result.

    The command adds `--json`, `--record`, a progress bar, and the output of the result. It needs the `modules` of the
    `lab` extra, by their import names; `example` are the options of the example in the help text.
    """

    def register_bench(function: Bench) -> Bench:
        def command(json: bool, record: bool, **given: Any) -> None:
            console.require(*modules)
            with console.progress_bar() as progress:
                result = function(progress, **given)
            console.note_meaningless(getattr(result, "meaningless", False))
            show(result, json)
            if record:
                keep_result(result, function.__name__)

        _, *parameters = inspect.signature(function).parameters.values()
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for name, kind in (("json", options.Json), ("record", Record))
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        BENCHES[function.__name__] = (command, example)
        return function

    return register_bench


def keep_result(result: "BenchResult", name: str) -> None:
    """Write the JSON of a result beside others of the machine and the commit, and say where."""
    import json

    from qubic_lab.bench.comparison import kept_place
    from qubic_lab.settings import settings

    place = kept_place(
        settings().reports / "benchmarks", name, getattr(result, "machine", "any machine"), result.commit
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(result.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
    console.note(f"kept as {place}")


def show(result: "BenchResult", json: bool) -> None:
    """Print a result as one JSON object, or its tables, sentences and single values."""
    if json:
        console.print_json(result.to_dict())
    else:
        print_parts((*result.report(), result.single_values()))


def print_parts(parts: "Iterable[Table | str]") -> None:
    """Print tables and sentences."""
    from qubic_lab.bench.result import Table

    for part in parts:
        if isinstance(part, Table):
            console.print_table(part.header, part.rows)
            typer.echo("")
        else:
            typer.echo(part)


@bench("--requests 50 --nodes 3")
def balance(
    progress: Progress,
    requests: Annotated[int, Option(help="Requests while no node fails.")] = 50,
    nodes: Annotated[int, Option(help="Simulated nodes, of weights 3, 2, 1, 3, 2, 1 and so on.")] = 3,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Show how balancers share requests and avoid failed nodes.

    Nodes and time are simulated.
    """
    from qubic_lab.bench.balance import bench_balance

    return bench_balance(requests, nodes, seed)


@bench("--model smollm2 --ranks 2")
def compression(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCount = 2,
    dtype: options.Dtype = "bf16",
    pairs: Annotated[int, Option(help="Pairs of answers, one with packing and one without.")] = 10,
) -> "BenchResult":
    """Measure what packing of hidden states costs and saves.

    Says on which links it pays.
    """
    from qubic_lab.bench.compression import bench_compression
    from qubic_lab.pipeline import PipelineConfig

    return bench_compression(PipelineConfig(model, ranks, dtype=dtype), pairs)


@bench("--model smollm2 --clients 1,4,10,16", "pandas")
def concurrency(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCount = 2,
    dtype: options.Dtype = "bf16",
    slots: Annotated[int, Option(help="Requests that decode together in each lane.")] = 8,
    threads: options.Threads = None,
    clients: Annotated[str, Option(help="Numbers of concurrent clients.")] = "1,2,4,8,10,16",
    requests: Annotated[int, Option(help="Questions in a block, at least one for each client.")] = 16,
    repeat: Annotated[int, Option(help="Blocks of each number of clients.")] = 5,
    prompt_tokens: Annotated[int, Option(help="Most tokens of a prompt.")] = 64,
    new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 16,
    rates: Annotated[str | None, Option(help="Arrivals per second instead of clients, such as 0.5,1,2.")] = None,
    arrivals: Annotated[list[Path] | None, Option(metavar="FILE", help="Arrivals: a time in seconds a line.")] = None,
    limit: Annotated[str, Option(help="With --rates or --arrivals: answers within this time are good.")] = "10s",
    long_prompt: Annotated[
        int | None, Option(help="Instead: --requests at once with and without such a prompt.")
    ] = None,
) -> "BenchResult":
    """Measure latency and throughput with concurrent clients.

    Also shows whether any answer changes. With --rates, requests arrive at random (Poisson) or as recorded, whether or
    not earlier ones are answered: a pipeline, one process and replicas. With --long-prompt: what a long prompt does to
    the time between tokens of short requests; --repeat pairs.
    """
    from qubic_lab.pipeline import PipelineConfig

    config = PipelineConfig(model, ranks, dtype=dtype, slots=slots, threads=threads)
    sizes = prompt_tokens, new_tokens, progress
    if long_prompt is not None:
        from qubic_lab.bench.long_prompt import bench_long_prompt

        return bench_long_prompt(config, long_prompt, requests, prompt_tokens, new_tokens, repeat, progress)
    if rates is not None or arrivals:
        from qubic_lab.bench.open_loop import bench_open_loop

        per_s = (
            [console.read_seconds("--rates", each) for each in console.split_list("--rates", rates)] if rates else []
        )
        limit_s = console.read_seconds("--limit", limit)
        return bench_open_loop(config, per_s, arrivals or [], limit_s, requests, repeat, *sizes)
    from qubic_lab.bench.concurrency import bench_concurrency

    return bench_concurrency(config, console.split_numbers("--clients", clients), requests, repeat, *sizes)


@bench("--concurrency 50 --requests 1000")
def dispatch(
    progress: Progress,
    requests: Annotated[int, Option(help="Requests to echo nodes, real nodes whose engine only waits.")] = 1000,
    concurrency: Annotated[int, Option(help="Concurrent clients; each node has a slot for all of them.")] = 50,
    nodes: EchoNodes = 3,
    seconds: Annotated[float, Option(help="Time that an echo node takes for an answer.")] = 1.0,
    new_tokens: Annotated[int, Option(help="Tokens of its answer, spread evenly over that time.")] = 16,
    real_requests: Annotated[int, Option(help="Requests to one or two real nodes; 0: none.")] = 100,
    model: options.Model = "smollm2",
    balancer: options.Balancer = "two-choices",
) -> "BenchResult":
    """Measure the latency that a coordinator adds."""
    from qubic_lab.bench.dispatch import bench_dispatch

    settings = (requests, concurrency, nodes, seconds, new_tokens, real_requests, model, balancer)
    return bench_dispatch(*settings, progress)


@bench("--tasks 20")
def durability(
    progress: Progress,
    tasks: Annotated[int, Option(help="Tasks whose calls are in the log.")] = 3,
    per_s: Annotated[float, Option(help="Tasks a second.")] = 5.0,
) -> "BenchResult":
    """Measure what a power failure takes from the task queue.

    Its log is cut behind and within every record; a new server reads the rest.
    """
    from qubic_lab.bench.durability import bench_durability

    return bench_durability(tasks, per_s, progress)


@bench("--model smollm2 --peers transformers,llama.cpp,vllm --batch 1,8", "pandas")
def engine(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCounts = "1,2",
    batch: Batches = "1,4,8",
    dtype: options.Dtype = "bf16",
    peers: Annotated[str, Option(help="transformers, llama.cpp, vllm or none; see `make peers`.")] = "transformers",
    quantization: Annotated[str, Option(help="Also ours with weights in int8, int4 or both.")] = "",
    prompt_tokens: PromptTokens = 64,
    new_tokens: NewTokens = 32,
    repeat: Annotated[int, Option(help="Pairs of measurements.")] = 7,
    picture: Annotated[Path | None, Option(metavar="FILE", help="Draw the ratios, as .png or .svg.")] = None,
) -> "BenchResult":
    """Compare the pipeline's speed with that of other engines.

    All get the same total number of threads; prefill and decode are measured separately.
    """
    from qubic_lab.bench.engine import bench_engine

    if picture is not None:
        console.require("matplotlib")
        check_choice("kind of picture", picture.suffix, (".png", ".svg"))
        if not picture.parent.is_dir():  # before minutes of measuring
            raise InputError(f"{picture.parent} is no folder: give the picture a place in an existing one")
    numbers, batches = console.split_numbers("--ranks", ranks), console.split_numbers("--batch", batch)
    packages = () if peers == "none" else console.split_list("--peers", peers)
    small = console.split_list("--quantization", quantization) if quantization else ()
    result = bench_engine(model, numbers, batches, dtype, prompt_tokens, new_tokens, repeat, packages, small, progress)
    if picture is not None:
        from qubic_lab.studies.engine_figures import speed_ratios

        speed_ratios(result).savefig(picture, dpi=150)
    return result


@bench("--nodes 3 --kill-coordinator")
def failover(
    progress: Progress,
    requests: Annotated[int, Option(help="Number of streams.")] = 24,
    every: Annotated[float, Option(help="Seconds between the starts of two streams.")] = 0.75,
    nodes: EchoNodes = 3,
    new_tokens: NewTokens = 40,
    seconds: Annotated[float, Option(help="Time of an answer.")] = 4.0,
    kill_coordinator: Annotated[bool, Option("--kill-coordinator", help="Also kill one of two coordinators.")] = False,
) -> "BenchResult":
    """Kill and restart a node, and show what each client saw."""
    from qubic_lab.bench.failover import FailoverPlan, bench_failover

    return bench_failover(FailoverPlan(requests, every, nodes, new_tokens, seconds, kill_coordinator), progress)


@bench("--model deepseek --dtype fp16")
def gpu(
    progress: Progress,
    model: options.Model = "smollm2",
    dtype: Annotated[str, Option(help="fp16, bf16 or auto: fp16 on GPUs without bf16, else bf16.")] = "auto",
    new_tokens: Annotated[int, Option(help="Most tokens of the answer.")] = 100,
    prompt: Annotated[str, Option(help="The question.")] = "What is Qubic blockchain?",
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.7,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Measure time and memory of one answer in 16 bit on the GPU.

    Prints the answer. Without a GPU it runs on the CPU.
    """
    from qubic_lab.bench.gpu import bench_gpu

    return bench_gpu(model, dtype, new_tokens, prompt, temperature, seed)


@bench("--model smollm2 --delays 0,1,5,20 --mbps 10,100")
def link(
    progress: Progress,
    repeat: Annotated[int, Option(help="Messages of each size.")] = 200,
    model: Annotated[str | None, Option(help="Measure a pipeline of this model over slow links instead.")] = None,
    ranks: RankCount = 2,
    delays: Annotated[str, Option(help="With --model: ms that are added to each hop.")] = "0,1,5,20",
    mbps: Annotated[str, Option(help="With --model: bandwidths of each hop in 10⁶ bits/s.")] = "10,100",
    requests: Annotated[int, Option(help="With --model: answers at once, beside one at a time.")] = 4,
    pairs: Annotated[int, Option(help="With --model: measurements of each way, in turns.")] = 6,
    new_tokens: Annotated[int, Option(help="With --model: tokens of each answer.")] = 48,
    dtype: options.Dtype = "bf16",
    threads: options.Threads = None,
) -> "BenchResult":
    """Measure latency and bandwidth between two ranks.

    Both run on this machine. The result has the form that `qubic-lab plan --link` takes. With --model: how fast
    answers come if hops are slow, with drafted tokens and with packed hidden states, and beside one process.
    """
    from qubic_lab.bench.link import bench_link

    if model is None:
        return bench_link(repeat)
    from qubic_lab.bench.slow_link import bench_slow_links
    from qubic_lab.pipeline import PipelineConfig

    config = PipelineConfig(model, ranks, dtype=dtype, threads=threads, slots=-(-requests // ranks))
    links = console.split_numbers("--delays", delays), console.split_numbers("--mbps", mbps)
    return bench_slow_links(config, *links, requests, pairs, new_tokens, progress)


@bench("--rate 20,50,100 --profile burst --surface cluster,openai")
def load(
    progress: Progress,
    rate: Annotated[str, Option(help="Requests/s that come, whatever happens to earlier ones.")] = "20,50,100",
    profile: Annotated[str, Option(help="steady; burst: for 1 s in 5 three times as many; ramp: from 0.")] = "steady",
    seconds: Annotated[float, Option(help="Time of each rate, or of the overload.")] = 20.0,
    surface: Annotated[str, Option(help="Interfaces of a coordinator.")] = "cluster,openai,oracle",
    bound: Annotated[float, Option(help="Seconds after which an answer is late.")] = 2.0,
    overload: Annotated[float, Option(help="Find the peak and send so many times as much; 0: no.")] = 0.0,
    nodes: EchoNodes = 3,
    slots: Annotated[int | None, Option(help="Requests that a node answers at once. [default: 32; overload 8]")] = None,
    answer: Annotated[float | None, Option(help="Seconds of a node's answer. [default: 0.2; overload 1]")] = None,
) -> "BenchResult":
    """Measure answers in time and refusals under open-loop load.

    Latencies count from when a request was due. With --overload the peak is sought, exceeded, and the recovery timed.
    """
    from qubic_lab.bench.load import bench_load

    rates, surfaces = console.split_numbers("--rate", rate), console.split_list("--surface", surface)
    if "oracle" in surfaces:
        console.require("aiolimiter", "arch", "pandas", "pandera", "talib", extra="oracle")
    return bench_load(rates, profile, seconds, surfaces, bound, overload, nodes, slots, answer, progress)


@bench("--model smollm2 --ranks 2")
def memory(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    strategy: options.Strategy = None,
    dtype: options.Dtype = "bf16",
    new_tokens: Annotated[int, Option(help="Tokens to generate in each slot.")] = 32,
    threads: options.Threads = None,
    slots: options.Slots = 1,
    quantization: options.Quantization = None,
    kv_tokens: options.KvTokens = None,
) -> "BenchResult":
    """Measure the memory of each rank, beside the planner's figure."""
    from qubic_lab.bench.memory import bench_memory
    from qubic_lab.pipeline import PipelineConfig

    settings = {"threads": threads, "slots": slots, "quantization": quantization, "kv_tokens": kv_tokens}
    return bench_memory(PipelineConfig(model, ranks, strategy, dtype=dtype, **settings), new_tokens)  # type: ignore[arg-type]


@bench("--model smollm2 --ranks 1,2 --batch 1,4,8", "pandas")
def prediction(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: Annotated[str, Option(help="Numbers of ranks, at most as many as cores.")] = "1,2",
    batch: Batches = "1,4,8",
    dtype: options.Dtype = "bf16",
    new_tokens: NewTokens = 32,
    repeat: Annotated[int, Option(help="Measurements of each prediction, each between two probes.")] = 5,
    replicas: Annotated[bool, Option(help="Also measure the whole model on each rank.")] = True,
    quantization: Annotated[str, Option(help="Weights: none (as they are), int8, int4, or several.")] = "none",
    strategies: Annotated[str, Option(help="Splits to measure.")] = "A,B,C",
    drafts: Annotated[bool, Option("--drafts", help="Also answers with drafted tokens.")] = False,
) -> "BenchResult":
    """Compare predicted with measured speed and memory of splits.

    Predictions of speed come from the costs of single layers.
    """
    from qubic_lab.bench.prediction import bench_prediction

    numbers, batches = console.split_numbers("--ranks", ranks), console.split_numbers("--batch", batch)
    names = console.split_list("--quantization", quantization), console.split_list("--strategies", strategies)
    return bench_prediction(model, numbers, batches, dtype, new_tokens, repeat, replicas, progress, *names, drafts)


@bench("--tasks 20000 --workers 4 --kill-every 2s")
def queue(
    progress: Progress,
    tasks: Annotated[int, Option(help="Number of tasks.")] = 20_000,
    workers: Annotated[int, Option(help="Number of worker processes.")] = 4,
    kill_every: Annotated[str, Option(help="Interval at which a worker is killed and replaced.")] = "2s",
    stop: Annotated[bool, Option("--stop", help="Stop it for 8 s (SIGSTOP) instead.")] = False,
    work_ms: Annotated[float, Option(min=0, help="Time of a task.")] = 2.0,
) -> "BenchResult":
    """Check the task queue while its workers are killed or stopped.

    No task may be lost, and none may be answered twice.
    """
    from qubic_lab.bench.queue import bench_queue

    every_s = console.read_seconds("--kill-every", kill_every)
    return bench_queue(tasks, workers, "stop" if stop else "kill", every_s, work_ms, progress)


@bench("--model smollm2 --ranks 2 --samples 4")
def samples(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    count: Annotated[int, Option("--samples", help="Samples of one prompt.")] = 4,
    slots: Annotated[int | None, Option(help="Requests decoding together in a lane.", show_default="as needed")] = None,
    dtype: options.Dtype = "bf16",
    prompt_tokens: PromptTokens = 128,
    new_tokens: NewTokens = 64,
    repeat: Repeat = 5,
    threads: options.Threads = None,
) -> "BenchResult":
    """Compare the time of k samples with one sample and k requests."""
    from qubic_lab.bench.samples import bench_samples
    from qubic_lab.pipeline import PipelineConfig

    check_at_least("--samples", count, 2)
    config = PipelineConfig(model, ranks, dtype=dtype, threads=threads, slots=slots or -(-count // (ranks or 1)))
    return bench_samples(config, count, prompt_tokens, new_tokens, repeat, progress)


@bench("--model smollm2 --ranks 2 --questions 100")
def prefixes(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    questions: Annotated[int, Option(help="Questions that begin alike.")] = 100,
    common_tokens: Annotated[int, Option(help="Tokens of their common beginning.")] = 512,
    own_tokens: Annotated[int, Option(help="Tokens of each question's own end.")] = 32,
    slots: options.Slots = 8,
    dtype: options.Dtype = "bf16",
    repeat: Repeat = 7,
    threads: options.Threads = None,
) -> "BenchResult":
    """Measure what prefix caching saves.

    Questions that begin alike are asked in turn with and without it.
    """
    from qubic_lab.bench.prefixes import bench_prefixes
    from qubic_lab.pipeline import PipelineConfig

    config = PipelineConfig(model, ranks, dtype=dtype, threads=threads, slots=slots)
    return bench_prefixes(config, questions, common_tokens, own_tokens, repeat, progress)


@bench("--nodes 10,100,300,1000 --real 3,6,12")
def scale(
    progress: Progress,
    nodes: Annotated[str, Option(help="Numbers of registered nodes, in increasing order.")] = "10,100,300,1000",
    real: Annotated[str, Option(help="Numbers of real nodes, as a check; empty: none.")] = "3,6,12",
    requests_per_node: Annotated[float, Option(help="Assumed load: requests per second of a node.")] = 0.1,
    window: Annotated[float, Option(help="Seconds of a measurement; there are three of each kind.")] = 5.0,
) -> "BenchResult":
    """Measure the cost of many nodes for coordinator and Redis.

    Also computes how many nodes one coordinator can serve, and which process needs a whole core first.
    """
    from qubic_lab.bench.scale import bench_scale

    reals = console.split_numbers("--real", real) if real else ()
    return bench_scale(console.split_numbers("--nodes", nodes), reals, requests_per_node, window, progress)


@bench("--streams 8 --peers llama.cpp,vllm")
def serving(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCount = 2,
    dtype: options.Dtype = "bf16",
    streams: Annotated[int, Option(help="Streams at once; the lanes have a slot for each.")] = 8,
    pairs: Annotated[int, Option(help="Pairs of measurements, one over HTTP and one by the gRPC client.")] = 9,
    new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 64,
    threads: options.Threads = None,
    peers: Annotated[str, Option(help="Servers with the same weights: llama.cpp, vllm; see `make peers`.")] = "",
    beside: Annotated[str, Option(metavar="NAME=URL,…", help="Other OpenAI servers, which run already.")] = "",
) -> "BenchResult":
    """Measure what HTTP costs beside the gRPC client.

    One pipeline answers both in turn, and other servers take their turns in the same rounds.
    """
    from qubic_lab.bench.serving import bench_serving
    from qubic_lab.pipeline import PipelineConfig

    config = PipelineConfig(model, ranks, dtype=dtype, slots=-(-streams // ranks), threads=threads)
    others = dict(each.partition("=")[::2] for each in console.split_list("--beside", beside)) if beside else {}
    packages = console.split_list("--peers", peers) if peers else ()
    return bench_serving(config, streams, pairs, new_tokens, packages, others, progress)


@bench("--minutes 60 --fault-every 20")
def soak(
    progress: Progress,
    minutes: Annotated[float, Option(help="How long it takes.")] = 60.0,
    fault_every: Annotated[float, Option(help="Seconds between two faults; 0: none.")] = 20.0,
    rate: Annotated[float, Option(help="Requests a second.")] = 5.0,
) -> "BenchResult":
    """Ask for long while faults strike: does anything grow?

    Memory and open files of coordinators, nodes and Redis, keys of Redis, and errors that a client sees.
    """
    from qubic_lab.chaos.soak import run_soak

    return run_soak(minutes, fault_every, rate, progress)


@bench("--model smollm2 --ranks 2")
def speculation(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCount = 2,
    dtype: options.Dtype = "bf16",
    pairs: Annotated[int, Option(help="Pairs of answers, one with drafted tokens and one without.")] = 10,
    new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 128,
    threads: options.Threads = None,
    peers: Annotated[str, Option(help="llama.cpp: also its lookup decoding; see `make peers`.")] = "none",
) -> "BenchResult":
    """Measure how much faster answers come with drafted tokens.

    Texts repeat themselves (code, quoting, arithmetic) or are free.
    """
    from qubic_lab.bench.speculation import bench_speculation
    from qubic_lab.pipeline import PipelineConfig

    check_choice("--peers", peers, ("none", "llama.cpp"))
    config = PipelineConfig(model, ranks, dtype=dtype, threads=threads)
    return bench_speculation(config, pairs, new_tokens, peers == "llama.cpp", progress)


@bench("--model smollm2 --ranks 2", "pandas")
def tracing(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCount = 2,
    dtype: options.Dtype = "bf16",
    pairs: Annotated[int, Option(help="Pairs of runs, one with tracing and one without.")] = 20,
) -> "BenchResult":
    """Measure the cost of tracing.

    Shows the time in trace calls, and runs with tracing against runs without.
    """
    from qubic_lab.bench.tracing import bench_tracing
    from qubic_lab.pipeline import PipelineConfig

    return bench_tracing(PipelineConfig(model, ranks, dtype=dtype), pairs)


@bench("--model smollm2 --ranks 2 --rounds 24")
def watching(
    progress: Progress,
    model: options.Model = "smollm2",
    ranks: RankCount = 2,
    streams: Annotated[int, Option(help="Streams at once.")] = 8,
    rounds: Annotated[int, Option(help="Rounds, each with all ways in turn.")] = 12,
    new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 64,
) -> "BenchResult":
    """Measure what traces and scrapes of metrics cost."""
    from qubic_lab.bench.watching import bench_watching

    return bench_watching(model, ranks, streams, rounds, new_tokens, progress)


@bench("--answers 16")
def voting(
    progress: Progress,
    answers: Annotated[int, Option(help="Answers in a vote, of 100 to 200 tokens each.")] = 16,
    votes: Annotated[int, Option(help="Votes of each kind.")] = 15,
) -> "BenchResult":
    """Measure the time of a vote without that of its answers."""
    from qubic_lab.bench.deliberation import bench_voting
    from qubic_lab.model.embeddings import installed_embedder

    return bench_voting(answers, votes, installed_embedder())


@bench("--clients 1,4,16 --votes 100")
def votes(
    progress: Progress,
    clients: Annotated[str, Option(help="Numbers of concurrent votes.")] = "1,4,16,64",
    votes: Annotated[int, Option(help="Votes on three echo nodes with each number.")] = 100,
    real_votes: Annotated[int, Option(help="Votes on one or two real nodes; 0: none.")] = 12,
    model: options.Model = "smollm2",
) -> "BenchResult":
    """Measure concurrent votes, and where they saturate a cluster.

    On echo nodes the coordinator is the limit, on real ones the model.
    """
    from qubic_lab.bench.vote_load import bench_vote_load

    return bench_vote_load(console.split_numbers("--clients", clients), votes, real_votes, model, progress)
