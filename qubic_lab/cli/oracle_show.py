"""What `qubic-lab oracle …` prints for people: tables that read well on a terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from qubic_lab.cli.console import note, print_table
from qubic_lab.oracle.model.response import Missing

if TYPE_CHECKING:
    from qubic_lab.oracle.ingest.collector_status import CollectorStatus
    from qubic_lab.oracle.ingest.demo import DemoResult
    from qubic_lab.oracle.ingest.files.bar_files import ImportResult
    from qubic_lab.oracle.ingest.files.text_files import TextImport
    from qubic_lab.oracle.ingest.quality import QualityReport
    from qubic_lab.oracle.model.records import Series
    from qubic_lab.oracle.serving.responses import PriceAnalysis

Row = Sequence[str]


def show_demo(result: "DemoResult") -> None:
    """Print what a demo has added and what the database has now."""
    from qubic_lab.oracle.model.timestamps import iso

    added = ", ".join(f"{count} to {table}" for table, count in result.rows_added.items())
    typer.echo(f"rows added: {added}\n")
    header = ("coin", "source", "bars", "rows", "from", "to", "last", "24 h", "7 days", "age")
    rows: list[Row] = [
        (
            each.coin,
            each.source,
            _length(each.interval_s),
            str(each.rows),
            iso(each.first_us),
            iso(each.last_us),
            f"{each.last_close:.8g} {each.currency}",
            _change(each.change_24h_pct),
            _change(each.change_7d_pct),
            each.age,
        )
        for each in result.series
    ]
    print_table(header, rows)
    typer.echo("")
    print_table(
        ("texts from", "texts", ""),
        [(each.source, str(each.texts), "invented" if each.sample else "") for each in result.texts],
    )
    for line in result.notes:
        note(line)


def show_import(result: "ImportResult | TextImport") -> None:
    """Print what became of a file."""
    from qubic_lab.oracle.model.timestamps import iso

    series: Series | None = getattr(result, "series", None)
    what = f"{series.coin}, {_length(series.interval_s)}" if series else f"texts of {result.to_dict()['source']}"
    typer.echo(
        f"{result.file}: {result.rows} rows, {what}, from {iso(result.from_us)} to {iso(result.to_us)}; "
        f"{result.added} are new in the database, {result.corrected} of them correct others"
    )
    for name, counts in (("flags", getattr(result, "flags", {})), ("coins", getattr(result, "coins", {}))):
        if counts:
            typer.echo(f"{name}: {_counts(counts)}")
    if gaps := getattr(result, "gaps", 0):
        typer.echo(f"gaps: {gaps}, {getattr(result, 'missing', 0)} bars are missing")
    for line in result.notes:
        note(line)


def show_quality(report: "QualityReport") -> None:
    """Print how good each source's data are."""
    prices: list[Row] = [
        (
            *(each.coin, each.source, _length(each.interval_s), str(each.prices), str(each.corrections)),
            f"{100 * each.completeness.share:.2f} %",
            f"{each.completeness.gaps} (longest {_time(each.completeness.longest_gap_s)})",
            _time(each.age_s),
            f"{_time(each.lateness.median_s)} / {_time(each.lateness.p90_s)}",
            _counts(each.flags) or "none",
        )
        for each in report.prices
    ]
    texts: list[Row] = [
        (
            f"{each.source}{' (invented)' if each.sample else ''}",
            *(str(each.texts), str(each.corrections), f"{each.duplicates} ({100 * each.duplicate_share:.1f} %)"),
            *(str(each.without_coin), str(each.without_time), _time(each.age_s), _time(each.longest_gap_s)),
        )
        for each in report.texts
    ]
    fetches: list[Row] = [
        (each.source, str(each.ok), str(each.not_modified), str(each.failed), str(each.rows_added))
        for each in report.fetches
    ]
    late = "known late (half, 9 of 10)"
    for header, rows in (
        (("coin", "source", "bars", "prices", "corrections", "complete", "gaps", "age", late, "flags"), prices),
        (("texts from", "texts", "corrections", "repeat others", "no coin", "no time", "age", "longest gap"), texts),
        (("requests to", "answered", "unchanged", "failed", "new rows"), fetches),
    ):
        if rows:
            print_table(header, rows)
            typer.echo("")
    for line in report.notes:
        note(line)


def show_status(status: "CollectorStatus") -> None:
    """Print where the collector stands."""
    from qubic_lab.oracle.ingest.collector_status import tables
    from qubic_lab.oracle.ingest.leases import describe

    typer.echo(f"collector: {describe(status.held)}" if status.held else "collector: none is at work")
    for header, rows in tables(status):
        typer.echo("")
        print_table(header, rows)
    for line in status.left_out:
        note(line)


def _length(interval_s: int) -> str:
    return f"bars of {_time(interval_s)}" if interval_s else "quotes"


def _change(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:+.2f} %"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _time(seconds: float) -> str:
    """Return a length of time in its largest fitting unit."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= unit_s:
            amount = seconds / unit_s
            return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"
    return f"{seconds:.3g} s"


def show_analyses(found: Sequence["PriceAnalysis"], kept: Sequence[bool]) -> None:
    """Print analyses in short, and whether each was new."""
    header = ("coin", "frame", "bars up to", "close", "trend", "forecast, 80 % interval", "skill", "kept")
    print_table(header, [_analysis_row(each, new) for each, new in zip(found, kept, strict=True)])


def _analysis_row(analysis: "PriceAnalysis", new: bool) -> Row:

    if isinstance(analysis.analysed, Missing):
        return analysis.coin, analysis.frame, analysis.analysed.reason, *[""] * 4, "no"
    trend, forecasts = analysis.trend, analysis.forecasts
    told = [] if isinstance(forecasts, Missing) else list(forecasts.values())
    ahead = next((each for each in reversed(told) if not isinstance(each, Missing)), None)
    return (
        analysis.coin,
        analysis.frame,
        analysis.analysed.last,
        f"{analysis.last.price:.8g} {analysis.last.currency}",
        trend.reason if isinstance(trend, Missing) else trend.direction,
        "none" if ahead is None else f"{ahead.hours} h: {ahead.price:.8g} ({ahead.low:.8g} to {ahead.high:.8g})",
        "" if ahead is None or ahead.skill is None else f"{ahead.skill:+.1%}",
        "yes" if new else "it was",
    )
