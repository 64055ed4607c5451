"""Files of prices and texts are read right, or refused in one line that names the file, the line and the remedy."""

import gzip
import itertools
import json
import os
import zipfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.bar_files import STAMPS, BarFile, BarOptions, import_bars, read_bars
from qubic_lab.oracle.ingest.file_columns import decimal_mark, read_number, read_stamps
from qubic_lab.oracle.ingest.packaged import DATASETS, read_packaged
from qubic_lab.oracle.ingest.text_files import TextOptions, read_texts
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, read_iso, to_us
from qubic_lab.oracle.store.price_store import PriceStore

NOW = read_iso("2026-11-24T12:00:00Z")
START = read_iso("2021-09-27T14:00:00Z")
HEADER = "Time,Open,High,Low,Close,Volume\n"
FORMING = "row(s) left out because the bar had not closed"
REPEATED = "row(s) left out for another of the same time"


def row(number: int, form: str = "%Y-%m-%d %H:%M:%SZ", **changed: object) -> str:
    """Return a line of an hourly bar; the price differs from hour to hour."""
    at = datetime.fromtimestamp(START / SECOND_US, UTC) + timedelta(hours=number)
    price = 40_000.0 + number
    prices = {"o": price, "h": price + 2, "l": price - 2, "c": price + 1}
    cells: dict[str, object] = {"time": at.strftime(form), **prices, "v": 5}
    return ",".join(str(cell) for cell in (cells | changed).values()) + "\n"


def hours(count: int = 6, **changed: object) -> str:
    return HEADER + "".join(row(number, **changed) for number in range(count))


def days(*stamps: str, names: str = "Date,Open,High,Low,Close") -> str:
    """Return bars that are all alike, at some dates or times."""
    return f"{names}\n" + "".join(f"{stamp},10,12,9,11\n" for stamp in stamps)


def read(folder: Path, text: str | bytes, name: str = "btc.csv", now: int = NOW, **options: Any) -> BarFile:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_bars(file, BarOptions(**({"coin": "BTC", "stamp": "open"} | options)), now)


def refused(folder: Path, text: str | bytes, name: str = "btc.csv", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, name, **options)
    message = str(caught.value)
    assert name in message and "\n" not in message
    return message


def opens(file: BarFile) -> list[int]:
    return [(price.opened_us - START) // HOUR_US for price in file.prices]


def test_a_plain_file_is_read_to_the_last_bit(tmp_path: Path) -> None:
    texts = ["0.1", "1e-06", "0.0000010000000000000001", "123456.78901234567"]
    lines = "".join(f"{number * 3600 + 1_600_000_000},{t},{t},{t},{t},{t}\n" for number, t in enumerate(texts))
    file = read(tmp_path, HEADER + lines)
    assert [price.close for price in file.prices] == [float(text) for text in texts]
    assert [price.volume for price in file.prices] == [float(text) for text in texts]
    first = file.prices[0]
    assert (first.opened_us, first.closed_us) == (1_600_000_000 * SECOND_US, 1_600_003_600 * SECOND_US)
    assert (file.series.coin, file.series.source, file.series.interval_s) == ("bitcoin", "file", 3600)
    assert (file.rows, file.gaps, file.notes) == (4, 0, ())


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_numbers_are_the_doubles_that_their_texts_name(number: float) -> None:
    assert read_number(repr(number)) == number
    assert read_number(f"{number:.25e}") == float(f"{number:.25e}")
    assert read_number(repr(number).replace(".", ","), ",") == number


def test_numbers_are_read_as_people_write_them_and_what_is_none_is_not_guessed() -> None:
    for text in ("1,234.5", "1'234.5", "$1,234.50", "1.2345K", "0.0012345M"):
        assert read_number(text) == 1234.5, text
    for text in ("1.234,5", "1\u202f234,5"):
        assert read_number(text, ",") == 1234.5, text
    assert read_number("1.234.567,5", ",") == read_number("1,234,567.5") == -read_number("\u22121,234,567.5")
    for text in ("1,23,456", "1_000", "12 or so", "0x10", "1,2345.6", "inf", "1.2.3"):
        with pytest.raises(ValueError, match="no number"):
            read_number(text)


def test_the_decimal_mark_is_seen_or_asked_for() -> None:
    columns = (["1.5", "1,234.5"], ["1,234", "2,345.5"], ["1,5", "1.234,5"], ["0,123"])
    assert [decimal_mark(texts, "f") for texts in columns] == [".", ".", ",", ","]
    for texts, why in ((["1,234"], "give `decimal`"), (["1,5", "1.55"], "make them alike")):
        with pytest.raises(InputError, match=why):
            decimal_mark(texts, "f")


@pytest.mark.parametrize(
    ("text", "zone", "instant"),
    [
        ("2021-09-27T14:45:00+01:00", None, "2021-09-27T13:45:00Z"),
        ("2021-09-27 14:45:00.123456Z", None, "2021-09-27T14:45:00.123456Z"),
        ("2021-09-27 02-PM", "UTC", "2021-09-27T14:00:00Z"),
        ("2021-09-27 12-AM", "UTC", "2021-09-27T00:00:00Z"),
        ("09/27/2021 03:15 PM", "UTC", "2021-09-27T15:15:00Z"),
        ("27/09/2021 12:15 p.m.", "UTC", "2021-09-27T12:15:00Z"),
        ("03.04.2021 10:00", "Europe/Berlin", "2021-04-03T08:00:00Z"),
        ("Sep 27, 2021", "UTC", "2021-09-27T00:00:00Z"),
        ("27-Sep-21", "UTC", "2021-09-27T00:00:00Z"),
        ("Mon, 27 Sep 2021 14:00:00 GMT", None, "2021-09-27T14:00:00Z"),
        ("20210927150000", "UTC", "2021-09-27T15:00:00Z"),
        ("2021.09.27 15:00", "+02:00", "2021-09-27T13:00:00Z"),
        ("2021-09-27", "America/New_York", "2021-09-27T04:00:00Z"),
        ("1632753900", None, "2021-09-27T14:45:00Z"),
        ("1632753900000", None, "2021-09-27T14:45:00Z"),
        ("1632753900000001", None, "2021-09-27T14:45:00.000001Z"),
        ("1632753900000001999", None, "2021-09-27T14:45:00.000001Z"),
        (1632753900, None, "2021-09-27T14:45:00Z"),
        (1632753900000.0, None, "2021-09-27T14:45:00Z"),
        (datetime(2021, 9, 27, 14, 45, tzinfo=timezone(timedelta(hours=1))), None, "2021-09-27T13:45:00Z"),
    ],
)
def test_times_as_files_write_them(text: object, zone: str | None, instant: str) -> None:
    assert iso(read_stamps([text], ["f:1"], zone)[0]) == instant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2021-09-27 14:45", "has no zone: give `zone`"),
        ("2021-09-27 15:15 PM", "hour 15 on a clock of 12 hours"),
        ("2021-02-29 00:00Z", "cannot be read"),
        ("2021-09-27 24:00Z", "cannot be read"),
        ("2021-09-27 14:00 EST", "cannot be read"),
        ("03/04/2021 10:00Z", "give `date_order`"),
        ("1.63275E+12", "cut its digits off"),
        ("yesterday", "give it as in"),
        ("", "it is empty"),
    ],
)
def test_times_that_could_mean_something_else_are_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        read_stamps([text], ["btc.csv:7"], None)
    assert str(caught.value).startswith("btc.csv:7: ")


@settings(max_examples=60)
@given(st.integers(0, 4_000_000_000), st.sampled_from(["Europe/London", "America/New_York", "Asia/Kolkata", "UTC"]))
def test_any_instant_survives_a_12_hour_clock_of_any_zone(second: int, zone: str) -> None:
    local = datetime.fromtimestamp(second + 200_000_000, ZoneInfo(zone))
    text = local.strftime("%d %b %Y %I:%M:%S %p ") + local.strftime("%z")
    assert read_stamps([text], ["f:1"], None) == [to_us(local)]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("step_minutes", [15, 60])
@pytest.mark.parametrize("zone", ["Europe/London", "America/New_York"])
def test_an_hour_that_the_clock_shows_twice_is_told_apart_by_the_order(
    zone: str, step_minutes: int, backwards: bool
) -> None:
    first = read_iso("2021-10-30T00:00:00Z")
    instants = [first + number * step_minutes * MINUTE_US for number in range(10 * 24 * 60 // step_minutes)]
    local = [datetime.fromtimestamp(at / SECOND_US, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M") for at in instants]
    assert len(set(local)) < len(local)
    order = slice(None, None, -1 if backwards else 1)
    assert read_stamps(local[order], ["f:1"] * len(local), zone) == instants[order]


def test_texts_are_in_no_order_that_tells_passes_apart(tmp_path: Path) -> None:
    file = tmp_path / "posts.csv"
    file.write_text("text,date\nBTC up,2021-10-31 01:50\nBTC down,2021-10-31 01:10\n")
    with pytest.raises(InputError, match=r"posts\.csv:2: the clocks of Europe/London skip 2021-10-31 01:50"):
        read_texts(file, TextOptions(zone="Europe/London"), NOW)
    texts = read_texts(file, TextOptions(zone="UTC"), NOW).texts
    assert [iso(text.published_us or 0)[11:16] for text in texts] == ["01:10", "01:50"]


def test_an_hour_that_is_there_once_or_never_is_refused() -> None:
    once = [f"2021-10-31 {hour:02}:{minute:02}" for hour in range(4) for minute in (0, 30)]
    with pytest.raises(InputError, match=r"f:3: the clocks .* show it twice and the file does not: convert"):
        read_stamps(once, [f"f:{number}" for number in range(1, 9)], "Europe/London")
    with pytest.raises(InputError, match=r"f:1: the clocks of Europe/London skip 2021-03-28 01:30"):
        read_stamps(["2021-03-28 01:30"], ["f:1"], "Europe/London")


def test_cryptodatadownload_with_units_of_volumes_descending_and_mixed_epochs(tmp_path: Path) -> None:
    header = "unix,date,symbol,open,high,low,close,Volume BTC,Volume USD\n"
    lines = []
    for number in range(5):
        second = START // SECOND_US + 3600 * number
        stamp = second if number < 3 else second * 1000  # the publisher changed the unit in the middle
        lines.append(f"{stamp},2021-09-27 0{number}:00:00,BTC/USD,10,12,9,11,0.5,5.5\n")
    text = "https://www.CryptoDataDownload.com\n\n" + header + "".join(reversed(lines[1:])) + header + lines[0]
    file = read(tmp_path, text)
    assert opens(file) == [0, 1, 2, 3, 4]
    assert {price.volume for price in file.prices} == {0.5}
    for told in (
        "columns not used: date, symbol",
        "volumes in the currency left out",
        "1 banner line(s) before the header skipped",
        "1 repeated header(s) skipped",
    ):
        assert any(told in note for note in file.notes), told


def test_zones_may_differ_from_row_to_row_but_none_may_be_missing(tmp_path: Path) -> None:
    mixed = HEADER + row(0) + "2021-09-27 16:00:00+01:00,1,2,1,2,1\n2021-09-27T11:00:00-05:00,1,2,1,2,1\n"
    assert opens(read(tmp_path, mixed)) == [0, 1, 2]
    naive = mixed + row(3, "%Y-%m-%d %H:%M:%S")
    assert refused(tmp_path, naive) == (
        "btc.csv:5: time '2021-09-27 17:00:00' has no zone, though 3 others have one: give `zone`, such as UTC"
    )
    assert opens(read(tmp_path, naive, zone="UTC")) == [0, 1, 2, 3]
    assert opens(read(tmp_path, naive.replace("Time,", "Time (UTC),"))) == [0, 1, 2, 3]


def test_gaps_stay_and_are_reported(tmp_path: Path) -> None:
    text = HEADER + row(0) + row(1) + row(5) + row(6, o="null", h="", l="NaN", c="-", v="0") + row(7) + row(8)
    file = read(tmp_path, text)
    assert opens(file) == [0, 1, 5, 7, 8]
    assert (file.gaps, file.missing, file.rows) == (2, 4, 6)
    assert file.notes == ("1 row(s) without prices left out as gaps",)


@pytest.mark.parametrize("stamp", ["open", "close"])
def test_a_bar_that_has_not_closed_is_left_out(tmp_path: Path, stamp: str) -> None:
    text, shift = hours(6), HOUR_US if stamp == "close" else 0
    now = START + 5 * HOUR_US + 30 * MINUTE_US - shift
    file = read(tmp_path, text, now=now, stamp=stamp)
    assert [price.opened_us + shift for price in file.prices] == [START + number * HOUR_US for number in range(5)]
    assert any("had not closed: line 7" in note for note in file.notes)
    assert len(read(tmp_path, text, now=now + 30 * MINUTE_US, stamp=stamp).prices) == 6
    assert len(read(tmp_path, text, stamp=stamp, taken=iso(now)).prices) == 5
    with pytest.raises(InputError, match=r"btc\.csv:7: .* is still to come"):
        read(tmp_path, text, now=now - HOUR_US, stamp=stamp)


def test_a_bar_within_which_the_file_was_written_had_not_closed(tmp_path: Path) -> None:
    file = tmp_path / "btc.csv"
    file.write_text(hours(6))
    for written, kept in ((START + 5 * HOUR_US + MINUTE_US, 5), (START + 6 * HOUR_US, 6), (315_532_800 * SECOND_US, 6)):
        os.utime(file, ns=(written * 1000, written * 1000))
        assert len(read_bars(file, BarOptions("BTC", stamp="open"), NOW).prices) == kept


def test_the_price_of_the_moment_shows_that_the_bar_before_it_was_forming(tmp_path: Path) -> None:
    now = "2021-09-27 17:46:02Z,1,1,1,1,0\n"
    file = read(tmp_path, hours(4) + now)
    assert (opens(file), file.notes) == ([0, 1, 2], (f"2 {FORMING}: line 5, 6",))
    overlapping = hours(4) + now + "".join(row(number) for number in range(2, 8))
    file = read(tmp_path, overlapping)
    assert opens(file) == list(range(8))
    assert f"2 {FORMING}: line 5, 6" in file.notes and f"1 {REPEATED}" in file.notes
    assert "off the grid of 3600 s" in refused(tmp_path, hours(4) + now + row(4) + row(5))
    drifting = hours(5) + "".join(row(number, "%Y-%m-%d %H:30:00Z") for number in range(5, 9))
    assert "btc.csv:7: 2021-09-27T19:30:00Z is off the grid" in refused(tmp_path, drifting)


def test_all_missing_options_are_asked_for_at_once(tmp_path: Path) -> None:
    text = 'Time,Close,Open,High,Low,Volume\n03/04/2021 10:00,5,5,6,4,"1,234"\n03/04/2021 10:00,6,5,6,4,"1,234"\n'
    said = refused(tmp_path, text, stamp="auto")
    for option in ("stamp", "zone", "date_order", "decimal", "duplicates", "interval"):
        assert said.count(f"give `{option}`") == 1, option
    assert "\n" not in said
    options = {"stamp": "open", "zone": "UTC", "date_order": "dmy", "decimal": ".", "duplicates": "last"}
    assert len(read(tmp_path, text, interval_s=3_600, **options).prices) == 1


def test_whether_times_are_opens_or_closes_is_known_or_asked_for(tmp_path: Path) -> None:
    assert refused(tmp_path, hours(), stamp="auto") == (
        "btc.csv: 'Time' may be when a bar opens or closes: give `stamp`, open or close"
    )
    named = hours().replace("Time,", "Close time,")
    assert read(tmp_path, named, stamp="auto").prices[0].closed_us == START
    last_moment = named.replace(":00:00Z", ":59:59.999Z")
    assert read(tmp_path, last_moment, stamp="auto").prices[0].closed_us == START + HOUR_US
    assert read(tmp_path, hours().replace("Time,", "Open time,"), stamp="auto").prices[0].opened_us == START


@pytest.mark.parametrize("unit", [1_000, 1_000_000])
@pytest.mark.parametrize("header", [False, True])
def test_binance_dumps(tmp_path: Path, unit: int, header: bool) -> None:
    def line(number: int, minutes: float = 1) -> str:
        opened = (START // SECOND_US + 60 * number) * unit
        closed = opened + int(60 * minutes * unit) - 1
        return f"{opened},10.0,12.0,9.0,11.0,0.5,{closed},5.5,7,0.2,2.2,0\n"

    names = "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_quote,ignore\n"
    text = names * header + "".join(map(line, range(3))) + line(5)
    zipped = tmp_path / "BTCUSDT-1m-2021-09.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("BTCUSDT-1m-2021-09.csv", text)
    file = read_bars(zipped, BarOptions("bitcoin", currency="USDT"), NOW)
    assert [(price.opened_us - START) // MINUTE_US for price in file.prices] == [0, 1, 2, 5]
    assert (file.prices[0].volume, file.series.interval_s, file.series.currency) == (0.5, 60, "usdt")
    assert (file.gaps, file.missing) == (1, 2)
    short = text + line(6, 0.5)
    assert any(f"1 {FORMING}" in note for note in read(tmp_path, short, stamp="auto").notes)
    assert "closes" in refused(tmp_path, short + line(7), stamp="auto")


def test_downloads_of_well_known_pages(tmp_path: Path) -> None:
    investing = '"Date","Price","Open","High","Low","Vol.","Change %"\n' + "".join(
        f'"Sep {day}, 2021","42,235.7","43,160.0","44,328.9","42,170.0","74.96K","-2.15%"\n' for day in (29, 28, 27)
    )
    file = read(tmp_path, investing, zone="UTC")
    assert [price.volume for price in file.prices] == [74960.0] * 3
    assert (file.prices[0].close, iso(file.prices[0].opened_us)) == (42235.7, "2021-09-27T00:00:00Z")
    coinmarketcap = "timeOpen;timeClose;timeHigh;name;open;high;low;close;volume;marketCap;timestamp\n" + "".join(
        f'"2021-09-{day}T00:00:00.000Z";"2021-09-{day}T23:59:59.999Z";"2021-09-{day}T07:01:00.000Z";"2781";'
        f'43.5;44.0;42.5;43.0;30980029059.77;8e11;"2021-09-{day}T23:59:59.999Z"\n'
        for day in (29, 28, 27)
    )
    file = read(tmp_path, coinmarketcap, stamp="auto", columns={"volume_currency": "volume"})
    first = file.prices[0]  # a daily volume in the currency is that of 24 hours
    assert (first.volume, first.volume_24h, first.market_cap) == (None, 30980029059.77, 8e11)
    assert (iso(first.opened_us), first.closed_us - first.opened_us) == ("2021-09-27T00:00:00Z", DAY_US)
    assert (len(file.prices), file.gaps) == (3, 0)
    coinbase = "".join(f"{1_632_700_800 + 60 * number},9.0,12.0,10.0,11.0,0.5\n" for number in range(3))
    assert "6 columns without names: map their numbers, such as close=5" in refused(tmp_path, coinbase)


def test_what_interfaces_give_as_json(tmp_path: Path) -> None:
    ohlc = [[(START + number * 4 * HOUR_US) // 1000, 10.0, 12.0, 9.0, 11.0] for number in range(3)]
    file = read(tmp_path, json.dumps(ohlc), "ohlc.json", stamp="auto")  # CoinGecko's: stamps are closes
    assert [price.closed_us for price in file.prices] == [START + number * 4 * HOUR_US for number in range(3)]
    second = START // SECOND_US
    line = [second * 1000, "10.0", "12.0", "9.0", "11.0", "0.5", (second + 60) * 1000 - 1, "5.5", 7, "0.2", "2.2", "0"]
    file = read(tmp_path, json.dumps([line]), "klines.json", stamp="auto", interval_s=60)
    assert (file.prices[0].opened_us, file.prices[0].close) == (START, 11.0)
    for text in ("[", "{}", "[]", "[[1],[1,2]]"):
        refused(tmp_path, text, "ohlc.json")


def test_rows_that_contradict_each_other_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    text = hours(6) + row(2, c="40001.5", v="6")
    assert refused(tmp_path, text) == (
        "btc.csv:4: contradicts line 8 about 2021-09-27T16:00:00Z: correct one, or give `duplicates`, first or last"
    )
    again = read(tmp_path, hours(6) + row(2))
    assert again.notes == ("rows were out of order: sorted", f"1 {REPEATED}")
    backwards = HEADER + "".join(reversed(text.splitlines(keepends=True)[1:]))
    assert [read(tmp_path, text, duplicates=rule).prices[2].volume for rule in ("first", "last")] == [5.0, 6.0]
    assert [read(tmp_path, backwards, duplicates=rule).prices[2].volume for rule in ("first", "last")] == [6.0, 5.0]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"h": 1}, "btc.csv:5: high is below low: open 40003 high 1 low 40001 close 40004: correct the row"),
        ({"o": 0}, "open is not above 0"),
        ({"c": "nan"}, "close is missing"),
        ({"c": "inf"}, "'inf' is no number"),
        ({"v": -1}, "volume is below 0"),
        ({"o": "about 7"}, "open 'about 7' is no number"),
        ({"v": "5,6"}, "7 cells where the header has 6"),
        ({"time": "1970-01-01T00:00:00Z"}, "before the first coin"),
    ],
)
def test_bad_rows_are_refused_by_line(tmp_path: Path, wrong: dict[str, object], why: str) -> None:
    text = HEADER + "".join(row(number, **(wrong if number == 3 else {})) for number in range(8))
    message = refused(tmp_path, text)
    assert why in message and "btc.csv:5" in message


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        ("", {}, "the file is empty"),
        ("just some words\nand more\n", {}, "names no columns that are known"),
        ("time,open,close\n2021-01-01T00:00:00Z,1,2\n", {}, "no column for high"),
        (HEADER + row(0), {}, "give `interval`"),
        (HEADER + row(0) + row(1) + row(3) + row(6) + row(10), {}, "give `interval`"),
        (hours(), {"interval_s": 900}, "bars are mostly 3600 s apart, not 900 s"),
        (hours(), {"columns": {"close": "Closing"}}, "no column 'Closing' for close: did you mean 'Close'"),
        (hours().replace("Volume", "Low"), {}, "column 'Low' comes twice"),
        (hours().encode("latin-1") + b"\xff\n", {}, "8: not in UTF-8"),
        (hours(3, c="1,5").replace(HEADER, HEADER.replace("\n", ",x\n")), {}, "open or close is far outside"),
        (HEADER + '"2021-09-27 14:00Z,1,2,1,2,1\n' + row(1), {}, "2: "),
    ],
)
def test_files_that_cannot_be_understood_are_refused(
    tmp_path: Path, text: str | bytes, options: dict[str, Any], why: str
) -> None:
    assert why in refused(tmp_path, text, **options)


def test_options_are_checked_at_once(tmp_path: Path) -> None:
    for wrong, why in (
        ({"columns": {"clsoe": "Last"}}, "unknown column in the mapping 'clsoe': did you mean 'close'"),
        ({"coin": "bitcon"}, "did you mean 'bitcoin'"),
        ({"stamp": "opne"}, "did you mean 'open'"),
        ({"zone": "Mars/Base"}, "zone 'Mars/Base' is not known"),
        ({"source": "sample"}, "invented sample texts"),
        ({"taken": "yesterday"}, "cannot be read"),
        ({"interval_s": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=why):
            BarOptions(**({"coin": "BTC"} | wrong))
    with pytest.raises(InputError, match="does not exist"):
        read_bars(tmp_path / "none.csv", BarOptions("BTC"), NOW)


def test_columns_are_known_by_many_names_or_mapped(tmp_path: Path) -> None:
    plain = hours().replace(HEADER, "")
    for header in (
        "<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>",
        "timestamp,1. open,2. high,3. low,4. close,5. volume",
        "Datetime,OPEN PRICE,High_Price,lowPrice,Close/Last,Base Volume",
        ",o,h,l,c,v",
        "Date,Open,High,Low,Close,Adj Close",
    ):
        assert len(read(tmp_path, f"{header}\n{plain}").prices) == 6, header
    names = {"time": "Wann", "open": "A", "high": "B", "low": "C", "close": "D"}
    file = read(tmp_path, f"Wann,A,B,C,D,E\n{plain}", columns=names)
    assert (file.prices[0].close, file.prices[0].volume) == (40001.0, None)
    assert file.notes == ("columns not used: E",)
    numbered = {"time": "1", "open": "2", "high": "3", "low": "4", "close": "5"}
    epochs = "".join(f"{1_600_000_000 + 60 * number},1,3,1,2,9,9\n" for number in range(3))
    assert len(read(tmp_path, epochs, columns=numbered).prices) == 3


def test_metatrader_european_and_tabbed_files(tmp_path: Path) -> None:
    tabs = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\n" + "".join(
        f"2021.09.27\t{hour}:00:00\t10\t12\t9\t11\n" for hour in range(14, 18)
    )
    file = read(tmp_path, tabs, zone="UTC")
    assert (opens(file), file.notes) == ([0, 1, 2, 3], ()), "the times of day were used"
    comma = "Datum;Uhr;Open;High;Low;Close\n" + "".join(
        f"27.09.2021;0{hour}:15 PM;1.234,5;1.240,0;1.230,25;1.233,75\n" for hour in range(2, 6)
    )
    file = read(tmp_path, comma, zone="UTC", columns={"time": "Datum", "clock": "Uhr"})
    assert [(price.high, price.low) for price in file.prices] == [(1240.0, 1230.25)] * 4
    assert file.prices[0].opened_us == START + 15 * MINUTE_US


def test_a_date_that_is_a_close_is_the_end_of_that_day(tmp_path: Path) -> None:
    told = "dates without a time: taken as the end of that day"
    march = days("2021-03-15", "2021-03-16", "2021-03-17")
    options: dict[str, Any] = {"zone": "UTC", "stamp": "close"}
    file = read(tmp_path, march, **options)
    assert iso(file.prices[0].opened_us) == "2021-03-15T00:00:00Z" and file.notes == (told,)
    opened = read(tmp_path, march, zone="UTC")
    assert (opened.prices, opened.notes) == (file.prices, ())
    there = read(tmp_path, march, zone="America/New_York", stamp="close").prices[-1]
    assert iso(there.closed_us) == "2021-03-18T04:00:00Z"
    taken = read(tmp_path, march, taken="2021-03-17T09:00:00Z", **options)
    assert len(taken.prices) == 2
    clocks = march.replace("11\n", "11,12:00\n").replace("Close\n", "Close,Time\n")
    file = read(tmp_path, clocks, **options)
    assert iso(file.prices[0].closed_us) == "2021-03-15T12:00:00Z" and told not in file.notes
    midnight = read(tmp_path, days("2021-03-14 23:00", "2021-03-15", "2021-03-15 01:00"), **options).prices[1]
    assert iso(midnight.closed_us) == "2021-03-15T00:00:00Z"  # a spreadsheet left its 00:00 out
    quotes = "Date,Close\n2021-03-15,10\n2021-03-16,11\n"
    first = [read(tmp_path, quotes, zone="UTC", stamp=stamp).prices[0] for stamp in STAMPS]
    assert [iso(quote.closed_us)[8:10] for quote in first] == ["15", "15", "16"]


@pytest.mark.parametrize(("form", "hours_long"), [("%Y-%m-%d", 24), ("%Y-%m-%d %H:%M", 4)])
def test_bars_across_a_change_of_clocks_are_refused_by_their_zone(tmp_path: Path, form: str, hours_long: int) -> None:
    first = datetime(2021, 3, 26)
    text = days(*((first + timedelta(hours=hours_long * number)).strftime(form) for number in range(30)))
    why = "if clocks were changed, give the `zone` of the grid, such as UTC"
    assert why in refused(tmp_path, text, zone="Europe/Berlin")
    assert len(read(tmp_path, text, zone="UTC").prices) == 30


def test_one_price_a_row_makes_quotes(tmp_path: Path) -> None:
    text = "snapped_at,price,market_cap,total_volume\n" + "".join(
        f"2021-09-{day} 00:00:00 UTC,{day}.5,1e9,{'' if day == 27 else 1e6}\n" for day in (26, 27, 29)
    )
    file = read(tmp_path, text, stamp="auto")
    assert file.series.interval_s == 0
    assert [price.close for price in file.prices] == [26.5, 27.5, 29.5]
    assert [price.volume_24h for price in file.prices] == [1e6, None, 1e6]
    assert all(price.opened_us == price.closed_us and price.market_cap == 1e9 for price in file.prices)


def test_the_same_rows_in_any_packing_give_the_same_prices(tmp_path: Path) -> None:
    text = hours()
    plain = read(tmp_path, text).prices
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    names = text.splitlines()[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in text.splitlines()[1:]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    numbers = {name: [float(each[name]) for each in rows] for name in names[1:]}
    zoned = [datetime.fromisoformat(each["Time"]) for each in rows]
    instants = pyarrow.array(zoned, pyarrow.timestamp("ns", "UTC"))
    epochs = [(START + number * HOUR_US) // 1000 for number in range(6)]
    pyarrow.parquet.write_table(pyarrow.table({"Time": instants, **numbers}), tmp_path / "zoned.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"Time": epochs, **numbers}), tmp_path / "epoch.parquet")
    for name in ("a.csv.gz", "a.jsonl", "zoned.parquet", "epoch.parquet"):
        assert read_bars(tmp_path / name, BarOptions("BTC", stamp="open"), NOW).prices == plain, name
    assert read(tmp_path, b"\xef\xbb\xbf" + text.encode()).prices == plain
    assert read(tmp_path, text.encode("utf-16")).prices == plain
    assert read(tmp_path, text.replace("\n", "\r\n").replace(",", ";")).prices == plain


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    assert "archive is damaged" in refused(tmp_path, gzip.compress(hours().encode())[:-9], "a.csv.gz")
    assert "archive is damaged" in refused(tmp_path, b"PK no zip", "a.zip")
    assert "no Parquet file" in refused(tmp_path, b"nothing", "a.parquet")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name in ("a.csv", "b.csv"):
            archive.writestr(name, hours())
    with pytest.raises(InputError, match=r"two\.zip: the archive holds 2 files"):
        read_bars(tmp_path / "two.zip", BarOptions("BTC"), NOW)


@settings(max_examples=8)
@given(st.sets(st.integers(1, 58), max_size=12), st.integers(1, 40))
def test_the_order_of_blocks_never_matters(
    tmp_path_factory: pytest.TempPathFactory, missing: set[int], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    numbers = [number for number in range(60) if number not in missing]
    lines = [row(number) for number in numbers]
    file = read(folder, HEADER + "".join(lines))
    assert opens(file) == numbers
    assert file.missing == len(missing)
    for order in (lines[cut:] + lines[:cut], lines[::-1]):
        assert read(folder, HEADER + "".join(order)).prices == file.prices


def test_an_import_is_kept_once_and_a_correction_is_a_row_of_its_own(tmp_path: Path, sqlite: Engine) -> None:
    store, file = PriceStore(sqlite), tmp_path / "btc.csv"
    file.write_text(hours(40, v=0))
    options = BarOptions("BTC", stamp="open")
    first = import_bars(store, file, options)
    assert (first.added, first.corrected, first.prices, first.flags) == (40, 0, 40, {"zero-volume": 40})
    assert to_plain(first)["from"] == "2021-09-27T14:00:00Z"
    json.dumps(to_plain(first))
    assert import_bars(store, file, options).added == 0
    file.write_text(hours(40, v=0).replace(row(7, v=0), row(7, v=0, h=41000)))
    again = import_bars(store, file, options)
    assert (again.added, again.corrected) == (1, 1)
    file.write_text(HEADER + "".join(row(number, v=0) for number in range(42, 45)))
    later = import_bars(store, file, options)
    assert later.flags == {"zero-volume": 3, "gap-before": 1}  # the gap to what was there before


def test_packaged_prices_are_those_of_the_package_and_days_what_their_quarters_of_an_hour_make_of_them() -> None:
    """Both files come from one publisher: a wrong zone, stamp or choice of duplicates would show at once."""
    quarter, day = (read_packaged(name, NOW) for name in DATASETS)
    assert (len(quarter.prices), len(day.prices)) == (8684, 661)
    assert [note.partition(" ")[0] for note in quarter.notes if "row(s)" in note] == ["6", "31"]
    assert [note.partition(" ")[0] for note in day.notes if "row(s)" in note] == ["4", "1"]
    assert quarter.prices[0].close == 43548.7734375
    assert (iso(day.prices[0].opened_us), day.prices[0].volume_24h) == ("2020-01-01T00:00:00Z", 18565664997.0)
    with pytest.raises(InputError, match="did you mean 'bitcoin-1day'"):
        read_packaged("bitcoin-day", NOW)
    by_day = {k: list(g) for k, g in itertools.groupby(quarter.prices, lambda price: price.opened_us // DAY_US)}
    pairs = ((bar, by_day.get(bar.opened_us // DAY_US, [])) for bar in day.prices)
    whole = [(bar, parts) for bar, parts in pairs if len(parts) == 96]
    assert len(whole) == 29
    for bar, parts in whole:
        highs, lows = ([getattr(part, name) for part in parts] for name in ("high", "low"))
        assert (bar.open, bar.close) == pytest.approx((parts[0].open, parts[-1].close), abs=1e-6)
        assert (bar.high, bar.low) == pytest.approx((max(highs), min(lows)), abs=1e-6)
