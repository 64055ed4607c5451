"""The weekly page, made from recorded runs that no test has to compute."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import typer
from clocks import StandingClock
from commands import Run
from comparisons import make_comparison
from pages import one, parse, parse_file, table, text, visible
from studies import make_manifest, write_notebook
from typer.testing import CliRunner

from qubic_lab.cli import runs as commands
from qubic_lab.cli.console import add_commands
from qubic_lab.errors import InputError
from qubic_lab.evals.comparison import SplitComparison
from qubic_lab.oracle.backtest.ledger import verify
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, read_iso
from qubic_lab.oracle.store.chain import ledger_database
from qubic_lab.oracle.store.claims import Claim, ClaimLedger, ClaimOutcome
from qubic_lab.runs.cells import format_column, heading
from qubic_lab.runs.collect_week import judge, open_week
from qubic_lab.runs.experiment import ProjectItem, ProjectProblem, ProjectStatus
from qubic_lab.runs.notebook import EXECUTED, record, record_figure, record_findings, record_table
from qubic_lab.runs.records import RecordedPicture
from qubic_lab.runs.report import build_page
from qubic_lab.runs.store import hash_files, read_manifest, run_folder, write_manifest
from qubic_lab.runs.study_page import without_scripts
from qubic_lab.runs.summary import SIGNS
from qubic_lab.runs.week_index import WeekEntry, add_entry, keep_status, read_index
from qubic_lab.runs.week_report import read_week
from qubic_lab.studies import accuracy_comparison as figures
from qubic_lab.studies.acceptance import MEANINGS, Verdict

STUDY = "accuracy_comparison"
KEY = "3f2a9c01d4e5b687"
SPACE = "\N{NO-BREAK SPACE}"


@pytest.fixture
def add_run(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that leaves a run on disk as `qubic-lab run` would, with its entry in the week's index."""

    def add(
        comparison: SplitComparison | None = None,
        *,
        week: str = "2026-W48",
        study: str = STUDY,
        key: str = KEY,
        error: str | None = None,
        of: int = 1,
        full: bool = False,
        batch: str = "2026-11-24T08:00:00+00:00",
        pictures: bool = False,
        notebook: bool = False,
        tables: dict[str, pd.DataFrame] | None = None,
        dtypes: Sequence[str] = ("fp32", "bf16"),
    ) -> Path:
        folder = run_folder(study, key, failed=error is not None)
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("QUBIC_LAB_RUN_DIR", str(folder))
        if comparison:
            record("comparison", comparison)
            record_findings([f"The split {comparison.model} is the whole model.", "The second finding."])
        for name, frame in (tables or {}).items():
            record_table(name, frame, f"Caption of {name}")
        if comparison and pictures:
            record_figure("logit_differences", figures.logit_differences(comparison), "Differences <of> logits")
        if notebook:
            write_notebook(folder / EXECUTED, "1 + 1")
        manifest = make_manifest(
            key=key,
            study=study,
            title=f"Title of {study}",
            parameters={"model": "smollm2", "questions": 8, "dtypes": list(dtypes)},
            commit="0123456789abcdef",
            dirty=True,
            versions={"python": "3.12.1", "torch": "2.6.0"},
            machine="A processor, 2 cores, 8 GiB, Linux",
            model="smollm2",
            model_hash="fedcba9876543210ff",
            data_hashes={"data/questions/general.jsonl": "99aabbccddeeff0011"},
            circumstances={"device": "cpu", "threads": 1, "seed": 0},
            error=error,
            files=hash_files(folder),
        )
        write_manifest(folder, manifest)
        add_entry(week, WeekEntry(study, key, batch, of, reused=False, failed=error is not None, full=full))
        return folder

    return add


def built(week: str | None = None) -> str:
    """Build a page and return its text."""
    return text(parse_file(build_page(week)))


def criteria(page: Path) -> dict[str, list[str]]:
    """Return the cells of each acceptance row, by its id."""
    return {row[0]: row for row in table(parse_file(page), "Acceptance table")}


def test_a_page_is_valid_self_contained_and_small(add_run, lab_root: Path):
    add_run(make_comparison(), pictures=True, notebook=True)
    page = build_page()
    assert page == lab_root / "reports" / "2026-W48" / "index.html"
    names = [f"{STUDY}.html", "index.html", "numbers.json", "week.json"]
    assert sorted(path.name for path in page.parent.iterdir()) == names
    assert page.stat().st_size < 1_000_000
    document = parse_file(page)
    addresses = {each for element in document.iter() for name, each in element.items() if name in ("src", "href")}
    beside = {f"{STUDY}.html#{STUDY}/{KEY}"}
    assert {each for each in addresses if not each.startswith(("#", "data:"))} == beside
    assert not re.search(r"url\((?!%23)|@import", page.read_text())  # but within a picture
    assert not list(document.iter("script"))
    # Every reference to a run leads to its provenance.
    ids = [element.get("id") for element in document.iter() if element.get("id")]
    targets = {element.get("href", "")[1:] for element in document.iter("a")} - {each[1:] for each in beside}
    assert len(ids) == len(set(ids))
    assert f"run-{STUDY}/{KEY}" in targets <= set(ids)


def test_a_studys_page_shows_the_executed_notebook_without_scripts(add_run):
    add_run(make_comparison(), pictures=True, notebook=True)
    beside = build_page().parent / f"{STUDY}.html"
    document = parse_file(beside)
    assert "1 + 1" in text(document) and "Title of accuracy_comparison" in text(document)
    assert one(document, f"section[@id='{STUDY}/{KEY}']") is not None
    assert not [each for each in document.iter() if each.tag in ("script", "iframe", "link") and not each.get("rel")]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ('<p id="a" onclick="x()">Text<script>x()</script></p>', "<p>Text</p>"),
        ('<a href="javascript:x()">away</a><a href="https://a.b">on</a>', '<a>away</a><a href="https://a.b">on</a>'),
        ('<table border="1"><tr><td style="x">1</td></tr></table>', "<table><tr><td>1</td></tr></table>"),
        ('<img src="data:image/png;base64,aa" height="5"/>', '<img src="data:image/png;base64,aa"/>'),
        ('<img alt="A caption" src="data:image/png;base64,aa"/>', '<img alt="A caption" src="data:image/svg+xml,it"/>'),
        ('<p width="5"><img width="8"/></p>', '<p><img width="8"/></p>'),
        ('<img src="file:///a.png"/><img alt="b"/>', '<img/><img alt="b"/>'),
    ],
)
def test_of_a_notebook_text_tables_and_pictures_stay(body: str, kept: str):
    bodies = (kept, without_scripts(body, [RecordedPicture("it", "A caption", "it")]))
    expected, found = (parse(f"<!DOCTYPE html><title>t</title>{each}") for each in bodies)
    assert [(each.tag, dict(each.items()), each.text) for each in found.iter()] == [
        (each.tag, dict(each.items()), each.text) for each in expected.iter()
    ]


def test_any_table_is_shown_with_its_caption_units_and_run(add_run):
    cases = pd.DataFrame(
        {
            "strategy": ["A", "C"],
            "layers": [[15, 15], [16, 14]],
            "tokens_per_s": [123.456, 9.5],
            "tokens": [2048, 1],
            "token_identity": [1.0, None],
            "Same as": [None, "A"],
            "identical": [True, False],
        }
    )
    add_run(make_comparison(), tables={"accuracy": pd.DataFrame({"n": range(11)}), "cases": cases})
    document = parse_file(build_page())
    section = one(document, "section[@id='sameness']")
    (shown,) = (each for each in visible(section) if each.tag == "table")
    assert text(one(shown, "caption")) == "Caption of accuracy More rows below: 3."
    assert len(list(shown.iter("tr"))) == 9
    assert table(document, "Caption of cases") == [
        ["A", "15 + 15", "123", "2,048", "1", "–", "yes"],
        ["C", "16 + 14", "10", "1", "–", "A", "no"],
    ]
    sources = {each.get("data-from") for each in section.iter("table")}
    assert sources == {f"{STUDY}/{KEY}#tables/{name}" for name in ("accuracy", "cases")}


def test_the_answer_comes_first_and_again_with_its_question(add_run):
    add_run(make_comparison(meaningless=True), of=3)
    page = built()
    assert page.index("smollm2 (random weights)") < page.index("is the whole model")
    assert "The weights of smollm2 are random: its answers mean nothing" in page
    assert f"{STUDY}: 1 of 3 runs are done" in page
    assert page.count("The split smollm2 is the whole model.") == 2
    assert page.count("The second finding.") == 1
    assert page.index("The split smollm2") < page.index("In short") < page.index("The second finding.")


def test_a_page_shows_the_verdicts_and_what_was_not_measured(add_run):
    add_run(make_comparison())
    judged = criteria(build_page())
    pipeline, consistency = judged["11.4"], judged["11.6"]
    assert pipeline[4].startswith("– not measured here")
    assert consistency[4].startswith("◐ partial 8 of the 50 questions that a verdict takes")
    assert consistency[4].endswith("No full run is recorded.")
    assert "(3f2a9c01)" in consistency[3]


def test_each_verdict_has_its_look_and_is_explained_and_counted(add_run):
    add_run(make_comparison())
    page = build_page()
    document, style = parse_file(page), page.read_text().partition("</style>")[0]
    legend = one(document, "dl[@class='legend']")
    assert [text(each) for each in legend.iter("dt")] == [f"{sign} {name}:" for name, (sign, _) in SIGNS.items()]
    assert [text(each) for each in legend.iter("dd")] == [MEANINGS[name] for name in SIGNS]
    assert all(f".{look} {{ color: var(--" in style for _, look in SIGNS.values())
    assert set(SIGNS) == set(MEANINGS) == set(get_args(Verdict))
    tiles = [text(each) for each in one(document, "ul[@class='tiles']")]
    counts = Counter(row.verdict for row in judge({}) if row.measurable) + Counter(
        {"partial": 1, "not measured here": -1}
    )
    assert tiles == [f"{counts[name]} {sign} {name}" for name, (sign, _) in SIGNS.items() if counts[name]]


def test_the_last_full_run_stands_beside_a_quick_one_with_its_date(add_run):
    whole = make_comparison(questions=128)
    early, late = "2026-11-10T08:00:00+00:00", "2026-11-17T08:00:00+00:00"
    add_run(whole, week="2026-W46", key="aaaa1111", batch=early, full=True)
    stopped = make_comparison(token_identity=0.5)
    add_run(stopped, week="2026-W47", key="bbbb2222", batch=late, full=True, of=2)
    add_run(make_comparison(), week="2026-W48")
    row = criteria(build_page("2026-W48"))["11.6"]
    assert "8 of 8 questions" in row[3] and "Last full run, 2026-11-24: 100" in row[3]
    assert "128 of 128 questions" in row[3] and row[3].endswith("run aaaa1111)")
    assert row[4].startswith("◐ partial") and row[4].endswith("Last full run, 2026-11-24: ✓ pass")
    # A week of the full form has no other beside it, and later weeks are not looked at.
    assert "Last full run" not in built("2026-W46")
    add_run(whole, week="2026-W48", key="cccc3333", batch="2026-11-25T08:00:00+00:00", full=True)
    add_run(make_comparison(), week="2026-W48", key="dddd4444", batch="2026-11-26T08:00:00+00:00")
    assert "cccc3333)" in built("2026-W48")  # of an earlier day of the week


def test_provenance_is_complete(add_run):
    add_run(make_comparison(), week="2026-W49")
    page = built()
    for part in (
        f"{STUDY}/{KEY}",
        "2026-11-24 08:00 UTC, 71 s; in 2026-W48, used again as nothing had changed",
        "0123456789ab, with changes that are not committed",
        "A processor, 2 cores",
        "smollm2, hash fedcba9876543210",
        "data/questions/general.jsonl, hash 99aabbccddeeff00",
        "torch 2.6.0",
        'dtypes=["fp32", "bf16"]',
    ):
        assert part in page


def test_text_from_models_and_questions_stays_text(add_run):
    examples = pd.DataFrame(list(make_comparison().answers))
    add_run(make_comparison(), tables={"examples": examples})
    document = parse_file(build_page())
    assert "answer is <script>alert(1)</script>" in text(document)
    assert not list(document.iter("script"))


def test_a_failed_study_is_listed_with_its_error_and_without_numbers(add_run):
    add_run(make_comparison())
    error = "concurrency.ipynb: cell In [4]: ValueError: broken"
    add_run(make_comparison(model="other"), study="concurrency", key="77aa", error=error)
    page = built()
    assert "A run of concurrency failed and is not in the numbers." in page
    assert page.count(error) == 2
    assert "The split other" not in page


def test_a_week_in_which_everything_failed_or_was_deleted_still_has_a_page(add_run):
    folder = add_run(error="it broke")
    page = built()
    assert "A run of accuracy_comparison failed" in page and "No run of it has findings." in page
    (folder / "manifest.json").unlink()
    assert "holds no readable manifest.json: delete it and run the study again" in built()


DAMAGES = {
    "deleted": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "flipped": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("hashed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_damaged_run_is_left_out_and_named_and_the_others_stand(add_run, damage: str, hashed: bool):
    add_run(make_comparison(model="intact"), study="concurrency", key="77aa")
    table = {"speeds": pd.DataFrame({"a": [1.0]})}
    folder = add_run(make_comparison(model="other"), pictures=True, tables=table)
    files = [folder / name for name in hash_files(folder)]
    assert {file.suffix for file in files} >= {".json", ".svg", ".parquet"}
    if not hashed:  # as older versions wrote it: only what cannot be read is noticed
        write_manifest(folder, replace(read_manifest(folder), files={}))
    for file in [*files, folder / "manifest.json"]:
        before = file.read_bytes()
        DAMAGES[damage](file)
        page = built()
        assert "The split intact is the whole model." in page
        if hashed:
            assert "The split other is the whole model." not in page
            assert "run the study again" in page
        file.write_bytes(before)
    assert "The split other is the whole model." in built()


def test_a_damaged_index_is_named_and_other_weeks_stand(add_run):
    add_run(make_comparison(model="old"), week="2026-W47")
    add_run(make_comparison(model="new"), week="2026-W48", key="aa11")
    index = run_folder(STUDY, KEY).parents[1] / "weeks" / "2026-W48.json"
    index.write_text(index.read_text()[:-20])
    assert "The split old is the whole model." in built()
    with pytest.raises(InputError, match=r"2026-W48\.json is damaged: delete it"):
        read_index("2026-W48")


def test_the_latest_week_is_the_default_and_another_can_be_asked_for(add_run):
    add_run(make_comparison(model="new"), week="2027-W01", key="aa11")
    add_run(make_comparison(model="old"), week="2026-W53", key="bb22", dtypes=["fp32"])
    add_run(make_comparison(model="old"), week="2026-W53", key="cc33", dtypes=["bf16"])
    assert build_page().parent.name == "2027-W01"
    old = build_page("2026-W53")
    assert old.parent.name == "2026-W53"
    old_text = text(parse_file(old))
    assert "Week 53 of 2026 2026-12-28 – 2027-01-03" in old_text
    assert "Title of accuracy_comparison dtypes=fp32 bb22" in old_text


def test_the_command_prints_the_page_and_nothing_else(add_run, lab_root: Path):
    with pytest.raises(InputError, match=r"no week has runs yet: start with 'qubic-lab run experiments/weekly\.yaml'"):
        build_page()
    add_run(make_comparison())
    app = typer.Typer()
    add_commands(app, {"run": (commands.run, ""), "report": (commands.report, "")})
    result = CliRunner().invoke(app, ["report", "--week", "2026-W48"], catch_exceptions=False)
    assert result.output == f"{lab_root / 'reports' / '2026-W48' / 'index.html'}\n"


def test_a_page_says_how_the_project_stood_in_its_week(add_run):
    add_run(make_comparison(), week="2026-W48")
    keep_status(
        "2026-W48", ProjectStatus(done=("engine",), problems=(ProjectProblem("slow", "wait"),), next_focus=("cluster",))
    )
    add_run(make_comparison(), week="2026-W49")
    overview = tuple(ProjectItem(f"Week {9 + n}", ("a", "b")[: 2 - n // 5], ("c",) * (n // 5)) for n in range(8))
    keep_status("2026-W49", ProjectStatus(done=("engine", "cluster"), overview=overview, tomorrow=("votes",)))
    assert "Done engine Problems and solutions slow wait Next cluster" in built("2026-W48")
    page = built("2026-W49")
    assert "Done engine cluster" in page and "Tomorrow votes" in page
    assert "5 of 8 weeks of the project are done." in page
    assert "ItemDoneBuiltOpenWeek9100%a,b–Week10100%a,b–" in "".join(page.split())
    assert "Week1550%acWeek1650%ac" in "".join(page.split())


def test_a_kept_week_is_opened_where_its_runs_are_not(add_run, lab_root: Path):
    table = pd.DataFrame({"layers": [[15, 15]], "share": [None]})
    add_run(make_comparison(), pictures=True, tables={"cases": table})
    page = build_page()
    collected = open_week("2026-W48")
    shutil.rmtree(lab_root / "runs")
    kept = open_week()
    assert replace(kept, written_utc="") == replace(collected, written_utc="")
    assert kept.table("cases")["layers"].tolist() == [[15, 15]]
    content = page.read_text()
    assert build_page("2026-W48").read_text() == content
    with pytest.raises(InputError, match=r"unknown table 'case': did you mean 'cases'\?"):
        kept.table("case")
    (page.parent / "week.json").write_text("{}")
    with pytest.raises(InputError, match="holds no readable week"):
        read_week(page.parent / "week.json")


def test_the_sample_week_is_opened_where_there_is_nothing_else_and_is_not_written_again(add_run, lab_root: Path):
    add_run(make_comparison())
    page = build_page()
    shutil.rmtree(lab_root / "runs")
    sample = page.parent.rename(lab_root / "reports" / "sample")
    assert open_week() == open_week("sample") == read_week(sample / "week.json")
    with pytest.raises(InputError, match="the sample week has its page already"):
        build_page("sample")
    own = lab_root / "reports" / "2026-W40"
    own.mkdir()
    (own / "week.json").write_text((sample / "week.json").read_text().replace("2026-W48", "2026-W40"))
    assert open_week().week == "2026-W40"  # any week of one's own goes before the sample


@pytest.mark.parametrize(
    ("column", "values", "cells"),
    [
        ("count", [3.0, None], ["3", "–"]),  # what pandas makes of whole numbers with a missing one
        ("share", [0.123456, 0.5], ["0.123", "0.500"]),
        ("wide", [12345.6, 0.00021, 0.0], ["12,346", "0.000210", "0"]),
        ("tiny", [-2.1e-5], ["−2.1 × 10⁻⁵"]),
        ("mixed", [1, "a", True, []], ["1", "a", "yes", "–"]),
    ],
)
def test_values_are_written_by_rules(column: str, values: list[Any], cells: list[str]):
    assert format_column(column, values) == cells


def test_headings_have_units():
    headings = {"p95_s": "p95 (s)", "peak_rss_bytes": "peak rss (bytes)", "s": "s", "latency_ms": "latency (ms)"}
    assert {column: heading(column) for column in headings} == headings


def test_a_page_says_what_was_said_and_what_came_and_binds_the_ledger(add_run, lab_root: Path):
    add_run(make_comparison(), week="2026-W47")
    add_run(make_comparison(), week="2026-W48")
    assert "What we said and what came" not in built("2026-W47")
    monday = read_iso("2026-11-16T00:00:00Z")
    claim = Claim("bitcoin in a day", True, monday, monday + DAY_US, Series("bitcoin", "file"), HOUR_US, {"last": 1.0})
    clock = StandingClock(monday + HOUR_US)
    with ledger_database() as engine:
        claims = ClaimLedger(engine, clock)
        claims.enter(claim)
        clock.us = claim.due_us
        claims.score(1, ClaimOutcome(True, 2.0))
        clock.us += 7 * DAY_US
        claims.enter(replace(claim, family="next week", at_us=clock.us, due_us=clock.us + DAY_US))
        head = verify(engine).hash
    first = build_page("2026-W47")
    families = table(parse_file(first), "What we said and what came, by family of claims.")
    assert families == [
        ["bitcoin in a day", "1", "0", "1", "0", "1", "100 % (21 to 100)", "100 %", "100 %", "–", "–", "0.5", "–"]
    ]
    assert head not in first.read_text() and "Entries of the ledger: 2 (trials: 0, claims: 1)." in text(
        parse_file(first)
    )
    second = build_page("2026-W48")
    assert head in second.read_text() and "The heads on all earlier pages are in it (1)." in text(parse_file(second))
    (lab_root / "ledger.db").unlink()
    assert "The ledger is not that of the pages of 2026-W47" in built("2026-W48")
    with ledger_database() as engine:
        ClaimLedger(engine, clock).enter(replace(claim, at_us=clock.us, due_us=clock.us + DAY_US))
    assert "The ledger is not that of the pages of 2026-W47: it was replaced, or rewritten." in built("2026-W48")


def test_a_page_in_another_language_lies_in_a_folder_beside_the_english_one(add_run, here: Run):
    add_run(make_comparison())
    english = build_page()
    chinese = Path(here("report --lang zh-TW").out.strip())
    assert chinese == english.parent / "zh-TW" / "index.html"
    assert "這是第一個有量測的週" in chinese.read_text()
    assert "這是" not in english.read_text()
    assert "zh-TW" in here("report --lang zh-tw").failed(2)
