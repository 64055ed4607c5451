"""The page in other languages: every message is translated, and no number differs."""

import re
from dataclasses import replace

import messages
import pytest
from comparisons import make_comparison

from qubic_lab.errors import InputError
from qubic_lab.runs.language import (
    ENGLISH,
    LANGUAGES,
    language,
    language_of,
    translated,
    translated_finding,
    translated_text,
)
from qubic_lab.runs.page import make_page
from qubic_lab.runs.page_numbers import read_pieces
from qubic_lab.runs.picture import in_language, texts_of
from qubic_lab.runs.report import render
from qubic_lab.runs.week_report import SAMPLE
from qubic_lab.studies import accuracy_findings
from qubic_lab.studies.acceptance import joined
from qubic_lab.studies.finding import NOUN, PLACEHOLDER, RULES, say

OTHERS = [tag for tag in LANGUAGES if tag != ENGLISH]
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@pytest.fixture(scope="module")
def collected() -> dict[str, str]:
    return messages.collect()


def places(message: str) -> list[tuple[str, str]]:
    """Return names and rules in their order; a counted noun is a number."""
    counts = (rule in RULES or not NOUN.fullmatch(rule) for _, rule in PLACEHOLDER.findall(message))
    found = PLACEHOLDER.findall(message)
    return [(name, rule if plain else ",") for (name, rule), plain in zip(found, counts, strict=True)]


def numbers(message: str) -> list[str]:
    return NUMBER.findall(PLACEHOLDER.sub("", message))


@pytest.mark.parametrize("tag", OTHERS)
def test_every_message_is_translated_and_none_is_left_over(tag: str, collected: dict[str, str]) -> None:
    assert len(collected) > 300, "not all kinds of messages were collected"
    assert messages.faults(tag, collected) == []


@pytest.mark.parametrize("tag", OTHERS)
def test_translations_have_the_same_values_and_numbers_in_the_same_order(tag: str) -> None:
    for each in messages.read(tag):
        if each.id:
            assert places(each.string) == places(each.id), each.id
            assert numbers(each.string) == numbers(each.id), each.id


def test_a_message_that_nobody_translated_is_named(collected: dict[str, str]) -> None:
    more = collected | {"A {new} one.": "a test"}
    assert messages.faults("zh-TW", more) == ["zh-TW lacks 'A {new} one.' (a test)"]
    fewer = {each: place for each, place in collected.items() if each != "Every answer was right."}
    assert messages.faults("zh-TW", fewer) == ["zh-TW has 'Every answer was right.', which nothing asks for"]


def test_findings_labels_and_recorded_texts_are_in_the_language_that_is_asked_for() -> None:
    found = say(
        "{model} runs fastest with {way}: {key:.1f} tokens/s for {requests:request}.",
        model="m",
        key=41.27,
        requests=2,
        way=say("one whole model"),
        unit="tokens/s",
        low=40.0,
        high=43.0,
    )
    caption = "Memory of each rank of smollm2, strategy C."
    news = "The index of INVENTED sample texts (a simulation), and how many of them each day had."
    with language("zh-TW"):
        assert translated_finding(found) == "m 最快的方式是單一完整模型：41.3 tokens/s（2 個請求）。"
        assert translated("pass") == "通過"
        assert translated("{low} to {high}", low=1, high=2) == "1 至 2"
        assert translated_text(caption) == "smollm2 各 rank 的記憶體，策略 C。"
        assert translated_text(news) == "虛構的範例文字（模擬）的指數，以及每日篇數。"
        assert translated_text("pass") == "通過"
        assert translated_text("A text of a user's own notebook.") == "A text of a user's own notebook."
    assert translated_finding(found) == str(found)
    assert (translated("pass"), translated_text(caption)) == ("pass", caption)


COMMAND = re.compile(r"qubic-lab \w+ \w+")
ENGLISH_WORDS = re.compile(r"[A-Za-z']+(?: [A-Za-z']+){2}")


@pytest.mark.parametrize("tag", OTHERS)
def test_no_row_of_the_sample_stays_english(tag: str) -> None:
    week = messages.read_week(messages.ROOT / "reports" / SAMPLE / "week.json")
    texts = [text for row in week.rows for text in (row.what, row.target, row.measured, row.reason) if text]
    texts += week.ledger.sentences() if week.ledger else []
    texts += [each.judgement.reason for each in week.changes if each.judgement.reason]
    with language(tag):
        left = {each for each in texts if ENGLISH_WORDS.search(COMMAND.sub("", translated_text(each)))}
    assert len(texts) > 100 and left == set()


NAMES = re.compile(
    r"\b(?:p\d+|tokens?|s|h|ms|min|bp|USD|UTC|rank|lane|logit|node-\d+|pass@\d+|k|A|B|C|D|bf16|transformers|llama\.cpp|RPC|vLLM|torch"
    r"|K|GARCH(?:-t)?|Garman-Klass|Parkinson|RSI|MACD|AR)\b"
)
"""What a picture says in each language: names, units and the field's words."""


@pytest.mark.parametrize("tag", OTHERS)
def test_no_text_in_a_picture_of_the_sample_stays_english(tag: str) -> None:
    week = messages.read_week(messages.ROOT / "reports" / SAMPLE / "week.json")
    pictures = [picture.svg for run in week.runs for picture in run.records.pictures]
    english = [text for svg in pictures for text in texts_of(svg)]
    with language(tag):
        told = [text for svg in pictures for text in texts_of(in_language(svg))]
    pairs = list(zip(english, told, strict=True))
    assert sum(before != after for before, after in pairs) > 300
    assert {after for after in told if re.search("[A-Za-z]", NAMES.sub("", after))} == set()
    assert all(NUMBER.findall(before) == NUMBER.findall(after) for before, after in pairs)


def test_parts_and_values_of_a_recorded_text_are_translated_too() -> None:
    lost = say(
        "{lost} lost, {twice} answered twice of {requests:request}, {interrupted} of them interrupted",
        lost=0,
        twice=0,
        requests=1,
        interrupted=1,
    )
    missing = say("missing: {missing}", missing=[say("NCCL on GPU"), say("replicas")])
    gain = say(
        "minus {name} {value:points} points ({low:points} to {high:points})", name="x", value=0.069, low=0, high=1
    )
    with language("zh-TW"):
        told = translated_text(joined(lost, missing, gain, "a text of one's own; and more"))
    assert told.split("；") == [
        "遺失 0，重複回答 0（共 1 個請求），其中 1 個被中斷",
        "缺少：GPU 上的 NCCL、副本",
        "減去x為 +6.9 個百分點（0 至 +100.0）",
        "a text of one's own",
        "and more",
    ]


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="zh-TW"), language("zh-tw"):
        pass


def shown(page: str) -> list[tuple[str | None, str]]:
    """Return the numbers of a page, each with where it is from."""
    return [(piece.source, number) for piece in read_pieces(page) for number in piece.numbers]


@pytest.mark.parametrize("tag", OTHERS)
def test_a_page_has_the_same_numbers_from_the_same_sources_in_each_language(tag: str) -> None:
    week = messages.read_week(messages.ROOT / "reports" / SAMPLE / "week.json")
    found = tuple(accuracy_findings.findings(make_comparison()))  # more than a paragraph has room for
    accuracy = next(run for run in week.runs if run.study == "accuracy_comparison")
    told = replace(accuracy, records=replace(accuracy.records, findings=found))
    week = replace(week, runs=tuple(told if run is accuracy else run for run in week.runs))
    english = render(make_page(week))
    with language(tag):
        other = render(make_page(week))
    assert (language_of(english), language_of(other)) == (ENGLISH, tag)
    assert len(shown(english)) > 1_000
    assert shown(english) == shown(other)
    assert str(found[0]) in english and str(found[0]) not in other
