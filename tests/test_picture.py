"""Pictures made shorter without a change to what is seen, and their texts in another language."""

from xml.etree import ElementTree

from qubic_lab.runs.language import language
from qubic_lab.runs.picture import data_uri, in_language, read_svg, texts_of

DRAWN = """<?xml version="1.0"?>
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="90pt" viewBox="0 0 90 20" xmlns="http://www.w3.org/2000/svg">
 <metadata><x xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Speed &amp; wait</dc:title></x></metadata>
 <!-- seen by nobody -->
 <g id="figure_1">
  <g id="line2d_1">
   <path d="M 0.04 10.126
L 20.26 10.75 L 30 11.049
z
" clip-path="url(#p0a1)" style="fill: none; stroke: #1c2733"/>
   <path d="M 0 0 C 1.25 2 3 4 5 6 L 7 8" style="stroke: #1c2733"/>
  </g>
  <defs><path id="m77" d="M 0 2.5 L 1 1" style="stroke: #0f5f6b"/></defs>
  <g clip-path="url(#p0a1)">
   <use xlink:href="#m77" x="1.2345" y="2" style="fill: #fff"/>
   <use xlink:href="#m77" x="3" y="4" style="fill: #fff"/>
  </g>
  <g id="text_1"><text style="font-size: 10px; font-family: 'DejaVu Sans', sans-serif; text-anchor: middle"
    x="3.21" y="4" transform="rotate(-0 3.21 4)">waiting</text></g>
  <g id="text_2"><text style="font-size: 10px">beside "AR(3)" &amp; 'x' &lt; 4</text></g>
 </g>
 <defs><clipPath id="p0a1"><rect x="1.04" y="0" width="9.96" height="8"/></clipPath></defs>
</svg>"""


def test_a_picture_is_made_shorter_and_stays_what_it_shows() -> None:
    caption, svg = read_svg(DRAWN)
    assert caption == "Speed & wait" and "Speed" not in svg
    lines = ("d='M0 10.1 20.3 10.8 30 11z'", "d='M0 0C1.2 2 3 4 5 6L7 8'")
    assert all(line in svg for line in lines)
    assert "<g clip-path='url(#b)' style='fill:#fff'><use href='#a' x='1.2' y='2'/>" in svg
    assert "<clipPath id='b'><rect x='1' y='0' width='10' height='8'/></clipPath>" in svg
    assert "style='font-size:10px;text-anchor:middle' x='3.2' y='4' transform='rotate(-0 3.2 4)'>waiting<" in svg
    assert ElementTree.fromstring(svg).get("font-family") and read_svg(svg) == (None, svg)


def test_its_texts_are_told_in_the_pages_language_and_values_stay() -> None:
    _, svg = read_svg(DRAWN)
    assert texts_of(svg) == ["waiting", "beside \"AR(3)\" & 'x' < 4"]
    assert in_language(svg) == svg
    with language("zh-TW"):
        told = in_language(svg)
    assert texts_of(told) == ["等待", "beside \"AR(3)\" & 'x' < 4"]
    assert "font-size:10px;" in told
    with language("zh-TW"):  # what becomes wider is set smaller
        assert in_language("<text style='font-size:10px'>bars</text>") == "<text style='font-size:8px'>K 線數</text>"
    assert told.startswith("<svg lang='zh-TW' ")
    assert ElementTree.fromstring(told).find(".//{*}path") is not None


def test_a_picture_is_an_address_that_stands_between_double_quotes() -> None:
    assert data_uri("<a b='c d'>\"#&é</a>") == "data:image/svg+xml,%3Ca b='c d'%3E%22%23%26%C3%A9%3C/a%3E"
