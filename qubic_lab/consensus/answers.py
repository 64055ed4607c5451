r"""What does an answer say in the end, and do two answers end in the same? Rules, in English and Chinese.

What counts of an answer is its conclusion (see `conclusions`). It is read as one of seven kinds, in the light of the
question:

| kind | what | `value` |
|---|---|---|
| choice | one of what is offered: a letter, yes or no, a day of the week, a name to choose | `B`, `yes` |
| number | a number with its unit, or several | `12 km` |
| date | a day, a month, a year; both readings where there are two | `2021-03-03` |
| code | a program, a command, a literal | its normal form |
| symbolic | a formula | the formula |
| span | a few words | the words, without case, accents, articles |
| prose | all else; the `text` is the whole answer | the words |
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from qubic_lab.consensus import symbolic
from qubic_lab.consensus.conclusions import LONGEST, both_ends, conclusions, marked_conclusion, without_thoughts
from qubic_lab.consensus.contradictions import contradicts, verdict
from qubic_lab.consensus.dates import find_dates, may_agree, year_of
from qubic_lab.consensus.opposites import turns
from qubic_lab.consensus.programs import (
    LITERAL,
    blocks,
    has_code_sign,
    literal,
    looks_like_code,
    normal_code,
    without_blocks,
)
from qubic_lab.consensus.quantities import Quantity, combined, exact_text, plain, plain_quantities, spelled_out
from qubic_lab.consensus.question_form import QuestionForm, bare_letter, chosen_letters, read_question
from qubic_lab.consensus.units import base_unit
from qubic_lab.consensus.words import (
    FILLERS,
    has_signs,
    is_chinese,
    places,
    stem,
    without_places,
    word_set,
    words,
    words_and_signs,
)

__all__ = [  # the door to this part of the room
    "KINDS",
    "FinalAnswer",
    "contradicts",
    "final_answer",
    "same",
    "without_thoughts",
]

CHOICE, NUMBER, DATE, CODE, SYMBOLIC, SPAN, PROSE = "choice", "number", "date", "code", "symbolic", "span", "prose"
KINDS = (CHOICE, NUMBER, DATE, CODE, SYMBOLIC, SPAN, PROSE)
LONGEST_SPAN = 4
"""Words; a Chinese character counts for half of one."""
SHORTEST_SPAN = 2
"""Words that may stand before a comma and reasons."""
LONGEST_SENTENCE = 24
"""Words of a sentence in which a span is looked for."""


@dataclass(frozen=True)
class FinalAnswer:
    """What an answer says in the end.

    Attributes:
        kind: one of KINDS.
        value: one spelling of it, as the table above has it; empty where there is no answer.
        text: the conclusion as written; of prose the whole answer without its thoughts.
        number: of a single number its value, in `unit`; else None.
        unit: the unit's one name, "" where there is none that is known.
        of: what the number is of where the question leaves that open: x in "x = 12", -increase in "fell by 12".
    """

    kind: str
    value: str
    text: str
    number: Fraction | None = None
    unit: str = ""
    of: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal exactly for the same answers, but for formulas, which can be written in many ways."""
        if self.number is None:
            return self.kind, self.value
        return self.kind, self.of, *Quantity(self.number, self.unit).base


NO_ANSWER = FinalAnswer(PROSE, "", "")
"""Of an empty text, and of one whose thoughts were never finished."""


def final_answer(text: str, question: str = "") -> FinalAnswer:
    """Return what an answer to a question says in the end; without the question fewer texts are more than prose."""
    said = without_thoughts(text).strip()
    if not said:
        return NO_ANSWER
    asked = read_question(question)
    if program := _program(said, asked):
        return program
    told = both_ends(without_blocks(said))
    marked = marked_conclusion(told)
    if marked is not None:
        return _read(marked, asked, marked=True) or _prose(marked)
    for part in conclusions(told):
        if found := _read(part, asked, marked=False):
            return found
    if asked.kind in (NUMBER, DATE) and (found := _READERS[asked.kind](told, asked, False)):
        return found
    return _prose(said)


def same(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    """Tell whether two final answers are the same; None: rules cannot tell.

    Where it says True it is an equivalence: reflexive, symmetric and transitive. It says False of other letters, other
    numbers, other dates, other values, and of words that contradict each other. A formula is read in another process,
    which takes about a second the first time (see `symbolic`).
    """
    if a.key == b.key:
        return True
    if not a.value or not b.value:
        return False
    if SYMBOLIC in (a.kind, b.kind) and {a.kind, b.kind} <= {NUMBER, SYMBOLIC}:
        return _same_formula(a, b)
    return _COMPARE[a.kind](a, b) if a.kind == b.kind else None


@lru_cache(1024)  # copies of a model often end in the same sentence
def _read(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    """Read a conclusion as what is asked for, else as the first kind that it can be; a `marked` one is nothing else."""
    part = part.strip()
    if not part or len(part) > LONGEST:
        return None
    if asked.options:
        return _read_choice(part, asked, marked)
    first = CODE if asked.of_output else asked.kind
    for kind in dict.fromkeys([first, *_READERS] if first in _READERS else _READERS):
        if found := _READERS[kind](part, asked, marked):
            return found
    return None


def _prose(text: str) -> FinalAnswer:
    return FinalAnswer(PROSE, words_and_signs(text) or text.strip(), text)


# --- Choices

_NEGATION = re.compile(r"\b(?:not|never|nor|neither|cannot|no)\b|n't\b|[不没非]|wrong|incorrect", re.IGNORECASE)
_SHORT_REPLY = re.compile(
    r"(?:it|he|she|they|we|you|i|that|this|there)\s(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have)"
    r"(?P<no>\s?not|n't)?(?=[,.:;!]|$)",
    re.IGNORECASE,
)
_CLOSED = [
    (re.compile(rf"\b(?:{asks})\b", re.IGNORECASE), members.split())
    for asks, members in (
        ("day", "monday tuesday wednesday thursday friday saturday sunday"),
        ("month", "january february march april may june july august september october november december"),
        ("season", "spring summer autumn winter"),
        ("direction", "north south east west left right up down"),
    )
]
"""What a question asks for by a word, and all that there is of it."""


def _read_choice(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    if asked.options:
        value = chosen_letters(plain(part)) or _option_held(part, dict(asked.options))
    else:
        value = (
            _verdict(part, asked)
            or ("" if asked.words else bare_letter(plain(part)))
            or _alternative(part, asked)
            or _of_closed_class(part, asked)
        )
    return FinalAnswer(CHOICE, value, part) if value else None


def _verdict(part: str, asked: QuestionForm) -> str:
    """Return yes or no, where that is asked or is nearly all that is said."""
    if asked.kind != CHOICE:
        return verdict(part) if len(words(part)) <= LONGEST_SPAN else ""
    if opened := verdict(part):
        return opened
    if reply := _SHORT_REPLY.match(part):
        return "no" if reply["no"] else "yes"
    opening = words(re.split(r"[，。,;；!！]", part, maxsplit=1)[0])
    if is_chinese(part) and 0 < len(opening) <= LONGEST_SPAN:  # "支持" or "不支持" to "支持……吗？"
        negated = opening[0] in "不没"
        if set(opening[negated:]) <= asked.words:
            return "no" if negated else "yes"
    return ""


def _option_held(part: str, offered: dict[str, str]) -> str:
    """Return the letter of the one option whose words, or whose number, a text has; "" if that is none or several."""
    held = _named(part, {letter: words(option) for letter, option in offered.items()})
    if held:
        return held[0] if len(held) == 1 else ""
    if number := _read_number(part, QuestionForm(), False):
        numbers = {letter: _read_number(option, QuestionForm(), False) for letter, option in offered.items()}
        equal = [letter for letter, option in numbers.items() if option and option.key == number.key]
        return equal[0] if len(equal) == 1 else ""
    return ""


def _alternative(part: str, asked: QuestionForm) -> str:
    """Return the one of the question's alternatives that a text names, unless it turns the question round."""
    held = _named(part, {name: name.split() for name in asked.alternatives})
    return held[0] if len(held) == 1 and not asked.is_turned_by(part) else ""


def _of_closed_class(part: str, asked: QuestionForm) -> str:
    """Return a day of the week, a month, a season or a direction that is all that is said, or is asked for."""
    said = words(part)
    bare = _without_opening(said)
    for question, members in _CLOSED:
        if set(members).isdisjoint(said):
            continue
        named = _named(part, {member: [member] for member in members})
        if len(named) == 1 and (bare == named or (asked.of_what and question.search(" ".join(asked.words)))):
            return named[0]
    return ""


def _named(part: str, candidates: dict[str, list[str]]) -> list[str]:
    """Return which candidates a text names in a clause without a negation; of one within another, the longer."""
    said = [words(clause) for clause in re.split(r"[,，;；.。]", part) if not _NEGATION.search(clause)]
    all_said = {word for clause in said for word in clause}
    held = {
        name: wanted
        for name, wanted in candidates.items()
        if all_said.issuperset(wanted) and any(places(wanted, clause) for clause in said)
    }
    return [name for name in held if not any(name != other and places(held[name], held[other]) for other in held)]


def _compare_choices(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    """Tell other choices apart; a letter and a name may be one."""
    return False if a.value.isupper() == b.value.isupper() else None


# --- Dates

_YEAR = re.compile(r"(?<![\d,.])[12]\d{3}(?!\d|,\d|\.\d)")
_LIMIT_BEFORE = re.compile(
    r"(?:\b(?:before|after|since|until|(?:more|less|fewer|later|earlier|greater|higher|lower) than|over|under"
    r"|above|below|at (?:least|most)|up to)\s(?:the\s|about\s)?|(?:超过|不到|多于|少于|大于|小于|至少|最多)\s?)$",
    re.IGNORECASE,
)
_NEAR = 30
"""Characters."""
_LIMIT_AFTER = re.compile(
    r"(?:\s\w+)?\sor\s(?:more|less|fewer|later|earlier)\b|.{0,2}(?:以[上下前后]|之[前后])|[前后](?![来天])",
    re.IGNORECASE,
)


def _read_date(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    text = plain(part)
    found = [(date.value, date.start, date.end) for date in find_dates(text)]
    if asked.of_year:
        found = [(year_of(value), start, end) for value, start, end in found if year_of(value)]
    if asked.kind == DATE:
        found = found or [(year[0], *year.span()) for year in _YEAR.finditer(text)]
        if _REFUSED.search(text):
            return None
    elif not _is_frame(without_places(text, ((start, end) for _, start, end in found)), asked):
        return None
    if not found or (len({value for value, _, _ in found}) > 1 and not marked):
        return None
    value, start, end = found[-1]
    return None if _is_limit(text, start, end) else FinalAnswer(DATE, value, part)


def _is_limit(text: str, start: int, end: int) -> bool:
    """Tell whether the number or the date in this place is only one end of a range."""
    return bool(_LIMIT_BEFORE.search(text[max(0, start - _NEAR) : start]) or _LIMIT_AFTER.match(text[end:]))


def _compare_dates(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    return None if may_agree(a.value, b.value) else False


# --- Numbers

_ASSIGNED = re.compile(r"(?<![A-Za-z\\])([a-zA-Z])\s*=(?!=)")
_REFUSED = re.compile(
    r"[<>≤≥≠±]|\bnot\b|n't\b|\bunknown\b|\bnobody\b|\bbefore it says\b|不知道|不是|并非|无法|不能确定|没有?写",
    re.IGNORECASE,
)
_FRAME = FILLERS | word_set(
    """it is are was were there they he she we you i this that these answer result total sum value equals equal of so
    therefore thus hence then about approximately around roughly exactly at in to be gives get have has comes makes only
    just or on by which means yields final one left altogether would will per each with for as leaves need mainly
    mostly made called named"""
)
_HAN_FRAME = frozenset(
    "是为等于共一总大约有还剩了答案所以因此故即个只条名位人次本张台辆座种项颗棵倍层步页它就得到结果和左右的要能出在叫做"
)
_DOWN = word_set(
    """-increase -advance -profit -early -high -fast -old -long -heavy -cheap -hot -wide -deep -north -east -positive
    -import -win -增加 -前进 -高 -多 -快 -早 -长 -重 -热 -东 -南 -赢"""
)
"""Sides of pairs of opposites: 5 % less is not 5 %."""
_RANGE = re.compile(r"\s*(?:-|~|～|to|至|到)\s*")
_RANGE_OPENED = re.compile(r"(?:between|from|在|从)\s*$", re.IGNORECASE)
_RANGE_CONTINUED = re.compile(r"\s*(?:and|和|与)\s*")
_OF_A_FORMULA = re.compile(r"[/^*+\\<>√π∞|_]|(?<!\w)-|=.*=")


def _read_number(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    text = plain(part)
    found = _numbers(text)
    if not found:
        text = spelled_out(text)
        found = _numbers(text)
    if not found or any(re.match(r"[a-zA-Z](?![a-zA-Z])", text[each.end :]) for each in found):  # 2x is no number
        return None
    assigned = _ASSIGNED.findall(text)
    rest = _ASSIGNED.sub(" ", without_places(text, ((each.start, each.end) for each in found)))
    if _is_frame(rest, asked):
        if len(found) > 1 and "=" not in text:
            return None if re.search(r"[\[{(]", text) else _several(found, part)
        if len(assigned) > 1:
            return None
    elif not (asked.kind == NUMBER or asked.of_output) or symbolic.SIGN.search(part) or _REFUSED.search(text):
        return None
    if limits := _range(found, text):
        return _several(limits, part)
    chosen = _answering(found, text, asked)
    if _is_limit(text, chosen.start, chosen.end):
        return None
    return _one_number(chosen, part, asked, _of_what(assigned[-1] if assigned else "", part, asked))


def _of_what(assigned: str, part: str, asked: QuestionForm) -> str:
    """Return the unknown that is given a number, unless any will do; else where the number points, if that is down."""
    if assigned and not (asked.words and assigned == (asked.unknown or assigned)):
        return assigned
    return " ".join(sorted((turns(part) - asked.turns) & _DOWN))


def _range(found: list[Quantity], text: str) -> list[Quantity]:
    """Return the two limits of a range, if that is what a text gives: 10-15 km, between 3 and 4."""
    for first, second in pairwise(found):
        between = text[first.end : second.start]
        opened = _RANGE_OPENED.search(text[max(0, first.start - _NEAR) : first.start])
        if _RANGE.fullmatch(between) or (opened and _RANGE_CONTINUED.fullmatch(between)):
            return [first, second]
    return []


def _numbers(text: str) -> list[Quantity]:
    return [quantity for quantity in combined(plain_quantities(text), text) if quantity.unit != "date"]


def _answering(found: list[Quantity], text: str, asked: QuestionForm) -> Quantity:
    """Return the number of the asked unit or noun, after the last equals sign, which comes last."""
    if asked.unit:
        dimension = Quantity(Fraction(1), asked.unit).base[0]
        fitting = [each for each in found if each.unit and each.base[0] == dimension]
    else:
        fitting = [each for each in found if asked.noun and stem(each.word.casefold()) == asked.noun]
    after = [each for each in fitting or found if "=" in text and each.start > text.rindex("=")]
    return (after or fitting or found)[-1]


def _one_number(chosen: Quantity, part: str, asked: QuestionForm, of: str) -> FinalAnswer:
    assert isinstance(chosen.value, Fraction)
    unit = chosen.unit or asked.unit
    value = f"{exact_text(chosen.value)} {unit}".rstrip()
    return FinalAnswer(NUMBER, f"{of} = {value}" if of else value, part, chosen.value, unit, of)


def _several(found: list[Quantity], part: str) -> FinalAnswer:
    """Return several numbers as one answer, whose order counts; a unit at the end is one of all."""
    each = [Quantity(one.value, one.unit or found[-1].unit).base for one in found]  # so that equal ones look equal
    return FinalAnswer(NUMBER, "; ".join(f"{value} {base_unit(dimension)}".rstrip() for dimension, value in each), part)


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
    """Tell whether a number with two decimals or more is another one rounded, as 0.33 is 1/3."""
    decimals = re.search(r"\d\.(\d{2,300})(?!\d)", plain(rounded.text))
    return decimals is not None and round(exact, len(decimals[1])) == rounded.number


# --- Formulas


def _read_symbolic(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    formula = symbolic.formula(part)
    if formula is None:
        return None
    defined = symbolic.DEFINED.match(formula)
    if defined and asked.words and defined[1] == (asked.unknown or defined[1]):
        formula = formula[defined.end() :]
    return FinalAnswer(SYMBOLIC, formula, part)


def _same_formula(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    """Compare formulas, or one with a number; the unknown that they are said to equal counts."""
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


# --- Code


def _program(said: str, asked: QuestionForm) -> FinalAnswer | None:
    """Read the last block of code, where code is asked for or is most of what is said."""
    fenced = blocks(said)
    if not fenced:
        return FinalAnswer(CODE, normal_code(said), said) if asked.kind == CODE and looks_like_code(said) else None
    last = fenced[-1]
    if asked.kind == CODE or (not (asked.kind or asked.of_output) and last.length >= len(said) / 2):
        return FinalAnswer(CODE, normal_code(last.code, last.language), last.code.strip())
    return None


def _read_code(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    if asked.kind != CODE and symbolic.SIGN.search(part):
        return None
    ticked = re.findall(r"`([^`\n]+)`", part)
    alone = re.fullmatch(r"\W*`[^`]+`\W*", part) is not None
    if found := literal(part):
        value, rest = found
        if marked or asked.of_output or _is_frame(rest, asked):
            return FinalAnswer(CODE, value, part)
    if ticked and (asked.kind == CODE or (alone and has_code_sign(ticked[0]))):
        return FinalAnswer(CODE, normal_code(ticked[-1]), part)
    if asked.kind == CODE and (looks_like_code(part) or re.fullmatch(r"[a-z][\w.-]*(?: [\w./~*-]+){1,4}", part)):
        return FinalAnswer(CODE, normal_code(part), part)
    return None


def _compare_code(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    """Tell other literals apart; other programs may do the same."""
    return False if a.value.startswith(LITERAL) and b.value.startswith(LITERAL) else None


# --- Words

_OPENINGS = [
    tuple(opening.split())
    for opening in (
        *("it is", "it's", "it was", "this is", "that is", "that's", "that would be", "they are", "he is", "he was"),
        *("she is", "she was", "在", "是", "为", "这 是", "它 是", "他 是", "她 是", "那 是"),
    )
]
_SYMBOL = re.compile(r"[A-Za-z]|[A-Z][A-Za-z]|(?=[A-Za-z]*\d)(?:[A-Z][a-z]?\d?){1,6}")
_REASON = re.compile(r"[,;](?=(?:\s+\S+){3})|[，；]")
_COMPARING = {"than", "before", "after", "比"}


def _read_span(part: str, asked: QuestionForm, marked: bool) -> FinalAnswer | None:
    if asked.kind == PROSE and not marked:
        return None
    before, *reasons = _REASON.split(part, maxsplit=1)
    text = plain(before).strip(" .。\"'")
    said = _without_opening(words(text))
    if has_signs(text):
        short = bool(said) and _length(said) <= LONGEST_SPAN and not reasons
        return FinalAnswer(SPAN, words_and_signs(" ".join(text.split())), part) if short else None
    own = _beside_the_question(said, asked) if asked.of_what else []
    if not own and _length(said) <= (SHORTEST_SPAN if reasons else LONGEST_SPAN):
        own = said
    if not own or _length(own) > LONGEST_SPAN:
        return None
    symbol = re.search(rf"(?<!\w){re.escape(own[0])}(?!\w)", text, re.IGNORECASE) if len(own) == 1 else None
    if symbol and _SYMBOL.fullmatch(symbol[0]):
        return FinalAnswer(SPAN, symbol[0], part)  # such as W or CO2: its case counts
    return FinalAnswer(SPAN, " ".join(own), part)


def _without_opening(said: list[str]) -> list[str]:
    """Return the words after an opening such as "It is" or "他是"."""
    for opening in _OPENINGS:
        if tuple(said[: len(opening)]) == opening and len(said) > len(opening):
            return said[len(opening) :]
    return said


def _beside_the_question(said: list[str], asked: QuestionForm) -> list[str]:
    """Return what a sentence adds to the words of its question; nothing where that is in several places or unclear."""
    if len(said) > LONGEST_SENTENCE:
        return []
    own = [place for place, word in enumerate(said) if not _is_frame_word(word, asked)]
    if not own or own[-1] - own[0] + 1 != len(own):
        return []
    added, repeated = said[own[0] : own[-1] + 1], [word for word in said if stem(word) in asked.words]
    if len(added) == len(said) or _length(repeated) < 1 or (len(added) == 1 and is_chinese(added[0])):
        return []
    return [] if _COMPARING & set(said) or _NEGATION.search(" ".join(added)) else added


def _length(said: Sequence[str]) -> float:
    return sum(0.5 if is_chinese(word) else 1.0 for word in said)


def _compare_words(a: FinalAnswer, b: FinalAnswer) -> bool | None:
    return False if contradicts(a.text, b.text) else None


# --- What stands around an answer


def _is_frame(rest: str, asked: QuestionForm) -> bool:
    """Tell whether what stands around an answer says nothing of its own: "There are ... litres left."."""
    return not _OF_A_FORMULA.search(rest) and all(_is_frame_word(word, asked) for word in words(rest))


def _is_frame_word(word: str, asked: QuestionForm) -> bool:
    return word in _FRAME or word in _HAN_FRAME or stem(word) in asked.words


_READERS: dict[str, Callable[[str, QuestionForm, bool], FinalAnswer | None]] = {
    CHOICE: _read_choice,
    DATE: _read_date,
    NUMBER: _read_number,
    CODE: _read_code,
    SYMBOLIC: _read_symbolic,
    SPAN: _read_span,
}
_COMPARE: dict[str, Callable[[FinalAnswer, FinalAnswer], bool | None]] = {
    CHOICE: _compare_choices,
    DATE: _compare_dates,
    NUMBER: _compare_numbers,
    CODE: _compare_code,
    SPAN: _compare_words,
    PROSE: _compare_words,
}
