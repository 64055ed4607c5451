"""Reads the items that an answer in plain prose lists."""

import re
from fractions import Fraction
from functools import partial

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import SPAN, FinalAnswer, numbers_of
from qubic_lab.consensus.prose_names import FRAME, han_own, tag_of
from qubic_lab.consensus.prose_sentences import BRACKETS, MOST_WORDS, QUOTES, length, repeats, said_in
from qubic_lab.consensus.quantities import plain
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import is_chinese, simplified, words

_ITEM = re.compile(
    r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]*(?=\S)((?:[ \t]*+[^ \t\n])+?)"
    r"(?:[ \t]*[:：(（,，].*|[ \t]+[–—-][ \t].*|[.。])?[ \t]*$",
    re.MULTILINE,
)
_HAN_AND = r"(?<=[\u4e00-\u9fff\d])(?:以及|和|与|與|及)(?=[\u4e00-\u9fff\d])"
_SEPARATOR = re.compile(rf",\s*(?:and|or)\s+|[,，、;；&]\s*|(?<!\s)\s+(?:and|or|as\s+well\s+as)\s+|{_HAN_AND}")
_LEADING = re.compile(
    r"^.*(?:\b(?:are|is|were|include|includes|including|names?|called|example|such\s+as|like)\b"
    r"|(?-i:\b[a-z]+)\s(?:of|by|from|as|between)\b"
    r"|是指?|指(?!南)|[常般]指|[为有由]|推荐|包括|例如|比如|分[别別])\s*",
    re.I | re.S,
)
_LISTED_TO = re.compile(
    r"(?:[,，]\s*|(?<![\s,，])\s+)?\b(?:which|each|with|where|while|who|both|because|but\s(?:they|it))\b.*"
    r"|[都均][是为為属屬].*",
    re.I | re.S,
)
_COUNTED = re.compile(
    r"(?:这|這)?(?<![一二两兩三四五六七八九十\d])[一二两兩三四五六七八九十\d]+[个個种種大项項天].*|等.*|的$"
)


def read_list(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the items in the order of the text if they are numbers, else sorted; best as many as requested."""
    lists = [("", _ITEM.findall(text)), *((each, _inline_items(each, form)) for each in said_in(text))]
    lists = [each for n, each in enumerate(lists) if n < 2 or repeats(each[0], form)]
    items = max(
        lists, key=lambda each: ((Fraction(len(each[1])), "") in form.numbers, len(each[1]), repeats(each[0], form))
    )[1]
    are_more = any((Fraction(n), "") in form.numbers for n in range(2, len(items))) and not items[0].isdecimal()
    are_items = all(length(item) <= MOST_WORDS and FRAME.isdisjoint(words(item)) for item in items)
    are_few = (
        len(items) == 2 and not items[0].isdecimal() and any((Fraction(n), "") in form.numbers for n in range(3, 10))
    )
    if len(items) < 2 or are_more or are_few or not are_items:
        return None
    if found := [each for item in items for each in numbers_of(plain(item))]:
        return readers.several_numbers(found, ", ".join(items)) if len(found) == len(items) else None
    return FinalAnswer(SPAN, "; ".join(sorted(" ".join(words(item)) for item in items)), ", ".join(items))


def _item(text: str, form: QuestionForm, is_first: bool) -> str:
    """Return an item without the words that lead to it: an article, the question's, a verb before a name."""
    said = text.split()
    tags = [tag_of(word, form) for word in said]
    leads = [n for n, tag in enumerate(tags) if tag in "bvqx" and all(each in "XQojf" for each in tags[n + 1 :])]
    start = leads[-1] + 1 if is_first and leads and tags[-1] in "XQ" else 0
    if is_first and not start and (led := re.match(r"f*Q+[qx](?=[xXf])", "".join(tags))):
        start = led.end()
    if not start:
        start = next((n for n, tag in enumerate(tags) if tag not in ("fbvqplr" if is_first else "fq")), len(said))
    end = next((n for n, tag in enumerate(tags) if n > start and tag in "pl" and tags[n - 1] in "XQ"), len(said))
    return " ".join(said[start:end] or said[len(said) > 1 and len(said) :])


def _inline_items(sentence: str, form: QuestionForm) -> list[str]:
    """Return the items of an enumeration such as "The colours are red, green and blue.", else nothing."""
    sentence = simplified(sentence)
    text = QUOTES.sub("", BRACKETS.sub("", sentence.replace("》《", "、").replace("：", ":")))
    shorter, text = (each.strip(" .。!！").rpartition(":")[2] for each in (_LISTED_TO.sub("", text), text))
    parts = [re.sub(r"^.*\b(?:are|were)\s", "", each) for each in (shorter, text)]
    text = next(filter(_SEPARATOR.search, map(partial(_LISTED_TO.sub, ""), parts)), shorter)
    if (sign := text.find("、")) > 0:  # only the clause with such a comma
        text = re.split(r"[，,;；]", text[:sign])[-1] + re.split(r"[，,;；]", text[sign:])[0]
    first, *others = _SEPARATOR.split(text)
    items = [_item(each, form, n == 0) for n, each in enumerate((_LEADING.sub("", first), *others))]
    items = [each for each in items if each]
    if len(items) < 2:
        return []
    if is_chinese(text):
        own = re.escape("".join(han_own(form)))
        items[0] = re.sub(rf"^[{own}]{{2,}}(?=.)", "", items[0])
        ending = _COUNTED.sub("", items[-1])
        items[-1] = re.sub(rf"(?<=.)(?:(?<={items[0][-1]})|(?!{items[0][-1]}))[{own}]{{2,}}$", "", ending)
    else:
        last = items[-1].split()
        known = (
            n
            for n, word in enumerate(last)
            if n and tag_of(word, form) not in ("xXjo" if word.endswith("s") else "xXjoQ")
        )
        items[-1] = " ".join(last[: next(known, None)])
    return items if all(0 < length(item) <= MOST_WORDS - 1 for item in items) else []
