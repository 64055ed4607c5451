"""What a page shows beside what its runs give: each difference in a line that names its source."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from qubic_lab.runs.page_numbers import Piece, RecordedWeek, read_pieces, without_source

LONG = 80
"""Characters of a text that a line shows."""

Pair = tuple[Piece | None, Piece | None]
"""A piece of a page and the one that should be there; None: there is none."""


@dataclass(frozen=True)
class PageComparison:
    """How many numbers the page shows, how many are those of their sources, and each difference in a line."""

    numbers: int
    traced: int
    differences: tuple[str, ...]


def compare_pages(page: str, expected: str, recorded: RecordedWeek, unread: Iterable[str] = ()) -> PageComparison:
    """Compare a page with the one that its runs give; the numbers of `unread` runs cannot be traced."""
    shown, unread = read_pieces(page), set(unread)
    pairs = list(_aligned(shown, read_pieces(expected)))
    differences = [line for pair in pairs if pair[0] != pair[1] for line in _name(*pair, recorded)]
    if not differences and page != expected:
        differences.append("the page is not what its runs give, though all of its texts, tags and pictures are")
    differences += [f"the page shows {shorten(text)} without a source" for text in without_source(shown)]
    sources = {each.source for each in shown if each.source}
    unknown = {each for each in sources if each not in recorded}
    differences += [f"{source}: the page names a source that there is not" for source in sorted(unknown)]
    traced = [
        piece
        for piece, right in pairs
        if piece is not None
        and piece == right
        and piece.source is not None
        and piece.source not in unknown
        and piece.source.partition("#")[0] not in unread
    ]
    return PageComparison(
        sum(len(piece.numbers) for piece in shown), sum(len(piece.numbers) for piece in traced), tuple(differences)
    )


def shorten(text: str) -> str:
    """Return a text in quotes, of a long one its beginning."""
    return repr(text if len(text) <= LONG else f"{text[: LONG - 1]}…")


def _aligned(shown: Sequence[Piece], right: Sequence[Piece]) -> Iterator[Pair]:
    if len(shown) == len(right):  # the usual edit changes texts alone
        yield from zip(shown, right, strict=True)
        return
    for _, first, last, other_first, other_last in SequenceMatcher(None, shown, right).get_opcodes():
        yield from zip_longest(shown[first:last], right[other_first:other_last])


def _name(ours: Piece | None, theirs: Piece | None, recorded: RecordedWeek) -> Iterator[str]:
    where = next((piece.source for piece in (theirs, ours) if piece is not None and piece.source), "the page")
    if ours is None or theirs is None:
        piece, said = (ours, "has, and its runs do not give,") if ours else (theirs, "lacks")
        assert piece is not None
        yield f"{where}: the page {said} {shorten(piece.text)}"
    elif "img" in (ours.tag, theirs.tag):
        yield f"{where}: the picture is not the recorded one"
    elif ours.tag or theirs.tag:
        yield f"{where}: the page has the tag {shorten(ours.text)} in place of {shorten(theirs.text)}"
    elif ours.text == theirs.text:
        yield f"{where}: the page names another source of {shorten(ours.text)}: {ours.source}"
    elif len(ours.numbers) == len(theirs.numbers) and ours.numbers != theirs.numbers:
        for number, right in zip(ours.numbers, theirs.numbers, strict=True):
            if number != right:
                origin = recorded.trace(right, where).origin()
                yield f"{where}: the page shows {number}, and its source gives {right} ({origin})"
    else:
        yield f"{where}: the page says {shorten(ours.text)}, and its source gives {shorten(theirs.text)}"
