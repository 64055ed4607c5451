"""`qubic-lab oracle …` as its users meet it: one object for what was asked, one line for what is wrong."""

import importlib.util
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Run
from fake_source.app import FakeConfig
from fake_source.reply import KEYS
from fake_source.server import collector_settings, running_source

from qubic_lab.cli import console

BARS = """time,open,high,low,close,volume
2026-11-01T00:00:00Z,100,110,95,105,3.5
2026-11-01T01:00:00Z,105,108,101,102,2
2026-11-01T02:00:00Z,102,104,99,103,1.25
"""
TEXTS = [
    {"id": "1", "title": "Bitcoin stands still", "body": "It did.", "published": "2026-11-01T00:00:00Z"},
    {"id": "2", "title": "Qubic moves", "body": "It did, too.", "published": "2026-11-01T01:00:00Z"},
]
ASKED_WRONGLY = [
    ("", "Missing command"),
    ("colect", "Did you mean 'collect'"),
    ("collect --config missing.yaml", r"missing\.yaml cannot be read"),
    ("collect --sources coingeko", "'coingeko'.*did you mean 'coingecko'"),
    ("collect --sources a,,b", "--sources is 'a,,b'"),
    ("collect --for never", "--for is 'never'"),
    ("risk", "Missing argument 'coin'"),
    ("risk bitcoyn", "unknown coin 'bitcoyn': did you mean 'bitcoin'"),
    ("risk bitcoin --frame 2h", "unknown frame '2h'"),
    ("risk bitcoin --as-of yesterday", "time 'yesterday' cannot be read"),
    ("risk bitcoin", "no price of bitcoin in usd is known"),
    ("alerts --last 0", "--last is 0"),
    ("alerts --check --config missing.yaml", r"missing\.yaml cannot be read"),
    ("import bars.csv", "Missing option '--coin'"),
    ("import bars.csv --coin BTC --map close", "--map is 'close': give OURS=THEIRS"),
    ("import bars.csv --coin BTC --stamp middle", "middle"),
    ("import bars.csv --coin BTC --decimal ;", "unknown decimal mark ';'"),
    ("import bars.csv --coin BTC --duplicates drop", "unknown rule for duplicates 'drop'"),
    ("import bars.csv --coin BTC --taken yesterday", "time 'yesterday' cannot be read"),
    ("import none.csv --coin BTC", r"none\.csv"),
    ("import-texts none.jsonl", r"none\.jsonl"),
    ("import-texts bars.csv --kind gossip", "gossip"),
]


def one_object(result: tuple[int, str, str]) -> dict[str, Any]:
    status, out, err = result
    assert status == 0, err
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(("command", "message"), ASKED_WRONGLY)
def test_what_is_asked_wrongly_is_told_in_one_line(oracle: Run, command: str, message: str) -> None:
    Path("bars.csv").write_text(BARS)
    assert re.search(message, oracle(command).failed(2))


def test_missing_packages_are_named_with_the_line_that_installs_them(
    oracle: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object:
        return None if name == "feedparser" else importlib.util.find_spec(name)

    monkeypatch.setattr(console, "find_spec", find)
    status, _, err = oracle("status")
    assert status == 1
    assert err == 'error: not installed: feedparser; remedy: pip install "qubic-lab[oracle]"\n'


def test_the_demo_fills_the_database_once(oracle: Run) -> None:
    first = one_object(oracle("demo --json"))
    assert first["rows_added"] == {"market_data": 8684 + 661, "news_data": 80, "total": 9425}
    assert {each["coin"] for each in first["overview"]["series"]} == {"bitcoin"}
    assert one_object(oracle("demo --json"))["rows_added"]["total"] == 0
    status, out, _ = oracle("demo")
    assert status == 0
    assert "rows added: 0 to market_data, 0 to news_data" in out
    assert "invented" in out
    analysed = one_object(oracle("analyse --coin BTC --json"))
    assert analysed["kept"] == 3 and [each["frame"] for each in analysed["analyses"]] == ["1h", "4h", "1d"]
    status, out, _ = oracle("analyse")
    assert status == 0 and out.count("| before |") == 3 and "| bitcoin |" in out


def test_files_are_imported_once_and_their_quality_told(oracle: Run) -> None:
    Path("bars.csv").write_text(BARS)
    Path("texts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in TEXTS))
    bars = one_object(oracle("import bars.csv --coin BTC --stamp open --source archive --json"))
    assert (bars["rows"], bars["added"], bars["from"]) == (3, 3, "2026-11-01T00:00:00Z")
    texts = one_object(oracle("import-texts texts.jsonl --source archive --json"))
    assert (texts["rows"], texts["added"]) == (2, 2)
    for command in ("import bars.csv --coin bitcoin --stamp open --source archive", "import-texts texts.jsonl"):
        status, out, err = oracle(command)
        assert status == 0, err
        assert " rows, " in out
    assert "0 are new" in oracle("import bars.csv --coin bitcoin --stamp open --source archive")[1]
    report = one_object(oracle("quality --source archive --json"))
    assert [each["prices"] for each in report["prices"]] == [3]
    assert [each["texts"] for each in report["texts"]] == [2]
    status, out, _ = oracle("quality")
    assert status == 0
    assert "| bitcoin | archive | bars of 1 h | 3 " in out


def test_a_bar_that_was_still_forming_is_not_imported(oracle: Run) -> None:
    command = "import bars.csv --coin BTC --stamp open"
    forming = "1 row(s) left out because the bar had not closed: line 4\n"
    now = datetime.now(UTC)
    opened = [now - timedelta(minutes=30 + 60 * hour) for hour in (2, 1, 0)]
    Path("bars.csv").write_text(BARS.splitlines()[0] + "".join(f"\n{at:%Y-%m-%dT%H:%M:00Z},1,1,1,1,1" for at in opened))
    Path("copy.csv").write_text(BARS)  # taken in the last bar, and written long after it
    status, out, err = oracle(command)
    assert (status, err) == (0, forming) and "2 are new" in out
    taken = "--taken 2026-11-01T02:30:00Z"
    copied = command.replace("bars.csv", "copy.csv")
    status, out, err = oracle(f"{copied} --source copy {taken}")
    assert (status, err) == (0, forming) and "2 are new" in out
    assert "3 are new" in oracle(f"{copied} --source whole --taken 2026-11-01T03:00:00Z")[1]
    early = oracle(f"{copied} {taken.replace('02:30', '00:30')}")[2]
    assert "2026-11-01T01:00:00Z is still to come: are --zone and --taken right?" in early


def test_what_a_file_leaves_open_is_asked_for_by_the_options_name_and_can_be_given(oracle: Run) -> None:
    """Each line names one more option; with all of them the file is read."""
    lines = "\n".join(f'0{day}/04/2021,"1,234","1,235","1,233","1,234"' for day in (1, 2, 3, 3))
    Path("open.csv").write_text(f'Date,Open,High,Low,Close\n{lines[:-2]}5"\n')
    command = "import open.csv --coin BTC --json"
    for asked, given in (
        ("--decimal", ","),
        ("--stamp", "open"),
        ("--date-order", "dmy"),
        ("--zone", "UTC"),
        ("--duplicates", "last"),
    ):
        status, _, err = oracle(command)
        assert status == 2 and f"give {asked}, " in err and "`" not in err, err
        command += f" {asked} {given}"
    found = one_object(oracle(command))
    assert (found["from"], found["prices"]) == ("2021-04-01T00:00:00Z", 3)
    Path("texts.csv").write_text("title,date\nBitcoin rises,03/04/2021 10:00Z\n")
    assert "give --date-order, dmy or mdy" in oracle("import-texts texts.csv")[2]
    assert one_object(oracle("import-texts texts.csv --date-order mdy --json"))["added"] == 1


def test_status_tells_jobs_quotas_and_what_is_left_out_before_anything_was_collected(oracle: Run) -> None:
    found = one_object(oracle("status --json"))
    assert found["collector"] is None
    assert {"prices", "history", "hacker-news"} <= {job["job"] for job in found["jobs"]}
    assert {(each["source"], each["limit"]) for each in found["quotas"]} >= {("coingecko", 10_000)}
    assert any("QUBIC_LAB_NEWSAPI_KEY" in line for line in found["left_out"])
    status, out, _ = oracle("status")
    assert (status, out.splitlines()[0]) == (0, "collector: not running")


def test_collect_does_what_is_due_and_says_what_came_of_it(oracle: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(f"QUBIC_LAB_{name.upper()}_KEY", key)
    config = FakeConfig()
    with running_source(config) as source:
        content = collector_settings(config, source.url) | {"coins": ["bitcoin"], "backfill_days": 1}
        Path("collector.yaml").write_text(yaml.safe_dump(content))
        told = one_object(oracle("collect --config collector.yaml --once --sources coingecko,feeds --json"))
        assert (told["failed"], told["troubles"]) == (0, {})
        assert told["added"] > 100
        status, out, err = oracle("collect --config collector.yaml --for 0.2 --score vader")
        assert status == 0
        assert int(re.search(r"(\d+) texts were scored", err)[1]) > 0
        again = one_object(oracle("score --model vader --coin bitcoin --json"))["coins"]["bitcoin"]
        assert again["scored"] == 0 < again["before"]
        _, _, err = oracle("collect --config collector.yaml --once --score vadr")
        assert "unknown model 'vadr': did you mean 'vader'" in err
        assert " requests, 0 of them failed; " in out
        checked = one_object(oracle("alerts --check --config collector.yaml --json"))
        assert (checked["alerts"], list(checked["check"]["unknown"])) == ([], ["bitcoin"]), "too few bars for a level"
        assert "no rule has a value" in checked["check"]["unknown"]["bitcoin"]
    found = one_object(oracle("status --config collector.yaml --json"))
    assert {"ok"} == {fetch["outcome"] for fetch in found["fetches"]}
    assert next(job for job in found["jobs"] if job["job"] == "history")["due"] is None
    assert not any(key in json.dumps(found) for key in KEYS.values())
