"""How similar answers are, and which of them say the same: pure functions of texts, final answers and vectors.

Similarity has three parts, each from 0 to 1: sentence embeddings, word overlap and structure; edit distance is shown
beside them. A part that is unavailable is dropped and the other weights are scaled up to 1. Final answers take
precedence: answers that differ in their conclusions or contradict each other are never grouped, however similar they
read.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property, lru_cache
from itertools import combinations
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import PlainSerializer, PlainValidator
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from qubic_lab.consensus.answer_readers import CODE, PROSE, SPAN, FinalAnswer
from qubic_lab.consensus.answers import same
from qubic_lab.consensus.conclusions import without_thoughts
from qubic_lab.consensus.contradictions import contradicts
from qubic_lab.consensus.quantities import Quantity, plain, plain_quantities
from qubic_lab.consensus.words import places, stem, word_set, words
from qubic_lab.model.embeddings import MODEL, MOST_TOKENS, Embedded

EMBEDDING_WEIGHT, WORDS_WEIGHT, STRUCTURE_WEIGHT = 0.5, 0.3, 0.2
FOREIGN_SHARE = 0.2
"""Maximum share of non-Latin letters in a text that the embedder can read."""
EDITED = 2_000
"""Words; the time for an edit distance grows with the square of their number."""
COSINE_DIGITS = 6
"""Further digits of a cosine depend on the batch in which its vectors were computed."""

STOPS = word_set(
    """a am an and are as at be been being by can could did do does done for from had has have having he her here his i
    in is it its may might must of on or our shall she should so that the their them then there these they this
    those thus to was we were which will with would you your"""
)
"""Words that carry no content; negations are not among them."""

Matrix = Annotated[
    npt.NDArray[np.float64],
    PlainValidator(lambda rows: np.array(rows, float).reshape(len(rows), len(rows))),
    PlainSerializer(lambda matrix_NN: matrix_NN.tolist()),
]
Mask = npt.NDArray[np.bool_]
Embed = Callable[[Sequence[str]], Embedded]

_UNSPACED = (  # scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Chinese characters
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+(?:['’][^\W\d_{_UNSPACED}]+)*|[^\w\s]")
_CHINESE_NUMERALS = frozenset("零两二三四五六七八九十百千万亿")  # 一 is a part of many words
_DIGIT_COMMA = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
_ASCII_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+(?:\.\d+)?|[<=>+|~]")
_ASCII_LETTER = re.compile(r"[A-Za-z]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SENTENCE_END = re.compile(r"[.!?。！？\n](?:(?<=[。！？\n])|(?=\s|$))")
_ITEM = re.compile(r"^[^\S\n]*(?:[-*+•]|\(?(?:\d{1,2}|[a-zA-Z])[.)、])\s", re.MULTILINE)
_CODE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, eq=False)
class Similarities:
    """The pairwise similarities of N texts, which are the answers without their thoughts.

    `values_NN` is the composite. `embedding_NN` holds cosines, 0 if negative and NaN if they do not count; `notes` say
    why. `words_NN` is the F1 of the multisets of content-word stems; for `structure_NN` see `_structure`.
    """

    texts: tuple[str, ...]
    values_NN: Matrix
    embedding_NN: Matrix
    words_NN: Matrix
    structure_NN: Matrix
    notes: tuple[str, ...]

    @cached_property
    def edit_NN(self) -> Matrix:
        """1 less the edit distance of the first EDITED words as a share of the longer text; not in the composite."""
        said = [words_of(text)[:EDITED] for text in self.texts]
        return np.where(
            _equal(self.texts), 1.0, cdist(said, said, scorer=Levenshtein.normalized_similarity, dtype=np.float64)
        )


def compare(texts: Sequence[str], embed: Embed | None = None) -> Similarities:
    """Compare answers pairwise, without their thoughts; without `embed` only words and structure count."""
    read = tuple(map(without_thoughts, texts))
    equal_NN = _equal(read)
    said = [words_of(text) for text in read]
    embedding_NN, notes = _embedding(read, embed)
    words_NN = np.where(equal_NN, 1.0, _overlap([content_of(each) for each in said]))
    structure_NN = np.where(equal_NN, 1.0, _structure(read, said))
    counts = ~np.isnan(embedding_NN)
    embedding_NN = np.where(equal_NN & counts, 1.0, embedding_NN)
    rest_NN = WORDS_WEIGHT * words_NN + STRUCTURE_WEIGHT * structure_NN
    values_NN = np.where(
        counts,
        EMBEDDING_WEIGHT * np.nan_to_num(embedding_NN) + rest_NN,
        rest_NN / (WORDS_WEIGHT + STRUCTURE_WEIGHT),
    )
    values_NN = np.where(equal_NN, 1.0, values_NN.clip(0.0, 1.0))
    return Similarities(read, values_NN, embedding_NN, words_NN, structure_NN, notes)


def _equal(texts: Sequence[str]) -> Mask:
    return np.array([[a == b for b in texts] for a in texts], bool).reshape(len(texts), len(texts))


# --- The parts


def foreign_script(text: str) -> str:
    """Return the name of a text's main script if it is not Latin, else "".

    Only letters count; a share of up to FOREIGN_SHARE of other letters is ignored (π, Ω, a name).
    """
    text = unicodedata.normalize("NFKC", text)
    scripts = Counter(_script(letter) for letter in _NOT_ASCII.findall(text) if letter.isalpha())
    latin = scripts.pop("Latin", 0)
    if not (foreign := scripts.total()):
        return ""
    latin += len(_ASCII_LETTER.findall(text))
    return scripts.most_common(1)[0][0] if foreign > FOREIGN_SHARE * (latin + foreign) else ""


@lru_cache(256)
def words_of(text: str) -> tuple[str, ...]:
    """Return the lowercase words, numbers and mathematical signs of a text.

    In scripts without spaces (Chinese, Japanese, Thai and others) each character is a word.
    """
    if text.isascii():  # a faster way to the same result
        return tuple(_ASCII_TOKEN.findall(_DIGIT_COMMA.sub("", text.lower())))
    plain = _DIGIT_COMMA.sub("", unicodedata.normalize("NFKC", text).casefold())
    return tuple(word for word in _TOKEN.findall(plain) if word[0].isalnum() or _is_sign(word))


def content_of(said: Sequence[str]) -> list[str]:
    """Return the stems of the content words, or all words if there are none."""
    return [_stem(word) for word in said if word not in STOPS] or list(said)


_stem = lru_cache(1 << 16)(stem)


def _embedding(texts: Sequence[str], embed: Embed | None) -> tuple[Matrix, tuple[str, ...]]:
    """Return the cosines, NaN if they do not count, and notes that explain why."""
    cosines_NN = np.full((len(texts), len(texts)), np.nan)
    if embed is None:
        return cosines_NN, ("embeddings do not count: no embedder is loaded",)
    scripts = [foreign_script(text) for text in texts]
    read = [i for i, script in enumerate(scripts) if not script]
    embedded = embed([texts[i] for i in read])
    vectors_ND = embedded.vectors_ND.astype(np.float64)
    cosines_NN[np.ix_(read, read)] = (vectors_ND @ vectors_ND.T).clip(0.0, 1.0).round(COSINE_DIGITS)
    notes = [
        f"embeddings do not count for answer {i + 1}: {MODEL} was not trained on the script {script}"
        for i, script in enumerate(scripts)
        if script
    ]
    notes += [
        f"the embedding of answer {i + 1} is of its first {MOST_TOKENS} tokens"
        for i, cut in zip(read, embedded.cut, strict=True)
        if cut
    ]
    return cosines_NN, tuple(notes)


def _overlap(bags: Sequence[Sequence[str]]) -> Matrix:
    """Return the pairwise F1 of multisets: twice the shared size over the sum of sizes; 0 for empty ones."""
    columns: dict[str, int] = {}
    rows = [[columns.setdefault(word, len(columns)) for word in bag] for bag in bags]
    counts_NV = np.array([np.bincount(np.array(row, int), minlength=len(columns)) for row in rows])
    shared_NN = np.array([np.minimum(counts_V, counts_NV).sum(axis=1) for counts_V in counts_NV], float)
    sizes_N = np.array([len(row) for row in rows])
    return _ratio(2 * shared_NN.reshape(len(rows), len(rows)), np.add.outer(sizes_N, sizes_N))


def _structure(texts: Sequence[str], said: Sequence[Sequence[str]]) -> Matrix:
    """Return the pairwise mean of the available structure parts.

    The parts are the ratios, smaller over larger, of the numbers of words, sentences, list items and code lines, and
    the F1 of the numerals. A part that neither text has does not count.
    """
    sizes_NF = np.array([(len(each), *_shape(text)) for text, each in zip(texts, said, strict=True)], float)
    sizes_NF = sizes_NF.reshape(len(texts), 4)
    numerals = [[word for word in each if word[0].isdecimal()] for each in said]
    has_N = np.array([bool(each) for each in numerals], bool)
    parts = [_ratio(np.minimum.outer(size, size), np.maximum.outer(size, size)) for size in sizes_NF.T]
    known = [np.maximum.outer(size, size) > 0 for size in sizes_NF.T]
    parts.append(_overlap(numerals))
    known.append(np.logical_or.outer(has_N, has_N))
    return _ratio(np.sum(parts, axis=0), np.sum(known, axis=0))


def _shape(text: str) -> tuple[int, int, int]:
    """Return the numbers of sentences, list items and code lines."""
    code = 0
    if "```" in text:
        code = sum(block.strip("\n").count("\n") + 1 for block in _CODE.findall(text))
        text = _CODE.sub("\n", text)
    sentences = sum(not part.isspace() for part in _SENTENCE_END.split(text) if part)
    return sentences, len(_ITEM.findall(text)), code


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Matrix:
    """Divide; 0 for a divisor of 0."""
    quotient: Matrix = np.zeros(np.shape(above))
    np.divide(above, below, out=quotient, where=np.asarray(below) > 0)
    return quotient


@cache
def _script(letter: str) -> str:
    """Return a letter's script, such as Latin, Cjk or Cyrillic, from its Unicode name."""
    return unicodedata.name(letter, "Unknown").split()[0].capitalize()


@cache
def _is_sign(character: str) -> bool:
    """Return whether a character has a meaning of its own: <, > and emoji do; commas and asterisks do not."""
    return unicodedata.category(character) in ("Sm", "So")


# --- Which answers say the same


LONGEST_STATEMENT = 25
"""Words; a longer text may mention a short answer in passing."""
LONGEST_SWAP = 8
"""Content words; in a longer text another word order is mostly a paraphrase."""


class Bond(StrEnum):
    """Why two answers belong together or apart."""

    SAME = "same final answer"
    STATED = "one states the other's answer"
    DIFFERENT = "different final answers"
    CONTRADICTING = "contradiction"
    ALIKE = "alike"
    UNLIKE = "not alike"


JOINING = (Bond.SAME, Bond.STATED, Bond.ALIKE)
SEPARATING = (Bond.DIFFERENT, Bond.CONTRADICTING)


@dataclass(frozen=True)
class SimilarityThresholds:
    """The least composite similarity of answers that say the same if rules cannot decide.

    These are the lowest multiples of 0.05 at which similarity joins no two different answers of the development half of
    the labelled pairs (`evals.pairs_eval.choose_thresholds`).
    """

    with_embedding: float = 0.8
    without_embedding: float = 0.9


THRESHOLDS = SimilarityThresholds()


def bonds(
    answers: Sequence[FinalAnswer], similarities: Similarities, thresholds: SimilarityThresholds = THRESHOLDS
) -> tuple[tuple[Bond, ...], ...]:
    """Return the symmetric matrix of bonds between the answers to one question."""
    distinct = _first_of_each(similarities.texts)
    found = {
        frozenset(pair): _bond(answers, similarities, thresholds, *pair) for pair in combinations(distinct.values(), 2)
    }
    of = [distinct[text] for text in similarities.texts]
    return tuple(tuple(Bond.SAME if a == b else found[frozenset((a, b))] for b in of) for a in of)


def _first_of_each(texts: Sequence[str]) -> dict[str, int]:
    return {text: index for index, text in reversed(list(enumerate(texts)))}


def _bond(
    answers: Sequence[FinalAnswer], similarities: Similarities, thresholds: SimilarityThresholds, a: int, b: int
) -> Bond:
    ours, theirs = answers[a], answers[b]
    has_embedding = not np.isnan(similarities.embedding_NN[a, b])
    least = thresholds.with_embedding if has_embedding else thresholds.without_embedding
    is_alike = similarities.values_NN[a, b] >= least
    if ours.kind == theirs.kind == PROSE and ours.key != theirs.key and not is_alike:
        return Bond.UNLIKE  # rules could only add reasons to keep them apart, and are slow for prose
    if (verdict := same(ours, theirs)) is not None:
        are_prose = ours.kind == theirs.kind == PROSE and bool(ours.value and theirs.value)
        return Bond.SAME if verdict else Bond.CONTRADICTING if are_prose else Bond.DIFFERENT
    if _states(ours, theirs) or _states(theirs, ours):
        return Bond.STATED
    if not is_alike or _deceives(similarities.texts[a], similarities.texts[b]):
        return Bond.UNLIKE
    checked = ours.kind == theirs.kind and ours.kind in (SPAN, PROSE)  # by `same`
    if not checked and contradicts(ours.text, theirs.text):
        return Bond.CONTRADICTING
    return Bond.ALIKE


def _deceives(one: str, other: str) -> bool:
    """Return whether two texts may say different things although they read alike.

    This is so if their numbers differ, extra ones in one text aside, or if a few content words occur in another order,
    such as "A beat B" and "B beat A".
    """
    (numbers, content), (others, swapped) = _numbers_and_content(one), _numbers_and_content(other)
    fewer, more = sorted((numbers, others), key=len)
    rest = iter(more)
    if not all(number in rest for number in fewer):
        return True
    return content != swapped and len(content) <= LONGEST_SWAP and sorted(content) == sorted(swapped)


@lru_cache(256)
def _numbers_and_content(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    said = words_of(text)
    numbers = tuple(word for word in said if word[0].isdecimal() or word in _CHINESE_NUMERALS)
    return numbers, tuple(content_of(said))


def _states(brief: FinalAnswer, sentence: FinalAnswer) -> bool:
    """Return whether a sentence without a clear conclusion states a short answer: a few words, a number or a value."""
    if sentence.kind not in (SPAN, PROSE) or brief.kind == sentence.kind == PROSE:
        return False
    said = words(sentence.text)
    if len(said) > LONGEST_STATEMENT:
        return False
    if brief.kind == SPAN:
        return bool(places(brief.value.casefold().split(), said))
    if brief.number is not None:
        stated = {quantity.base for quantity in plain_quantities(plain(sentence.text))}
        return stated == {Quantity(brief.number, brief.unit).base}
    return brief.kind == CODE and _unspaced(brief.text) in _unspaced(sentence.text)


def _unspaced(text: str) -> str:
    return "".join(text.split())


def group(similarities: Similarities, bonds: Sequence[Sequence[Bond]]) -> tuple[tuple[int, ...], ...]:
    """Return the classes of answers that say the same, as indices: the largest first, then by first index.

    Answers with the same final answer are joined first, then those that read alike, always the two most similar
    classes. Two classes with any separating bond between them are never joined; by similarity alone they are joined
    only if every pair joins (complete linkage), so there are no chains. The result depends neither on the order of the
    answers nor on repetitions: it is computed on the sorted distinct texts.
    """
    first = _first_of_each(similarities.texts)
    classes = {number: [text] for number, text in enumerate(sorted(first))}
    places = [first[text] for text in sorted(first)]
    links = {
        frozenset((a, b)): _Link(float(similarities.values_NN[i, j]), frozenset({bonds[i][j]}))
        for (a, i), (b, j) in combinations(enumerate(places), 2)
    }
    for may_join in (_joins_by_answer, _joins_by_likeness):
        while joinable := [pair for pair, link in links.items() if may_join(link.bonds)]:
            closest = max(joinable, key=lambda pair: links[pair].least)
            del links[closest]
            a, b = sorted(closest)
            classes[a] += classes.pop(b)
            for other in classes.keys() - {a}:
                kept = frozenset((a, other))
                links[kept] = links[kept].with_another(links.pop(frozenset((b, other))))
    number_of = {text: number for number, texts in classes.items() for text in texts}
    members: dict[int, list[int]] = {number: [] for number in classes}
    for index, text in enumerate(similarities.texts):
        members[number_of[text]].append(index)
    return tuple(sorted(map(tuple, members.values()), key=lambda each: (-len(each), each[0])))


class _Link(NamedTuple):
    """The link between two classes: the least similarity and the bonds of their answers."""

    least: float
    bonds: frozenset[Bond]

    def with_another(self, other: "_Link") -> "_Link":
        return _Link(min(self.least, other.least), self.bonds | other.bonds)


def _joins_by_answer(bonds: frozenset[Bond]) -> bool:
    return Bond.SAME in bonds and bonds.isdisjoint(SEPARATING)


def _joins_by_likeness(bonds: frozenset[Bond]) -> bool:
    return bonds.issubset(JOINING)
