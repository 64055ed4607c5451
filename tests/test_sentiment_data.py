"""The labelled headlines and the crypto lexicon have the form that their README files promise."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.feature_extraction.text import CountVectorizer

DATA = Path(__file__).resolve().parents[1] / "data"
LABELS = ("positive", "neutral", "negative")
HEADLINES = [json.loads(line) for line in (DATA / "sentiment" / "headlines.jsonl").read_text("utf-8").splitlines()]


class UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings must not name a key twice, where the plain loader keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(self.construct_object(key) for key, _ in node.value)
        assert [name for name, times in names.items() if times > 1] == []
        return super().construct_mapping(node, deep)


LEXICON: dict[str, Any] = yaml.load((DATA / "lexicons" / "crypto.yaml").read_text("utf-8"), UniqueKeys)
VALENCES = ("words", "phrases", "emoji", "hashtags")


def balance(rows: list[dict[str, Any]]) -> float:
    """Return the count of the most common label over that of the rarest."""
    counts = Counter(each["label"] for each in rows)
    return max(counts.values()) / min(counts.values())


def labels_by(kind: str) -> dict[str, Counter[str]]:
    """Return the counts of labels by each value of a field."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in HEADLINES:
        counts[each[kind]][each["label"]] += 1
    return counts


def test_headlines_have_their_form() -> None:
    keys = {"id", "text", "label", "style", "hard", "coins", "group", "split"}
    assert all(set(each) == keys for each in HEADLINES)
    assert [each["id"] for each in HEADLINES] == [f"h{number:04d}" for number in range(1, len(HEADLINES) + 1)]
    for each in HEADLINES:
        assert 5 <= len(each["text"].split()) <= 30, each
        assert each["text"] == " ".join(each["text"].split()), each
        assert each["label"] in LABELS and each["split"] in ("train", "test"), each
    assert len(HEADLINES) >= 960


def test_labels_and_hard_cases_are_balanced() -> None:
    hard = [each for each in HEADLINES if each["hard"]]
    assert balance(HEADLINES) <= 1.02 and balance(hard) <= 1.1
    assert len(hard) >= 0.3 * len(HEADLINES)
    for kind in ("style", "hard"):
        counts = labels_by(kind)
        assert all(min(count[label] for label in LABELS) >= 0.25 * count.total() for count in counts.values()), counts


def test_no_coin_stands_for_a_label() -> None:
    labels: dict[str, list[str]] = defaultdict(list)
    for each in HEADLINES:
        for coin in each["coins"]:
            labels[coin].append(each["label"])
    assert len(labels["qubic-network"]) >= 50 and len(labels["bitcoin"]) >= 100
    for coin, found in labels.items():
        assert len(found) < 15 or max(Counter(found).values()) <= 0.5 * len(found), coin


def test_the_test_split_is_a_third_at_most_and_no_easier() -> None:
    parts = {split: [each for each in HEADLINES if each["split"] == split] for split in ("train", "test")}
    assert 0.27 <= len(parts["test"]) / len(HEADLINES) <= 0.33
    train, test = (sum(bool(each["hard"]) for each in part) / len(part) for part in parts.values())
    assert test >= train and all(balance(part) <= 1.02 for part in parts.values())


def test_groups_are_small_and_never_divided_between_the_splits() -> None:
    splits: dict[str, list[str]] = defaultdict(list)
    for each in HEADLINES:
        splits[each["group"]].append(each["split"])
    assert all(len(members) <= 4 and len(set(members)) == 1 for members in splits.values())


def test_no_headline_comes_twice_or_nearly_so_outside_its_group() -> None:
    bare = Counter(" ".join(re.findall(r"\w+|[^\w\s]", each["text"].lower())) for each in HEADLINES)
    assert [text for text, times in bare.items() if times > 1] == []
    words = CountVectorizer(token_pattern=r"\w+", binary=True).fit_transform([each["text"] for each in HEADLINES])
    has = words.toarray().astype(np.float32)
    common = has @ has.T
    sizes = has.sum(axis=1)
    jaccard = common / (sizes[:, None] + sizes[None, :] - common)
    group = np.array([each["group"] for each in HEADLINES])
    near = np.argwhere(np.triu(jaccard >= 0.4, k=1) & (group[:, None] != group[None, :]))
    assert [(HEADLINES[one]["text"], HEADLINES[other]["text"]) for one, other in near] == []


def test_lexicon_keys_and_valences_are_in_form() -> None:
    assert sum(len(LEXICON[section]) for section in ("words", "phrases")) >= 250
    for section in VALENCES:
        for key, valence in LEXICON[section].items():
            assert isinstance(key, str) and key == key.lower() == " ".join(key.split()), key
            assert -4 <= valence <= 4, key
    assert all(re.fullmatch(r"[a-z]+", key) for key in LEXICON["words"])
    assert all(re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)+", key) for key in LEXICON["phrases"])
    assert all(re.fullmatch(r"#[a-z0-9]+", key) for key in LEXICON["hashtags"])
    assert all(0 < step <= 1 for step in LEXICON["intensifiers"].values())
    assert all(-1 <= step < 0 for step in LEXICON["diminishers"].values())


def test_no_word_plays_two_parts() -> None:
    assert all(isinstance(word, str) for word in LEXICON["negators"])
    assert len(set(LEXICON["negators"])) == len(LEXICON["negators"])
    parts = [set(LEXICON[name]) for name in ("negators", "intensifiers", "diminishers", *VALENCES)]
    assert [one & other for one, other in combinations(parts, 2) if one & other] == []


def test_rules_can_fire_and_are_told_apart() -> None:
    names = [rule["name"] for rule in LEXICON["rules"]]
    assert len(set(names)) == len(names)
    fired: set[tuple[str, str]] = set()
    for rule in LEXICON["rules"]:
        assert set(rule) == {"name", "words", "near", "window", "valence"}, rule
        assert 1 <= rule["window"] <= 6 and -4 <= rule["valence"] <= 4, rule
        assert all(isinstance(word, str) and re.fullmatch(r"[a-z]+", word) for word in rule["words"] + rule["near"])
        assert not set(rule["words"]) & set(rule["near"]), rule
        pairs = {(word, near) for word in rule["words"] for near in rule["near"]}
        assert pairs - fired, f"{rule['name']} never gets a turn"
        fired |= pairs


def test_terms_of_qubic_have_no_valence() -> None:
    assert all(LEXICON["words"][term] == 0 for term in ("epoch", "tick", "computor", "quorum", "oracle"))
