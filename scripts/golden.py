"""Compare what the project answers with golden files, or write these files again.

`--check` computes every value and prints the JSON paths at which it differs from its golden file; `--write` replaces
the golden files; `--week FILE` compares the week.json of another week with the sample week. Strings, keys and types
must be equal; floats may differ by a relative tolerance, so that other machines pass too.

Write a golden file again only together with a line in CHANGELOG.md that names the change.
"""

import argparse
import asyncio
import json
import math
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import redis

from qubic_lab.api.openai.embeddings import Embeddings
from qubic_lab.api.serve import create_app
from qubic_lab.cli.coordinator import make_votes
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.database import open_database
from qubic_lab.oracle.alerts.store import AlertStore, NewAlert
from qubic_lab.oracle.ingest.packaged import SAMPLE_TEXTS, run_demo
from qubic_lab.oracle.ingest.text_files import TextOptions, import_texts
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.sentiment.models import make_model
from qubic_lab.oracle.sentiment.scores import score_stored
from qubic_lab.oracle.serving.service import Oracle
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.week_report import WeekReport, read_week

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "golden"
SAMPLE_WEEK = ROOT / "reports" / "sample" / "week.json"
RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""Floats that differ by less are equal."""
FITTED = re.compile(r"\.(garch_ratio|tails\[\d+\]|volatility\.forecast)\.")
FITTED_RELATIVE, FITTED_ABSOLUTE = 0.01, 0.03
"""The same for what follows from a fitted GARCH model: its search ends elsewhere where sums are rounded elsewhere."""
SHOWN = 20
"""Number of differences that are printed."""
LONG = 6
"""A longer list of results, or of bars, is shortened to its length, its first two items and its last one."""

MINUTE_US, HOUR_US, DAY_US = 60_000_000, 3_600_000_000, 86_400_000_000
BARS_END, TEXTS_END = "2021-12-29T13:50:10+00:00", "2022-03-28T16:30:00+00:00"
"""When the packaged bars, and the sample texts, were loaded: right after the last of them."""
AT_BARS, AT_TEXTS = "2021-12-29T13:51:00Z", "2022-03-28T16:31:00Z"
"""The instants that requests name as `as_of`."""
NOW = "2022-03-28T16:40:00+00:00"
"""The time of the oracle's clock."""
COINS = ("bitcoin", "ethereum")
FRAMES, WINDOWS = ("1h", "4h", "1d"), ("1h", "24h", "7d")
WRONG: tuple[tuple[str, dict[str, str]], ...] = (
    ("sentiment", {}),
    ("sentiment", {"coin": "bitcoyn"}),
    ("sentiment", {"coin": "bitcoin", "window": "2h"}),
    ("sentiment", {"coin": "bitcoin", "windw": "1h"}),
    ("sentiment", {"coin": "bitcoin", "as_of": "yesterday"}),
    ("sentiment", {"coin": "bitcoin", "as_of": "2022-03-01T00:00:00"}),
    ("price_analysis", {"coin": "bitcoin", "as_of": "2022-03-28T16:40:00Z"}),
    ("price_analysis", {"coin": "bitcoin", "as_of": "1969-01-01T00:00:00Z"}),
    ("price_analysis", {"coin": "bitcoin", "as_of": "2021-12-29T00:00:00Z"}),
    ("price_analysis", {"coin": "solana"}),
    ("price_analysis", {"coin": "bitcoin", "frame": "2h"}),
    ("risk", {"coin": "bitcoin", "frame": "2h"}),
    ("risk", {"coin": "solana"}),
    ("market_overview", {"coins": "bitcoin,nonsense"}),
    ("market_overview", {"coins": ","}),
    ("prices", {"coin": "bitcoin", "limit": "0"}),
    ("prices", {"coin": "bitcoin", "source": "nobody"}),
    ("prices", {"coin": "bitcoin", "cursor": "5"}),
    ("prices", {"coin": "bitcoin", "start": "2021-11-02T00:00:00Z", "end": "2021-11-01T00:00:00Z"}),
    ("texts", {"coin": "bitcoin", "limit": "501"}),
    ("texts", {"coin": "bitcoin", "cursor": "1_2_3"}),
    ("alerts", {"coin": "bitcoyn"}),
    ("alerts", {"limit": "0"}),
)

MEASURED_STUDIES = ("split_strategies", "concurrency", "cluster")
"""Studies whose values are measured speeds: only their structure is compared between weeks."""
MEASURED = re.compile(r"seconds|tokens?_per_s|latency|_ms\b|_s\b|elapsed")
"""Names of values in other studies that are measured speeds."""

Json = Any
"""A value as `json.loads` returns it."""


def openapi() -> Json:
    """Return the OpenAPI document of a coordinator with votes and the oracle, without names and words."""
    document = described()
    schemas = document.pop("components")["schemas"]
    return _without_names(document, schemas)


def described() -> dict[str, Any]:
    """Return the whole OpenAPI document of a coordinator with votes and the oracle."""
    client = redis.Redis()
    coordinator = Coordinator(client, "unix:/nowhere")
    app = create_app(
        coordinator, votes=make_votes(coordinator), oracle=Oracle(open_database, client), embeddings=Embeddings()
    )
    return app.openapi()


def _without_names(node: Json, schemas: Json) -> Json:
    """Return a part of an OpenAPI document with its schemas in place, without their names, descriptions and examples.

    What a client sends and receives stays; words and class names may change.
    """
    if isinstance(node, list):
        return [_without_names(each, schemas) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _without_names(schemas[node["$ref"].rpartition("/")[2]], schemas)
    words = ("title", "description", "summary", "operationId", "discriminator")
    kept = {name: each for name, each in node.items() if name not in words or not isinstance(each, str)}
    kept.pop("example", None)
    if isinstance(required := kept.get("required"), list):
        kept["required"] = sorted(required)
    return {name: _without_names(each, schemas) for name, each in kept.items()}


def oracle_routes() -> Json:
    """Return the replies of all oracle routes at fixed instants of a demo database, by request."""
    with tempfile.TemporaryDirectory(prefix="golden-", dir="/tmp") as name, _demo_app(Path(name)) as (oracle, client):
        return asyncio.run(_ask_all(oracle, client))


@contextmanager
def _demo_app(folder: Path) -> Iterator[tuple[Oracle, redis.Redis]]:
    """Yield an oracle, whose clock stands still, on a demo database with the same content in each run.

    Beside the packaged prices and sample texts it holds synthetic prices of a second coin, the sample texts once more
    from a source that does not count as a sample, their scores, a corrected price, a fetch and an alert.
    """
    bars_us, texts_us, now = _to_us(BARS_END), _to_us(TEXTS_END), _to_us(NOW)
    engine = open_database(f"sqlite:///{folder / 'lab.db'}")
    import_texts(TextStore(engine, lambda: bars_us - MINUTE_US), SAMPLE_TEXTS, TextOptions(source="archive"))
    run_demo(engine, lambda: bars_us)
    PriceStore(engine, lambda: bars_us).add(Series("ethereum", "exchange", 3_600), _random_bars(bars_us, 90))
    quotes = _random_quotes(texts_us, 31)
    PriceStore(engine, lambda: texts_us).add(Series("ethereum", "coingecko"), quotes)
    for coin in COINS:
        score_stored(TextStore(engine, lambda: texts_us), make_model("crypto-lexicon"), coin)
    alert = NewAlert("raised", "alarm", bars_us, texts_us, {"text": "risk rose", "evidence": ["fall"], "price": 1.5})
    AlertStore(engine, lambda: texts_us).emit("ethereum", "1h", lambda *before: [alert])
    corrected = Price(quotes[-1].opened_us, quotes[-1].closed_us, quotes[-1].close * 1.01)
    PriceStore(engine, lambda: now - 5 * MINUTE_US).add(Series("ethereum", "coingecko"), [corrected])
    FetchLog(engine).record(Fetch("coingecko", "prices", "GET /prices", now - MINUTE_US, 0.5, 1, 200, "ok", None, 3, 1))
    with RedisServer(folder / "redis") as server, connect(server.url) as client:
        yield Oracle(lambda: engine, client, lambda: now, limits={"coingecko": {"day": 300}}), client
    engine.dispose()


def _random_bars(end_us: int, days: int) -> list[Price]:
    """Return bars of an hour with volume, up to the last full hour."""
    random_numbers, close, bars = random.Random(9), 4_000.0, []
    end = end_us - end_us % HOUR_US
    for opened in range(end - days * DAY_US, end, HOUR_US):
        start, close = close, close * (1.0 + random_numbers.gauss(0.0, 0.008))
        high, low = max(start, close) * (1.0 + random_numbers.random() / 200), min(start, close) * 0.998
        volume = random_numbers.lognormvariate(8.0, 0.6)
        bars.append(Price(opened, opened + HOUR_US, close, start, high, low, volume))
    return bars


def _random_quotes(end_us: int, days: int) -> list[Price]:
    """Return quotes of every five minutes, with some large moves."""
    random_numbers, price, quotes = random.Random(9), 3_000.0, []
    for at in range(end_us - days * DAY_US, end_us, 5 * MINUTE_US):
        price *= 1.0 + random_numbers.gauss(0.0, 0.006 if random_numbers.random() < 0.02 else 0.002)
        volume = 1e9 * (1.0 + random_numbers.random())
        quotes.append(Price(at, at, price, volume_24h=volume, market_cap=price * 1.2e8))
    return quotes


def _to_us(instant: str) -> int:
    return (datetime.fromisoformat(instant) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _requests() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the route and the parameters of each request."""
    for as_of in (AT_BARS, AT_TEXTS):
        for coin in COINS:
            of_coin = {"coin": coin, "as_of": as_of}
            yield from (("sentiment", of_coin | {"window": window}) for window in WINDOWS)
            yield from ((route, of_coin | {"frame": frame}) for frame in FRAMES for route in ("price_analysis", "risk"))
            yield from ((route, of_coin | {"limit": "3"}) for route in ("prices", "texts"))
        yield "market_overview", {"as_of": as_of}
        yield "alerts", {"as_of": as_of}
    yield "sentiment", {"coin": "ETH"}
    yield "price_analysis", {"coin": "ETH", "frame": "4h"}
    yield "risk", {"coin": "ETH"}
    yield "market_overview", {}
    yield "market_overview", {"coins": "BTC,eth,solana"}
    yield "prices", {"coin": "ethereum", "limit": "2"}
    yield "prices", {"coin": "bitcoin", "interval_s": "86400", "limit": "2"}
    yield "prices", {"coin": "ethereum", "source": "exchange", "start": "2021-12-01T00:00:00Z", "limit": "2"}
    yield "texts", {"coin": "bitcoin", "start": "2022-03-01T00:00:00Z", "limit": "2"}
    yield "texts", {"coin": "bitcoin", "start": "2022-03-01T00:00:00Z", "limit": "2", "duplicates": "true"}
    yield "alerts", {"coin": "ethereum"}
    yield "status", {}
    yield from WRONG


async def _ask_all(oracle: Oracle, client: redis.Redis) -> Json:
    app = create_app(Coordinator(client, "unix:/nowhere"), oracle=oracle)
    replies: dict[str, Json] = {}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost/api/oracle/") as http:
        for route, parameters in _requests():
            reply = replies[f"{route}?{urlencode(parameters)}"] = await _ask(http, route, parameters)
            cursor = reply["body"].get("next_cursor")
            if cursor and "as_of" not in parameters:  # the second page of those without a fixed instant is enough
                replies[f"{route}?{urlencode(parameters)}&cursor"] = await _ask(
                    http, route, parameters | {"cursor": cursor}
                )
    await oracle.close()
    return replies


async def _ask(http: httpx2.AsyncClient, route: str, parameters: dict[str, str]) -> Json:
    """Return status and body of a reply, without the age and cache state of the whole answer."""
    reply = await http.get(route, params=parameters)
    body = {name: value for name, value in reply.json().items() if name not in ("age_s", "cache")}
    # A score's key has the versions of packages and word lists.
    return {
        "status": reply.status_code,
        "body": _shortened(json.loads(re.sub(r"@[\w.-]+", "@version", json.dumps(body)))),
    }


def sample_week() -> Json:
    """Return the values of the sample week, its acceptance rows judged again."""
    return week_values(read_week(SAMPLE_WEEK))


def week_values(week: WeekReport) -> Json:
    """Return what a week says, without times, ids and pictures: rows, findings, tables, measures and results."""
    names = {run.name: run.study for run in week.runs}
    rows = [asdict(row) for row in judge({run.name: run.records for run in week.runs if run.error is None})]
    for row in rows:
        row["run"] = names.get(row["run"])
    studies = {
        run.study: {
            "title": run.title,
            "parameters": run.manifest.parameters if run.manifest else None,
            "error": run.error,
            "findings": list(map(str, run.records.findings)),
            "pictures": {each.name: each.caption for each in run.records.pictures},
            "tables": [_shortened(asdict(each)) for each in run.records.tables],
            "measures": [asdict(each) for each in run.records.measures],
            "results": _shortened(dict(run.records.results)),
        }
        for run in week.runs
    }
    changes = [{"measure": each.measure, "unit": each.unit, "better": each.better} for each in week.changes]
    return _plain({"rows": rows, "studies": studies, "changes": changes})


def _shortened(value: Json) -> Json:
    """Return a value whose long lists are replaced by their length, first two items and last one."""
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        kept = [_shortened(each) for each in value]
        return {"length": len(kept), "first": kept[:2], "last": kept[-1]} if len(kept) > LONG else kept
    return value


def bench_backtest() -> Json:
    """Return what `qubic-lab bench backtest --null 200 --seed 9` finds, without speeds and the machine's name."""
    command = (sys.executable, "-m", "qubic_lab.cli.main", "bench", "backtest", "--null", "200", "--seed", "9")
    done = subprocess.run((*command, "--json"), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    volatile = ("speed", "within_limits", "processes", "seconds", "machine", "commit")
    return {name: value for name, value in json.loads(done.stdout).items() if name not in volatile}


GOLDEN: dict[str, Callable[[], Json]] = {
    "openapi": openapi,
    "oracle_routes": oracle_routes,
    "sample_week": sample_week,
    "bench_backtest": bench_backtest,
}
"""What computes each golden file's value, by its name."""


def check(name: str) -> list[str]:
    """Return the differences between a golden file and what is computed now."""
    return differences(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), _plain(GOLDEN[name]()))


def write(name: str) -> None:
    """Write a golden file: sorted keys, short values on one line."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(_to_text(_plain(GOLDEN[name]())) + "\n", encoding="utf-8")


def _plain(value: Json) -> Json:
    return json.loads(json.dumps(value))


def _to_text(value: Json, indent: str = "") -> str:
    """Return JSON with sorted keys; what fits on a line stays on one, so that files are short and diffs readable."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(indent) + len(line) <= 200:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(name)}: {_to_text(value[name], inner)}" for name in sorted(value)]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{inner}{_to_text(each, inner)}" for each in value) + f"\n{indent}]"


def differences(old: Json, new: Json, path: str = "$", ignore: Callable[[str], bool] = lambda path: False) -> list[str]:
    """Return one line for each place where two JSON values differ, with the old and the new value.

    Args:
        old: the golden value.
        new: the value to compare with it.
        path: the place of both.
        ignore: whether two values of one type at this path count as equal whatever they are.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in _of_member(
                old, new, name, f"{path}.{name}" if name.isidentifier() else f"{path}[{name!r}]", ignore
            )
        ]
    if isinstance(old, list) and isinstance(new, list):
        found = [] if len(old) == len(new) or ignore(path) else [f"{path}: length {len(old)} is now {len(new)}"]
        pairs = zip(old, new, strict=False)
        return found + [x for n, (a, b) in enumerate(pairs) for x in differences(a, b, f"{path}[{n}]", ignore)]
    if isinstance(old, float) and isinstance(new, (float, int)) and not isinstance(new, bool):
        fitted = FITTED.search(path)
        relative, absolute = (FITTED_RELATIVE, FITTED_ABSOLUTE) if fitted else (RELATIVE, ABSOLUTE)
        if math.isclose(old, new, rel_tol=relative, abs_tol=absolute):
            return []
    elif old == new and isinstance(old, type(new)):
        return []
    return [] if ignore(path) else [f"{path}: {_short(old)} is now {_short(new)}"]


def _of_member(old: Json, new: Json, name: str, path: str, ignore: Callable[[str], bool]) -> list[str]:
    if name not in new:
        return [f"{path}: {_short(old[name])} is missing now"]
    if name not in old:
        return [f"{path}: {_short(new[name])} is new"]
    return differences(old[name], new[name], path, ignore)


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}…"


def _is_measured(path: str) -> bool:
    """Return whether the value at a path of a week is a measured speed, or names one."""
    study = re.match(r"\$\.studies\.(\w+)", path)
    if study is None:
        return re.search(r"\.(measured|reason|verdict)$", path) is not None
    names_structure = re.search(r"\.(name|unit|better|columns\[\d+\]|title|caption)$", path) is not None
    return not names_structure and (study[1] in MEASURED_STUDIES or MEASURED.search(path) is not None)


def check_week(file: Path) -> list[str]:
    """Return the differences between the sample week and another week, without measured speeds.

    Raises:
        InputError: the file holds no readable week.
    """
    golden = json.loads((FOLDER / "sample_week.json").read_text(encoding="utf-8"))
    return differences(golden, week_values(read_week(file)), ignore=_is_measured)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare golden files with what is computed now")
    action.add_argument("--write", action="store_true", help="replace golden files by what is computed now")
    action.add_argument("--week", metavar="FILE", type=Path, help="compare another week.json with the sample week")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(GOLDEN)}; by default all")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in GOLDEN]:
        parser.error(f"unknown golden file {unknown[0]!r}: known: {', '.join(GOLDEN)}")
    failed = False
    for name in arguments.names or GOLDEN if arguments.week is None else ("sample_week",):
        if arguments.write:
            write(name)
            continue
        found = check(name) if arguments.week is None else check_week(arguments.week)
        failed |= bool(found)
        print(f"{name}: {f'{len(found)} differences' if found else 'equal'}")
        for line in found[:SHOWN]:
            print(f"  {line}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
