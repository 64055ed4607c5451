"""`qubic-lab chat`: a talk of several turns with a model that is started, or that a server runs."""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, note_meaningless, print_pieces, progress_bar
from qubic_lab.cli.talk import NAMES, Answered, Talk
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError, QubicLabError, check_choice

if TYPE_CHECKING:
    from qubic_lab.api.client import CoordinatorClient
    from qubic_lab.pipeline import Pipeline

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
MOST_HISTORY = 1_000
ANEW = "/reset starts anew, after /save FILE if the talk shall be kept"

Answers = Callable[[Request], Generator[str | Answered, None, None]]
"""Yields the pieces of an answer, and then its numbers; closing it ends the answer."""


def chat(
    model: Annotated[
        str | None, Option(help="As of generate; with --url a name of /v1/models.", show_default="smollm2")
    ] = None,
    ranks: options.Ranks = None,
    dtype: options.Dtype = "bf16",
    threads: options.Threads = None,
    system: Annotated[str, Option(help="A text that comes before the talk, such as 'Be brief.'")] = "",
    max_new_tokens: Annotated[int, Option(help="Most tokens of an answer.")] = 1024,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.7,
    seed: options.Seed = 0,
    url: Annotated[
        str | None, Option(help="Talk to this server instead (qubic-lab serve, a coordinator).", show_default=False)
    ] = None,
) -> None:
    """Talk to a model; /help lists what can be typed.

    Ctrl-C stops an answer, Ctrl-D ends. What is piped in is one question: `echo Why? | qubic-lab chat` answers it.
    """
    if url and (ranks or threads):
        raise InputError("--url talks to what a server runs: leave out --ranks and --threads")
    talk = Talk(system, SamplingParams(max_new_tokens, temperature, seed=seed))
    question = None if sys.stdin.isatty() else _piped()
    with _server(url, model) if url else _ranks(model or "smollm2", ranks, dtype, threads) as (answers, name):
        if question is not None:
            _answer(talk, question, answers)
            return
        note(f"{name}; /help lists the commands, Ctrl-D ends")
        with _history():
            converse(talk, answers)


@contextmanager
def _ranks(model: str, ranks: int | None, dtype: str, threads: int | None) -> Iterator[tuple[Answers, str]]:
    """Start a pipeline for the block; yield what answers, and its name."""
    from qubic_lab.pipeline import Pipeline, PipelineConfig

    with progress_bar():
        launched = Pipeline.launch(PipelineConfig(model, ranks, dtype=dtype, threads=threads))
    with launched as pipeline:
        used = pipeline.config
        note_meaningless(used.meaningless)
        yield partial(_by, pipeline), f"{used.model}, {used.ranks} rank{'s' * (used.ranks > 1)}, {used.dtype}"


def _by(pipeline: "Pipeline", request: Request) -> Generator[str | Answered, None, None]:
    stream = pipeline.stream(request)
    try:
        for token in stream:
            yield token.text
    finally:
        stream.cancel()  # it has ended, or nobody reads on
    yield Answered.of(stream.completion, request.sampling.max_new_tokens)


@contextmanager
def _server(url: str, model: str | None) -> Iterator[tuple[Answers, str]]:
    """Connect to a server for the block; yield what answers, and its name."""
    from qubic_lab.api.client import CoordinatorClient
    from qubic_lab.settings import settings

    key = settings().api_key
    with CoordinatorClient(url.rstrip("/").removesuffix("/v1"), key.get_secret_value() if key else None) as client:
        known = [each["id"] for each in client.call("GET", "/v1/models")["data"]]
        name = check_choice("model", model, known) if model else known[0]
        yield partial(_through, client, name), f"{name} at {client.url}"


def _through(client: "CoordinatorClient", model: str, request: Request) -> Generator[str | Answered, None, None]:
    sampling, started_s = request.sampling, perf_counter()
    options = {"max_completion_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    times_s, finish, usage = [started_s], "", {"completion_tokens": 0, "prompt_tokens": 0}
    with closing(
        client.chat(request.messages, model=model, seed=sampling.seed, trace=False, parent="", **options)
    ) as chunks:
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                finish = choice.get("finish_reason") or finish
                if text := choice["delta"].get("content"):
                    times_s.append(perf_counter())
                    yield text
    tokens, first_s, last_s = usage["completion_tokens"], times_s[:2][-1], times_s[-1]
    speed = (tokens - 1) / (last_s - first_s) if last_s > first_s else 0.0
    cut = finish == "length"
    full = cut and tokens < sampling.max_new_tokens
    yield Answered(tokens, usage["prompt_tokens"], speed, 1e3 * (first_s - started_s), cut, full)


def converse(talk: Talk, answers: Answers) -> None:
    """Answer questions and carry out commands until the end of input; errors are told, and the talk goes on."""
    while True:
        try:
            line = _read().strip()
            if line == "/exit":
                return
            if line == "/retry":
                line = talk.retry()
            elif line.startswith("/"):
                note(talk.command(line))
                continue
            if line:
                _answer(talk, line, answers)
        except EOFError:
            typer.echo("", err=True)
            return
        except QubicLabError as error:
            note(f"error: {_in_talk(error)}")
        except KeyboardInterrupt as stopped:
            if type(stopped) is not KeyboardInterrupt:  # SIGTERM
                raise
            note("\n(Ctrl-D or /exit ends)")


def _answer(talk: Talk, question: str, answers: Answers) -> None:
    """Print the answer to a question as it comes, and add both to the talk; Ctrl-C stops it and keeps what came."""
    pieces: list[str] = []
    numbers: list[Answered] = []

    def texts(parts: Iterator[str | Answered]) -> Iterator[str]:
        for part in parts:
            if isinstance(part, Answered):
                numbers.append(part)
            else:
                pieces.append(part)
                yield part

    request = talk.ask(question)
    try:
        with closing(answers(request)) as parts:
            print_pieces(texts(parts))
    except BaseException as error:
        if type(error) is not KeyboardInterrupt or not pieces or not sys.stdin.isatty():
            talk.take_back()
            raise
        note("(stopped)")
    talk.answered("".join(pieces), numbers[0] if numbers else None)
    if numbers and numbers[0].full:
        note(f"the model's context is full: {ANEW}")
    elif numbers and numbers[0].cut:
        note(f"cut after {request.sampling.max_new_tokens} tokens: --max-new-tokens allows more")


def _in_talk(error: QubicLabError) -> str:
    """Return an error's text, with the remedy of a talk where that has become too long for the model."""
    text = str(error)
    return f"{text.rpartition(': ')[0]}: {ANEW}" if isinstance(error, InputError) and "context" in text else text


def _piped() -> str:
    try:
        question = sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError("what is piped in is not UTF-8 text: convert it to UTF-8") from error
    if not question:
        raise InputError("nothing was asked: pipe a question in, or type in a terminal")
    return question


def _read() -> str:
    """Read a line from the terminal, or several between triple quotation marks."""
    line = _input(PROMPT)
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].endswith(QUOTES):
        lines.append(_input(MORE))
    return "\n".join([*lines[:-1], lines[-1].removesuffix(QUOTES)])


def _input(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    typer.echo(prompt, nl=False, err=True)  # stdout has the answers alone
    return input()


@contextmanager
def _history() -> Iterator[None]:
    """Let lines be edited; read the questions of earlier talks and keep those of this one, for this user alone."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        yield
        return
    import platformdirs

    file = Path(platformdirs.user_state_dir("qubic-lab", appauthor=False)) / "chat_history"
    readline.set_completer(lambda text, state: [*(name for name in NAMES if name.startswith(text)), None][state])
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(MOST_HISTORY)
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(0o600)
            file.chmod(0o600)
            readline.write_history_file(file)
            file.chmod(0o600)
        except OSError as error:
            note(f"note: {file} cannot be written ({error.strerror}): these questions are not kept")
