"""The chain of the ledger: what was entered stays as it was, in one order, or the first broken entry is named."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

import qubic_lab.database
from qubic_lab.database import open_database
from qubic_lab.errors import InputError, NotFoundError, QubicLabError
from qubic_lab.oracle.backtest.ledger import TRIAL_INSTANTS, TRIALS, Trial, TrialLedger, open_ledger, verify
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.store.chain import ENTRIES, START, append, ledger_database, read_entries, read_head
from qubic_lab.oracle.store.claims import Claim, ClaimLedger, ClaimOutcome
from qubic_lab.oracle.store.transactions import writing

TRIAL = Trial("does x predict?", "up", "c" * 64, "d" * 64, 0, 10 * DAY_US, {"bars": 5, "share": 0.1})
CLOSED = np.arange(1, 11) * DAY_US
RETURNS = np.random.default_rng(0).standard_normal(10) * 0.01
CLAIM = Claim("bitcoin in a day", True, 10, 20, Series("bitcoin", "exchange", 3_600), 10, {"last": 100.5})


def filled(engine: Engine) -> None:
    """Enter two trials, a claim, its score and a third trial: numbers 1 to 5."""
    trials, times = TrialLedger(engine, lambda: 5), iter((12, 25))
    trials.record(TRIAL, CLOSED, RETURNS)
    trials.record(replace(TRIAL, parameters={"bars": 6}), CLOSED, RETURNS)
    claims = ClaimLedger(engine, lambda: next(times))
    assert claims.enter(CLAIM) == 3
    assert claims.score(3, ClaimOutcome(True, 101.25, True))
    trials.record(replace(TRIAL, strategy="down"), CLOSED[:5], RETURNS[:5])


def tamper(engine: Engine, change: Any) -> None:
    """Change a row behind the ledger's back."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET session_replication_role = replica"))
        else:
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        connection.execute(change)
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET session_replication_role = DEFAULT"))


def test_each_entry_holds_the_hash_of_the_one_before(engine: Engine) -> None:
    assert verify(engine).hash == START
    filled(engine)
    last = verify(engine)
    with engine.connect() as connection:
        rows = connection.execute(select(ENTRIES).order_by(ENTRIES.c.number)).all()
        assert [row.kind for row in rows] == ["trial", "trial", "claim", "score", "trial"]
        assert [row.previous for row in rows] == [START, *(row.hash for row in rows[:-1])]
        assert [row.recorded_us for row in rows] == [5, 6, 12, 25, 26]
        assert read_head(connection) == last and (last.entries, last.hash) == (5, rows[-1].hash)
        assert read_head(connection, until_us=12).hash == rows[2].hash
    for row in rows:
        assert verify(engine, row.hash) == last
    with pytest.raises(QubicLabError, match=r"no entry has the head 'abc'"):
        verify(engine, "abc")


_ENTRY = ENTRIES.c.number
TAMPERED: list[tuple[str, Any, str]] = [
    ("a claim is reversed", update(ENTRIES).where(_ENTRY == 3).values(content='{"said":false}'), "entry 3: its hash"),
    ("a time is changed", update(ENTRIES).where(_ENTRY == 4).values(recorded_us=24), "entry 4: its hash"),
    ("an entry is gone", delete(ENTRIES).where(_ENTRY == 4), "entry 4: it is missing"),
    ("the last one is gone", delete(ENTRIES).where(_ENTRY == 5), "entry 5: a trial of 'does x predict?' has no entry"),
    ("a trial is changed", update(TRIALS).where(TRIALS.c.strategy == "down").values(start_us=1), "entry 5: its trial"),
    ("a trial is gone", delete(TRIALS).where(TRIALS.c.strategy == "down"), "entry 5: its trial is not"),
    (
        "returns are changed",
        update(TRIALS).where(TRIALS.c.strategy == "down").values(returns=b"no returns"),
        "entry 5: its trial is not",
    ),
    (
        "bars are changed",
        update(TRIAL_INSTANTS).where(TRIAL_INSTANTS.c.bars == 10).values(closed_us=b"x\x9c\x03\x00\x00\x00\x00\x01"),
        "entry 1: its trial is not",
    ),
]


@pytest.mark.parametrize(("change", "said"), [each[1:] for each in TAMPERED], ids=[each[0] for each in TAMPERED])
def test_the_first_broken_entry_is_named(engine: Engine, change: Any, said: str) -> None:
    filled(engine)
    head = verify(engine).hash
    tamper(engine, change)
    with pytest.raises(QubicLabError, match=said.replace("?", r"\?")) as caught:
        verify(engine, head)
    assert "\n" not in str(caught.value)


def test_a_tail_that_was_cut_off_is_seen_by_an_earlier_head_alone(engine: Engine) -> None:
    filled(engine)
    now = iter((40, 41))
    ClaimLedger(engine, lambda: next(now)).enter(replace(CLAIM, family="other", due_us=50))
    head = verify(engine).hash
    tamper(engine, delete(ENTRIES).where(_ENTRY == 6))
    assert verify(engine).entries == 5
    with pytest.raises(QubicLabError, match="it is another ledger, or it was rewritten"):
        verify(engine, head)


def test_the_database_refuses_to_change_remove_or_fork_entries(engine: Engine) -> None:
    filled(engine)
    with engine.connect() as connection:
        first, *_, last = connection.execute(select(ENTRIES).order_by(_ENTRY)).mappings().all()
    wrongs: list[Any] = [delete(ENTRIES), update(ENTRIES).values(family="other")]
    if engine.dialect.name == "postgresql":
        wrongs.append(text("TRUNCATE ledger_entries"))
    else:
        columns = ", ".join("'x'" if each.name == "content" else each.name for each in ENTRIES.columns)
        wrongs.append(text(f"INSERT OR REPLACE INTO ledger_entries SELECT {columns} FROM ledger_entries"))
    for wrong in wrongs:
        with pytest.raises(DBAPIError, match="never changed or removed"), engine.begin() as connection:
            connection.execute(wrong)
    new = {**first, "number": 6, "hash": "f" * 64, "about": None}
    for fork in ({"previous": last["previous"]}, {"previous": last["hash"], "about": 3}):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(insert(ENTRIES).values(**new | fork))
    assert verify(engine).entries == 5


def test_an_entry_is_written_with_its_trial_or_not_at_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("cut")

    monkeypatch.setattr("qubic_lab.oracle.backtest.ledger.append", fail)
    with pytest.raises(RuntimeError, match="cut"):
        TrialLedger(engine).record(TRIAL, CLOSED, RETURNS)
    with pytest.raises(NotFoundError, match="the ledger is empty"):
        TrialLedger(engine).trials(TRIAL.family)
    assert verify(engine).entries == 0


def test_threads_cannot_fork_the_chain(url: str) -> None:
    open_database(url).dispose()

    def enter(worker: int) -> None:
        engine = open_database(url)
        for number in range(10):
            with writing(engine) as writer:
                append(writer, "claim", f"family {worker}", {"number": number})
        engine.dispose()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(enter, range(4)))
    engine = open_database(url)
    assert verify(engine).entries == 40
    with engine.connect() as connection:
        times = [each.recorded_us for each in read_entries(connection, "claim")]
    assert times == sorted(set(times))
    engine.dispose()


PROCESS = """
import sys
from qubic_lab.oracle.store.chain import append, ledger_database
from qubic_lab.oracle.store.transactions import writing
with ledger_database() as engine:
    for number in range(20):
        with writing(engine) as writer:
            append(writer, "claim", sys.argv[1], {"number": number})
"""


def test_processes_share_the_ledger_in_the_cache_folder(tmp_path: Path, set_settings: Any) -> None:
    set_settings(ledger_url=None, cache=tmp_path / "cache")
    with pytest.raises(NotFoundError, match=r"ledger\.db does not exist"), ledger_database(make=False):
        pass
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, name]) for name in ("a", "b")]
    assert [process.wait(60) for process in running] == [0, 0]
    assert (tmp_path / "cache" / "ledger.db").is_file()
    with ledger_database(make=False) as engine:
        assert verify(engine).entries == 40
    with open_ledger(f"sqlite:///{tmp_path}/other.db") as other:
        assert verify(other.engine).entries == 0
    set_settings(ledger_url="sqlite:////proc/none.db")
    with pytest.raises(QubicLabError, match="check QUBIC_LAB_LEDGER_URL"), ledger_database():
        pass


def test_trials_from_before_the_chain_are_its_first_entries(url: str) -> None:
    engine = open_database(url)
    ledger = TrialLedger(engine, iter(range(9, 0, -1)).__next__)
    for number in range(3):
        ledger.record(replace(TRIAL, parameters={"number": number, "word": "größer"}), CLOSED, RETURNS + number)
    config = Config()
    config.set_main_option("script_location", str(Path(qubic_lab.database.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
    engine.dispose()
    engine = open_database(url)
    assert verify(engine).entries == 3
    assert TrialLedger(engine).record(replace(TRIAL, strategy="down"), CLOSED, RETURNS).new
    assert verify(engine).entries == 4
    engine.dispose()


def test_on_given_bars_a_signal_counts_once_and_earlier_ones_count_too(engine: Engine) -> None:
    ledger = TrialLedger(engine)
    ledger.record(TRIAL, CLOSED[:6], RETURNS[:6])  # the same signal, weeks ago
    ledger.record(replace(TRIAL, parameters={"bars": 6}), CLOSED[2:6], RETURNS[2:6])  # one that was not tried again
    ledger.record(replace(TRIAL, parameters={"bars": 7}), CLOSED - 100 * DAY_US, RETURNS)  # on other bars alone
    now = ledger.record(replace(TRIAL, end_us=11 * DAY_US), CLOSED[3:], RETURNS[3:])
    corrected = ledger.record(replace(TRIAL, data_hash="e" * 64), CLOSED[3:], RETURNS[3:] * 2)
    found = ledger.trials(TRIAL.family, CLOSED[3:])
    assert len(found) == 3 and {now.key, corrected.key} < set(found.keys)
    np.testing.assert_array_equal(found.returns[:, found.keys.index(now.key)], RETURNS[3:])
    other = next(place for place, key in enumerate(found.keys) if key not in (now.key, corrected.key))
    np.testing.assert_array_equal(found.returns[:, other], [*RETURNS[3:6], 0.0, 0.0, 0.0, 0.0])
    with pytest.raises(InputError, match="no bar in common"):
        ledger.trials(TRIAL.family, CLOSED + 1)


def test_the_state_of_a_ledger_is_that_of_its_trials(engine: Engine) -> None:
    ledger = TrialLedger(engine)
    states = [ledger.state()]
    for strategy in ("up", "up", "down"):
        ledger.record(replace(TRIAL, strategy=strategy), CLOSED, RETURNS)
        states.append(ledger.state())
    assert states[1] == states[2] and len(set(states)) == 3
    with open_ledger("sqlite://") as other:
        assert other.state() == states[0]
        for strategy in ("down", "up"):
            other.record(replace(TRIAL, strategy=strategy), CLOSED, RETURNS)
        assert other.state() == states[3]
