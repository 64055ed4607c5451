"""The sentences of an answer in plain prose that may state it, and how much of the question they repeat."""

import re
from collections.abc import Sequence

from qubic_lab.consensus.answer_readers import SPAN, FinalAnswer
from qubic_lab.consensus.conclusions import LONGEST, sentences
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import is_chinese, stem, words

MOST_WORDS = 4
"""Words of a name or an item."""
SHORTEST_SENTENCE = 3
"""Texts of so few words may be a reply as a whole."""
MOST_SENTENCES = 3
"""Sentences from the beginning that are searched for a verdict or a name."""
NO_STATEMENT = re.compile(
    r"[?？][^\w?？]*$|^(?:sure|certainly|of\s+course|okay?|great|good|awesome|excellent|fantastic|wow|aww|hello|hi|what|好的|[您你]好|当然)(?![a-z])[^.,，。]{0,30}[!！.。:：]$"
    r"|^(?:this|that|it)(?:'s|\s+is)\s+an?\s.{0,30}\b(?:question|one|puzzle|riddle|problem)\b|^i(?:'m|\s+am)\s+(?:happy|glad)"
    r"|(?<!\bbut\s)\bi(?:'m|\s+am)\s+(?:\w+\s+)?(?:sorry|unable|afraid)\b|\bi(?:'m|\s+am)\s+not\s+(?:\w+\s+)?(?:sure|able)\b"
    r"|\bi\s+(?:can't|cannot|don't\s+(?:have|know))\b|\b(?:not|n't)\s+(?:say|said|known?|given|tell)\b|\bunknown\b"
    r"|抱歉|[对對]不起|[无無]法.{0,4}(?:得知|[预預][测測]|知道|回答|确定)|(?:不|[没沒]有)(?:知道|清楚|[办辦]法)",
    re.IGNORECASE,
)
"""Questions, exclamations, refusals and doubts."""
_HEDGE = re.compile(
    r",?(?<!\s)\s+(?:i\s(?:believe|think|guess|suppose)|of\scourse|(?:strictly|generally|technically)\sspeaking"
    r"|if\si(?:'m|\sam)\snot\smistaken|as\sfar\sas\si\sknow)(?=[.!\n]|$)",
    re.IGNORECASE,
)
"""What may follow an answer and adds nothing."""
_MARKER = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]+(?=\S)", re.MULTILINE)
CORRECTS = re.compile(r"(?:however|but|actually|in\s+fact|wait|sorry|no)\b|但|其实|不对", re.IGNORECASE)
BRACKETS = re.compile(r"(?:(?<!\s)\s+|(?<=[^\x00-\x7f]))\([^()]*\)|（[^（）]*）")
QUOTES = re.compile(r"[\"“”「」『』《》]|(?<!\w)['‘]|['’](?!\w)")
CLAUSE = re.compile(r"[,;:，；：。]\s*|(?<!\s)\s+[—–-]+\s+")
DENIED = re.compile(
    r"\bnon-|\b(?:not|never|nor|neither|cannot|unable|incapable|impossible|no)\b|n't\b|不(?![过但仅])|没(?!错)|[无無]法|并非|否",
    re.IGNORECASE,
)


def said_in(text: str) -> list[str]:
    """Return the sentences that may state the answer: no long one, no chatter, question or refusal."""
    text = _HEDGE.sub("", _MARKER.sub("", text)).replace("≈", "=")
    return [each for each in sentences(text) if len(each) <= LONGEST and not NO_STATEMENT.search(each)]


def agreed(found: Sequence[tuple[str, FinalAnswer]], form: QuestionForm) -> FinalAnswer | None:
    """Return the first answer, unless a sentence that repeats as much of the question as any gives another one."""
    hits = [repeats(sentence, form) for sentence, _ in found]
    counts = [not n or hit == max(hits) or CORRECTS.match(found[n][0]) for n, hit in enumerate(hits)]
    said = [answer for is_counted, (_, answer) in zip(counts, found, strict=True) if is_counted]
    return said[0] if said and all(_agree(said[0], other) for other in said[1:]) else None


def _agree(one: FinalAnswer, other: FinalAnswer) -> bool:
    """Return whether two answers are equal, or names of which one is a part of the other."""
    named = [{*each.value.split()} for each in (one, other)]
    return one.key == other.key or (one.kind == other.kind == SPAN and (named[0] <= named[1] or named[1] <= named[0]))


def repeats(text: str, form: QuestionForm) -> float:
    """Return how many of the question's words a text has; a number counts as half."""
    said = {stem(word.removesuffix("'s")) for word in words(text)}
    return sum(0.5 if word.isdecimal() else 1.0 for word in form.content if word in said)


def length(text: str) -> float:
    """Return the number of words; a Chinese character counts as half."""
    return sum(0.5 if is_chinese(word) else 1.0 for word in words(text))
