r"""Is an answer right? Rules for references that are a number, a date, an option, a list or a few words; all pure.

What counts of an answer is its conclusion: what stands in the last `\boxed{}`, else the sentence after the last
"answer is" or "answer:", else the whole text; a model's thoughts never count. Of numbers, and of names among which the
question lets one choose, the last one there counts. The rules rather miss a right answer in an odd form than take a
wrong one.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from qubic_lab.evals.questions import Question

MOST_WORDS = 6
"""A longer reference is a sentence, which can be worded in many ways."""
TOLERANCE = Fraction(2, 1000)
"""A reference that is no whole number is met by another such this close to it, relatively: 0.111 for 1/9."""

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARK = re.compile(r"\banswer(?:\s*:|\s+(?:is|are|was|would be)\b(?!\s+not\b):?)[\s:]*(?=\S)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
_OPTION = re.compile(r"\(([A-Z])\)\s*([^()\n]+)")
_LETTER = re.compile(r"\(([A-H])\)|\b([A-H])[).:,](?=\s|$)|^\W*([A-H])\W*$")
_LIST = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(
    r"""(?P<currency>[€$£])?\s?
    (?P<sign>(?<![\w.)-])[-+])?
    (?:(?P<date>\d{4}-\d{2}-\d{2})(?!\d)
      |(?P<clock>\d{1,2}:\d{2})(?!\d)
      |(?P<over>\d+)/(?P<under>[1-9]\d*)(?![\d/])
      |(?P<plain>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:e[-+]?\d+)?))
    \s?(?P<unit>%|°\s?[CFcf]\b|[a-zA-Z]+(?:/[a-zA-Z]+)?)?""",
    re.VERBOSE,
)
_SPELLED = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}
_UNITS = {
    alias: aliases.split()[0]
    for aliases in (
        "% percent",
        "€ euro euros eur",
        "$ dollar dollars usd",
        "£ gbp",
        "°c celsius",
        "°f fahrenheit",
        "kb kilobyte kilobytes",
        "mb megabyte megabytes",
        "gb gigabyte gigabytes",
        "tb terabyte terabytes",
        "ml millilitre millilitres milliliter milliliters",
        "l litre litres liter liters",
        "mg milligram milligrams",
        "g gram grams",
        "kg kilogram kilograms",
        "mm millimetre millimetres millimeter millimeters",
        "cm centimetre centimetres centimeter centimeters",
        "m metre metres meter meters",
        "km kilometre kilometres kilometer kilometers",
        "m/s metres/second meters/second",
        "km/h kilometres/hour kilometers/hour",
        "s second seconds sec",
        "min minute minutes",
        "h hour hours",
        "day days",
        "week weeks",
    )
    for alias in aliases.split()
}
_NEGATIONS = {"not", "isn't", "never", "nor", "cannot"}
_FILLERS = {"the", "a", "an", "and"}
_RIVALS = (
    {"yes", "no"},
    {"true", "false"},
    {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"},
)


@dataclass(frozen=True)
class Quantity:
    """A number with its unit's one name ("" where it has none that is known)."""

    value: Fraction | str
    unit: str


def is_checkable(question: Question) -> bool:
    """Tell whether a rule can check answers to a question: not those to creative ones, nor whole sentences."""
    return question.kind != "creative" and len(question.answer.split()) <= MOST_WORDS


def is_right(question: Question, text: str) -> bool:
    """Tell whether a text answers a checkable question as its reference does."""
    answer = conclusion(text)
    reference = question.answer
    if _OPTION.match(reference):
        return _chooses(question, answer)
    if listed := _LIST.fullmatch(reference.strip()):
        return _lists(listed[1], answer)
    if wanted := quantities(reference):
        found = quantities(answer) or quantities(_spelled_out(answer))
        return len(found) >= len(wanted) and all(map(_equals, wanted, found[-len(wanted) :]))
    return _names(question, answer)


def conclusion(text: str) -> str:
    """Return the part of an answer that counts; empty where the thoughts were never finished."""
    text = _plain(_without_thoughts(text))
    if boxed := _BOXED.findall(text):
        return str(boxed[-1]).strip()
    marks = list(_MARK.finditer(text))
    return _SENTENCE_END.split(text[marks[-1].end() :])[0] if marks else text.strip()


def quantities(text: str) -> list[Quantity]:
    """Return the numbers, fractions, times of day and ISO dates of a text, in order, with the units that are known."""
    return [_quantity(found) for found in _NUMBER.finditer(_plain(text))]


def _without_thoughts(text: str) -> str:
    _, thought, rest = text.rpartition("</think>")
    if thought:
        return rest
    return text.partition("<think>")[0]


def _plain(text: str) -> str:
    """Write what has several spellings in one: minus signs, spaces, LaTeX fractions and emphasis."""
    text = unicodedata.normalize("NFC", text).replace("−", "-").replace("\\$", "$")
    text = re.sub(r"\\d?frac\s*\{(-?\d+)\}\s*\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f'](?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d)\{?,\}?\\?[,!](?=\d{3})", ",", text)
    text = re.sub(r"\bminus\s+(?=\d)", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"\bdegrees?\s+(celsius|fahrenheit)", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=[a-z]) per (?=[a-z])", "/", text)
    return text.replace("\\%", "%").replace("**", "").replace("`", "")


def _quantity(found: re.Match[str]) -> Quantity:
    if date := found["date"]:
        return Quantity(date, "date")
    if clock := found["clock"]:
        hours, minutes = clock.split(":")
        afternoon = 12 if (found["unit"] or "").casefold() == "pm" and int(hours) < 12 else 0
        return Quantity(Fraction(60 * (int(hours) + afternoon) + int(minutes)), "clock")
    if found["over"]:
        value = Fraction(int(found["over"]), int(found["under"]))
    else:
        value = Fraction(found["plain"].replace(",", ""))
    unit = found["currency"] or (found["unit"] or "").casefold().replace(" ", "")
    return Quantity(-value if found["sign"] == "-" else value, _UNITS.get(unit, ""))


def _equals(wanted: Quantity, found: Quantity) -> bool:
    """Compare a reference with what was found; a unit may be left out, but not be another one."""
    if wanted.unit != found.unit and wanted.unit and found.unit:
        return False
    if isinstance(wanted.value, str) or isinstance(found.value, str):
        return wanted.value == found.value
    if 1 in (wanted.value.denominator, found.value.denominator):
        return wanted.value == found.value
    return abs(wanted.value - found.value) <= TOLERANCE * abs(wanted.value)


def _spelled_out(text: str) -> str:
    """Write small numbers in digits; only for texts that have no digits: "one" is often no number."""
    return re.sub(r"[a-z]+", lambda word: _SPELLED.get(word[0], word[0]), text.casefold())


def _chooses(question: Question, answer: str) -> bool:
    """Compare options by the letters that are named; a text without any, by the one option that it holds."""
    options = {letter: _words(text) for letter, text in _OPTION.findall(question.question)}
    right, right_text = _OPTION.findall(question.answer)[0]
    letters = {"".join(groups) for groups in _LETTER.findall(answer)}
    if letters:
        return letters == {right}
    options.setdefault(right, _words(right_text))
    held = {letter for letter, words in options.items() if _places(words, _words(answer))}
    return held == {right}


def _lists(reference: str, answer: str) -> bool:
    """Compare item by item with the last list in brackets, or else with as many last numbers."""
    wanted = [item.strip() for item in reference.split(",")]
    if brackets := _LIST.findall(answer):
        found = [item.strip() for item in brackets[-1].split(",")]
    else:
        found = [str(each.value) for each in quantities(answer)][-len(wanted) :]
    return [item.strip("'\" ").casefold() for item in found] == [item.strip("'\" ").casefold() for item in wanted]


def _names(question: Question, answer: str) -> bool:
    """Look for the reference's words in a row; among rivals (see `_rivals`) the one that is named last counts."""
    if len(question.answer.strip()) == 1:  # a symbol such as W or G: its case counts
        return re.search(rf"(?<![\w'-]){re.escape(question.answer.strip())}(?![\w'-])", answer) is not None
    words, reference = _words(answer), _words(question.answer)
    places = _places(reference, words)
    rivals = _rivals(question, reference)
    return bool(places) and not any(word in rivals for word in words[places[-1] + len(reference) :])


def _rivals(question: Question, reference: Sequence[str]) -> set[str]:
    """Return what could stand in the reference's place: its own kind, or the names in a question that holds it."""
    for kind in _RIVALS:
        if len(reference) == 1 and reference[0] in kind:
            return kind - set(reference)
    if not _places(reference, _words(question.question)):
        return set()
    names = re.findall(r"\b[A-Z]\w+", question.question)
    return {name.casefold() for name in names} - set(reference)


def _words(text: str) -> list[str]:
    """Return the words in small letters and without accents, signs and fillers."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return [word for word in re.findall(r"\w+(?:'\w+)?", plain) if word not in _FILLERS]


def _places(wanted: Sequence[str], words: Sequence[str]) -> list[int]:
    """Return where `wanted` begins among the words, each time without a negation before it."""
    return [
        place
        for place in range(len(words) - len(wanted) + 1)
        if wanted and list(words[place : place + len(wanted)]) == list(wanted) and not _negated(words[:place])
    ]


def _negated(before: Iterable[str]) -> bool:
    return bool(_NEGATIONS & set(list(before)[-1:]))
