"""A user's files: read as documented, and each fault named with its line."""

import json
from pathlib import Path

import pytest

from qubic_lab.errors import InputError
from qubic_lab.evals import loaders
from qubic_lab.evals.loaders import load_user_questions, parse_column_map
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_right

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
    assert first == Question("user-1", "Largest? (A) 1 (B) 22 (C) 3", "(B) 22")
    assert second.question == "Smallest? (A) 7 (B) 5", "a row may have fewer options"
    assert second.answer == "(B) 5", "the answer may be an option's text"
    assert is_right(first, "It is B.") and is_right(second, "5") and not is_right(first, "(C)")


def test_a_list_of_options_with_a_counted_answer_and_own_ids_and_kinds(tmp_path: Path) -> None:
    row = {"q": "Which?", "choices": ["red (A)", "blue"], "gold": 1, "n": 7, "type": "factual", "unused": None}
    file = write(tmp_path, json.dumps(row), "m.jsonl")
    columns = "question=q, options=choices, answer=gold, first={}, id=n, kind=type"
    assert load_user_questions(file, "mapped", columns.format(0)) == (
        Question("7", "Which? (A) red [A] (B) blue", "(B) blue", "factual"),
    )
    [counted_from_one] = load_user_questions(file, "mapped", columns.format(1))
    assert counted_from_one.answer == "(A) red [A]"


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
        (f"{TABLE}Next?,1,,,A\n", r"user\.csv:4 has 1 options: there must be 2 to 8"),
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
        ('{"question": "q", "answer": ["#### 4"]}', "answer is .*a text or a number is needed"),
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
        ("question=Q,answer=A,options=a||b", "up to 8 different columns"),
        ("question=Q,answer=A,options=a|a", "up to 8 different columns"),
        ("question=Q,answer=A,options=1|2|3|4|5|6|7|8|9", "up to 8 different columns"),
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
