"""Faults of answers, found where they are and only there; and what they do to an answer's quality."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import parts, table

from qubic_lab.consensus import quality
from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.quality import (
    OFF_TOPIC_BELOW,
    FaultKind,
    Quality,
    judge_all,
    repeated_share,
    wrong_calculations,
)
from qubic_lab.consensus.similarity import compare
from qubic_lab.model.embeddings import DIMENSIONS, Embedded

PENS = "A shop sells pens at 3 dollars each. How many dollars do 4 pens cost?"
LOOP = "the cost of the pens is " * 12


def judge(text: str, question: str, reason: str = "", **known: float | None) -> Quality:
    return quality.judge(text, question, reason, final_answer(text, question), **known)


def names(found: Quality) -> set[str]:
    return {fault.name.value for fault in found.faults}


@pytest.mark.parametrize(
    ("text", "reason", "fault", "evidence"),
    [
        ("", "stop", "empty", "no word"),
        (" …\n", "stop", "empty", "no word"),
        ("<think>3 times 4 is 12.</think>", "stop", "empty", "after its thoughts"),
        ("<think>3 times 4 is", "length", "truncated", "thoughts have no end"),
        ("Four pens cost 12 dollars. To check", "length", "truncated", "limit of tokens"),
        ("Here it is:\n```python\nprint(3 * 4)", "stop", "truncated", "block of code"),
        ("It is \\boxed{1", "", "truncated", "box"),
        ("They cost 12 dollars, because", "", "truncated", "'because'"),
        ("一共是12元，因为", "", "truncated", "因为"),
        ("I'm sorry, but I can't help with that.", "stop", "refusing", "can't help"),
        ("I am unable to answer this question.", "stop", "refusing", "unable to answer"),
        ("As an AI language model, I cannot provide financial advice.", "stop", "refusing", "cannot provide"),
        ("I don’t know.", "stop", "refusing", "I don't know"),
        ("抱歉，我无法回答这个问题。", "stop", "refusing", "抱歉"),
        ("作为一个人工智能语言模型，我没有个人观点。", "stop", "refusing", "作为"),
        (LOOP, "stop", "repeating", "'the cost of the' comes 12 times"),
        ("笔一共要多少钱" * 10, "stop", "repeating", "comes"),
        ("A shop sells pens at 3 dollars each. How many dollars", "stop", "echo", "100%"),
        ("<think>So the answer is 12.</think>The answer is 13.", "stop", "self-contradicting", "thinks '12"),
        ("The answer is 12. In other words, the answer is 14.", "stop", "self-contradicting", "'12"),
        ("Each costs 3, and 3 × 4 = 13, so 13 dollars.", "stop", "self-contradicting", "3 × 4 = 13"),
    ],
)
def test_faults_with_their_evidence(text: str, reason: str, fault: str, evidence: str):
    found = judge(text, PENS, reason)
    (shown,) = [each.evidence for each in found.faults if each.name == fault]
    assert evidence in shown


SOUND = r"""
12 | 12 dollars. | 是的 | The pens cost 3 × 4 = 12 dollars. | <think>Is it 13? No: 12.</think>It is 12 dollars. |
The answer is 14. Wait, I forgot one: the answer is 12. |
A shop sells pens at 3 dollars each. How many dollars do 4 pens cost? 12 dollars. |
I can't help but notice that this is cheap: 12 dollars. |
I'm sorry to say that the answer is 12: I cannot provide a cheaper one. | In C++ | Turn the lamp on |
I don't know who made the pens, yet their price is told: one costs three dollars, two cost six, three are nine and so
four come to twelve dollars in all, before any tax that this shop may add to what its customers pay in the evening. |
It is what it is | \boxed{12} | No, no, no: four pens cost 12 dollars, as each pen is sold at 3. |
每支笔3元，4支笔一共12元。
"""


@pytest.mark.parametrize(
    "text", [*table(SOUND), "```python\nprint(3 * 4)\n```", "1. Take 3.\n2. Times 4.\n3. It is 12."]
)
def test_sound_answers_have_no_faults(text: str):
    found = judge(text, PENS, "stop")
    assert (found.faults, found.usable, found.completeness, found.coherence) == ((), True, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("The answer is 12. To check this, we", True),
        ("So we get \\boxed{12}, which", True),
        ("\\boxed{1", False),
        ("First, one pen costs 3 dollars. Two cost 3 + 3 = 6 and three", False),  # 6 is no conclusion
        ("The answer is 1", False),  # or 12, 13, 100
        ("<think>The answer is 12.", False),
    ],
)
def test_of_a_cut_calculation_only_what_was_concluded_can_be_used(text: str, usable: bool):
    assert judge(text, PENS, "length").usable is usable


def test_a_cut_explanation_can_be_used_and_a_loop_where_it_had_concluded():
    text = "Air scatters short waves more than long ones. Blue light therefore reaches us from all"
    found = judge(text, "Why is the sky blue?", "length")
    assert (names(found), found.usable, found.completeness) == ({"truncated"}, True, 0.5)
    assert not judge(LOOP, PENS).usable
    concluded = judge("The answer is 12. " * 12, PENS)
    assert (names(concluded), concluded.usable) == ({"repeating"}, True)
    assert concluded.completeness < 0.1


def test_an_answer_is_off_topic_below_the_threshold_unless_it_is_a_few_words_or_a_number():
    why, text = "Why is the sky blue?", "The glacier has retreated since the summer."
    below, brief = judge(text, why, cosine=OFF_TOPIC_BELOW - 0.01), judge("Of course.", why, cosine=0.0)
    assert (names(below), below.usable) == ({"off topic"}, False)
    assert judge(text, why, cosine=OFF_TOPIC_BELOW).faults == ()
    assert (brief.relevance, brief.faults) == (None, ())
    assert judge("It is 12 dollars.", PENS, cosine=0.0).faults == ()


def test_parts_by_hand():
    found = judge("Four pens cost 12 dollars.", PENS, "stop", cosine=0.7, agreement=0.5)
    # content words of the question: shop sell pen 3 dollar each how many 4 cost
    assert found.terms == pytest.approx(3 / 10)  # pens, cost, dollars
    assert found.relevance == 0.7
    assert found.consistency == pytest.approx((0.5 + 1) / 2)
    assert found.value == pytest.approx((0.7 + 0.75) / 2)
    by_words = judge("Four pens cost 12 dollars.", PENS)
    assert (by_words.cosine, by_words.relevance) == (None, found.terms)
    contradicting = judge("The answer is 12. So the answer is 13.", PENS, cosine=0.7, agreement=0.5)
    assert contradicting.consistency == pytest.approx(0.25)


def test_all_answers_to_a_question():
    texts = ["It is 12 dollars.", "It is 12 dollars.", "答案是12元。", ""]

    def embed(read):
        vectors = np.zeros((len(read), DIMENSIONS), np.float32)
        vectors[:, 0] = 1
        return Embedded(vectors, (False,) * len(read))

    similarities = compare(texts)
    answers = [final_answer(text, PENS) for text in texts]
    found = judge_all(PENS, texts, ["stop"] * 4, answers, similarities, embed)
    assert [each.cosine for each in found] == [1.0, 1.0, None, 1.0]
    assert found[0].agreement == pytest.approx(similarities.values_NN[0, 1:].mean())
    assert found[0].agreement == found[1].agreement
    assert [each.usable for each in found] == [True, True, True, False]
    assert [each.cosine for each in judge_all(PENS, texts, ["stop"] * 4, answers, similarities)] == [None] * 4
    (alone,) = judge_all(PENS, ["12"], [""], [final_answer("12", PENS)], compare(["12"]))
    assert (alone.agreement, alone.consistency) == (None, 1.0)


@given(
    st.lists(
        st.sampled_from(["12", "the", "answer is", "cost", "</think>", "<think>", ".", "\n", "3 + 4 = 8", "x", "笔"])
    ),
    st.sampled_from(["", "stop", "length"]),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1),
)
def test_every_part_is_within_0_and_1_and_every_fault_has_evidence(pieces, reason, cosine, agreement):
    found = judge(" ".join(pieces), PENS, reason, cosine=cosine, agreement=agreement)
    parts = [found.terms, found.consistency, found.coherence, found.completeness, found.value, found.relevance]
    assert all(part is None or 0 <= part <= 1 for part in parts)
    assert all(fault.evidence for fault in found.faults)
    if found.completeness == 0:
        assert not found.usable
    assert (FaultKind.TRUNCATED in names(found)) >= (reason == "length")


def test_repeated_share_of_four_words():
    # abcd bcda cdab dabc abcd: 4 of 5 differ
    assert [repeated_share(list(words)) for words in ("abc", "abcde", "abcdabcd")] == [0.0, 0.0, pytest.approx(1 / 5)]


CALCULATIONS = r"""
12 + 5 = 18 → 12 + 5 = 18 | $3 \times 4 = 13$ → 3 × 4 = 13 | 1,000 − 1 = 998 → 1000 − 1 = 998 |
(2 + 3) * 4 = 14, and 2 + 3 * 4 = 14. → (2 + 3) * 4 = 14 | 3 + 4 = 7, then 7 + 5 = 13 → 7 + 5 = 13 |
3 + 4 + 5 = 12 → | 10 / 3 = 3.33 → | 10 / 3 = 3 → | 10 / 3 = 3.34 → 10 / 3 = 3.34 | 2x + 3 = 7 → |
x + 3 = 7 and x - 3 = 1 → | 3 + 4 = 7 × 1 and 3 + 4 = 7x → | 5 × 20 = 100% → | 1990-2000 = 10 years → |
2(3 + 4) = 14 → | 1 / 0 = 5 → | n = 12 → | if 3 + 4 == 8: →
"""


@pytest.mark.parametrize("row", table(CALCULATIONS))
def test_wrong_calculations(row: str):
    text, wrong = parts(row)
    assert list(wrong_calculations(text)) == ([wrong] if wrong else [])


def test_endless_texts():
    assert list(wrong_calculations("1 " * 5000 + "= 3")) == []
    text = " ".join(f"word{i % 5003}" for i in range(10_000))
    assert judge(text, PENS, "length").faults[0].name == FaultKind.TRUNCATED
