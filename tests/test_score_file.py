"""`qubic-lab oracle score-file` and `score`: any labelled file is judged by, and what is wrong is one line."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import Run
from embedder import needs_embedder
from hypothesis import given, settings
from hypothesis import strategies as st
from sentiment_checkpoint import tiny_classifier

from qubic_lab.errors import InputError
from qubic_lab.oracle.sentiment.evaluation import accuracy, compare, confusion_of, macro_f1, verdict
from qubic_lab.oracle.sentiment.labelled import Columns, read_labelled, read_labels
from qubic_lab.oracle.sentiment.models import majority_of
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentScore

ROWS = [
    ("Bitcoin rallies to a record high", "positive"),
    ("ETF approved, buyers rejoice", "Bullish"),
    ("No rug pull: funds are safe", "pos"),
    ("Exchange hacked, funds stolen", "negative"),
    ("Token crashes after exit scam", "bearish"),
    ("Chain halted by a critical bug", "NEG"),
    ("The meeting takes place on Monday", "neutral"),
    ("Epoch 181 begins today at noon", "neu"),
]
HEADLINES = Path(__file__).resolve().parents[1] / "data" / "sentiment" / "headlines.jsonl"


@pytest.fixture
def oracle(oracle: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command of the oracle in a folder with one CSV."""
    monkeypatch.setenv("COLUMNS", "120")
    write_csv(Path("news.csv"), ROWS)
    return oracle


def write_csv(path: Path, rows: Sequence[tuple[str, object]], delimiter: str = ",") -> None:
    lines = [f'"{text}"{delimiter}{label}' for text, label in rows]
    path.write_text("\n".join([f"Title{delimiter}sentiment", *lines]) + "\n", "utf-8")


def said(label: str, share: float = 0.8) -> SentimentScore:
    rest = (1 - share) / 2
    return SentimentScore.of([share if each == label else rest for each in LABELS], "m", "1")


# Figures


def test_figures_by_hand() -> None:
    truth = ["negative", "negative", "neutral", "positive", "positive", "positive"]
    answers = ["negative", "neutral", "neutral", "positive", "positive", "negative"]
    found = compare(truth, {"m": [said(each) for each in answers]})
    (one,) = found.evaluations
    assert one.confusion == ((1, 1, 0), (0, 1, 0), (1, 0, 2))
    assert one.accuracy.value == pytest.approx(4 / 6)
    assert one.macro_f1.value == pytest.approx((2 * 1 / 4 + 2 * 1 / 3 + 2 * 2 / 5) / 3)
    assert one.labels["positive"].recall == pytest.approx(2 / 3) and one.labels["positive"].precision == 1
    assert one.calibration_error == pytest.approx(0.8 - 4 / 6)
    assert one.accuracy.low is one.accuracy.high is None, "six texts are too few for an interval"
    assert (found.n, found.units, found.differences) == (6, 6, ())


@pytest.mark.parametrize("texts", [1, 19])
def test_a_handful_of_texts_shows_no_model_to_be_better(texts: int) -> None:
    truth = ["positive"] * texts
    models = {"vader": [said("negative")] * texts, "default": [said("positive")] * texts}
    found = compare(truth, models)
    assert [(each.shown, each.difference.value) for each in found.differences] == [("neither", 1.0)] * 2
    assert verdict(found, "default") == f"{texts} texts are too few to compare default by: give 20 at least"
    assert "shown to be better than vader" in verdict(
        compare(truth * 20, {k: v * 20 for k, v in models.items()}), "default"
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import f1_score

    truth, answers = zip(*pairs, strict=True)
    confusion = confusion_of(truth, answers)
    assert float(macro_f1(confusion)) == pytest.approx(f1_score(truth, answers, average="macro", zero_division=0))
    assert float(accuracy(confusion)) == pytest.approx(np.mean(np.array(truth) == np.array(answers)))


def test_differences_are_paired_over_groups() -> None:
    truth = ["negative", "positive"] * 40
    good, poor = [said(each) for each in truth], [said("positive")] * 80
    models = {"majority": majority_of(truth).score(truth), "vader": poor, "default": good}
    groups = [str(place // 4) for place in range(80)]
    found = compare(truth, models, groups)
    assert found.units == 20
    assert {(each.model, each.baseline) for each in found.differences} == {
        ("vader", "majority"),
        ("default", "majority"),
        ("default", "vader"),
    }
    better = next(each for each in found.differences if (each.model, each.baseline) == ("default", "vader"))
    assert better.shown == "better" and better.difference.low > 0
    assert better.difference.low == better.difference.value == better.difference.high == 0.5  # each group is alike
    assert "default is shown to be better than majority" in verdict(found, "default")
    assert compare(truth, models, groups) == found


def test_no_difference_is_shown_where_there_is_none_and_a_worse_model_is_told() -> None:
    draw = np.random.default_rng(0)
    truth = [LABELS[each] for each in draw.integers(0, 3, 200)]
    guesses = [[said(LABELS[each]) for each in draw.integers(0, 3, 200)] for _ in range(2)]
    found = compare(truth, {"vader": guesses[0], "default": guesses[1]})
    assert {each.shown for each in found.differences} == {"neither"}
    assert "not shown to be better or worse than vader" in verdict(found, "default")
    right = compare(truth, {"vader": [said(each) for each in truth], "default": guesses[1]})
    assert "shown to be worse than vader" in verdict(right, "default")


def test_intervals_hold_the_true_figure_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for trial in range(40):
        truth = draw.integers(0, 3, 150)
        answers = np.where(draw.random(150) < 0.7, truth, (truth + draw.integers(1, 3, 150)) % 3)
        found = compare([LABELS[each] for each in truth], {"m": [said(LABELS[each]) for each in answers]}, seed=trial)
        held += found.evaluations[0].accuracy.low <= 0.7 <= found.evaluations[0].accuracy.high
    assert held >= 33  # of 40 at 95 %: fewer would come about once in 500 such tests


# Labels


def test_common_spellings_are_known() -> None:
    spellings = ["Positive", " pos ", "BULLISH", "neu", "bearish", "Very_Negative"]
    assert read_labels(spellings) == [*["positive"] * 3, "neutral", "negative", "negative"]
    assert read_labels(["1", 0, -1, "-1.0"]) == ["positive", "neutral", "negative", "negative"]


@pytest.mark.parametrize("numbers", [["0", "1", "2"], ["0", "1"], ["1"], ["-1", "2"], ["1", "5"]])
def test_other_numbers_must_be_mapped(numbers: list[str]) -> None:
    with pytest.raises(InputError, match=r"labels are the numbers .* --map 0=negative"):
        read_labels(numbers)


def test_a_mapping_says_what_labels_mean() -> None:
    mapping = {"0": "negative", "1": "neutral", "2": "positive", "unsure": "skip"}
    meant = ["positive", "neutral", "negative", None, "positive"]
    assert read_labels(["2", "1", "0", "Unsure", "pos"], mapping) == meant
    with pytest.raises(InputError, match="'positiv' is no label: did you mean 'positive'"):
        read_labels(["2"], {"2": "positiv"})


@settings(max_examples=50)
@given(st.lists(st.text(max_size=12)))
def test_labels_are_known_or_refused_in_one_line(spellings: list[str]) -> None:
    try:
        assert set(read_labels(spellings)) <= set(LABELS)
    except InputError as error:
        assert "--map" in str(error)


# Files


def test_models_are_told_beside_the_commonest_label(oracle: Run) -> None:
    found = oracle("score-file news.csv --text title --label sentiment --model crypto-lexicon --json").json
    by_model = {each["model"]: each for each in found["evaluations"]}
    assert list(by_model) == ["majority", "vader", "crypto-lexicon"]
    assert by_model["majority"]["accuracy"]["value"] == 3 / 8
    assert by_model["crypto-lexicon"]["accuracy"]["value"] > by_model["vader"]["accuracy"]["value"]
    assert (found["n"], found["rows"]) == (8, 8)
    assert found["verdicts"]["crypto-lexicon"].startswith("8 texts are too few to compare crypto-lexicon by")
    assert np.sum(by_model["vader"]["confusion"]) == 8


def test_what_is_left_out_is_counted(oracle: Run) -> None:
    rows = [*ROWS, ("", "positive"), ("   ", "negative"), ("Nobody labelled this", ""), ("Who knows", "unsure")]
    write_csv(Path("news.csv"), rows)
    command = "score-file news.csv --text Title --label sentiment --model vader --map unsure=skip"
    found = oracle(f"{command} --json").json
    assert found["left_out"] == {"other rows": 0, "empty texts": 2, "no label": 1, "skipped": 1}
    assert (found["n"], found["rows"]) == (8, 12)
    status, out, _ = oracle(command)
    assert status == 0
    assert "8 of 12 texts are evaluated; left out: 2 empty texts, 1 no label, 1 skipped" in out


def test_every_kind_of_file_says_the_same(oracle: Run) -> None:
    import pyarrow
    import pyarrow.parquet

    records = [{"Title": text, "sentiment": label} for text, label in ROWS]
    Path("news.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    Path("news.csv.gz").write_bytes(gzip.compress(Path("news.csv").read_bytes()))
    write_csv(Path("german.csv"), ROWS, delimiter=";")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), "news.parquet")
    told = [
        oracle(f"score-file {file} --text Title --label sentiment --model vader --json").json["evaluations"]
        for file in ("news.csv", "news.jsonl", "news.csv.gz", "german.csv", "news.parquet")
    ]
    assert all(each == told[0] for each in told)

    numbers = [None, *({"p": 2, "b": 2, "n": 0}.get(label[0].lower(), 1) for _, label in ROWS[1:])]
    table = pyarrow.table({"text": [text for text, _ in ROWS], "label": pyarrow.array(numbers, pyarrow.int64())})
    pyarrow.parquet.write_table(table, "numbers.parquet")
    command = "score-file numbers.parquet --text text --label label --model vader --json"
    assert oracle(command)[0] == 2
    found = oracle(f"{command} --map 0=negative,1=neutral --map 2=positive").json
    assert (found["n"], found["left_out"]["no label"]) == (7, 1)


FILES = {
    "by-name.csv": b"id,headline,label\n1,It rose,positive\n2,It fell,negative\n",
    "by-content.csv": b"y,notices\npositive,It rose\nnegative,It fell\n",
    "numbers.csv": b"y,notices\n1,It rose\n-1,It fell\n",
    "no-header.csv": b"positive,It rose\nnegative,It fell\n",
    "phrases.txt": b"It rose , it did \xe4 .@positive\nIt fell , and fell .@negative\n",
    "windows.csv": b"label,text\npositive,It rose \x96 well\nnegative,It fell\n",
}


@pytest.mark.parametrize("name", FILES)
def test_columns_are_found_by_name_or_by_what_they_hold(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = read_labelled(tmp_path / name, Columns())
    assert found.labels == ("positive", "negative")
    assert [text[:7] for text in found.texts] == ["It rose", "It fell"]


def test_columns_of_a_file_without_a_header_are_given_by_number(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("2,It fell,x\n0,It rose,y\n")
    found = read_labelled(tmp_path / "bare.csv", Columns("2", "1", {"0": "positive", "2": "negative"}))
    assert (found.labels, found.texts, found.rows) == (("negative", "positive"), ("It fell", "It rose"), 2)


@needs_embedder
def test_all_models_in_words_on_a_part_of_a_file(oracle: Run) -> None:
    lines = HEADLINES.read_text("utf-8").splitlines()
    train = [line for line in lines if '"split": "train"' in line][:48]
    test = [line for line in lines if '"split": "test"' in line][:2]  # left out, and not judged by
    Path("some.jsonl").write_text("\n".join([*train, *test]), "utf-8")
    command = "score-file some.jsonl --text text --label label --where split=train --group group"
    status, out, err = oracle(command)
    assert status == 0, err
    assert "48 of 50 texts are evaluated; left out: 2 other rows" in out
    assert "default: true (rows), predicted (columns)" in out
    assert re.search(r"in macro-F1 on these texts, default is (not )?shown to be better", out)
    assert "finbert is left out" in err
    found = oracle(f"{command} --json").json
    assert [each["model"] for each in found["evaluations"]] == ["majority", "vader", "crypto-lexicon", "default"]
    assert found["units"] < 48 and set(found["verdicts"]) == {"crypto-lexicon", "default"}


def test_a_checkpoint_of_one_s_own_is_judged_as_the_others_are(oracle: Run) -> None:
    tiny_classifier(Path("tiny"))
    command = "score-file news.csv --text Title --label sentiment --model vader,finbert:tiny --json"
    found = oracle(command).json
    assert [each["model"] for each in found["evaluations"]] == ["majority", "vader", "finbert:tiny"]
    assert "compare finbert:tiny by" in found["verdicts"]["finbert:tiny"] and found["notes"] == []


ASKED_WRONGLY = [
    ("none.csv --text Title --label sentiment", "file none.csv does not exist"),
    ("news.csv --text titel --label sentiment", "no column 'titel': did you mean 'Title'"),
    ("news.csv --text titel --label sentimant", "no column 'titel': did you mean 'Title'"),
    ("news.csv --text title --label sentimant", "no column 'sentimant': did you mean 'sentiment'"),
    ("news.csv --text title --label sentiment --where year=1", "no column 'year'"),
    ("news.csv --text title --label sentiment --where sentiment=x", "none of 8 rows .* --where"),
    ("news.csv --text title --label sentiment --where sentiment", "--where is 'sentiment'"),
    ("news.csv --text title --label sentiment --map pos", "--map is 'pos': give a pair"),
    ("news.csv --text title --label sentiment --map pos=god", "'god' is no label"),
    ("news.csv --text title --label title", "unknown label 'Bitcoin rallies .*--map"),
    ("news.csv --text title --label sentiment --model finbrt", "unknown model 'finbrt': did you mean 'finbert'"),
    ("news.csv --text title --label sentiment --model finbert:none", "'none' is neither a folder nor a hub id"),
    ("news.csv --text title --label sentiment --model finbert:a/x,finbert:b/x", "'finbert:x' twice"),
    ("news.csv --label title", "unknown label .Bitcoin rallies .*--map"),
    ("twice.csv", "the column of labels is not clear: give --label, such as one, other"),
    ("bare.csv --text a", "no column .a."),
    ("empty.csv --text title --label sentiment", "empty.csv: the file is empty"),
    ("score --model vadr", "did you mean 'vader'"),
    ("score --coin bitcon", "did you mean"),
]


@pytest.mark.parametrize(("arguments", "message"), ASKED_WRONGLY)
def test_what_is_asked_wrongly_is_told_in_one_line(oracle: Run, arguments: str, message: str) -> None:
    Path("empty.csv").write_text("")
    Path("twice.csv").write_text("text,one,other\nit rose,1,-1\nit fell,-1,1\n")
    Path("bare.csv").write_text("text,label\nit rose,up\n")
    said = oracle(arguments if arguments.startswith("score ") else f"score-file {arguments}").failed(2)
    assert re.search(message, said), said


# Stored texts


def test_stored_texts_are_scored_once(oracle: Run) -> None:
    status, _, err = oracle("score --model crypto-lexicon")
    assert status == 0 and "there are no texts yet" in err
    texts = [
        {"id": str(number), "title": f"Bitcoin: {text}", "published": f"2026-11-01T0{number}:00:00Z"}
        for number, (text, _) in enumerate(ROWS)
    ]
    Path("texts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    assert oracle("import-texts texts.jsonl --source archive")[0] == 0
    first = oracle("score --model crypto-lexicon --coin BTC --json").json
    assert first["coins"] == {"bitcoin": {"texts": 8, "scored": 8, "before": 0}}
    assert oracle("score --model crypto-lexicon --json").json["coins"]["bitcoin"]["before"] == 8
    status, out, err = oracle("score --model vader")
    assert re.search(r"bitcoin +\| 8 +\| 8 ", out) and "by vader@" in err
