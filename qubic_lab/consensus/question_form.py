"""What a question reveals about its answer: its kind, the options, the unit and the unknown."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from qubic_lab.consensus.quantities import plain, plain_quantities, spelled_out
from qubic_lab.consensus.units import find_unit
from qubic_lab.consensus.words import polarities, simplified, stem, word_set, words

OPTION = re.compile(r"\(([A-Z])\)\s*+((?:[^\S\n]*+\S)+?)(?=\s*(?:\([A-Z]\)|\n|$))")
"""An option such as (B) Venus; its text ends at the next one or at the end of the line."""


@dataclass(frozen=True)
class QuestionForm:
    """The form of the answer that a question asks for; all fields of an empty question are empty.

    `kind` is one of `answers.KINDS`, or "" if the question is open. `options` are (letter, text) pairs, `alternatives`
    other choices: fruit and vegetable in "a fruit or a vegetable?", the names in "Who came first?". `unit` is the
    requested one, `noun` the stem of what is counted, `unknown` the letter to solve for. `words` are the stems of the
    question's words, without the options, and `polarities` their signed pairs of opposites, such as +increase.
    `content` are those of its last question that say something, `given` those before another part of a name (Isaac in
    "Isaac Newton"), `numbers` its quantities.
    `asks_name` can be answered by a name, `asks_place` by a place, `asks_list` by several items, `asks_what` by one
    phrase. `asks_output` wants a program's output or return value.
    """

    kind: str = ""
    options: tuple[tuple[str, str], ...] = ()
    alternatives: frozenset[str] = frozenset()
    unit: str = ""
    noun: str = ""
    unknown: str = ""
    words: frozenset[str] = frozenset()
    asks_year: bool = False
    asks_output: bool = False
    asks_what: bool = False
    asks_name: bool = False
    asks_place: bool = False
    asks_list: bool = False
    polarities: frozenset[str] = frozenset()
    content: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    numbers: frozenset[tuple[Fraction | str, str]] = frozenset()

    def is_reversed_by(self, text: str) -> bool:
        """Return whether a text has the opposite of one of the question's words, such as lighter for heavier."""
        other = {f"{'-' if each[0] == '+' else '+'}{each[1:]}" for each in polarities(text)}
        return not other.isdisjoint(
            each for each in self.polarities if not {f"+{each[1:]}", f"-{each[1:]}"} <= self.polarities
        )


@lru_cache(1024)
def read_question(question: str) -> QuestionForm:
    """Return the form of the answer that a question asks for."""
    question = simplified(question)
    offered = options(question)
    stem_text = question[: question.index(next(iter(offered.values())))] if offered else question
    asks_output = bool(_OUTPUT.search(question)) and not _WRITE.search(question)
    unit, noun = _unit(plain(question))
    kind = "choice" if offered else _kind(stem_text.strip(), asks_output)
    asks_what = bool(_WHAT.search(question)) and not _SEVERAL.search(_ONE.sub(" ", _TITLE.sub(" ", question)))
    return QuestionForm(
        kind=kind,
        options=tuple(offered.items()),
        alternatives=_alternatives(stem_text),
        unit=unit,
        noun=noun,
        unknown=next((letter for found in _UNKNOWN.findall(question) for letter in found if letter), ""),
        words=frozenset(stem(word.removesuffix("'s")) for word in words(stem_text)),
        asks_year=bool(_YEAR.search(question)),
        asks_output=asks_output,
        asks_what=asks_what,
        asks_name=asks_what and not kind and not asks_output and not _DEED.search(question),
        asks_place=bool(_PLACE.search(question)),
        asks_list=bool(_LIST.search(stem_text)),
        polarities=polarities(stem_text),
        content=_content(stem_text),
        given=frozenset(stem(name.casefold()) for name in _GIVEN.findall(stem_text)),
        numbers=frozenset(
            (each.value, each.unit)
            for text in (plain(stem_text), spelled_out(stem_text))
            for each in plain_quantities(text)
        ),
    )


def options(text: str) -> dict[str, str]:
    """Return the options of a question by letter, such as (A) Mercury (B) Venus."""
    for pattern in (OPTION, _BARE_OPTION):
        found = dict(pattern.findall(text))
        if {"A", "B"} <= set(found):
            return {letter: option.strip() for letter, option in found.items()}
    return {}


def last_letter(offered: Iterable[str]) -> str:
    """Return the last letter that can name an option: H, or a later one if a question has more options."""
    return max("H", *offered)


def letters(text: str, last: str = "H") -> set[str]:
    """Return the option letters up to `last` that an answer names; a letter after "not" does not count."""
    forms = _letter_forms(last)
    text = forms.denied.sub(" ", text)
    if listed := forms.listed.search(text):
        return set(re.findall(r"[A-Z]", listed[0]))
    return {letter.upper() for found in forms.named.findall(text) for letter in found if letter}


def chosen_letters(text: str, last: str = "H", marked: bool = False) -> str:
    """Return the letter or listed letters that an answer chooses; "" if it names none, or several in passing.

    A letter at the beginning of a `marked` conclusion is the choice, whatever follows.
    """
    forms = _letter_forms(last)
    if forms.listed.search(text):
        return "".join(sorted(letters(text, last)))
    if marked and (opened := forms.opening.match(text)):
        return opened[1].upper()
    named = letters(text, last)
    return named.pop() if len(named) == 1 else ""


def bare_letter(text: str) -> str:
    """Return the option letter if the text is nothing else, else ""."""
    found = _BARE_LETTER.fullmatch(text)
    return found[1] if found else ""


_BARE_OPTION = re.compile(
    r"(?<![A-Za-z])([A-H])[).、．:：]\s*(.+?)(?=[\s;,，；]*(?<![A-Za-z])[A-H][).、．:：]|\n|$)", re.MULTILINE
)
_BARE_LETTER = re.compile(r"[^\w'\"]*(?:(?:[Oo]ption|[Cc]hoice|选项?)\s?)?\(?([A-H])[^\w'\"]*")
_LETTER_FORMS = {
    "named": r"""
    \(([A-Ha-h])\)|(?<![A-Za-z0-9_(])(?<![A-Z]\.\s)([A-H])(?!\.\s[A-Z]\.)[).:,;!](?=\s|$)|(?<![A-Za-z])([A-H])[、，。：]
    |^[^\w'"]*([A-Ha-h])[^\w'"]*$
    |\b(?i:option|choice)\s+\(?([A-Ha-h])\b|选(?:项|择)?[是为]?\s?([A-H])(?![A-Za-z])|^\W*([A-H])(?=\s(?:is|because|as|since)\b)
    |(?:\b(?i:is|be|think|say)\s+|(?i:'s)\s+|[是为])\(?([A-H])\)?(?=[^\w'"]*$)
    |(?<![A-Za-z])\(?([A-H])\)?\s+(?:or|and)\s+\(?([A-H])(?![\w'])
    |\b(?i:choose|pick|select|go\s+with|(?:option|choice)\s+is)\s+\(?([A-H])(?![\w'])
    """,
    "opening": r"""
    \W*(?:(?i:option|choice)\s+|选?项?\s?)\(?([A-Ha-h])
    (?=\)|\s*(?:[.:,;!?，。；：、（("—–-]|$)|\s+(?:because|since|as|which|is|for)\b)(?!'|\)?\s*[,、]\s*\(?[A-H]\b)
    """,
    "listed": r"(?<![A-Za-z])[A-H](?:(?:\s*(?:,|&|和|、)\s*|,?\s+and\s+)[A-H])+(?=\W*$)|^\W*[A-H]{2,8}\W*$",
    "denied": r"""
    (?i:\bneither)\s+\(?[A-H]\)?\s+nor\s+\(?[A-H]\b\)?|\b[Nn]ot\s+(?:(?:option|choice)\s+)?\(?[A-H]\b\)?
    |\(?\b(?:[A-H](?:,\s*and|,|\s+and|\s*&)\s*)*[A-H]\)?\s(?:is|are)(?:n't|\s(?:not|wrong|incorrect|false))\b
    |(?:不是|不选|而非|排除)\s*(?:选项)?\s?[A-H](?![A-Za-z])
    |(?<![A-Za-z])[A-H](?:[、,，和与]\s?[A-H])*\s*[都均]?\s*(?:不对|不正确|是?错)
    """,
}
"""How letters from A to H name options; verbose patterns."""
_VERDICT = re.compile(
    r"(?:^|[.!:]\s)(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|must|may)\b(?!.*\bor\b(?! not))"
    r"|\btrue or false\b|\byes or no\b|(?:吗|(?<![什甚怎这那])么)(?:[？?]|$)"
    r"|是否|是不是|能不能|会不会|对不对|可不可以|有没有",
    re.IGNORECASE,
)
_YEAR = re.compile(r"\b(?:what|which) year\b|哪一?年", re.IGNORECASE)
_DATE = re.compile(
    r"\bwhen\s+(?:was|were|did|is|does|will|do|are)\b|\b(?:what|which) (?:date|year)\b|\bthe date\b"
    r"|哪一?[天年日]|几月几[日号]|日期|何时|什么时候",
    re.IGNORECASE,
)
_WRITE = re.compile(
    r"\b(?:write|implement|complete|refactor|rewrite)\b|写出?(?:一个|一条|一段|一行)|编写|实现", re.IGNORECASE
)
_CODE = re.compile(
    rf"{_WRITE.pattern}|\b(?:one-liner|regex|sql query|(?:which|what|git|shell|bash) command)\b|命令|代码",
    re.IGNORECASE,
)
_PROSE = re.compile(
    r"\b(?:why|explain|describe|compare|how (?:do|does|did|can|would|should))\b"
    r"|为什么|为何|解释|说明|描述|如何|怎么|怎样",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"\bhow (?:many|much|long|far|old|tall|fast|often|high|deep|heavy|large|big|wide|hot|cold)\b"
    r"|\bwhat (?:is|are|was) (?:the |its )?(?:\w+ ){0,3}(?:number|sum|product|quotient|difference|value|area|volume"
    r"|total|average|mean|median|speed|length|height|distance|mass|weight|temperature|price|cost|age|probability"
    r"|perimeter|percentage|remainder|depth|duration|root|point)\b"
    r"|\bwhat(?: is|'s) (?:\d|half|twice|double|(?:an?|one|two|three) (?:third|quarter)s?\b|the (?:cube|square) of)"
    r"|\bwhat (?:percentage|percent|time|number|temperature)\b"
    r"|\b(?:calculate|compute|evaluate|solve)\b|\d\s*[-+*/×÷^]\s*\d"
    r"|多少|多[长远大高重久快深宽]|几|计算|求|(?:等于|占比|面积|体积|速度是)(?!.*[哪谁])",
    re.IGNORECASE,
)
_OUTPUT = re.compile(r"\b(?:prints?|outputs?|returns?|evaluates? to)\b|输出|打印|返回|结果", re.IGNORECASE)
_WHAT = re.compile(r"\b(?:what|who|whose|which|where)\b|谁|哪|什么", re.IGNORECASE)
_SEVERAL = re.compile(r"\b(?:and|or)\b|[和与或、]|还是", re.IGNORECASE)
_DEED = re.compile(
    r"\bwhat\s+(?!do\s\w+\scall\b)(?:do|does|did|happens?|happened|will|would|should|can|could|has|have)\b"
    r"|\bwhat(?:'s|\s+is|\s+are)\s+(?!(?:the|its|your|my)\b)(?:an?\s+)?[\w-]+(?:\s[\w-]+)?\s*\?",
    re.IGNORECASE,
)
"""Questions for deeds and definitions, which are no names."""
_PLACE = re.compile(r"\bwhere\b|\b(?:in|on|at|from) (?:which|what)\b|哪[里儿]|哪一?[个座区省市县州国]", re.IGNORECASE)
_ONE = re.compile(r"\b(?:is|was)\s+the\s.{0,80}?\band\b|\s(?:when|if|between)\s.*", re.IGNORECASE)
_TITLE = re.compile(r"[「《“][^「《“」》”]{1,40}[」》”]|\b[A-Z]\w+ and (?:the )?[A-Z]\w+")
_WHO = re.compile(r"\b(?:who|which|whose)\b", re.IGNORECASE)
_NO_NAMES = word_set("who which whose what the a an in on of if there when where at after before two three is are")
_OR = re.compile(
    r"(?:[,:]|\b(?:an?|the|is|are|than|it|does|do)\b|^)\s*"
    r"((?:[\w-]{1,40} )?[\w-]{1,40}),? or ((?:(?:an?|the) )?[\w-]{1,40}(?: [\w-]{1,40})?)\s*(?:\?|\sthan\b)"
    r"|\ban?\s([\w-]{1,40})\sor\s(?:an?\s)?([\w-]{1,40})\s"
    r"|^(?:is|are|was|were|do|does|did)\s(?:(?:the|an?)\s)?([\w-]{1,40})\sor\s(?:(?:the|an?)\s)?([\w-]{1,40})\s"
    r"|([\u4e00-\u9fff]{1,6})，?还是([\u4e00-\u9fff]{1,6})[？?]|^([\u4e00-\u9fff]{1,6}?)[和与跟]([\u4e00-\u9fff]{1,6}?)[，,]?(?:哪(?!一?[年月天里儿])|谁)",
    re.IGNORECASE,
)
_IS_IT = re.compile(r"(?:is|are|was|were)\s(?:(?:an?|the)\s)?[\w-]+\s[\w-]+,?\sor\s", re.IGNORECASE)
_MANY = r"(?:two|three|four|five|six|seven|eight|nine|ten|\d+)"
_LIST = re.compile(
    rf"\b(?:name|list|give|what\s+are|which)\s+(?:me\s+)?(?:the\s+)?(?:first\s+|last\s+)?{_MANY}\b|^\W*list\s"
    r"|^\W*name\s+(?:some|all|the\s(?!\w+est\b|\w+\s(?:of|that|who|which)\b))\b[\w\s]{0,30}[a-rt-z]s\b"
    r"|列出|列举|哪[两二三四五六七八九]|哪些|[两二三四五六七八九十]大[^，。]{1,8}(?:是什么|有哪)",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    r"(?<=\s)(?!(?:North|South|East|West|New|The|United|Saint|Great)\w*\s)([A-Z][a-z]+)\s(?=(?:d[ae]|van|von)?\s?[A-Z])"
)
_ASKED = re.compile(r"(?<![^.。!！?？])[^.。!！?？]*[?？]")
_EMPTY = word_set(
    """is are was were do does did can could will would should has have had may must be been the a an it its there this
    that what which who whose whom where when how of in on at to by for from as and or you your i my we they them he she
    answer question yes no not please many much most any some
    吗 么 呢 是 的 了 请 问 你 我 可 以 会 能 一 个 在 有 哪 谁 什 么 里 上 中 内 几 多 少
    否 不 它 吧 这 那 比 等 于 叫"""
)
_UNIT = re.compile(
    r"\bhow (?:many|much) ([a-zA-Z^23/]+)|\bin ([a-zA-Z°^23/]+)\s*[?,.)]"
    r"|(?:多少|几|单位[:：是为]?)\s*([\u4e00-\u9fff^23/]{1,6}?)(?=[？?，。）)的]|$)",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"\bpercent(?:age)?\b|百分比|百分之几|百分率", re.IGNORECASE)
_COUNTED = re.compile(r"\bhow many (?:more |other |different |of the )?(\w+)", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"\b(?:solve for|find|value of|what is|what's)\s+\$?([a-z])\$?(?![\w(])|(?:求|解)\s*\$?([a-z])(?![\w(])",
    re.IGNORECASE,
)


class _LetterForms(NamedTuple):
    """The patterns of _LETTER_FORMS."""

    named: re.Pattern[str]
    opening: re.Pattern[str]
    listed: re.Pattern[str]
    denied: re.Pattern[str]


@lru_cache
def _letter_forms(last: str) -> _LetterForms:
    written = {
        name: form.replace("-H", f"-{last}").replace("-h", f"-{last.lower()}") for name, form in _LETTER_FORMS.items()
    }
    return _LetterForms(**{name: re.compile(form, re.VERBOSE) for name, form in written.items()})


def _kind(question: str, asks_output: bool) -> str:
    if _VERDICT.search(question):
        return "choice"
    for kind, pattern in (("date", _DATE), ("code", _CODE), ("prose", _PROSE)):
        if pattern.search(question) and not (asks_output and kind == "code"):
            return kind
    return "number" if _NUMBER.search(question) and not asks_output else ""


def _content(question: str) -> tuple[str, ...]:
    """Return the stems of the last question's words that say something, else of the whole text's, in order."""
    asked = re.sub(r"(?<=\w)\s(?:when|if)\b.*", "", [question, *_ASKED.findall(question)][-1])
    return tuple(dict.fromkeys(stem(word.removesuffix("'s")) for word in words(asked) if word not in _EMPTY))


def _unit(question: str) -> tuple[str, str]:
    """Return the requested unit, else the stem of the counted noun."""
    for found in _UNIT.findall(question):
        if unit := find_unit(next(filter(None, found))):
            return unit.name, ""
    if _PERCENT.search(question):
        return "%", ""
    if "多少钱" in question:
        return "元", ""
    counted = _COUNTED.search(question)
    return "", stem(counted[1].casefold()) if counted else ""


def _alternatives(question: str) -> frozenset[str]:
    if found := _OR.search(question):
        sides = [words(side.rpartition("是")[2]) for side in found.groups() if side]
        if _IS_IT.match(question):  # "Is snow white or black?" has its subject before them
            sides = [side[-len(sides[-1]) :] for side in sides]
        return frozenset(map(" ".join, sides)) if all(sides) else frozenset()
    told, asked, _ = question.rpartition(_ASKED.findall(question)[-1]) if _ASKED.search(question) else ("", "", "")
    if not _WHO.search(asked):
        return frozenset()
    names = {name.casefold() for name in re.findall(r"\b[A-Z][a-z]+\b", told)} - _NO_NAMES
    return frozenset(names) if len(names) > 1 else frozenset()
