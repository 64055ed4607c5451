"""Numbers with units in a text, as exact fractions, in English and Chinese; also dates and times of day."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from functools import lru_cache

from qubic_lab.consensus.dates import find_dates
from qubic_lab.consensus.units import HAN_UNITS, PLAIN_NUMBER, find_unit
from qubic_lab.consensus.words import SIMPLIFIED, simplified, without_emphasis

Base = tuple[str, Fraction | str]
"""A dimension and the amount in its base unit; for a date, its normal form."""


@dataclass(frozen=True)
class Quantity:
    """A number with the name of its unit ("" if unknown), a date (see `dates`) or a clock time.

    `word` is the word that follows, unit or not; `start` and `end` are its place in the plain text, including the unit.
    """

    value: Fraction | str
    unit: str
    word: str = field(default="", compare=False)
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)

    @property
    def base(self) -> Base:
        """A value that is equal exactly for equal quantities."""
        if isinstance(self.value, str) or self.unit == "clock":
            return self.unit, self.value
        unit = find_unit(self.unit)
        if unit is None:
            return PLAIN_NUMBER, self.value
        return unit.dimension, self.value * unit.factor + unit.offset


def quantities(text: str) -> list[Quantity]:
    """Return the numbers, fractions, times of day and dates of a text in order, with known units."""
    return plain_quantities(plain(text))


def plain_quantities(text: str) -> list[Quantity]:
    """Return the quantities of a text that `plain` has normalized; their places refer to it."""
    return list(_found_quantities(text)) if _DIGIT.search(text) else []


@lru_cache(1024)  # one reader after the other asks for those of the same sentence
def _found_quantities(text: str) -> tuple[Quantity, ...]:
    dates = find_dates(text)
    blanked = list(text)
    for found in dates:
        blanked[found.start : found.end] = "\0" * (found.end - found.start)
    quantities = [Quantity(found.value, "date", "", found.start, found.end) for found in dates]
    quantities += map(_quantity, _find_numbers("".join(blanked)))
    return tuple(sorted(quantities, key=lambda quantity: quantity.start))


def combined(quantities: Iterable[Quantity], text: str) -> list[Quantity]:
    """Add up adjacent quantities of one measurement: 17 minutes 30 seconds, 1 h and 5 min."""
    together: list[Quantity] = []
    for quantity in quantities:
        whole = _whole(together[-1], quantity, text) if together else None
        if whole:
            together[-1] = whole
        else:
            together.append(quantity)
    return together


def _whole(larger: Quantity, smaller: Quantity, text: str) -> Quantity | None:
    """Return the sum of two quantities if the second continues the first, in a smaller unit of its dimension."""
    if not re.fullmatch(r",?\s*(?:and\s+|零|又|, and\s+)?", text[larger.end : smaller.start]):
        return None
    units = find_unit(larger.unit), find_unit(smaller.unit)
    if not units[0] or not units[1] or isinstance(larger.value, str) or isinstance(smaller.value, str):
        return None
    first, second = units[0], units[1]
    if first.dimension != second.dimension or first.dimension == PLAIN_NUMBER or first.offset or second.offset:
        return None
    if second.factor >= first.factor or not 0 <= smaller.value * second.factor < first.factor:
        return None
    part = smaller.value * second.factor / first.factor
    value = larger.value + (-part if larger.value < 0 else part)
    return Quantity(value, larger.unit, smaller.word, larger.start, smaller.end)


@lru_cache(1024)
def plain(text: str) -> str:
    """Normalize spellings: full-width signs, minus signs, spaces, LaTeX fractions, emphasis, Chinese characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_ONE_SIGN)
        text = _VULGAR.sub(lambda found: found[1] + (" " if found[1] else "") + _VULGAR_VALUE[found[2]], text)
        text = _CHINESE_CLOCK.sub(_clock, _CHINESE_DATE.sub(_date, superscripts_lowered(text)))
        text = _MIXED_NUMBER.sub(_mixed, _HALF_HOURS.sub(_half_hours, text))
    text = without_emphasis(text)
    has_digits, lowered = _DIGIT.search(text) is not None, text.lower()
    for needed, pattern, writing in _ONE_SPELLING:
        if any(has_digits if each == "0" else each in lowered for each in needed):
            text = pattern.sub(writing, text)
    if not has_digits:
        return text
    return _SPACED.sub(lambda found: found[0].replace(" ", ","), _with_minus_signs(text))


def exact_text(value: Fraction) -> str:
    """Write a value exactly: 12, 0.75, or 1/3 if the decimal would not end."""
    try:
        return f"{_EXACT.divide(Decimal(value.numerator), Decimal(value.denominator)):f}"
    except Inexact:
        return str(value)


def superscripts_lowered(text: str) -> str:
    """Write superscript digits as powers: m² as m^2."""
    return text if text.isascii() else _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_LOWERED), text)


def spelled_out(text: str) -> str:
    """Write number words in digits; only for texts without digits, because "one" is often not a number."""
    text = _CHINESE_FRACTION.sub(lambda found: _fraction(found[2], found[1]), simplified(text))
    text = _CHINESE_NUMBER.sub(lambda found: str(chinese_number(found[0])), text)
    return _with_minus_signs(_CHINESE_CLOCK.sub(_clock, _SPELLED.sub(_digits, text)))


def _with_minus_signs(text: str) -> str:
    lowered = text.lower()  # ten times faster than the pattern
    return _MINUS.sub("-", text) if any(word in lowered for word in ("minus", "negative", "零下", "负")) else text


def chinese_number(numerals: str) -> int:
    """Return the value of a Chinese numeral such as 十二, 一百零五, 三万二千 or 两千五 (2,500)."""
    numerals = simplified(numerals)
    total = section = digit = 0
    for sign in numerals:
        if sign in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[sign]
        elif sign in "十百千":
            section += (digit or 1) * _CHINESE_SCALES[sign]
            digit = 0
        elif sign == "万":
            total += (section + digit) * _CHINESE_SCALES[sign]
            section = digit = 0
        else:
            total = (total + section + digit) * _CHINESE_SCALES[sign]
            section = digit = 0
    left_out = _CHINESE_SCALES.get(numerals[-2:-1], 10) // 10  # of 两千五百, 百 may be left out
    return total + section + digit * left_out


_EXACT = Context(prec=1000, traps=[Inexact])
_ONE_SIGN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "，；！？～"} | {
    **{ord("₀") + digit: str(digit) for digit in range(10)},
    ord("−"): "-",
    ord("–"): "-",
    ord("℃"): "°C",
    ord("℉"): "°F",
    ord("μ"): "µ",
    ord("\u3000"): " ",
    ord("’"): "'",
    **SIMPLIFIED,
}
_VULGAR_VALUE = {
    sign: unicodedata.normalize("NFKC", sign).replace("\N{FRACTION SLASH}", "/") for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅑⅒⅐"
}
_VULGAR = re.compile(rf"(\d?)\s?([{''.join(_VULGAR_VALUE)}])")
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴-⁹]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
# Each row: what a text must contain for the rule to apply (alternatives in lower case; "0": a digit), the pattern, its
# normal spelling, and flags.
_ONE_SPELLING = [
    (needed.split("|"), re.compile(pattern, flags), written)
    for needed, pattern, written, flags in (
        ("$", r"(?<!\\)\$(?![\s$])([^$\n]{1,300})(?<![\s$\\])\$(?!\d)", r"\1", 0),  # LaTeX between dollar signs
        ("\\", r"\\(?=[$%])|\\[()\[\]]", "", 0),
        ("\\", r"(\d)\s?\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1 \2/\3", 0),
        ("\\", r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}", r"\1/\2", 0),
        ("\\", r"\\[dt]?frac(\d)(\d)", r"\1/\2", 0),
        ("\\", r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1", 0),
        ("\\", r"\^\s*\\circ\s*", "°", 0),
        ("\\", r"\\times|\\cdot", "×", 0),
        ("0", r"(?<=\d)[\u00a0\u2009\u202f'](?=\d{3})", ",", 0),
        ("0", r"(?<=\d)\{?,\}?\\?[,!](?=\d{3})", ",", 0),
        ("\\", r"(?<=\d)\\[,; ]\s?", " ", 0),
        ("celsius|fahrenheit", r"\b(?:degrees?|°)\s+(celsius|fahrenheit)", r"\1", re.IGNORECASE),
        ("degrees", r"(?<=\d)\s?degrees\s?([CF])\b", r" °\1", 0),
        ("percent", r"(?<=\d)\s?(?:percentage points?|percent points?)\b", " pp", re.IGNORECASE),
        ("per cent", r"(?<=\d)\s?per cent\b", "%", re.IGNORECASE),
        (
            "sq",
            r"\bsq(?:uare|\.)?\s+(metres?|meters?|kilomet(?:re|er)s?|cm|km|m|feet|foot|miles?|inch(?:es)?)\b",
            r"\1^2",
            0,
        ),
        ("cubic", r"\bcubic\s+(metres?|meters?|centimet(?:re|er)s?|cm|m|feet|foot|inch(?:es)?)\b", r"\1^3", 0),
        ("平", r"平方(公里|千米|厘米|毫米|米)", r"\1^2", 0),
        ("立", r"立方(厘米|毫米|分米|米)", r"\1^3", 0),
        ("时", r"(?<=/)时", "小时", 0),
        ("每", rf"每\s?({HAN_UNITS})\s?(\d+(?:\.\d+)?)\s?({HAN_UNITS})", r"\2\3/\1", 0),
        ("每", rf"(?<=\d)\s?({HAN_UNITS})\s?每\s?({HAN_UNITS})", r"\1/\2", 0),
        ("时速", r"时速(?:是|为|可?达|大?约)?\s?(\d+(?:\.\d+)?)\s?(公里|千米)", r"\1\2/小时", 0),
        (" per ", r"(?<=[a-z]) per (?=[a-z])", "/", 0),
        (
            "hour|minute|second",
            r"(?<=\d)\s?(km|kilomet(?:re|er)s?|miles|met(?:re|er)s?) an? (hour|minute|second)\b",
            r" \1/\2",
            0,
        ),
        ("ft|feet|foot", r"(\d\s?(?:ft|feet|foot),?\s\d+)\sin\b\.?", r"\1 inches", 0),
        ("0", r"(?<=\d)\s?h\s?(\d\d)\b(?!\s?m)", r" h \1 min", 0),
        ("m.", r"\b([ap])\.\s?m\.", r"\1m", re.IGNORECASE),
        ("us dollars", r"\bUS dollars\b", "dollars", 0),
        ("小时|钟头", r"(小时|钟头)\s?(\d{1,2})\s?分(?![钟之数])", r"\1\2分钟", 0),
        ("百分", r"百分之\s?(\d+(?:\.\d+)?)", r"\1%", 0),
        ("`", r"`", "", 0),
    )
]
_SPACED = re.compile(r"(?=\d)(?<![\d,.] )(?<![\d,.])\d{1,2}(?: \d{3})+(?![\d,]|\.\d)")
"""Thousands separated by spaces; three leading digits could be a list."""
_MINUS = re.compile(r"(?:\b(?:minus|negative)\s+|(?:零下|(?<!正)负)\s*)(?=\d)", re.IGNORECASE)
_CHINESE_DIGITS = dict(zip("〇零一二两三四五六七八九", (0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_CHINESE_DATE = re.compile(
    r"(?P<year>[〇零一二三四五六七八九]{4})年(?:(?P<month>[一二三四五六七八九十]{1,2})月(?:(?P<day>[一二三四五六七八九十]{1,3})[日号])?)?"
)
_CHINESE_CLOCK = re.compile(
    r"(?P<half>凌晨|早上|上午|中午|下午|傍晚|晚上)?\s?(?<![\d.])(?P<hour>\d{1,2})\s?[点时](?:(?P<min>\d{1,2})分?|(?P<word>半|整|一刻))?(?!\d|钟?头)"
)
_NUMERALS = "(?:[〇零一二两三四五六七八九十百万亿]|(?<![十百])千)"
_CHINESE_FRACTION = re.compile(f"({_NUMERALS}{{1,8}})分之({_NUMERALS}{{1,8}})")
_SKIPPED = "(?<![第统万唯某每任同另初期周拜])(?!万一|千万[不别要记]|[三四五六八][角边])"
_MEASURES = (
    "段组排列瓶杯碗盒箱包袋片支枝粒根栋面个只条名位人次天年月岁元件本张台辆座种项颗棵倍"
    "层步页公千米厘毫升克吨斤小分秒点度块角周星世%％"
)
_CHINESE_NUMBER = re.compile(rf"{_SKIPPED}(?:{_NUMERALS}{{2,16}}|[一二两三四五六七八九十](?=[{_MEASURES}]|\W|$))")
_HALF_HOURS = re.compile(r"(?:(\d{1,9}|[一二两三四五六七八九十])个)?半个?(?=小时|钟头|星期|礼拜)")
_MIXED_NUMBER = re.compile(r"(?<![\d.,])(?:\d{1,12}(?:\.\d{1,9})?[亿万千百]零?)+(?:\d{1,4}(?![\d,]|\.\d))?")
"""Such as 8万6400 and 1亿2000万."""
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: value for value, word in enumerate(_ONES + _TEENS)} | {
    word: 10 * tens for tens, word in enumerate(_TENS, start=2)
}
_SCALE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_BELOW_100 = f"(?:(?:{'|'.join(_TENS)})(?:[-\\s](?:{'|'.join(_ONES[1:])}))?|{'|'.join(_TEENS + _ONES)})\\b"
_BELOW_1000 = rf"{_BELOW_100}(?:[-\s]hundred\b(?:\s(?:and\s)?{_BELOW_100})?)?"
_SPELLED = re.compile(
    rf"\b(?P<whole>{_BELOW_1000}(?:\s(?:thousand|million|billion)\b(?:,?\s(?:and\s)?{_BELOW_1000})?)*)"
    r"(?:(?P<and>\sand\sa\shalf\b)|[\s-](?P<part>half|halves|(?:third|quarter|fourth|fifth|sixth|eighth|tenth)s?)\b)?"
    r"|\b(?:a\s)?(?P<half>half)\b"
    r"|\ba\s(?P<one>third|quarter|fifth|tenth|dozen|hundred|thousand|million|billion)\b",
    re.IGNORECASE,
)
_MULTIPLES = _SCALE | {
    "dozen": 12,
    "trillion": 10**12,
    "百": 100,
    "千": 1000,
    "万": 10**4,
    "百万": 10**6,
    "千万": 10**7,
    "亿": 10**8,
    "万亿": 10**12,
}
_DIGIT = re.compile(r"\d")
_LONGEST_SIGN = len("-US$ -")
_DIGITS = r"\d{1,300}"
"""Longer runs of digits are not numbers anybody meant, and are slow to read."""
_NUMBER = re.compile(
    rf"""(?<![A-Za-z_\d^])(?<![A-Za-z]-)(?<!\d\.)(?<!\^\{{)
    (?P<before>(?<![\w.)-])[-+])?
    (?P<currency>(?:US)?\$|[€£¥₹])?\s?
    (?P<sign>(?<![\w.)-])[-+])?
    (?:(?P<clock>\d{{1,2}}:[0-5]\d)(?!:?\d)
      |(?:(?P<whole>\d{{1,3}})\s+)?(?P<over>{_DIGITS})\s?/\s?(?P<under>[1-9]\d{{0,299}})(?![\d/])
      |(?P<european>\d{{1,3}}(?:\.\d{{3}}){{1,99}},{_DIGITS}|\d{{1,3}}(?:\.\d{{3}}){{2,99}}|(?<![\[({{,\d])(?<!,\s)0,{_DIGITS})(?![\d,.]?\d)
      |10\^\{{?(?P<ten>[-+]?\d{{1,3}})\}}?
      |(?P<plain>\d{{1,3}}(?:,\d{{3}}){{1,99}}(?!\d)(?:\.{_DIGITS})?|{_DIGITS}(?:\.{_DIGITS})?(?:[eE][-+]?\d{{1,3}}(?!\d))?)(?!\.\d|\d|\s?\^|\*\*|[eE][-+]?\d)
       (?:\s?[×x·*]\s?10\^\{{?(?P<power>[-+]?\d{{1,3}})\}}?)?
      )
    (?:\s?(?P<multiple>dozen|hundred|thousand|million|billion|trillion|百万|千万|万亿|百(?!分)|千(?![克米瓦伏卡帕焦])|万|亿)(?![a-z]))?
    (?P<unit>\s?(?:[%‰¢]|[€£$₹](?!\d)|°\s?[CFcf]\b
      |(?:{HAN_UNITS})(?:\^[23])?(?:/(?:{HAN_UNITS})(?:\^[23])?)?
      |[a-zA-ZµΩ]+(?:\^?[23](?!\d))?(?:/[a-zA-Z]+(?:\^?[23](?!\d))?)?))?""",
    re.VERBOSE,
)


def _find_numbers(text: str) -> Iterator[re.Match[str]]:
    """Yield the numbers of a text; only places near a digit are searched."""
    at = 0
    while digit := _DIGIT.search(text, at):
        starts = range(max(at, digit.start() - _LONGEST_SIGN), digit.end())
        found = next(filter(None, (_NUMBER.match(text, start) for start in starts)), None)
        at = found.end() if found else digit.end()
        if found:
            yield found


def _quantity(found: re.Match[str]) -> Quantity:
    word = (found["unit"] or "").replace(" ", "").strip()
    if clock := found["clock"]:
        hours, minutes = map(int, clock.split(":"))
        return Quantity(_minutes(hours, minutes, word), "clock", word, found.start(), found.end())
    half_day = word.casefold()
    value = _value(found)
    if half_day in ("am", "pm") and value.denominator == 1 and 0 < value <= 12:
        return Quantity(_minutes(int(value), 0, word), "clock", word, found.start(), found.end())
    currency = (found["currency"] or "").removeprefix("US")
    if currency == "$" and word.casefold() in ("cents", "cent"):
        currency = ""
    is_decade = word == "s" and re.fullmatch(r"\d\d\d0s", found[0].strip())  # the s of 1980s is not a second
    unit = find_unit(currency or ("decade" if is_decade else word))
    end = found.end() if unit or not word else found.start("unit")
    return Quantity(value, unit.name if unit else "", word, found.start(), end)


def _value(found: re.Match[str]) -> Fraction:
    if found["over"]:
        value = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"] or 0)
    elif found["ten"]:
        value = Fraction(10) ** int(found["ten"])
    elif european := found["european"]:
        value = Fraction(european.replace(".", "").replace(",", "."))
    else:
        value = Fraction(found["plain"].replace(",", ""))
        if found["power"]:
            value *= Fraction(10) ** int(found["power"])
    if multiple := found["multiple"]:
        value *= _MULTIPLES[multiple]
    return -value if "-" in (found["sign"], found["before"]) else value


def _minutes(hours: int, minutes: int, half_day: str) -> Fraction:
    """Return the minutes since midnight of a time with an optional am or pm."""
    if half_day.casefold() in ("am", "pm") and hours <= 12:
        hours = hours % 12 + (12 if half_day.casefold() == "pm" else 0)
    return Fraction(60 * hours + minutes)


def _date(found: re.Match[str]) -> str:
    """Write a Chinese date of numerals, such as 二〇二一年三月三日, in digits."""
    year = "".join(str(_CHINESE_DIGITS[digit]) for digit in found["year"])
    parts = ((found["month"], "月"), (found["day"], "日"))
    return f"{year}年" + "".join(f"{chinese_number(part)}{sign}" for part, sign in parts if part)


def _clock(found: re.Match[str]) -> str:
    """Write a Chinese time of day as HH:MM; "3点" alone stays, because it can mean three points."""
    if not (found["half"] or found["min"] or found["word"]):
        return found[0]
    hours, minutes = int(found["hour"]), int(found["min"] or 0)
    if hours > 24 or minutes > 59:
        return found[0]
    minutes = {"半": 30, "一刻": 15}.get(found["word"] or "", minutes)
    later = (found["half"] in ("下午", "傍晚", "晚上") and hours < 12) or (found["half"] == "中午" and hours < 6)
    return f" {hours + 12 * later:02}:{minutes:02} "


def _half_hours(found: re.Match[str]) -> str:
    """Write 半小时 and 两个半小时 with a decimal."""
    whole = found[1] or "0"
    return f"{whole if whole.isdecimal() else chinese_number(whole)}.5"


def _mixed(found: re.Match[str]) -> str:
    """Write digits with Chinese scales as one number, if each scale is below the one before."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([亿万千百]?)", found[0])
    scales = [_CHINESE_SCALES.get(scale, 1) for _, scale in parts]
    if len(parts) < 2 or scales != sorted(set(scales), reverse=True):
        return found[0]
    return exact_text(
        sum((Fraction(number) * scale for (number, _), scale in zip(parts, scales, strict=True)), Fraction())
    )


def _fraction(over: str, under: str) -> str:
    if under == "百":
        return f" {chinese_number(over)}% "
    return f" {chinese_number(over)}/{chinese_number(under)} "


def _digits(found: re.Match[str]) -> str:
    if found["half"]:
        return "1/2"
    if one := found["one"]:
        many = {"dozen": 12, **_SCALE}.get(one.casefold())
        return str(many) if many else f"1/{_PARTS[one.casefold()]}"
    value = _spelled_value(re.split(r"[\s-]+", found["whole"].casefold()))
    if found["and"]:
        return f"{value} 1/2"
    if part := found["part"]:
        part = part.casefold().replace("halves", "half").removesuffix("s")
        return f"{value}/{_PARTS[part]}"
    return str(value)


def _spelled_value(words: list[str]) -> int:
    total = section = 0
    for word in words:
        if word in _SMALL:
            section += _SMALL[word]
        elif word == "hundred":
            section = (section or 1) * 100
        elif word in _SCALE:
            total += (section or 1) * _SCALE[word]
            section = 0
    return total + section
