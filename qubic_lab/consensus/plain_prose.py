"""Reads what an answer in plain prose, without a mark, states: yes or no, a number, a list or a name.

The question decides which rule reads. The rules prefer to read nothing than something else: questions, refusals,
denials and opinions of others state no answer, and two different statements neither.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import CHOICE, NUMBER, SPAN, FinalAnswer, numbers_of
from qubic_lab.consensus.conclusions import LONGEST, SO, sentences
from qubic_lab.consensus.contradictions import verdict
from qubic_lab.consensus.quantities import Quantity, plain, spelled_out
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import HAN_OPPOSITES, is_chinese, polarity, simplified, stem, word_set, words

MOST_WORDS = 4
"""Words of a name or an item."""
MOST_LOWER = 2
"""Words of a name in lower case."""
SHORTEST_SENTENCE = 3
"""Texts of so few words may be a reply as a whole."""
MOST_ADDED = 5
"""Words beside the question's in a sentence that says yes or no by repeating the question."""
MOST_SENTENCES = 3
"""Sentences from the beginning that are searched for a verdict or a name."""
NEAR = 30
"""Characters before a number that are searched for what it is."""

_NO_STATEMENT = re.compile(
    r"[?？][^\w?？]*$|^(?:sure|certainly|of\s+course|okay?|great|good|awesome|excellent|fantastic|wow|aww|hello|hi|what|好的|[您你]好|当然)(?![a-z])[^.,，。]{0,30}[!！.。:：]$"
    r"|^(?:this|that|it)(?:'s|\s+is)\s+an?\s.{0,30}\b(?:question|one|puzzle|riddle|problem)\b|^i(?:'m|\s+am)\s+(?:happy|glad)"
    r"|(?<!\bbut\s)\bi(?:'m|\s+am)\s+(?:\w+\s+)?(?:sorry|unable|afraid)\b|\bi(?:'m|\s+am)\s+not\s+(?:\w+\s+)?(?:sure|able)\b"
    r"|\bi\s+(?:can't|cannot|don't\s+(?:have|know))\b|\b(?:not|n't)\s+(?:say|said|known?|given|tell)\b|\bunknown\b"
    r"|抱歉|[对對]不起|[无無]法.{0,4}(?:得知|[预預][测測]|知道|回答|确定)|(?:不|[没沒]有)(?:知道|清楚|[办辦]法)",
    re.IGNORECASE,
)
"""Questions, exclamations, refusals and doubts."""
_HEDGE = re.compile(
    r",?(?<!\s)\s+(?:i\s(?:believe|think|guess|suppose)|of\scourse|(?:strictly|generally|technically)\sspeaking"
    r"|if\si(?:'m|\sam)\snot\smistaken|as\sfar\sas\si\sknow)(?=[.!\n]|$)",
    re.IGNORECASE,
)
"""What may follow an answer and adds nothing."""
_MARKER = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]+(?=\S)", re.MULTILINE)
_CLAUSE_LIKE = re.compile(
    r"\W*(?:you|they|we|i|he|she|it|this|that|there|both|neither|everyone|nobody)(?:'\w+)?\s(?!(?:is|was|are|were)\b)\w",
    re.IGNORECASE,
)
"""A text that has a verb of its own is no name."""
_CORRECTS = re.compile(r"(?:however|but|actually|in\s+fact|wait|sorry|no)\b|但|其实|不对", re.IGNORECASE)
_BRACKETS = re.compile(r"(?:(?<!\s)\s+|(?<=[^\x00-\x7f]))\([^()]*\)|（[^（）]*）")
_QUOTES = re.compile(r"[\"“”「」『』《》]|(?<!\w)['‘]|['’](?!\w)")
_COMPARED = re.compile(
    r"(\b(?:than|before|after|unlike|rather|instead)\b|,\s*not\b|\bbut\s+not\b|比(?!较)|而不是)", re.IGNORECASE
)
_CLAUSE = re.compile(r"[,;:，；：。]\s*|(?<!\s)\s+[—–-]+\s+")
_DENIED = re.compile(
    r"\bnon-|\b(?:not|never|nor|neither|cannot|unable|incapable|impossible|no)\b|n't\b|不(?![过但仅])|没(?!错)|[无無]法|并非|否",
    re.IGNORECASE,
)

_NO_REPLY = re.compile(rf"{_DENIED.pattern}|^(?:however|but)\b|\b(?:nobody|nothing)\b", re.IGNORECASE)


def read_plain(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the answer of a text without emphasis to a question of one of these forms, without letters; else None."""
    if form.options:
        return None
    if form.alternatives:
        return _read_alternative(text, form)
    if form.asks_list:
        return _read_list(text, form)
    if form.kind == CHOICE:
        return _read_verdict(_said(text), form, verdict(next(iter(sentences(text)), "")))
    if form.kind == NUMBER:
        return _read_number(_said(text), form)
    return _read_name(_said(text), form) if form.asks_name and "=" not in text else None


def _read_alternative(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the one of two things to choose that sentences prefer: the first in "A is larger than B"."""
    names = {name: name.split() for name in form.alternatives}
    chosen: dict[str, str] = {}
    for sentence in sentences(text)[:MOST_SENTENCES]:
        main, relation, rest = (*_COMPARED.split(sentence, maxsplit=1), "", "")[:3]
        named = [readers.named(part, names) for part in (main, rest)]
        is_turned = form.is_reversed_by(sentence) or (relation == "after" and "first" in form.words)
        if is_turned and len(named[0]) == 1 and not named[1]:
            named[1] = [*form.alternatives - {*named[0]}]
        if len(named[0]) > 1:
            parts = sorted(_CLAUSE.split(main), key=lambda part: _hits(part, form))
            named[0] = readers.named(parts[-1], names) if _hits(parts[-1], form) > _hits(parts[-2], form) else named[0]
        if len(said := named[is_turned]) == 1 and not _NO_STATEMENT.search(sentence.rstrip("!！")):
            chosen[said[0]] = sentence
    return FinalAnswer(CHOICE, *chosen.popitem()) if len(chosen) == 1 else None


def may_be(kind: str, text: str, form: QuestionForm) -> bool:
    """Return whether a part of a text may answer the question as this kind, though `read_plain` finds nothing."""
    if form.options or form.alternatives:
        return bool(form.options) or kind == CHOICE
    if form.kind == NUMBER:
        return kind not in (NUMBER, SPAN)
    if form.kind == CHOICE or form.asks_list:
        return False
    if kind == SPAN and _CLAUSE_LIKE.match(text):
        return False
    is_open = not (form.asks_name or (form.asks_what and kind == SPAN))
    return is_open or kind == CHOICE or (_length(text) <= SHORTEST_SENTENCE and not _NO_REPLY.search(text))


def _said(text: str) -> list[str]:
    """Return the sentences that may state the answer: no long one, no chatter, question or refusal."""
    text = _HEDGE.sub("", _MARKER.sub("", text))
    return [each for each in sentences(text) if len(each) <= LONGEST and not _NO_STATEMENT.search(each)]


def _agreed(found: Sequence[tuple[str, FinalAnswer]], form: QuestionForm) -> FinalAnswer | None:
    """Return the first answer, unless a sentence that repeats as much of the question as any gives another one."""
    hits = [_hits(sentence, form) for sentence, _ in found]
    counts = [not n or hit == max(hits) or _CORRECTS.match(found[n][0]) for n, hit in enumerate(hits)]
    said = {answer.key for is_counted, (_, answer) in zip(counts, found, strict=True) if is_counted}
    return found[0][1] if len(said) == 1 else None


def _hits(text: str, form: QuestionForm) -> float:
    """Return how many of the question's words a text has; a number counts as half."""
    said = {stem(word.removesuffix("'s")) for word in words(text)}
    return sum(0.5 if word.isdecimal() else 1.0 for word in form.content if word in said)


def _length(text: str) -> float:
    return sum(0.5 if is_chinese(word) else 1.0 for word in words(text))


# --- Yes or no

_TOLD = re.compile(
    r"(?:(?:so|but|and|then|therefore|hence|thus|well)\s+)*"
    r"(?:(?:i(?:'d|\s+would|\s+must)?\s+(?:say|answer)|(?:the|my)\s+(?:\w+\s+)?answer\b.{0,40}?\bis)\s+)?"
    r"(?:其实|当然|绝对|千万|最好|严格来说|一般来说|一般|通常|理论上|所以|因此|我认为|答案|应该|恐怕)*是?"
    r"(?:yes|yep|肯定的|(?P<no>nope|no(?:\s+way)?|i\s+(?:do\s+not|don't)\s+think\s+so|not\s+(?:really|entirely|at\s+all|quite|exactly|always|necessarily|(?:all|every|each)(?:\s+of\s+\w+)?|even\s+close)"
    r"|(?:不是|不能|不会|不行|不要|不算|不宜|不建议|不可以|不可能|否定)的?[喔哦啊呢啦]?))\W*$"
    r"|(?:it|he|she|they|we|you|i|that|this|there)\s(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have)"
    r"(?P<denied>\s?not|n?'t)?\W*$"
    r"|(?P<refuted>(?:it|that|this)(?:(?:'s|\sis)\snot|\sisn't)\s(?:recommended|advisable|possible|allowed|permitted|safe|true"
    r"|correct|legal|necessary|required)\W*$|(?:it|that|this)(?:'s|\sis)\s(?:\w+\s)?an?\s(?:\w+\s)?(?:myth|misconception)\W*$)"
    r"|(?P<never>(?:it|he|she|they|we|you|i)\snever\s(?:is|are|was|were|do|does|did|can|will))\W*$"
    r"|(?P<forbidden>(?:please\s)?(?:never|do(?:\s?not|n't)(?:\sever)?)(?:\sdo\s(?:it|so|that|this))?\W*$)",
    re.IGNORECASE,
)
_TO_REASONS = re.compile(
    r"(?:(?<!\s)\s+)?(?:\b(?:because|since|although|though|while|whereas|which|who|but|except)\b|,\s*with\b|[;:；：]"
    r"|[，,]?(?:因为|而是|除非)).*",
    re.I | re.S,
)
_CONTRAST = re.compile(r"((?:,|\bbut|,\s*but|,\s*just|，?而|，)\s*(?:not\b|不是|不算|不属于|非))", re.IGNORECASE)
_UNSURE = re.compile(
    r"\b(?:whether|if|think|may|might|question|until|used\s+to|once)\b|[以认]为|是否|曾", re.IGNORECASE
)


def _read_verdict(said: Sequence[str], form: QuestionForm, opened: str) -> FinalAnswer | None:
    said = [_QUOTES.sub("", simplified(each)) for each in said]
    told = {"no" if any(no.groups()) else "yes" for s in said for c in _CLAUSE.split(s) if (no := _TOLD.match(c))}
    told |= {opened} - {""}
    told = told or {
        v for n, each in enumerate(said[:MOST_SENTENCES]) for v in _restated_with_contrast(each, form, n == 0) if v
    }
    return FinalAnswer(CHOICE, told.pop(), " ".join(said[:1])) if len(told) == 1 else None


def _restated_with_contrast(sentence: str, form: QuestionForm, may_reply: bool) -> tuple[str, ...]:
    """Return what a sentence says of the question, and what it says by a contrast: "a star, not a planet" is no."""
    main, contrast, other = (*_CONTRAST.split(sentence, maxsplit=1), "", "")[:3]
    added = {stem(word) for word in words(main)} - {*form.words, *_TAGS}
    tail = [stem(word) for word in words(_TO_REASONS.sub("", other))]
    is_denied = (
        contrast and form.content and form.content[-1] in tail and not any(_TAGS.get(w, "x") in "bv" for w in tail)
    )
    if is_denied and added:
        return ("no",)
    return _restated(main, form, may_reply), "no" if is_denied else ""


def _restated(sentence: str, form: QuestionForm, may_reply: bool) -> str:
    """Return yes or no if the main part has all content words of the question, or opposites, or only such words."""
    sentence = re.sub(
        r"^(?:(?:even\s)?though|although|despite|while|since|because)\b[^,]*,\s*", "", sentence, flags=re.IGNORECASE
    )
    part = _TO_REASONS.sub("", sentence)
    asked = dict(map(_key, form.content))
    signs = {key: sign for word in words(part) for key, sign in [_key(word.removesuffix("'s"))]}
    known = {*form.words, *_TAGS, *readers.HAN_FRAME}
    spoken = words(_DENIED.sub(" ", part))
    added = [
        (n, word) for n, word in enumerate(spoken) if not {word, stem(word)} & known and _key(word)[0] not in asked
    ]
    end = max((n for n, word in enumerate(spoken) if _key(word.removesuffix("'s"))[0] in asked), default=len(spoken))
    before = _length(" ".join(word for place, word in added if place < end))
    said = asked.keys() & signs.keys()
    is_reply = may_reply and not added and (len(said) > 1 or re.match(r"(?:it|they|s?he)\b", part, re.I))
    is_whole = len(said) == len(asked) and before <= MOST_ADDED
    is_turned = (
        before
        and len(said) > 1
        and not is_chinese(part)
        and [key for key in signs if key in asked][-1] == next(iter(asked))
    )
    is_taken_back = re.match(r"\W*but\s(?:it|they|s?he|this|that)\b.*?(?:\bnot\b|n't)", sentence[len(part) :], re.I)
    is_other = is_turned or is_taken_back or ("#all" in asked and "#all" not in said) or _UNSURE.search(part)
    is_pronoun = may_reply and not added and said and re.match(r"it\s?(?:is|was|'s)", part, re.I)
    if not asked or ([*asked][-1] not in said and not is_pronoun) or not (is_whole or is_reply) or is_other:
        return ""
    is_swapped = False
    if {"than", "比"} & form.words:  # gold is heavier than water: water is not heavier than gold
        last = -1 if is_chinese(part) and not [*asked][-1].startswith("#") else None
        compared = [key for key in asked if not key.startswith("#")][:last]
        others = [
            pair
            for pair in zip(compared, [key for key in signs if key in compared], strict=False)
            if pair[0] != pair[1]
        ]
        is_swapped = len(others) == 2 and others[0] == others[1][::-1]
        if (others and not is_swapped) or not {*compared} <= signs.keys():
            return ""
    clauses = _CLAUSE.split(part) if is_chinese(part) else [part]
    last = [each for each in clauses if form.content[-1] in words(each)] or [part]
    last = [each for each in last if _hits(each, form) == len(form.content)] or last
    denials = [len(_DENIED.findall(text)) for text in (last[-1], " ".join(form.content))]
    flips = abs(denials[0] - denials[1]) + sum(signs.get(key, sign) != sign for key, sign in asked.items()) + is_swapped
    return ("yes", "no")[flips % 2] if is_swapped else ("yes", "no", "")[min(flips, 2)]


_HAN_GRADES = frozenset("快慢大小高低多少长短重轻早晚厚薄贵热冷")


def _key(word: str) -> tuple[str, int]:
    """Return a word's stem, or its pair of opposites, and the side."""
    return polarity(word) or (HAN_OPPOSITES.get(word) if word in _HAN_GRADES else None) or (stem(word), 1)


# --- Numbers

_SAYS_SO = re.compile(r"\b(?:so|therefore|thus|hence|means\s+that)\b|所以|因此|于是|那么|一共|共有", re.IGNORECASE)
_BESIDE = re.compile(
    r"(?:[,，；;]\s*|(?<![\s,，；;])\s+)?(?:\b(?:making\sit|not|but|because|since|while|whereas|which|as\s+each)\b"
    r"|(?<=[,，；])(?:而|但|因为|不是)).*",
    re.I | re.S,
)
_DEFINED = re.compile(r"(?<![A-Za-z\\])[A-Za-z]\s*=(?!=)")
_COUNTS = re.compile(
    r"\b(?:is|are|was|were|has|have|equals?|totals?|(?:sum|add|come|amount)s?(?:\sup)?\sto|costs?|makes?|gives?|takes?|as|be)\b\W*(?:[a-z]+\W+)?$|'s\s*$"
    r"|[=:：是为有剩等于得]\s*$",
    re.IGNORECASE,
)
_COMES_TO = re.compile(r"\b(?:to|in|gets?|yields?)\s*$|^\W*$", re.IGNORECASE)
_ARITHMETIC = word_set("tim divid plus minu multiply twic half doubl squar cube root sum product differenc percent %")
_HAN_COUNTS = {*"是为有剩下等于到共"}
_PART = re.compile(r"[,，;；](?!\d)|\sand\s")
_DIMENSIONS = {"far": "length", "tall": "length", "high": "length", "weigh": "mass", "speed": "length/time"}
_LEAVES = re.compile(
    r"(?:\b(?:leav\w+|remain\w*|left\s+(?:\w+\s+)?with|now\s+has)|剩下?|还有)\W*(?:\w{1,30}\W+){0,2}$", re.IGNORECASE
)
_LEFT = re.compile(r"\W*(?:\w+\s){0,3}(?:left|remain\w*)\b", re.IGNORECASE)


def _read_number(said: Sequence[str], form: QuestionForm) -> FinalAnswer | None:
    """Return the number that a calculation comes to in the end, else the one that is stated."""
    found = [(sentence, *picked) for sentence in said if (picked := _pick(sentence, form))]
    pool = [(sentence, answer) for sentence, answer, is_sure in found if is_sure or not any(each[2] for each in found)]
    places = [place for place, each in enumerate(pool) if each[0] in said[-2:] and SO.match(each[0])]
    if _is_bare(form) and not places:
        pool = [each for each in pool if _hits(each[0], form)][:1] or pool
    elif places:
        told = pool[places[-1] :] + pool[:1] * (len(form.numbers) < 2 and pool[0][1].unit == pool[places[-1]][1].unit)
        return told[0][1] if len({answer.key for _, answer in told}) == 1 else None
    is_calculated = len(form.numbers) > 1 or any("=" in each for each in said)
    return _agreed(pool[-1:] if is_calculated else pool, form)


def _is_bare(form: QuestionForm) -> bool:
    """Return whether a question is only a calculation, such as 2 + 2."""
    others = [word for word in form.content if not word.isdecimal()]
    return len(others) < len(form.content) and _ARITHMETIC.issuperset(others)


def _pick(sentence: str, form: QuestionForm) -> tuple[FinalAnswer, bool] | None:
    """Return the number that a sentence gives, and whether it is more than one of the question's numbers."""
    if _DEFINED.search(sentence):
        answer = readers.read_quantity(sentence, form)
        return (answer, True) if answer else None
    is_calculated, is_sure = len(form.numbers) > 1, False
    part = main_part(re.sub(r",\s+which\b", ", it", sentence) if is_calculated else sentence, form)
    text = spelled_out(plain(part))
    digits = {each.value for each in numbers_of(plain(part))}
    dimensions = {_DIMENSIONS[word] for word in form.words & _DIMENSIONS.keys()}
    known = {sign * value for value, _ in form.numbers if not isinstance(value, str) for sign in (1, -1)}
    ends = readers.limits(numbers_of(text), text)
    found = [
        each
        for each in numbers_of(text)
        if (each.value in digits or each in ends or _is_asked(each, text, form, bool(digits)))
        and (not (each.unit and dimensions) or each.base[0] in dimensions)
    ]
    pool = [each for each in found if each.start > text.rfind("=")] or found
    tests: tuple[tuple[bool, Callable[[Quantity], object]], ...] = (
        (True, lambda each: _LEAVES.search(text, max(0, each.start - NEAR), each.start) or _LEFT.match(text, each.end)),
        (False, lambda each: form.unit and each.unit == form.unit),
        (True, lambda each: each.value not in known if is_calculated else (each.value, each.unit) not in form.numbers),
        (False, lambda each: form.noun and stem(each.word.casefold()) == form.noun),
    )
    for is_sign, fits in tests:
        if fitting := [each for each in pool if fits(each)]:
            pool, is_sure = fitting, is_sure or is_sign
    if not pool:
        return None
    ends = [0, *(each.start() for each in _PART.finditer(text)), len(text)]
    hits = {end: _hits(text[start:end], form) for start, end in pairwise(ends)}
    told = [next(hit for end, hit in hits.items() if each.start < end) for each in pool]
    of_asked = [each for each, hit in zip(pool, told, strict=True) if hit == max(told)]
    values = {each.value for each in of_asked if each.unit == of_asked[0].unit}
    if len(values) > 1 and not (is_calculated or "=" in text or readers.limits(found, text)):
        return None
    chosen = of_asked[-1 if is_calculated or "=" in text else 0]
    before = text[max(0, chosen.start - NEAR) : chosen.start]
    is_said = _COUNTS.search(before) or (is_sure and _COMES_TO.search(before))
    if not is_sure or _is_bare(form):
        is_sure = is_sure and is_said is not None
        if not is_said or chosen.unit not in ("", form.unit or chosen.unit):
            return None
    answer = readers.quantity_answer(chosen, [] if is_calculated else found, text, form)
    return (answer, is_sure) if answer else None


_ONLY = re.compile(
    r"\W*(?:(?:about|around|roughly|approximately|nearly|almost|some|maybe|probably)\s*)?", re.IGNORECASE
)


def _is_asked(number: Quantity, text: str, form: QuestionForm, has_digits: bool) -> bool:
    """Return whether a number in words, perhaps beside others in digits, is said of what the question asks for."""
    if number.word and not has_digits and _ONLY.fullmatch(text[: number.start]) and not text[number.end :].strip(" .!"):
        return True
    if number.word:
        return bool(number.unit) or stem(number.word.casefold()) in form.words
    return not (has_digits and text[number.end :].strip(" .!") and text[: number.start].strip()[-1:] not in _HAN_COUNTS)


def main_part(sentence: str, form: QuestionForm) -> str:
    """Return what a sentence says in the end: what follows "so", without what it adds or denies."""
    part = re.sub(r"^to\s[^,:=]*(?:[,:]\s*|$)", "", _BRACKETS.sub("", sentence), flags=re.IGNORECASE)
    units, kept = ({each.unit for each in _quantities(text)} for text in (sentence, part))
    if form.unit and form.unit in units - kept:
        part = sentence  # the requested unit is in brackets
    if said := [each for each in _SAYS_SO.finditer(part) if _quantities(part[each.end() :])]:
        part = part[said[-1].end() :]
    head, *tail = re.split(r":(?!\d)|：", part, maxsplit=1)
    is_new = any((each.value, each.unit) not in form.numbers for each in numbers_of(plain(head)))
    part = head if is_new and "=" not in "".join(tail) else part
    before = _BESIDE.sub("", part)
    units, kept = (
        {word for each in _quantities(text) for word in (each.unit, stem(each.word))} for text in (part, before)
    )
    is_lost = {form.unit, form.noun} & (units - kept - {""}) and kept - {""}
    return before if any(each.unit or not form.unit for each in _quantities(before)) and not is_lost else part


def _quantities(text: str) -> list[Quantity]:
    return numbers_of(plain(text)) or numbers_of(spelled_out(text))


# --- Lists

_ITEM = re.compile(
    r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]*(?=\S)((?:[ \t]*+[^ \t\n])+?)"
    r"(?:[ \t]*[:：(（,，].*|[ \t]+[–—-][ \t].*|[.。])?[ \t]*$",
    re.MULTILINE,
)
_HAN_AND = r"(?<=[\u4e00-\u9fff\d])(?:以及|和|与|與|及)(?=[\u4e00-\u9fff\d])"
_SEPARATOR = re.compile(rf",\s*(?:and|or)\s+|[,，、;；&]\s*|(?<!\s)\s+(?:and|or|as\s+well\s+as)\s+|{_HAN_AND}")
_LEADING = re.compile(
    r"^.*(?:\b(?:are|is|were|include|includes|including|names?|called|example|such\s+as|like)\b"
    r"|(?-i:\b[a-z]+)\s(?:of|by|from|as)\b"
    r"|是指?|[常般]指|[为有由]|推荐|包括|例如|比如|分[别別])\s*",
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


def _read_list(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the items in the order of the text if they are numbers, else sorted; best as many as requested."""
    lists = [("", _ITEM.findall(text)), *((each, _inline_items(each, form)) for each in _said(text))]
    items = max(
        lists, key=lambda each: ((Fraction(len(each[1])), "") in form.numbers, len(each[1]), _hits(each[0], form))
    )[1]
    are_more = any((Fraction(n), "") in form.numbers for n in range(2, len(items))) and not items[0].isdecimal()
    are_items = all(_length(item) <= MOST_WORDS and _FRAME.isdisjoint(words(item)) for item in items)
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
    tags = [_tag(word, form) for word in said]
    leads = [n for n, tag in enumerate(tags) if tag in "bvqx" and all(each in "XQojf" for each in tags[n + 1 :])]
    start = leads[-1] + 1 if is_first and leads and tags[-1] in "XQ" else 0
    if not start:
        start = next((n for n, tag in enumerate(tags) if tag not in ("fbvqplr" if is_first else "fq")), len(said))
    return " ".join(said[start:] or said[len(said) > 1 and len(said) :])


def _inline_items(sentence: str, form: QuestionForm) -> list[str]:
    """Return the items of an enumeration such as "The colours are red, green and blue.", else nothing."""
    text = _QUOTES.sub("", _BRACKETS.sub("", sentence.replace("》《", "、").replace("：", ":")))
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
        own = re.escape("".join(_han_own(form)))
        items[0] = re.sub(rf"^[{own}]{{2,}}(?=.)", "", items[0])
        items[-1] = re.sub(rf"(?<=.)[{own}]{{2,}}$", "", _COUNTED.sub("", items[-1]))
    else:
        last = items[-1].split()
        known = (n for n, word in enumerate(last) if n and _tag(word, form) not in "xXjo")
        items[-1] = " ".join(last[: next(known, None)])
    return items if all(0 < _length(item) <= MOST_WORDS - 1 for item in items) else []


# --- Names

_TAGS = {
    word: tag
    for tag, listed in {
        "b": "is are was were be been it's that's become becomes became remains called",
        "v": "has have had will would can could may might must shall should do does did",
        "o": "of",
        "l": "in at on near within",
        "p": "from for with to through into over under between around about during since after before",
        "y": "by named",
        "c": "and or",
        "r": "author writer painter inventor discoverer founder creator composer artist",
        "n": """scientists researchers experts historians people someone everyone everybody nobody nothing others which
        who whose whom what where when how why while unlike contrary try check ask look see visit contact please
        consider""",
        "f": """the a an it its this that they he she i we you your our his her there here as so but then now
        also just indeed really still often most more one only known located situated considered regarded referred
        believed thought said generally usually typically commonly widely officially currently probably actually simply
        mainly certainly definitely think say guess believe answer yes no sure found find listed written
        however therefore thus hence""",
    }.items()
    for word in listed.split()
}
"""The tag of a word that is no name: a form of "be" (b), another verb (v), "of" (o), a preposition of place (l),
another preposition (p), "by" (y), a role (r), people in general (n), a word that frames an answer (f). Other words are
tagged q if the question has them, j if they join names ("van"), else x; Q and X begin with a capital letter."""
_FRAME = frozenset(_TAGS) - {"of"}
_DETERMINERS = word_set("the a an its this that my your our his her their")
_JOINING = word_set("de da van von der la le")
_NAME = r"([xr]*X(?:[XxrQ]|[jo][jf]?X)*+|x++)"
_CAPITAL = _NAME.replace("|x++", "")
_CAPITAL_RUN = r"X(?:[XQ]|[jo]f?X)*"
_SUBJECT = re.compile(rf"[fr]*{_CAPITAL}(?=[bqQvplf])|[frq]*{_CAPITAL}(?=[bv])|[fr]*(x++)(?=[bqQvl])")
_AGENT = re.compile(rf"y[fqQr]*{_CAPITAL}(?![qQ])|(?<=[qQ])yf(x++)(?![qQ])")
_STATED = re.compile(rf"b[fqQvr]*{_NAME}(?![qQoy])")
_PLACED = re.compile(rf"[lo][fqQ]*{_CAPITAL}(?![qQ])")
_OBJECT = re.compile(rf"(?<=[qQ]){_NAME}(?![qQ])")
_BARE = re.compile(rf"[fbvr]*b[fbvr]*{_NAME}(?:[plyo].*)?$|[fr]*{_NAME}v?$")
_BARE_PLACE = re.compile(rf"[fbv]*l[fl]*{_NAME}(?:[plyvo].*)?$|f*{_NAME}$")
_SETTING = re.compile(r"(?:when|if|while|although|though|since|because|unlike|after|before)\b", re.IGNORECASE)
_CREDITED = r"\b(?:(?:attributed|credited)\s+to|(?:work|creation|invention|idea|discovery)\s+of)\b"
_IDENTITY = re.compile(
    r"\s(?:consists?\s+(?:mainly\s+|mostly\s+)?of|stands?\s+for|comes?\s+from|refers?\s+to|means|(?:gives?|yields?|makes?)(?!\s+(?:up|it|you|us|off)\b))\s",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"\bnot\s(?!only\b)[^.;]{1,60}?,?\sbut\s(?:rather\s)?", re.IGNORECASE)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_TIME = re.compile(
    rf"\s(?:on|in|since|from|until|of)\s(?:\d{{1,2}}(?:st|nd|rd|th)?\s)?(?:{_MONTHS})\b(?:\s\d{{1,2}})?(?:,?\s\d{{4}})?(?!\d)"
    r"|\s(?:in|since|from|until)\s\d{4}"
)
_IT_IS = re.compile(
    r"(?:(?:it|that|this|they|these|those)(?:'s|\s(?:is|was|are|were|would\sbe))\s(?:called\s)?(?:the\s|an?\s)?|the\s)"
    r"\w+(?<!ed)(?<!ing)(?<!ous)(?<!ful)(?<!ive)(?<!ble)(?<!al)(?<!y)(?:\s(?:do|did|does|has|is|was))?$",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(
    r"(?<![,\s])[,\s]+(?:who|which|that|because|since|although|though|while|whereas|when|where|before|after|followed|but"
    r"|if|until|however|through|using)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_RESTRICTIVE = re.compile(r"the\s\w+\s(?:\w+\s)?(?:that|which|who)\b.*\s(?:is|was|are)\b", re.IGNORECASE)
_LEADS_ON = re.compile(
    rf"{_DENIED.pattern}|^(?:as|with|for|like)\s|\bwhether\b|mistak"
    r"|\b(?:some|many|most|few|people|others)\b.{0,20}\b(?:say|think|believe|guess|assume|claim)",
    re.IGNORECASE,
)
"""Denials and opinions of others."""
_ADVERB = re.compile(r"[a-z]{3,}(?<![fi])ly")
_ALSO = re.compile(r"(?:and|or)\s(?:the\s)?[A-Z]")
_MODIFIER = re.compile(r"\w+(?:an|ch|ish|ese|ous|al|ic)$")


def _read_name(said: Sequence[str], form: QuestionForm) -> FinalAnswer | None:
    is_short = _length(" ".join(said)) <= SHORTEST_SENTENCE
    found: list[tuple[str, FinalAnswer]] = []
    is_corrected = False
    for number, sentence in enumerate(said[:MOST_SENTENCES]):
        find = _han_name if is_chinese(sentence) else _english_name
        text = _QUOTES.sub("", _BRACKETS.sub("", sentence)).strip(" .。!！")
        name = find(text, form, not (number or _DENIED.match(sentence) or (is_short and "," in text)))
        answer = readers.read_conclusion(name, form, marked=True) if name else None
        found += [(sentence, answer)] if answer and answer.kind in (SPAN, CHOICE) else []
        is_corrected = is_corrected or bool(
            not answer and _CORRECTS.match(sentence) and _hits(sentence, form) == len(form.content)
        )
    return None if is_corrected else _agreed(found, form)


def _english_name(sentence: str, form: QuestionForm, may_be_bare: bool) -> str:
    """Return the only name at a place of the sentence where the answer stands, else nothing."""
    sentence = re.sub(_CREDITED, "by", _IDENTITY.sub(" is ", _NOT_BUT.sub("", sentence)))
    if "month" not in form.words:
        sentence = _TIME.sub("", sentence)
    clauses = _CLAUSE.split(sentence)
    hits = [_hits(clause, form) for clause in clauses]
    if len(clauses) > 1 and _SETTING.match(clauses[0]):
        hits[0] = min(hits)
    is_lower = sum(hits) >= min(2, len(form.content)) or (may_be_bare and _IT_IS.match(clauses[0]))
    is_lower = is_lower and not ("who" in form.words or form.asks_place)
    patterns = [_SUBJECT, _STATED, *([_PLACED] * form.asks_place), *([_OBJECT] * ("do" in form.words))]
    patterns = [_PLACED] if "where" in form.words and {*_names(sentence, [_PLACED], form, False)} else patterns
    found: set[str] = set()
    concluded = [clause for clause, hit in zip(clauses, hits, strict=True) if hit and clause.startswith("so ")]
    for clause, hit in zip(clauses, hits, strict=True):
        main = clause if _RESTRICTIVE.match(clause) else _SUBORDINATE.sub("", clause)
        counts = hit == max(hits) or (clause.startswith("but ") and 2 * hit >= max(hits))
        counts = counts and (not concluded or clause.startswith("so "))
        if hit and counts and not _LEADS_ON.search(main):
            agents = {*_names(main, [_AGENT], form, is_lower)} - {""}
            found |= agents or {*_names(main, patterns, form, is_lower)}
    opened = _SUBORDINATE.sub("", clauses[0])
    if not hits[0] and not _LEADS_ON.search(opened):
        if found and form.asks_place:
            found |= {*_names(opened, [_PLACED], form, False)}
        elif not found and (may_be_bare or max(hits)):
            found = {*_names(opened, [_BARE_PLACE if form.asks_place else _BARE], form, is_lower)}
            found |= {name for each in clauses if "who" in form.words for name in _names(each, [_AGENT], form, False)}
    if not found and (may_be_bare or any(hits)):
        found = set() if _LEADS_ON.search(sentence) else {*_capitalized(sentence, form)}
    return found.pop() if len(found) == 1 else ""


def _capitalized(sentence: str, form: QuestionForm) -> Iterator[str]:
    """Yield the runs of capitalized words that a sentence adds to the question; "" for what cannot be its answer."""
    said = [word for each in sentence.split() if (word := each.strip(".,!?\"'"))]
    tags = "".join(_tag(word, form) for word in said)
    initials = "".join(word[0] for word in form.content)
    for run in re.finditer(_CAPITAL_RUN, tags):
        name = " ".join(said[run.start() : run.end()])
        before = tags[: run.start()].rstrip("fr")[-1:]
        after = tags[run.end() : run.end() + 1]
        is_told = before in ("lpby" if "who" not in form.words else "by") or "to" in said[: run.start()][-1:]
        is_told = is_told if run.start() else after in ("b", "v")
        is_other = _MODIFIER.fullmatch(name) or name.endswith("'s") or (after == "x" and run.start())
        if name.casefold() not in initials:
            yield readers.HONOURS.sub("", name) if is_told and not is_other else ""


def _names(clause: str, patterns: Iterable[re.Pattern[str]], form: QuestionForm, may_be_lower: bool) -> Iterator[str]:
    """Yield what stands at the places of patterns and can be a name; "" for what only describes one."""
    said = [word for each in clause.split() if (word := each.strip(".,!?\"'"))]
    tags = "".join(_tag(word, form) for word in said)
    for pattern in patterns:
        is_first = pattern in (_SUBJECT, _BARE, _BARE_PLACE)
        for each in filter(None, [pattern.match(tags)] if is_first else pattern.finditer(tags)):
            at = next(group for group in range(1, pattern.groups + 1) if each[group])
            run = said[each.start(at) : each.end(at)]
            end = each.end(at)
            if (pattern is _AGENT and run[0].endswith("ing")) or (is_first and {*said[end : end + 1]} & _DETERMINERS):
                continue
            if (
                len(run) > 1
                and run[0].islower()
                and [stem(word.casefold()) for word in said[end : end + 1]] == [*form.content[:1]]
            ):
                continue
            if pattern is _AGENT and tags[end : end + 1] == "x" and _MODIFIER.fullmatch(run[-1]):
                continue
            name = (
                ""
                if _ALSO.match(" ".join(said[end : end + 3]))
                else _proper(
                    run,
                    is_first,
                    pattern is not _AGENT and "who" not in form.words and said[each.start(at) - 1] not in ("a", "an"),
                )
            )
            is_adjective = tags[end : end + 1] in ("q", "Q") and "b" in tags
            is_adjective = is_adjective or (
                said[each.start(at) - 1 : each.start(at)] in (["a"], ["an"]) and "called" not in said
            )
            if (
                run[0][0].islower()
                and name[:1].islower()
                and (is_adjective or re.search(r"\w{3}(?:ed|est)\b", name) or len(run) > MOST_LOWER or not may_be_lower)
            ):
                continue
            yield readers.HONOURS.sub("", name).removesuffix("'s")


def _tag(word: str, form: QuestionForm) -> str:
    bare = word.casefold().replace("’", "'")
    if known := _TAGS.get(bare, "") or _TAGS.get(bare.partition("'")[0], "") * ("'" in bare):
        return known
    is_upper = not word[0].islower()
    if stem(bare.removesuffix("'s")) in form.words:
        return "Q" if is_upper else "q"
    if _ADVERB.fullmatch(word):
        return "f"
    return "j" if bare in _JOINING else "X" if is_upper else "x"


def _proper(run: Sequence[str], is_subject: bool, may_be_thing: bool) -> str:
    """Return the name after a description, such as "English playwright", or before a verb, else the whole run."""
    lower = [place for place, word in enumerate(run) if word[0].islower() and word not in _JOINING]
    if not lower or len(lower) == len(run) or (is_subject and len(run) == len(lower) + 1 == 2):
        return " ".join(run)
    if not run[-1][0].islower():
        return " ".join(run[lower[-1] + 1 :])
    if _MODIFIER.fullmatch(run[lower[0] - 1]):
        return " ".join(run) if may_be_thing and len(run) <= MOST_LOWER else ""
    return " ".join(run[: lower[0]] if is_subject else run if len(run) <= MOST_LOWER else [])


_HAN_LEAD = re.compile(
    r"^(?:但|其实|我想|我认为|我觉得|[一通普][般常遍]认为|应该|(?:正确)?答案|其实|毫无疑问|这幅画|这本书)*"
)
_HAN_IS = re.compile(r"(?:其实|才)?(?:被称为|被认为是|使用|采用|叫做|名叫|就是|是|为|叫|即)")
_HAN_DOES = r"所?(?:写|著|发明|创作|画|发现|设计|建立|提出|创立|创办|执导|编剧|作曲|改进|制造)"
_HAN_BY = re.compile(rf"(?:由|出自)(.{{2,12}}?)(?:于|在|之手|{_HAN_DOES})")
_HAN_AT = re.compile(r"(?:位于|坐落[于在]|在)(.{2,8}?)(?:的?[东南西北中境]+部?)?$")
_HAN_ADDED = re.compile(r"(?<=..)(?:先生|女士|爵士|教授|博士)?(?:[于在]\d.*)?$")
_HAN_DID = re.compile(rf"{_HAN_DOES}(?:了|出|的|过)?.*$")
_HAN_TITLE = re.compile(r"^.*(?:作家|[说画作曲科学明治]家|诗人|皇帝|总统|导演)(?=.{2,4}$)")


def _han_own(form: QuestionForm) -> set[str]:
    """Return the characters that are the question's, or those of every answer."""
    return {*filter(is_chinese, form.words), *readers.HAN_FRAME, *"你您我他她的它其由被于之这那地位作者发明人画写家"}


def _han_name(sentence: str, form: QuestionForm, may_be_bare: bool) -> str:
    own = _han_own(form)
    for clause in _CLAUSE.split(simplified(sentence))[:2]:
        clause, name = _HAN_LEAD.sub("", clause), ""
        if by := _HAN_BY.search(clause):
            name = by[1].rpartition("的")[2]
        elif form.asks_place and (at := _HAN_AT.search(clause)) and set(clause[: at.start()]) <= own:
            name = at[1]
        elif copula := _HAN_IS.search(clause):
            left, right = clause[: copula.start()], clause[copula.end() :]
            right = re.sub("的(?:作品|画作|小说|著作)$", "", right)
            right = _HAN_TITLE.sub("", right) if len(right) > 4 else right
            right = _HAN_DID.sub("", right) if len(right) > 2 else right
            is_asked = set(right) <= own or set(form.content) <= set(right)
            is_told = set(left) <= own or set(form.content) <= set(left)
            own_right = right.rpartition("的")[2] if "的" in right[:-2] else right
            name = own_right if is_told else left if is_asked else ""
        elif (did := _HAN_DID.search(clause)) and did.start() > 1:
            name = clause[: did.start()]
        elif (
            may_be_bare
            and set(form.content).isdisjoint(simplified(sentence))
            and (_length(clause) <= MOST_WORDS - 1 or "·" in clause)
        ):
            name = clause
        elif set(form.content) <= set(clause):
            name = clause.lstrip("".join(own)).rstrip("".join(form.words))
        name = name.rstrip("喔哦啊呢啦呀")
        name = name.rpartition("的")[2] if "的" in name[:-2] else name
        name = _HAN_ADDED.sub("", _HAN_TITLE.sub("", name).strip(" ·") if len(name) > 4 else name)
        name = re.sub(r"^.*[省市县](?=..+区$)|(?<=[省市县]).+[省市县区]$", "", name)
        if (
            not _DENIED.search(clause)
            and 0 < _length(name) <= 2 * MOST_WORDS
            and not set(name) <= own
            and "由" not in name
        ):
            return name
    return ""
