"""The page in other languages: every message is translated, and no number differs."""

import re

import messages
import pytest

from qubic_lab.errors import InputError
from qubic_lab.runs.language import ENGLISH, LANGUAGES, language, translated, translated_finding, translated_text
from qubic_lab.runs.week_report import SAMPLE
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
        "{model} is fastest with {way}: {key:.1f} tokens/s for {requests:request}.",
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


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="zh-TW"), language("zh-tw"):
        pass


@pytest.mark.parametrize("tag", OTHERS)
def test_the_captions_and_headings_of_the_sample_week_are_translated(tag: str) -> None:
    week = messages.read_week(messages.ROOT / "reports" / SAMPLE / "week.json")
    with language(tag):
        texts = [*messages.headings(week)]
        texts += [each.caption for run in week.runs for each in (*run.records.pictures, *run.records.tables)]
        known = {each.id for each in messages.read(tag) if each.id == each.string}
        assert [each for each in texts if translated_text(each) == each and each not in known] == []
