"""How results look in a notebook: sentences, and tables and pictures with the captions and units of the page.

Values stay what they are: they are formatted where they are shown, by the rules of `cells`. `register` makes a shell
show plans, votes, backtests and weeks this way.
"""

import base64
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from qubic_lab.runs.cells import format_column, heading, is_numeric

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

    from qubic_lab.consensus.aggregate import Consensus
    from qubic_lab.model.recommend import Advice
    from qubic_lab.oracle.backtest.engine import Account
    from qubic_lab.oracle.backtest.evaluate import Backtest
    from qubic_lab.runs.week_report import WeekReport
    from qubic_lab.studies.oracle_backtest import Family
    from qubic_lab.votes.samples import SampledVote

MOST_ROWS = 60
"""Rows of a table that are shown; its frame has the others."""
PNG_DPI = 192  # twice the 96 dots per inch of a screen
SHOWN_CHARACTERS = 80


@dataclass(frozen=True, eq=False)
class CaptionedTable:
    """A data frame that is shown with its caption and its units; the values in `frame` stay as they are."""

    frame: "DataFrame"
    caption: str

    def _title(self) -> str:
        rows = len(self.frame)
        return f"{self.caption} (the first {MOST_ROWS} of {rows:,} rows)" if rows > MOST_ROWS else self.caption

    def _columns(self) -> Iterator[tuple[str, list[str], bool]]:
        """Yield each column's heading and cells, and whether it holds numbers."""
        for name, column in self.frame.head(MOST_ROWS).items():
            values = _plain(column)
            yield heading(str(name)), format_column(str(name), values), is_numeric(values)

    def __repr__(self) -> str:
        columns = [
            [text.rjust(width) if numeric else text.ljust(width) for text in (title, *cells)]
            for title, cells, numeric in self._columns()
            for width in [max(map(len, (title, *cells)))]
        ]
        return "\n".join([self._title(), *("  ".join(row).rstrip() for row in zip(*columns, strict=True))])

    def _repr_html_(self) -> str:
        columns = [
            (f' style="text-align: {"right" if numeric else "left"}"', [title, *cells])
            for title, cells, numeric in self._columns()
        ]
        head, *rows = (
            "".join(f"<{tag}{look}>{escape(cells[row])}</{tag}>" for look, cells in columns)
            for row in range(min(len(self.frame), MOST_ROWS) + 1)
            for tag in ["td" if row else "th"]
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        caption = f'<caption style="caption-side: top; text-align: left">{escape(self._title())}</caption>'
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, eq=False)
class CaptionedFigure:
    """A figure that is shown with its caption below it; `png` is its picture, if it has been drawn already."""

    figure: "Figure"
    caption: str
    png: bytes = b""

    def __repr__(self) -> str:
        return f"[picture] {self.caption}"

    def _repr_html_(self) -> str:
        data, text = base64.b64encode(self.png or draw_png(self.figure, self.caption)).decode(), escape(self.caption)
        width = round(96 * self.figure.get_figwidth())
        image = f'<img width="{width}" alt="{text}" src="data:image/png;base64,{data}">'
        return f'<figure style="margin: 0">{image}<figcaption>{text}</figcaption></figure>'


@dataclass(frozen=True, eq=False)
class View:
    """A result as a reader sees it: sentences, and what is below them."""

    lines: tuple[str, ...]
    parts: tuple[CaptionedTable | CaptionedFigure, ...] = ()

    def __repr__(self) -> str:
        return "\n\n".join(filter(None, ["\n".join(self.lines), *map(repr, self.parts)]))

    def _repr_html_(self) -> str:
        paragraphs = (f"<p>{escape(line)}</p>" for line in self.lines)
        return "".join([*paragraphs, *(part._repr_html_() for part in self.parts)])


def draw_png(figure: "Figure", caption: str) -> bytes:
    """Return a figure as a PNG, its caption inside."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Title": caption}, dpi=PNG_DPI)
    return picture.getvalue()


def show_plans(advice: "Advice") -> View:
    """Show a prediction: what is recommended and why, when that changes, and all plans beside the baselines."""
    from qubic_lab.studies.split_strategies import plan_rows

    setup = advice.setup
    devices = ", ".join(device.name for device in setup.devices)
    caption = f"Predicted in {setup.dtype} for contexts of {setup.context:,} tokens on {devices}; goal: {advice.goal}."
    refused = (f"{each.strategy} refused: {each.reason}" for each in advice.refused)
    lines = (f"Recommended: {advice.recommendation or 'none'}. {advice.reason}", *advice.changes, *refused)
    return View(lines, (_table(plan_rows(advice), caption),))


def show_trace(spans: "DataFrame") -> View:
    """Show the spans that `trace.read_trace` has read: the time of each request on each rank, and the ranks at work.

    Raises:
        InputError: the trace has no work.
    """
    from matplotlib import pyplot

    from qubic_lab.trace import request_times, timeline, trace_cost

    figure = timeline(spans)
    pyplot.close(figure)  # else the notebook would show it a second time
    times = CaptionedTable(request_times(spans).reset_index(), "Time of each request on each rank, by what it did.")
    line = f"{spans['rank'].nunique()} ranks; tracing took {trace_cost(spans):.2%} of the working time."
    return View((line,), (CaptionedFigure(figure, "The ranks at work."), times))


def show_vote(vote: "Consensus") -> View:
    """Show a vote: the reply and how sure it is, and each voter with its answer."""
    confidence = vote.confidence
    sure = "no confidence" if confidence.probability is None else f"confidence {confidence.probability:.0%}"
    rows = [
        {
            "voter": each.vote.voter,
            "answer": _short(each.final.text or each.vote.text),
            "group": None if each.group is None else each.group + 1,
            "weight": each.weight.weight,
            "quality": each.quality.value,
            "does not count because": each.dropped,
        }
        for each in vote.voters
    ]
    how = f"{vote.level}; {sure} ({confidence.note}); {vote.disagreement:.0%} of the ballots are not for it"
    return View((vote.text, how, *vote.notes), (_table(rows, "The voters; those of a group gave the same answer."),))


def show_samples(vote: "SampledVote") -> View:
    """Show a vote on samples: as `show_vote`, whether it is certified, and what it cost."""
    shown = show_vote(vote.result)
    cost = f"{vote.certificate}; {vote.tokens:,} tokens, {vote.tokens_saved:,} saved"
    return View((shown.lines[0], cost, *shown.lines[1:]), shown.parts)


def show_response(vote: Any) -> View:
    """Show a coordinator's vote (`api.schemas.ConsensusResponse`): the reply, how sure it is, and each node's part."""
    sure = "no confidence" if vote.confidence is None else f"confidence {vote.confidence:.0%}"
    lines = (vote.text, f"{vote.mode} ({vote.mode_reason}); {vote.level}; {sure} ({vote.confidence_note})")
    columns = ("node", "answers", "for_leader", "confidence")
    rows = [{name: each[name] for name in columns} for each in (vote.trail or {}).get("nodes", ())]
    return View(lines, (_table(rows, "The nodes that voted, their answers and those for the leader."),) if rows else ())


def show_backtest(made: "Backtest") -> View:
    """Show a backtest: the account, its baselines and other lags, all after costs, and what random timing gives."""
    accounts = {made.strategy.title: made.account, **made.baselines.accounts}
    accounts |= {f"filled {lag} bars later": account for lag, account in made.lags.items() if lag != made.account.lag}
    draws = len(made.baselines.random_returns)
    luck = f"Random timing of the same positions is as good in {made.baselines.random_better:.0%} of {draws:,} draws."
    rows = [_account_row(name, account) for name, account in accounts.items()]
    notes = (*made.account.notes(), *made.lookahead.notes)
    return View((luck, str(made.lookahead), *notes), (_table(rows, "After costs."),))


def show_family(family: "Family") -> View:
    """Show all trials for one question: the verdict, and the best trial beside its baselines."""
    from qubic_lab.studies.oracle_backtest import account_rows, notes

    verdict = "evidence" if family.evidence else "no evidence"
    line = f"{family.title}: {verdict}, of {family.recorded:,} trials in the ledger."
    return View((line, *notes([family])), (_table(account_rows(family), "After costs."),))


def show_week(report: "WeekReport") -> View:
    """Show a week: the answer to each question, the verdicts, and the acceptance table."""
    from qubic_lab.runs.page import make_page

    screen = make_page(report).first
    first = [f"{row.sentence.text} [{row.sentence.source.partition('#')[0]}]" for row in screen.rows]
    counts = f"Criteria: {', '.join(f'{tile.count} {tile.verdict}' for tile in screen.tiles)}."
    failed = [f"{run.name} failed: {run.error}" for run in report.runs if run.error is not None]
    names = ("id", "what", "target", "measured", "verdict", "run")
    rows = [{name: getattr(row, name) for name in names} for row in report.rows if row.measurable]
    title = f"Week {report.week}, written {report.written_utc[:16].replace('T', ' ')} UTC."
    table = _table(rows, "Acceptance: the criteria that studies can measure.")
    return View((title, *first, *failed, counts), (table,))


VIEWS: dict[tuple[str, str], Callable[[Any], View]] = {
    ("qubic_lab.model.recommend", "Advice"): show_plans,
    ("qubic_lab.consensus.aggregate", "Consensus"): show_vote,
    ("qubic_lab.votes.samples", "SampledVote"): show_samples,
    ("qubic_lab.api.schemas", "ConsensusResponse"): show_response,
    ("qubic_lab.oracle.backtest.evaluate", "Backtest"): show_backtest,
    ("qubic_lab.studies.oracle_backtest", "Family"): show_family,
    ("qubic_lab.runs.week_report", "WeekReport"): show_week,
}
"""What shows a type, by its module and name: whoever has such a value has imported it, and nobody else needs to."""


def register(shell: Any) -> None:
    """Let an IPython shell show the types of VIEWS, as HTML and as text."""
    formatters = shell.display_formatter.formatters
    for (module, name), view in VIEWS.items():
        formatters["text/html"].for_type_by_name(module, name, lambda value, view=view: view(value)._repr_html_())
        formatters["text/plain"].for_type_by_name(module, name, partial(_as_text, view))


def _as_text(view: Callable[[Any], View], value: Any, printer: Any, cycle: bool) -> None:
    printer.text(repr(view(value)))


def _table(rows: list[dict[str, Any]], caption: str) -> CaptionedTable:
    from pandas import DataFrame

    return CaptionedTable(DataFrame(rows), caption)


def _plain(column: "Series") -> list[Any]:
    """Return the values of a column as `cells` takes them: None where one is missing."""
    values = column.astype(object).where(column.notna(), None).tolist()
    return [str(value) if isinstance(value, float) and math.isinf(value) else value for value in values]


def _account_row(name: str, account: "Account") -> dict[str, Any]:
    found = account.summary()
    row = {"account": name, "return_pct": 100 * found.total_return, "most_drawdown_pct": 100 * found.most_drawdown}
    figures = {each: vars(found)[each] for each in ("exposure", "trades", "turnover_per_year")}
    return row | figures | {"costs_pct": 100 * (found.fees + found.slippage + found.carry) / found.initial_cash}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS].rstrip()} …"
