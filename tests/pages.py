"""A page as a reader sees it: its text and elements before anything is unfolded, and its tables."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib

UNSEEN = ("head", "style")
WORD, NUMBERS_TOO = re.compile(r"\S*[^\W\d_]\S*"), re.compile(r"\S*\w\S*")


def parse(content: str) -> Element:
    """Parse a page, raising on anything that is not valid HTML."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(content)


def parse_file(page: Path) -> Element:
    """Parse the page in a file."""
    return parse(page.read_text())


def text(element: Element) -> str:
    """Return all of an element's text, what is folded too."""
    return " ".join("".join(element.itertext()).split())


def _unfolded(element: Element) -> list[Element]:
    if element.tag in UNSEEN:
        return []
    return [child for child in element if element.tag != "details" or child.tag == "summary"]


def visible(element: Element) -> list[Element]:
    """Return an element and those in it, as far as they are seen before anything is unfolded."""
    return [element, *(found for child in _unfolded(element) for found in visible(child))]


def words(element: Element, word: re.Pattern[str] = WORD) -> list[str]:
    """Return the visible words, by default what holds a letter: numbers are none."""
    texts = [each.text for each in visible(element) if each.tag not in (*UNSEEN, "details")]
    texts += [child.tail for each in visible(element) if each.tag != "details" for child in _unfolded(each)]
    return [found for each in texts for found in word.findall(each or "")]


def one(element: Element, path: str) -> Element:
    """Return the first element of a path, which must be there."""
    found = element.find(f".//{path}")
    assert found is not None, path
    return found


def table(element: Element, label: str) -> list[list[str]]:
    """Return the cells of the table in the group of that label, without its heading."""
    found = one(element, f"div[@aria-label='{label}']/table")
    return [[text(cell) for cell in row] for row in found.iter("tr")][1:]
