"""Reads the number that an answer in plain prose comes to, or states."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import FinalAnswer, numbers_of
from qubic_lab.consensus.conclusions import SO
from qubic_lab.consensus.prose_names import MOST_TOLD, TAGS
from qubic_lab.consensus.prose_sentences import BRACKETS, agreed, length, repeats
from qubic_lab.consensus.quantities import Quantity, plain, spelled_out
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import stem, word_set, words

NEAR = 30
"""Characters before a number that are searched for what it is."""


_SAYS_SO = re.compile(
    r"\b(?:so|therefore|thus|hence|means\s+that|total\s+of)\b|所以|因此|于是|那么|一共|共有", re.IGNORECASE
)
_BESIDE = re.compile(
    r"(?:[,，；;]\s*|(?<![\s,，；;])\s+)?(?:\b(?:making\sit|not|but|because|since|while|whereas|which|as\s+each)\b"
    r"|(?<=[,，；])(?:而|但|因为|不是|比)).*",
    re.I | re.S,
)
_DEFINED = re.compile(r"(?<![A-Za-z\\])[A-Za-z]\s*=(?!=)")
_COUNTS = re.compile(
    r"\b(?:is|are|was|were|has|have|equals?|totals?|(?:sum|add|come|amount)s?(?:\sup)?\sto|costs?|makes?|gives?|takes?|as|be)\b\W*(?:[a-z]+\W+)?$|'s\s*$"
    r"|[=:：是为有剩等于得]\s*$",
    re.IGNORECASE,
)
_COMES_TO = re.compile(r"\b(?:to|in|gets?|yields?)\s*$|^\W*$", re.IGNORECASE)
_ARITHMETIC = word_set("tim divid plus minu multiply twic half doubl squar cube root sum product differenc percent %")
_HAN_COUNTS = {*"是为有剩下等于到共"}
_PART = re.compile(r"[,，;；](?!\d)|\sand\s")
_DIMENSIONS = {"far": "length", "tall": "length", "high": "length", "weigh": "mass", "speed": "length/time"} | {
    "tak": "time",
    "间": "time",
    "重": "mass",
    "远": "length",
}
_LEAVES = re.compile(
    r"(?:\b(?:leav\w+|remain\w*|left\s+(?:\w+\s+)?with|now\s+has)|剩下?|还有)\W*(?:\w{1,30}\W+){0,2}$", re.IGNORECASE
)
_LEFT = re.compile(r"\W*(?:\w+\s){0,3}(?:left|remain\w*)\b", re.IGNORECASE)


def read_number(said: Sequence[str], form: QuestionForm) -> FinalAnswer | None:
    """Return the number that a calculation comes to in the end, else the one that is stated."""
    if said and (len(said) == 1 or len(form.numbers) < 2) and _BARE_NUMBER.fullmatch(spelled_out(plain(said[0]))):
        return readers.read_quantity(said[0], form)
    found = [(sentence, *picked) for sentence in said if (picked := _pick(sentence, form))]
    pool = [(sentence, answer) for sentence, answer, is_sure in found if is_sure or not any(each[2] for each in found)]
    places = [place for place, each in enumerate(pool) if each[0] in said[-2:] and SO.match(each[0])]
    if _is_bare(form) and not places:
        pool = [each for each in pool if repeats(each[0], form)][:1] or [e for e in pool if length(e[0]) <= MOST_TOLD]
    elif places:
        told = pool[places[-1] :] + pool[:1] * (len(form.numbers) < 2 and pool[0][1].unit == pool[places[-1]][1].unit)
        return told[0][1] if len({answer.key for _, answer in told}) == 1 else None
    is_calculated = len(form.numbers) > 1 or any("=" in each for each in said)
    return agreed(pool[-1:] if is_calculated else pool, form)


def _is_bare(form: QuestionForm) -> bool:
    """Return whether a question is only a calculation, such as 2 + 2."""
    others = [word for word in form.content if not word.isdecimal()]
    return len(others) < len(form.content) and _ARITHMETIC.issuperset(others)


def _pick(sentence: str, form: QuestionForm) -> tuple[FinalAnswer, bool] | None:
    """Return the number that a sentence gives, and whether it is more than one of the question's numbers."""
    if _DEFINED.search(sentence):
        answer = readers.read_quantity(sentence, form)
        return (answer, True) if answer else None
    is_calculated, is_sure = len(form.numbers) > 1, False
    part = main_part(re.sub(r",\s+which\b", ", it", sentence) if is_calculated else sentence, form)
    text = spelled_out(plain(part))
    digits = {each.value for each in numbers_of(plain(part))}
    dimensions = {_DIMENSIONS[word] for word in form.words & _DIMENSIONS.keys()}
    known = {sign * value for value, _ in form.numbers if not isinstance(value, str) for sign in (1, -1)}
    ends = readers.limits(numbers_of(text), text)
    found = [
        each
        for each in numbers_of(text)
        if (each.value in digits or each in ends or _is_asked(each, text, form, bool(digits)))
        and (not (each.unit and dimensions) or each.base[0].replace("months", "time") in dimensions)
        and (not form.words.isdisjoint(_RATES) or not _is_rate(each, text, form))
    ]
    pool = [each for each in found if each.start > text.rfind("=")] or found
    tests: tuple[tuple[bool, Callable[[Quantity], object]], ...] = (
        (True, lambda each: _LEAVES.search(text, max(0, each.start - NEAR), each.start) or _LEFT.match(text, each.end)),
        (False, lambda each: form.unit and each.unit == form.unit),
        (
            True,
            lambda each: (
                each.value not in known
                if is_calculated and "=" not in text[: each.start]
                else (each.value, each.unit) not in form.numbers
            ),
        ),
        (False, lambda each: form.noun and stem(each.word.casefold()) == form.noun),
    )
    for is_sign, fits in tests:
        if fitting := [each for each in pool if fits(each)]:
            pool, is_sure = fitting, is_sure or is_sign
    if not pool:
        return None
    bounds = [0, *(each.start() for each in _PART.finditer(text)), len(text)]
    hits = {end: repeats(text[start:end], form) for start, end in pairwise(bounds)}
    told = [next(hit for end, hit in hits.items() if each.start < end) for each in pool]
    of_asked = [each for each, hit in zip(pool, told, strict=True) if hit == max(told)]
    near = [each for each, hit in zip(pool, told, strict=True) if hit and 2 * hit >= max(told)] or of_asked
    values = {each.value for each in near if each.unit == of_asked[0].unit}
    if len(values) > 1 and not (is_calculated or "=" in text or readers.limits(found, text)):
        return None
    chosen = of_asked[-1 if is_calculated or "=" in text else 0]
    if _is_of_other(chosen, numbers_of(text), text, form):
        return None
    before = text[max(0, chosen.start - NEAR) : chosen.start]
    is_said = _COUNTS.search(before) or (is_sure and _COMES_TO.search(before))
    if not is_sure or _is_bare(form):
        is_sure = is_sure and is_said is not None
        if not is_said or chosen.unit not in ("", form.unit or chosen.unit):
            return None
    answer = readers.quantity_answer(chosen, [] if is_calculated else found, text, form)
    return (answer, is_sure) if answer else None


_RATE = re.compile(r"(?:\s\w+)?\s(?:per\s|each\b)")
_RATES = word_set("per each every 每 各 均")
_HAN_EACH = re.compile(r"(?:每[一个]{0,2}(\w)|各)[^，。]{0,4}$")


def _is_rate(number: Quantity, text: str, form: QuestionForm) -> bool:
    """Return whether a number is told of each of several: 16 of each side, if the question does not name the side."""
    told = _HAN_EACH.search(text, max(0, number.start - NEAR), number.start)
    return _RATE.match(text, number.end) is not None or (told is not None and told[1] not in form.words)


_OPERAND = re.compile(r"\b(?:(?:divided?|multiply|multiplied)\b.{0,20}\bby|divide|multiply|subtract|add)\s*$", re.I)
_DIFFERENCE = re.compile(r"\s*\b(?:more|fewer|less)\b.*\bthan\b")


def _is_of_other(number: Quantity, found: Sequence[Quantity], text: str, form: QuestionForm) -> bool:
    """Return whether a number is of something else than asked: another noun, unit or quantity, or a difference."""
    given = {(value, unit) for value, unit in form.numbers if unit not in ("", form.unit)}
    said = {(each.value, each.unit) for each in found}
    is_converted = {unit for _, unit in given} & {unit for _, unit in said} and not given & said
    dimension = Quantity(Fraction(1), form.unit).base[0]
    if form.unit and number.unit and number.base[0] != dimension:
        return True
    if form.unit and (is_converted or number.unit in {unit for _, unit in given}):
        return True
    after = text[number.end :]
    if _OPERAND.search(text, max(0, number.start - NEAR), number.start):
        return True
    is_noun = number.word and not number.unit and number.word not in {*TAGS, *form.words}
    is_counted = form.noun and is_noun and {*form.content}.isdisjoint(map(stem, words(after)[:3]))
    is_difference = "than" not in form.words and _DIFFERENCE.match(after)
    return bool(is_difference or (is_counted and len(form.numbers) < 2))


_BARE_NUMBER = re.compile(r"[^\w!]*\d[\d.,/]*+[^\w!]*")
_ONLY = re.compile(
    r"\W*(?:(?:about|around|roughly|approximately|nearly|almost|some|maybe|probably)\s*)?", re.IGNORECASE
)


def _is_asked(number: Quantity, text: str, form: QuestionForm, has_digits: bool) -> bool:
    """Return whether a number in words, perhaps beside others in digits, is said of what the question asks for."""
    if (
        number.word
        and not has_digits
        and _ONLY.fullmatch(text[: number.start])
        and len(text[number.end :].split()) <= 1
    ):
        return True
    if number.word:
        return bool(number.unit) or stem(number.word.casefold()) in form.words
    return not (has_digits and text[number.end :].strip(" .!") and text[: number.start].strip()[-1:] not in _HAN_COUNTS)


def main_part(sentence: str, form: QuestionForm) -> str:
    """Return what a sentence says in the end: what follows "so", without what it adds or denies."""
    part = re.sub(r"^to\s[^,:=]*(?:[,:]\s*|$)", "", BRACKETS.sub("", sentence), flags=re.IGNORECASE)
    units, kept = ({each.unit for each in _quantities(text)} for text in (sentence, part))
    if form.unit and form.unit in units - kept:
        part = sentence  # the requested unit is in brackets
    if said := [each for each in _SAYS_SO.finditer(part) if _quantities(part[each.end() :])]:
        part = part[said[-1].end() :]
    head, *tail = re.split(r":(?!\d)|：", part, maxsplit=1)
    is_new = any((each.value, each.unit) not in form.numbers for each in numbers_of(plain(head)))
    part = head if is_new and "=" not in "".join(tail) else part
    before = _BESIDE.sub("", part)
    beside = part[len(before) :]
    if (
        re.match(r"\W*but\s(?:\w+\s){0,2}?(?:only|just)\b", beside)
        and repeats(beside, form) >= 1
        and _quantities(beside)
    ):
        before = beside
    units, kept = (
        {word for each in _quantities(text) for word in (each.unit, stem(each.word))} for text in (part, before)
    )
    is_lost = {form.unit, form.noun} & (units - kept - {""}) and kept - {""}
    return before if any(each.unit or not form.unit for each in _quantities(before)) and not is_lost else part


def _quantities(text: str) -> list[Quantity]:
    return numbers_of(plain(text)) or numbers_of(spelled_out(text))
