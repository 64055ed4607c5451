"""The ledger of trials: each trial counts once, its returns are stored exactly, and no trial can be removed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markets import random_market
from sqlalchemy import Engine, delete, text, update
from sqlalchemy.exc import DBAPIError

from qubic_lab.database import open_database
from qubic_lab.errors import InputError, NotFoundError
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.evaluate import BacktestConfig, Strategy, backtest
from qubic_lab.oracle.backtest.ledger import TRIAL_INSTANTS, TRIALS, Trial, TrialLedger, code_hash, data_hash
from qubic_lab.oracle.inference.alignment import AvailableText
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.schema import metadata

TRIAL = Trial("does x predict?", "up", "c" * 64, "d" * 64, 0, 10 * DAY_US, {"bars": 5})
CLOSED = np.arange(1, 11) * DAY_US
RETURNS = np.random.default_rng(0).standard_normal(10) * 0.01


def test_a_try_counts_once_however_often_it_is_made(engine: Engine) -> None:
    ledger = TrialLedger(engine, clock=lambda: 7)
    first = ledger.record(TRIAL, CLOSED, RETURNS)
    again = ledger.record(replace(TRIAL, parameters={"bars": 5}), CLOSED, RETURNS * (1.0 + 1e-15))
    assert (first.new, first.family_trials, again.new, again.family_trials) == (True, 1, False, 1)
    assert first.key == again.key == TRIAL.key and not again.other_returns
    changes: list[dict[str, Any]] = [
        {"parameters": {"bars": 6}},
        {"settings": {"lag": 2}},
        {"code_hash": "e" * 64},
        {"data_hash": "e" * 64},
        {"end_us": 9 * DAY_US},
        {"strategy": "down"},
    ]
    for number, change in enumerate(changes):
        assert ledger.record(replace(TRIAL, **change), CLOSED, RETURNS).family_trials == number + 2
    other = ledger.record(replace(TRIAL, family="does y?"), CLOSED, RETURNS)
    assert other.new and other.family_trials == 1
    assert len(ledger.trials(TRIAL.family)) == 7


def test_the_same_try_with_other_returns_is_a_trial_of_its_own(engine: Engine) -> None:
    ledger = TrialLedger(engine)
    ledger.record(TRIAL, CLOSED, RETURNS)
    other = ledger.record(TRIAL, CLOSED, RETURNS + 1e-6)
    assert other.other_returns and other.new and other.family_trials == 2 and other.key != TRIAL.key
    again = ledger.record(TRIAL, CLOSED, RETURNS + 1e-6)
    assert (again.new, again.key, again.family_trials) == (False, other.key, 2)


def test_returns_come_back_to_the_last_bit_and_in_order(engine: Engine) -> None:
    times = iter(range(100))
    ledger = TrialLedger(engine, clock=lambda: next(times))
    rng = np.random.default_rng(1)
    columns = rng.standard_normal((10, 5))
    columns[0, 0], columns[1, 0] = 5e-324, -1.0
    for number in range(5):
        ledger.record(replace(TRIAL, parameters={"number": number}), CLOSED, columns[:, number])
    found = ledger.trials(TRIAL.family)
    assert len(found) == 5
    assert found.returns.tobytes() == columns.tobytes()
    assert np.array_equal(found.closed_us, CLOSED)
    assert found.keys == tuple(replace(TRIAL, parameters={"number": number}).key for number in range(5))


def test_trials_of_different_bars_meet_on_those_that_all_have(engine: Engine) -> None:
    ledger = TrialLedger(engine)
    ledger.record(TRIAL, CLOSED, RETURNS)
    late = replace(TRIAL, start_us=3 * DAY_US, end_us=14 * DAY_US)
    ledger.record(late, np.append(CLOSED[3:], CLOSED[-1] + DAY_US), np.arange(8) / 100.0)
    found = ledger.trials(TRIAL.family)
    assert np.array_equal(found.closed_us, CLOSED[3:])
    assert np.array_equal(found.returns[:, found.keys.index(TRIAL.key)], RETURNS[3:])
    assert np.array_equal(found.returns[:, found.keys.index(late.key)], np.arange(7) / 100.0)
    ledger.record(replace(TRIAL, start_us=1), CLOSED + 1, RETURNS)
    with pytest.raises(InputError, match="no bar in common"):
        ledger.trials(TRIAL.family)
    with pytest.raises(NotFoundError, match="did you mean 'does x predict\\?'"):
        ledger.trials("does x predict")


def test_trials_on_hours_do_not_join_those_on_days(engine: Engine) -> None:
    ledger = TrialLedger(engine)
    ledger.record(TRIAL, CLOSED, RETURNS)
    hours = replace(TRIAL, data_hash="e" * 64)
    with pytest.raises(InputError, match=r"'does x predict\?' on bars of 1 and 24 h: .* a family of its own"):
        ledger.record(hours, np.arange(1, 11) * HOUR_US, RETURNS)
    assert len(ledger.trials(TRIAL.family)) == 1
    gap = np.delete(CLOSED, [3, 4])  # a day that is missing makes no other length
    assert ledger.record(replace(TRIAL, end_us=11 * DAY_US), gap, RETURNS[:8]).family_trials == 2


def test_the_database_refuses_to_change_or_remove_a_trial(engine: Engine) -> None:
    ledger = TrialLedger(engine)
    ledger.record(TRIAL, CLOSED, RETURNS)
    wrongs: list[Any] = [delete(TRIALS), update(TRIALS).values(family="other")]
    wrongs += [delete(TRIAL_INSTANTS), update(TRIAL_INSTANTS).values(bars=1)]
    if engine.dialect.name == "postgresql":
        wrongs.append(text("TRUNCATE trials, trial_instants"))
    for wrong in wrongs:
        with pytest.raises(DBAPIError, match="trials are never changed or removed"), engine.begin() as connection:
            connection.execute(wrong)
    assert ledger.trials(TRIAL.family).returns[:, 0].tobytes() == RETURNS.tobytes()


def test_a_trial_is_not_replaced_in_sqlite(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'lab.db'}")
    ledger = TrialLedger(engine)
    ledger.record(TRIAL, CLOSED, RETURNS)
    for table, changed in (("trials", "strategy"), ("trial_instants", "bars")):
        columns = [column.name for column in metadata.tables[table].columns]
        values = ", ".join("7" if name == changed else name for name in columns)
        with engine.begin() as connection:
            connection.execute(text(f"INSERT OR REPLACE INTO {table} SELECT {values} FROM {table}"))
    kept = ledger.trials(TRIAL.family)
    assert len(kept) == 1 and len(kept.returns) == 10
    assert not ledger.record(TRIAL, CLOSED, RETURNS).new
    assert ledger.record(replace(TRIAL, strategy="down"), CLOSED, RETURNS).new
    engine.dispose()


def test_several_may_record_at_once(url: str) -> None:
    open_database(url).dispose()

    def record(worker: int) -> None:
        engine = open_database(url)
        try:
            for number in range(8):
                own = number if number % 2 else number + 100 * worker  # half of them are the same for all
                ledger = TrialLedger(engine)
                ledger.record(replace(TRIAL, parameters={"number": own}), CLOSED, RETURNS + own)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(record, range(1, 5)))
    engine = open_database(url)
    found = TrialLedger(engine).trials(TRIAL.family)
    numbers = {own if own % 2 else own + 100 * worker for own in range(8) for worker in range(1, 5)}
    assert set(found.keys) == {replace(TRIAL, parameters={"number": number}).key for number in numbers}
    assert np.sort(found.returns[0]).tolist() == sorted(RETURNS[0] + number for number in numbers)
    engine.dispose()


@pytest.mark.parametrize(
    ("closed", "returns", "message"),
    [
        (CLOSED[:3], RETURNS, "give one for each"),
        (CLOSED[:0], RETURNS[:0], "give one for each"),
        (CLOSED[:2], np.array([0.0, np.nan]), "1970-01-03T00:00:00Z is not a number"),
        (CLOSED[:2][::-1], RETURNS[:2], "out of order"),
    ],
)
def test_returns_that_are_none_are_refused(engine: Engine, closed: Any, returns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrialLedger(engine).record(TRIAL, closed, returns)
    with pytest.raises(NotFoundError, match="the ledger is empty"):
        TrialLedger(engine).trials(TRIAL.family)


def test_parameters_without_a_plain_form_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be kept with a trial"):
        _ = replace(TRIAL, parameters={"x": object()}).key
    assert replace(TRIAL, parameters={"x": np.float64(0.5)}).key == replace(TRIAL, parameters={"x": 0.5}).key
    with pytest.raises(InputError, match="family of a trial is ''"):
        replace(TRIAL, family="")


# What tells code and data apart.

THRESHOLD = 0.5


def helper(value: Any) -> Any:
    return value * THRESHOLD


def decide(frame: pd.DataFrame) -> pd.Series:
    """Say something."""
    return helper(1.0 * (frame["close"] > 0.0))


def made(threshold: float, comment: bool = False) -> Any:
    if comment:

        def inner(price: float) -> float:
            """Other words."""
            # and a comment
            return float(price > threshold)

        return inner

    def inner(price: float) -> float:
        return float(price > threshold)

    return inner


class Weighted:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, frame: pd.DataFrame) -> float:
        return self.weight


def test_code_is_told_apart_by_what_it_does_and_not_by_its_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_hash(made(1.0)) == code_hash(made(1.0)) == code_hash(made(1.0, comment=True))
    assert code_hash(made(1.0)) != code_hash(made(2.0))
    assert code_hash(partial(made, 1.0)) != code_hash(partial(made, 2.0))
    assert code_hash(Weighted(1.0)) == code_hash(Weighted(1.0)) != code_hash(Weighted(2.0))
    before = code_hash(decide)
    monkeypatch.setitem(globals(), "THRESHOLD", 0.25)  # used by a function that it uses
    assert code_hash(decide) != before
    monkeypatch.undo()
    assert code_hash(decide) == before
    monkeypatch.setitem(globals(), "helper", lambda value: -value)
    assert code_hash(decide) != before


def test_data_is_told_apart_to_the_last_bit() -> None:
    market = random_market(10)
    other = market.close_BA.copy()
    other[3] = np.nextafter(other[3], 0.0)
    text = AvailableText("a", "title", 1, 2, scores={"m": 0.5})
    hashes = [
        data_hash(market),
        data_hash(replace(market, close_BA=other)),
        data_hash(market, [text]),
        data_hash(market, [replace(text, scores={"m": 0.6})]),
        data_hash(replace(market, assets=("other",))),
    ]
    assert len(set(hashes)) == 5 and data_hash(random_market(10)) == hashes[0]


def test_a_backtest_is_recorded_with_its_net_returns(sqlite: Engine) -> None:
    market, ledger = random_market(60), TrialLedger(sqlite)
    strategy = Strategy(decide)
    found = []
    for fee in (10.0, 10.0, 20.0):
        config = BacktestConfig(costs=Costs(fee_bps=fee), lags=())
        found.append(backtest(market, strategy, config, ledger=ledger, family="f"))
    assert [each.recorded.new for each in found if each.recorded] == [True, False, True]
    trials = ledger.trials("f")
    assert len(trials) == 2
    assert np.array_equal(trials.returns[:, trials.keys.index(found[2].recorded.key)], found[2].account.net_returns)
    with pytest.raises(InputError, match="a trial needs a family"):
        backtest(market, strategy, ledger=ledger)
