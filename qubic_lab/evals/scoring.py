r"""Rules that decide whether an answer is right; the reference is a number, date, option, list, formula or a few words.

The conclusion of an answer counts: the last `\boxed{}`, else the sentence after the last "answer is" or "answer:", else
the whole text without thoughts. The last of several numbers, or of the names to choose from, counts. The rules prefer
to miss a right answer in an odd form than to accept a wrong one.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from qubic_lab.consensus import symbolic
from qubic_lab.consensus.answers import final_answer, same
from qubic_lab.consensus.conclusions import conclusion
from qubic_lab.consensus.dates import year_of
from qubic_lab.consensus.quantities import Quantity, quantities, spelled_out
from qubic_lab.consensus.question_form import OPTION, letters, options
from qubic_lab.consensus.words import places, words
from qubic_lab.evals.questions import Question

MOST_WORDS = 6
"""A longer reference is a sentence, which can be worded in many ways."""
TOLERANCE = Fraction(2, 1000)
"""Relative tolerance if neither number is whole: 0.111 for 1/9."""

_LIST = re.compile(r"\[([^\[\]]*)\]")
_RIVALS = (
    {"yes", "no"},
    {"true", "false"},
    {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"},
)


def is_checkable(question: Question) -> bool:
    """Return whether a rule can check answers to a question; not if it is creative or the reference is a sentence."""
    return question.kind != "creative" and len(question.answer.split()) <= MOST_WORDS


def judge(question: Question, text: str) -> bool | None:
    """Return whether a text answers a question correctly, or None if no rule can decide."""
    return is_right(question, text) if is_checkable(question) else None


def is_right(question: Question, text: str) -> bool:
    """Return whether a text answers a checkable question as its reference does."""
    answer = conclusion(text)
    reference = question.answer
    if OPTION.match(reference):
        return _chooses(question, answer)
    if listed := _LIST.fullmatch(reference.strip()):
        return _lists(listed[1], answer)
    if symbolic.SIGN.search(reference):
        return same(final_answer(reference, question.question), final_answer(text, question.question)) is True
    if wanted := quantities(reference):
        found = quantities(answer) or quantities(spelled_out(answer))
        return len(found) >= len(wanted) and all(map(_equals, wanted, found[-len(wanted) :]))
    return _names(question, answer)


def _equals(wanted: Quantity, found: Quantity) -> bool:
    """Compare a quantity with the reference; the unit may be missing but not different; a year matches a date."""
    if wanted.unit != found.unit and wanted.unit and found.unit:
        return False
    if isinstance(wanted.value, Fraction) and isinstance(found.value, str):
        return str(wanted.value) == year_of(found.value)
    if isinstance(wanted.value, str) or isinstance(found.value, str):
        return wanted.value == found.value
    if 1 in (wanted.value.denominator, found.value.denominator):
        return wanted.value == found.value
    return abs(wanted.value - found.value) <= TOLERANCE * abs(wanted.value)


def _chooses(question: Question, answer: str) -> bool:
    """Compare the named option letters, or, if none is named, the only option that the text holds."""
    right, right_text = OPTION.findall(question.answer)[0]
    if named := letters(answer):
        return named == {right}
    offered = {right: right_text, **options(question.question)}
    held = {letter for letter, text in offered.items() if places(words(text), words(answer))}
    return held == {right}


def _lists(reference: str, answer: str) -> bool:
    """Compare the items of the last bracketed list, else as many last numbers."""
    wanted = [item.strip() for item in reference.split(",")]
    if brackets := _LIST.findall(answer):
        found = [item.strip() for item in brackets[-1].split(",")]
    else:
        found = [str(each.value) for each in quantities(answer)][-len(wanted) :]
    return [item.strip("'\" ").casefold() for item in found] == [item.strip("'\" ").casefold() for item in wanted]


def _names(question: Question, answer: str) -> bool:
    """Search for the reference's words in sequence; of several alternatives (`_rivals`) the last one named counts."""
    if len(question.answer.strip()) == 1:  # a symbol such as W or G, where case matters
        return re.search(rf"(?<![\w'-]){re.escape(question.answer.strip())}(?![\w'-])", answer) is not None
    said, reference = words(answer), words(question.answer)
    found = places(reference, said)
    rivals = _rivals(question, reference)
    return bool(found) and not any(word in rivals for word in said[found[-1] + len(reference) :])


def _rivals(question: Question, reference: Sequence[str]) -> set[str]:
    """Return the alternatives to the reference: its own class, or the names in a question that contains it."""
    for kind in _RIVALS:
        if len(reference) == 1 and reference[0] in kind:
            return kind - set(reference)
    if not places(reference, words(question.question)):
        return set()
    names = re.findall(r"\b[A-Z]\w+", question.question)
    return {name.casefold() for name in names} - set(reference)
