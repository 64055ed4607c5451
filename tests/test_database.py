"""The database: opened by several at once, from nothing, on SQLite and PostgreSQL; and the history of votes."""

import fcntl
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import all_pages, emptied, migrate
from sqlalchemy import Engine, inspect, text

from qubic_lab.api.problems import problem_of
from qubic_lab.consensus.weights import NO_RECORD
from qubic_lab.database import check_url, missing_migrations, open_database
from qubic_lab.errors import DatabaseGoneError, InputError, NotFoundError, QubicLabError
from qubic_lab.oracle.backtest.ledger import TrialLedger
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.schema import metadata
from qubic_lab.votes.history import Grading, ListedVote, VoteHistory, VoteSummary

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
BARS = Series("qubic-network", "file", 60)
SUMMARY = VoteSummary("0" * 32, NOON, "nodes", "What is 2 + 2?", "answer", 0.9, False, 3, 60, 1.5)


def numbered(number: int, **values: object) -> VoteSummary:
    return replace(SUMMARY, id=f"{number:032}", created_utc=NOON + timedelta(seconds=number // 2), **values)


def test_migrations_make_the_tables_that_the_modules_define(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_oracles_tables_go_and_come_again_and_the_votes_stay(url: str) -> None:
    assert missing_migrations(url) is None
    first = open_database(url)
    assert missing_migrations(url) == []
    trail = {"question": "Was ist 2 + 2?", "groups": [[0, 1], [2]], "text": "四", "none": None, "share": 1 / 3}
    VoteHistory(first).add(SUMMARY, trail)
    VoteHistory(first).grade(SUMMARY.id, [Grading("a", "a", 0, True)], NOON)
    PriceStore(first).add(BARS, [Price(0, 60, 1.5)])
    made = set(inspect(first).get_table_names())
    migrate(first, "0001")
    assert set(inspect(first).get_table_names()) == {"alembic_version", "consensus_gradings", "consensus_votes"}
    first.dispose()
    missing = missing_migrations(url)
    assert missing is not None and missing[0] == "0002" and missing[-1] >= "0007"
    again = open_database(url)
    assert set(inspect(again).get_table_names()) == made
    assert PriceStore(again).series() == []
    with pytest.raises(NotFoundError, match="the ledger is empty"):
        TrialLedger(again).trials("any")
    history = VoteHistory(again)
    assert history.page().votes == (ListedVote(**asdict(SUMMARY)),)
    assert history.trail(SUMMARY.id) == trail
    with pytest.raises(NotFoundError, match="no vote 'x'"):
        history.trail("x")
    assert [(vote.voter, vote.right) for vote in history.past_votes()] == [("a", True)]
    migrate(again, "base")
    assert set(inspect(again).get_table_names()) == {"alembic_version"}
    again.dispose()


def test_threads_may_open_one_or_several_at_once(url: str, tmp_path: Path) -> None:
    urls = [url] * 4 + [f"sqlite:///{tmp_path / name}.db" for name in "abcd"]
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(open_database, urls))
    assert {len(inspect(engine).get_table_names()) for engine in engines} == {len(metadata.tables) + 1}
    for engine in engines:
        engine.dispose()


def test_a_file_that_another_makes_is_not_touched_meanwhile(tmp_path: Path) -> None:
    file, opened = tmp_path / "lab.db", threading.Event()

    def open_it() -> None:
        open_database(f"sqlite:///{file}").dispose()
        opened.set()

    with (tmp_path / "lab.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=open_it)
        thread.start()
        assert not opened.wait(0.2) and not file.exists()
    assert opened.wait(60) and file.exists()
    thread.join()


def test_pages_hold_each_vote_once_newest_first_even_at_equal_times(engine: Engine) -> None:
    history = VoteHistory(engine)
    for number in range(11):
        history.add(numbered(number, conflict=number % 3 == 0), {})
    seen = all_pages(history.page, "votes", 4)
    assert [vote.id for vote in seen] == [f"{number:032}" for number in reversed(range(11))]
    assert [vote.id for vote in history.page(conflicts=True).votes] == [f"{number:032}" for number in (9, 6, 3, 0)]
    for wrong in ({"limit": 0}, {"limit": 201}, {"cursor": "yesterday"}):
        with pytest.raises(InputError):
            history.page(**wrong)


def test_a_vote_with_characters_that_no_database_takes_is_stored_without_them(engine: Engine) -> None:
    history = VoteHistory(engine)
    history.add(numbered(1, question="a\0b\ud800"), {"voters": [{"text": "\0c"}], "decision": {"winner": 0}})
    [found] = history.page().votes
    assert found.question == "ab?" and history.trail(found.id)["voters"] == [{"text": "c"}]


def test_metrics_are_by_mode(engine: Engine) -> None:
    history = VoteHistory(engine)
    history.add(numbered(0, confidence=0.5, seconds=1.0, tokens=10), {})
    history.add(numbered(1, confidence=None, seconds=3.0, tokens=30, conflict=True, level="fallback"), {})
    history.add(numbered(2, mode="single", confidence=None), {})
    nodes, single = history.metrics()
    assert (nodes.mode, nodes.votes, nodes.conflicts, nodes.mean_confidence) == ("nodes", 2, 1, 0.5)
    assert (nodes.mean_seconds, nodes.mean_tokens, nodes.levels) == (2.0, 20.0, {"answer": 1, "fallback": 1})
    assert (single.votes, single.mean_confidence) == (1, None)


def test_gradings_make_records_and_the_history_of_errors(engine: Engine) -> None:
    history = VoteHistory(engine)
    for number in range(3):
        history.add(numbered(number), {})
        right, wrong = Grading("a", "a", 0, True), Grading("b#1", "b", 1, number == 2)
        history.grade(f"{number:032}", [wrong, right, Grading("b#2", "b", None, False)], NOON + timedelta(days=number))
    history.grade("0" * 32, [Grading("a", "a", 1, False)], NOON)  # in place of the first
    records = history.records()
    assert records["a"] == NO_RECORD.after(False).after(True).after(True)
    assert records["b"].wrong > records["b"].right > 0
    past = [(vote.voter, vote.right) for vote in history.past_votes()]
    assert past == [("a", False), ("a", True), ("b", False), ("a", True), ("b", True)]


def test_a_database_of_a_later_version_is_left_alone(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(QubicLabError, match="later version"):
        open_database(url)


def test_only_the_folder_of_the_default_database_is_made(tmp_path: Path, set_settings: Callable[..., None]) -> None:
    file = tmp_path / "misspelt" / "lab.db"
    said = f"folder {file.parent} of database lab.db does not exist: make it, or mend QUBIC_LAB_DATABASE_URL"
    with pytest.raises(InputError, match=re.escape(said)):
        open_database(f"sqlite:///{file}")
    set_settings(database_url=f"sqlite:///{file}", data=tmp_path / "new" / "data")
    for look in (check_url, open_database):
        with pytest.raises(InputError, match=re.escape(said)):
            look()
    assert not file.parent.exists()
    set_settings(database_url=None)
    check_url()
    open_database().dispose()
    assert (tmp_path / "new" / "data" / "qubic-lab.db").is_file()


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ("mysql://lab@/x", InputError, "'mysql'"),
        ("no url", InputError, "URL cannot be read"),
        ("sqlite:////proc/none/lab.db", InputError, "/proc/none"),
        (
            "sqlite:////proc/lab.db",
            QubicLabError,
            r"^database sqlite:////proc/lab.db cannot be used \(.*\): check QUBIC_LAB",
        ),
        ("postgresql://lab:secret@127.0.0.1:1/lab", QubicLabError, "127.0.0.1:1/"),
    ],
)
def test_a_database_that_cannot_be_opened_is_named_in_one_line_without_its_password(
    wrong: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        open_database(wrong)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_and_found_again(postgres_url: str) -> None:
    socket = Path(postgres_url.rpartition("host=")[2]) / ".s.PGSQL.5432"
    engine = open_database(emptied(postgres_url))

    def ask() -> int:
        with engine.connect() as connection:
            return int(connection.scalar(text("SELECT 1")))

    with engine.connect() as running, engine.connect() as killer:
        running.scalar(text("SELECT 1"))
        others = "pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'lab'"
        killer.scalar(text(f"SELECT count(pg_terminate_backend(pid)) FROM {others}"))
        with pytest.raises(DatabaseGoneError, match="does not answer: start it"):
            running.scalar(text("SELECT 1"))
    assert ask() == 1, "a lost connection alone is replaced"
    engine.dispose()
    hidden = socket.rename(socket.with_suffix(".gone"))
    try:
        with pytest.raises(DatabaseGoneError, match="does not answer: start it"):
            ask()
    finally:
        hidden.rename(socket)
    assert ask() == 1
    assert problem_of(DatabaseGoneError("gone", 5.0)).status_code == 503
    engine.dispose()
