"""The page's language: English, or that of a catalogue in `locale/`.

The English text is the message. A catalogue translates it whole, with the same placeholders in the same order, so that
numbers, units and names are equal in all languages. `scripts/messages.py` brings catalogues up to date with the code.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from qubic_lab.errors import check_choice
from qubic_lab.studies.acceptance import PARTS
from qubic_lab.studies.finding import LIST, MISSING, NOUN, PLACEHOLDER, RULES, Finding

ENGLISH = "en"
LEAST_TEXT = 8
"""Characters of a message beside its values; with fewer it would be found in any text, so its values are numbers."""
ANYTHING = rf"(?:(?!{PARTS}).)+?"
NUMBER = r"[-−+±]?\d[\d.,]*(?:\s?%)?"
BEGINS_WITH_A_NUMBER = rf"(?:[-−+±=<]?\s?\d|unknown|{MISSING})(?:(?!{PARTS}).)*?"
CATALOGUES = Path(__file__).parent / "locale"
LANGUAGES = {ENGLISH: "English", "zh-TW": "繁體中文"}
"""The languages of a page by their tags (BCP 47), each with its own name."""

_language: ContextVar[str] = ContextVar("language", default=ENGLISH)


@contextmanager
def language(tag: str) -> Iterator[None]:
    """Let `translated` and `translated_text` use a language.

    Raises:
        InputError: an unknown language.
    """
    check_choice("language", tag, LANGUAGES)
    token = _language.set(tag)
    try:
        yield
    finally:
        _language.reset(token)


def current_language() -> str:
    """Return the tag of the language that is used now."""
    return _language.get()


def sentence_gap() -> str:
    """Return what stands between two sentences in the language that is used now."""
    return "" if current_language().startswith("zh") else " "


def translated(message: str, /, **values: Any) -> str:
    """Return a message of the code in the language used now, its placeholders filled by the rules of findings."""
    return Finding(message, values).text(_translate)


def translated_finding(finding: Finding) -> str:
    """Return a finding in the language used now."""
    return finding.text(_translate)


def translated_figure(finding: Finding) -> str:
    """Return the key figure of a finding in the language used now; empty if it has none."""
    return finding.figure(_translate)


def translated_text(text: str) -> str:
    """Return a recorded English text, such as a caption, in the language used now.

    The text is a message, a message with its values filled in, or several of these with PARTS between them; another
    text stays as it is.
    """
    if current_language() == ENGLISH:
        return text
    return _recorded(text) or _translate(PARTS).join(_recorded(part) or part for part in text.split(PARTS))


def _recorded(text: str) -> str | None:
    """Translate a message whose values may be messages themselves, or lists of them; None: it is none."""
    if found := _catalogue(current_language()).get(text):
        return found
    for pattern, message in _patterns(current_language()):
        if filled := pattern.fullmatch(text):
            return PLACEHOLDER.sub(lambda place: _value(filled[place[1]]), message)
    return None


def _value(text: str) -> str:
    items = [(item, _recorded(item)) for item in text.split(LIST)]
    listed = _translate(LIST).join(told or item for item, told in items)
    return listed if all(told for _, told in items) else _recorded(text) or listed


def _translate(message: str) -> str:
    return _catalogue(current_language()).get(message, message)


@cache
def _catalogue(tag: str) -> Mapping[str, str]:
    """Return the messages of a language; none for English."""
    if tag == ENGLISH:
        return {}
    from babel.messages.pofile import read_po

    with catalogue_file(tag).open("rb") as file:
        return {str(each.id): str(each.string) for each in read_po(file) if each.id and each.string}


def language_of(page: str) -> str:
    """Return the tag of the language that a page says it is in; English if it says none that is known."""
    found = re.search(r'<html lang="([^"]*)"', page)
    return found[1] if found and found[1] in LANGUAGES else ENGLISH


def catalogue_file(tag: str) -> Path:
    """Return where the catalogue of a language lies."""
    return CATALOGUES / tag.replace("-", "_") / "LC_MESSAGES" / "qubic_lab.po"


@cache
def _patterns(tag: str) -> list[tuple[re.Pattern[str], str]]:
    """Return the messages with values as patterns of texts in which these are filled in, the most specific first."""
    bare = {each: PLACEHOLDER.sub(lambda place: _noun(place[2]), each) for each in _catalogue(tag)}
    known = (each for each, text in bare.items() if each != text and text.strip())
    with_values = sorted(known, key=lambda each: len(bare[each]), reverse=True)
    values = {each: ANYTHING if len(bare[each]) >= LEAST_TEXT else NUMBER for each in with_values}
    return [(re.compile(_pattern(each, value), re.DOTALL), _catalogue(tag)[each]) for each, value in values.items()]


def _noun(rule: str | None) -> str:
    return rule if rule and rule not in RULES and NOUN.fullmatch(rule) else ""


def _pattern(message: str, value: str) -> str:
    """Return a pattern of what a message becomes: each value fits a pattern, and equal names have equal values."""
    parts, end, named = [], 0, set()
    for place in PLACEHOLDER.finditer(message):
        name, noun = place[1], _noun(place[2])
        shown = NUMBER if noun else BEGINS_WITH_A_NUMBER if place[2] and value == ANYTHING else value
        parts.append(re.escape(message[end : place.start()]))
        parts.append(f"(?P={name})" if name in named else f"(?P<{name}>{shown})")
        parts.append(f" {re.escape(noun)}s?" if noun else "")
        named.add(name)
        end = place.end()
    return "".join([*parts, re.escape(message[end:])])
