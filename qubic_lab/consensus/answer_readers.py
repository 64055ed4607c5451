"""Reads a conclusion as one kind of answer: a choice, a date, a number, code, a formula or a few words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from qubic_lab.consensus import symbolic
from qubic_lab.consensus.conclusions import LONGEST
from qubic_lab.consensus.contradictions import verdict
from qubic_lab.consensus.dates import find_dates, year_of
from qubic_lab.consensus.programs import blocks, has_code_sign, literal, looks_like_code, normal_code
from qubic_lab.consensus.quantities import Quantity, combined, exact_text, plain, plain_quantities, spelled_out
from qubic_lab.consensus.question_form import QuestionForm, bare_letter, chosen_letters, last_letter
from qubic_lab.consensus.units import base_unit
from qubic_lab.consensus.words import (
    FILLERS,
    has_signs,
    is_chinese,
    places,
    polarities,
    simplified,
    stem,
    without_places,
    word_set,
    words,
    words_and_signs,
)

CHOICE, NUMBER, DATE, CODE, SYMBOLIC, SPAN, PROSE = "choice", "number", "date", "code", "symbolic", "span", "prose"
KINDS = (CHOICE, NUMBER, DATE, CODE, SYMBOLIC, SPAN, PROSE)
LONGEST_SPAN = 4
"""Words; a Chinese character counts as half a word."""
LONGEST_MARKED = 6
"""The same for what is known to be the answer."""
SHORTEST_SPAN = 2
"""Words that may stand before a comma and reasons."""
LONGEST_SENTENCE = 24
"""Words of a sentence that is searched for a span."""


@dataclass(frozen=True)
class FinalAnswer:
    """The final answer of a text, of one of KINDS; `value` is its normal form (see `answers`), or "" without an answer.

    `text` is the conclusion as written; for prose, the whole answer without its thoughts. `number` is the value in
    `unit` of a single number, and `of` what it measures if the question leaves that open: x in "x = 12", -increase in
    "fell by 12".
    """

    kind: str
    value: str
    text: str
    number: Fraction | None = None
    unit: str = ""
    of: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """A value that is equal for the same answers; formulas aside, which have many spellings."""
        if self.number is None:
            return self.kind, self.value
        return self.kind, self.of, *Quantity(self.number, self.unit).base


NO_ANSWER = FinalAnswer(PROSE, "", "")
"""The final answer of an empty text and of unfinished thoughts."""


@lru_cache(1024)  # copies of a model often end in the same sentence
def read_conclusion(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    """Read a conclusion as the requested kind, else as the first kind that fits; a `marked` one is the whole answer."""
    part = part.strip()
    if not part or len(part) > LONGEST:
        return None
    if form.options:
        return _read_choice(part, form, marked)
    first = CODE if form.asks_output else form.kind
    for kind in dict.fromkeys([first, *READERS] if first in READERS else READERS):
        if found := READERS[kind](part, form, marked):
            return found
    return None


def read_prose(text: str) -> FinalAnswer:
    """Return a text as prose."""
    return FinalAnswer(PROSE, words_and_signs(text) or text.strip(), text)


# --- Choices

_REASONS = re.compile(r"\b(?:because|since|than|while|whereas|although|unlike)\b|因为|而不是", re.IGNORECASE)
_CLAUSES = re.compile(r"[,，;；.。]")
_NEGATION = re.compile(r"\b(?:not|never|nor|neither|cannot|no)\b|n't\b|[不没沒非]|wrong|incorrect", re.IGNORECASE)
_CLOSED = [
    (re.compile(rf"\b(?:{asks})\b", re.IGNORECASE), members.split())
    for asks, members in (
        ("day", "monday tuesday wednesday thursday friday saturday sunday"),
        ("month", "january february march april may june july august september october november december"),
        ("season", "spring summer autumn winter"),
        ("direction", "north south east west left right up down"),
    )
]
"""Words of a question and all possible answers to them."""


def _read_choice(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    if form.options:
        offered = dict(form.options)
        repeated = [
            letter for letter, option in offered.items() if _folded(option) == _folded(part) != letter.casefold()
        ]
        value = (
            (repeated[0] if len(repeated) == 1 else "")
            or chosen_letters(plain(part), last_letter(offered), marked)
            or _option_held(part, offered)
        )
    else:
        alternatives = named(part, {name: name.split() for name in form.alternatives})
        value = (
            _verdict(part, form)
            or ("" if form.words else bare_letter(plain(part)))
            or (alternatives[0] if len(alternatives) == 1 and not form.is_reversed_by(part) else "")
            or _of_closed_class(part, form)
        )
    return FinalAnswer(CHOICE, value, part) if value else None


def _verdict(part: str, form: QuestionForm) -> str:
    """Return yes or no if that is requested or nearly the whole text."""
    return verdict(part) if form.kind == CHOICE or len(words(part)) <= LONGEST_SPAN else ""


def _option_held(part: str, offered: dict[str, str]) -> str:
    """Return the letter of the only option whose words or number a text has, else ""."""
    if reasons := _REASONS.search(part):
        before = _option_held(part[: reasons.start()], offered)
        if before:
            return before
    said = words(part)
    long = {
        letter: words(option)
        for letter, option in offered.items()
        if _CLAUSES.search(option) or _NEGATION.search(option)
    }
    held = _longest({letter: wanted for letter, wanted in long.items() if places(wanted, said)})
    held = held or named(part, {letter: words(option) for letter, option in offered.items()})
    if not held and (number := _read_number(part, QuestionForm(kind=NUMBER), False)):
        numbers = {letter: _read_number(option, QuestionForm(), False) for letter, option in offered.items()}
        held = [letter for letter, option in numbers.items() if option and _may_be(number, option)]
    return held[0] if len(held) == 1 else ""


def _may_be(number: FinalAnswer, option: FinalAnswer) -> bool:
    """Return whether a number is that of an option, whose unit it may leave out."""
    return number.key == option.key or (
        not number.unit and number.number is not None and number.number == option.number
    )


def _of_closed_class(part: str, form: QuestionForm) -> str:
    """Return a day, month, season or direction if the text says nothing else or the question requests it, else ""."""
    said = words(part)
    bare = _without_opening(said)
    for question, members in _CLOSED:
        if set(members).isdisjoint(said):
            continue
        found = named(part, {member: [member] for member in members})
        if len(found) == 1 and (bare == found or (form.asks_what and question.search(" ".join(form.words)))):
            return found[0]
    return ""


def named(part: str, candidates: dict[str, list[str]]) -> list[str]:
    """Return the candidates that a text names in a clause without negation; longer ones win over their parts."""
    said = [words(clause) for clause in _CLAUSES.split(part) if not _NEGATION.search(clause)]
    all_said = {word for clause in said for word in clause}
    held = {
        name: wanted
        for name, wanted in candidates.items()
        if all_said.issuperset(wanted) and any(places(wanted, clause) for clause in said)
    }
    return _longest(held)


def _longest(held: dict[str, list[str]]) -> list[str]:
    """Return the names whose words are not a part of another one's."""
    return [name for name in held if not any(name != other and places(held[name], held[other]) for other in held)]


def _folded(text: str) -> str:
    return " ".join(simplified(text).casefold().split()).strip(" .。\"'")


# --- Dates

_YEAR = re.compile(r"(?<![\d,.])[12]\d{3}(?!\d|,\d|\.\d)")
_LIMIT_BEFORE = re.compile(
    r"(?:\b(?:before|after|since|until|(?:more|less|fewer|later|earlier|greater|higher|lower) than|over|under"
    r"|above|below|at (?:least|most))\s(?:the\s|about\s)?|(?:超过|不到|多于|少于|大于|小于|至少|最多)\s?)$",
    re.IGNORECASE,
)
_NEAR, _NEAR_AFTER = 30, 10
"""Characters before and after a number that are searched."""
_LIMIT_AFTER = re.compile(
    r"(?:\s\w+)?\sor\s(?:more|less|fewer|later|earlier)\b|.{0,2}(?:以[上下前后]|之[前后])|[前后](?![来天])",
    re.IGNORECASE,
)


def _read_date(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    text = plain(part)
    found: list[tuple[str, int, int]] = [*find_dates(text)]
    if form.asks_year:
        found = [(year_of(value), start, end) for value, start, end in found if year_of(value)]
    if form.kind == DATE:
        found = found or [(year[0], *year.span()) for year in _YEAR.finditer(text)]
        if REFUSED.search(text):
            return None
    elif not _is_frame(without_places(text, ((start, end) for _, start, end in found)), form):
        return None
    if not found or (len({value for value, _, _ in found}) > 1 and not marked):
        return None
    value, start, end = found[-1]
    return None if _is_limit(text, start, end) else FinalAnswer(DATE, value, part)


def _is_limit(text: str, start: int, end: int) -> bool:
    """Return whether the number or date at this place is only one end of a range."""
    return bool(_LIMIT_BEFORE.search(text[max(0, start - _NEAR) : start]) or _LIMIT_AFTER.match(text[end:]))


# --- Numbers

_ASSIGNED = re.compile(r"(?<![A-Za-z\\])([a-zA-Z])\s*=(?!=)")
REFUSED = re.compile(
    r"[<>≤≥≠±]|\bnot\b|n't\b|\bunknown\b|\bnobody\b|\bbefore it says\b|不知道|不是|并非|无法|不能确定|没有?写",
    re.IGNORECASE,
)
_FRAME = FILLERS | word_set(
    """it is are was were there they he she we you i this that these answer result total sum value equals equal of so
    therefore thus hence then about approximately around roughly exactly at in to be gives get have has comes makes only
    just or on by which means yields final one left altogether would will per each with for as leaves need mainly
    mostly made called named"""
)
HAN_FRAME = frozenset(
    "是为等于共一总大约有还剩了答案所以因此故即个只条名位人次本张台辆座种项颗棵倍层步页它就得到结果和左右的要能出在叫做"
)
_DOWN = word_set(
    """-increase -advance -profit -early -high -fast -old -long -heavy -cheap -hot -wide -deep -north -east -positive
    -import -win -增加 -前进 -高 -多 -快 -早 -长 -重 -热 -东 -南 -赢"""
)
"""Negative sides of opposites: 5 % less is not 5 %."""
_PLAIN_ADJECTIVE = re.compile(
    r"\b(?:below|under|new|young|short|shallow|narrow|low|late|slow|light|cold|cool)\b", re.IGNORECASE
)
_RANGE = re.compile(r"\s*(?:-|~|～|to(?:\s+(?:about|around))?|至|到)\s*")
_RANGE_OPENED = re.compile(r"(?:between|from|在|从)\s*$", re.IGNORECASE)
_RANGE_CONTINUED = re.compile(r"\s*(?:and|和|与)\s*")
_OF_A_FORMULA = re.compile(r"[/^*+\\<>√π∞|_]|(?<!\w)-|=.*=")


def _read_number(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    text = plain(part)
    found = numbers_of(text)
    if not found:
        text = spelled_out(text)
        found = numbers_of(text)
    if not found or any(re.match(r"[a-zA-Z](?![a-zA-Z])", text[each.end :]) for each in found):  # 2x is no number
        return None
    assigned = _ASSIGNED.findall(text)
    rest = _ASSIGNED.sub(" ", without_places(text, ((each.start, each.end) for each in found)))
    if _is_frame(rest, form):
        if len(found) > 1 and "=" not in text:
            return None if re.search(r"[\[{(]", text) else several_numbers(found, part)
        if len(assigned) > 1:
            return None
    elif not (form.kind == NUMBER or form.asks_output) or symbolic.SIGN.search(part) or REFUSED.search(text):
        return None
    return quantity_answer(_answering(found, text, form), found, text, form, assigned[-1] if assigned else "", part)


def quantity_answer(
    chosen: Quantity, found: Sequence[Quantity], text: str, form: QuestionForm, assigned: str = "", part: str = ""
) -> FinalAnswer | None:
    """Return a chosen one of the numbers found in a plain text as its answer, or its range; nothing for a limit."""
    ends = limits(found, text)
    if chosen in ends:
        return several_numbers(ends, part or text)
    if _is_limit(text, chosen.start, chosen.end):
        return None
    start = max(text.rfind(sign, 0, chosen.start) for sign in ",;，；") + 1
    return _one_number(chosen, part or text, form, _of_what(assigned, text[start : chosen.end + _NEAR_AFTER], form))


def read_quantity(part: str, form: QuestionForm) -> FinalAnswer | None:
    """Read a part of a text as a number or a range, else nothing."""
    return _read_number(part, form, False)


def _of_what(assigned: str, part: str, form: QuestionForm) -> str:
    """Return the unknown that is assigned, unless any unknown fits, else the downward direction of the text."""
    if assigned and not (form.words and assigned == (form.unknown or assigned)):
        return assigned
    return " ".join(sorted((polarities(_PLAIN_ADJECTIVE.sub("", part)) - form.polarities) & _DOWN))


def limits(found: Sequence[Quantity], text: str) -> list[Quantity]:
    """Return the two limits of a range, such as 10-15 km or between 3 and 4, else nothing."""
    for first, second in pairwise(found):
        between = text[first.end : second.start]
        opened = _RANGE_OPENED.search(text[max(0, first.start - _NEAR) : first.start])
        if _RANGE.fullmatch(between) or (opened and _RANGE_CONTINUED.fullmatch(between)):
            return [first, second]
    return []


def numbers_of(text: str) -> list[Quantity]:
    """Return the numbers of a plain text, parts of one measurement added up; dates aside."""
    return [quantity for quantity in combined(plain_quantities(text), text) if quantity.unit != "date"]


def _answering(found: list[Quantity], text: str, form: QuestionForm) -> Quantity:
    """Return the last number with the requested unit or noun, after the last equals sign if there is one."""
    if form.unit:
        dimension = Quantity(Fraction(1), form.unit).base[0]
        fitting = [each for each in found if each.unit and each.base[0] == dimension]
    else:
        fitting = [each for each in found if form.noun and stem(each.word.casefold()) == form.noun]
    after = [each for each in fitting or found if "=" in text and each.start > text.rindex("=")]
    return (after or fitting or found)[-1]


def _one_number(chosen: Quantity, part: str, form: QuestionForm, of: str) -> FinalAnswer:
    assert isinstance(chosen.value, Fraction)
    unit = chosen.unit or form.unit
    value = f"{exact_text(chosen.value)} {unit}".rstrip()
    return FinalAnswer(NUMBER, f"{of} = {value}" if of else value, part, chosen.value, unit, of)


def several_numbers(found: Sequence[Quantity], part: str) -> FinalAnswer:
    """Return several numbers as one answer in their order; a unit at the end applies to all."""
    # In base units, so that equal ones are equal.
    each = [Quantity(one.value, one.unit or found[-1].unit).base for one in found]
    return FinalAnswer(NUMBER, "; ".join(f"{value} {base_unit(dimension)}".rstrip() for dimension, value in each), part)


# --- Formulas and code


def _read_symbolic(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    formula = symbolic.formula(part)
    if formula is None:
        return None
    defined = symbolic.DEFINED.match(formula)
    if defined and form.words and defined[1] == (form.unknown or defined[1]):
        formula = formula[defined.end() :]
    return FinalAnswer(SYMBOLIC, formula, part)


def read_program(said: str, form: QuestionForm) -> FinalAnswer | None:
    """Read the last code block if the question requests code, or the block is most of the answer."""
    fenced = blocks(said)
    if not fenced:
        return FinalAnswer(CODE, normal_code(said), said) if form.kind == CODE and looks_like_code(said) else None
    last = fenced[-1]
    if form.kind == CODE or (not (form.kind or form.asks_output) and last.length >= len(said) / 2):
        return FinalAnswer(CODE, normal_code(last.code, last.language), last.code.strip())
    return None


def _read_code(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    if form.kind != CODE and symbolic.SIGN.search(part):
        return None
    ticked = re.findall(r"`([^`\n]+)`", part)
    alone = re.fullmatch(r"\W*`[^`]+`\W*", part) is not None
    if found := literal(part):
        value, rest = found
        if marked or form.asks_output or _is_frame(rest, form):
            return FinalAnswer(CODE, value, part)
    if ticked and (form.kind == CODE or (alone and has_code_sign(ticked[0]))):
        return FinalAnswer(CODE, normal_code(ticked[-1]), part)
    if form.kind == CODE and (looks_like_code(part) or re.fullmatch(r"[a-z][\w.-]*(?: [\w./~*-]+){1,4}", part)):
        return FinalAnswer(CODE, normal_code(part), part)
    return None


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
HONOURS = re.compile(
    r"^(?:the\s+)?(?:(?:sir|dame|dr|prof|professor|mr|mrs|ms|lord|lady|madame|count|president|king|queen|emperor|(?:his\s+)?majesty"
    r"|(?:vice-)?admiral|general|captain)\.?\s+)+(?=(?-i:[A-Z]))",
    re.IGNORECASE,
)
_COMPARING = {"than", "before", "after", "比"}


def _read_span(part: str, form: QuestionForm, marked: bool) -> FinalAnswer | None:
    if form.kind == PROSE and not marked:
        return None
    before, *reasons = _REASON.split(part, maxsplit=1)
    text = HONOURS.sub("", plain(before).strip(" .。\"'"))
    said = _without_opening(words(text))
    if has_signs(text):
        short = bool(said) and _length(said) <= LONGEST_SPAN and not reasons
        return FinalAnswer(SPAN, words_and_signs(" ".join(text.split())), part) if short else None
    own = _beside_the_question(said, form) if form.asks_what else []
    most = LONGEST_MARKED if marked else LONGEST_SPAN
    if not own and _length(said) <= (SHORTEST_SPAN if reasons else most):
        own = said
    if not own or _length(own) > most:
        return None
    alone = rf"(?<![A-Za-z0-9]){re.escape(own[0])}(?![A-Za-z0-9])"
    symbol = re.search(alone, text, re.IGNORECASE) if len(own) == 1 else None
    if symbol and _SYMBOL.fullmatch(symbol[0]):
        return FinalAnswer(SPAN, symbol[0], part)  # such as W or CO2, where case matters
    return FinalAnswer(SPAN, " ".join(own), part)


def _without_opening(said: list[str]) -> list[str]:
    """Return the words after an opening such as "It is" or "他是"."""
    for opening in _OPENINGS:
        if tuple(said[: len(opening)]) == opening and len(said) > len(opening):
            return said[len(opening) :]
    return said


def _beside_the_question(said: list[str], form: QuestionForm) -> list[str]:
    """Return the words that a sentence adds to its question; nothing if they are scattered or unclear."""
    if len(said) > LONGEST_SENTENCE:
        return []
    own = [place for place, word in enumerate(said) if not _is_frame_word(word, form)]
    if not own or own[-1] - own[0] + 1 != len(own):
        return []
    added, repeated = said[own[0] : own[-1] + 1], [word for word in said if stem(word) in form.words]
    if len(added) == len(said) or _length(repeated) < 1 or (len(added) == 1 and is_chinese(added[0])):
        return []
    return [] if _COMPARING & set(said) or _NEGATION.search(" ".join(added)) else added


def _length(said: Sequence[str]) -> float:
    return sum(0.5 if is_chinese(word) else 1.0 for word in said)


def _is_frame(rest: str, form: QuestionForm) -> bool:
    """Return whether the words around an answer say nothing of their own: "There are ... litres left."."""
    return not _OF_A_FORMULA.search(rest) and all(_is_frame_word(word, form) for word in words(rest))


def _is_frame_word(word: str, form: QuestionForm) -> bool:
    return word in _FRAME or word in HAN_FRAME or stem(word) in form.words


READERS: dict[str, Callable[[str, QuestionForm, bool], FinalAnswer | None]] = {
    CHOICE: _read_choice,
    DATE: _read_date,
    NUMBER: _read_number,
    CODE: _read_code,
    SYMBOLIC: _read_symbolic,
    SPAN: _read_span,
}
