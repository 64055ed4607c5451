"""A user's files: read as documented, and each fault named with its line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from qubic_lab.errors import InputError
from qubic_lab.evals import loaders
from qubic_lab.evals.columns import parse_column_map
from qubic_lab.evals.loaders import load_user_questions
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_right, judge

MAP = "question=Q,options=a|b|c,answer=Key"
TABLE = "Q,a,b,c,Key\nLargest?,1,22,3,B\nSmallest?,7,5,,5\n"


def write(folder: Path, text: str, name: str = "user.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


def gsm8k(question: str, answer: str) -> str:
    return json.dumps({"question": question, "answer": answer})


def test_gsm8k_answers_are_what_follows_the_mark(tmp_path: Path) -> None:
    lines = [gsm8k("How many?", "2 + 2 = <<2+2=4>>4\n#### 4"), "", gsm8k("How much?", "It grows.\n#### 1,250")]
    file = write(tmp_path, "\ufeff" + "\r\n".join(lines) + "\r\n", "train.jsonl")
    first, second = load_user_questions(file, "gsm8k")
    assert first == Question("train-1", "How many?", "4", "analytical")
    assert is_right(second, "She has $1250.") and not is_right(second, "1.25")
    assert load_user_questions(file, "gsm8k", limit=1) == (first,)


@pytest.mark.parametrize("name", ["user.csv", "user.tsv", "user.jsonl"])
def test_options_become_lettered_text_whatever_the_kind_of_file(name: str, tmp_path: Path) -> None:
    header, *rows = [line.split(",") for line in TABLE.splitlines()]
    lines = "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows)
    texts = {"user.csv": TABLE, "user.tsv": TABLE.replace(",", "\t"), "user.jsonl": lines}
    first, second = load_user_questions(write(tmp_path, texts[name], name), "mapped", MAP)
    assert (first.id, chosen(first)) == ("user-1", "22")
    asked, *options, _ = second.question.splitlines()
    assert asked == "Smallest?" and sorted(each[4:] for each in options) == ["5", "7"], "a row may have fewer options"
    assert chosen(second) == "5", "the answer may be an option's text"
    assert is_right(first, f"It is {first.answer[1]}.") and is_right(second, "5") and not is_right(first, "3")


def test_a_list_of_options_with_a_counted_answer_and_own_ids_and_kinds(tmp_path: Path) -> None:
    row = {"q": "Which?", "choices": ["red (A)", "blue"], "gold": 1, "n": 7, "type": "factual", "unused": None}
    file = write(tmp_path, json.dumps(row), "m.jsonl")
    columns = "question=q, options=choices, answer=gold, first={}, id=n, kind=type"
    [counted_from_zero] = load_user_questions(file, "mapped", columns.format(0))
    assert (counted_from_zero.id, counted_from_zero.kind, chosen(counted_from_zero)) == ("7", "factual", "blue")
    [counted_from_one] = load_user_questions(file, "mapped", columns.format(1))
    assert chosen(counted_from_one) == "red [A]"


def test_quoted_line_ends_open_questions_and_the_own_layout(tmp_path: Path) -> None:
    file = write(tmp_path, 'Q,Key\r\n"Two\r\nlines, one cell?",yes\r\n\r\nOne?,no\r\n')
    first, second = load_user_questions(file, "mapped", "question=Q,answer=Key")
    assert (first.question, first.answer) == ("Two\r\nlines, one cell?", "yes")
    assert second == Question("user-2", "One?", "no", "")
    own = write(tmp_path, '{"id": "a", "question": "q?", "answer": "x"}', "own.jsonl")
    assert load_user_questions(own) == (Question("a", "q?", "x"),)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.replace("Key", "key"), r"user\.csv:2 has no column 'Key': did you mean 'key'\?"),
        ("Q,a,b,c,Q\n", r"user\.csv:1 names a column twice"),
        (f"{TABLE}Next?,1,2,B\n", r"user\.csv:4 has 4 cells: there are 5 columns"),
        (f"{TABLE}Next?,1,,,A\n", r"user\.csv:4 has 1 options: there must be 2 to 26"),
        (f"{TABLE}Next?,1,,3,A\n", r"user\.csv:4 has no option B"),
        (f"{TABLE}Next?,1,2,3,D\n", r"user\.csv:4: the answer 'D' is neither a letter from A to C"),
        (f"{TABLE}Next?,1,2,3,4\n", "for numbers add first=0 or first=1"),
        (f"{TABLE}Next?,B,A,c,A\n", "'A' is several options"),
        (f"{TABLE}Next?,1,2,3,\n", r"user\.csv:4 has no Key"),
        (f'{TABLE}"A\nB?",1,2,3,A\nNext?,1,2\n', r"user\.csv:6 has 3 cells"),
        (f'{TABLE}"Open?,1,2,3,A\n', r"user\.csv:4 is not a valid row"),
        (f"{TABLE}{'x' * 20_001},1,2,3,A\n", r"user\.csv:4: Q has 20,001 characters"),
        ("Q,a,b,c,Key\n", "holds no questions"),
    ],
)
def test_a_bad_row_is_one_error_with_its_line(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_user_questions(write(tmp_path, table), "mapped", MAP)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (gsm8k("q", "just 4"), r"user\.jsonl:2: the answer ends in 'just 4'"),
        (gsm8k("q", "#### 4 or 5"), "GSM8K ends it"),
        (gsm8k(" ", "#### 4"), r"user\.jsonl:2 has no question"),
        ('{"question": "q", "answer": ["#### 4", "5"]}', "answer is .*a text or a number is needed"),
        ("[" * 100_000, r"user\.jsonl:2 is not valid JSON"),
    ],
)
def test_a_bad_gsm8k_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, f"{gsm8k('fine', '#### 1')}\n{line}", "user.jsonl")
    with pytest.raises(InputError, match=message):
        load_user_questions(file, "gsm8k")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("question=Q", "has no answer"),
        ("question=Q,answer=", "write part=column"),
        ("question=Q,anwser=A", "unknown part of a column map 'anwser': did you mean 'answer'"),
        ("question=Q,question=R,answer=A", "question twice"),
        ("question=Q,answer=A,options=a||b", "up to 26 different columns"),
        ("question=Q,answer=A,options=a|a", "up to 26 different columns"),
        ("question=Q,answer=A,options=" + "|".join(map(str, range(27))), "up to 26 different columns"),
        ("question=Q,answer=A,options=a|b,first=2", "first=2: it is 0 or 1"),
        ("question=Q,answer=A,first=0", "needs options"),
    ],
)
def test_a_bad_column_map_is_refused(columns: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_column_map(columns)


@pytest.mark.parametrize(
    ("layout", "columns", "message"),
    [
        ("gsm8", "", "unknown layout 'gsm8'"),
        ("mapped", "", "a map is needed"),
        ("gsm8k", MAP, "a map is needed"),
        ("mapped", "question=Q,options=a,answer=Key", "not a list: name each option's column"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(layout: str, columns: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_user_questions(write(tmp_path, TABLE), layout, columns)


def test_files_that_cannot_be_read_or_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_user_questions(tmp_path / "none.csv", "mapped", MAP)
    with pytest.raises(InputError, match=r"ends in '\.xlsx': known are \.jsonl"):
        load_user_questions(write(tmp_path, TABLE, "t.xlsx"), "mapped", MAP)
    (tmp_path / "latin.csv").write_bytes("Q\nfür".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        load_user_questions(tmp_path / "latin.csv", "mapped", MAP)
    file = write(tmp_path, TABLE + TABLE.partition("\n")[2].replace("?", "!"))
    monkeypatch.setattr(loaders, "MOST_QUESTIONS", 3)
    with pytest.raises(InputError, match="more than 3 questions: give a limit"):
        load_user_questions(file, "mapped", MAP)
    assert len(load_user_questions(file, "mapped", MAP, limit=2)) == 2
    monkeypatch.setattr(loaders, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="MiB: at most"):
        load_user_questions(file, "mapped", MAP)
    repeated = write(tmp_path, "Q,K,n\na,b,1\nc,d,1\n", "r.csv")
    monkeypatch.undo()
    with pytest.raises(InputError, match="id '1' more than once"):
        load_user_questions(repeated, "mapped", "question=Q,answer=K,id=n")


OPTIONS = ["Air scatters blue light more than red light", "The sea is mirrored in it", "Blue is the colour of cold air"]
ARC = {"question": "Why?", "choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "2"}
TRUTHFUL = """Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
Plain,Sky,Why?,"Air, scatters it","It is so; Air, scatters it",The sea does; It is painted,https://example.org
"""


def chosen(question: Question) -> str:
    """Return the text of the right option, which must be one of the question's."""
    assert question.answer in question.question.splitlines()
    return question.answer.partition(") ")[2]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "choices": OPTIONS, "answer": 1, "subject": "sky"},
        {"prompt": "Why?", "options": OPTIONS, "answer": "B"},
        {"Question": "Why?", "options": OPTIONS, "Correct Answer": OPTIONS[1]},
        ARC,
        {"id": "x", "question": {"stem": "Why?", "choices": ARC["choices"]}, "answerKey": "2"},
        {
            "question": "Why?",
            "choices": [{"label": "A", "text": OPTIONS[0]}, {"label": "B", "text": OPTIONS[1]}],
            "key": "B",
        },
        {"question": "Why?", "mc1_targets": {"choices": OPTIONS, "labels": [0, 1, 0]}, "mc2_targets": {}},
        {"question": "Why?", "mc1_targets": {OPTIONS[1]: 1, OPTIONS[0]: 0}},
        {"question": "Why?", "options": {"A": OPTIONS[0], "B": OPTIONS[1]}, "answer": "B"},
        {"question": "Why?", "best_answer": OPTIONS[1], "correct_answers": [], "incorrect_answers": [OPTIONS[0]]},
        {"ctx": "Why?", "endings": OPTIONS, "label": "1"},
        {"goal": "Why?", "sol1": OPTIONS[0], "sol2": OPTIONS[1], "label": 1},
        {"question": "Why?", "opa": OPTIONS[0], "opb": OPTIONS[1], "opc": OPTIONS[2], "answer": "b"},
        {"question": "Why?", "options": [f"A){OPTIONS[0]}", f"B){OPTIONS[1]}"], "correct": "B"},
        {"question": "Why?", "distractor1": OPTIONS[0], "distractor2": OPTIONS[2], "correct_answer": OPTIONS[1]},
    ],
)
def test_columns_of_published_files_are_recognized(row: dict[str, object], tmp_path: Path) -> None:
    # A first row that counts from 0, so that the number of an option can have one meaning only.
    first = row | {"question": "First?"} if isinstance(row.get("question"), str) else dict(row)
    first |= {name: type(value)(0) for name, value in row.items() if value in (1, "1")}
    file = write(tmp_path, f"{json.dumps(first)}\n{json.dumps(row)}\n", "published.jsonl")
    asked = load_user_questions(file)[1]
    assert asked.question.startswith("Why?\n(A) ") and chosen(asked) == OPTIONS[1]
    assert judge(asked, asked.answer) is True and judge(asked, OPTIONS[1]) is True


def test_truthfulqa_and_gsm8k_are_read_as_they_are_published(tmp_path: Path) -> None:
    [asked] = load_user_questions(write(tmp_path, TRUTHFUL, "TruthfulQA.csv"))
    assert chosen(asked) == "Air, scatters it"
    assert sorted(line[4:] for line in asked.question.splitlines()[1:4]) == [
        "Air, scatters it",
        "It is painted",
        "The sea does",
    ]
    [sums] = load_user_questions(write(tmp_path, gsm8k("How many?", "It is <<6*7=42>>42.\n#### 42"), "test.jsonl"))
    assert sums == Question("test-1", "How many?", "42", "analytical")
    whole = write(tmp_path, json.dumps([{"question": "Why?", "mc1_targets": {"Yes": 1, "No": 0}}]), "mc_task.json")
    assert chosen(load_user_questions(whole)[0]) == "Yes"
    listed = write(tmp_path, "question,choices,answer\nWhy?,\"['red', 'blue']\",blue\n")
    assert chosen(load_user_questions(listed)[0]) == "blue"
    plain = write(
        tmp_path,
        '{"problem": "1 + 1?", "solution": "It is \\\\boxed{2}."}\n{"problem": "Is it?", "solution": true}',
        "p.jsonl",
    )
    assert [each.answer for each in load_user_questions(plain)] == ["2", "yes"]


@pytest.mark.filterwarnings("ignore:the right option")
def test_options_are_shuffled_by_seed_and_a_file_with_one_letter_is_told(tmp_path: Path) -> None:
    rows = [
        {"question": f"Why {n}?", "choices": ["right", "wrong", "odd", "None of these"], "answer": 0}
        for n in range(200)
    ]
    file = write(tmp_path, "\n".join(map(json.dumps, rows)), "same.jsonl")
    with pytest.warns(
        UserWarning, match=r"right option is A in 200 of 200 questions of same\.jsonl.*shuffled by seed 3"
    ):
        asked = load_user_questions(file, seed=3)
    letters = Counter(each.answer[1] for each in asked)
    assert set(letters) == {"A", "B", "C"} and min(letters.values()) > 40
    assert all("(D) None of these" in each.question and chosen(each) == "right" for each in asked)
    assert asked == load_user_questions(file, seed=3) != load_user_questions(file, seed=4)
    inline = [{"id": str(n), "question": "Which? (A) x (B) y", "answer": "(A) x"} for n in range(20)]
    own = write(tmp_path, "\n".join(map(json.dumps, inline)), "own.jsonl")
    with pytest.warns(UserWarning, match="in 20 of 20 .*: give the options in columns of their own"):
        load_user_questions(own)
    both = write(tmp_path, "question,A,B,C,answer\nWhy?,x,y,Both A and B,C\n")
    assert load_user_questions(both)[0].answer == "(C) Both A and B", "letters in options still mean what they meant"


def test_a_column_without_a_name_numbers_rows_and_is_no_id(tmp_path: Path) -> None:
    file = tmp_path / "frame.csv"
    file.write_text(",prompt,answer\n0,How much is 2 + 2?,4\n1,How much is 3 + 3?,6\n", encoding="utf-8")
    assert [question.answer for question in load_user_questions(file)] == ["4", "6"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "Qestion,answer\na,b\n",
            r"no column with the question: looked for question, .*there are Qestion, answer; is it 'Qestion'\?",
        ),
        (
            "question,reply\na,b\n",
            r"no column with the answer: looked for answer, answerkey, .*there are question, reply; name it",
        ),
        (
            "question,A,B,C,answer\na,5,6,7,1\n",
            r"answers 1 may be texts or numbers of options from 0 or 1: say which by --map '",
        ),
        ("question,choices,answer\na,red,red\n", "not a list"),
        ("question,A,B,answer\na,x,y,E\n", "neither a letter from A to B nor an option"),
    ],
)
def test_what_is_not_recognized_is_one_error(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_user_questions(write(tmp_path, table))
    assert "\n" not in str(raised.value)


def test_marked_options_need_exactly_one_right_one(tmp_path: Path) -> None:
    row = {"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    with pytest.raises(InputError, match="marks 2 options as right: exactly one"):
        load_user_questions(write(tmp_path, json.dumps(row), "m.jsonl"))
