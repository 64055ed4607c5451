"""Texts are scored as they come, beside whatever brings them: all of them, once, and no end waits for a long look."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from qubic_lab.database import open_database
from qubic_lab.errors import ModelError
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import DAY_US, now_us
from qubic_lab.oracle.sentiment.scores import SentimentScore
from qubic_lab.oracle.sentiment.stored import Scorer
from qubic_lab.oracle.store.text_store import TextStore

WORDS = ("rises", "falls", "waits", "jumps", "sinks", "sleeps", "wakes", "turns")


def text(number: int, days_ago: int = 0) -> Text:
    title = f"Bitcoin {WORDS[number % len(WORDS)]} for reason number {number} of {number * 7}"
    at_us = now_us() - days_ago * DAY_US - number
    return Text("feed", str(number), "news", title, "", f"https://example.org/{number}", "feed", at_us, ("bitcoin",))


@pytest.fixture
def store(tmp_path: Path) -> TextStore:
    return TextStore(open_database(f"sqlite:///{tmp_path / 'lab.db'}"))


class Counting:
    """Finds every text neutral, and keeps what it was asked."""

    name, version = "counting", "1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        self.asked += texts
        return [SentimentScore(0.25, 0.5, 0.25, self.name, self.version) for _ in texts]


def test_old_and_new_texts_are_scored_once(store: TextStore) -> None:
    store.add([text(number, days_ago=40) for number in range(3)])
    model = Counting()
    with Scorer(store, model, ["bitcoin", "ethereum"], every_s=0.01).running() as scorer:
        store.add([text(number) for number in range(3, 7)])
    assert scorer.scored == 7
    assert len(set(model.asked)) == len(model.asked) == 8, "each text, and the one that loads the model"
    with Scorer(store, Counting(), ["bitcoin"]).running() as again:
        pass
    assert again.scored == 0


def test_what_is_missing_is_told_before_anything_runs(store: TextStore) -> None:
    class Missing(Counting):
        def score(self, texts: Sequence[str]) -> list[SentimentScore]:
            raise ModelError("its weights are not installed")

    begun = False
    with pytest.raises(ModelError, match="not installed"), Scorer(store, Missing(), ["bitcoin"]).running():
        begun = True
    assert not begun
