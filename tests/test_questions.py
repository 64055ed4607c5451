"""Question files: the committed one is as promised, a user's broken one is named line by line."""

from collections import Counter
from pathlib import Path

import pytest

from qubic_lab.errors import InputError
from qubic_lab.evals.generated import questions_for
from qubic_lab.evals.questions import committed_questions, load_questions

GOOD = '{"id": "a", "question": "q?", "answer": "x"}'


def test_the_committed_questions_cover_four_kinds() -> None:
    questions = load_questions(committed_questions())
    kinds = Counter(question.kind for question in questions)
    assert set(kinds) == {"factual", "analytical", "technical", "creative"}
    assert min(kinds.values()) >= 12
    assert len({question.question for question in questions}) == len(questions) >= 50
    assert {question.kind for question in questions[:8]} == set(kinds), "a quick run sees every kind"


def test_kind_and_blank_lines_are_optional(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(f"{GOOD}\n\n")
    [question] = load_questions(file)
    assert (question.id, question.kind) == ("a", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no questions"),
        ("{", r"q\.jsonl:1 is not valid JSON"),
        ("[]", "holds a list"),
        (f"{GOOD}\n{GOOD}", "id 'a' more than once"),
        (GOOD.replace("answer", "anwser"), "unknown field 'anwser': did you mean 'answer'"),
        (GOOD.replace('"x"', "3"), "answer is 3"),
        (GOOD.replace('"q?"', '" "'), r"q\.jsonl:1 has no question"),
        (f"{GOOD}\n" + '{"id": "b", "question": "q"}', r"q\.jsonl:2 has no answer"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        load_questions(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_questions(tmp_path / "none.jsonl")


def test_written_questions_come_first_and_generated_ones_follow() -> None:
    written = load_questions(committed_questions())
    everything = questions_for()
    assert everything[: len(written)] == written
    assert len(everything) == 128 == len({question.id for question in everything})
    assert questions_for(8) == written[:8]
    assert questions_for(100) == everything[:100]
    assert questions_for(100, seed=1)[64:] != everything[64:100]


@pytest.mark.parametrize("limit", [0, 2065])
def test_more_or_fewer_questions_than_there_are_are_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"limit is {limit}"):
        questions_for(limit)
