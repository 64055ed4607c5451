"""Sentiment models: what the committed head needs, labels in any order, texts of headline and body, stored scores."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from embedder import embedder, needs_embedder
from hypothesis import given
from hypothesis import strategies as st
from sentiment_checkpoint import tiny_classifier
from sqlalchemy import Engine

from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.embeddings import WEIGHTS_SHA256, Embedder
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, now_us
from qubic_lab.oracle.sentiment.index import WEIGHTING, ScoredText, scored_texts
from qubic_lab.oracle.sentiment.labelled import HEADLINES_FILE, read_examples
from qubic_lab.oracle.sentiment.lexicon import lexicon_hash, vader_compounds
from qubic_lab.oracle.sentiment.models import (
    HEAD_FILE,
    LEXICON_FEATURES,
    MODELS,
    EmbeddingHead,
    FinBert,
    WordScale,
    head_features,
    label_columns,
    lexicon_features,
    majority_of,
    make_model,
    read_head,
)
from qubic_lab.oracle.sentiment.scores import (
    LABELS,
    MOST_SENTENCES,
    Scorer,
    SentimentScore,
    is_cut,
    model_key,
    score_stored,
    score_texts,
    sentences_of,
    softmax,
)
from qubic_lab.oracle.sentiment.train import (
    TWEETS_FILE,
    TWEETS_SHA256,
    fit_scale,
    fit_temperature,
    read_tweets,
    train,
    write_head,
)
from qubic_lab.oracle.store.text_reader import TextReader
from qubic_lab.oracle.store.text_store import TextStore

NOON = 1_700_000_000 * SECOND_US
FAR = 1 << 60
GOOD, BAD = "Bitcoin rallies to a record high", "Exchange hacked, funds stolen and withdrawals frozen"


@dataclass
class ByWord:
    """A model whose probabilities are told by the first word, and which counts what it is asked."""

    name: str = "by-word"
    version: str = "1"
    asked: int = 0

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        self.asked += len(texts)
        known = {"up": (0.0, 0.0, 1.0), "down": (1.0, 0.0, 0.0), "half": (0.0, 0.5, 0.5)}
        return [
            SentimentScore.of(known.get(text.split()[0].lower(), (0.0, 1.0, 0.0)), self.name, self.version)
            for text in texts
        ]


def text_of(title: str, body: str = "", cut: int = 0, number: int = 1, coin: str = "bitcoin") -> Text:
    return Text("wire", str(number), "news", title, body, "", "Wire", NOON + number * HOUR_US, (coin,), "", "", cut)


# What a score is


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5), (-0.1, 0.5, 0.6), (float("nan"), 0.5, 0.5)])
def test_probabilities_must_be_some(values: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="must be in"):
        SentimentScore(*values, "m", "1")


@given(st.floats(-1, 1), st.floats(0, 0.9), st.floats(0.1, 50), st.floats(0, 0.99))
def test_words_scale_keeps_its_threshold(value: float, threshold: float, steepness: float, doubt: float) -> None:
    (row,) = WordScale(threshold, steepness, doubt).probabilities(np.array([value]))
    assert row.sum() == pytest.approx(1)
    if abs(abs(value) - threshold) > 1e-3 and doubt < 0.9:
        expected = "positive" if value > threshold else "negative" if value < -threshold else "neutral"
        assert LABELS[int(row.argmax())] == expected


# The committed head


def test_the_head_was_trained_on_the_committed_files() -> None:
    hashes = read_head().hashes
    headlines = HEADLINES_FILE
    assert hashes["headlines"] == hashlib.sha256(headlines.read_bytes()).hexdigest()
    assert hashes["tweets"] == TWEETS_SHA256
    assert hashes["lexicon"] == lexicon_hash()
    assert hashes["embedder"] == WEIGHTS_SHA256


def test_training_reads_the_training_part_alone() -> None:
    examples = read_examples(HEADLINES_FILE)
    assert len(examples) == 870
    shares = np.bincount([each.label for each in examples]) / len(examples)
    assert read_head().shares == pytest.approx(tuple(shares), abs=1e-6)


def test_a_head_survives_its_file(tmp_path: Path) -> None:
    head = read_head()
    write_head(head, tmp_path / "head.json")
    assert (tmp_path / "head.json").read_bytes() == HEAD_FILE.read_bytes()
    assert read_head(tmp_path / "head.json").to_dict() == head.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", ["positive", "neutral", "negative"]),
        ("weights", [[0.0], [0.0]]),
        ("scales", {"vader": {"slope": 1}}),
        ("shares", [0.5, 0.5]),
        ("temperature", None),
    ],
)
def test_a_damaged_head_is_refused(name: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "head.json"
    file.write_text(json.dumps({**read_head().to_dict(), name: value}))
    with pytest.raises(ModelError, match="damaged"):
        read_head(file)


def test_lexicon_features_are_small_numbers_in_their_order() -> None:
    features = lexicon_features([GOOD, BAD, "a table"])
    assert features.shape == (3, LEXICON_FEATURES) and (np.abs(features) <= 1).all()
    assert features[0, 0] > 0 > features[1, 0]
    assert list(features[2]) == [0, 0, 0, 0, 0, 1, 0, 0]


@needs_embedder
def test_the_default_tells_plain_news_apart() -> None:
    model = EmbeddingHead(read_head(), embedder())
    scores = model.score([GOOD, BAD])
    assert [each.label for each in scores] == ["positive", "negative"]
    assert all(each.model == "default" and each.version == model.version for each in scores)
    assert model.score([]) == []
    head = read_head()
    hotter = EmbeddingHead(replace(head, temperature=2.0), embedder())
    assert model.version == EmbeddingHead(replace(head, measured={}), embedder()).version != hotter.version

    (alone,) = model.score([GOOD])
    beside = model.score([BAD, "", GOOD, "🚀" * 400])[2]
    assert alone.probabilities == pytest.approx(beside.probabilities, abs=1e-5)


# Training


def test_temperature_is_found_again() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(scale=2, size=(20_000, 3))
    labels = np.array([draw.choice(3, p=row) for row in softmax(logits)])
    assert fit_temperature([logits * 1.7], labels) == pytest.approx(1.7, rel=0.05)


def test_a_word_scale_is_found_again() -> None:
    draw = np.random.default_rng(0)
    values, true = draw.uniform(-1, 1, 800), WordScale(0.3, 6.0, 0.4)
    labels = np.array([draw.choice(3, p=row) for row in true.probabilities(values)])
    found = fit_scale(values, labels)
    assert found.probabilities(values) == pytest.approx(true.probabilities(values), abs=0.15)
    assert fit_scale(values, labels, 0.05).threshold == 0.05


def test_the_scale_of_vader_is_that_of_the_training_part() -> None:
    examples = read_examples(HEADLINES_FILE)
    compounds = vader_compounds([each.text for each in examples])
    labels = np.array([each.label for each in examples])
    expected, committed = fit_scale(compounds, labels, 0.05), read_head().scales["vader"]
    assert committed.probabilities(compounds) == pytest.approx(expected.probabilities(compounds), abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.skipif(not TWEETS_FILE.is_file(), reason="needs the tweets, see data/sentiment/README.md")
@needs_embedder
def test_training_again_gives_the_committed_head() -> None:
    head = read_head()
    again = train(HEADLINES_FILE, read_tweets(TWEETS_FILE), Embedder(remembered=12_000))
    assert again.hashes == head.hashes
    assert again.weights_CF == pytest.approx(head.weights_CF, abs=0.02)  # another machine rounds otherwise
    features = head_features([GOOD, BAD, "a table"], embedder())
    assert again.probabilities(features) == pytest.approx(head.probabilities(features), abs=0.005)


# FinBERT and its kin


def test_finbert_reads_its_labels_from_the_checkpoint(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tiny_bert, changed = tiny_classifier(tmp_path / "tiny-bert"), str(tmp_path / "changed")
    texts = ["Bitcoin rallies", "bitcoin falls down", "up " * 100, ""]
    model = make_model(f"finbert:{tiny_bert}")
    scores = model.score(texts)
    plain = AutoModelForSequenceClassification.from_pretrained(str(tiny_bert)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_bert))
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        raw = plain(**tokens).logits.softmax(dim=1).numpy()
    for score, row in zip(scores, raw, strict=True):
        assert (score.neutral, score.positive, score.negative) == pytest.approx(tuple(map(float, row)), abs=1e-6)
    assert model.name == "finbert:tiny-bert" and len(model.version) == 12
    assert model.score([]) == []

    with torch.no_grad():  # the version follows the weights
        plain.classifier.bias += 1
    plain.save_pretrained(changed)
    tokenizer.save_pretrained(changed)
    assert FinBert(str(tiny_bert)).version == model.version != FinBert(changed).version


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("good", "positive", "neutral"), ("pos", "neg")])
def test_a_checkpoint_with_other_labels_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="labels of 'other' are"):
        label_columns("other", dict(enumerate(names)))


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name, said in (
        (str(tmp_path), r"cannot be loaded .*: give a folder"),
        ("finbrt", r"neither a folder nor a hub id"),
        ("nobody/nothing", r"the hub does not give it .*: give a folder"),
    ):
        with pytest.raises(ModelError, match=said) as told:
            FinBert(name, local=True).load()
        assert "\n" not in str(told.value)


# Models by name


def test_models_by_name() -> None:
    for name in MODELS:
        assert make_model(name).name == name
    with pytest.raises(InputError, match="names no checkpoint"):
        make_model("finbert:")


def test_the_majority_says_the_same_of_every_text() -> None:
    model = majority_of(["positive", "positive", "negative"])
    assert {each.label for each in model.score([GOOD, BAD])} == {"positive"}
    assert model.score([GOOD])[0].probabilities == pytest.approx((1 / 3, 0, 2 / 3))


# Headline and body


BODY = "down it went all over the place"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (text_of("up it goes", BODY), 0.4 - 0.6),
        (text_of("up it goes", BODY, cut=900), (0.4 - 0.3) / 0.7),
        (text_of("up it goes", f"{BODY}. " * 40, cut=900), 0.4 - 0.6),  # what is left of it is enough
        (text_of("up it goes"), 1),
        (text_of("", "down it went"), -1),
        (text_of("up it goes", "up  it goes"), 1),  # the body repeats the headline
        (text_of(" ", "…"), 0),
    ],
)
def test_the_headline_counts_40_percent_and_the_body_60(text: Text, score: float) -> None:
    (found,) = score_texts(ByWord(), [text])
    assert found.score == pytest.approx(score)


@pytest.mark.parametrize(
    ("body", "cut"),
    [
        ("It fell. [+120 chars]", True),
        ("word " * 38 + "and then…", True),
        ("word " * 38 + "and then...", True),
        ("Wait…", False),
        ("word " * 200 + "…", False),
        ("word " * 38 + "the end.", False),
    ],
)
def test_how_a_cut_body_is_known(body: str, cut: bool) -> None:
    assert is_cut(text_of("t", body)) is cut


def test_a_long_body_is_read_by_sentences_and_its_first_ones_count() -> None:
    body = (
        "Up it goes once more today. Down it went for a while. Plain words stand here as well. Down again it went now."
    )
    (found,) = score_texts(ByWord(), [text_of(" ", body)])
    assert found.probabilities == pytest.approx((0.5, 0.25, 0.25))
    asked = ByWord()
    more = "".join(f" Down it went on day {n} of all." for n in range(MOST_SENTENCES))
    score_texts(asked, [text_of("x", f"Up it goes once more today.{more}")])
    assert asked.asked == 1 + MOST_SENTENCES  # sentences that do not count are not scored


@given(st.text(max_size=300))
def test_sentences_lose_no_word(body: str) -> None:
    whole = f"{body} at the end."  # so that no mark of a cut body is the last of it
    assert re.findall(r"\w+", " ".join(sentences_of(whole))) == re.findall(r"\w+", whole)


def test_numbers_and_small_letters_end_no_sentence() -> None:
    assert sentences_of("It fell to 1.5 dollars vs. more than 2.5 before that. Then it rose again by a bit.") == [
        "It fell to 1.5 dollars vs. more than 2.5 before that.",
        "Then it rose again by a bit.",
    ]


# Stored texts


def scores_of(store: TextReader, model: ByWord) -> list[ScoredText]:
    return scored_texts(store, store.scores("bitcoin", 0, FAR, model_key(model)), WEIGHTING)


def test_stored_texts_are_scored_once_and_again_by_another_version(engine: Engine) -> None:
    store, model = TextStore(engine), ByWord()
    titles = [f"{word} goes the price of day {number}" for number, word in enumerate(("up", "down", "plain") * 4)]
    store.add(text_of(title, number=number) for number, title in enumerate(titles))
    seen: list[tuple[int, int]] = []
    result = score_stored(store, model, "bitcoin", batch=5, progress=lambda done, total: seen.append((done, total)))
    assert (result.texts, result.scored, result.before) == (12, 12, 0)
    assert seen == [(5, 12), (10, 12), (12, 12)]
    again = score_stored(store, model, "bitcoin")
    assert (again.scored, again.before, model.asked) == (0, 12, 12)
    assert score_stored(store, ByWord(version="2"), "bitcoin").scored == 12
    scored = scores_of(store, model)
    assert [each.score for each in scored] == [1, -1, 0] * 4
    first_us = {text.id: text.known_us for text in store.read("bitcoin", 0, FAR)}
    assert all(each.known_us > first_us[each.id] for each in scored)  # known with its score
    assert scores_of(store.as_of(NOON), model) == []


class StopsAfter(ByWord):
    """Fails at the third batch, as a process that is ended does."""

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        if self.asked >= 4:
            raise KeyboardInterrupt
        return super().score(texts)


def test_scoring_goes_on_where_it_was_interrupted(engine: Engine) -> None:
    store = TextStore(engine)
    store.add(text_of(f"up number {number} of many", number=number) for number in range(7))
    with pytest.raises(KeyboardInterrupt):
        score_stored(store, StopsAfter(), "bitcoin", batch=2)
    rest = ByWord()
    result = score_stored(store, rest, "bitcoin", batch=2)
    assert (result.before, result.scored, rest.asked) == (4, 3, 3)


def test_a_repetition_is_not_scored_and_a_new_version_is(engine: Engine) -> None:
    store, model = TextStore(engine), ByWord()
    first = text_of("up goes the price of bitcoin today", number=1)
    store.add([first, replace(first, source="other", external_id="9")])
    assert score_stored(store, model, "bitcoin").scored == 1
    store.add([replace(first, title="down goes the price of bitcoin today")])
    assert score_stored(store, model, "bitcoin").scored == 1
    assert [each.score for each in scores_of(store, model)] == [-1]


# A scorer beside a collector

WORDS = ("rises", "falls", "waits", "jumps", "sinks", "sleeps", "wakes", "turns")


def recent(number: int, days_ago: int = 0) -> Text:
    title = f"Bitcoin {WORDS[number % len(WORDS)]} for reason number {number} of {number * 7}"
    return replace(text_of(title, number=number), published_us=now_us() - days_ago * DAY_US - number)


def test_old_and_new_texts_are_scored_once(engine: Engine) -> None:
    store, model = TextStore(engine), ByWord()
    store.add([recent(number, days_ago=40) for number in range(3)])
    with Scorer(store, model, ["bitcoin", "ethereum"], every_s=0.01).running() as scorer:
        store.add([recent(number) for number in range(3, 7)])
    assert (scorer.scored, model.asked) == (7, 8)  # each text, and the one that loads the model
    with Scorer(store, ByWord(), ["bitcoin"]).running() as again:
        pass
    assert again.scored == 0


def test_a_missing_model_is_reported_before_anything_runs(engine: Engine) -> None:
    class Missing(ByWord):
        def score(self, texts: Sequence[str]) -> list[SentimentScore]:
            raise ModelError("its weights are not installed")

    begun = False
    with pytest.raises(ModelError, match="not installed"), Scorer(TextStore(engine), Missing(), ["bitcoin"]).running():
        begun = True
    assert not begun
