"""Texts: each once, whoever repeats it; corrected by later rows; with their scores, found by coin."""

import random
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from clocks import StandingClock
from databases import all_pages
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US
from qubic_lab.oracle.store.tables import NEWS_DATA
from qubic_lab.oracle.store.text_reader import TextCounts, TextReader
from qubic_lab.oracle.store.text_store import LEAST_SHARED, Score, TextIndex, TextStore, fingerprint, shared, words_of
from qubic_lab.oracle.store.transactions import SETTLE_US, Added

NOON = 1_700_000_000 * SECOND_US
QUBIC, BITCOIN = "qubic-network", "bitcoin"
STORY = Text("wire", "1", "news", "Qubic opens a second network", "", "https://a.org", "Wire", NOON, (QUBIC,))
FAR = 1 << 60
BODY = (
    "The network said on Monday that it will open a second chain for computations that need no vote of all nodes, and "
    "that miners may choose between both from next month on. Traders had expected the step for weeks, and the price "
    "changed little after it was announced. A spokesman declined to tell which partners will take part."
)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(NOON + HOUR_US)


@pytest.fixture
def store(engine: Engine, clock: StandingClock) -> TextStore:
    return TextStore(engine, clock)


def titles(store: TextReader, coin: str = QUBIC, **options: Any) -> list[str]:
    return [text.title for text in store.read(coin, 0, FAR, **options)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Bitcoin falls to 60,000", "BITCOIN falls  to $60000!", True),
        ("Miners &amp; traders", "<b>Miners</b> traders https://t.co/x", True),
        ("The end… [+123 chars]", "The end... [+77 chars]", True),
        ("ﬁne", "FINE", True),
        ("Bitcoin falls to 60,000", "Bitcoin falls to 50,000", False),
        ("Bitcoin at +5% today", "Bitcoin at -5% today", False),
        ("Bitcoin at 1.5 percent", "Bitcoin at 15 percent", False),
        ("Bitcoin 🚀", "Bitcoin 📉", False),
        ("!!!", "???", False),
    ],
)
def test_numbers_and_signs_make_another_text_but_case_and_markup_do_not(one: str, other: str, same: bool) -> None:
    prints = fingerprint("", one), fingerprint("", other)
    assert (prints[0].content_hash == prints[1].content_hash) == same
    assert same or shared(fingerprint(one, ""), fingerprint(other, "")) < LEAST_SHARED


def test_words_are_found_in_any_language() -> None:
    assert words_of("Le prix d’été: 1’000,5 — «haut»") == ["le", "prix", "d", "été", "1000", "5", "haut"]
    assert words_of("2024-11-05 比特币 上涨") == ["2024", "11", "05", "比特币", "上涨"]


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_has_a_fingerprint_and_repeats_itself(title: str, body: str) -> None:
    title, body = (part.encode("utf-8", "replace").decode() for part in (title, body))
    one, again = fingerprint(title, body), fingerprint(title, body)
    assert one.content_hash == again.content_hash
    assert shared(one, again) in (0.0, 1.0)


def test_near_duplicates_are_those_that_share_most_word_triples() -> None:
    """Against all pairs, told the slow way."""
    rng = random.Random(5)
    words = [f"{a}{b}" for a in "bcdfgklm" for b in ("a", "e", "i", "o", "u")]
    texts = [rng.choices(words, k=40)]
    while len(texts) < 150:
        changed = list(rng.choice(texts))
        for _ in range(rng.choice([0, 1, 2, 5, 40])):
            changed[rng.randrange(40)] = rng.choice(words)
        texts.append(changed)
    index, found, expected, agreed = TextIndex(1_000), 0, 0, 0
    prints = [fingerprint("", " ".join(text)) for text in texts]
    for id, print_ in enumerate(prints):
        like = [n for n in range(id) if shared(prints[n], print_) >= LEAST_SHARED]
        got = index.find(("s", str(id)), NOON, print_)
        assert got is None or got in like
        found, expected, agreed = found + (got is not None), expected + bool(like), agreed + (got in like[:1])
        index.add(id, ("s", str(id)), NOON, print_)
    assert 50 < expected < 140 and found >= 0.97 * expected and agreed >= 0.9 * expected


def test_an_index_forgets_its_oldest_texts() -> None:
    index = TextIndex(2)
    for id in range(3):
        index.add(id, ("s", str(id)), NOON, fingerprint(f"{id} {id} {id} {id} other title", f"{id} " * 60))
    again = fingerprint("0 0 0 0 other title", "0 " * 60)
    assert index.find(("t", "0"), NOON, again) is None
    assert index.find(("t", "0"), NOON, fingerprint("2 2 2 2 other title", "")) == 2


def test_a_text_is_added_once_and_corrected_by_a_later_row(store: TextStore, clock: StandingClock) -> None:
    assert store.add([STORY, replace(STORY, external_id="2", title="Something else")]) == Added(2, 2)
    before = store.stamp(QUBIC)
    assert store.add([STORY, replace(STORY, score=7, url="https://b.org")]) == Added(2)
    assert store.stamp(QUBIC) == before
    clock.us += 10 * SETTLE_US
    mended = replace(STORY, title="Qubic opens a third network", coins=(BITCOIN,), published_us=NOON + 5)
    assert store.add([mended, mended]) == Added(2, 1, 1)
    assert titles(store) == ["Something else"] and titles(store, BITCOIN) == ["Qubic opens a third network"]
    assert store.stamp(QUBIC) == store.stamp(BITCOIN) > before  # it is no longer about that coin
    assert titles(store.as_of(before)) == [STORY.title, "Something else"]
    assert titles(store.as_of(before), BITCOIN) == []
    clock.us += 1
    assert store.add([STORY]).corrected == 1  # as it was: no duplicate of its own first version
    assert titles(store) == ["Something else", STORY.title]


def test_a_stored_text_is_whole(store: TextStore, clock: StandingClock) -> None:
    text = Text("hn", "x", "social", "T", "B\nb", "u", "p", None, (QUBIC, BITCOIN), "me", "en", 3, -1)
    store.add([text])
    (found,) = store.read(QUBIC, 0, FAR)
    whole = vars(text) | {"coins": (BITCOIN, QUBIC)}
    assert {name: getattr(found, name) for name in whole} == whole
    assert (found.id, found.at_us, found.known_us, found.duplicate_of) == (1, clock.us, clock.us, None)


def test_what_databases_refuse_is_mended(store: TextStore) -> None:
    long = "x" * 600
    store.add([replace(STORY, title="a\0b \ud83d", publisher=long, author=long)])
    (found,) = store.read(QUBIC, 0, FAR)
    assert (found.title, len(found.publisher), len(found.author)) == ("ab ?", 256, 256)
    assert store.add([replace(STORY, title="a\0b \ud83d", publisher=long)]).added == 0


REPEATED: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {"title": "QUBIC opens a second network!"}, True),
    ({"body": BODY}, {"body": "Another body of the same story."}, True),  # syndicated: title alone
    ({"body": BODY}, {"body": "Another body.", "published_us": NOON + 2 * DAY_US}, False),
    ({"title": "Bitcoin price today", "body": BODY}, {"title": "Bitcoin price today", "body": "Up."}, False),
    ({"title": "Bitcoin falls to 60,000"}, {"title": "Bitcoin falls to 50,000"}, False),
    ({"title": "Bitcoin falls to 60,000"}, {"title": "Bitcoin falls to 60,000"}, True),
    ({"body": BODY}, {"title": "Second chain for Qubic", "body": BODY.replace("for weeks", "for months")}, True),
    ({"body": BODY}, {"title": "Second chain for Qubic in 2025", "body": BODY}, False),
    ({"body": BODY}, {"title": "Second chain for Qubic", "body": BODY[:120]}, False),
    ({}, {"published_us": NOON + 6 * DAY_US}, True),
    ({}, {"published_us": NOON + 8 * DAY_US}, False),  # short: said anew
    ({"body": BODY}, {"published_us": NOON + 300 * DAY_US, "body": BODY}, True),
    ({"body": BODY}, {"title": "Second chain", "published_us": NOON + 8 * DAY_US, "body": BODY + " More."}, False),
    ({}, {"published_us": NOON - DAY_US // 2}, True),  # published before, but known later
    ({}, {"published_us": NOON - 2 * DAY_US}, False),
    ({}, {"kind": "social"}, True),
]


@pytest.mark.parametrize(("one", "other", "same"), REPEATED)
def test_what_repeats_an_earlier_text(sqlite: Engine, one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    TextStore(sqlite).add([replace(STORY, **one)])
    store = TextStore(sqlite)
    store.add([replace(STORY, source="other", **other)])
    found = {text.source: text.duplicate_of for text in store.read(QUBIC, 0, FAR, duplicates=True)}
    assert found == {"wire": None, "other": 1 if same else None}
    assert len(store.read(QUBIC, 0, FAR)) == (1 if same else 2)


def test_a_process_sees_what_others_wrote_meanwhile(engine: Engine) -> None:
    mine, other = TextStore(engine), TextStore(engine)
    mine.add([STORY])
    other.add([replace(STORY, external_id="2", title="A story that came by another process", body=BODY)])
    mine.add([replace(STORY, source="x", title="Nearly the same words", body=BODY.replace("Monday", "Tuesday"))])
    assert [text.duplicate_of for text in mine.read(QUBIC, 0, FAR, duplicates=True)] == [None, None, 2]


def test_texts_that_were_not_written_are_no_originals(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TextStore(engine)
    store.add([replace(STORY, title="First", external_id="0")])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("qubic_lab.oracle.store.text_store._wrote_about", Mock(side_effect=RuntimeError))
        store.add([replace(STORY, body=BODY)])
    assert titles(store) == ["First"]
    store.add([replace(STORY, source="x", title="Another title of it", body=BODY + " More.")])
    assert [text.duplicate_of for text in store.read(QUBIC, 0, FAR)] == [None, None]


def test_repetitions_count_once_for_each_coin(store: TextStore, clock: StandingClock) -> None:
    store.add([STORY])
    store.add([replace(STORY, source="b", coins=(QUBIC, BITCOIN))])
    store.add([replace(STORY, source="c", coins=(BITCOIN,))])
    assert [text.source for text in store.read(QUBIC, 0, FAR)] == ["wire"]
    assert [text.source for text in store.read(BITCOIN, 0, FAR)] == ["b"]
    assert [text.source for text in store.read(BITCOIN, 0, FAR, duplicates=True)] == ["b", "c"]
    assert store.read("ethereum", 0, FAR) == []
    assert store.read(QUBIC, 0, FAR)[0].coins == (QUBIC,)
    as_of = store.stamp(BITCOIN)
    clock.us += 10 * SETTLE_US
    store.add([replace(STORY, external_id="2", kind="social", title="Another text", published_us=NOON + 7)])
    assert store.counts(QUBIC, 0, FAR) == [
        TextCounts("b", "news", 0, 1, NOON),
        TextCounts("wire", "news", 1, 0, NOON),
        TextCounts("wire", "social", 1, 0, NOON + 7),
    ]
    then = store.as_of(as_of).counts(QUBIC, 0, FAR)
    assert then == [TextCounts("b", "news", 0, 1, NOON), TextCounts("wire", "news", 1, 0, NOON)]
    assert [(each.source, each.duplicates) for each in store.counts(BITCOIN, 0, FAR)] == [("b", 0), ("c", 1)]


def test_a_range_is_of_published_times_with_its_end_left_out(store: TextStore, clock: StandingClock) -> None:
    times = (NOON, NOON + 1, NOON + 2, None)
    store.add([replace(STORY, external_id=str(t), title=f"Of {t}", published_us=t) for t in times])
    assert [text.published_us for text in store.read(QUBIC, NOON, NOON + 2)] == [NOON, NOON + 1]
    assert [text.at_us for text in store.read(QUBIC, clock.us, clock.us + 1)] == [clock.us]


def test_pages_are_whole_and_stay_as_they_were_known(store: TextStore, clock: StandingClock) -> None:
    numbers = (3, 1, 2, 2, 5, 4, 4)
    store.add([replace(STORY, external_id=str(i), title=f"{i} of it", published_us=n) for i, n in enumerate(numbers)])
    as_of, clock.us = store.stamp(QUBIC), clock.us + 10 * SETTLE_US

    def pages(reader: TextReader, limit: int) -> list[tuple[int, int]]:
        texts = all_pages(partial(reader.page, QUBIC, 1, 10), "texts", limit)
        return [(text.at_us, text.id) for text in texts]

    whole = [(text.at_us, text.id) for text in store.read(QUBIC, 1, 10)][::-1]
    assert len(whole) == len(numbers)
    assert all(pages(store, limit) == whole for limit in (1, 2, 3, 7, 8))
    then = store.as_of(as_of)
    first = then.page(QUBIC, 1, 10, limit=3)
    store.add([replace(STORY, external_id=f"new {n}", title=f"New {n}", published_us=n) for n in (1, 4, 6)])
    store.add([replace(STORY, external_id="1", title="Other words")])
    rest = then.page(QUBIC, 1, 10, limit=50, cursor=first.next_cursor)
    assert [(text.at_us, text.id) for text in (*first.texts, *rest.texts)] == whole == pages(then, 2)
    assert len(pages(store, 2)) == len(whole) + 3 - 1
    for wrong in ({"cursor": "1"}, {"cursor": "a_b"}, {"limit": 0}, {"limit": 9_999}):
        with pytest.raises(InputError):
            store.page(QUBIC, 0, 5, **wrong)
    with pytest.raises(InputError):
        store.scores(QUBIC, 5, 5, "m")


def test_scores_have_versions_too(store: TextStore, clock: StandingClock) -> None:
    store.add([replace(STORY, external_id=str(n), title=f"{n} of it", published_us=n) for n in (1, 2)])
    store.add([replace(STORY, source="copy", title="2 of it", published_us=3)])
    scores = [Score(1, "m@1", 0.1, 0.9, {"p": [0.1, 0.9]}), Score(2, "m@1", -1.0), Score(3, "m@1", 0.3)]
    before = store.stamp(QUBIC)
    assert store.add_scores(scores) == Added(3, 3)
    as_of = store.stamp(QUBIC)
    assert as_of > before
    assert store.add_scores([*scores, scores[0]]) == Added(4)
    assert store.add_scores([replace(scores[0], model="m@2")]) == Added(1, 1)
    clock.us += 10 * SETTLE_US
    changed = [replace(scores[0], details={"p": [0.2, 0.8]}), replace(scores[1], confidence=0.5, score=1 / 3)]
    assert store.add_scores(changed) == Added(2, 2, 2)
    now, then = (each.scores(QUBIC, 0, FAR, "m@1") for each in (store, store.as_of(as_of)))
    assert now.news_id.tolist() == then.news_id.tolist() == [1, 2]  # not the copy
    assert now.score.tolist() == [0.1, 1 / 3] and then.score.tolist() == [0.1, -1.0]
    assert now.at_us.tolist() == [1, 2] and now.known_us.tolist() == [clock.us] * 2
    assert now.confidence.tolist() == [0.9, 0.5] and str(then.confidence[1]) == "nan"
    assert store.scores(QUBIC, 0, FAR, "m@2").score.tolist() == [0.1]
    assert len(store.scores(QUBIC, 0, FAR, "m")) == 0 == len(store.as_of(before).scores(QUBIC, 0, FAR, "m@1"))
    by_model = store.scores_by_model(QUBIC, 0, FAR)
    assert {model: each.score.tolist() for model, each in by_model.items()} == {"m@1": [0.1, 1 / 3], "m@2": [0.1]}
    assert store.score_details([1, 2], "m@1") == {1: {"p": [0.2, 0.8]}, 2: {}}
    assert store.as_of(as_of).score_details([1], "m@1") == {1: {"p": [0.1, 0.9]}}
    for wrong in ((1.1, None), (0.0, 2.0)):
        with pytest.raises(InputError):
            Score(1, "m", *wrong)


def test_many_texts_over_months_are_added_and_compared(engine: Engine) -> None:
    """More batches and slices of time than are in memory at once."""
    rng = random.Random(3)
    words = [f"{a}{b}{c}" for a in "bcdfgk" for b in "aeiou" for c in "lmnrst"]
    texts = []
    for number in range(600):
        copied = rng.choice(texts[-20:]) if texts and rng.random() < 0.2 else None
        body = " ".join(rng.choices(words, k=30)) if copied is None else copied.body + " indeed"
        published_us = NOON + number * 4 * HOUR_US
        texts.append(replace(STORY, external_id=str(number), title="", body=body, published_us=published_us))
    given = rng.sample(texts, len(texts))
    store = TextStore(engine)
    assert store.add(given) == Added(600, 600)
    assert store.add(given) == Added(600)
    marked = store.read(QUBIC, 0, FAR, duplicates=True)
    copies = [text for text in marked if text.body.endswith("indeed")]
    assert len(copies) > 80
    assert sum(text.duplicate_of is not None for text in copies) >= 0.97 * len(copies)
    assert all(text.duplicate_of is None for text in marked if not text.body.endswith("indeed"))
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(NEWS_DATA)).scalar() == 600
