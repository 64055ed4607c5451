"""Fields of news and posts as sources give them: words without markup, dates, and ids that are not too long."""

import hashlib
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import from_us, read_iso, to_us

LONGEST_ID = 512
_INLINE = frozenset(("a", "abbr", "b", "cite", "code", "del", "em", "font", "i", "ins", "kbd", "mark", "q", "s"))
_INLINE |= frozenset(("small", "span", "strong", "sub", "sup", "u", "wbr"))
"""Tags within a word; all others end it."""
_UNSEEN = frozenset(("script", "style", "template", "noscript", "iframe"))
_CUT_TAG = re.compile(r"<[A-Za-z/!][^<>]*$")
_SPACE = re.compile(r"\s+")


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen += 1
        elif tag not in _INLINE:
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag not in _INLINE:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)


def plain_text(markup: Any) -> str:
    """Return the words of HTML in one line: without tags, scripts and styles, entities as their characters.

    A tag that is cut off at the end is left out. What is not a text gives an empty one.
    """
    if not isinstance(markup, str):
        return ""
    words = _Words()
    words.feed(_CUT_TAG.sub("", markup))
    words.close()
    return _SPACE.sub(" ", "".join(words.parts)).replace("\x00", "").strip()


def read_date(text: Any) -> int | None:
    """Return the instant of a date in the form of ISO 8601 or RFC 822; None if it names no zone or is no date.

    A date without a zone may be any of 26 hours: it is not guessed.
    """
    for read in (read_iso, _read_rfc_822):
        try:
            at_us = read(text)
            from_us(at_us)  # some dates lie beyond the calendar once they are in UTC
        except (InputError, ValueError, TypeError, AttributeError, OverflowError):
            continue
        return at_us
    return None


def _read_rfc_822(text: str) -> int:
    at = parsedate_to_datetime(text.strip())
    if at.tzinfo is None and text.strip().endswith("-0000"):  # UTC, and nothing about the writer's zone
        at = at.replace(tzinfo=UTC)
    return to_us(at)


def short_id(name: str) -> str:
    """Return a text's id at its source, or its hash if the id is longer than the database takes."""
    return name if len(name) <= LONGEST_ID else hash_id(name)


def hash_id(content: str) -> str:
    """Return an id for a text without one."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
