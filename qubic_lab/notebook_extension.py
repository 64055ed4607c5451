"""`%load_ext qubic_lab`: `%%ask`, `%cluster` and `%plan` in a notebook, and results that show themselves.

The magics take the options of the command line, in the same words; `%plan --help` lists them. An error is one line.
"""

import atexit
import shlex
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer import Option
from typer.exceptions import TyperException
from typer.main import get_command

from qubic_lab.cli import cluster, models, options
from qubic_lab.cli.main import explain
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.pipeline import Pipeline, PipelineConfig

CAPTIONS = {"node": "Nodes", "coordinator": "Coordinators", "process": "Processes on this machine"}
"""By the first heading of a table of the cluster's state; another one is named by its row."""


class MagicError(Exception):
    """What a magic could not do; IPython shows it as one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]


def load(shell: Any) -> None:
    """Add the magics to an IPython shell, and let it show plans, votes, backtests and weeks."""
    from qubic_lab.runs.shown import register

    open_pipeline = OpenPipeline()
    atexit.register(open_pipeline.close)
    for kind, name, function in (
        ("cell", "ask", partial(ask, open_pipeline)),
        ("line", "cluster", show_cluster),
        ("line", "plan", show_plan),
    ):
        shell.register_magic_function(_in_one_line(function), kind, name)
    register(shell)


def _in_one_line(function: Callable[..., Any]) -> Callable[..., Any]:
    def magic(*given: str) -> Any:
        try:
            return function(*given)
        except typer.Exit:  # after --help
            return None
        except TyperException as error:
            raise MagicError(explain(error)) from None
        except (QubicLabError, OSError) as error:
            raise MagicError(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            raise MagicError("interrupted") from None

    return magic


def read_options(command: Callable[..., None], name: str, line: str) -> dict[str, Any]:
    """Return the options of a command that a line gives, and the defaults of the others.

    Raises:
        TyperException: an option is unknown, or has a wrong value.
        InputError: a quotation mark is missing.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    try:
        given = shlex.split(line)
    except ValueError as error:
        raise InputError(f"{line!r} cannot be read ({error}): close the quotation mark") from None
    with get_command(app).make_context(name, given) as context:
        return dict(context.params)


def asked(
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    dtype: options.Dtype = "bf16",
    max_new_tokens: Annotated[int, Option(help="Most tokens of the answer.")] = 128,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.0,
    seed: options.Seed = 0,
    cluster: Annotated[bool, Option("--cluster", help="Ask the coordinator at QUBIC_LAB_COORDINATOR instead.")] = False,
    url: Annotated[str | None, Option(help="Ask this coordinator instead.", show_default=False)] = None,
) -> None:
    """Stream the answer to the cell's text.

    The model stays loaded for the next cell with the same model, ranks and dtype.
    """


class OpenPipeline:
    """The pipeline of the last `%%ask`, which the next one uses again if it wants the same."""

    def __init__(self) -> None:
        self._wanted: PipelineConfig | None = None
        self._pipeline: Pipeline | None = None

    def get(self, wanted: PipelineConfig) -> Pipeline:
        """Return a running pipeline of this configuration; errors as of `Pipeline.launch`."""
        if self._pipeline is None or self._pipeline.ended or self._wanted != wanted:
            self.close()
            self._pipeline, self._wanted = Pipeline.launch(wanted), wanted
        return self._pipeline

    def close(self) -> None:
        """End the ranks."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None


def ask(open_pipeline: OpenPipeline, line: str, cell: str) -> None:
    """Print the answer to a cell as it comes, and then its speed."""
    given = read_options(asked, "%%ask", line)
    sampling = {name: given[name] for name in ("max_new_tokens", "temperature", "seed")}
    prompt = cell.strip()
    if given["cluster"] or given["url"]:
        from qubic_lab.api.client import CoordinatorClient
        from qubic_lab.api.schemas import QueryResponse

        with CoordinatorClient(given["url"]) as client:
            for event in client.stream(prompt, **sampling):
                if isinstance(event, QueryResponse):
                    speed = f"{len(event.token_ids)} tokens, {event.tokens_per_s:.1f} tokens/s"
                    print(f"\n\n{event.model} on {event.node}: {speed}")
                else:
                    print(event.text, end="", flush=True)
        return
    pipeline = open_pipeline.get(PipelineConfig(given["model"], given["ranks"], dtype=given["dtype"]))
    stream = pipeline.stream(prompt, **sampling)
    try:
        for token in stream:
            print(token, end="", flush=True)
    finally:
        stream.cancel()  # where the cell was interrupted; otherwise it has ended
    done, used = stream.completion, pipeline.config
    ranks = f"{used.ranks} rank{'s' if used.ranks > 1 else ''}"
    note = "; its answers are meaningless" if used.meaningless else ""
    speed = f"{len(done.token_ids)} tokens, {done.tokens_per_s:.1f} tokens/s, the first after {done.ttft_ms:.0f} ms"
    print(f"\n\n{used.model} on {ranks}: {speed}{note}")


def show_cluster(line: str) -> Any:
    """Return the state of the cluster as `qubic-lab cluster status` prints it."""
    from pandas import DataFrame

    from qubic_lab.runs.shown import CaptionedTable, View

    if line.strip():
        raise InputError(f"%cluster takes nothing, and {line.strip()!r} was given: leave it out")
    tables = [
        CaptionedTable(DataFrame(rows, columns=header), CAPTIONS.get(header[0], rows[0][0].capitalize()))
        for header, rows in cluster.read_status().tables()
    ]
    return View((), tuple(tables))


def show_plan(line: str) -> Any:
    """Return what `qubic-lab plan` predicts, to be shown as tables; the value is the `Advice` itself."""
    given = read_options(models.plan, "%plan", line)
    del given["json"]
    return models.advise(**given)
