"""`qubic-lab oracle backtest`: a user's own signal, from its audit to the verdict."""

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options, oracle_files
from qubic_lab.cli.console import note, print_json, print_table, read_seconds, require
from qubic_lab.cli.oracle_files import AUDIT_PACKAGES, named_as_options, reading_of, show_audit
from qubic_lab.errors import check_at_least

if TYPE_CHECKING:
    from qubic_lab.studies.oracle_backtest import Family


def backtest(
    target: oracle_files.SignalFunction,
    data: oracle_files.Data,
    stamp: oracle_files.Stamp = "auto",
    zone: oracle_files.Zone = None,
    columns: oracle_files.Columns = None,
    interval: oracle_files.Interval = None,
    decimal: oracle_files.Decimal = "auto",
    date_order: oracle_files.DateOrder = "auto",
    duplicates: oracle_files.Duplicates = "last",
    taken: oracle_files.Taken = None,
    coin: oracle_files.DataCoin = "bitcoin",
    fee_bps: Annotated[float, Option(help="Fee of each trade, in basis points.")] = 10.0,
    half_spread_bps: Annotated[float, Option(help="Half of the spread, in basis points.")] = 2.0,
    ledger: Annotated[
        str, Option(metavar="URL", help="Another ledger; sqlite:// is one for this run.", show_default="of all runs")
    ] = "",
    cuts: oracle_files.Cuts = 32,
    seed: options.Seed = 0,
    time_limit: oracle_files.TimeLimit = "120",
    json: options.Json = False,
) -> None:
    """Audit your own signal, then backtest and judge it.

    The function gets a frame of bars and returns a weight for each, from -1 (short) to 1 (long). If it looks ahead,
    nothing is traded and the exit status is 1. Every trial goes into the ledger, and the verdict counts them all.
    """
    require(*AUDIT_PACKAGES, "scipy", extra="oracle")
    from qubic_lab.oracle.backtest.costs import Costs
    from qubic_lab.oracle.backtest.ledger import open_ledger
    from qubic_lab.studies.market_bars import load_bars
    from qubic_lab.studies.oracle_backtest import study_family, to_dict
    from qubic_lab.studies.own_signals import OwnSignal, audit_signal, load_strategy

    seconds = read_seconds("--time-limit", time_limit)
    check_at_least("--cuts", cuts, 1)
    costs = Costs(fee_bps=fee_bps, half_spread_bps=half_spread_bps)
    reading = reading_of(stamp, zone, columns, interval, decimal, date_order, duplicates, taken)
    with named_as_options():
        (bars,) = load_bars(str(data), coin, reading, join=False)
    report = audit_signal(target, bars, cuts=cuts, seed=seed, time_limit_s=seconds)
    if not report.passed:
        print_json({"audit": report.to_dict(), "family": None}) if json else show_audit(report)
        raise typer.Exit(1)
    with open_ledger(ledger) as opened:
        family = study_family(bars, opened, costs, signals=[OwnSignal(load_strategy(target), report)], seed=seed)
    if json:
        print_json({"audit": report.to_dict(), "family": to_dict(family)})
        return
    show_audit(report)
    _show_family(family)


def _show_family(family: "Family") -> None:
    from qubic_lab.runs.cells import format_column, heading
    from qubic_lab.studies.backtest_findings import findings
    from qubic_lab.studies.oracle_backtest import account_rows, notes

    rows = account_rows(family)
    cells = [format_column(name, [row[name] for row in rows]) for name in rows[0]]
    typer.echo("")
    print_table(tuple(map(heading, rows[0])), list(zip(*cells, strict=True)))
    recorded = family.tried[0].recorded
    new = "is new in" if recorded and recorded.new else "was already in"
    typer.echo(f"\nthe trial {new} the ledger, where {family.recorded} own signal(s) were tried on these bars")
    typer.echo(findings([family], collected=True)[1])
    note(*notes([family]))
