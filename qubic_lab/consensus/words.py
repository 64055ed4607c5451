"""The words of a text, in English and Chinese, and their opposites; each Chinese character is a word."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

MOST_READ = 8_000
"""Characters read from the beginning of a text, and as many from its end."""
FILLERS = {"the", "a", "an", "and"}
NEGATIONS = {"not", "isn't", "never", "nor", "cannot", "不", "没", "非"}
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+(?:'[^\W\u4e00-\u9fff]+)?")
_SIGN = re.compile(
    r"""[^\w\s.,;:!?'"()\[\]{}…“”‘’„«»、。，；：！？（）《》·—–-]|(?<!\w)-(?=\d)|(?<=[A-Za-z])-(?![\w-])"""
)
"""Signs that are more than punctuation: C, C++ and C# differ, and so do A and A-."""
_ASCII_SIGN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f#$%&*+/<=>@\\^`|~-]")
"""The signs an ASCII text can have: a faster test, since most texts have none."""
_EMPHASIS = re.compile(r"(?<!\w)\*\*(?=\S)(.{1,400}?)(?<=\S)\*\*(?!\w)")
_SHORTEST_STEM = 3
_PAIRS = """
萬万 億亿 兩两 時时 鐘钟 個个 點点 週周 歲岁 選选 項项 負负 圓圆 塊块 噸吨 釐厘 紀纪 頃顷 歐欧 鎊镑 攝摄 華华 對对 錯错
沒没 應应 該该 為为 總总 誰谁 麼么 嗎吗 過过 於于 減减 價价 錢钱 數数 還还 間间 長长 遠远 寬宽 積积 體体 結结 計计 幾几
問问 題题 確确 認认 無无 會会 從从 這这 與与 讓让 說说 話话 請请 們们 來来 現现 開开 關关 門门 電电 國国 學学 號号 員员
張张 輛辆 種种 顆颗 層层 頁页 條条 雙双 隻只 陽阳 陰阴 東东 風风 氣气 氫氢 氬氩 銅铜 鐵铁 銀银 鋁铝 機机 車车 馬马 魚鱼
鳥鸟 龍龙 漢汉 書书 畫画 發发 熱热 輕轻 難难 簡简 單单 雜杂 質质 顯显 見见 聽听 讀读 寫写 買买 賣卖 貴贵 贏赢 輸输 勝胜
敗败 極极 標标 準准 動动 靜静 內内 階阶 級级 線线 邊边 雖虽 當当 壓压 縮缩 縱纵 橫横 變变 漲涨 進进 運运 達达 遲迟 連连
適适 領领 預预 類类 願愿 離离 雲云 頭头 飛飞 驗验 齊齐 醫医 樣样 樹树 橋桥 歷历 歡欢 滅灭 溫温 測测 滿满 濕湿 獲获 獎奖
產产 異异 監监 盤盘 眾众 禮礼 稅税 穩稳 窮穷 筆笔 節节 範范 築筑 糧粮 細细 統统 絕绝 給给 維维 練练 繼继 續续 網网 緊紧
績绩 編编 義义 習习 聖圣 聯联 職职 脫脱 臺台 舉举 舊旧 藝艺 藥药 處处 術术 衛卫 裡里 補补 規规 視视 覺觉 觀观 訂订 記记
許许 設设 試试 詞词 詳详 誤误 調调 談谈 論论 證证 識识 議议 護护 豐丰 資资 費费 賽赛 贊赞 軍军 較较 轉转 農农 遊游 鄉乡
釋释 針针 鎮镇 鏡镜 陸陆 隊队 際际 險险 隨随 雞鸡 靈灵 頓顿 顧顾 飯饭 館馆 驚惊 黃黄 黨党 齡龄 歸归 廣广 廠厂 頂顶 須须
組组 順顺 顏颜 餘余 闊阔 陳陈 島岛 帶带 幣币 強强 後后 實实 並并 區区 縣县 屬属 羅罗 爾尔 蘭兰 爺爷 達达 萊莱 營营 銳锐
牠它 亞亚 歷历 徑径 師师 導导 據据 獨独 執执 靠靠 擊击 創创 劃划 劇剧 勢势 協协 厲厉 參参 吳吴 喬乔 壯壮 夢梦 奪夺 孫孙
寧宁 寶宝 將将 屆届 岡冈 彥彦 徹彻 愛爱 慶庆 戰战 戲戏 擁拥 擴扩 擇择 晉晋 曉晓 劉刘 楊杨 澤泽 濟济 灣湾 燈灯 爭争 狀状
獅狮 環环 瑪玛 療疗 盡尽 碼码 稱称 竊窃 籃篮 純纯 紅红 終终 綠绿 緯纬 羣群 蓋盖 蕭萧 藍蓝 蘇苏 蘋苹 蟲虫 訊讯 詩诗 該该
諾诺 謂谓 謎谜 豬猪 貓猫 貝贝 負负 貨货 質质 趙赵 躍跃 鄭郑 鄧邓 釣钓 鋼钢 錄录 鏈链 閱阅 陣阵 韓韩 響响 頻频 顛颠 騎骑
駱骆 髮发 鬆松 鮮鲜 鯨鲸 鴨鸭 鷹鹰 麗丽 麥麦 齒齿
"""
SIMPLIFIED = {ord(pair[0]): pair[1] for pair in _PAIRS.split()}
"""Traditional characters that occur in numbers, units, questions and verdicts, and their simplified forms."""


def simplified(text: str) -> str:
    """Return a text with the traditional characters of SIMPLIFIED in simplified form; places stay the same."""
    return text if text.isascii() else text.translate(SIMPLIFIED)


def words(text: str) -> list[str]:
    """Return the words in lower case, without accents, signs and fillers."""
    text = text.casefold()
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", simplified(text.replace("’", "'")))
        text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return [word for word in _WORD.findall(text) if word not in FILLERS]


def has_signs(text: str) -> bool:
    """Return whether a text has meaningful signs that `words` leaves out."""
    return bool(_signs(text))


def words_and_signs(text: str) -> str:
    """Return a text in lower case without punctuation, but with all signs; equal texts give equal results."""
    return " ".join([*words(text), *_signs(text)])


def without_emphasis(text: str) -> str:
    """Return a text without Markdown's bold asterisks; those of powers stay."""
    return _EMPHASIS.sub(r"\1", text) if "**" in text else text


def word_set(listed: str) -> frozenset[str]:
    """Return the words of a list separated by spaces."""
    return frozenset(listed.split())


@lru_cache(1 << 14)
def stem(word: str) -> str:
    """Return the rough stem of a lowercase word: walk, walks, walked and walking share one."""
    if word.endswith("ies") and len(word) >= _SHORTEST_STEM + len("ies"):
        return word[: -len("ies")] + "y"
    for ending in ("ing", "ed", "es", "s"):
        if (
            word.endswith(ending)
            and not word.endswith(("ss", "us", "is"))
            and len(word) >= _SHORTEST_STEM + len(ending)
        ):
            word = word.removesuffix(ending)
            if word[-1] == word[-2] not in "aeiouls":  # planned
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > _SHORTEST_STEM else word


def places(wanted: Sequence[str], said: Sequence[str]) -> list[int]:
    """Return the indices at which the words `wanted` begin among those said, without a negation right before them."""
    return [
        place
        for place in range(len(said) - len(wanted) + 1)
        if wanted
        and list(said[place : place + len(wanted)]) == list(wanted)
        and not (place and said[place - 1] in NEGATIONS)
    ]


def without_places(text: str, taken: Iterable[tuple[int, int]]) -> str:
    """Return a text with each of the given stretches, in order, replaced by a space."""
    rest, at = [], 0
    for start, end in taken:
        rest.append(text[at:start])
        at = end
    return " ".join([*rest, text[at:]])


def is_chinese(text: str) -> bool:
    """Return whether a text has Chinese characters."""
    return not text.isascii() and re.search(r"[\u4e00-\u9fff]", text) is not None


def _signs(text: str) -> list[str]:
    return [] if text.isascii() and not _ASCII_SIGN.search(text) else _SIGN.findall(text)


def both_ends(text: str) -> str:
    """Return a text without its middle if it is longer than twice MOST_READ, which bounds the reading time."""
    return text if len(text) <= 2 * MOST_READ else f"{text[:MOST_READ]}\n{text[-MOST_READ:]}"


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
public | private; hollow | solid; nearer closer closest | farther farthest
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


HAN_OPPOSITES = dict(_polarities(_CHINESE))
HAN_OPPOSITE = re.compile("|".join(sorted(HAN_OPPOSITES, key=len, reverse=True)))
_ENGLISH_WORDS = dict(_polarities(_ENGLISH))
_SHORTEST_OPPOSITE = 4
_ENGLISH_STEMS = {stem(word): found for word, found in _ENGLISH_WORDS.items() if len(word) >= _SHORTEST_OPPOSITE}


def polarity(word: str) -> Polarity | None:
    """Return the pair and sign of a lowercase English word in any inflection, or None."""
    return _ENGLISH_WORDS.get(word) or _ENGLISH_STEMS.get(stem(word))


def polarities(text: str) -> frozenset[str]:
    """Return the signed pairs of a text's words: +increase for "rose", -increase for "fell"."""
    text = simplified(text)
    found = [HAN_OPPOSITES[word] for word in HAN_OPPOSITE.findall(text)] if is_chinese(text) else []
    found += [each for word in words(text) if (each := polarity(word))]
    return frozenset(f"{'+' if sign > 0 else '-'}{pair[1:]}" for pair, sign in found)
