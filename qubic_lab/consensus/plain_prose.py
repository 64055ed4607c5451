"""Reads what an answer in plain prose, without a mark, says to a question: yes or no, a number, a list or a name.

The question decides what is searched for. The rules prefer to read nothing than something else: a sentence counts if it
repeats the question's words, and only its main clause. A denial is not a name, and an opinion of others is no answer.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import CHOICE, NUMBER, SPAN, FinalAnswer, numbers_of
from qubic_lab.consensus.conclusions import SO, sentences
from qubic_lab.consensus.contradictions import verdict
from qubic_lab.consensus.quantities import Quantity, plain, spelled_out
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import is_chinese, polarity, simplified, stem, without_places, word_set, words

MOST_WORDS, SHORTEST_SENTENCE, MOST_ADDED, MOST_SENTENCES = 4, 3, 5, 3
"""Words of a bare name; of a text that may be a reply as a whole; that may be added to the question's to say yes or no;
and sentences that may repeat the question."""

_CHATTER = re.compile(
    r"(?:sure|certainly|of course|okay|ok|great|good|well|hello|hi|alright|awesome)\b[^.,]{0,30}[!.:]$"
    r"|(?:that|this|it)(?:'s|\s+is)\s+an?\s+(?:\w+\s+){0,3}(?:question|one|puzzle|riddle|problem|tale|conundrum)\b"
    r"|this\s+(?:\w+\s+){1,2}(?:conundrum|puzzle|question)\.?$"
    r"|i(?:'m|\s+am)\s+(?:happy|glad)\b|(?:好的|您好|你好|当然|让我)[^，。]{0,8}[!！。]$",
    re.IGNORECASE,
)
_INTERJECTION = re.compile(
    r"^(?:(?:sure|certainly|well|okay|ok|alright|awesome|great|hello|hi|bien\s+sûr|oh)\b[^,.!]{0,12}[,!]\s*"
    r"|(?:好的|您好|你好|嗯|那么|毫无疑问|顾名思义)[，,！!]\s*|(?-i:[A-Z]\w+:\s+(?=[A-Z])))",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"(?:(?<!\s)\s+)?(?:\([^()]*\)|（[^（）]*）)")
_QUOTES = re.compile(r"[\"“”「」『』《》]|(?<!\w)['‘]|['’](?!\w)")
_CLAUSE = re.compile(r"[,;:，；：。]\s*|(?<!\s)\s+[—–-]+\s+")
_DENIED = re.compile(
    r"\b(?:not|never|nor|neither|cannot|unable|incapable|impossible|no)\b|n't\b|不(?![过但仅])|没(?!错)|[无無]法|并非|否",
    re.IGNORECASE,
)


def read_plain(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the answer of a text without emphasis to a question of one of these forms, without options; else None."""
    if form.options or form.alternatives:
        return None
    if form.asks_list:
        return _read_list(text, form)
    if form.kind in (CHOICE, NUMBER):
        return _read_verdict(text, form) if form.kind == CHOICE else _read_number(text, form)
    return _read_name(text, form) if form.asks_name and "=" not in text else None


def may_be(kind: str, text: str, form: QuestionForm) -> bool:
    """Return whether a part of a text may answer the question as this kind, though `read_plain` finds nothing."""
    if form.options or form.alternatives:
        return True
    if form.kind == NUMBER:
        return kind not in (NUMBER, SPAN)
    if form.kind == CHOICE or form.asks_list:
        return False
    is_open = not (form.asks_name or (form.asks_what and kind == SPAN))
    return is_open or kind == CHOICE or _length(text) <= SHORTEST_SENTENCE


def _said(text: str) -> list[str]:
    """Return the sentences without chatter and interjections."""
    found = [_INTERJECTION.sub("", each) for each in sentences(text)]
    return [each for each in found if each and not _CHATTER.match(each)]


def _length(text: str) -> float:
    return sum(0.5 if is_chinese(word) else 1.0 for word in words(text))


# --- Yes or no

_TOLD = re.compile(
    r"(?:(?:so|but|and|then|therefore|hence|thus|well)\s+)*"
    r"(?:(?:i(?:'d|\s+would|\s+must)?\s+(?:say|answer)|(?:the|my)\s+(?:\w+\s+)?answer\b.{0,40}?\bis)\s+)?"
    r"(?:其实|当然|一般来说|所以|因此|我认为|答案|应该|恐怕)*是?"
    r"(?:yes|yep|肯定的|(?P<no>nope|no(?:\s+way)?|not\s+(?:really|entirely|at\s+all)"
    r"|(?:不是|不能|不会|不行|不可以|不可能|否定)的?))\W*$"
    r"|(?:it|he|she|they|we|you|i|that|this|there)\s(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have)"
    r"(?P<denied>\s?not|n't)?\W*$",
    re.IGNORECASE,
)
_TO_REASONS = re.compile(
    r"(?:(?<!\s)\s+)?(?:\b(?:because|since|although|though|which|but|except)\b|,\s*with\b|[;:；：]|[，,]?(?:因为|而是|除非)).*",
    re.I | re.S,
)
_UNSURE = re.compile(
    r"\b(?:whether|if|believed?|think|some\s+say|may|might|claim\w*|question|until|used\s+to|formerly|once)\b|[以认]为|是否"
    r"|曾|[?？]$",
    re.IGNORECASE,
)


def _read_verdict(text: str, form: QuestionForm) -> FinalAnswer | None:
    said = [_QUOTES.sub("", simplified(each)) for each in _said(text)]
    told = {
        "no" if no["no"] or no["denied"] else "yes" for s in said for c in _CLAUSE.split(s) if (no := _TOLD.match(c))
    }
    value = verdict(said[0]) if said else ""
    if not value and len(told) < 2:
        value = "".join(told) or next(filter(None, (_restated(each, form) for each in said[:MOST_SENTENCES])), "")
    return FinalAnswer(CHOICE, value, said[0]) if value else None


def _restated(sentence: str, form: QuestionForm) -> str:
    """Return yes or no if the main part has all content words of the question, or opposites, or only such words."""
    part = _TO_REASONS.sub("", sentence)
    asked = dict(map(_key, form.content))
    signs = {key: sign for word in words(part) for key, sign in [_key(word.removesuffix("'s"))]}
    known = {*form.words, *_FRAME, *readers.HAN_FRAME}
    added = _length(" ".join(word for word in words(_DENIED.sub(" ", part)) if not {word, stem(word)} & known))
    said = asked.keys() & signs.keys()
    is_reply = not added and (len(said) > 1 or re.match(r"(?:it|they|s?he)\b", part, re.I))
    is_whole = len(said) == len(asked) and added <= MOST_ADDED
    if not asked or [*asked][-1] not in said or not (is_whole or is_reply) or _UNSURE.search(part):
        return ""
    if {"than", "比"} & form.words:  # gold is heavier than water, not water than gold
        compared = [key for key in asked if not key.startswith("#")][: -1 if is_chinese(part) else None]
        if [key for key in signs if key in compared] != compared:
            return ""
    clauses = _CLAUSE.split(part) if is_chinese(part) else [part]
    last = [each for each in clauses if form.content[-1] in words(each)] or [part]
    denials = [len(_DENIED.findall(text)) for text in (last[-1], " ".join(form.content))]
    flips = abs(denials[0] - denials[1]) + sum(signs.get(key, sign) != sign for key, sign in asked.items())
    return ("yes", "no", "")[min(flips, 2)]


def _key(word: str) -> tuple[str, int]:
    """Return a word's stem, or its pair of opposites, and the side."""
    return polarity(word) or (stem(word), 1)


# --- Numbers

_SAYS_SO = re.compile(r"\b(?:so|therefore|thus|hence|means\s+that)\b|所以|因此|于是|那么|一共|共有", re.IGNORECASE)
_BESIDE = re.compile(
    r"(?:[,，；;]\s*|(?<![\s,，；;])\s+)?(?:\b(?:not|but|because|since|which|while|whereas|as\s+each)\b|(?<=[,，；])(?:而|但|因为|不是)).*",
    re.I | re.S,
)
_DEFINED = re.compile(r"(?<![A-Za-z\\])[A-Za-z]\s*=(?!=)")
_UNKNOWN = re.compile(
    r"\b(?:not|n't)\s+(?:say|said|known?|given|mention\w*|tell|sure)\b|\bunknown\b|不知道", re.IGNORECASE
)
_COUNTS = re.compile(r"\b(?:is|are|was|were|has|have|equals?|costs?|makes?|gives?)\b|[=是为有剩等]", re.IGNORECASE)


def _read_number(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the last new number of a calculation, else the first one; one of the question's if there is no other."""
    said = _said(text)
    found = [(sentence, *picked) for sentence in said if (picked := _pick(sentence, form))]
    pool = [each for each in found if each[2]] or found
    concluded = [each for each in pool if each[0] in said[-2:] and SO.match(each[0])]
    is_calculation = len(form.numbers) > 1 or "=" in text
    return (concluded or pool)[-1 if concluded or is_calculation else 0][1] if pool else None


def _pick(sentence: str, form: QuestionForm) -> tuple[FinalAnswer, bool] | None:
    """Return the number that a sentence gives, and whether the question does not have it."""
    text, dropped, own = sentence, list[Quantity](), list[Quantity]()
    is_defined = _DEFINED.search(sentence) is not None
    if not is_defined:
        whole = plain(main_part(sentence, form))
        said = [each for each in re.split(r"[,，;；](?!\d{3})\s*", whole[whole.rfind("=") + 1 :]) if _new(each, form)]
        in_units = [each for each in said if form.unit and any(number.unit for number in _new(each, form))]
        is_last = "=" in whole or len(form.numbers) > 1
        text = (in_units or said or [whole])[-1 if is_last else 0]
        own = _fitting(_new(text, form), form)
        if not own:
            written = spelled_out(without_places(text, ((each.start, each.end) for each in numbers_of(text))))
            own = _fitting([each for each in _new(written, form) if _is_asked(each, form)], form)
            text = written if own else text if numbers_of(text) else spelled_out(text)
        dropped = [each for each in numbers_of(text) if own and each not in own]
        asked = [each for each in numbers_of(text) if (each.value, each.unit) in form.numbers]
        says = own or (asked and (_COUNTS.search(text[: asked[-1].start]) or re.search(r"\b(?:left|remain)", text)))
        if not says or _UNKNOWN.search(sentence) or readers.REFUSED.search(re.sub(r"[<>]", "", text)):
            return None
    text = without_places(text, ((each.start, each.end) for each in dropped)) if dropped else text
    answer = readers.read_quantity(text, form)
    if answer is None:
        return None
    return (replace(answer, text=answer.value) if dropped else answer), is_defined or bool(own)


def _fitting(numbers: list[Quantity], form: QuestionForm) -> list[Quantity]:
    """Return the numbers in the requested unit, else in one of its dimension, else with any unit, else all."""
    dimension = Quantity(Fraction(1), form.unit).base[0]
    exact = [each for each in numbers if each.unit == form.unit]
    alike = [each for each in numbers if each.unit and each.base[0] == dimension]
    return (exact or alike or [each for each in numbers if each.unit] or numbers) if form.unit else numbers


def _new(text: str, form: QuestionForm) -> list[Quantity]:
    return [each for each in numbers_of(text) if (each.value, each.unit) not in form.numbers]


def _is_asked(number: Quantity, form: QuestionForm) -> bool:
    """Return whether a number in words counts what the question asks for, if it counts anything."""
    return bool(number.unit) or not number.word or stem(number.word.casefold()) in form.words


def main_part(sentence: str, form: QuestionForm) -> str:
    """Return what a sentence says in the end: what follows "so", without what it adds or denies."""

    def in_unit(text: str) -> list[Quantity]:
        return [each for each in _quantities(text) if each.unit or not form.unit]

    part = re.sub(r"^to\s[^,:=]*(?:[,:]\s*|$)", "", _BRACKETS.sub("", sentence), flags=re.IGNORECASE)
    if form.unit and form.unit in {each.unit for each in _quantities(sentence)} - {each.unit for each in in_unit(part)}:
        part = sentence  # the requested unit is in brackets
    if said := [each for each in _SAYS_SO.finditer(part) if _quantities(part[each.end() :])]:
        part = part[said[-1].end() :]
    head = re.split(r":(?!\d)|：", part, maxsplit=1)[0]
    part = head if _new(plain(head), form) else part
    before = _BESIDE.sub("", part)
    return before if in_unit(before) or not in_unit(part) else part


def _quantities(text: str) -> list[Quantity]:
    return numbers_of(plain(text)) or numbers_of(spelled_out(text))


# --- Lists

_ITEM = re.compile(
    r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]*(?=\S)((?:[ \t]*+[^ \t\n])+?)"
    r"(?:[ \t]*[:：(（,，].*|[ \t]+[–—-][ \t].*|[.。])?[ \t]*$",
    re.MULTILINE,
)
_HAN_AND = r"(?<=[\u4e00-\u9fff\d])(?:以及|和|与|與|及)(?=[\u4e00-\u9fff\d])"
_SEPARATOR = re.compile(rf",\s*(?:and|or)\s+|[,，、;；&]\s*|(?<!\s)\s+(?:and|as\s+well\s+as)\s+|{_HAN_AND}")
_LEADING = re.compile(
    r"^.*(?:\b(?:are|is|were|includes?|of|by|from|names?|example)\b|[是为有由]|包括|例如|比如|分[别別])\s*", re.I | re.S
)
_LISTED_TO = re.compile(
    r"(?:[,，]\s*|(?<![\s,，])\s+)?\b(?:which|each|with|where|who|both|because)\b.*", re.IGNORECASE | re.DOTALL
)
_COUNTED = re.compile(
    r"(?:这|這)?(?<![一二两兩三四五六七八九十\d])[一二两兩三四五六七八九十\d]+[个個种種大项項].*|等.*|的$"
)


def _read_list(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the items in the order of the text if they are numbers, else sorted."""
    lists = [_ITEM.findall(text), *(_inline_items(_INTERJECTION.sub("", each), form) for each in sentences(text))]
    items = max(lists, key=len)
    if len(items) < 2:
        return None
    if found := [each for item in items for each in numbers_of(plain(item))]:
        return readers.several_numbers(found, ", ".join(items)) if len(found) == len(items) else None
    return FinalAnswer(SPAN, "; ".join(sorted(" ".join(words(item)) for item in items)), ", ".join(items))


def _inline_items(sentence: str, form: QuestionForm) -> list[str]:
    """Return the items of an enumeration such as "The colours are red, green and blue.", else nothing."""
    text = _LISTED_TO.sub("", _QUOTES.sub("", _BRACKETS.sub("", sentence))).strip(" .。!！").replace("：", ":")
    text = text.rpartition(":")[2]
    if (sign := text.find("、")) > 0:  # only the clause with such a comma
        text = re.split(r"[，,;；]", text[:sign])[-1] + re.split(r"[，,;；]", text[sign:])[0]
    first, *others = _SEPARATOR.split(text)
    items = [re.sub(r"^(?:the|an?)\s+", "", each.strip(), flags=re.I) for each in (_LEADING.sub("", first), *others)]
    if is_chinese(text):
        own = re.escape("".join(_han_own(form)))
        items[0] = re.sub(rf"^[{own}]{{2,}}(?=.)", "", items[0])
        items[-1] = re.sub(rf"(?<=.)[{own}]{{2,}}$", "", _COUNTED.sub("", items[-1]))
    else:
        last = items[-1].split()
        known = (
            n for n, word in enumerate(last) if n and {word.casefold(), stem(word.casefold())} & {*form.words, *_FRAME}
        )
        items[-1] = " ".join(last[: next(known, None)])
    return items if others and all(0 < _length(item) <= MOST_WORDS - 1 for item in items) else []


# --- Names

_FRAME = word_set(
    """the a an is are was were be been being it its this that they he she i you we would will do does did has have had
    of in on at to by as from for and or into author writer written write wrote penned by painter painted paint inventor
    invented invention invent discovered discover discoverer founder creator created create work attributed
    credited located lies stands situated find can called named known considered regarded referred often also
    indeed usually typically generally actually really officially currently widely famously simply probably certainly
    definitely mostly mainly believe think say guess answer name symbol first become became just most only own
    commonly sometimes itself but so however therefore yes no here there then now today please sorry can tell may
    might could would most newly one some many all your my should must shall"""
)
_SUBORDINATE = re.compile(
    r"(?<![,\s])[,\s]+(?:who|which|that|because|since|although|though|while|whereas|when|where|before|after|followed|but"
    r"|if|until|however|through|using)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_TO_DO = re.compile(r"(?<!\s)\s+to\s+(?!(?:the|an?|our|your|my|its|their|his|her|this|that)\b)[a-z]+\s.*", re.DOTALL)
_WHEN = re.compile(
    r"\b(?:in|around|on|since|about|during)\s+(?:the\s+)?(?:year\s+)?(?:\d{3,4}s?\b|\d{1,2}th\s+century)(?:\s*(?:BC|AD|CE))?"
)
_LEADS_ON = re.compile(
    r"\b(?:some|many|most|few|people|others)\b.{0,20}\b(?:say|think|believe|guess|assume|claim)|\bwhether\b|mistak"
    r"|^(?:as|by|with|for|like)\s|^(?:(?:also|formerly|better|often|sometimes)\s+)?(?:known|called)\b",
    re.IGNORECASE,
)
"""Opinions of others, and what only leads to the answer."""
_HONOURS = re.compile(r"^(?:sir|dr|mr|mrs|ms|lord|lady)\.?\s+", re.IGNORECASE)
_WHO = word_set("author writer painter inventor discoverer founder creator nation country")
_ELSEWHERE = word_set("at in on from of near for like")
_JOINING = word_set("of de da van von der the la le")
_MODIFIER = re.compile(r"\w+(?:an|ish|ese|ous|al|ic)$")


def _read_name(text: str, form: QuestionForm) -> FinalAnswer | None:
    said = _said(text)
    for number, sentence in enumerate([*said[:MOST_SENTENCES], *said[MOST_SENTENCES:][-1:]]):
        if not _DENIED.match(sentence) and not sentence.endswith(("?", "？")):
            find = _han_name if is_chinese(sentence) else _english_name
            may_be_bare = number == 0 and _length(text) > SHORTEST_SENTENCE
            name = find(_QUOTES.sub("", _BRACKETS.sub("", sentence)).strip(" .。!！"), form, may_be_bare)
            found = readers.read_conclusion(name, form, marked=True) if name else None
            if found and found.kind in (SPAN, CHOICE):
                return found
    return None


def _english_name(sentence: str, form: QuestionForm, may_be_bare: bool) -> str:
    """Return the name in the clause that shares most words with the question, else in one before it."""
    clauses = [_WHEN.sub(" ", clause) for clause in _CLAUSE.split(sentence)]
    mains = [_SUBORDINATE.sub("", clause) for clause in clauses]
    said = [() if _LEADS_ON.search(main) else set(map(stem, words(main))) for main in mains]
    hits = [sum(0.5 if word.isdecimal() else 1.0 for word in form.content if word in each) for each in said]
    if not max(hits):
        is_subject = any(re.match(r"(?:is|was|are|were|has|have|had|will|can)\b", each) for each in clauses[1:])
        is_reply = may_be_bare and not is_subject and not _DENIED.search(mains[0]) and not _LEADS_ON.search(mains[0])
        name = _bare(mains[0], len(clauses) > 1) if is_reply else ""
        return name if name[:1].isupper() or "who" not in form.words else ""
    for main, hit in zip(mains, hits, strict=True):
        if hit == max(hits) and (name := _name_in(main, hit, form)):
            return name
    best = mains[hits.index(max(hits))]
    opened = "" if hits[0] or list(_runs(best.split(), form)) else _bare(clauses[0], True)
    return opened if opened[:1].isupper() and form.words.isdisjoint(map(stem, words(opened))) else ""


def _name_in(main: str, hits: float, form: QuestionForm) -> str:
    """Return the only words of a clause that can be the name, else nothing; `hits` are words of the question in it."""
    found = list(_runs(_TO_DO.sub("", main).split(), form))
    runs = [each for each in found if not (each[2] and _MODIFIER.match(each[1]))]
    if len(found) > len(runs):
        runs = [each for each in runs if each[1][0].isupper() and not form.asks_place]
    named = [each for each in runs if each[0] in ("by", "named", "called") and each[1][0].isupper()]
    if len(named) != 1:
        runs = [each for each in runs if each[0] != "a" or not (each[1].islower() or _MODIFIER.fullmatch(each[1]))]
        runs = [each for each in runs if form.asks_place or each[0] not in _ELSEWHERE]
        many = len(runs) > 1 or "who" in form.words
        named = [each for each in runs if each[1][0].isupper() or not many]
    if _DENIED.search(main) or len(named) != 1:
        return ""
    _, name, is_modifier = named[0]
    is_sure = name[0].isupper() or (not is_modifier and hits >= max(2, len(form.content) / 2))
    return _HONOURS.sub("", name) if is_sure else ""


def _runs(said: Sequence[str], form: QuestionForm) -> Iterator[tuple[str, str, bool]]:
    """Yield each run of words that are not the question's: the word before it, the run, and whether a noun follows."""
    run: list[str] = []
    before = ""
    for word in [*said, ""]:
        bare = word.strip(".,!?\"'").casefold().removesuffix("'s").removesuffix("’s")
        is_own = bool(bare) and bare not in _FRAME and stem(bare) not in form.words
        if is_own or (run and run[-1][0].isupper() and bare in _JOINING):
            run.append(word.strip(".,!?"))
            continue
        while run and run[-1].casefold() in _JOINING:
            run.pop()
        if run:
            yield before, _proper(run, before), word.islower() and (stem(bare) in form.content or bare in _WHO)
        run, before = [], (before if bare == "the" else "a" if bare == "an" else bare)


def _proper(run: Sequence[str], before: str = "") -> str:
    """Return the name after a description, such as "English playwright", or before a verb, else the whole run."""
    lower = [place for place, word in enumerate(run) if word[0].islower() and word not in _JOINING]
    if lower and run[-1][0].isupper():
        return " ".join(run[lower[-1] + 1 :])
    is_before_verb = bool(lower) and run[0][0].isupper() and (before or len(lower) > 1)
    return " ".join(run[: lower[0]] if is_before_verb else run)


def _bare(clause: str, has_more: bool) -> str:
    """Return the words of a short reply such as "It's Venus": all but those that every reply can have."""
    said = re.sub(r"^(?:it|that|he|she)'s\s", "", clause.replace("’", "'").strip(" .!"), flags=re.IGNORECASE).split()
    while said and said[0].casefold() in _FRAME:
        said = said[1:]
    while said and said[-1].casefold() in _FRAME:
        said = said[:-1]
    if len(said) > 1 and said[-1][0].isupper():
        said = _proper(said).split()
    is_short = len(said) <= MOST_WORDS - has_more and not {word.casefold() for word in said} & (_FRAME - _JOINING)
    is_name = (
        bool(said)
        and (said[0][0].isupper() or not has_more)
        and not re.search(r"^\w+ly\b|\b[a-z]+ing$", " ".join(said))
    )
    return " ".join(said) if is_short and is_name and not {"knows", "early", "late", "hard"} & set(said) else ""


_HAN_LEAD = re.compile(r"^(?:我想|我认为|我觉得|[一通普][般常遍]认为|应该|(?:正确)?答案|其实|毫无疑问|这幅画|这本书)*")
_HAN_IS = re.compile(r"(?:被称为|被认为是|叫做|名叫|就是|是|为|叫|即)")
_HAN_DOES = r"(?:所?写|著|发明|创作|画|发现|设计|建立)"
_HAN_BY = re.compile(rf"(?:由|出自)(.{{2,12}}?)(?:于|在|之手|{_HAN_DOES})")
_HAN_DID = re.compile(rf"{_HAN_DOES}(?:了|出|的|过)?.*$")
_HAN_TITLE = re.compile(r"^.*(?:作家|[说画作曲科学明治]家|诗人|皇帝|总统|导演)(?=.{2,4}$)")
_HAN_NONE = re.compile(r"[不没有无取于个]|因为|[吗呢?？]")


def _han_own(form: QuestionForm) -> set[str]:
    """Return the characters that are the question's, or those of every answer."""
    return {*filter(is_chinese, form.words), *readers.HAN_FRAME, *"你您我的它其由被于之这那地位作者发明人画写家"}


def _han_name(sentence: str, form: QuestionForm, may_be_bare: bool) -> str:
    own = _han_own(form)
    for clause in _CLAUSE.split(simplified(sentence))[:2]:
        clause, name = _HAN_LEAD.sub("", clause), ""
        if by := _HAN_BY.search(clause):
            name = by[1]
        elif copula := _HAN_IS.search(clause):
            left, right = clause[: copula.start()], clause[copula.end() :]
            right = _HAN_DID.sub("", right) if len(right) > 2 else right
            is_asked = set(right) <= own or set(form.content) <= set(right)
            name = right if set(left) <= own else left if is_asked else ""
        elif (did := _HAN_DID.search(clause)) and did.start() > 1:
            name = clause[: did.start()]
        elif may_be_bare and _length(clause) <= MOST_WORDS - 1 and not _HAN_NONE.search(clause):
            name = clause
        elif set(form.content) <= set(clause):
            name = clause.lstrip("".join(own)).rstrip("".join(form.words))
        name = _HAN_TITLE.sub("", name).strip(" ·") if len(name) > 4 else name
        if not _DENIED.search(clause) and 0 < _length(name) <= 2 * MOST_WORDS and not set(name) <= own:
            return name
    return ""
