"""The audit catches every planted leak, names its kind, and lets every clean signal pass."""

import datetime
import json
import os
import re
import sqlite3
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from planted_leaks import CLEAN, LEAKS, Signal, bars_frame, momentum, next_return, returns
from typer.testing import CliRunner

from qubic_lab.cli.oracle_audit import audit as audit_command
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.backtest.lookahead.check import audit
from qubic_lab.oracle.backtest.lookahead.frames import known_at, scrambled
from qubic_lab.oracle.backtest.lookahead.process import audit_by_name
from qubic_lab.oracle.backtest.lookahead.report import AuditReport


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return bars_frame(360)


def test_there_are_leaks_and_clean_signals_enough():
    assert len(LEAKS) >= 20 and len(CLEAN) >= 20


@pytest.mark.parametrize("signal", LEAKS, ids=lambda each: each.__name__)
def test_a_planted_leak_is_caught(signal: Signal, frame: pd.DataFrame):
    found = audit(signal, frame)
    assert found.leaks and not found.passed
    finding = found.findings[0]
    assert finding.kind in LEAKS[signal], str(found)
    assert finding.bar is not None and finding.cut is not None and finding.bar < finding.cut
    # The bar that is named does change: its value is another one once later bars are there, or are others.
    assert finding.then != finding.later
    if finding.test == "prefix":  # and the bars before it do not, but for rounding
        then = np.asarray(signal(known_at(frame, finding.cut)), float)
        later = np.asarray(signal(known_at(frame, len(frame))), float)[: finding.cut]
        assert np.allclose(then[: finding.bar], later[: finding.bar], rtol=0.0, atol=1e-7, equal_nan=True)
        told = [None if np.isnan(each[finding.bar]) else each[finding.bar] for each in (then, later)]
        assert told == [finding.then, finding.later]
    assert finding.closed == frame.index[finding.bar].isoformat().replace("+00:00", "Z")
    assert f"bar {finding.bar} " in str(found)


@pytest.mark.parametrize("signal", CLEAN, ids=lambda each: each.__name__)
def test_a_clean_signal_passes(signal: Signal, frame: pd.DataFrame):
    found = audit(signal, frame)
    assert found.passed, str(found)
    assert len(found.cuts) >= 32
    assert str(found).startswith(f"{signal.__name__} does not look ahead")


def test_the_first_bar_that_changed_is_named_with_both_values():
    frame = bars_frame(100)
    found = audit(next_return, frame).findings[0]
    assert found.kind == "shift" and found.test == "prefix"
    assert found.bar == found.cut - 1
    assert found.then is None and found.later == pytest.approx(returns(frame).iloc[found.bar + 1])
    assert "as shift(-1) does" in found.text


def test_audits_repeat_and_survive_json(frame: pd.DataFrame):
    first, second = audit(next_return, frame, seed=3), audit(next_return, frame, seed=3)
    assert first == second
    assert AuditReport.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    assert audit(next_return, frame, seed=4).cuts != first.cuts


def test_a_frame_is_not_changed_by_its_audit(frame: pd.DataFrame):
    before = frame.copy(deep=True)
    audit(momentum, frame, cuts=4)
    pd.testing.assert_frame_equal(frame, before)


def test_a_rare_leak_is_caught():
    def on_some_days(frame: pd.DataFrame) -> np.ndarray:
        ahead = returns(frame).shift(-1).fillna(0.0).to_numpy()
        return np.where(np.abs(ahead) > 0.02, ahead, 0.0)  # one bar in twenty

    assert audit(on_some_days, bars_frame(600), seed=1).leaks


# What else is wrong with a signal


def changes_its_input(frame: pd.DataFrame) -> pd.Series:
    frame["close"] = np.log(frame["close"])
    return frame["close"].diff()


def adds_to_its_input(frame: pd.DataFrame) -> pd.Series:
    frame["ret"] = frame["close"].diff()
    return frame["ret"]


def draws_without_seed(frame: pd.DataFrame) -> np.ndarray:
    return np.random.default_rng().normal(size=len(frame))


def looks_at_the_clock(frame: pd.DataFrame) -> np.ndarray:
    return np.full(len(frame), 1.0 if time.time() > 0 else 0.0)


def looks_at_today(frame: pd.DataFrame) -> np.ndarray:
    return np.full(len(frame), float(datetime.date.today().year > 2000))


def looks_at_now_through_pandas(frame: pd.DataFrame) -> np.ndarray:
    return (frame.index < pd.Timestamp.now(tz="UTC")).astype(float)


def too_short(frame: pd.DataFrame) -> pd.Series:
    return returns(frame).dropna()


def says_words(frame: pd.DataFrame) -> list[str]:
    return ["buy"] * len(frame)


def gives_nothing(frame: pd.DataFrame) -> None:
    return None


def raises(frame: pd.DataFrame) -> pd.Series:
    return frame["Close"]


def exits(frame: pd.DataFrame) -> None:
    raise SystemExit(3)


def turns_round(frame: pd.DataFrame) -> pd.Series:
    return frame["close"][::-1]


def wants_all_bars(frame: pd.DataFrame) -> pd.Series:
    if len(frame) < 360:
        raise ValueError("I need 360 bars")
    return momentum(frame)


SCALE: list[float] = []


def remembers(frame: pd.DataFrame) -> pd.Series:
    if not SCALE:
        SCALE.append(frame["close"].std())  # of the first frame that it was given
    return frame["close"].diff() / SCALE[0]


class Remembering:
    mean: float | None = None

    def __call__(self, frame: pd.DataFrame) -> pd.Series:
        self.mean = frame["close"].mean() if self.mean is None else self.mean
        return frame["close"] - self.mean


SLOT: list[float | None] = [None]
README = Path(__file__).parents[1] / "README.md"
TABLE = pd.DataFrame({"next": np.arange(30.0)})


def fills_a_slot(frame: pd.DataFrame) -> pd.Series:
    SLOT[0] = SLOT[0] or float(frame["close"].mean())  # as long as before
    return frame["close"] - SLOT[0]


def fills_its_default(frame: pd.DataFrame, cache: dict[str, float] = {}) -> pd.Series:  # noqa: B006
    return frame["close"] - cache.setdefault("mean", float(frame["close"].mean()))


def sets_a_variable(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] - float(os.environ.setdefault("MEAN_OF_ALL", str(frame["close"].mean())))


class Slotted:
    __slots__ = ("mean",)

    def __call__(self, frame: pd.DataFrame) -> pd.Series:
        self.mean = getattr(self, "mean", frame["close"].mean())
        return frame["close"] - self.mean


def reads_a_file(frame: pd.DataFrame) -> np.ndarray:
    return np.full(len(frame), float(len(README.read_text())))


def reads_out_of_sight(frame: pd.DataFrame) -> np.ndarray:
    return pd.read_parquet("none.parquet")["close"].to_numpy() if len(frame) < 0 else np.zeros(len(frame))


def asks_a_database(frame: pd.DataFrame) -> np.ndarray:
    sqlite3.connect(":memory:").close()
    return np.zeros(len(frame))


def looks_into_a_table(frame: pd.DataFrame) -> np.ndarray:
    return np.resize(TABLE["next"].to_numpy(), len(frame))


def looks_into_what_it_is_given(frame: pd.DataFrame, table: pd.DataFrame | None = None) -> np.ndarray:
    assert table is not None
    return np.resize(table["next"].to_numpy(), len(frame))


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEAN_OF_ALL", "")
    monkeypatch.delenv("MEAN_OF_ALL")


@pytest.mark.usefixtures("no_variable")
@pytest.mark.parametrize(
    ("signal", "kind", "said"),
    [
        (changes_its_input, "input", r"it changes the frame that it is given \(close\)"),
        (adds_to_its_input, "input", r"it changes the frame that it is given \(ret\)"),
        (draws_without_seed, "not repeatable", "two runs on the same bars differ at bar 0 .*seed"),
        (looks_at_the_clock, "clock", r"it looks at the wall clock \(time.time\)"),
        (looks_at_today, "clock", "wall clock .*today"),
        (looks_at_now_through_pandas, "clock", r"wall clock .*now"),
        (remembers, "state", r"keeps something between runs \(SCALE\)"),
        (Remembering(), "state", r"keeps something between runs \(mean\)"),
        (Slotted(), "state", r"keeps something between runs \(mean\)"),
        (fills_a_slot, "state", r"keeps something between runs \(SLOT\)"),
        (fills_its_default, "state", r"keeps something between runs \(cache\)"),
        (sets_a_variable, "state", r"keeps something between runs \(os.environ\)"),
        (reads_a_file, "outside", r"reads from outside of its frame \(README.md\)"),
        (reads_out_of_sight, "outside", r"reads from outside of its frame \(by read_parquet\)"),
        (asks_a_database, "outside", r"outside of its frame \(the database :memory:\)"),
        (looks_into_a_table, "outside", r"outside of its frame \(TABLE\)"),
        (partial(looks_into_what_it_is_given, table=TABLE), "outside", r"outside of its frame \(table\)"),
        (too_short, "output", "359 values for 360 bars"),
        (says_words, "output", "not one number for each bar"),
        (gives_nothing, "output", "NoneType"),
        (raises, "error", "it raised KeyError: 'Close'"),
        (exits, "error", "it raised SystemExit: 3"),
        (turns_round, "output", "another index than the bars"),
        (wants_all_bars, "error", "I need 360 bars, so it cannot be audited"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_signal_that_cannot_be_trusted_is_told_in_one_line(signal: Signal, kind: str, said: str, frame: pd.DataFrame):
    found = audit(signal, frame)
    assert not found.passed and not found.leaks
    assert [each.kind for each in found.findings] == [kind]
    assert "\n" not in str(found)
    assert re.search(said, str(found)), str(found)


def test_logging_and_timing_are_no_looks_at_the_clock(frame: pd.DataFrame):
    import logging

    def talks(frame: pd.DataFrame) -> pd.Series:
        logging.getLogger("signal").warning("at %d bars, %.0f s", len(frame), time.perf_counter())
        return momentum(frame)

    assert audit(talks, frame, cuts=4).passed


def test_a_signal_that_needs_some_bars_is_audited_on_more(frame: pd.DataFrame):
    def after_fifty(frame: pd.DataFrame) -> pd.Series:
        if len(frame) < 50:
            raise ValueError("50 bars are needed")
        return momentum(frame)

    found = audit(after_fifty, frame)
    assert found.passed and min(found.cuts) >= 50
    assert any("50 bars are needed; those cuts were left out" in note for note in found.notes)


def test_rounding_is_told_apart(frame: pd.DataFrame):
    def by_total(frame: pd.DataFrame) -> pd.Series:
        total = frame["close"].sum()
        return frame["close"] / total * total

    found = audit(by_total, frame)
    assert [each.kind for each in found.findings] == ["rounding"] and not found.leaks and not found.passed


def test_rounding_by_length_alone_is_a_note(frame: pd.DataFrame):
    def as_vectorised_code_rounds(frame: pd.DataFrame) -> pd.Series:
        return np.log(frame["close"]) * (1.0 + 2e-16 * (len(frame) % 4))

    found = audit(as_vectorised_code_rounds, frame)
    assert found.passed and "rounded otherwise by how many bars" in found.notes[0]


def test_lag_sweep_shows_where_power_lies(frame: pd.DataFrame):
    lags = {each.lag: each for each in audit(next_return, frame).lags}
    assert lags[1].correlation == pytest.approx(1.0)
    assert abs(lags[2].correlation) < 4 * lags[2].error
    same_bar = audit(returns, frame)
    assert {each.lag: each for each in same_bar.lags}[0].correlation == pytest.approx(1.0)
    assert any("tells what has happened" in note for note in same_bar.notes)


def test_data_that_hold_the_future_are_told_of(frame: pd.DataFrame):
    tainted = frame.assign(score=returns(frame).shift(-1))  # no test of the function can see this
    found = audit(lambda given: given["score"], tainted)
    assert any("do the data themselves hold the future?" in note for note in found.notes)


def test_a_signal_without_values_is_told_of(frame: pd.DataFrame):
    found = audit(lambda given: np.full(len(given), np.nan), frame, cuts=4)
    assert found.passed and "no number at any bar" in found.notes[0]


def test_several_assets_are_audited_together():
    parts = {
        asset: bars_frame(120, seed)[["open", "high", "low", "close", "volume"]] for asset, seed in (("a", 1), ("b", 2))
    }
    frame = pd.concat(parts, axis=1).swaplevel(axis=1)

    def relative(given: pd.DataFrame) -> pd.DataFrame:
        return given["close"].pct_change().rank(axis=1)

    assert audit(relative, frame).passed
    assert audit(lambda given: relative(given)["a"], frame).passed  # one column for two assets
    assert audit(lambda given: given["close"].pct_change().shift(-1), frame).findings[0].kind == "shift"


def test_known_frames_hide_what_comes_later(frame: pd.DataFrame):
    part = known_at(frame, 100)
    now = (
        int(frame.index[99].value // 1000)
        if frame.index.unit == "ns"
        else int(frame["opened_us"].iloc[99] + 900_000_000)
    )
    late = (frame["body_known_us"].iloc[:100] > now).to_numpy()
    assert late.any() and part["body"][late].isna().all()
    assert part["body"][~late].equals(frame["body"].iloc[:100][~late])


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_scrambled_futures_leave_the_past_and_stay_bars(frame: pd.DataFrame, kind: int):
    other = scrambled(frame, 100, np.random.default_rng(0), kind)
    columns = [name for name in frame if name != "body"]  # bodies of the past that come later are the future's
    pd.testing.assert_frame_equal(other[columns].iloc[:100], frame[columns].iloc[:100])
    later = other.iloc[100:]
    for name in ("open", "high", "low", "close", "volume"):
        known = frame[name].iloc[100:].notna() & later[name].notna()
        assert (later[name][known] != frame[name].iloc[100:][known]).all()
    assert (later["low"] <= later["close"]).all() and (later["close"] <= later["high"]).all()
    assert (later["low"] > 0).all() and (later["volume"].dropna() > 0).all()


def test_too_little_is_refused(frame: pd.DataFrame):
    with pytest.raises(InputError, match="bars to audit is 10: it must be at least 20"):
        audit(momentum, frame.iloc[:10])
    with pytest.raises(InputError, match="cuts is 0"):
        audit(momentum, frame, cuts=0)


# By name, and by command

SIGNALS = """
import os, time
def clean(frame):
    print("noise that is not part of the report")
    return frame["close"].pct_change()
def leaking(frame):
    return frame["close"].shift(-1)
def endless(frame):
    while True:
        time.sleep(0.05)
def dies(frame):
    os._exit(3)
def asks(frame):
    return float(input("how far?"))
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_signals.py").write_text(SIGNALS)
    frame = bars_frame(60)
    rows = frame[["open", "high", "low", "close", "volume"]].reset_index(drop=True)
    rows.insert(0, "open_time", pd.to_datetime(frame["opened_us"].to_numpy(), unit="us").strftime("%Y-%m-%dT%H:%M:%SZ"))
    rows.dropna().to_csv(tmp_path / "bars.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_reads_bars_and_ends_with_1_at_a_leak(folder: Path):
    app = typer.Typer()
    app.command()(audit_command)
    given = ["--data", "bars.csv", "--stamp", "open"]
    leak = CliRunner().invoke(app, ["my_signals:leaking", *given])
    assert leak.exit_code == 1
    assert "shift" in leak.output and "leaking looks ahead" in leak.output
    clean = CliRunner().invoke(app, ["my_signals:clean", *given, "--json", "--cuts", "4", "--last", "40"])
    assert clean.exit_code == 0
    report = json.loads(clean.stdout)
    assert report["passed"] and report["bars"] == 40 and not report["findings"]


def test_functions_that_cannot_be_had_or_do_not_end(folder: Path):
    frame = bars_frame(40)
    with pytest.raises(InputError, match="names no function"):
        audit_by_name("my_signals", frame)
    with pytest.raises(InputError, match="has no 'cleen': did you mean 'clean'"):
        audit_by_name("my_signals:cleen", frame)
    with pytest.raises(InputError, match="not audited within 1 s"):
        audit_by_name("my_signals:endless", frame, time_limit_s=1.0)
    with pytest.raises(QubicLabError, match="status 3"):
        audit_by_name("my_signals:dies", frame)
    assert "it raised EOFError" in str(audit_by_name("my_signals:asks", frame))
