r"""Rules that decide whether an answer is right; the reference is a number, date, option, list, formula or a few words.

The conclusion of an answer counts: the last `\boxed{}`, else the sentence after the last "answer is" or "answer:", else
the whole text without thoughts, of which the last numbers or the last of the names to choose from. Reasons do not
count ("51, because 17 × 3 = 51"), nor do two answers to choose from ("51 or 54"). Of an answer that was cut at the
token limit only what it had concluded counts (`answers.before_cut`). The rules prefer to miss a right answer in an odd
form than to accept a wrong one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from qubic_lab.consensus import symbolic
from qubic_lab.consensus.answer_readers import CHOICE, SPAN, SYMBOLIC
from qubic_lab.consensus.answers import before_cut, final_answer, same
from qubic_lab.consensus.conclusions import conclusion, marked_conclusion, opening, sentences, without_thoughts
from qubic_lab.consensus.contradictions import verdict
from qubic_lab.consensus.dates import year_of
from qubic_lab.consensus.quantities import Quantity, combined, plain, plain_quantities, spelled_out
from qubic_lab.consensus.question_form import OPTION, last_letter, letters, options, read_question
from qubic_lab.consensus.words import is_chinese, places, stem, words
from qubic_lab.evals.questions import Question

MOST_WORDS = 6
"""A longer reference is a sentence, which can be worded in many ways; options may be of any length."""
TOLERANCE = Fraction(2, 1000)
"""Relative tolerance if neither number is whole, or the units differ: 0.111 for 1/9."""
MOST_CUT = 0.1
"""Share of cut answers from which a report advises a higher token limit."""
read_answer = lru_cache(maxsize=128)(final_answer)
"""Keeps what it has read: an answer has its vote and its score, and references are compared with many answers."""
_LIST = re.compile(r"\[([^\[\]]*)\]")
_RIVALS = (
    {"yes", "no"},
    {"true", "false"},
    {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"},
)


def why_unchecked(question: Question) -> str:
    """Return why no rule can check answers to a question, or "" if one can."""
    if question.kind == "creative":
        return "creative, without a right answer"
    if not question.answer.strip():
        return "without a reference"
    if not right_option(question) and len(question.answer.split()) > MOST_WORDS:
        return f"the reference is a text of more than {MOST_WORDS} words"
    return ""


def is_checkable(question: Question) -> bool:
    """Return whether a rule can check answers to a question (see `why_unchecked`)."""
    return not why_unchecked(question)


def judged_text(questions: Iterable[Question]) -> str:
    """Say how many questions can be judged, and why the others cannot: "40 of 42 judged; the rest: 2 × creative"."""
    reasons = Counter(map(why_unchecked, questions))
    judged = reasons.pop("", 0)
    rest = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    return f"{judged} of {judged + reasons.total()} judged" + (f"; the rest, because: {rest}" if rest else "")


def cut_text(share: float, limit: int, option: str = "--new-tokens") -> str:
    """Say which share of the answers was cut, and how to raise the limit if that is more than MOST_CUT."""
    said = f"{share:.0%} of the answers were cut at {limit} tokens"
    return said if share <= MOST_CUT else f"{said}: raise the limit ({option}), or they count as unfinished"


def judge(question: Question, text: str, cut: bool = False) -> bool | None:
    """Return whether a text answers a question correctly, or None if no rule can decide.

    A `cut` text reached the token limit; without a conclusion it is wrong.
    """
    if not is_checkable(question):
        return None
    if cut:
        is_exact = _is_formula(question.answer) or bool(_quantities(plain(question.answer)))
        text = before_cut(text, question.question, exact=is_exact and not right_option(question))
    return is_right(question, text)


def is_right(question: Question, text: str) -> bool:
    """Return whether a text answers a checkable question as its reference does."""
    reference = question.answer
    if right := right_option(question):
        return _chooses(question, text, right)
    if listed := _LIST.fullmatch(reference.strip()):
        return _lists(listed[1], conclusion(text))
    if _is_formula(reference):
        return _is_same_formula(question, text)
    if wanted := _quantities(plain(reference)):
        found = _concluded(text, question, wanted)
        unit = read_question(question.question).unit
        asked = _asked(question)
        return len(found) == len(wanted) and all(
            _equals(one, other, unit, may_convert=(other.unit, other.value) not in asked)
            for one, other in zip(wanted, found, strict=True)
        )
    return _names(question, text)


@lru_cache(maxsize=64)
def _is_formula(reference: str) -> bool:
    return symbolic.SIGN.search(reference) is not None or final_answer(reference).kind == SYMBOLIC


# --- Options


def right_option(question: Question) -> str:
    """Return the letter of the right option; "" if the reference is none."""
    if named := OPTION.match(question.answer):
        return named[1]
    letter = question.answer.strip("(). ")
    return letter if len(letter) == 1 and letter in options(question.question) else ""


def _chooses(question: Question, text: str, right: str) -> bool:
    """Compare the option that an answer concludes, else all letters it names, else the only option that it holds."""
    said = read_answer(text, question.question)
    offered = options(question.question)
    if said.kind == CHOICE and offered:
        return said.value == right
    answer = conclusion(text)
    if named := letters(answer, last_letter(offered)):
        return named == {right}
    offered = {**dict(OPTION.findall(question.answer)), **offered}
    held = {letter for letter, option in offered.items() if places(words(option), words(answer))}
    return held == {right}


# --- Numbers and dates

_ASIDES = re.compile(
    r"(?:(?<!\s)\s+)?(?:\([^()]*\)|（[^（）]*）)"
    r"|\b(?:and\s+|but\s+)?not\s+[-+$€£]?\d[\d.,]*|(?:不是|而非)\s?\d[\d.,]*"
    r"|\bof\s+(?:the|his|her|their|its|our|my|all|these|those)\s+\d[\d.,]*"
    r"|(?:,\s*|(?<![\s,])\s+)?\b(?:because|since|which\s+(?:is|are|was|were)|than|instead\s+of|although|though|while|whereas|(?:after|before)\s+(?:it|he|she|they))\b"
    r"(?:(?!,?\s*\b(?:so|therefore|thus|hence|giving|making)\b)(?:[^\S\n]++|[^\s.;=])|\.(?=\d))*"
)
"""What explains or compares: parentheses, "not 13", "of the 60", and clauses from "because" or "than" on."""
_CONTINUED = re.compile(
    r"[,;，；]\s*(?:(?:so|and so|as|but|where|meaning|because|since|which|one|that is)\b|所以|因为|而).*", re.DOTALL
)
"""What follows a marked conclusion."""
_HEDGE = re.compile(r"\s*(?:,\s*)?(?:or|或者?|还是)\s*(?:(?:about|maybe|perhaps|even|possibly)\s*)?")
_APART = Fraction(1, 20)
"""Numbers that differ by less are two ways to write one, unless they are whole: 135 minutes or 2.3 hours."""
_BOLD = re.compile(r"\*\*(?!(?i:step)|\d+[.)]\s)([^*\n]+)(?<!:)\*\*")
_ENUMERATED = re.compile(r"^[^\S\n]*\d+[.)]\s", re.MULTILINE)
_GOES_ON = re.compile(r"\b(?:so|therefore|thus|hence|then|leaving|leaves?|remain\w*)\b|所以|因此|剩")
_MOST_BESIDE = 2
"""Words beside a number that stands alone: "51 dollars."."""


def _quantities(text: str) -> list[Quantity]:
    """Return the quantities of a plain text; Chinese numerals count beside digits, others only without."""
    if is_chinese(text):
        text = spelled_out(text)
    found = plain_quantities(text)
    if not found:
        text = spelled_out(text)
        found = plain_quantities(text)
    return combined(found, text)


def _concluded(text: str, question: Question, wanted: Sequence[Quantity]) -> list[Quantity]:
    """Return the last numbers or dates of a conclusion, as many as are wanted, without its reasons."""
    said, count = without_thoughts(text), len(wanted)
    marked = marked_conclusion(said)
    if marked is None:
        marked = _emphasized(said, count) or _alone(said, question)
    part = plain(said if marked is None else marked)
    if marked is not None:
        part = _shortest(part, _CONTINUED.sub("", part), count)
    part = _shortest(part, _ASIDES.sub(" ", part), count)
    found = _quantities(part)
    if marked is None and count == 1 and (only := _result(part) or _first(part, question)):
        return [only]
    if marked is None and count == 1 and wanted[0].unit:  # a speed is no distance
        fitting = [each for each in found if each.unit and each.base[0] == wanted[0].base[0]]
        asked = _asked(question)
        found = [each for each in fitting if (each.unit, each.value) not in asked] or fitting or found
    if count == 1 and len(found) > 1 and _is_hedge(found[-2], found[-1], part):
        return []
    return found[-count:]


def _asked(question: Question) -> set[tuple[str, Fraction | str]]:
    """Return the units and values that the question itself has."""
    return {(each.unit, each.value) for each in _quantities(plain(question.question))}


def _shortest(whole: str, part: str, count: int) -> str:
    return part if len(_quantities(part)) >= count else whole


def _emphasized(said: str, count: int) -> str | None:
    """Return what is bold in the last paragraph, if that is one short text with a number."""
    bold = _BOLD.findall(said.rstrip().rpartition("\n\n")[2])
    return bold[0] if len(bold) == 1 and len(_quantities(plain(bold[0]))) == count else None


def _alone(said: str, question: Question) -> str | None:
    """Return a first sentence that is nothing but a number, with reasons but no other conclusion after it."""
    first = opening(said)
    later = said.partition(first)[2].strip() if first else ""
    if not later or _ENUMERATED.match(said) or re.search(r"=|\b(?:so|therefore|thus|hence)\b|所以|因此", later, re.I):
        return None
    label = words(first.rpartition(":")[0])
    if len(words(first)) > 1 + _MOST_BESIDE or not set(map(stem, label)) <= read_question(question.question).words:
        return None
    return first if len(_quantities(plain(first))) == 1 else None


def _result(part: str) -> Quantity | None:
    """Return the number after the last equals sign of the last sentence, unless the calculation goes on."""
    last = (sentences(part) or [""])[-1].rpartition("=")
    found = _quantities(last[2]) if last[1] else []
    if not found or last[2][: found[0].start].strip(" $€£") or re.match(r"\s*[-+*/×÷^]", last[2][found[0].end :]):
        return None
    return found[0]


def _first(part: str, question: Question) -> Quantity | None:
    """Return the first number of the last sentence if only numbers of the question follow: 12 is 15% of 80."""
    last = (sentences(part) or [""])[-1]
    found = _quantities(last)
    if len(found) < 2 or _GOES_ON.search(last, found[0].end):
        return None
    asked = {each.base for each in _quantities(plain(question.question))}
    return found[0] if all(each.base in asked for each in found[1:]) and found[0].base not in asked else None


def _is_hedge(first: Quantity, second: Quantity, text: str) -> bool:
    """Return whether a text offers two different numbers and does not choose."""
    if not _HEDGE.fullmatch(text[first.end : second.start]) or isinstance(first.value, str):
        return False
    one, other = (replace(each, unit=each.unit or first.unit or second.unit).base[1] for each in (first, second))
    if isinstance(one, str) or isinstance(other, str):
        return True
    units = {first.unit, second.unit} - {""}
    is_whole = one.denominator == other.denominator == 1 and len(units) < 2
    return abs(one - other) > (0 if is_whole else _APART * abs(other))


def _equals(wanted: Quantity, found: Quantity, unit: str = "", may_convert: bool = True) -> bool:
    """Compare a quantity with the reference; the unit may be missing or another one of its dimension, not different.

    `unit` is the requested one, if the reference has none; what only repeats the question is not converted. A year
    matches a date, and so does a day without the year.
    """
    if isinstance(found.value, str):
        value = str(wanted.value)
        return value in (found.value, year_of(found.value)) or (
            found.value.startswith("--") and value.endswith(found.value[1:])
        )
    if isinstance(wanted.value, str):
        return False
    ours = replace(wanted, unit=wanted.unit or unit)
    is_converted = ours.unit != found.unit and ours.base[0] == found.base[0] and "clock" not in (ours.unit, found.unit)
    if may_convert and is_converted and _near(ours.base[1], found.base[1]):
        return True
    if wanted.unit and found.unit and wanted.unit != found.unit:
        return False
    if 1 in (wanted.value.denominator, found.value.denominator):
        return wanted.value == found.value
    return _near(wanted.value, found.value)


def _near(wanted: Fraction | str, found: Fraction | str) -> bool:
    if isinstance(wanted, str) or isinstance(found, str):
        return wanted == found
    return abs(wanted - found) <= TOLERANCE * abs(wanted)


# --- Formulas, lists and words


def _is_same_formula(question: Question, text: str) -> bool:
    """Compare the formula, else what follows its last equals sign if the reference has none."""
    reference = read_answer(question.answer, question.question)
    if same(reference, read_answer(text, question.question)) is True:
        return True
    result = conclusion(text).rpartition("=")[2].strip(" $.")
    return "=" not in question.answer and same(reference, final_answer(result)) is True


def _lists(reference: str, answer: str) -> bool:
    """Compare the items of the last bracketed list, else as many last numbers."""
    wanted = [item.strip() for item in reference.split(",")]
    if brackets := _LIST.findall(answer):
        found = [item.strip() for item in brackets[-1].split(",")]
    else:
        found = [str(each.value) for each in _quantities(answer)][-len(wanted) :]
    return [item.strip("'\" ").casefold() for item in found] == [item.strip("'\" ").casefold() for item in wanted]


_CONTRAST = re.compile(r"\b(?:but|however|actually|instead)\b", re.IGNORECASE)


def _names(question: Question, text: str) -> bool:
    """Search for the reference's words in sequence; of several alternatives (`_rivals`) the last one named counts."""
    answer, reference_text = conclusion(text), question.answer.strip()
    if len(reference_text) == 1 and not is_chinese(reference_text):  # a symbol such as W or G, where case matters
        return re.search(rf"(?<![\w'-]){re.escape(reference_text)}(?![\w'-])", answer) is not None
    concluded, reference = read_answer(text, question.question), words(question.answer)
    if concluded.kind == CHOICE and concluded.value in ("yes", "no") and (wanted := verdict(reference_text)):
        return concluded.value == wanted
    beside = words(concluded.value) if concluded.kind == SPAN else []  # without the words that the question has
    said = words(answer) if set(beside) <= set(reference) or places(reference, words(question.question)) else beside
    found = places(reference, said)
    if not found or _is_one_of_two(said, found[-1], found[-1] + len(reference)) or _is_taken_back(question, answer):
        return False
    rivals = _rivals(question, reference)
    return not any(word in rivals for word in said[found[-1] + len(reference) :])


def _is_one_of_two(said: Sequence[str], start: int, end: int) -> bool:
    """Return whether an answer offers the words beside others: Canberra or Sydney."""
    return not {"or", "或"}.isdisjoint([*said[max(0, start - 1) : start], *said[end : end + 1]])


def _is_taken_back(question: Question, answer: str) -> bool:
    """Return whether another name follows the last "but", and the reference does not."""
    *_, later = _CONTRAST.split(answer)
    if later == answer or places(words(question.answer), words(later)) or not question.answer[:1].isupper():
        return False
    known = {*words(question.question), "i"}
    return any(name.casefold() not in known for name in re.findall(r"(?<=[a-z,] )[A-Z]\w+", later))


def _rivals(question: Question, reference: Sequence[str]) -> set[str]:
    """Return the alternatives to the reference: its own class, or the names in a question that contains it."""
    for kind in _RIVALS:
        if len(reference) == 1 and reference[0] in kind:
            return kind - set(reference)
    if not places(reference, words(question.question)):
        return set()
    names = re.findall(r"\b[A-Z]\w+", question.question)
    return {name.casefold() for name in names} - set(reference)
