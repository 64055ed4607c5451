"""`qubic-lab oracle audit`: does a signal of your own look ahead?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import file_options, options
from qubic_lab.cli.console import note, print_json, print_table, read_seconds, require
from qubic_lab.errors import check_at_least

if TYPE_CHECKING:
    from qubic_lab.oracle.backtest.lookahead.check import LookaheadReport

PACKAGES = ("arch", "pandas", "pandera", "pyarrow")


def audit(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="Takes a frame of bars, returns a number for each.")
    ],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Bars: CSV, Parquet or an exchange's dump.")],
    stamp: file_options.Stamp = "auto",
    zone: file_options.Zone = None,
    columns: file_options.Columns = None,
    interval: file_options.Interval = None,
    decimal: file_options.Decimal = "auto",
    date_order: file_options.DateOrder = "auto",
    duplicates: file_options.Duplicates = "last",
    coin: Annotated[str, typer.Option(help="The coin that the bars are of: needed to tell volumes apart.")] = "bitcoin",
    last: Annotated[
        int | None, typer.Option(metavar="BARS", help="Use only this many of the last bars.", show_default="all")
    ] = None,
    cuts: Annotated[
        int,
        typer.Option(help="Places at which the future is cut off and changed; a leak at few bars needs many."),
    ] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the places and of the changed values.")] = 0,
    time_limit: Annotated[str, typer.Option(metavar="SECONDS", help="Stop the function after this time.")] = "120",
    json: options.Json = False,
) -> None:
    """Check whether a function looks ahead, and show where; exit status 1 if it does or cannot be trusted."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.backtest.lookahead.process import check_by_name
    from qubic_lab.oracle.ingest.files.bar_files import BarOptions, read_bars
    from qubic_lab.oracle.model.bars import Bars
    from qubic_lab.oracle.model.timestamps import now_us

    seconds = read_seconds("--time-limit", time_limit)
    check_at_least("--cuts", cuts, 1)
    if last is not None:
        check_at_least("--last", last, 1)
    settings = BarOptions(
        coin=coin,
        interval_s=interval,
        stamp=stamp,
        zone=zone,
        columns=file_options.read_columns(columns or ()),
        decimal=decimal,
        date_order=date_order,
        duplicates=duplicates,
    )
    with file_options.named_as_options():
        file = read_bars(data, settings, now_us())
    frame = Bars.of_prices(file.prices[-last:] if last else file.prices, coin).frame()
    report = check_by_name(target, frame, cuts, seed, seconds)
    if json:
        print_json(report.to_dict())
    else:
        for line in file.notes:
            note(line)
        show_audit(report)
    if not report.passed:
        raise typer.Exit(1)


def show_audit(report: "LookaheadReport") -> None:
    """Print a report."""
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
        typer.echo(
            f"standard error without skill: {report.lags[0].error:.3f}; +1 is the first return that can be earned\n"
        )
    if report.passed:
        typer.echo(str(report))
    elif report.leaks:
        typer.echo(f"{report.name} looks ahead")
    else:
        typer.echo(f"{report.name} cannot be trusted as it is")
    for line in report.notes:
        note(line)
