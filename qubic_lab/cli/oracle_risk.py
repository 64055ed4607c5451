"""`qubic-lab oracle risk` and `alerts`: the level of risk, what such warnings were worth, and the alerts so far."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, print_table, require, show_warnings
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import iso

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from qubic_lab.oracle.config import OracleConfig
    from qubic_lab.oracle.model.response import Frame
    from qubic_lab.oracle.risk.report import CurrentMeasure, CurrentRule, RiskReport, TailRisk

PACKAGES = ("aiolimiter", "arch", "pandas")


@contextmanager
def watching(engine: "Engine", settings: "OracleConfig", after: Callable[[], object]) -> Iterator[None]:
    """Watch the risk of the collected coins while the block runs, unless the settings turn alerts off.

    `after` is called after each check.
    """
    if not settings.risk.alerts:
        yield
        return
    from qubic_lab.oracle.alerts.delivery import webhook_from_settings
    from qubic_lab.oracle.alerts.watch import AlertWatch

    webhook, clock = webhook_from_settings(), settings.clock.now_us
    with AlertWatch(engine, settings, webhook, clock, after).running() as watch:
        yield
    if watch.emitted:
        note(f"{watch.emitted} new alerts of risk: see qubic-lab oracle alerts")


def risk(
    coin: Annotated[str, Argument(help="Its id, symbol or name, such as bitcoin or BTC.")],
    frame: Annotated[str, Option(help="Length of the bars: 1h, 4h or 1d.")] = "1h",
    as_of: Annotated[
        str | None, Option("--as-of", metavar="INSTANT", help="Use what was known then (ISO 8601).", show_default="now")
    ] = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Show the level of risk of a coin with its evidence.

    Also shows the risk of the next bar, and what such warnings were worth in the past.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.model.response import to_plain
    from qubic_lab.oracle.model.timestamps import read_iso
    from qubic_lab.oracle.risk.report import read_risk
    from qubic_lab.oracle.store.snapshot import MarketStore

    settings = read_config(config)
    at_us = None if as_of is None else read_iso(as_of)
    store = MarketStore(open_database(), settings.clock.now_us, settings.frequencies)
    found = read_risk(store.snapshot(at_us), coin, cast("Frame", frame), settings.sentiment, settings.risk.rules or ())
    if json:
        print_json(to_plain(found, {"age_s", "cache"}))
    else:
        show_risk(found)


def alerts(
    last: Annotated[int, Option(metavar="N", help="How many alerts to list.")] = 20,
    check: Annotated[bool, Option("--check", help="First check all coins, and send what is due.")] = False,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """List the alerts of risk, newest first.

    With --check it first checks all coins once, as the collector does.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.errors import check_range
    from qubic_lab.oracle.alerts.delivery import webhook_from_settings
    from qubic_lab.oracle.alerts.store import MOST_ALERTS, AlertStore
    from qubic_lab.oracle.alerts.watch import AlertWatch
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.model.response import to_plain

    check_range("--last", last, 1, MOST_ALERTS)
    engine = open_database()
    shown: dict[str, Any] = {}
    if check:
        show_warnings()
        settings = read_config(config)
        watch = AlertWatch(engine, settings, webhook_from_settings(), settings.clock.now_us)
        checked, done = watch.check(), watch.deliver()
        counts = {"told": len(checked.emitted), **vars(done)}
        shown["check"] = {"levels": checked.levels, "unknown": checked.unknown, **counts}
        if not json:
            rows = [*checked.levels.items(), *((coin, f"not known: {why}") for coin, why in checked.unknown.items())]
            print_table(("coin", "risk"), rows)
            sent = f"{done.sent} sent, {done.failed} given up, {done.waiting} wait for the next try"
            typer.echo(f"\n{len(checked.emitted)} new alerts; {sent}\n")
    found = AlertStore(engine).last(last)
    if json:
        print_json({"alerts": [to_plain(each) for each in found], **shown})
    elif not found:
        note("there are no alerts")
    else:
        listed = [
            (iso(each.made_us), each.state, str(each.attempts), each.kind, each.text, each.last_error or "")
            for each in found
        ]
        print_table(("made", "state", "attempts", "kind", "alert", "last error"), listed)


def show_risk(found: "RiskReport") -> None:
    """Print the risk of a coin."""
    if isinstance(found.analysed, Missing):
        typer.echo(f"{found.name}: risk is not known: {found.analysed.reason}")
        return
    bars = found.analysed
    level = found.level
    typer.echo(f"{found.name}, {level.text if not isinstance(level, Missing) else f'level not known: {level.reason}'}")
    gaps = f", {bars.missing} are missing" if bars.missing else ""
    typer.echo(
        f"{bars.bars} bars of {found.frame} from {bars.source}, {iso(bars.first_us)} to {iso(bars.last_us)}{gaps}\n"
    )
    print_table(
        ("rule", "level", "value", "watch", "warning", "alarm", "to the next level", "unit"),
        [_rule_row(name, each) for name, each in found.rules.items()],
    )
    typer.echo("")
    print_table(
        ("measure", "value", "of its past values below or equal", "unit"),
        [_measure_row(name, each) for name, each in found.measures.items()],
    )
    _show_tails(found)
    _show_record(found)


def _rule_row(name: str, rule: "CurrentRule | Missing") -> tuple[str, ...]:
    if isinstance(rule, Missing):
        return name, "not known", rule.reason, "", "", "", "", ""
    ahead = "" if rule.to_next is None else f"{rule.to_next:+.2f} to {rule.next_level}"
    value = "none" if math.isnan(rule.value) else f"{rule.value:.2f}"
    steps = (f"{each:g}" for each in (rule.watch, rule.warning, rule.alarm))
    return name, rule.level, value, *steps, ahead, rule.unit


def _measure_row(name: str, measure: "CurrentMeasure | Missing") -> tuple[str, ...]:
    if isinstance(measure, Missing):
        return name, "not known", measure.reason, ""
    value = "none" if measure.value is None else f"{measure.value:.2f}"
    place = "" if measure.percentile is None else f"{100 * measure.percentile:.0f} % of {measure.bars}"
    return name, value, place, measure.unit


def _show_tails(found: "RiskReport") -> None:
    volatility = found.volatility
    if not isinstance(volatility, Missing):
        both = {"GARCH, next bar": volatility.forecast, **volatility.realised}
        rows = [
            (name, "not known", each.reason)
            if isinstance(each, Missing)
            else (name, *_two(each.bar_pct, each.year_pct))
            for name, each in both.items()
        ]
        typer.echo("")
        print_table((f"volatility, {volatility.bars} bars", "of a bar", "of a year"), rows)
    typer.echo("")
    if isinstance(found.tails, Missing):
        typer.echo(f"loss of the next bar: not known: {found.tails.reason}")
        return
    header = ("loss of the next bar", "exceeded in", "value at risk", "shortfall", "past bars", "beyond", "rejected by")
    print_table(header, [_tail_row(each) for each in found.tails])


def _tail_row(tail: "TailRisk") -> tuple[str, ...]:
    verdict = ", ".join(tail.rejected_by) or "none" if not tail.not_tested else f"not tested: {tail.not_tested}"
    beyond = f"{tail.beyond} ({tail.expected:.1f} expected)"
    losses = _two(tail.value_at_risk_pct, tail.shortfall_pct)
    return tail.model, f"{100 * tail.probability:g} %", *losses, str(tail.tested), beyond, verdict


def _show_record(found: "RiskReport") -> None:
    if not isinstance(found.drawdown, Missing):
        fall = found.drawdown
        typer.echo(
            f"\n{fall.drawdown_pct:.2f} % below {fall.highest:.8g}, the highest close, of {iso(fall.highest_at_us)}"
        )
    record = found.record
    if isinstance(record, Missing):
        typer.echo(f"how good such warnings were is not known: {record.reason}")
        return
    typer.echo(f"\n{record.text}\n")
    rows = [
        (
            *(name, f"{each.right} of {each.warnings}", each.precision.shown(), f"{each.precision_by_chance:.2f}"),
            *(f"{each.found} of {each.falls}", each.recall.shown(), f"{each.recall_by_chance:.2f}"),
            *(each.false_alarms_a_month.shown(), each.lead_h.shown()),
        )
        for name, each in (("rules", record.ours), ("volatility alone", record.naive))
    ]
    header = ("warnings by", "right", "precision", "by chance", "found", "recall", "by chance")
    print_table((*header, "false a month", "lead, h"), rows)
    note(f"computed now by today's rules, from bars of {iso(record.start_us)} to {iso(record.end_us)}; it is no advice")


def _two(first: float, second: float) -> tuple[str, str]:
    return f"{first:.2f} %", f"{second:.2f} %"
