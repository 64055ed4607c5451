"""What the headlines of a window are about: words, how many texts have them, and whether that changed since before."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from qubic_lab.oracle.model.response import Part, Share
from qubic_lab.oracle.store.text_store import words_of

MOST_KEYWORDS, LEAST_TEXTS, LEAST_LETTERS = 10, 2, 3
"""Keywords of an answer; texts that each needs; letters that it has."""
ALPHA = 0.05
"""The level of all trends of an answer together: each is tested at this divided by the number of keywords."""
COMMON = """
about above after again against all also amid among and any are around back because been before being below between
both but can could day days did does down during each ever every few first for from further get gets given goes had has
have here her him his how into its just keep keeps know last latest less like look looks made make makes many may might
more most much must near new news next not now off one only onto other our out over own per put said same say says see
seen set she should show shows since some still such take takes than that the their them then there these they this
those through time today top too two under until upon use used via was way week weeks well were what when where which
while who whom why will with within without would year years yet you your crypto cryptocurrency coin coins token tokens
market markets price prices
"""
"""Words that say nothing of what a headline is about."""


@dataclass(frozen=True, kw_only=True)
class Keyword(Part):
    """A word of headlines, in lower case, with the distinct texts of the window that have it, and of the one before.

    `trend`: rising or falling where its share differs from that before by more than chance (binomial test given both
    numbers, 5 % for all keywords together), else steady; null: there were no texts before.
    """

    word: Annotated[str, Field(description="in lower case")]
    texts: Annotated[int, Field(description="texts of the window that have it")]
    share: Share
    before: Annotated[int, Field(description="texts of the window before that had it")]
    share_before: Annotated[float | None, Field(description="between 0 and 1; null: there were no texts")]
    trend: Literal["rising", "falling", "steady"] | None


def find_keywords(now: Sequence[str], before: Sequence[str], without: Iterable[str] = ()) -> tuple[Keyword, ...]:
    """Return the words that most headlines of a window have, with their trend against the headlines before it.

    `without` are words that all of them are expected to have, such as a coin's own names.
    """
    left_out = {*COMMON.split(), *(word for name in without for word in words_of(name))}
    counts, earlier = _counts(now, left_out), _counts(before, left_out)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_KEYWORDS]
    shown = [word for word in ranked if counts[word] >= LEAST_TEXTS]
    return tuple(
        Keyword(
            word=word,
            texts=counts[word],
            share=counts[word] / len(now),
            before=earlier[word],
            share_before=earlier[word] / len(before) if before else None,
            trend=_trend(counts[word], len(now), earlier[word], len(before), ALPHA / len(shown)) if before else None,
        )
        for word in shown
    )


def _counts(headlines: Sequence[str], left_out: set[str]) -> Counter[str]:
    words = (word for headline in headlines for word in set(words_of(headline)) - left_out)
    return Counter(word for word in words if len(word) >= LEAST_LETTERS and word.isalpha())


def _trend(texts: int, of: int, before: int, of_before: int, alpha: float) -> Literal["rising", "falling", "steady"]:
    """Return whether more or fewer of all texts with a word fall into the later window than of any texts."""
    from scipy.stats import binomtest

    share = of / (of + of_before)
    if binomtest(texts, texts + before, share).pvalue > alpha:
        return "steady"
    return "rising" if texts > share * (texts + before) else "falling"
