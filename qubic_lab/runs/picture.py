"""Pictures as SVG whose texts are texts: made shorter, as a page holds dozens of them, and in the page's language."""

import re
from collections.abc import Iterator, Mapping
from html import escape, unescape
from itertools import count
from string import ascii_lowercase
from unicodedata import east_asian_width
from urllib.parse import quote
from xml.etree import ElementTree

from qubic_lab.runs.language import ENGLISH, current_language, translated_text

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
CAPTION = ".//{http://purl.org/dc/elements/1.1/}title"
UNSEEN = [SVG + name for name in ("metadata", "title")]
FONTS = "system-ui,DejaVu Sans,sans-serif"
"""The page's own font, or the one for which matplotlib has placed the texts; it is wider than most."""
PLAIN = " !$'()*+,;=:@/?-._~[]{}|"
"""Characters that mean nothing in an address or between double quotes in HTML, and stay as they are in an address."""
PLACES = ("d", "x", "y", "width", "height")
NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
LEAST_SIZE = 0.8
"""A translation is set no smaller than this share of the size of its English text: short texts have room."""
NARROW = frozenset(" .,:;'|/()[]fijlrtI")
USED = re.compile(r"#([\w-]+)")
TEXT = re.compile(r"(<text[^<>]*?font-size:)([\d.]+)(px[^<>]*>)([^<>]*)(?=</text>)")


def read_svg(svg: str) -> tuple[str | None, str]:
    """Return the caption within a picture of matplotlib, if it has one, and the picture made shorter.

    Its finest step is a tenth of a point; what is not seen goes, and so do the fonts of the machine that drew it.

    Raises:
        ElementTree.ParseError: it is no XML.
    """
    root, used = ElementTree.fromstring(svg), set(USED.findall(svg))
    caption = root.findtext(CAPTION)
    ids = [each for element in root.iter() if (each := element.get("id", "")) in used]
    _shorten(root, dict(zip(ids, _names(), strict=False)))
    root.set("font-family", FONTS)
    ElementTree.register_namespace("", SVG[1:-1])
    written = re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")).replace(" />", "/>")
    # In an address within HTML a single quote is one character and a double one three.
    return caption, re.sub(r'(?<==)"([^"\'<>]*)"(?=[^<>]*>)', r"'\1'", written)


def _names() -> Iterator[str]:
    """Yield a, b, … z, a1, b1, …: short names for what is used many times."""
    for number in count():
        yield from (f"{letter}{number or ''}" for letter in ascii_lowercase)


def _shorten(element: ElementTree.Element, names: Mapping[str, str]) -> None:
    for child in [each for each in element if each.tag in UNSEEN]:
        element.remove(child)
    places = (*PLACES, "transform") if element.tag == f"{SVG}text" else PLACES
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        renamed = USED.sub(lambda used: f"#{names.get(used[1], used[1])}", value)
        if name == "id":
            element.attrib |= {name: names[value]} if value in names else {}
        elif name == "style":
            element.set(name, _short_style(renamed))
        else:
            element.set("href" if name == LINK else name, _short_path(renamed) if name in places else renamed)
    for place, child in reversed(list(enumerate(element))):
        _shorten(child, names)
        if child.tag == f"{SVG}g" and not child.attrib:
            element[place : place + 1] = list(child)
    _share_style(element)


def _short_style(style: str) -> str:
    own = [each for each in style.split("; ") if not each.startswith("font-family: 'DejaVu Sans")]
    return ";".join(own).replace(": ", ":").replace(", ", ",")


def _short_path(value: str) -> str:
    """Return a path or a place in tenths; a line goes on without its letter."""
    value = NUMBER.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value.replace("\n", ""))
    if not re.search("[A-KN-Y]", value):
        value = value.replace("L", "")
    return re.sub(r" ?([A-Za-z]) ?", r"\1", re.sub(" {2,}", " ", value)).strip()


def _share_style(group: ElementTree.Element) -> None:
    """Let what has one style take it from its group; opacity alone would then be another."""
    styles = {child.get("style", "") for child in group}
    shapes = not any(child.tag == f"{SVG}text" for child in group)
    if group.tag == f"{SVG}g" and shapes and len(group) > 1 and len(styles) == 1 and not group.get("style"):
        style = styles.pop()
        if style and not re.search(r"(?<!-)opacity", style):
            group.set("style", style)
            for child in group:
                del child.attrib["style"]


def texts_of(svg: str) -> list[str]:
    """Return the texts of a picture, line by line."""
    return [unescape(text) for *_, text in TEXT.findall(svg)]


def in_language(svg: str) -> str:
    """Return a picture with its texts in the language used now; numbers, units and names stay.

    A text that becomes wider is set smaller: there is as much room for it as for the English one.
    """
    tag = current_language()
    return svg if tag == ENGLISH else TEXT.sub(_tell, svg).replace("<svg ", f"<svg lang='{tag}' ", 1)


def _tell(element: re.Match[str]) -> str:
    begin, size, end, content = element.groups()
    english = unescape(content)
    told = translated_text(english)
    shown = float(size) * min(1.0, max(LEAST_SIZE, _width(english) / (_width(told) or 1.0)))
    return f"{begin}{round(shown, 1):g}{end}{escape(told, quote=False)}"


def _width(text: str) -> float:
    """Return the approximate width of a text in units of its size."""
    return sum(1.0 if east_asian_width(each) in "FW" else 0.34 if each in NARROW else 0.62 for each in text)


def data_uri(svg: str) -> str:
    """Return a picture's content as an address that needs no file beside the page."""
    return f"data:image/svg+xml,{quote(svg, safe=PLAIN)}"
