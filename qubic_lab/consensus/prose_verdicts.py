"""Reads the yes or no of an answer in plain prose."""

import re
from collections.abc import Iterable, Sequence

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import CHOICE, FinalAnswer
from qubic_lab.consensus.prose_names import TAGS
from qubic_lab.consensus.prose_sentences import BRACKETS, CLAUSE, DENIED, QUOTES, length, repeats
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import HAN_OPPOSITES, is_chinese, polarity, simplified, stem, words

MOST_ADDED = 5
"""Words beside the question's in a sentence that says yes or no by repeating the question."""

_TOLD = re.compile(
    r"(?:(?:so|but|and|then|therefore|hence|thus|well|indeed|practically|actually)\s+)*(?:"
    r"(?:(?:i(?:'d|\s+would|\s+must)?\s+(?:say|answer)|(?:the|my)\s+(?:\w+\s+)?answer\b.{0,40}?\bis)\s+)?"
    r"(?:其实|当然|绝对|千万|最好|严格来说|一般来说|一般|通常|理论上|所以|因此|我认为|答案|应该|恐怕)*是?"
    r"(?:i\s+(?:believe|think)\s+so|yes(?:\s+(?:it|he|she|they|you|we|there)\s+\w+)?|yep|肯定的|(?P<no>nope|no(?:\s+way)?|i\s+(?:do\s+not|don't)\s+think\s+so|not\s+(?:really|usually|often|yet|entirely|at\s+all|quite|exactly|always|necessarily|(?:all|every|each)(?:\s+of\s+\w+)?|even\s+close)"
    r"|(?:不是|不能|不会|不行|不要|不算|不宜|不建议|不可以|不可能|否定)的?[喔哦啊呢啦]?))\W*$"
    r"|(?:it|he|she|they|we|you|i|that|this|there)\s(?:(?:probably|really|certainly|definitely)\s)?"
    r"(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have)"
    r"(?P<denied>\s?not|n?'t)?\W*$"
    r"|(?P<refuted>(?:it|that|this)(?:(?:'s|\sis)\snot|\sisn't)\s(?:recommended|advisable|possible|allowed|permitted|safe|true"
    r"|correct|legal|necessary|required)\W*$|(?:it|that|this)(?:'s|\sis)\s(?:\w+\s)?an?\s(?:\w+\s)?(?:myth|misconception)\W*$"
    r"|(?:it|that|this)(?:'s|\sis)\s(?:just\s|only\s)?an?\sold\swives'?\stale\W*$"
    r"|there(?:'s|\sis)\sno\s(?:\w+\s)?(?:evidence|proof)\b.{0,100}$)"
    r"|(?P<never>(?:it|he|she|they|we|you|i)\snever\s(?:is|are|was|were|do|does|did|can|will))\W*$"
    r"|(?P<forbidden>(?:please\s)?(?:never|do(?:\s?not|n't)(?:\sever)?)(?:\sdo\s(?:it|so|that|this))?\W*$))",
    re.IGNORECASE,
)
_TO_REASONS = re.compile(
    r"(?:(?<!\s)\s+)?(?:\b(?:because|since|although|though|while|whereas|which|who|but|except|unless|provided)\b|,\s*with\b|[;:；：]"
    r"|[，,]?(?:因为|而是|除非)).*",
    re.I | re.S,
)
_CONTRAST = re.compile(r"((?:,|\bbut|,\s*but|,\s*just|，?而|，)\s*(?:not\b|不是|不算|不属于|非))", re.IGNORECASE)
_OPENING = re.compile(r"^(?:yes|no),\s", re.IGNORECASE)
_PRONOUN = re.compile(r"^(?:it|they|s?he)\b", re.IGNORECASE)
_SHORT_REPLY = re.compile(r"it\s?(?:is|was|'s)|不?(?:可以|能|会|有|需要|应该)", re.IGNORECASE)
_UNSURE = re.compile(
    r"\b(?:whether|if|not\s+only|think|may|might|question|until|used\s+to|once)\b|[以认]为|是否|曾", re.IGNORECASE
)


def read_verdict(said: Sequence[str], form: QuestionForm, opened: str) -> FinalAnswer | None:
    """Return the verdict that sentences give, if only one; `opened` is that of the whole text's opening."""
    said = [
        QUOTES.sub("", simplified(BRACKETS.sub("", each)))
        for each in said
        if not re.match(r"if\b.*\bthen\b", each, re.I)
    ]
    told = {"no" if any(no.groups()) else "yes" for s in said for c in CLAUSE.split(s) if (no := _TOLD.match(c))}
    told |= {opened} - {""}
    subject = next((word for word in form.content if word.isalpha()), "")
    said[1:] = [_PRONOUN.sub(subject, each) for each in said[1:]] if subject else said[1:]
    said = [_OPENING.sub("", each) for each in said]
    restating = enumerate(each for each in said if not (told and is_chinese(each)))  # Chinese repeats by chance
    told |= {v for n, each in restating for v in _restated_with_contrast(each, form, n == 0 and not told) if v}
    return FinalAnswer(CHOICE, told.pop(), " ".join(said[:1])) if len(told) == 1 else None


def _restated_with_contrast(sentence: str, form: QuestionForm, may_reply: bool) -> tuple[str, ...]:
    """Return what a sentence says of the question, and what it says by a contrast: "a star, not a planet" is no."""
    main, contrast, other = (*_CONTRAST.split(sentence, maxsplit=1), "", "")[:3]
    added = {stem(word) for word in words(main)} - {*form.words, *TAGS}
    tail = [stem(word) for word in words(_TO_REASONS.sub("", other))]
    is_denied = (
        contrast and form.content and form.content[-1] in tail and not any(TAGS.get(w, "x") in "bv" for w in tail)
    )
    if is_denied and added:
        return ("no",)
    said = _restated(main, form, may_reply)
    if not said and may_reply and is_chinese(main):
        said = _restated(CLAUSE.split(main)[0], form, True)
    return said, "no" if is_denied else ""


def _restated(sentence: str, form: QuestionForm, may_reply: bool) -> str:
    """Return yes or no if the main part has all content words of the question, or opposites, or only such words."""
    sentence = re.sub(
        r"^(?:(?:even\s)?though|although|despite|while|since|because)\b[^,]*,\s*", "", sentence, flags=re.IGNORECASE
    )
    part = _TO_REASONS.sub("", sentence)
    asked = dict(map(_key, form.content))
    signs = {key: sign for word in words(part) for key, sign in [_key(word.removesuffix("'s"))]}
    if not form.words & {"than", "all"}:  # a surname says who is meant
        asked = {key: sign for key, sign in asked.items() if key in signs or key not in form.given}
    known = {*form.words, *TAGS, *readers.HAN_FRAME}
    spoken = words(DENIED.sub(" ", part))
    added = [
        (n, word) for n, word in enumerate(spoken) if not {word, stem(word)} & known and _key(word)[0] not in asked
    ]
    end = max((n for n, word in enumerate(spoken) if _key(word.removesuffix("'s"))[0] in asked), default=len(spoken))
    before = length(" ".join(word for place, word in added if place < end))
    said = asked.keys() & signs.keys()
    is_counted = any(key.isdecimal() or key in _HAN_NUMERALS for key in asked.keys() - signs.keys())
    is_reply = (
        may_reply and not added and not is_counted and (len(said) > 1 or re.match(r"(?:it|they|s?he)\b", part, re.I))
    )
    is_whole = len(said) == len(asked) and before <= MOST_ADDED
    is_turned = (
        before
        and len(said) > 1
        and not is_chinese(part)
        and not (
            "than" in form.words and "than" in spoken and known.issuperset(map(stem, spoken[spoken.index("than") :]))
        )
        and [key for key in signs if key in asked][-1] == next(iter(asked))
    )
    is_taken_back = re.match(r"\W*but\s(?:it|they|s?he|this|that)\b.*?(?:\bnot\b|n't)", sentence[len(part) :], re.I)
    is_other = is_turned or is_taken_back or ("#all" in asked and "#all" not in said) or _UNSURE.search(part)
    is_pronoun = may_reply and not added and said and (_SHORT_REPLY.match(part) or (is_reply and len(said) > 1))
    if not asked or ([*asked][-1] not in said and not is_pronoun) or not (is_whole or is_reply) or is_other:
        return ""
    swaps = _swaps(asked, signs, is_chinese(part)) if {"than", "比"} & form.words else 0
    clauses = CLAUSE.split(part) if is_chinese(part) else [part]
    last = [each for each in clauses if form.content[-1] in words(each)] or [part]
    last = [each for each in last if repeats(each, form) == len(form.content)] or last
    denials = [len(DENIED.findall(text)) for text in (last[-1], " ".join(form.content))]
    flips = abs(denials[0] - denials[1]) + sum(signs.get(key, sign) != sign for key, sign in asked.items())
    if swaps > 1 or flips > 1 + swaps:
        return ""
    return ("yes", "no")[(flips + swaps) % 2]


def _swaps(asked: Iterable[str], said: Iterable[str], is_han: bool) -> int:
    """Return 0 if two things are compared in the order of the question, 1 in the other order, 2 if it is unclear.

    That gold is heavier than water says that water is not heavier than gold.
    """
    asked, said = [*asked], [*said]
    compared = [key for key in asked if not key.startswith("#")]
    compared = compared[:-1] if is_han and not asked[-1].startswith("#") else compared
    others = [pair for pair in zip(compared, filter(compared.__contains__, said), strict=False) if pair[0] != pair[1]]
    if not {*compared} <= {*said}:
        return 2
    return len(others) // 2 if not others or others[0] == others[-1][::-1] else 2


_HAN_NUMERALS = frozenset("二两三四五六七八九十百千万")
_HAN_GRADES = frozenset("快慢大小高低多少长短重轻早晚厚薄贵热冷")


def _key(word: str) -> tuple[str, int]:
    """Return a word's stem, or its pair of opposites, and the side."""
    return polarity(word) or (HAN_OPPOSITES.get(word) if word in _HAN_GRADES else None) or (stem(word), 1)
