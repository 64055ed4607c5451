"""Plain words from HTML: what news and posts carry is shown and counted without its markup."""

import re
from html.parser import HTMLParser

_INLINE = frozenset(("a", "abbr", "b", "cite", "code", "del", "em", "font", "i", "ins", "kbd", "mark", "q", "s"))
_INLINE |= frozenset(("small", "span", "strong", "sub", "sup", "u", "wbr"))
"""Tags that words go on across; all others end a word."""
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


def plain_text(markup: str) -> str:
    """Return the words of HTML in one line: without tags, scripts and styles, entities as their characters.

    Text without markup comes back with its spaces made single; a tag that is cut off at the end is left out.
    """
    words = _Words()
    words.feed(_CUT_TAG.sub("", markup))
    words.close()
    return _SPACE.sub(" ", "".join(words.parts)).replace("\x00", "").strip()
