r"""Reads the final answer of a text, and decides whether two final answers are the same; English and Chinese rules.

The final answer is the conclusion of a text (see `conclusions`), read as one of seven kinds in view of the question:

| kind | what | `value` |
|---|---|---|
| choice | an option: a letter, yes or no, a day of the week, a name to choose | `B`, `yes` |
| number | one or several numbers with units | `12 km` |
| date | a day, a month or a year; both readings if ambiguous | `2021-03-03` |
| code | a program, a command or a literal | its normal form |
| symbolic | a formula | the formula |
| span | a few words | the words, without case, accents and articles |
| prose | everything else; `text` is the whole answer | the words |
"""

import re
from fractions import Fraction

from qubic_lab.consensus import symbolic
from qubic_lab.consensus.answer_readers import (
    CHOICE,
    CODE,
    DATE,
    NO_ANSWER,
    NUMBER,
    PROSE,
    SPAN,
    SYMBOLIC,
    FinalAnswer,
    read_conclusion,
    read_program,
    read_prose,
)
from qubic_lab.consensus.conclusions import boxed, conclusions, marked_conclusion, opening, without_thoughts
from qubic_lab.consensus.contradictions import contradicts
from qubic_lab.consensus.dates import may_agree
from qubic_lab.consensus.plain_prose import may_be, read_plain
from qubic_lab.consensus.programs import LITERAL, without_blocks
from qubic_lab.consensus.prose_numbers import main_part
from qubic_lab.consensus.quantities import Quantity, plain
from qubic_lab.consensus.question_form import QuestionForm, read_question
from qubic_lab.consensus.words import both_ends, without_emphasis

_FINISHED = re.compile(r"[。!！?？\n]|\.(?=\s|$)")
"""The end of a sentence."""
_LETTER_SAID = re.compile(r"\W*[A-Z][).:](?=\s|$)")


def final_answer(text: str, question: str = "") -> FinalAnswer:
    """Return the final answer of a text to a question; without the question, more texts are prose."""
    said = without_thoughts(text).strip()
    if not said:
        return NO_ANSWER
    form = read_question(question)
    if program := read_program(said, form):
        return program
    prose = both_ends(without_blocks(said))
    marked = marked_conclusion(prose)
    if marked is not None and not (form.alternatives and _marked(marked, form).kind != CHOICE):
        return _marked(marked, form)
    if found := read_plain(without_emphasis(prose), form):
        return found
    for part in conclusions(prose):
        if (found := read_conclusion(part, form, marked=False)) and may_be(found, prose, form):
            return found
    return read_prose(said)


def _marked(text: str, form: QuestionForm) -> FinalAnswer:
    text = text.strip('"“”「」『』 ')
    text = main_part(text, form) if form.kind == NUMBER else text
    is_plain = form.asks_list or form.alternatives or form.kind in (CHOICE, NUMBER)
    found = read_plain(text, form) if is_plain else None
    if (form.kind != CHOICE or form.options) and not form.asks_list:
        found = found or read_conclusion(text, form, marked=True)
    return read_prose(text) if found is None or (form.kind, found.kind) == (NUMBER, SPAN) else found


def before_cut(text: str, question: str = "", exact: bool = False) -> str:
    """Return what counts of an answer that was cut at the token limit; "" if it had not come to a conclusion.

    Its sentences count up to the last finished one, and prose as it is. A number or formula must be marked as the
    conclusion, or stand in a short first sentence, because any other may be a step of a calculation; `exact` says that
    the question has such an answer. An option's letter counts with its bracket or full stop.
    """
    said = without_thoughts(text).strip()
    if text.rfind("<think>") > text.rfind("</think>"):
        return ""
    finished = said[: max((end.end() for end in _FINISHED.finditer(said)), default=0)]
    if marked_conclusion(finished) is not None or boxed(said) is not None:
        return finished if boxed(said) is None else said
    if not finished and read_question(question).options and (letter := _LETTER_SAID.match(said)):
        return letter[0]
    answer = final_answer(finished or said, question)
    if exact or answer.kind in (NUMBER, SYMBOLIC) or read_question(question).kind == NUMBER:
        opened = opening(finished)
        return opened if final_answer(opened, question).kind not in (PROSE, SPAN) else ""
    return finished or (said if answer.kind == PROSE else "")


def same(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    """Return whether two final answers are the same, or None if rules cannot decide.

    True is an equivalence relation: reflexive, symmetric and transitive. False means different letters, numbers, dates
    or values, or contradicting words. Formulas are read in another process, which takes about a second the first time
    (see `symbolic`).
    """
    if a.key == b.key:
        return True
    if not a.value or not b.value:
        return False
    if SYMBOLIC in (a.kind, b.kind) and {a.kind, b.kind} <= {NUMBER, SYMBOLIC}:
        return _compare_formulas(a, b)
    return _compare(a, b) if a.kind == b.kind else None


def _compare(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    if a.kind == NUMBER:
        return _compare_numbers(a, b)
    if a.kind == CHOICE:  # a letter and a name can be the same option
        differ = a.value.isupper() == b.value.isupper()
    elif a.kind == DATE:
        differ = not may_agree(a.value, b.value)
    elif a.kind == CODE:  # different programs can do the same, different literals cannot
        differ = a.value.startswith(LITERAL) and b.value.startswith(LITERAL)
    else:
        differ = contradicts(a.text, b.text)
    return False if differ else None


def _compare_numbers(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    if a.number is None or b.number is None:
        return None if sorted(a.value.split("; ")) == sorted(b.value.split("; ")) else False
    (dimension, ours), (other, theirs) = Quantity(a.number, a.unit).base, Quantity(b.number, b.unit).base
    if a.of != b.of:
        may_be = ours == theirs and "" in (a.of, b.of) and not contradicts(a.text, b.text)
        return None if may_be else False
    if dimension != other:
        return None if a.number == b.number and "" in (a.unit, b.unit) else False
    return None if a.unit == b.unit and (_rounds_to(a.number, b) or _rounds_to(b.number, a)) else False


def _rounds_to(exact: Fraction, rounded: FinalAnswer) -> bool:
    """Return whether a number with two or more decimals is the other one rounded: 0.33 is 1/3."""
    decimals = re.search(r"\d\.(\d{2,300})(?!\d)", plain(rounded.text))
    return decimals is not None and round(exact, len(decimals[1])) == rounded.number


def _compare_formulas(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    numbers = [each for each in (a, b) if each.kind == NUMBER]
    if any(
        each.number is None or each.unit or len(each.of) > 1 or len(each.value) > symbolic.DIGITS for each in numbers
    ):
        return None
    defined = [symbolic.DEFINED.match(each.value) for each in (a, b)]
    unknowns = {found[1] if found else "" for found in defined}
    if len(unknowns - {""}) > 1:
        return False
    ours, theirs = symbolic.canonical(a.value), symbolic.canonical(b.value)
    if ours is None or theirs is None:
        return None
    if ours == theirs:
        return True if len(unknowns) == 1 else None
    return None if ours[0] == theirs[0] or symbolic.is_relation(ours) or symbolic.is_relation(theirs) else False
