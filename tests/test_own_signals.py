"""A user's own signal: audited first, then traded, kept in the ledger and judged with all that were tried before."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Run

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.ledger import open_ledger
from qubic_lab.oracle.model.timestamps import HOUR_US, iso
from qubic_lab.studies import oracle_backtest as study
from qubic_lab.studies.market_bars import load_bars
from qubic_lab.studies.own_signals import own_signals

pytestmark = pytest.mark.usefixtures("quick_audits")
SIGNALS = """
import numpy as np

def momentum(frame):
    return np.sign(frame["close"].diff(20)).fillna(0.0)

def reversion(frame):
    return -np.sign(frame["close"].diff(5)).fillna(0.0)

def leaking(frame):
    return np.sign(frame["close"].shift(-1) - frame["close"]).fillna(0.0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user, with signals and bars."""
    close = 100.0 * np.exp(np.cumsum(np.random.default_rng(3).normal(0.0, 0.01, 400)))
    rows = [f"{iso(19_000 * 24 * HOUR_US + n * HOUR_US)},{c:.4f},{c:.4f},{c:.4f},{c:.4f}" for n, c in enumerate(close)]
    (tmp_path / "btc.csv").write_text("\n".join(["Date,Open,High,Low,Close", *rows]) + "\n")
    (tmp_path / f"signals_{tmp_path.name}.py").write_text(SIGNALS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_audits_trades_records_and_judges(folder: Path, here: Run) -> None:
    line = f"oracle backtest {{}} --data btc.csv --stamp open --cuts 4 --ledger sqlite:///{folder}/ledger.db"
    first = here(line.format(f"signals_{folder.name}:momentum") + " --json")
    found = json.loads(first.out)
    assert first.status == 0 and found["audit"]["passed"]
    assert (found["family"]["trials"], found["family"]["question"]) == (1, "own signals, 1 h")
    said = here(line.format(f"signals_{folder.name}.py:reversion"))
    assert said.status == 0
    for part in (
        "does not look ahead",
        "walk forward",
        "2 own signal(s) were tried on these bars",
        "Own signals, 1 h: no",
    ):
        assert part in said.out
    again = here(line.format(f"signals_{folder.name}:momentum"))
    assert "was already in the ledger, where 2 own signal(s)" in again.out


def test_a_signal_that_looks_ahead_is_not_traded(folder: Path, here: Run) -> None:
    ledger = f"sqlite:///{folder}/ledger.db"
    said = here(f"oracle backtest signals_{folder.name}:leaking --data btc.csv --stamp open --ledger {ledger}")
    assert said.status == 1 and "looks ahead" in said.out and "walk forward" not in said.out
    assert not (folder / "ledger.db").exists()
    (bars,) = load_bars("btc.csv", "bitcoin", {"stamp": "open"}, join=False)
    with pytest.raises(InputError, match=r"signal signals_.*:leaking is refused: leaking: bar 0"):
        own_signals([f"signals_{folder.name}:momentum", f"signals_{folder.name}:leaking"], bars, cuts=4)


def test_own_signals_are_one_family_that_counts_every_trial(folder: Path) -> None:
    (bars,) = load_bars("btc.csv", "bitcoin", {"stamp": "open"}, join=False)
    names = [f"signals_{folder.name}:{name}" for name in ("momentum", "reversion")]
    with open_ledger("sqlite://") as ledger:
        own = own_signals(names, bars, cuts=4)
        family = study.study_family(bars, ledger, Costs(5.0), signals=own, draws=3, resamples=100)
    assert [each.strategy.title for each in family.tried] == ["momentum", "reversion"]
    assert (family.recorded, family.verdict.trials) == (2, 2)
    assert all(made.lookahead is each.report for made, each in zip(family.tried, own, strict=True))
    assert {row["signal"] for row in study.trial_rows([family])} == {"momentum", "reversion"}


def test_the_template_in_the_docs_is_a_signal_that_passes(folder: Path) -> None:
    docs = (Path(__file__).parents[1] / "docs" / "oracle.md").read_text()
    template = docs.partition("```python\n# my_signals.py\n")[2].partition("```")[0]
    (folder / f"template_{folder.name}.py").write_text(template)
    (bars,) = load_bars("btc.csv", "bitcoin", {"stamp": "open"}, join=False)
    assert own_signals([f"template_{folder.name}:momentum"], bars, cuts=4)[0].report.passed
