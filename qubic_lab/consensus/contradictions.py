"""Rules for contradictions between texts, in English and Chinese; they prefer to miss one than to invent one.

A text is split into clauses: content words, a sign and numbers. Negations flip the sign, and so do words with an
opposite: "does not rise" and "falls" both have sign -1 and the content word of the pair rise/fall. Two clauses with
nearly the same content contradict each other if their signs or one of their numbers differ. In comparisons the order
counts: "A is taller than B" equals "B is shorter than A".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from qubic_lab.consensus.dates import may_agree
from qubic_lab.consensus.quantities import Base, plain, plain_quantities
from qubic_lab.consensus.words import (
    HAN_OPPOSITE,
    HAN_OPPOSITES,
    both_ends,
    is_chinese,
    polarity,
    simplified,
    stem,
    without_places,
    word_set,
    words,
)

SAME_CLAUSE = 0.8
"""Least shared part of the longer clause's content; set on the development half of the labelled pairs."""
WITHIN = 0.5
"""The same if the other clause has no further content."""
MOST_CLAUSES = 40
"""Clauses read from the beginning of a text, and as many from its end."""
LEAST_COMMON = 2
"""Content words that clauses must share, unless each is its whole text."""


@dataclass(frozen=True)
class Clause:
    """The content of a clause.

    `content` holds stems and names of pairs of opposites, which begin with #; `pairs` only those names. `sign` is 1 or
    -1, and `numbers` are (dimension, value) pairs. `compared` holds, for a comparison, the words only before "than" and
    only after it.
    """

    content: frozenset[str]
    pairs: frozenset[str]
    sign: int
    numbers: tuple[Base, ...]
    compared: tuple[frozenset[str], ...] = ()

    @cached_property
    def is_bare(self) -> bool:
        """Whether it is affirmative, without numbers and comparisons."""
        return self.sign > 0 and not self.numbers and not self.compared


def contradicts(a: str, b: str) -> bool:
    """Return whether two texts say opposites, or give different numbers for the same thing.

    Either one opens with yes and the other with no, or a clause of one is denied by the other. A clause that the other
    text also agrees with is not denied: both may say "rises when hot, falls when cold".
    """
    opened = verdict(a), verdict(b)
    if all(opened):
        return opened[0] != opened[1]
    ours, theirs = clauses(a), clauses(b)
    least_common = 0 if len(ours) == len(theirs) == 1 else LEAST_COMMON
    # Common clauses deny nothing; near copies share most of theirs.
    for mine in ours - theirs:
        for other in theirs - ours:
            if mine.is_bare and other.is_bare:
                continue  # affirmative clauses do not deny each other: the usual case
            if _deny(mine, other, least_common) and not (_is_agreed(mine, theirs) or _is_agreed(other, ours)):
                return True
    return False


@lru_cache(4096)
def verdict(text: str) -> str:
    """Return `yes` or `no` if a text opens with it in either language, else ""."""
    text = simplified(text.strip()[:_LONGEST_OPENING])
    if _NO.match(text):
        return "no"
    return "yes" if _YES.match(text) else ""


@lru_cache(4096)
def clauses(text: str) -> frozenset[Clause]:
    """Return the clauses of a text that have a content word or a number; the first and last of a long text."""
    parts = list(_parts(plain(both_ends(text))))
    if len(parts) > 2 * MOST_CLAUSES:
        parts[MOST_CLAUSES:-MOST_CLAUSES] = []
    return frozenset(clause for clause in map(_clause, parts) if clause.content or clause.numbers)


_LONGEST_OPENING = 200
_WRONG = r"false|incorrect|wrong|untrue|not\s+(?:true|correct|right|the\s+case)"
_TRUE = r"true|correct|right|the\s+case"
_IT_IS = r"(?:it|that|this|the\s+(?:statement|claim|sentence))(?:'s|\s+is)"
_END = r"(?=\s*(?:[,.;:!—–-]|$))"
_HAN_END = r"(?=[喔哦啊呢啦]?\s*(?:[，。；！,.!;（(]|$))"
_NO = re.compile(
    rf"""\W*(?:no{_END}|nope\b|(?:absolutely|definitely|certainly|of\s+course)\s+not\b|not\s+at\s+all\b|(?:{_IT_IS}\s+)?(?:{_WRONG}){_END}|{_IT_IS}n't\s+(?:{_TRUE}){_END}
    |(?:并?不是的?|不对|不正确|不可能|不可以|不能|不会|不需要|不行|不应该|没有|错误?的?|否|并非如此|否定的?|当然不[是会能行]|不){_HAN_END})""",
    re.IGNORECASE | re.VERBOSE,
)
_YES = re.compile(
    rf"""\W*(?:yes{_END}|yep\b|(?:absolutely|definitely|certainly|of\s+course)(?:\s+(?:it|they)\s+\w+)?{_END}|(?:{_IT_IS}\s+)?(?:{_TRUE}){_END}
    |(?:是的?|对的?|正确的?|没错|可以的?|肯定的?|能|会的?|需要|行|应该|有的?|当然(?:是|可以|能|会)?){_HAN_END})""",
    re.IGNORECASE | re.VERBOSE,
)
_CONTRACTED = [
    (re.compile(pattern, re.IGNORECASE), written)
    for pattern, written in (
        (r"\bwon't\b", "will not"),
        (r"\bcan't\b", "can not"),
        (r"n't\b", " not"),
        (r"'(?:s|re|ve|ll|d|m)\b", ""),
    )
]
_SPEAKING = [
    (re.compile(pattern, re.IGNORECASE), written)
    for pattern, written in (
        (r"\bcannot\b|\bno longer\b", " not "),
        (r"\bno (?:doubt|matter)\b|\bnot only\b|\bnothing but\b|\bat (?:least|most)\b|\bmore or less\b", ""),
        (r"\bno (?:more|less|fewer|later|earlier) than\b", ""),
    )
]
_CLAUSE_END = re.compile(
    r"[\n.;:!?](?=\s|$)|[。；：！？，]|,(?=\s)|[()（）]"
    r"|\b(?:because|but|although|though|while|whereas|since|so that|and (?=it |they |he |she )|which)\b"
    r"|因为|但是|虽然|而且|所以|由于|然而|但(?!是)"
)
_COMPARED = re.compile(r"\s(than|before|after)\s|(比)")
_NEGATORS = word_set("not never no none neither nor without nobody nothing hardly barely rarely seldom fails failed")
_STOPS = word_set(
    """be is are was were been being am do does did done has have had having will would shall should can could may might
    must of in on at to for from by with as that this these those it its they them their he she his her we you i there
    here so then thus therefore hence also very quite really indeed just only ever always about around approximately
    roughly than who whom whose what when where why how if such into onto per via any one ones yes actually each both
    generally usually typically get gets become becomes remain remains still"""
) | frozenset(
    "的了是在和也就而及与着会能可以要将把被使让其它他她这那个些之于为因此故由从向到吗呢吧啊很更最还又再上下中里当时候我们你都比"
)
_HAN_NEGATION = re.compile("并非|并不|并没有|没有|从未|从来不|不|没|非|未|无|否")
_HAN_NEUTRAL = re.compile(
    "不仅|不但|不过|不断|非常|无论|除非|没错|无线|未来|不久|不得不|差不多|不少|不管|不然|非洲|是否|否则|不错|对不起|了不起|只不过"
    "|不可避免|不约而同|无数|不禁|不由得|明显|大约|大概|多么|小时|大学|大家|小心|小学"
)


def _parts(text: str) -> Iterator[str]:
    """Return the clauses of a plain text, with contractions written out."""
    if "'" in text:
        for pattern, written in _CONTRACTED:
            text = pattern.sub(written, text)
    for pattern, written in _SPEAKING:
        text = pattern.sub(written, text)
    return (part for part in _CLAUSE_END.split(text) if part.strip())


@lru_cache(4096)
def _clause(text: str) -> Clause:
    quantities = plain_quantities(text)
    text = without_places(text, ((quantity.start, quantity.end) for quantity in quantities))
    content, sign = _content(text)
    compared: tuple[frozenset[str], ...] = ()
    if found := _COMPARED.search(text):
        sides = text[: found.start()], text[found.end() :]
        first, second = (frozenset(word for word in _content(side)[0] if word[0] != "#") for side in sides)
        compared = first - second, second - first
    return Clause(
        frozenset(content),
        frozenset(word for word in content if word[0] == "#"),
        sign,
        tuple(quantity.base for quantity in quantities),
        compared,
    )


def _content(text: str) -> tuple[list[str], int]:
    """Return the content words and the sign of a piece of text."""
    content, sign = [], 1
    if is_chinese(text):
        text = _HAN_NEUTRAL.sub("", text)
        for found in HAN_OPPOSITE.findall(text):
            pair, turn = HAN_OPPOSITES[found]
            content.append(pair)
            sign *= turn
        text, negations = _HAN_NEGATION.subn("", HAN_OPPOSITE.sub("", text))
        sign *= (-1) ** negations
    for word in words(text):
        said, turn = _word(word)
        content += [said] if said else []
        sign *= turn
    return content, sign


@lru_cache(1 << 16)
def _word(word: str) -> tuple[str, int]:
    """Return the content of an English word, or "", and its effect on the sign."""
    if word in _NEGATORS:
        return "", -1
    if word in _STOPS:
        return "", 1
    return polarity(word) or (stem(word), 1)


def _deny(a: Clause, b: Clause, least_common: int) -> bool:
    """Return whether two clauses are about the same thing and cannot both hold."""
    if a.pairs != b.pairs:
        return False
    common = len(a.content & b.content)
    shorter, longer = sorted((len(a.content), len(b.content)))
    if common < least_common or common < (WITHIN if common == shorter else SAME_CLAUSE) * longer:
        return False
    if _signs_differ(a, b):
        return a.numbers == b.numbers or not (a.numbers and b.numbers)
    return _one_number_differs(a.numbers, b.numbers)


def _signs_differ(a: Clause, b: Clause) -> bool:
    """Return whether the clauses have opposite signs; a reversed comparison flips the sign."""
    if not (a.compared and b.compared):
        return a.sign != b.sign
    swapped = not (a.compared[0].isdisjoint(b.compared[1]) or a.compared[1].isdisjoint(b.compared[0]))
    return (a.sign != b.sign) != swapped


def _one_number_differs(a: tuple[Base, ...], b: tuple[Base, ...]) -> bool:
    """Return whether exactly one number differs, in the same dimension."""
    if len(a) != len(b):
        return False
    other = [(ours, theirs) for ours, theirs in zip(a, b, strict=True) if ours != theirs]
    if len(other) != 1:
        return False
    (dimension, ours), (other_dimension, theirs) = other[0]
    if isinstance(ours, str) and isinstance(theirs, str) and dimension == "date":
        return not may_agree(ours, theirs)
    return dimension == other_dimension


def _is_agreed(clause: Clause, others: frozenset[Clause]) -> bool:
    """Return whether another text says the same about the same thing."""
    return any(
        clause.content == other.content and clause.numbers == other.numbers and not _signs_differ(clause, other)
        for other in others
    )
