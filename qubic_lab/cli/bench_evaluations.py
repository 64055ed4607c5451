"""`qubic-lab bench …`, the part about answers: votes, signals, the oracle and sentiment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from qubic_lab.cli import console, options
from qubic_lab.cli.bench import BENCHES, bench
from qubic_lab.cli.bench_compare import compare
from qubic_lab.cli.oracle_sentiment import PACKAGES, LabelColumn, LabelMap, TextColumn, read_columns
from qubic_lab.core import Progress
from qubic_lab.errors import InputError, check_choice

if TYPE_CHECKING:
    from qubic_lab.bench.result import BenchResult


@bench("--part development")
def audit(
    progress: Progress,
    part: Annotated[str, Option(help="Part of the corpus: development, held-out or all.")] = "all",
    only: Annotated[str, Option(help="Names of signals, such as zigzag,next_return; empty: all.")] = "",
    cuts: Annotated[int | None, Option(help="Least number of cuts.", show_default="the check's own")] = None,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Check the error rates of the look-ahead check.

    Audits planted leaks and clean signals that look suspicious.
    """
    console.require("arch", "pandas", "sklearn", "statsmodels", "talib", extra="oracle")
    from qubic_lab.bench.audit import bench_audit

    names = console.split_list("--only", only) if only else ()
    return bench_audit(part, names, seed, cuts, progress)


@bench("--null 1000 --process gaussian,ar0.3 --bars 250,750")
def backtest(
    progress: Progress,
    null: Annotated[int, Option(help="Runs in which no signal has any skill, of each process; 0: none.")] = 500,
    process: Annotated[
        str, Option(help="Of gaussian, garch-t, t3, regimes, day-of-week, ar0.3 and ar-0.3.")
    ] = "gaussian,garch-t",
    bars: Annotated[str, Option(help="Numbers of bars of these runs.")] = "750",
    effect: Annotated[int, Option(help="Runs with an edge of the detectable size; 0: none.")] = 300,
    var: Annotated[int, Option(help="Simulated series for value at risk; 0: none.")] = 0,
    var_bars: Annotated[int, Option(help="Bars of each of these series.")] = 4_000,
    prices: Annotated[
        str | None, Option(help="Files of bars to test value at risk on, or packaged.", show_default="none")
    ] = None,
    speed: Annotated[bool, Option(help="Measure speed as well.")] = True,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Check error rates and speed of the backtest.

    Data without any edge show how often noise is called evidence, data with one how often it is found.
    """
    console.require("aiolimiter", "arch", "pandas", "pandera", extra="oracle")
    from qubic_lab.bench.backtest import bench_backtest

    return bench_backtest(
        null,
        effect,
        var,
        processes=console.split_list("--process", process),
        bars=console.split_numbers("--bars", bars),
        var_bars=var_bars,
        prices=console.split_list("--prices", prices) if prices else (),
        speed=speed,
        seed=seed,
        progress=progress,
    )


def _simulated(help: str, default: str, *names: str) -> Any:
    return Option(*names, help=f"Simulated: {help}", show_default=default)


def _of_model(help: str, default: str | bool, *names: str) -> Any:
    return Option(*names, help=f"Model: {help}", show_default=default)


Accuracy = Annotated[float | None, _simulated("accuracy of each voter, 0 to 1.", "0.6")]
Correlation = Annotated[float | None, _simulated("correlation of two voters' correctness, 0 to 1.", "0")]
OptionCount = Annotated[int | None, _simulated("options of each question, one is right.", "2", "--options")]
VoteModel = Annotated[str | None, _of_model("alias, hub id, folder or .gguf file.", "smollm2")]
SampleCount = Annotated[int | None, _of_model("answers to each question, at least k.", "k")]
Temperature = Annotated[float | None, _of_model("temperature of the samples.", "0.7")]
AnswerTokens = Annotated[int | None, _of_model("most tokens of an answer.", "48")]
VoteDtype = Annotated[str | None, _of_model("fp32, bf16 or fp16.", "bf16")]
QuestionFile = Annotated[Path | None, _of_model("a file of questions: JSON, JSON lines, CSV.", "graded questions")]
Layout = Annotated[str | None, _of_model("layout of the file: auto, project, gsm8k or mapped.", "auto")]
MappedColumns = Annotated[str | None, _of_model("columns of the file, as in question=Q,answer=A.", False, "--map")]
Calibrations = Annotated[Path | None, _of_model("save its calibrations in this folder.", False)]
Keep = Annotated[bool, _of_model("cache answers as they come, so that a stopped run can continue.", False, "--keep")]
Save = Annotated[Path | None, _of_model("save its answers in a file, for `bench stopping --recorded`.", False)]
QuestionCount = Annotated[
    int | None,
    Option(help="Questions; simulated voters calibrate on as many others.", show_default="10000; 45 of a model"),
]


@bench("--accuracy 0.6 --correlation 0 --k 5")
def consensus(
    progress: Progress,
    voters: Annotated[str, Option(help="Who votes: simulated or model.")] = "simulated",
    accuracy: Accuracy = None,
    correlation: Correlation = None,
    k: Annotated[int, Option("--k", help="Number of voters.")] = 5,
    option_count: OptionCount = None,
    questions: QuestionCount = None,
    model: VoteModel = None,
    samples: SampleCount = None,
    temperature: Temperature = None,
    new_tokens: AnswerTokens = None,
    dtype: VoteDtype = None,
    file: QuestionFile = None,
    layout: Layout = None,
    columns: MappedColumns = None,
    keep: Keep = False,
    save: Save = None,
    calibrations: Calibrations = None,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Measure the gain of a vote, and check its confidence.

    Simulated voters, whose truth is known, check the method; a model's samples show what it is worth in practice.
    """
    simulated = {"accuracy": accuracy, "correlation": correlation, "options": option_count}
    asked = {"samples": samples, "temperature": temperature, "max_new_tokens": new_tokens}
    of_file, reading = {"file": None if file is None else str(file)}, {"layout": layout, "columns": columns}
    kept = {"keep": keep or None, "save": save, "calibrations": calibrations}
    of_model = {"model": model, "dtype": dtype, **kept, **of_file, **reading, **asked}
    unfit = of_model if check_choice("voters", voters, ("simulated", "model")) == "simulated" else simulated
    if unusable := _given(unfit):
        raise InputError(f"{next(iter(unusable)).replace('_', ' ')} does not apply to {voters} voters: leave it out")
    if voters == "simulated":
        from qubic_lab.bench.consensus import bench_consensus

        return bench_consensus(voters, k=k, seed=seed, **_given({**simulated, "questions": questions}))
    from qubic_lab.bench.evaluations import bench_model_votes
    from qubic_lab.evals.consensus_eval import ConsensusPlan, QuestionReading
    from qubic_lab.evals.recording import Asking

    asking = Asking(**{"samples": k, **_given(asked)}, factor=max(2, k), seed=seed)
    settings = _given({"model": model, "dtype": dtype, "questions": questions, **of_file})
    plan = ConsensusPlan(k=k, asking=asking, seed=seed, reading=QuestionReading(**_given(reading)), **settings)
    return bench_model_votes(plan, progress, keep=keep, save=save, calibrations=calibrations)


SimulatedQuestions = Annotated[int | None, _simulated("questions.", "10000")]
LargestCorrelation = Annotated[float | None, _simulated("greatest correlation of two voters.", "0.6")]
Concentration = Annotated[float | None, _simulated("of the answers' shares: less makes questions easier.", "0.5")]


@bench("--questions 10000 --votes 16 --correlation 0.6")
def stopping(
    progress: Progress,
    recorded: Annotated[Path | None, Option(help="A model's answers, by `bench consensus --save`.")] = None,
    questions: SimulatedQuestions = None,
    votes: Annotated[int, Option(help="Ballots of a vote that does not stop.")] = 16,
    correlation: LargestCorrelation = None,
    concentration: Concentration = None,
    error: Annotated[float, Option(help="Error of the certificates.")] = 0.05,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Check certified votes: how often they err, what they save.

    Simulated voters, whose most frequent answer is known, vote until it is certified; or a model's recorded answers
    are their ballots.
    """
    simulated = _given({"questions": questions, "correlation": correlation, "concentration": concentration})
    if recorded is None:
        from qubic_lab.bench.stopping import bench_stopping

        return bench_stopping(votes=votes, error=error, seed=seed, progress=progress, **simulated)
    if simulated:
        raise InputError(f"{next(iter(simulated))} does not apply to recorded answers: leave it out")
    from qubic_lab.bench.evaluations import bench_recorded_votes

    return bench_recorded_votes(recorded, votes, error, seed)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that were given; the others have defaults in the function that takes them."""
    return {name: value for name, value in values.items() if value is not None}


@bench("--clients 50")
def oracle(
    progress: Progress,
    rows: Annotated[int, Option(help="Prices in the database, which is generated once and kept.")] = 1_000_000,
    texts: Annotated[int, Option(help="Texts in the database, each with two scores.")] = 100_000,
    clients: Annotated[int, Option(help="Concurrent clients, each without pauses.")] = 50,
    requests: Annotated[int, Option(help="Cold requests of each route; a fifth of them for risk.")] = 500,
    cached_requests: Annotated[int, Option(help="Requests of each route whose answers are cached.")] = 5_000,
) -> "BenchResult":
    """Measure the latency of the market oracle, cold and cached."""
    console.require("aiolimiter", "arch", "pandas", "pandera", "talib", extra="oracle")
    from qubic_lab.bench.oracle import bench_oracle

    return bench_oracle(rows, texts, clients, requests, cached_requests, progress)


@bench("")
def pairs(progress: Progress) -> "BenchResult":
    """Measure how well answers are read, and equal ones recognized.

    Compares our method with embeddings and with word overlap alone, on labelled pairs. Reads answers in plain prose.
    """
    from qubic_lab.bench.evaluations import bench_pairs

    return bench_pairs()


@bench("news.csv --text title --label sentiment")
def sentiment(
    progress: Progress,
    files: Annotated[list[Path] | None, Argument(metavar="[FILE…]", help="Labelled texts, besides our own.")] = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    mapping: LabelMap = None,
    finbert: Annotated[Path | None, Option(metavar="FOLDER", help="FinBERT, or its like.", show_default=False)] = None,
    seed: options.Seed = 0,
) -> "BenchResult":
    """Measure how right sentiment models are on labelled texts.

    Shows accuracy, macro-F1 and calibration, with intervals, beside the majority and two lexicons.
    """
    console.require(*PACKAGES, extra="oracle")
    from qubic_lab.bench.sentiment import bench_sentiment

    return bench_sentiment(files or (), read_columns(text, label, mapping), finbert, seed, progress)


COMMANDS: console.Commands = dict(sorted({**BENCHES, "compare": (compare, "before.json after.json")}.items()))
