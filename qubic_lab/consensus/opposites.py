"""Words with an opposite, in English and Chinese, for `contradictions`; only pairs that rules can use safely."""

import re
from collections.abc import Iterator

from qubic_lab.consensus.words import is_chinese, stem, words

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


CHINESE = dict(_polarities(_CHINESE))
HAN_WORD = re.compile("|".join(sorted(CHINESE, key=len, reverse=True)))
_ENGLISH_WORDS = dict(_polarities(_ENGLISH))
_SHORTEST_STEM = 4
_ENGLISH_STEMS = {stem(word): found for word, found in _ENGLISH_WORDS.items() if len(word) >= _SHORTEST_STEM}


def polarity(word: str) -> Polarity | None:
    """Return the pair and sign of a lowercase English word in any inflection, or None."""
    return _ENGLISH_WORDS.get(word) or _ENGLISH_STEMS.get(stem(word))


def polarities(text: str) -> frozenset[str]:
    """Return the signed pairs of a text's words: +increase for "rose", -increase for "fell"."""
    found = [CHINESE[word] for word in HAN_WORD.findall(text)] if is_chinese(text) else []
    found += [each for word in words(text) if (each := polarity(word))]
    return frozenset(f"{'+' if sign > 0 else '-'}{pair[1:]}" for pair, sign in found)
