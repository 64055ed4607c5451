"""Merges explanations that agree: the best one, plus sentences of others that it lacks.

A sentence is added if at least two answers say it, the best one says nothing like it, and more answers say it than deny
it. Nothing is rewritten: every sentence comes from an answer, and its authors are recorded.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qubic_lab.consensus.conclusions import sentences, without_thoughts
from qubic_lab.consensus.contradictions import contradicts
from qubic_lab.consensus.similarity import content_of, words_of

MOST_ADDED = 3
LEAST_SAID = 2
"""Answers that must say a sentence before it is added."""
SAYS_THE_SAME = 0.6
"""Word overlap from which two sentences say the same."""
IS_LIKE = 0.4
"""Word overlap with a sentence of the best answer from which a sentence adds nothing."""
LEAST_CONTENT = 3
"""Content words; a shorter sentence is not added."""
_ITEM = re.compile(r"^\s*(?:[-*+•]|\(?(?:\d{1,2}|[a-zA-Z])[.)、])\s+")
_ALONE = re.compile(r"^(?:it|this|that|they|these|those|he|she|however|but|so|therefore|thus)\b", re.IGNORECASE)
"""Openings that refer to the preceding sentence."""


@dataclass(frozen=True)
class AddedSentence:
    """An added sentence, and the voters whose answers say or deny it."""

    sentence: str
    said_by: tuple[str, ...]
    denied_by: tuple[str, ...]


@dataclass(frozen=True)
class MergedAnswer:
    """The merged text, the added sentences, and the `disputed` ones, which were left out because others deny them."""

    text: str
    added: tuple[AddedSentence, ...] = ()
    disputed: tuple[AddedSentence, ...] = ()


def merge(best: str, members: Sequence[str], texts: Mapping[str, str]) -> MergedAnswer:
    """Return the best voter's answer with the sentences that other members of its group add; all others may deny them.

    `texts` are all usable answers by voter.
    """
    base = without_thoughts(texts[best]).strip()
    taken = [_content(sentence) for sentence in whole_sentences(base)]
    said = {
        voter: [(sentence, _content(sentence)) for sentence in whole_sentences(without_thoughts(texts[voter]))]
        for voter in members
        if voter != best
    }
    candidates = [
        (sentence, content, _said_by(content, said))
        for each in said.values()
        for sentence, content in each
        if content.total() >= LEAST_CONTENT and not _ALONE.match(sentence)
    ]
    candidates.sort(key=lambda each: -len(each[2]))  # among equals by position
    added: list[AddedSentence] = []
    disputed: list[AddedSentence] = []
    for sentence, content, said_by in candidates:
        if any(_overlap(content, other) >= IS_LIKE for other in taken):
            continue
        if len(said_by) < LEAST_SAID or contradicts(base, sentence):
            continue
        denied_by = tuple(each for each in texts if each not in said_by and contradicts(texts[each], sentence))
        taken.append(content)
        addition = AddedSentence(sentence, said_by, denied_by)
        (added if len(said_by) > len(denied_by) else disputed).append(addition)
        if len(added) == MOST_ADDED:
            break
    text = " ".join([base, *(each.sentence for each in added)])
    return MergedAnswer(text, tuple(added), tuple(disputed))


def whole_sentences(text: str) -> list[str]:
    """Return the complete sentences of a text, without list markers."""
    lines = "\n".join(_ITEM.sub("", line) for line in text.splitlines())
    return [sentence for sentence in sentences(lines) if sentence[-1] in ".!。！"]


def _said_by(content: Counter[str], said: Mapping[str, Sequence[tuple[str, Counter[str]]]]) -> tuple[str, ...]:
    return tuple(
        voter for voter, each in said.items() if any(_overlap(content, other) >= SAYS_THE_SAME for _, other in each)
    )


def _content(sentence: str) -> Counter[str]:
    return Counter(content_of(words_of(sentence)))


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    """Return the F1 of two multisets: twice the shared size over the sum of sizes."""
    sizes = one.total() + other.total()
    return 2 * (one & other).total() / sizes if sizes else 0.0
