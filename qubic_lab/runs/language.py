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
from qubic_lab.studies.finding import PLACEHOLDER, Finding

ENGLISH = "en"
LEAST_TEXT = 10
"""Characters of a message beside its values; with fewer it would be found in any text."""
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

    The text is a message, or a message with its values filled in; another text stays as it is.
    """
    found = _catalogue(current_language())
    if text in found or not found:
        return found.get(text, text)
    for pattern, message in _patterns(current_language()):
        if filled := pattern.fullmatch(text):
            return PLACEHOLDER.sub(lambda place: _translate(filled[place[1]]), message)
    return text


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
    bare = {each: PLACEHOLDER.sub("", each) for each in _catalogue(tag)}
    known = (each for each, text in bare.items() if each != text and len(text) >= LEAST_TEXT)
    with_values = sorted(known, key=lambda each: len(bare[each]), reverse=True)
    return [(re.compile(_pattern(each), re.DOTALL), _catalogue(tag)[each]) for each in with_values]


def _pattern(message: str) -> str:
    """Return a pattern of what a message becomes: each value is some text, and equal names have equal values."""
    parts, end, named = [], 0, set()
    for place in PLACEHOLDER.finditer(message):
        parts.append(re.escape(message[end : place.start()]))
        parts.append(f"(?P={place[1]})" if place[1] in named else f"(?P<{place[1]}>.+?)")
        named.add(place[1])
        end = place.end()
    return "".join([*parts, re.escape(message[end:])])
