"""The quality of an answer by itself and among others: relevance, consistency, completeness and named faults.

The rules prefer to miss a fault than to invent one, and each fault has evidence. They do not know the right answer:
quality is not correctness.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise

import numpy as np
from rapidfuzz.distance import Levenshtein

from qubic_lab.consensus.answer_readers import PROSE, SPAN, FinalAnswer
from qubic_lab.consensus.answers import before_cut, final_answer, same
from qubic_lab.consensus.conclusions import boxed, marked_conclusion, without_thoughts
from qubic_lab.consensus.similarity import COSINE_DIGITS, Embed, Similarities, content_of, foreign_script, words_of
from qubic_lab.consensus.words import simplified

OFF_TOPIC_BELOW = 0.13
"""Cosine of question and answer; the highest that drops no answer to its own question on the development half of the
labelled pairs (`evals.pairs_eval.choose_off_topic`)."""
FEWEST_WORDS = 3
"""A shorter answer fits any topic, so it has no relevance."""
OPEN_KINDS = (SPAN, PROSE)
"""Only these final answers can be off topic: a number, a choice, a date or code has little in common with any text."""
NGRAM = 4
FEWEST_NGRAMS = 8
REPEATING_FROM = 0.5
"""Share of repeated n-grams from which an answer is a loop."""
FEWEST_ECHOED = 5
ECHO_FROM = 0.9
"""Word similarity of an answer to the beginning of its question from which it is an echo."""
SHORT_REFUSAL = 40
"""Words; a longer text that says "I don't know" or "as an AI" may go on to answer."""


class FaultKind(StrEnum):
    """What can be wrong with an answer."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    REFUSING = "refusing"
    REPEATING = "repeating"
    ECHO = "echo"
    OFF_TOPIC = "off topic"
    SELF_CONTRADICTING = "self-contradicting"


UNUSABLE = frozenset({FaultKind.EMPTY, FaultKind.REFUSING, FaultKind.ECHO, FaultKind.OFF_TOPIC})
"""Faults that always exclude an answer from the vote; for the others see `judge`."""
_WORTHLESS = frozenset({FaultKind.EMPTY, FaultKind.REFUSING, FaultKind.ECHO})


@dataclass(frozen=True)
class AnswerFault:
    """What is wrong with an answer, and the evidence."""

    name: FaultKind
    evidence: str


@dataclass(frozen=True)
class Quality:
    """The quality of an answer; each part is from 0 to 1, or None if unknown.

    `relevance` to the question is `cosine`, or `terms` without embeddings; None for a few words. `cosine` is that of
    question and answer, 0 if negative; `terms` is the share of the question's content words that the answer uses.
    `consistency` is the mean of `agreement`, the mean similarity to the other answers, and `coherence`, 0 for
    self-contradiction. `completeness` is 0 for an empty, refusing or echoing answer, halved if truncated, less the
    repeated share of a loop. A `usable` answer should have a vote.
    """

    relevance: float | None
    cosine: float | None
    terms: float
    consistency: float
    agreement: float | None
    coherence: float
    completeness: float
    faults: tuple[AnswerFault, ...]
    usable: bool

    @property
    def value(self) -> float:
        """Completeness times the mean of consistency and relevance, if known."""
        return self.completeness * _mean(self.relevance, self.consistency)

    @property
    def why_unusable(self) -> str:
        """The faults with their evidence if the answer should have no vote, else ""."""
        return "" if self.usable else "; ".join(f"{fault.name}: {fault.evidence}" for fault in self.faults)


def judge_all(
    question: str,
    texts: Sequence[str],
    finish_reasons: Sequence[str],
    answers: Sequence[FinalAnswer],
    similarities: Similarities,
    embed: Embed | None = None,
) -> tuple[Quality, ...]:
    """Judge the answers to one question; without `embed` no answer is off topic.

    `finish_reasons` are `stop`, `length` or ""; `answers` and `similarities` are those of the texts.
    """
    agreements = [
        float(np.delete(row, i).mean()) if len(texts) > 1 else None for i, row in enumerate(similarities.values_NN)
    ]
    found = zip(texts, finish_reasons, answers, cosines(question, texts, embed), agreements, strict=True)
    return tuple(judge(text, question, ended, answer, near, agree) for text, ended, answer, near, agree in found)


def cosines(question: str, texts: Sequence[str], embed: Embed | None) -> list[float | None]:
    """Return the cosine of each answer and its question, from 0 to 1; None if embeddings do not count."""
    said = [without_thoughts(text) for text in texts]
    read = [i for i, text in enumerate(said) if not foreign_script(text)]
    if embed is None or not read or foreign_script(question):
        return [None] * len(texts)
    vectors_ND = embed([question, *(said[i] for i in read)]).vectors_ND.astype(float)
    near = (vectors_ND[1:] @ vectors_ND[0]).clip(0.0, 1.0).round(COSINE_DIGITS)
    found = dict(zip(read, near.tolist(), strict=True))
    return [found.get(i) for i in range(len(texts))]


def judge(
    text: str,
    question: str,
    finish_reason: str,
    answer: FinalAnswer,
    cosine: float | None = None,
    agreement: float | None = None,
) -> Quality:
    """Judge one answer, including its thoughts; `cosine` and `agreement` are None if unknown.

    A truncated answer is usable if it had come to a conclusion (`answers.before_cut`), a loop only if that is marked.
    """
    said = without_thoughts(text).strip()
    words = words_of(said)
    evidence = {
        FaultKind.EMPTY: _emptiness(text, words),
        FaultKind.TRUNCATED: _cut(text, said, finish_reason),
        FaultKind.REFUSING: _refusal(said, len(words)),
        FaultKind.REPEATING: _loop(words),
        FaultKind.ECHO: _echo(words, words_of(question)) if _may_echo(answer, question) else "",
        FaultKind.OFF_TOPIC: _off_topic(words, answer, cosine),
        FaultKind.SELF_CONTRADICTING: _self_contradiction(text, said, question, answer),
    }
    names = {name for name, found in evidence.items() if found}
    terms = _terms(question, words)
    relevance = None if len(words) < FEWEST_WORDS else terms if cosine is None else cosine
    coherence = 0.0 if FaultKind.SELF_CONTRADICTING in names else 1.0
    completeness = 0.0 if names & _WORTHLESS else 0.5 if FaultKind.TRUNCATED in names else 1.0
    if FaultKind.REPEATING in names:
        completeness *= 1 - repeated_share(words)
    return Quality(
        relevance=relevance,
        cosine=cosine,
        terms=terms,
        consistency=_mean(agreement, coherence),
        agreement=agreement,
        coherence=coherence,
        completeness=completeness,
        faults=tuple(AnswerFault(name, found) for name, found in evidence.items() if found),
        usable=_is_usable(names, text, question),
    )


def repeated_share(words: Sequence[str]) -> float:
    """Return the share of repeated n-grams: 0 without repetitions, towards 1 for a loop.

    Source: S. Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020 (seq-rep-4).
    """
    ngrams = _ngrams(words)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _mean(*parts: float | None) -> float:
    known = [part for part in parts if part is not None]
    return sum(known) / len(known)


def _ngrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def _terms(question: str, words: Sequence[str]) -> float:
    asked = set(content_of(words_of(question)))
    return len(asked & set(content_of(words))) / len(asked) if asked else 0.0


# --- Faults: the evidence, or an empty text


def _emptiness(text: str, words: Sequence[str]) -> str:
    return "" if words else f"there is no word {'after its thoughts' if '<think>' in text else 'in it'}"


def _cut(text: str, said: str, finish_reason: str) -> str:
    if _is_thinking(text):
        return "its thoughts have no end"
    if finish_reason == "length":
        return "it ended at the limit of tokens"
    if len(_FENCE.findall(said)) % 2:
        return "a block of code has no end"
    if "\\boxed" in said and boxed(said[said.rindex("\\boxed") :]) is None:
        return "a box has no end"
    found = _UNFINISHED.search(said)
    return f"it ends in {found[1]!r}" if found else ""


def _is_thinking(text: str) -> bool:
    return text.rfind("<think>") > text.rfind("</think>")


def _is_usable(faults: Set[FaultKind], text: str, question: str) -> bool:
    """Return whether an answer with these faults should have a vote (see `judge`)."""
    if faults & UNUSABLE or _is_thinking(text):
        return False
    if not faults & {FaultKind.TRUNCATED, FaultKind.REPEATING}:
        return True
    concluded = before_cut(text, question)
    return bool(concluded) and (FaultKind.REPEATING not in faults or marked_conclusion(concluded) is not None)


def _refusal(said: str, length: int) -> str:
    if marked_conclusion(said) is not None:
        return ""
    said = simplified(said.replace("’", "'"))
    found = _REFUSAL.match(said) or (length <= SHORT_REFUSAL and _IGNORANCE.search(said))
    return f"it says {found[0].strip()!r}" if found else ""


def _loop(words: Sequence[str]) -> str:
    ngrams = _ngrams(words)
    share = repeated_share(words)
    if len(ngrams) < FEWEST_NGRAMS or share < REPEATING_FROM:
        return ""
    most, times = Counter(ngrams).most_common(1)[0]
    return f"{share:.0%} of it has come before; {' '.join(most)!r} comes {times} times"


def _may_echo(answer: FinalAnswer, question: str) -> bool:
    """Return whether an answer adds nothing to its question; a name in the place of "who" does."""
    return answer.kind in OPEN_KINDS and (answer.kind == PROSE or {*words_of(answer.value)} <= {*words_of(question)})


def _echo(words: Sequence[str], asked: Sequence[str]) -> str:
    likeness = Levenshtein.normalized_similarity(words, asked[: len(words)])
    if len(words) < FEWEST_ECHOED or likeness < ECHO_FROM:
        return ""
    return f"{likeness:.0%} of it is the question"


def _off_topic(words: Sequence[str], answer: FinalAnswer, cosine: float | None) -> str:
    if cosine is None or cosine >= OFF_TOPIC_BELOW or len(words) < FEWEST_WORDS or answer.kind not in OPEN_KINDS:
        return ""
    return f"its similarity to the question is {cosine:.2f}, below {OFF_TOPIC_BELOW}"


def _self_contradiction(text: str, said: str, question: str, answer: FinalAnswer) -> str:
    thoughts = text.rpartition("</think>")[0]
    if answer.value and marked_conclusion(thoughts) is not None:
        thought = final_answer(thoughts.replace("<think>", ""), question)
        if same(thought, answer) is False:
            return f"it thinks {thought.value!r} and says {answer.value!r}"
    return _two_conclusions(said, question) or next(wrong_calculations(said), "")


def _two_conclusions(said: str, question: str) -> str:
    if _CORRECTION.search(said):
        return ""
    marked = [sentence for sentence in _SENTENCE_END.split(said) if marked_conclusion(sentence) is not None]
    answers = [final_answer(sentence, question) for sentence in marked] if len(marked) > 1 else []
    for first, second in pairwise(answers):
        if same(first, second) is False:
            return f"it concludes {first.value!r} and {second.value!r}"
    return ""


_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_UNFINISHED = re.compile(
    r"(?<=.)([,，、;；:：(（=×]|(?<=\s)(?:the|an?|of|and|or|because|which|with|but|if|than)"
    r"|因为|所以|但是|而且|以及|并且)$"
)
_SENTENCE_END = re.compile(r"[。!！?？\n]|\.(?=\s|$)")
_APOLOGY = r"""\W*
    (?:(?:i(?:'m|\sam)(?:\s\w+)?\ssorry|sorry|unfortunately|my\sapologies|i\sapologi[sz]e|as\san?\s[^,.]{0,40})[,.!]?\s*)?
    (?:but\s)?(?:as\san?\s[^,.]{0,40},\s*)?
"""
_REFUSAL = re.compile(
    _APOLOGY
    + r"""i(?:\s?'m|\sam)?\s(?:can't|cannot|can\snot|unable\sto|not\sable\sto|won't|will\snot|(?:must\s)?decline\sto)\s
    (?:answer|help(?!\sbut)|assist|provide|comply|fulfil|discuss|respond|create|write|generate|see|view|access|open
    |predict|know|tell|say|determine|definitively)
    |(?:抱歉|对不起|很遗憾|不好意思)[^。！!？?]{0,20}(?:无法|不能|没法|看不到|不便|没有办法)
    |我(?:无法|不能|没法|没有办法|不便)(?:直接)?(?:回答|提供|帮|协助|讨论|满足|继续|给出|查看|访问)""",
    re.IGNORECASE | re.VERBOSE,
)
_IGNORANCE = re.compile(
    r"""\bas\san?\s(?:ai|artificial\sintelligence|(?:large\s)?language\smodel)\b
    |\bi\s(?:do\snot|don't)\s(?:know|have\s(?:access|enough|any|the))\b|\bi\shave\sno\s(?:idea|way)\b|^\W*i(?:'m|\sam)\s(?:not\s(?:\w+\s)?sure|unable|unclear|only\san?\sai)\b
    |\b(?:it(?:'s|\sis)\s)?(?:impossible|not\spossible|difficult|hard)\sto\s(?:predict|say|know|tell)\b|\bi\s(?:can't|cannot)\s(?:say|tell|know|predict)\b
    |\b(?:nobody|no\s?one)\s(?:knows|can)\b|^\W*please\s(?:check|consult|provide|tell|share)\b|\btoo\searly\sto\s(?:say|tell)\b|建议[您你]?查看
    |\byou\s(?:haven't|have\snot)\stold\b|\bas\s(?:a|an)\s(?:[\w-]+\s){0,4}(?:chatbot|assistant|ai)\b
    |作为[^，。]{0,12}(?:模型|AI|人工智能|助手)|我不(?:知道|清楚|确定|能)|我没有(?:足够|相关|办法)|没有?人(?:能|知道|会知道)|[无無]法(?:得知|预测|知道|确定|判断)|没有?办法(?:得知|回答|知道)
    |取决于|还没有告诉|您没有告诉""",
    re.IGNORECASE | re.VERBOSE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|mistake|let me re\w+|on second thought)\b|不对|更正|重新", re.IGNORECASE
)


# --- Wrong calculations, exactly, where both sides consist of numbers only


def wrong_calculations(text: str) -> Iterator[str]:
    """Yield the wrong calculations of a text, such as 12 + 5 = 18.

    Results may be rounded to their last digit, or to a whole number after a division. Expressions next to a letter and
    parts of longer equations are skipped.
    """
    text = _COMMA.sub("", text.replace("\\times", "×").replace("\\cdot", "×").replace("\\div", "÷").replace("$", ""))
    for found in _EQUATION.finditer(text):
        if _VARIABLE.search(text[max(0, found.start() - 4) : found.start()]):
            continue
        value = _calculated(found["left"])
        if value is not None and not _rounds_to(value, found["right"], "/" in found["left"] or "÷" in found["left"]):
            yield " ".join(found[0].split())


def _calculated(expression: str) -> Fraction | None:
    try:
        tree = ast.parse(expression.translate(_OPERATORS).strip(), mode="eval").body
        return _exact(tree) if isinstance(tree, ast.BinOp) else None
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError, RecursionError, MemoryError):
        return None


def _exact(tree: ast.expr) -> Fraction:
    if isinstance(tree, ast.BinOp):
        left, right = _exact(tree.left), _exact(tree.right)
        match tree.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_exact(tree.operand)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float):
        return Fraction(str(tree.value))
    raise ValueError(ast.dump(tree))


def _rounds_to(value: Fraction, written: str, is_divided: bool) -> bool:
    """Return whether a result is right; its sign is ignored because a dash may mean a range: 1990-2000 = 10 years."""
    decimals = len(written.partition(".")[2])
    off = abs(abs(value) - abs(Fraction(written)))
    return off < 1 if is_divided and not decimals else off <= Fraction(1, 2 * 10**decimals) * (decimals > 0)


_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_EQUATION = re.compile(  # longer expressions than 200 characters are skipped
    r"(?<![\w.,^%])(?P<left>[\d(][\d \t.()+*/×÷·−-]{1,200}[\d)])[ \t]*=[ \t]*(?P<right>-?\d+(?:\.\d+)?)"
    r"(?![\w%^]|\.\d|[ \t]*[-+*/×÷·−^(=])"
)
_VARIABLE = re.compile(r"(?:[-+*/×÷·−^(]|(?<![^\W\d_])[^\W\d_])\s*$")
_OPERATORS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
