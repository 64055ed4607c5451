"""A page is checked against its runs: each kind of tampering is found and named, and nothing else is."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Run
from comparisons import make_answer, make_comparison
from examples import example
from matplotlib.figure import Figure
from matplotlib.pyplot import subplots
from studies import make_manifest, write_notebook

from qubic_lab.bench.compression import CompressionResult, PackedSize
from qubic_lab.errors import NotFoundError
from qubic_lab.provenance import machine
from qubic_lab.runs import fingerprint
from qubic_lab.runs.notebook import EXECUTED, record, record_figure, record_findings, record_measure, record_table
from qubic_lab.runs.page_difference import compare_pages
from qubic_lab.runs.page_numbers import NUMBERS, RecordedWeek, TracedNumber, read_pieces, without_source
from qubic_lab.runs.parameters import read_source
from qubic_lab.runs.report import PAGE, build_page, week_files
from qubic_lab.runs.store import MANIFEST, hash_files, read_manifest, run_folder, write_manifest
from qubic_lab.runs.verify import first_difference, verify_page
from qubic_lab.runs.week_index import WeekEntry, add_entry
from qubic_lab.runs.week_report import KEPT, read_week
from qubic_lab.studies import re_execution
from qubic_lab.studies.re_execution import Recorded, findings_again

WEEK, BATCH = "2026-W48", "2026-11-24T08:00:00+00:00"
ACCURACY = "accuracy_comparison/3f2a9c01d4e5b687"
MODEL_HASH = "fedcba9876543210ff"
CASES = pd.DataFrame({"case": ["even", "odd"], "tokens": [2048, 17], "share": [0.97612, None]})
RESULTS = {
    "comparison": make_comparison(),
    "compression": example(CompressionResult, sizes=(example(PackedSize, plain_bytes=4),)),
}


def curve(height: float) -> Figure:
    figure, axes = subplots(figsize=(1, 1))
    axes.plot([0.0, height])
    return figure


@pytest.fixture
def week(lab_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of a week with two runs: a comparison, and a study of times."""
    monkeypatch.chdir(lab_root)
    (lab_root / "experiments").mkdir()
    monkeypatch.setattr(fingerprint, "hash_model", lambda _: MODEL_HASH)
    (lab_root / "data.jsonl").write_text("a question")
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", "1 + 1")
    plain = json.loads(json.dumps({name: re_execution.plain(value) for name, value in RESULTS.items()}))
    findings = findings_again("accuracy_comparison", plain)
    assert findings
    folder = made(
        monkeypatch, ACCURACY, {"data.jsonl": fingerprint.hash_named({"a": "data.jsonl"}, lab_root)["data.jsonl"]}
    )
    for name, value in RESULTS.items():
        record(name, value)
    record_findings(findings)
    record_table("cases", CASES, "The cases of 2 models.")
    for name, height in (("logit_differences", 1.0), ("accuracies", 2.0)):
        record_figure(name, curve(height), f"What {name} shows.")
    write_notebook(folder / EXECUTED, "1 + 1")
    seal(folder)
    other = made(monkeypatch, "timed/aa11", {})
    record_measure("step_s", [0.5, 0.75, 0.625], "s", "lower")
    record_findings(["A step took 0.625 s."])
    seal(other)
    return build_page()


def made(monkeypatch: pytest.MonkeyPatch, name: str, data_hashes: dict[str, str]) -> Path:
    """Begin a run: its folder, its entry in the week's index, and its manifest without the files."""
    study, _, key = name.partition("/")
    folder = run_folder(study, key)
    folder.mkdir(parents=True)
    monkeypatch.setenv("QUBIC_LAB_RUN_DIR", str(folder))
    manifest = make_manifest(
        key=key,
        study=study,
        parameters={"model": "smollm2"},
        machine=str(machine()),
        model="smollm2",
        model_hash=MODEL_HASH,
        data_hashes=data_hashes,
        package_hash=fingerprint.hash_package(),
        notebook_hash=fingerprint.hash_code(read_source(Path("notebooks/tiny.ipynb")).code_cells),
    )
    write_manifest(folder, manifest)
    add_entry(WEEK, WeekEntry(study, key, BATCH, 1, reused=False, failed=False))
    return folder


def seal(folder: Path) -> None:
    """Write the hashes of a run's files into its manifest, as the run itself does, or who forges one."""
    write_manifest(folder, make_manifest(**vars(read_manifest(folder)) | {"files": hash_files(folder)}))


def edit(file: Path, old: str, new: str) -> None:
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers of a model that are executed again without one; the list has the questions that were asked again."""
    asked: list[str] = []
    truth = {each.id: each for each in map(make_answer, ("factual", "analytical", "technical", "creative"))}

    def again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
        for name in names:
            asked.append(name)
            row = truth[name.removeprefix(re_execution.ANSWER_TO)]
            yield {each: getattr(row, each) for each in re_execution.ANSWER}

    study = re_execution.RepeatableStudy(re_execution._answers, again)
    monkeypatch.setattr(re_execution, "STUDIES", {"accuracy_comparison": study})
    return asked


def test_a_page_that_nobody_touched_is_wholly_traced(week: Path, answering: list[str], here: Run) -> None:
    found = verify_page(week, sample=3, seed=1)
    assert found.problems == ()
    assert found.numbers == found.traced > 30
    assert (found.executed, found.equal, len(answering)) == (3, 3, 3)
    assert any("not executed again, as most of it is times: timed" in line for line in found.unchecked)
    assert verify_page(week, sample=None).executed == 4
    answering.clear()
    verify_page(week.parent, sample=3, seed=1)
    first = list(answering)
    verify_page(week, sample=3, seed=1)
    assert answering == first * 2
    ended = here(f"verify {week.parent} --sample 2 --seed 7")
    assert ended.status == 0
    assert ended.out.endswith(
        f"{found.numbers} of {found.numbers} shown numbers traced; 2 of 2 results executed again are equal (seed 7)\n"
    )
    assert here(f"verify {week} --all --seed 1 --json").json["problems"] == []


def digit_in_the_page(page: Path) -> None:
    edit(page, ">2,048<", ">2,049<")


def results_file(page: Path) -> None:
    edit(run_folder(*ACCURACY.split("/")) / "results" / "comparison.json", '"correct": 3', '"correct": 4')


def manifest(page: Path) -> None:
    edit(run_folder(*ACCURACY.split("/")) / MANIFEST, '"seconds": 71.4', '"seconds": 17.4')


def notebook(page: Path) -> None:
    edit(run_folder(*ACCURACY.split("/")) / EXECUTED, "1 + 1", "1 + 2")


def other_data(page: Path) -> None:
    Path("data.jsonl").write_text("another question")


def lost_data(page: Path) -> None:
    Path("data.jsonl").unlink()


def other_notebook(page: Path) -> None:
    write_notebook(Path("notebooks/tiny.ipynb"), "1 + 3")


def swapped_picture_in_the_page(page: Path) -> None:
    first, second = dict.fromkeys(re.findall(r'src="data:image/svg[^"]*"', page.read_text()))
    edit(page, first, second)


def swapped_picture_of_the_run(page: Path) -> None:
    figures = run_folder(*ACCURACY.split("/")) / "figures"
    shutil.copy(figures / "accuracies.svg", figures / "logit_differences.svg")


def verdict_in_the_page(page: Path) -> None:
    row = re.search(r'<tr data-from="week#rows/11\.6".*?</tr>', page.read_text(), re.DOTALL)
    assert row
    edit(page, row[0], row[0].replace("◐ partial<", "✓ passed with ease<"))


def verdict_in_the_week(page: Path) -> None:
    edit(page.with_name(KEPT), '"verdict":"partial"', '"verdict":"pass"')


def deleted_run(page: Path) -> None:
    shutil.rmtree(run_folder(*ACCURACY.split("/")))


def added_file(page: Path) -> None:
    (run_folder(*ACCURACY.split("/")) / "results" / "more.json").write_text("{}")


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (
            digit_in_the_page,
            f"{ACCURACY}#tables/cases: the page shows 2,049, and its source gives 2,048 (as it was recorded)",
        ),
        (
            results_file,
            f"run {ACCURACY}: results/comparison.json (a results file) has changed since the page was written",
        ),
        (manifest, f"run {ACCURACY}: manifest.json (the run's manifest) has changed since the page was written"),
        (notebook, f"run {ACCURACY}: executed.ipynb (the executed notebook) has changed since the page was written"),
        (other_notebook, f"other code than that of runs {ACCURACY}, timed/aa11: the cells of tiny.ipynb have changed"),
        (other_data, f"other data than that of run {ACCURACY}: data.jsonl has the hash "),
        (lost_data, f"other data than that of run {ACCURACY}: data.jsonl is gone, or cannot be read"),
        (swapped_picture_in_the_page, f"{ACCURACY}#figures/accuracies: the picture is not the recorded one"),
        (swapped_picture_of_the_run, f"run {ACCURACY}: figures/logit_differences.svg (a picture) has changed since"),
        (verdict_in_the_page, "week#rows/11.6: the page says '✓ passed with ease', and its source gives '◐ partial'"),
        (verdict_in_the_week, "week.json does not agree with the runs: rows"),
        (deleted_run, f"run {ACCURACY} is gone: its folder "),
        (added_file, f"run {ACCURACY}: results/more.json (a results file) was added since the page was written"),
    ],
)
def test_tampering_is_found_and_named(
    tamper: Callable[[Path], None], named: str, week: Path, answering: list[str]
) -> None:
    tamper(week)
    found = verify_page(week, sample=4, seed=0)
    assert any(line.startswith(named) for line in found.problems), found.problems
    assert len(found.problems) <= 4  # and little else


def test_a_page_in_another_language_is_checked_too(week: Path, answering: list[str]) -> None:
    page = build_page(tag="zh-TW")
    found = verify_page(page, sample=1, seed=1)
    assert (found.problems, found.equal) == ((), 1)
    assert found.numbers == found.traced > 30
    digit_in_the_page(page)
    assert any("the page shows 2,049, and its source gives 2,048" in line for line in verify_page(page).problems)


def test_other_code_and_another_model_are_named_as_such(
    week: Path, answering: list[str], monkeypatch: pytest.MonkeyPatch, here: Run
) -> None:
    monkeypatch.setattr(fingerprint, "hash_package", lambda: "0123456789abcdef")
    monkeypatch.setattr(fingerprint, "hash_model", lambda _: "another")
    runs = f"runs {ACCURACY}, timed/aa11"
    code = f"other code than that of {runs}: the package has the hash 0123456789ab, and had package"
    model = f"other model than that of {runs}: smollm2 has the hash another, and had {MODEL_HASH[:12]}"
    assert verify_page(week).problems == (code, model)
    assert answering == []  # another model would give other answers
    ended = here(f"verify {week}")
    assert ended.status == 1 and ended.out.startswith(f"{code}\n{model}\n")
    assert ended.err.endswith(f"error: {week}: 2 problems, named above\n")


def test_whoever_changes_results_hashes_and_page_alike_is_found_by_executing_again(
    week: Path, answering: list[str]
) -> None:
    folder = run_folder(*ACCURACY.split("/"))
    edit(folder / "results" / "comparison.json", "The model's factual answer", "The model's better answer")
    seal(folder)
    build_page()
    found = verify_page(week, sample=None, seed=0)
    assert found.traced == found.numbers
    assert found.problems == (
        f"{ACCURACY}: answer to factual-01 executed again is another: text is "
        f"{answering_text('factual')}, and recorded is {answering_text('better')}",
    )


def answering_text(kind: str) -> str:
    return repr(str(make_answer("factual").text).replace("factual", kind))


def test_a_finding_that_does_not_follow_from_the_results_is_found(week: Path, answering: list[str]) -> None:
    folder = run_folder(*ACCURACY.split("/"))
    edit(folder / "results" / "findings.json", "equals", "almost equals")
    seal(folder)
    build_page()
    (problem,) = verify_page(week, sample=1).problems
    assert problem.startswith(f"{ACCURACY}#findings/0: recorded is 'The split smollm2 almost equals")


def test_a_week_with_newer_runs_says_what_was_not_derived_again(
    week: Path, answering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(monkeypatch, "timed/bb22", {})
    seal(folder)
    found = verify_page(week, sample=1)
    assert found.problems == () and found.traced == found.numbers
    assert any("as its week has newer runs: write the page again" in line for line in found.unchecked)
    verdict_in_the_page(week)
    assert any("passed with ease" in line for line in verify_page(week, sample=1).problems)


def test_what_lies_beside_the_page_is_needed(week: Path, here: Run) -> None:
    (told,) = [line for line in verify_page(week).unchecked if "results of" in line]
    assert told.endswith("were not executed again: another version of the study recorded it, without 'batches'")
    edit(week.with_name(NUMBERS), '"shown": "17"', '"shown": "18"')
    assert any(
        "numbers.json has other numbers than the runs give, such as 18 of" in line
        for line in verify_page(week).problems
    )
    week.with_name(NUMBERS).unlink()
    with pytest.raises(NotFoundError, match="is missing, so its page cannot be checked"):
        verify_page(week)
    assert "there is no absent.html" in here("verify absent.html").failed(2)
    (parts := week.with_name("parts")).mkdir()
    assert "--all and --seed are of a page's sample" in here(f"verify {parts} --all").failed(2)


SMALL = """<style>p { margin: 0 }</style>
<h1 data-from="week#title">Week 48</h1>
<table data-from="a/b#tables/t"><tr><td>97.6&nbsp;%<td>2,048</table>
<p>of 3</p><img src="x" data-from="a/b#figures/f">"""


def test_a_page_is_read_as_texts_tags_and_sources() -> None:
    pieces = read_pieces(SMALL)
    assert [(each.source, each.text) for each in pieces if not each.tag] == [
        ("week#title", "Week 48"),
        ("a/b#tables/t", "97.6 %"),
        ("a/b#tables/t", "2,048"),
        (None, "of 3"),
    ]
    assert without_source(pieces) == ["of 3"]
    assert [each.source for each in pieces if each.tag == "img"] == ["a/b#figures/f"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.976, −12 and +3.5", ["0.976", "−12", "+3.5"]),
        ("2,048 of 1,000,000.", ["2,048", "1,000,000"]),
        ("fp32 of smollm2, run 3f2a9c01, 5.24.0", []),
        ("−2.1 × 10⁻⁵", ["−2.1 × 10⁻⁵"]),
        ("97%, 16+14, 5–7", ["97", "16", "14", "5", "7"]),
        ("最差的是2個", ["2"]),
    ],
)
def test_numbers_are_told_from_names(text: str, numbers: list[str]) -> None:
    assert [number for piece in read_pieces(f"<p>{text}</p>") for number in piece.numbers] == numbers


@pytest.mark.parametrize(
    ("shown", "recorded", "rule"),
    [
        ("0.9761", 0.97612, "rounded to 4 decimals"),
        ("97.6", 0.97612, "in per cent, rounded to 1 decimal"),
        ("2,048", 2048, "as it was recorded"),
        ("976", 0.97612, "in thousandths, rounded to a whole number"),
        ("−0.000021", -2.1e-5, "rounded to 6 decimals"),
        ("2.1 × 10⁻⁵", -2.1e-5, "rounded to 1 decimal and a power of ten"),
        ("17.5", "17.5", "as it was recorded"),
        ("4", None, "counted or computed from it"),
    ],
)
def test_a_number_is_traced_to_what_was_recorded(shown: str, recorded: Any, rule: str, week: Path) -> None:
    from qubic_lab.runs.page_numbers import RecordedValue

    content = {"a": [0.97612, 2048], "b": {"c": -2.1e-5, "text": "took 17.5 s"}}
    assert RecordedValue(content).origin(shown) == (recorded, rule)
    assert TracedNumber(shown, "a/b", recorded, rule).origin()


def test_each_difference_is_named_by_its_source(week: Path) -> None:
    from qubic_lab.runs.collect_week import collect_week

    recorded = RecordedWeek(collect_week(WEEK))
    source = f"{ACCURACY}#tables/cases"
    right = f'<p data-from="{source}">2,048 of 17</p><p data-from="week#rows">done</p>'

    def named(page: str) -> list[str]:
        return list(compare_pages(page, right, recorded).differences)

    assert named(right) == []
    assert named(right.replace("17", "71")) == [
        f"{source}: the page shows 71, and its source gives 17 (as it was recorded)"
    ]
    assert named(right.replace("done", "open")) == ["week#rows: the page says 'open', and its source gives 'done'"]
    assert named(right.replace(source, "week#title"))[0].startswith(f"{source}: the page has the tag")
    assert named(right + "<p>5</p>") == [
        "the page: the page has, and its runs do not give, '<p>'",
        "the page: the page has, and its runs do not give, '5'",
        "the page shows '5' without a source",
    ]
    assert named(right.replace("<p", " <p")) == [
        "the page is not what its runs give, though all of its texts, tags and pictures are"
    ]
    wrong = right.replace("cases", "causes")
    assert f"{source.replace('cases', 'causes')}: the page names a source that there is not" in named(wrong)


@pytest.mark.parametrize(
    ("recorded", "value", "said"),
    [
        ({"a": [1.0, {"b": 2}]}, {"a": [1.0, {"b": 2}]}, ""),
        ({"a": [1.0, {"b": 2}]}, {"a": [1.0, {"b": 3}]}, "a/1/b is '3', and recorded is '2'"),
        ([1], [1, 2], "'[1, 2]', and recorded is '[1]'"),
        (0.1 + 0.2, 0.3, "'0.3', and recorded is '0.30000000000000004'"),
    ],
)
def test_the_first_bit_that_differs_is_named(recorded: Any, value: Any, said: str) -> None:
    assert first_difference(recorded, value) == said


def test_every_number_of_the_sample_week_says_where_it_is_from() -> None:
    week = read_week(Path(__file__).parents[1] / "reports" / "sample" / KEPT)
    page = week_files(week)[PAGE]
    found = compare_pages(page, page, RecordedWeek(week))
    assert found.differences == ()
    assert found.traced == found.numbers > 1_000
