"""`qubic-lab oracle import`, `import-texts` and `audit`: commands that read a user's file of bars or texts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import counts_text, duration_text, note, print_json, print_table, read_seconds, require
from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.response import to_plain

if TYPE_CHECKING:
    from qubic_lab.oracle.backtest.lookahead import LookaheadReport
    from qubic_lab.oracle.ingest.bar_files import BarImport
    from qubic_lab.oracle.ingest.text_files import TextImport

PACKAGES = ("aiolimiter", "datasketch", "feedparser", "pandas", "pandera")
AUDIT_PACKAGES = ("arch", "pandas", "pandera", "pyarrow")

BarFile = "CSV, Parquet or an exchange's dump, optionally compressed."
SignalFunction = Annotated[str, Argument(metavar="MODULE:FUNCTION", help="Function from bars to a number each.")]
Stamp = Annotated[str, Option(help="What the time of a row is: open, close or auto.")]
Zone = Annotated[str | None, Option(help="Zone of times without one, such as Europe/Berlin.", show_default=False)]
Columns = Annotated[list[str] | None, Option("--map", metavar="OURS=THEIRS", help="Column in the file; repeatable.")]
Interval = Annotated[int | None, Option(metavar="SECONDS", help="Length of a bar.", show_default="from the file")]
Decimal = Annotated[str, Option(metavar="MARK", help="Decimal mark: '.', ',' or auto.")]
DateOrder = Annotated[str, Option(help="Order of dates such as 03/04/2021: dmy, mdy or auto.")]
Duplicates = Annotated[str, Option(help="For rows that contradict each other: refuse, first or last.")]
Source = Annotated[str, Option(help="Name of the source in the database.")]
Taken = Annotated[
    str | None,
    Option(
        metavar="TIME", help="When the file was downloaded: bars that close later were forming.", show_default="now"
    ),
]
Data = Annotated[Path, Option(metavar="FILE", help=f"Bars: {BarFile}")]
DataCoin = Annotated[str, Option(help="Coin of the bars; it decides what volume means.")]
Cuts = Annotated[int, Option(help="Least number of cuts; leaks at few bars need more.")]
TimeLimit = Annotated[str, Option(metavar="SECONDS", help="Time limit of the function's process.")]

Known = Annotated[str, Option(metavar="WHEN", help="When rows count as known: now, published or such as +30min.")]

_OPTION_NAMES = re.compile("`(date_order|decimal|duplicates|interval|stamp|taken|zone)`")


def read_columns(pairs: Sequence[str] | None) -> dict[str, str]:
    """Return the column names of `--map` options, ours to theirs; an InputError if an option is not a pair."""
    columns: dict[str, str] = {}
    for pair in pairs or ():
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise InputError(f"--map is {pair!r}: give OURS=THEIRS, such as close=Last")
        columns[ours] = theirs
    return columns


def reading_of(
    stamp: str,
    zone: str | None,
    columns: Sequence[str] | None,
    interval: int | None,
    decimal: str,
    date_order: str,
    duplicates: str,
    taken: str | None,
) -> dict[str, Any]:
    """Return how to read a file of bars, as options say it, by the names of `BarOptions`."""
    read = {"stamp": stamp, "zone": zone, "columns": read_columns(columns), "interval_s": interval}
    return read | {"decimal": decimal, "date_order": date_order, "duplicates": duplicates, "taken": taken}


@contextmanager
def named_as_options() -> Iterator[None]:
    """Replace the names of parameters in errors by those of the options: `date_order` becomes --date-order."""
    try:
        yield
    except InputError as error:
        message = _OPTION_NAMES.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error))
        raise InputError(message) from error


def import_file(
    file: Annotated[Path, Argument(metavar="FILE", help=BarFile)],
    coin: options.Coin,
    stamp: Stamp = "auto",
    zone: Zone = None,
    columns: Columns = None,
    interval: Interval = None,
    source: Source = "file",
    currency: Annotated[str, Option(help="Currency of the prices.")] = "usd",
    decimal: Decimal = "auto",
    date_order: DateOrder = "auto",
    duplicates: Duplicates = "refuse",
    taken: Taken = None,
    known: Known = "now",
    json: options.Json = False,
) -> None:
    """Import bars from a file into the database.

    Rows that the database already has are not added again. A bar that was still forming is not imported. An archive can
    be studied with --known published: prices then count as known when they closed, which is an assumption and told.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.ingest.bar_files import BarOptions, import_bars
    from qubic_lab.oracle.model.coins import find_coin
    from qubic_lab.oracle.store.price_store import PriceStore

    reading = reading_of(stamp, zone, columns, interval, decimal, date_order, duplicates, taken)
    settings = BarOptions(coin=find_coin(coin).id, source=source, currency=currency, known=known, **reading)
    with named_as_options():
        result = import_bars(PriceStore(open_database()), file, settings)
    if json:
        print_json(to_plain(result))
        return
    _show_import(result, f"{result.series.coin}, {interval_text(result.series.interval_s)}", result.flags, "flags")
    if result.gaps:
        typer.echo(f"gaps: {result.gaps}, {result.missing} bars are missing")
    note(*result.notes)


def import_texts(
    file: Annotated[Path, Argument(metavar="FILE", help="CSV, JSON lines or Parquet.")],
    source: Source = "file",
    kind: Annotated[str, Option(help="news or social.")] = "news",
    zone: Zone = None,
    columns: Columns = None,
    date_order: DateOrder = "auto",
    known: Known = "now",
    json: options.Json = False,
) -> None:
    """Import news or posts from a file into the database.

    Texts that the database already has are not added again. An archive can be studied with --known published: texts
    then count as known when they appeared, which is an assumption and told.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.ingest import text_files
    from qubic_lab.oracle.store.text_store import TextStore

    settings = text_files.TextOptions(
        source=source, kind=kind, zone=zone, columns=read_columns(columns), date_order=date_order, known=known
    )
    with named_as_options():
        result = text_files.import_texts(TextStore(open_database()), file, settings)
    if json:
        print_json(to_plain(result))
        return
    _show_import(result, f"texts of {source}", result.coins, "coins")
    note(*result.notes)


def articles(
    coin: options.Coin,
    most: Annotated[int, Option(help="Pages to fetch at most.")] = 20,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Fetch the whole bodies of cut texts, where terms allow.

    Only from hosts that the settings name under `articles` with the licence that allows it, and that allow it by their
    robots.txt. None are named by default.
    """
    require(*PACKAGES, extra="oracle")
    import asyncio

    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.ingest.articles import fetch_articles
    from qubic_lab.oracle.model.coins import find_coin

    check_at_least("--most", most, 1)
    licences = read_config(config).articles
    if not licences:
        raise InputError(
            "no host is named under `articles` in the settings: name one with the licence that allows to keep its "
            "articles, such as articles: {blog.ethereum.org: CC0-1.0}"
        )
    found = asyncio.run(fetch_articles(open_database(), licences, find_coin(coin).id, most))
    if json:
        print_json(to_plain(found))
        return
    typer.echo(f"{found.found} of {found.cut} cut texts have their whole body now")
    if found.left:
        typer.echo(f"left: {counts_text(found.left)}")


def interval_text(interval_s: int) -> str:
    """Return the kind of a price series by the length of its bars."""
    return f"bars of {duration_text(interval_s)}" if interval_s else "quotes"


def _show_import(result: "BarImport | TextImport", what: str, counts: Mapping[str, int], counted: str) -> None:
    from qubic_lab.oracle.model.timestamps import iso

    typer.echo(
        f"{result.file}: {result.rows} rows, {what}, from {iso(result.from_us)} to {iso(result.to_us)}; "
        f"{result.added} are new in the database, {result.corrected} of them correct others; {result.known}"
    )
    if counts:
        typer.echo(f"{counted}: {counts_text(counts)}")


def audit(
    target: SignalFunction,
    data: Data,
    stamp: Stamp = "auto",
    zone: Zone = None,
    columns: Columns = None,
    interval: Interval = None,
    decimal: Decimal = "auto",
    date_order: DateOrder = "auto",
    duplicates: Duplicates = "last",
    taken: Taken = None,
    coin: DataCoin = "bitcoin",
    last: Annotated[int | None, Option(metavar="BARS", help="Use only the last bars.", show_default="all")] = None,
    cuts: Cuts = 32,
    seed: options.Seed = 0,
    time_limit: TimeLimit = "120",
    json: options.Json = False,
) -> None:
    """Check whether a signal function looks ahead.

    Shows where it does. The exit status is 1 if it does or cannot be trusted.
    """
    require(*AUDIT_PACKAGES, extra="oracle")
    from qubic_lab.oracle.backtest.lookahead import check_by_name
    from qubic_lab.oracle.ingest.bar_files import BarOptions, read_bars
    from qubic_lab.oracle.model.known import known_text
    from qubic_lab.oracle.model.records import bars_of_prices
    from qubic_lab.oracle.model.timestamps import now_us

    seconds = read_seconds("--time-limit", time_limit)
    check_at_least("--cuts", cuts, 1)
    if last is not None:
        check_at_least("--last", last, 1)
    reading = reading_of(stamp, zone, columns, interval, decimal, date_order, duplicates, taken)
    settings = BarOptions(coin=coin, **reading)
    with named_as_options():
        file = read_bars(data, settings, now_us())
    frame = bars_of_prices(file.prices[-last:] if last else file.prices, coin).frame()
    report = check_by_name(target, frame, cuts, seed, seconds)
    told = f"bars of the file: {known_text(0)}; if they were known later, this looks ahead"
    report = replace(report, notes=(*report.notes, told))
    if json:
        print_json(report.to_dict())
    else:
        note(*file.notes)
        show_audit(report)
    if not report.passed:
        raise typer.Exit(1)


def show_audit(report: "LookaheadReport") -> None:
    """Print what an audit found."""
    if report.findings:
        rows = [
            (each.kind, "leak" if each.leaks else "fault", "" if each.bar is None else str(each.bar), each.closed or "")
            for each in report.findings
        ]
        print_table(("kind", "is a", "first bar", "closed at"), rows)
        typer.echo("")
        for each in report.findings:
            typer.echo(each.text)
        typer.echo("")
    if report.lags:
        print_table(
            ("return of bar", *(f"{each.lag:+d}" if each.lag else "0" for each in report.lags)),
            [("rank correlation", *(f"{each.correlation:.3f}" for each in report.lags))],
        )
        error = report.lags[0].error
        typer.echo(f"standard error without skill: {error:.3f}; +1 is the first return that can be earned\n")
    if report.passed:
        typer.echo(str(report))
    else:
        typer.echo(f"{report.name} {'looks ahead' if report.leaks else 'cannot be trusted as it is'}")
    note(*report.notes)
