"""The default sentiment model adapted to a user's own labels, and models judged by files: gains are shown."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import Run
from embedder import needs_embedder
from sentiment_checkpoint import tiny_classifier

from qubic_lab.bench.sentiment import bench_sentiment
from qubic_lab.cli.bench import show
from qubic_lab.errors import InputError
from qubic_lab.model.embeddings import DIMENSIONS, Embedded, Embedder
from qubic_lab.oracle.sentiment.adapt import AFTER, BEFORE, Adapted, adapt, fit_near
from qubic_lab.oracle.sentiment.labelled import HEADLINES_FILE, Columns, LabelledTexts, read_labelled
from qubic_lab.oracle.sentiment.models import EmbeddingHead, make_model, read_head
from qubic_lab.oracle.sentiment.scores import LABELS, softmax
from qubic_lab.oracle.sentiment.train import balanced, log_loss, read_tweets, write_head


class Words(Embedder):
    """Embeds a text as the mean of random vectors of its words."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        rows = [np.mean([self._vector(word) for word in text.split()], axis=0) for text in texts]
        return Embedded(np.array(rows, np.float32), (False,) * len(texts))

    @staticmethod
    @cache
    def _vector(word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).normal(0, DIMENSIONS**-0.5, DIMENSIONS)


JARGON = {"negative": "glim", "neutral": "plen", "positive": "zorb"}


def jargon(count: int, seed: int = 0) -> LabelledTexts:
    """Return texts whose labels hang on words that no model knows, among many others."""
    draw = np.random.default_rng(seed)
    labels = [LABELS[number] for number in draw.choice(3, count, p=(0.2, 0.5, 0.3))]
    others = [" ".join(f"word{number}" for number in draw.integers(0, 40, 6)) for _ in labels]
    texts = tuple(f"{JARGON[label]} {words}" for label, words in zip(labels, others, strict=True))
    return LabelledTexts("mine.csv", texts, tuple(labels), None, count, {})


def adapted(labelled: LabelledTexts, folder: Path) -> Adapted:
    (folder / "mine.csv").write_text("the labels")
    return adapt(read_head(), labelled, folder / "mine.csv", Words())


def test_words_that_the_default_does_not_know_are_learned(tmp_path: Path) -> None:
    labelled = jargon(150)
    found = adapted(labelled, tmp_path)
    before, after = found.comparison.evaluations
    assert (before.model, after.model, before.n) == (BEFORE, AFTER, 150)
    gain = next(each for each in found.comparison.differences if each.measure == "macro_f1")
    assert (gain.model, gain.baseline, gain.shown) == (AFTER, BEFORE, "better")
    assert after.macro_f1.value > 0.8 and after.calibration_error < before.calibration_error
    new = jargon(60, seed=1)
    write_head(found.head, tmp_path / "head.json")
    model = EmbeddingHead(read_head(tmp_path / "head.json"), Words())
    said = [each.label for each in model.score(new.texts)]
    assert np.mean([one == other for one, other in zip(said, new.labels, strict=True)]) > 0.8
    assert found.head.hashes["labels"] == hashlib.sha256(b"the labels").hexdigest()
    assert model.version != EmbeddingHead(read_head(), Words()).version


def test_labels_without_a_rule_teach_doubt_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    labelled = jargon(90)
    guessed = replace(labelled, labels=tuple(LABELS[number] for number in draw.integers(0, 3, 90)))
    found = adapted(guessed, tmp_path)
    assert {each.shown for each in found.comparison.differences} <= {"neither", "better"}
    before, after = found.comparison.evaluations
    assert after.calibration_error < before.calibration_error


def test_a_correction_is_that_of_its_prior() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(400, 4)), draw.integers(0, 3, 400)
    logits = draw.normal(size=(400, 3))
    weights, intercept = fit_near(logits, features, labels, 1e-9)
    assert np.abs(weights).max() < 1e-5 and np.abs(intercept).max() < 1e-5
    weights, intercept = fit_near(logits, features, labels, 0.5)
    design = np.hstack([features, np.ones((400, 1))])
    added = np.hstack([weights, intercept[:, None]])
    wrong = softmax(logits + design @ added.T) - np.eye(3)[labels]
    assert wrong.T @ design + added / 0.5 == pytest.approx(np.zeros((3, 5)), abs=0.02)  # the slope is 0 there


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["positive"] * 49, "49 labelled texts: give at least 50"),
        (["positive"] * 60, "all labels are positive: give texts of others too"),
        (["positive"] * 50 + ["negative"] * 4, "4 negative: give at least 5 texts of each label"),
    ],
)
def test_too_few_labels_are_refused(labels: list[str], why: str, tmp_path: Path) -> None:
    texts = tuple(f"text {number}" for number in range(len(labels)))
    with pytest.raises(InputError, match=why):
        adapted(LabelledTexts("mine.csv", texts, tuple(labels), None, len(labels), {}), tmp_path)


def test_each_label_weighs_the_same_in_training() -> None:
    labels = np.array([0] * 10 + [1] * 60 + [2] * 30)
    weights = balanced(labels)
    assert weights.mean() == pytest.approx(1)
    assert np.bincount(labels, weights) == pytest.approx([100 / 3] * 3)
    unsure = np.full((100, 3), 1 / 3)
    assert log_loss([unsure], labels, weights) == pytest.approx(np.log(3))


def test_other_tweets_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sent_train.csv").write_text("text,label\nIt rose,1\nIt fell,0\n")
    with pytest.raises(InputError, match="is not the published file: fetch zeroshot/twitter-financial-news-sentiment"):
        read_tweets(tmp_path / "sent_train.csv")


# Commands


def write_mine(labelled: LabelledTexts) -> None:
    rows = zip(labelled.texts, labelled.labels, strict=True)
    Path("mine.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))


@needs_embedder
def test_an_adapted_head_is_written_and_used_where_the_setting_names_it(
    oracle: Run, set_settings: Callable[..., None]
) -> None:
    write_mine(jargon(60))
    status, out, err = oracle("train-sentiment --labels mine.csv")
    assert status == 0, err
    assert "after is shown to be better than before" in out and "QUBIC_LAB_SENTIMENT_HEAD=" in out
    found = oracle("train-sentiment --labels mine.csv --output again.json --json").json
    assert [each["model"] for each in found["evaluations"]] == [BEFORE, AFTER]
    assert Path("again.json").read_bytes() == Path("sentiment-head.json").read_bytes()
    default = make_model().version
    set_settings(sentiment_head=Path("again.json").resolve())
    assert make_model().version != default
    right = oracle("score-file mine.csv --model default --json").json["evaluations"][-1]["accuracy"]["value"]
    assert right > 0.9
    set_settings(sentiment_head=Path("none.json"))
    assert "train-sentiment" in oracle("score-file mine.csv --model default").failed(2)


def test_what_cannot_be_adapted_is_told_before_anything_is_written(oracle: Run) -> None:
    write_mine(jargon(20))
    assert "20 labelled texts: give at least 50" in oracle("train-sentiment --labels mine.csv").failed(2)
    assert "is no folder" in oracle("train-sentiment --labels mine.csv --output none/head.json").failed(2)
    assert not Path("sentiment-head.json").exists()


@needs_embedder
def test_models_are_judged_on_our_headlines_and_on_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = HEADLINES_FILE.read_text("utf-8").splitlines()
    Path("headlines.jsonl").write_text("\n".join(lines[:80]), "utf-8")
    monkeypatch.setattr("qubic_lab.bench.sentiment.HEADLINES_FILE", Path("headlines.jsonl"))
    tested = sum('"split": "test"' in line for line in lines[:80])
    write_mine(jargon(60))
    tiny_classifier(Path("tiny"))
    found = bench_sentiment([Path("mine.csv")], Columns(), Path("tiny"))
    show(found, json=False)
    out = capsys.readouterr().out
    own, mine = found.files
    assert (own.comparison.n, own.comparison.evaluations[0].model, mine.comparison.n) == (tested, "majority", 60)
    names = ["majority", "vader", "crypto-lexicon", "default", "finbert:tiny"]
    assert [each.model for each in mine.comparison.evaluations] == names
    labels = read_labelled(Path("mine.csv"), Columns()).labels
    share = max(labels.count(label) for label in LABELS) / 60
    assert mine.comparison.evaluations[0].accuracy.value == pytest.approx(share)
    json.dumps(found.to_dict())
    assert f"our headlines, test part | {tested}" in out and "mine.csv: in macro-F1 on these texts, default is" in out
    assert "its probabilities are" in out
