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
from qubic_lab.consensus.words import both_ends, is_chinese, stem, without_places, word_set, words

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
    text = text.strip()[:_LONGEST_OPENING]
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
_HAN_END = r"(?=\s*(?:[，。；！,.!;]|$))"
_NO = re.compile(
    rf"""\W*(?:no{_END}|nope\b|(?:{_IT_IS}\s+)?(?:{_WRONG}){_END}|{_IT_IS}n't\s+(?:{_TRUE}){_END}
    |(?:不是的?|不对|不正确|不可以|不能|不会|不需要|不行|不应该|没有|错误?的?|否|并非如此|不){_HAN_END})""",
    re.IGNORECASE | re.VERBOSE,
)
_YES = re.compile(
    rf"""\W*(?:yes{_END}|yep\b|(?:{_IT_IS}\s+)?(?:{_TRUE}){_END}
    |(?:是的?|对的?|正确的?|没错|可以的?|能|会的?|需要|行|应该|有|当然(?:是|可以|能|会)?){_HAN_END})""",
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
        for found in _HAN_WORD.findall(text):
            pair, turn = _HAN_PAIRS[found]
            content.append(pair)
            sign *= turn
        text, negations = _HAN_NEGATION.subn("", _HAN_WORD.sub("", text))
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
    return _polarity(word) or (stem(word), 1)


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


# --- Words with an opposite; only pairs that rules can use safely

# Pairs are separated by semicolons; words before the bar have sign +, words after it sign -.
_ENGLISH = """
increase rise rose risen grow grew gain climb | decrease fall fell fallen drop shrink shrank decline reduce;
expand | contract; improve | worsen; advance | retreat;
high higher highest more most greater above over exceed up upper | low lower lowest less fewer least below under down;
maximum | minimum; large larger largest big bigger | small smaller smallest;
before earlier earliest | after later latest; first | last; begin start began begun | end stop finish;
true correct valid accurate | false incorrect invalid inaccurate wrong untrue; possible able | impossible unable;
necessary | unnecessary; likely probable | unlikely improbable; safe harmless | unsafe dangerous harmful;
legal lawful allowed allow permit permitted | illegal unlawful forbid forbidden prohibit prohibited banned;
hot hotter warm warmer | cold colder cool cooler; fast faster quick quicker quickly | slow slower slowly;
open | closed close; win won | lose lost; profit | loss; early | late; alive living | dead extinct;
positive | negative; north northern | south southern; east eastern | west western; left | right; all every | some;
contain include | exclude lack; attract | repel; absorb | emit; endothermic | exothermic;
heavy heavier | light lighter; old older | young younger new newer; long longer tall taller | short shorter;
deep deeper | shallow shallower; wide wider | narrow narrower; thick thicker | thin thinner;
strong stronger strengthen | weak weaker weaken; rich richer | poor poorer; easy easier | difficult hard harder;
cheap cheaper cheapest | expensive dearer dearest;
good better best beneficial healthy helpful | bad worse worst unhealthy; love | hate;
accept approve support favour favor agree pass | reject oppose disagree refuse; enable | disable;
succeed success successful | fail failure unsuccessful; import | export; odd | even; prime | composite;
convex | concave; mutable changeable | immutable unchangeable; synchronous | asynchronous; stable | unstable;
dominant | recessive; ascending | descending; inside | outside; acidic acid | alkaline basic; visible | invisible;
complete | incomplete; reversible | irreversible; rational | irrational; linear | nonlinear; active | inactive;
soluble | insoluble; finite limited | infinite unlimited; dependent | independent;
equal same identical | unequal different; nocturnal | diurnal; sharp sharper | blunt blunter; full | empty; wet | dry;
public | private; hollow | solid
"""
_CHINESE = """
增加 增大 增长 上升 升高 提高 变大 变多 变快 变高 膨胀 上涨 | 减少 减小 下降 降低 变小 变少 变慢 变低 收缩 下跌;
改善 | 恶化; 增强 | 减弱; 加快 | 减慢; 前进 | 后退; 大于 高于 多于 超过 快于 早于 | 小于 低于 少于 不到 慢于 晚于;
高 | 低 矮; 大 | 小; 多 | 少; 快 | 慢; 长 | 短; 厚 | 薄; 早 之前 以前 | 晚 之后 以后; 正确 对 真 | 错误 错 假;
相同 一样 相等 | 不同 不一样 不等; 可能 | 不可能; 安全 无害 | 危险 有害; 合法 允许 | 非法 禁止 违法; 热 | 冷;
开始 | 结束; 赢 胜利 获胜 | 输 失败 落败; 正数 阳性 | 负数 阴性; 顺时针 | 逆时针; 左 | 右; 东 | 西; 南 | 北;
吸热 | 放热; 吸收 | 释放 放出; 吸引 | 排斥; 重 | 轻; 有利 有益 好 | 不利 坏 差; 支持 赞成 同意 | 反对;
必须 必要 | 不必 无需 不必要; 奇数 | 偶数; 质数 素数 | 合数; 酸性 | 碱性; 有理数 | 无理数; 便宜 | 贵;
容易 简单 | 困难 难; 打开 | 关闭; 全部 所有 | 部分; 可变 | 不可变; 稳定 | 不稳定; 有限 | 无限; 内 | 外
"""

Polarity = tuple[str, int]
"""A pair's name and the sign 1 or -1."""


def _polarities(table: str) -> Iterator[tuple[str, Polarity]]:
    for pair in table.split(";"):
        positive, negative = (side.split() for side in pair.split("|"))
        for sign, side in ((1, positive), (-1, negative)):
            yield from ((word, (f"#{positive[0]}", sign)) for word in side)


_HAN_PAIRS = dict(_polarities(_CHINESE))
_HAN_WORD = re.compile("|".join(sorted(_HAN_PAIRS, key=len, reverse=True)))
_ENGLISH_WORDS = dict(_polarities(_ENGLISH))
_SHORTEST_STEM = 4
_ENGLISH_STEMS = {stem(word): found for word, found in _ENGLISH_WORDS.items() if len(word) >= _SHORTEST_STEM}


def _polarity(word: str) -> Polarity | None:
    """Return the pair and sign of a lowercase English word in any inflection, or None."""
    return _ENGLISH_WORDS.get(word) or _ENGLISH_STEMS.get(stem(word))


def polarities(text: str) -> frozenset[str]:
    """Return the signed pairs of a text's words: +increase for "rose", -increase for "fell"."""
    found = [_HAN_PAIRS[word] for word in _HAN_WORD.findall(text)] if is_chinese(text) else []
    found += [each for word in words(text) if (each := _polarity(word))]
    return frozenset(f"{'+' if sign > 0 else '-'}{pair[1:]}" for pair, sign in found)
