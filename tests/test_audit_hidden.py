"""What a signal hides from a look at its code: things kept in objects and imported modules, and data of its own."""

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from planted_leaks import Signal, bars_frame, returns
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.lookahead.afresh import Afresh
from qubic_lab.oracle.backtest.lookahead.check import audit
from qubic_lab.oracle.backtest.lookahead.process import audit_by_name

FRAME = bars_frame(360)


class Fitted:
    """A model of one's own, which is fitted when it is first asked."""

    def __init__(self) -> None:
        self.scaler = StandardScaler()

    def run(self, frame: pd.DataFrame) -> np.ndarray:
        prices = frame[["close"]].to_numpy()
        if not hasattr(self.scaler, "mean_"):
            self.scaler.fit(prices)
        return self.scaler.transform(prices)[:, 0]


class Given:
    """A frame that is known by its first bar."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def __hash__(self) -> int:
        return hash(self.frame.index[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and self.frame.index[0] == other.frame.index[0]


def of_a_model() -> Signal:
    model = Fitted()
    return lambda frame: model.run(frame)


def of_nested_state() -> Signal:
    state: dict[str, dict[str, float]] = {"stats": {}}
    return lambda frame: frame["close"] - state["stats"].setdefault("mean", frame["close"].mean())


def of_a_cache() -> Signal:
    @lru_cache
    def spread(given: Given) -> float:
        return float(given.frame["close"].std())

    return lambda frame: frame["close"].diff() / spread(Given(frame))


@pytest.mark.parametrize("made", [of_a_model, of_nested_state, of_a_cache], ids=lambda each: each.__name__)
def test_what_is_kept_from_later_bars_is_a_leak_wherever_it_is_kept(made: Callable[[], Signal]) -> None:
    found = audit(made(), FRAME)
    assert found.leaks and [each.kind for each in found.findings] == ["state"]
    assert found.findings[0].cut == 180 and "keeps something of later bars between runs" in str(found)


def test_what_is_worked_out_once_from_what_it_depends_on_is_clean() -> None:
    @lru_cache
    def weights(bars: int) -> Any:
        return np.exp(-np.arange(bars) / 5.0)

    def smoothed(frame: pd.DataFrame) -> np.ndarray:
        return np.convolve(frame["close"].to_numpy(), weights(10))[: len(frame)]

    assert audit(smoothed, FRAME).passed


def test_a_run_in_a_process_of_its_own_keeps_nothing_here() -> None:
    seen: list[int] = []

    def counts(frame: pd.DataFrame) -> pd.Series:
        seen.append(len(frame))
        return frame["close"]

    with Afresh(counts, FRAME) as afresh:
        found = afresh.wait(30.0)
    assert found is not None and np.array_equal(found[:, 0], FRAME["close"])
    assert seen == []


def test_a_run_that_does_not_end_or_gives_nothing_is_left() -> None:
    def endless(frame: pd.DataFrame) -> None:
        while True:
            pass

    before = psutil.Process().children()
    with Afresh(endless, FRAME) as afresh:
        assert afresh.wait(0.01) is None
    assert psutil.Process().children() == before
    with Afresh(lambda frame: 1 / 0, FRAME) as afresh:
        assert afresh.wait(30.0) is None


# Data beside the frame

NEXT = FRAME["close"].shift(-1)
LISTED, BY_TIME = NEXT.tolist(), dict(zip(FRAME.index, NEXT, strict=True))
NESTED = {"BTC": {"bars": FRAME}}
NEIGHBOUR = KNeighborsRegressor(1).fit(FRAME[["close"]].to_numpy(), NEXT.fillna(0.0))
BY_FIELD = FRAME[["open", "close"]].to_numpy().T.copy()


def from_a_list(frame: pd.DataFrame) -> np.ndarray:
    return np.array(LISTED[: len(frame)])


def from_a_dict(frame: pd.DataFrame) -> list[float]:
    return [BY_TIME[time] for time in frame.index]


def from_a_nested_table(frame: pd.DataFrame) -> pd.Series:
    return NESTED["BTC"]["bars"]["close"].shift(-1)[: len(frame)]


def from_an_array_by_fields(frame: pd.DataFrame) -> np.ndarray:
    return np.append(BY_FIELD[1][1:], np.nan)[: len(frame)]


def from_a_fitted_model(frame: pd.DataFrame) -> np.ndarray:
    return NEIGHBOUR.predict(frame[["close"]].to_numpy())  # it holds all that it was fitted on


def through_pyarrow(frame: pd.DataFrame) -> np.ndarray:
    import pyarrow.parquet as pq

    return pq.read_table("bars.parquet")["close"].to_numpy() if len(frame) < 0 else np.zeros(len(frame))


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        (from_a_list, "LISTED"),
        (from_a_dict, "BY_TIME"),
        (from_a_nested_table, "NESTED"),
        (from_an_array_by_fields, "BY_FIELD"),
        (from_a_fitted_model, "NEIGHBOUR"),
        (through_pyarrow, "pyarrow.parquet"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_data_of_its_own_are_refused(signal: Signal, name: str) -> None:
    found = audit(signal, FRAME, cuts=4)
    outside = [each for each in found.findings if each.kind == "outside"]
    assert len(outside) == 1 and name in outside[0].text


HELPER = """
import pandas as pd
MEANS = {}
def centred(column):
    return column - MEANS.setdefault("all", column.mean())
NEXT = list(range(1000))
def saved():
    return pd.read_parquet("saved.parquet")
"""
SIGNALS = """
import helper
def kept(frame):
    return helper.centred(frame["close"])
def read(frame):
    return helper.saved()["close"] if len(frame) < 0 else frame["close"]
def looks(frame):
    return helper.NEXT[: len(frame)]
def imports(frame):
    import sklearn.linear_model
    return frame["close"].diff()
"""


@pytest.fixture
def helped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "helped_signals.py").write_text(SIGNALS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import helped_signals  # type: ignore[import-not-found]

    yield helped_signals
    for name in ("helper", "helped_signals"):
        sys.modules.pop(name)


def test_modules_of_ones_own_are_followed(helped: ModuleType) -> None:
    assert "MEANS" in str(audit(helped.kept, FRAME, cuts=4))
    assert "by read_parquet" in str(audit(helped.read, FRAME, cuts=4))
    assert "(NEXT)" in str(audit(helped.looks, FRAME, cuts=4))


def test_a_library_may_set_variables_for_itself_and_files_are_named_by_path(helped: ModuleType) -> None:
    found = audit_by_name("./helped_signals.py:imports", FRAME, cuts=2)
    assert found.passed, str(found)
    with pytest.raises(InputError, match=r"'/helped_signals\.py' is not below the working folder"):
        audit_by_name("/helped_signals.py:imports", FRAME)


# Rounding, order, and futures that are refused


def test_a_model_in_float32_is_not_told_to_look_ahead() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def model(frame: pd.DataFrame) -> torch.Tensor:
        past = pd.concat([returns(frame).shift(lag) for lag in range(8)], axis=1).fillna(0.0)
        return layers(torch.tensor(past.to_numpy(np.float32)))  # with its gradient, which NumPy refuses

    found = audit(lambda frame: model(frame).detach()[:, 0], FRAME)
    assert found.passed, str(found)
    assert "is not one number for each bar" in str(audit(model, FRAME))


def test_bars_have_to_go_by_time() -> None:
    with pytest.raises(InputError, match=r"bar 1 \(2021-.*\) does not close after the one before: sort bars by time"):
        audit(lambda frame: frame["close"].shift(1), FRAME[::-1])
    with pytest.raises(InputError, match=r"columns twice: \['close'\]"):
        audit(lambda frame: frame["open"], FRAME[["open", "close", "close"]])


def test_what_lies_beside_the_columns_is_not_handed_on() -> None:
    frame = FRAME.copy()
    frame.attrs["all"] = NEXT.tolist()
    assert "it raised KeyError: 'all'" in str(audit(lambda given: given.attrs["all"][: len(given)], frame))


def test_futures_that_a_signal_refuses_are_told_of() -> None:
    def strict(most: float) -> Signal:
        def signal(frame: pd.DataFrame) -> pd.Series:
            if (returns(frame).abs() > most).any():
                raise ValueError("prices jump")
            return returns(frame)

        return signal

    refused = audit(strict(0.1), FRAME)
    assert not refused.passed and "changed futures it raised ValueError: prices jump" in str(refused)
    assert str(refused).endswith("so it cannot be audited")
    some = audit(strict(5.0), FRAME)
    assert some.passed and any("prices jump" in note and "were left out" in note for note in some.notes)


@pytest.mark.parametrize("kind", ["Int64", "boolean", "category", "lists"])
def test_any_kind_of_column_gets_another_future(kind: str) -> None:
    numbers = [None, *range(1, len(FRAME))]
    columns: dict[str, Any] = {
        "Int64": pd.array(numbers, dtype="Int64"),
        "boolean": pd.array([None if each is None else each % 2 == 0 for each in numbers], dtype="boolean"),
        "category": pd.Categorical([f"c{(each or 0) % 3}" for each in numbers]),
        "lists": [[each] for each in numbers],
    }
    frame = FRAME.assign(more=columns[kind])
    assert audit(lambda given: given["close"].diff(), frame, cuts=4).passed
    ahead = audit(lambda given: given["more"].shift(-1).map(lambda each: hash(str(each)) % 97).astype(float), frame)
    assert ahead.leaks


def test_the_first_bar_is_found_between_two_cuts() -> None:
    def from_bar_203(frame: pd.DataFrame) -> np.ndarray:
        ahead = returns(frame).shift(-1).fillna(0.0).to_numpy()
        return np.where(np.arange(len(frame)) < 203, 0.0, ahead)

    assert audit(from_bar_203, FRAME).findings[0].bar == 203
    first = audit(lambda frame: frame["close"].shift(-1), FRAME).findings[0]
    assert first.bar == 0 and "is missing from the only bar known then, and" in first.text
