"""Reads what an answer in plain prose, without a mark, states: yes or no, a number, a list or a name.

The question decides which rule reads. The rules prefer to read nothing than something else: questions, refusals,
denials and opinions of others state no answer, and two different statements neither.
"""

import re
from itertools import combinations

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import CHOICE, DATE, NUMBER, SPAN, FinalAnswer, read_conclusion
from qubic_lab.consensus.conclusions import sentences
from qubic_lab.consensus.contradictions import verdict
from qubic_lab.consensus.dates import may_agree
from qubic_lab.consensus.prose_lists import read_list
from qubic_lab.consensus.prose_names import read_name
from qubic_lab.consensus.prose_numbers import read_number
from qubic_lab.consensus.prose_sentences import (
    CLAUSE,
    DENIED,
    MOST_SENTENCES,
    MOST_WORDS,
    NO_STATEMENT,
    SHORTEST_SENTENCE,
    agreed,
    length,
    repeats,
    said_in,
)
from qubic_lab.consensus.prose_verdicts import read_verdict
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import is_chinese, stem, words

_CORRECTED = re.compile(
    r"(?<=[.!?…])\s(?:oh,?\s|no,?\s)?(?:wait|sorry|correction|on\ssecond\sthought)\b(?=\W)\W{1,3}(?:i\s(?:mean|meant)\s)?",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"(?<=[.!?…\n])\s?(?:but|however|no),?\s(?:this|that|it)\b[^.!?\n]{0,60}?(?:\bnot|n't)\s(?:correct|right)\b",
    re.IGNORECASE,
)
"""Only what follows these two counts."""
_SORRY = re.compile(r"\bi(?:'m|\sam)\s(?:\w+\s)?sorry\b", re.IGNORECASE)
_CONCEDED = re.compile(r"^(?:despite|although|(?:even\s)?though|unlike|while)\b[^,]*,\s*", re.IGNORECASE)
_COMPARED = re.compile(
    r"(\b(?:than|before|after|unlike|rather|instead)\b|,\s*(?:not|(?:al)?though|while|whereas)\b|\bbut\s+not\b|(?<=\w)\sas\s(?=(?:an?|the)\s)|比(?!较)|而不是)",
    re.IGNORECASE,
)
_NO_REPLY = re.compile(rf"{DENIED.pattern}|^(?:however|but)\b|\b(?:nobody|nothing)\b", re.IGNORECASE)


_CLAUSE_LIKE = re.compile(
    r"\W*(?:you|they|we|i|he|she|it|this|that|there|both|neither|everyone|nobody)(?:'\w+)?\s(?!(?:is|was|are|were)\b)\w",
    re.IGNORECASE,
)
"""A text that has a verb of its own is no name."""


_VERBS = {"is", "are", "was", "were"}


def read_plain(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the answer of a text without emphasis to a question of one of these forms, without letters; else None."""
    if form.options:
        return None
    text = _CORRECTED.split(text)[-1]
    text = text if form.kind == CHOICE else _TAKEN_BACK.split(text)[-1]
    if form.alternatives:
        return _read_alternative(text, form)
    if form.asks_list:
        return read_list(text, form)
    if form.kind == CHOICE:
        said, opened = said_in(text), sentences(text)[:1]
        return read_verdict(said, form, verdict(opened[0]) if opened and not _SORRY.search(opened[0]) else "")
    if form.kind == NUMBER:
        return read_number(said_in(text), form)
    if form.kind == DATE:
        return _read_date(said_in(text), form)
    return read_name(said_in(text), form) if form.asks_name and "=" not in text else None


_UNDECIDED = re.compile(r"\b(?:both|either|neither|depends)\b", re.IGNORECASE)


_OTHER_EVENT = re.compile(r"\b(?:born|birth|died?|death)\b", re.IGNORECASE)


def _is_other_event(text: str, form: QuestionForm) -> bool:
    return _OTHER_EVENT.search(text) is not None and not _OTHER_EVENT.search(" ".join(form.words))


def _read_date(said: list[str], form: QuestionForm) -> FinalAnswer | None:
    """Return the date of the sentence that repeats most of the question; of one with two different dates nothing."""
    found: list[tuple[str, FinalAnswer]] = []
    for sentence in said:
        if _is_other_event(sentence, form):
            sentence = ", ".join(part for part in CLAUSE.split(sentence) if not _is_other_event(part, form))
        whole = read_conclusion(sentence, form, False)
        parts = [sentence] if whole and whole.kind == DATE else CLAUSE.split(sentence)
        dates = [date for part in parts if (date := read_conclusion(part, form, False)) and date.kind == DATE]
        hit = repeats(sentence, form)
        is_about = not hit or 2 * hit >= min(len(form.content), MOST_WORDS)
        if is_about and all(may_agree(one.value, other.value) for one, other in combinations(dates, 2)):
            found += [(sentence, date) for date in dates[:1]]
    return agreed(found, form) if found else None


def _read_alternative(text: str, form: QuestionForm) -> FinalAnswer | None:
    """Return the one of two things to choose that sentences prefer: the first in "A is larger than B"."""
    names = {name: [*map(stem, name.split())] for name in form.alternatives}
    chosen: dict[str, str] = {}
    compared = {*form.content}.difference(*names.values())
    for number, sentence in enumerate(sentences(text)[:MOST_SENTENCES]):
        said = {*map(stem, words(sentence))}
        if _UNDECIDED.search(sentence) and (not number or all(said.issuperset(name) for name in names.values())):
            return None
        is_about = not number or not compared.isdisjoint(said) or form.is_reversed_by(sentence)
        main, relation, rest = (*_COMPARED.split(_CONCEDED.sub("", sentence), maxsplit=1), "", "")[:3]
        named = [_named(part, names) for part in (main, rest)]
        is_turned = form.is_reversed_by(sentence) or (relation == "after" and "first" in form.words)
        if is_turned and len(named[0]) == 1 and not named[1]:
            named[1] = [*form.alternatives - {*named[0]}]
        if len(named[0]) > 1:
            parts = sorted(CLAUSE.split(main), key=lambda part: repeats(part, form))
            if len(parts) > 1 and repeats(parts[-1], form) > repeats(parts[-2], form):
                named[0] = _named(parts[-1], names)
        if len(own := named[is_turned]) == 1 and is_about and not NO_STATEMENT.search(sentence.rstrip("!！")):
            chosen[own[0]] = sentence
    return FinalAnswer(CHOICE, *chosen.popitem()) if len(chosen) == 1 else None


def _named(part: str, names: dict[str, list[str]]) -> list[str]:
    """Return the names whose stems a text has in a clause without negation."""
    return readers.named(re.sub("[A-Za-z]+", lambda word: stem(word[0].casefold()), part), names)


def may_be(found: FinalAnswer, text: str, form: QuestionForm) -> bool:
    """Return whether a part of a text may answer the question, though `read_plain` finds nothing."""
    kind = found.kind
    if form.options or form.alternatives:
        return bool(form.options)
    if form.kind == NUMBER:
        return kind not in (NUMBER, SPAN)
    if form.kind == CHOICE or form.asks_list or (kind == DATE and _is_other_event(text, form)):
        return False
    is_echo = form.words.issuperset(map(stem, words(found.value))) and not is_chinese(text)
    if is_echo or (kind == SPAN and (_CLAUSE_LIKE.match(text) or _VERBS & {*found.value.split()[1:]})):
        return False
    is_open = not (form.asks_name or (form.asks_what and kind == SPAN))
    return is_open or kind == CHOICE or (length(text) <= SHORTEST_SENTENCE and not _NO_REPLY.search(text))
