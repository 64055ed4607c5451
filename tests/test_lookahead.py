"""The look-ahead check catches every planted leak, says where it shows, and lets every clean signal pass."""

import json
import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from commands import Run

from qubic_lab.bench.audit import load_module
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.backtest import lookahead_runs
from qubic_lab.oracle.backtest.lookahead import check_by_name, check_lookahead
from qubic_lab.oracle.backtest.lookahead_cuts import choose_cuts
from qubic_lab.oracle.backtest.lookahead_runs import FUTURES, NEVER_US, FreshRun, Signal, known_at, scrambled
from qubic_lab.oracle.model.bars import PRICES

first_leaks, first_clean = load_module("leaks_first"), load_module("clean_first")
bars_frame, returns, next_return = load_module("frames").bars, first_leaks.returns, first_leaks.next_return
momentum = first_clean.momentum
LEAKS, CLEAN = (
    {name: each for kind in module.KINDS.values() for name, each in kind.items()}
    for module in (first_leaks, first_clean)
)
FRAME = bars_frame(360)
check = partial(check_lookahead, extra_s=0.0)
"""Without cuts for which there is time left, except where a test gives some."""
SAMPLE = slice(None, None, 5)  # all are audited by `test_error_rates_are_within_their_limits`


@pytest.mark.parametrize("name", [*LEAKS][SAMPLE])
def test_a_planted_leak_is_caught(name: str) -> None:
    signal = LEAKS[name]
    found = check(signal, FRAME)
    assert found.leaks and not found.passed
    finding = found.findings[0]
    assert finding.kind == "look-ahead", str(found)
    assert finding.bar is not None and finding.cut is not None and finding.bar < finding.cut
    # The bar that is named does change: it has another value once later bars are there, or are others.
    assert finding.then != finding.later
    if finding.test == "prefix":  # and the bars before it do not, except for rounding
        then = np.asarray(signal(known_at(FRAME, finding.cut)), float)
        later = np.asarray(signal(known_at(FRAME, len(FRAME))), float)[: finding.cut]
        assert np.allclose(then[: finding.bar], later[: finding.bar], rtol=0.0, atol=1e-7, equal_nan=True)
        told = [None if np.isnan(each[finding.bar]) else each[finding.bar] for each in (then, later)]
        assert told == [finding.then, finding.later]
    assert finding.closed == FRAME.index[finding.bar].isoformat().replace("+00:00", "Z")
    assert f"bar {finding.bar} " in str(found)


@pytest.mark.parametrize("name", [*CLEAN][SAMPLE])
def test_a_clean_signal_passes(name: str) -> None:
    signal = CLEAN[name]
    found = check(signal, FRAME)
    assert found.passed, str(found)
    assert len(found.cuts) >= 32
    assert str(found).startswith(f"{signal.__name__} does not look ahead")


def test_the_first_bar_that_changed_is_named_with_both_values() -> None:
    frame = bars_frame(100)
    found = check(next_return, frame, extra_s=60.0).findings[0]
    pd.testing.assert_frame_equal(frame, bars_frame(100))
    assert found.test == "prefix" and found.bar == found.cut - 1
    assert found.then is None and found.later == pytest.approx(returns(frame).iloc[found.bar + 1])
    assert "is missing from the only bar known then, and " in found.text
    assert found.text.endswith("from all 100: values depend on up to 1 later bar")
    first, second, other = (check(next_return, frame, seed=seed) for seed in (3, 3, 4))
    assert first == second and first.cuts != other.cuts


def test_further_cuts_lie_at_ends_of_days_and_unusual_bars_before_they_lie_anywhere() -> None:
    values = np.zeros((len(FRAME), 1))
    values[[50, 200], 0] = 7.0
    draw = np.random.default_rng(0)
    few, none = choose_cuts(FRAME, values, 8, 8, draw)
    assert len(few) >= 8 and none == []
    both, further = choose_cuts(FRAME, values, 20, 60, draw)
    assert len(both) + len(further) == 60
    assert {51, 201, 95, 96, 191, 192} <= {*both, *further}  # right after these bars, and around midnight
    both, further = choose_cuts(FRAME, values, 20, 640, draw)
    assert sorted([*both, *further]) == list(range(1, len(FRAME)))


def test_further_cuts_find_a_leak_at_one_bar_and_end_there() -> None:
    def at_one_bar(frame: pd.DataFrame) -> pd.Series:
        return returns(frame).where(np.arange(len(frame)) != 123, returns(frame).shift(-1))

    assert check(at_one_bar, FRAME).passed
    found = check(at_one_bar, FRAME, extra_s=60.0)
    assert found.leaks and found.findings[0].bar == 123 and found.findings[0].cut == 124
    assert len(found.cuts) < len(FRAME) - 1


# What else is wrong with a signal


def changes_its_input(frame: pd.DataFrame) -> pd.Series:
    frame["close"] = np.log(frame["close"])
    frame["ret"] = frame["close"].diff()
    return frame["ret"]


def exits(frame: pd.DataFrame) -> None:
    raise SystemExit(3)


def wants(frame: pd.DataFrame, bars: int) -> pd.Series:
    if len(frame) < bars:
        raise ValueError(f"I need {bars} bars")
    return momentum(frame)


def refuses_jumps(frame: pd.DataFrame, most: float) -> pd.Series:
    if (returns(frame).abs() > most).any():
        raise ValueError("prices jump")
    return returns(frame)


def knows_the_prices(frame: pd.DataFrame) -> pd.Series:
    if not frame["close"].isin(FRAME["close"]).all():
        raise ValueError("another price")
    return returns(frame)


@pytest.mark.parametrize(
    ("signal", "kind", "said"),
    [
        (changes_its_input, "input", r"it changes the frame that it is given \(close, ret\)"),
        (lambda frame: np.random.default_rng().normal(size=len(frame)), "not repeatable", "differ at bar 0 .*seed"),
        (lambda frame: returns(frame).dropna(), "output", "359 values for 360 bars"),
        (lambda frame: ["buy"] * len(frame), "output", "not one number for each bar"),
        (lambda frame: None, "output", "NoneType"),
        (lambda frame: frame["close"][::-1], "output", "another index than the bars"),
        (lambda frame: frame["Close"], "error", "it raised KeyError: 'Close'"),
        (exits, "error", "it raised SystemExit: 3"),
        (partial(wants, bars=360), "error", "I need 360 bars, so it cannot be audited"),
        (knows_the_prices, "error", "changed futures .*: another price .*cannot be audited$"),
    ],
)
def test_a_signal_that_cannot_be_trusted_is_told_in_one_line(signal: Signal, kind: str, said: str) -> None:
    found = check(signal, FRAME)
    assert not found.passed and not found.leaks
    assert [each.kind for each in found.findings] == [kind]
    assert "\n" not in str(found)
    assert re.search(said, str(found)), str(found)


@pytest.mark.parametrize(
    ("signal", "note"),
    [
        (partial(wants, bars=50), "I need 50 bars; those cuts were left out"),
        (partial(refuses_jumps, most=0.055), "prices jump.* were left out"),
        (lambda frame: frame["close"] / frame["close"].sum() * frame["close"].sum(), "by rounding alone"),
        # Vectorised code rounds in such a way.
        (lambda frame: np.log(frame["close"]) * (1.0 + 2e-16 * (len(frame) % 4)), "rounded differently by the number"),
        (lambda frame: np.full(len(frame), np.nan), "no number at any bar"),
        (returns, "it describes the past"),
    ],
)
def test_a_signal_that_passes_may_have_a_note(signal: Signal, note: str) -> None:
    found = check(signal, FRAME)
    assert found.passed and re.search(note, " ".join(found.notes))


def test_a_model_in_float32_passes() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def model(frame: pd.DataFrame) -> torch.Tensor:
        past = pd.concat([returns(frame).shift(lag) for lag in range(8)], axis=1).fillna(0.0)
        return layers(torch.tensor(past.to_numpy(np.float32)))  # with its gradient, which NumPy refuses

    found = check(lambda frame: model(frame).detach()[:, 0], FRAME)
    assert found.passed, str(found)
    assert "is not one number for each bar" in str(check(model, FRAME))


def test_lag_sweep_shows_where_power_lies() -> None:
    lags = {each.lag: each for each in check(next_return, FRAME).lags}
    assert lags[1].correlation == pytest.approx(1.0)
    assert abs(lags[2].correlation) < 4 * lags[2].error
    tainted = FRAME.assign(score=returns(FRAME).shift(-1))  # no test of the function can see this
    found = check(lambda given: given["score"], tainted)
    assert any("do the data themselves hold the future?" in note for note in found.notes)


def test_several_assets_are_checked_together() -> None:
    parts = {asset: bars_frame(120, seed)[[*PRICES, "volume"]] for asset, seed in (("a", 1), ("b", 2))}
    frame = pd.concat(parts, axis=1).swaplevel(axis=1)

    def relative(given: pd.DataFrame) -> pd.DataFrame:
        return given["close"].pct_change().rank(axis=1)

    assert check(relative, frame).passed
    assert check(lambda given: relative(given)["a"], frame).passed  # one column for two assets
    assert check(lambda given: given["close"].pct_change().shift(-1), frame).leaks


# State kept between runs


def fitted_once(frame: pd.DataFrame, kept: dict[str, float] = {}) -> pd.Series:  # noqa: B006
    return frame["close"] - kept.setdefault("mean", float(frame["close"].mean()))


def test_state_kept_from_later_bars_is_a_leak() -> None:
    found = check(fitted_once, FRAME)
    assert found.leaks and [each.kind for each in found.findings] == ["state"]
    assert "on all bars depends on what was run before: it keeps something of other bars" in str(found)


def test_a_fresh_run_keeps_nothing_here_and_is_left_where_it_waits_or_gives_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def counts(frame: pd.DataFrame) -> pd.Series:
        seen.append(len(frame))
        return frame["close"]

    def waits(frame: pd.DataFrame) -> None:
        threading.Event().wait()

    with FreshRun(counts, FRAME) as fresh:
        found = fresh.wait()
    assert found is not None and np.array_equal(found[0][:, 0], FRAME["close"]) and seen == []
    before = psutil.Process().children()
    with monkeypatch.context() as patch, FreshRun(waits, FRAME) as fresh:
        patch.setattr(lookahead_runs, "_IDLE_S", 0.2)
        assert fresh.wait() is None
    assert psutil.Process().children() == before
    with FreshRun(lambda frame: 1 / 0, FRAME) as fresh:
        assert fresh.wait() is None


# Frames


def test_known_frames_hide_what_comes_later() -> None:
    part = known_at(FRAME, 100)
    now_us = int(FRAME["opened_us"].iloc[99]) + 900_000_000
    late = (FRAME["body_known_us"].iloc[:100] > now_us).to_numpy()
    assert late.any() and part["body"][late].isna().all()
    assert (part["body_known_us"] == FRAME["body_known_us"].iloc[:100].where(~late, NEVER_US)).all()
    assert part["body_known_us"].dtype == np.int64
    assert part["body"][~late].equals(FRAME["body"].iloc[:100][~late])
    frame = FRAME.copy()
    frame.attrs["all"] = FRAME["close"].shift(-1).tolist()
    assert known_at(frame, 100).attrs == {}


@pytest.mark.parametrize("future", FUTURES)
def test_scrambled_futures_leave_the_past_and_stay_bars(future: str) -> None:
    other = scrambled(FRAME, 100, np.random.default_rng(0), future)
    columns = [name for name in FRAME if name not in ("body", "rating")]  # what is known later is the future's
    pd.testing.assert_frame_equal(other[columns].iloc[:100], FRAME[columns].iloc[:100])
    later = other.iloc[100:]
    for name in (*PRICES, "volume"):
        known = FRAME[name].iloc[100:].notna() & later[name].notna()
        assert (later[name][known] != FRAME[name].iloc[100:][known]).all()
    assert (later["low"] <= later["close"]).all() and (later["close"] <= later["high"]).all()
    assert (later["low"] > 0).all() and (later["volume"].dropna() > 0).all()


@pytest.mark.parametrize("kind", ["Int64", "boolean", "category", "object"])
def test_any_kind_of_column_gets_another_future(kind: str) -> None:
    numbers = [None, *range(1, len(FRAME))]
    columns = {
        "Int64": numbers,
        "boolean": [None if each is None else each % 2 == 0 for each in numbers],
        "category": [f"c{(each or 0) % 3}" for each in numbers],
        "object": [[each] for each in numbers],
    }
    frame = FRAME.assign(more=pd.Series(columns[kind], FRAME.index, dtype=kind))
    assert check(lambda given: given["close"].diff(), frame, cuts=4).passed

    def ahead(given: pd.DataFrame) -> pd.Series:
        return given["more"].shift(-1).map(lambda each: hash(str(each)) % 97).astype(float)

    assert check(ahead, frame).leaks
    assert not scrambled(frame, 100, np.random.default_rng(0))["more"].iloc[100:].equals(frame["more"].iloc[100:])


def test_frames_that_cannot_be_checked_are_refused() -> None:
    with pytest.raises(InputError, match="bars to audit is 10: it must be at least 20"):
        check(momentum, FRAME.iloc[:10])
    with pytest.raises(InputError, match="cuts is 0"):
        check(momentum, FRAME, cuts=0)
    with pytest.raises(InputError, match=r"bar 1 \(2021-.*\) does not close after the one before: sort bars by time"):
        check(lambda frame: frame["close"].shift(1), FRAME[::-1])
    with pytest.raises(InputError, match=r"columns twice: \['close'\]"):
        check(lambda frame: frame["open"], FRAME[["open", "close", "close"]])


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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_signals.py").write_text(SIGNALS)
    frame = bars_frame(60)
    rows = frame[[*PRICES, "volume"]].reset_index(drop=True)
    rows.insert(0, "open_time", pd.to_datetime(frame["opened_us"].to_numpy(), unit="us").strftime("%Y-%m-%dT%H:%M:%SZ"))
    rows.dropna().to_csv(tmp_path / "bars.csv", index=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
def test_command_reads_bars_and_ends_with_1_at_a_leak(here: Run) -> None:
    status, out, err = here("oracle audit my_signals:leaking --data bars.csv --stamp open")
    assert status == 1 and "look-ahead" in out + err and "leaking looks ahead" in out + err
    clean = here("oracle audit ./my_signals.py:clean --data bars.csv --stamp open --json --cuts 4 --last 40")
    report = json.loads(clean.out)
    assert clean.status == 0
    assert report["passed"] and report["bars"] == 40 and not report["findings"]


@pytest.mark.usefixtures("folder")
def test_functions_that_cannot_be_had_or_do_not_end() -> None:
    frame = bars_frame(40)
    for target, message in (
        ("my_signals", "names no function"),
        ("my_signals:cleen", "has no 'cleen': did you mean 'clean'"),
        ("my_signals:number", "my_signals:number is a int: name a function"),
        ("/my_signals.py:clean", r"'/my_signals\.py' is not below the working folder"),
    ):
        with pytest.raises(InputError, match=message):
            check_by_name(target, frame)
    with pytest.raises(InputError, match="not audited within 1 s"):
        check_by_name("my_signals:endless", frame, time_limit_s=1.0)
    with pytest.raises(QubicLabError, match="status 3"):
        check_by_name("my_signals:dies", frame)
    assert "it raised EOFError" in str(check_by_name("my_signals:asks", frame))
