"""How alike texts are, by part; and which answers come into one class: never two that say different things."""

import math
from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import parts, sides, table

from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.similarity import (
    JOINING,
    SEPARATING,
    Bond,
    Similarities,
    SimilarityThresholds,
    bonds,
    compare,
    content_of,
    foreign_script,
    group,
    words_of,
)
from qubic_lab.model.embeddings import DIMENSIONS, Embedded

NEVER = SimilarityThresholds(2.0, 2.0)
ALWAYS = SimilarityThresholds(0.0, 0.0)

PIECES = ("the", "cat", "sat", "on", "12", "1,000", "mats.", "not", "中", "文", "x", "=", "£", "```", "\n", "-", "!")
texts_of_words = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)
any_texts = st.lists(texts_of_words | st.text(max_size=40), min_size=1, max_size=6)


def letters(texts: Sequence[str]) -> Embedded:
    """Embed by counts of the letters a to z: alike where texts use the same ones. It reads 60 letters."""
    counts = np.zeros((len(texts), DIMENSIONS), np.float32)
    counts[:, 0] = 1e-3
    for row, text in zip(counts, texts, strict=True):
        for letter in text.casefold():
            if "a" <= letter <= "z":
                row[ord(letter) - 96] += 1
    return Embedded(counts / np.linalg.norm(counts, axis=1, keepdims=True), tuple(len(text) > 60 for text in texts))


def between(found: Similarities, a: int = 0, b: int = 1) -> list[float]:
    """Return the composite, the embedding, the words, the structure and the edit part of two texts."""
    matrices = found.values_NN, found.embedding_NN, found.words_NN, found.structure_NN, found.edit_NN
    return [float(matrix[a, b]) for matrix in matrices]


def classes(
    texts: Sequence[str], question: str = "", thresholds: SimilarityThresholds = ALWAYS
) -> tuple[tuple[int, ...], ...]:
    """Group texts as a vote does; by default whatever the rules do not hold apart comes together."""
    similarities = compare(texts)
    answers = [final_answer(text, question) for text in texts]
    return group(similarities, bonds(answers, similarities, thresholds))


# --- The parts


@pytest.mark.parametrize("embed", [None, letters])
@given(texts=any_texts)
@settings(max_examples=60)
def test_values_are_symmetric_within_0_and_1_and_1_for_equal_texts(embed, texts: list[str]):
    texts = [*texts, texts[0]]
    found = compare(texts, embed)
    for matrix in (found.values_NN, found.words_NN, found.structure_NN, found.edit_NN, found.embedding_NN):
        told = matrix[~np.isnan(matrix)]
        assert np.array_equal(matrix, matrix.T, equal_nan=True)
        assert ((told >= 0) & (told <= 1)).all()
        assert np.isnan(matrix[0, -1]) or matrix[0, -1] == 1
    assert (np.diag(found.values_NN) == 1).all()


@given(texts=any_texts)
@settings(max_examples=30)
def test_a_pair_is_as_alike_among_others_as_alone(texts: list[str]):
    together = compare(texts, letters)
    for a, b in combinations(range(len(texts)), 2):
        alone = between(compare([texts[a], texts[b]], letters))
        assert alone == pytest.approx(between(together, a, b), nan_ok=True, abs=0)


def test_the_composite_is_half_embedding_three_tenths_words_two_tenths_structure():
    texts = ["The cat sat on the mat.", "The dog sat on a bench, barking."]
    value, embedding, words, structure, _ = between(compare(texts, letters))
    assert value == pytest.approx(0.5 * embedding + 0.3 * words + 0.2 * structure)
    without = compare(texts)
    value, embedding, words, structure, _ = between(without)
    assert math.isnan(embedding) and value == pytest.approx(0.6 * words + 0.4 * structure)
    assert without.notes == ("embeddings do not count: no embedder is loaded",)


def test_a_script_that_the_embedder_does_not_know_drops_its_weight_and_says_so():
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> Embedded:
        asked.extend(texts)
        return letters(texts)

    found = compare(["The sky is blue.", "天空是蓝色的。", "Небо голубое.", "A blue sky."], embed)
    assert asked == ["The sky is blue.", "A blue sky."]
    assert np.isnan(found.embedding_NN[:2, :3]).tolist() == [[False, True, True], [True, True, True]]
    assert found.embedding_NN[0, 3] > 0
    assert [note.rsplit(" ", 1)[1] for note in found.notes] == ["Cjk", "Cyrillic"]
    assert all("do not count for answer" in note for note in found.notes)


def test_a_text_that_the_embedder_cut_is_named():
    found = compare(["Short.", "A text that is longer than sixty letters, which our embedder cuts."], letters)
    assert found.notes == ("the embedding of answer 2 is of its first 256 tokens",)


def test_thoughts_are_not_compared():
    assert between(compare(["<think>Seven? No, eight.</think>It is 8.", "It is 8."], letters)) == [1.0] * 5


SCRIPTS = """
It is 12 °C, π ≈ 3.14, naïve café → | Ｆｕｌｌｗｉｄｔｈ letters → | 12 + 5 = 17 👍 → | The word is 水. → |
答案是12。 → Cjk | Ответ: 12 → Cyrillic | 答えはこれです → Hiragana | الجواب → Arabic
"""


@pytest.mark.parametrize("row", [*table(SCRIPTS), " →"])
def test_scripts(row: str):
    text, script = parts(row)
    assert foreign_script(text) == script


def test_words():
    assert words_of("It’s 1,000.5 €, isn't it? x<5 👍") == ("it’s", "1000.5", "isn't", "it", "x", "<", "5", "👍")
    assert words_of("水 H2O 在100度沸腾") == ("水", "h", "2", "o", "在", "100", "度", "沸", "腾")
    assert words_of("1,000 and 10,00") == ("1000", "and", "10", "00")


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_of_plain_letters_are_those_of_the_general_rule(text: str):
    assert words_of(text) == words_of(text + " é")[:-1]


def test_content_words_have_no_endings_and_leave_fillers_out_but_not_negations():
    assert content_of(words_of("The cats were not sleeping.")) == ["cat", "not", "sleep"]
    assert content_of(["it", "is"]) == ["it", "is"]


def test_word_overlap_is_the_f1_of_the_multisets_and_edit_distance_counts_their_order():
    assert compare(["red red blue", "red green"]).words_NN[0, 1] == pytest.approx(2 * 1 / 5)
    assert compare(["dogs bark", "a dog barks"]).words_NN[0, 1] == 1
    assert compare(["!", "?"]).words_NN[0, 1] == 0
    assert compare(["a b c d", "a x c d"]).edit_NN[0, 1] == pytest.approx(3 / 4)
    turned = compare(["a b c d", "d c b a"])
    assert turned.edit_NN[0, 1] < 0.5 and turned.words_NN[0, 1] == 1


def test_structure_compares_what_at_least_one_text_has():
    plain = "One two three. Four five six."
    assert compare([plain, "Six five four. Three two one."]).structure_NN[0, 1] == 1  # words and sentences
    listed = "- one two\n- three four\n- five six"
    # words 6:6, sentences 2:3, items 0:3
    assert compare([plain, listed]).structure_NN[0, 1] == pytest.approx((1 + 2 / 3 + 0) / 3)
    code = "One two.\n```python\nthree\nfour\n```"
    # words 3 + 1 for the language:4, sentences 1:1, code 2:0
    assert compare([code, "One two three four."]).structure_NN[0, 1] == pytest.approx((4 / 5 + 1 + 0) / 3)
    # words 4:4, sentences 1:1, numerals {5, 3}:{5, 4}
    assert compare(["5 apples 3 pears.", "5 apples 4 pears."]).structure_NN[0, 1] == pytest.approx((1 + 1 + 0.5) / 3)


def test_one_text_none_and_very_long_ones():
    assert compare(["alone"]).values_NN.tolist() == [[1.0]]
    assert compare([]).values_NN.shape == (0, 0)
    assert group(compare([]), bonds([], compare([]))) == ()
    long = " ".join(f"word{i % 997}" for i in range(10_000))
    assert compare([long, long + " more", "short"], letters).values_NN[0, 1] > 0.99


# --- Classes


DIFFERENT = """
What is x? → x = 12 ~ x = 13 | Is the Earth flat? → The Earth is flat. ~ The Earth is not flat. |
Is it safe? → It is safe to drink. ~ It isn't safe to drink. |
What does it cost? → It costs 12 euros, all in all. ~ It costs 13 euros, all in all. |
水开了吗？ → 水开了。 ~ 水没有开。 | Which planet? (A) Mars (B) Venus → The answer is (A). ~ The answer is (B). |
When? → It was on 3 May 2021. ~ It was on 4 May 2021. |
Who won? → In the final Ana beat Boris. ~ In the final Boris beat Ana. |
谁赢了？ → 小明打败了小红。 ~ 小红打败了小明。 |
What does the glacier do? → The glacier grows by 3 m a year. ~ The glacier shrinks by 3 m a year.
"""


@pytest.mark.parametrize("row", table(DIFFERENT))
def test_what_differs_or_contradicts_never_comes_together(row: str):
    """Even where everything that may come together does."""
    question, answers = parts(row)
    a, b = sides(answers)
    assert classes([a, b], question) == ((0,), (1,))
    assert classes([a, a, b], question) == ((0, 1), (2,))


def test_the_same_conclusion_comes_together_however_it_is_told():
    texts = [
        "The answer is 12.",
        "First we add 5 and 4, which gives 9. Then 3 more make 12. So the answer is 12.",
        "The answer is 13.",
        "\\boxed{12.0}",
    ]
    assert classes(texts, "How many apples are there?", NEVER) == ((0, 1, 3), (2,))


def test_prose_comes_together_by_likeness():
    texts = [
        "The ship sank because a torpedo tore a hole in its hull.",
        "A torpedo tore a hole in the hull, so the ship sank.",
        "Nobody knows; the wreck was never found and all logs are lost.",
    ]
    assert classes(texts, "Why did the ship sink?", SimilarityThresholds(0.5, 0.5)) == ((0, 1), (2,))
    assert classes(texts, "Why did the ship sink?", NEVER) == ((0,), (1,), (2,))


def test_other_numbers_and_other_orders_are_not_alike_but_more_numbers_are():
    assert classes(["In 2010 a storm sank the ship.", "In 2012 a storm sank the ship."], "Why?") == ((0,), (1,))
    assert classes(["A storm sank the ship.", "In 2012 a storm sank the ship."], "Why?") == ((0, 1),)


def test_a_sentence_that_states_a_brief_answer_comes_to_it():
    learned = "As a boy he had already learned the piano, the flute and at last the cello."
    assert classes(["Cello", learned], "What?", NEVER) == ((0, 1),)
    assert classes(["Cello", "He never owned a violin."], "What?", NEVER) == ((0,), (1,))


def similar(*rows: Sequence[float]) -> Similarities:
    """Return similarities with these values, of texts named a, b, c and so on."""
    values = np.array(rows, float)
    texts = tuple("abcdefgh"[: len(rows)])
    return Similarities(texts, values, np.full_like(values, np.nan), values, values, ())


def by_threshold(similarities: Similarities, least: float = 0.5, **others: Bond) -> list[list[Bond]]:
    """Return bonds by likeness alone, but for the pairs that are named: ab=Bond.DIFFERENT."""
    table = [[Bond.ALIKE if value >= least else Bond.UNLIKE for value in row] for row in similarities.values_NN]
    for pair, bond in others.items():
        i, j = (similarities.texts.index(letter) for letter in pair)
        table[i][j] = table[j][i] = bond
    return table


def test_there_are_no_chains():
    """B is like A and like C, but A is not like C: B goes to the one that it is more like."""
    found = similar((1, 0.8, 0.1), (0.8, 1, 0.9), (0.1, 0.9, 1))
    assert group(found, by_threshold(found)) == ((1, 2), (0,))


def test_what_separates_holds_for_whole_classes():
    found = similar((1, 0.9, 0.9), (0.9, 1, 0.95), (0.9, 0.95, 1))
    assert group(found, by_threshold(found, ac=Bond.CONTRADICTING)) == ((1, 2), (0,))
    assert group(found, by_threshold(found, ab=Bond.SAME, ac=Bond.SAME, bc=Bond.DIFFERENT)) == ((0, 1), (2,))


def test_the_same_answer_joins_what_does_not_read_alike():
    found = similar((1, 0.1, 0.1), (0.1, 1, 0.1), (0.1, 0.1, 1))
    assert group(found, by_threshold(found, ab=Bond.SAME, bc=Bond.SAME)) == ((0, 1, 2),)
    largest_first = similar(*np.eye(5).tolist())
    assert group(largest_first, by_threshold(largest_first, bd=Bond.SAME)) == ((1, 3), (0,), (2,), (4,))
    # stating an answer is no such bond: with A every member of a class must be joined
    assert group(found, by_threshold(found, ab=Bond.SAME, bc=Bond.STATED)) == ((0, 1), (2,))


ANSWERS = ["12", "x = 13", "It is 12.", "yes", "not so", "no", "a b c d", "a b c e", "d c b a", "12 km", ""]


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_neither_order_nor_repeats_change_who_is_with_whom(texts: list[str], random):
    thresholds = SimilarityThresholds(0.5, 0.5)
    shuffled = texts + texts[:1]
    random.shuffle(shuffled)
    before = {frozenset(texts[i] for i in members) for members in classes(texts, "", thresholds)}
    after = {frozenset(shuffled[i] for i in members) for members in classes(shuffled, "", thresholds)}
    assert before == after


@given(any_texts, st.floats(0, 1))
@settings(max_examples=40)
def test_classes_hold_each_answer_once_and_nothing_that_is_held_apart(texts: list[str], least: float):
    similarities = compare(texts)
    found = bonds([final_answer(text) for text in texts], similarities, SimilarityThresholds(least, least))
    grouped = group(similarities, found)
    assert sorted(index for members in grouped for index in members) == list(range(len(texts)))
    for members in grouped:
        between = [found[i][j] for i, j in permutations(members, 2)]
        assert not any(bond in SEPARATING for bond in between)
        assert Bond.SAME in between or all(bond in JOINING for bond in between)
