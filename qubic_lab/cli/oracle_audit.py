"""`qubic-lab oracle audit`: does a signal of one's own look ahead?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import file_options, options
from qubic_lab.cli.console import note, print_json, print_table, read_seconds, require
from qubic_lab.errors import check_at_least

if TYPE_CHECKING:
    from qubic_lab.oracle.backtest.lookahead.report import AuditReport

PACKAGES = ("arch", "pandas", "pandera", "pyarrow")


def audit(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="Takes a frame of bars, gives a number each.")
    ],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Bars: CSV, Parquet or an exchange's dump, also packed.")],
    stamp: file_options.Stamp = "auto",
    zone: file_options.Zone = None,
    columns: file_options.Columns = None,
    interval: file_options.Interval = None,
    decimal: file_options.Decimal = "auto",
    date_order: file_options.DateOrder = "auto",
    duplicates: file_options.Duplicates = "last",
    coin: Annotated[str, typer.Option(help="What the bars are of: tells which volume is which.")] = "bitcoin",
    last: Annotated[
        int | None, typer.Option(metavar="BARS", help="Only the last so many bars.", show_default="all")
    ] = None,
    cuts: Annotated[
        int,
        typer.Option(help="In how many places the future is cut off and changed; a look ahead at few bars needs many."),
    ] = 32,
    seed: Annotated[int, typer.Option(help="Of the places and of the changed values.")] = 0,
    time_limit: Annotated[
        str, typer.Option(metavar="SECONDS", help="The function's process ends after so long.")
    ] = "120",
    json: options.Json = False,
) -> None:
    """Tell whether a function looks ahead, where that first shows and how; exit status 1 where it does."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.backtest.lookahead.frames import prices_frame
    from qubic_lab.oracle.backtest.lookahead.process import audit_by_name
    from qubic_lab.oracle.ingest.files.bar_files import BarOptions, read_bars
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
    frame = prices_frame(file.prices[-last:] if last else file.prices)
    report = audit_by_name(target, frame, cuts, seed, seconds)
    if json:
        print_json(report.to_dict())
    else:
        for line in file.notes:
            note(line)
        show_audit(report)
    if not report.passed:
        raise typer.Exit(1)


def show_audit(report: "AuditReport") -> None:
    """Print what an audit found."""
    if report.findings:
        rows = [
            (each.kind, "leak" if each.leaks else "fault", "" if each.bar is None else str(each.bar), each.closed or "")
            for each in report.findings
        ]
        print_table(("kind", "is a", "first bar", "which closed"), rows)
        typer.echo("")
        for each in report.findings:
            typer.echo(each.text)
        typer.echo("")
    if report.lags:
        print_table(
            ("return of bar", *(f"{each.lag:+d}" if each.lag else "0" for each in report.lags)),
            [("rank correlation", *(f"{each.correlation:.3f}" for each in report.lags))],
        )
        typer.echo(f"error of each if there is none: {report.lags[0].error:.3f}; +1 is the first that can be earned\n")
    if report.passed:
        typer.echo(str(report))
    elif report.leaks:
        typer.echo(f"{report.name} looks ahead")
    else:
        typer.echo(f"{report.name} cannot be trusted as it is")
    for line in report.notes:
        note(line)
