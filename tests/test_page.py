"""What fits on a week's page: counted on the sample week, whose studies are those of every week."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from pages import NUMBERS_TOO, one, parse, table, text, visible, words
from studies import make_manifest

from qubic_lab.errors import InputError
from qubic_lab.runs.experiment import ProjectStatus
from qubic_lab.runs.first_screen import FIRST_SCREEN_WORDS
from qubic_lab.runs.history import Trend
from qubic_lab.runs.language import language
from qubic_lab.runs.page import PICTURES, ROWS, WeekPage, make_page
from qubic_lab.runs.records import RecordedPicture, RecordedTable, Records
from qubic_lab.runs.report import TREND_SIZE, render, trend_points
from qubic_lab.runs.summary import reader_answers
from qubic_lab.runs.week_report import ReportedRun, WeekReport, read_week
from qubic_lab.studies.acceptance import Criterion, FullVerdict
from qubic_lab.studies.finding import HEADLINE_WORDS, Finding
from qubic_lab.studies.questions import ASKED

ROOT = Path(__file__).parents[1]
CSS = ROOT / "qubic_lab" / "runs" / "templates" / "report.css"


@pytest.fixture(scope="module")
def sample() -> WeekPage:
    return make_page(read_week(ROOT / "reports" / "sample" / "week.json"))


@pytest.fixture(scope="module")
def content(sample: WeekPage) -> str:
    return render(sample)


@pytest.fixture(scope="module")
def document(content: str) -> Element:
    return parse(content)


def test_the_page_is_short(content: str, document: Element):
    first = one(document, "div[@class='first']")
    assert len(words(first, NUMBERS_TOO)) <= FIRST_SCREEN_WORDS
    assert len(words(document)) <= 2500
    shown = visible(document)
    assert sum(each.tag == "img" for each in shown) <= 16
    assert len(content.encode()) <= 2_000_000
    assert not list(document.iter("script"))


@pytest.mark.parametrize(("tag", "failing"), [("en", 0), ("en", 3), ("en", 6), ("zh-TW", 6)])
def test_the_first_screen_is_short_whatever_fails_and_however_long_a_headline_is(
    sample: WeekPage, tag: str, failing: int
):
    report = sample.report
    longest = sorted((row for row in report.rows if row.measurable), key=lambda row: -len(row.what))
    failed = {row.id for row in longest[:failing]}
    rows = tuple(replace(row, verdict="fail" if row.id in failed else "partial") for row in report.rows)
    values = {"key": 0.5, "low": 0.25, "high": 0.75, "unit": "of a long unit"}
    for words_of_headline in (12, HEADLINE_WORDS):
        headline = Finding(" ".join(["{key}", *["word"] * (words_of_headline - 1)]), values)
        bare = [replace(run, records=Records(findings=(headline,))) for run in report.runs]
        week = replace(report, rows=rows, runs=tuple(bare), unfinished=("Some are not done.", "Nor are these."))
        with language(tag):
            first = one(parse(render(make_page(week))), "div[@class='first']")
        assert len(words(first, NUMBERS_TOO)) <= FIRST_SCREEN_WORDS
        named = [text(each) for each in first.iter("a") if each.get("class") == "named"]
        assert {each.split()[0] for each in named[:3]} <= failed and len(named) == {0: 0, 3: 3, 6: 4}[failing]
        assert ("word" in text(first)) and ("3" in named[-1] if failing == 6 else True)


def test_a_row_a_question_and_a_section_a_row(sample: WeekPage, document: Element):
    rows = one(document, "ul[@class='rows']")
    assert len(rows) == len(ASKED) == 6
    assert [one(row, "a").get("href") for row in rows] == [f"#{question.name}" for question in ASKED]
    assert [text(one(document, f"section[@id='{each.name}']/h2")) for each in ASKED] == [each.asks for each in ASKED]
    assert all(row.sentence.text and row.fits for row in sample.first.rows)
    assert sample.hero is not None and sample.hero.source.endswith("#figures/throughput")


def test_no_section_shows_more_than_it_may(document: Element):
    for question in ASKED:
        shown = visible(one(document, f"section[@id='{question.name}']"))
        tables = [each for each in shown if each.tag == "table"]
        assert len(tables) <= 1
        assert all(len(list(each.iter("tr"))) <= ROWS + 1 for each in tables)
        assert sum(each.tag == "img" for each in shown) <= PICTURES
        assert "What this does not show:" in " ".join(text(each) for each in shown)


def test_everything_recorded_is_on_the_page_or_its_studies_pages(sample: WeekPage, content: str, document: Element):
    shown = text(document)
    for run in sample.report.runs:
        for place, finding in enumerate(run.records.findings):
            assert f'data-from="{run.name}#findings/{place}"' in content and " ".join(str(finding).split()) in shown
        for recorded in run.records.tables:
            assert f'data-from="{run.name}#tables/{recorded.name}"' in content
    for row in sample.report.rows:
        assert f'data-from="week#rows/{row.id}"' in content


def test_headings_descend_by_one_and_links_lead_somewhere(sample: WeekPage, document: Element):
    levels = [int(each.tag[1]) for each in document.iter() if re.fullmatch("h[1-6]", str(each.tag))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [each.get("id") for each in document.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    targets = {each.get("href", "") for each in document.iter("a")}
    notebooks = {f"{run.study}.html#{run.name}" for run in sample.report.runs}
    assert targets - {f"#{id}" for id in ids} <= notebooks


def test_pictures_say_what_they_show(document: Element):
    for picture in document.iter("img"):
        assert len(picture.get("alt", "").split()) >= 5


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb by WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_have_contrast(theme: int):
    block = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    grounds = [colours.pop(name) for name in ("paper", "card", "warn")]
    colours.pop("line")
    for name, colour in colours.items():
        for ground in grounds:
            light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, colour, ground)


def make_run(study: str, *findings: Finding, key: str = "k1", **changes: object) -> ReportedRun:
    picture = RecordedPicture("shape", "Shape of it", "<svg/>")
    recorded = RecordedTable("numbers", "Numbers", ("n",), tuple((n,) for n in range(11)))
    records = Records(findings=findings, pictures=(picture,), tables=(recorded,))
    manifest = make_manifest(study=study, key=key, title=f"What of {study}?")
    return replace(ReportedRun(f"{study}/{key}", study, manifest, records, None, "2026-W48"), **changes)


def make_week(*runs: ReportedRun, **changes: object) -> WeekReport:
    week = WeekReport("2026-W48", "2026-11-24T08:00:00+00:00", runs, (), (), (), None, ())
    return replace(week, **changes)


FAST = Finding("It is {key:.1f} {unit}.", {"key": 12.34, "low": 11.0, "high": 13.0, "unit": "tokens/s"})


def test_the_key_figure_stands_beside_its_sentence_with_its_interval():
    page = make_page(make_week(make_run("split_strategies", FAST, Finding("More."))))
    (row,) = page.first.rows
    assert (row.sentence.text, row.sentence.source) == (
        "It is 12.3 tokens/s.",
        "split_strategies/k1#findings/0",
    )
    assert row.figure and row.figure.text == "12.3 tokens/s (11.0\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}13.0)"


def test_the_run_that_decides_the_first_criterion_has_the_answer():
    few, many = (make_run("consensus_evaluation", Finding(f"It is {key}."), key=key) for key in ("few", "many"))
    rows = (
        Criterion("12.7", "Calibrated", "").row("", "pass", run=few.name),
        Criterion("12.9", "Votes", "").row("", "measured, no benefit", run=many.name),
    )
    (row,) = make_page(make_week(few, many, rows=rows)).first.rows
    assert row.sentence.text == "It is many."
    assert row.verdict == "measured, no benefit"


def test_a_study_without_a_question_has_a_row_and_a_section_too():
    page = make_page(make_week(make_run("own", Finding("Seen."))))
    (section,) = page.sections
    assert section.row.question.asks == "What of own?"
    assert page.hero and page.hero.name == "shape" and section.pictures == ()
    assert section.table and (len(section.table.rows), section.table.more) == (8, 3)
    assert len(section.details[0].tables[0].rows) == 11


def test_runs_of_one_study_are_told_apart_by_what_differs_between_them():
    def run(study: str, key: str, **parameters: int) -> ReportedRun:
        manifest = make_manifest(study=study, key=key, title=study.capitalize(), parameters=parameters)
        return make_run(study, FAST, key=key, manifest=manifest)

    runs = run("split_strategies", "k1", ranks=1, batch=2), run("split_strategies", "k2", ranks=2, batch=2)
    (section,) = make_page(make_week(*runs, run("concurrency", "k3", clients=4))).sections
    headings = ["Split_strategies ranks=1", "Split_strategies ranks=2", "Concurrency"]
    assert [detail.heading for detail in section.details] == headings


def test_the_weeks_file_names_the_picture_that_opens_the_page():
    run = make_run("own", Finding("Seen."))
    assert make_page(make_week(run, status=ProjectStatus(hero="own/shape"))).hero
    with pytest.raises(InputError, match=r"unknown picture to open the page 'shap': did you mean 'shape'\?"):
        make_page(make_week(run, status=ProjectStatus(hero="own/shap")))
    failed = replace(run, records=Records(), error="it broke")
    assert make_page(make_week(failed, status=ProjectStatus(hero="own/shape"))).hero is None


def said(report: WeekReport) -> dict[str, list[str]]:
    return {each.asked: [one.text for one in (*each.said, *each.more)] for each in reader_answers(report, ASKED)}


def test_what_to_decide_follows_from_the_verdicts():
    votes = Criterion("12.9", "Votes", "")
    decided = said(make_week(rows=(votes.row("", "fail"),)))["What is to be decided?"]
    assert decided == ["Votes: Do not pay for votes of this model: another use of the tokens is as good or better."]
    decided = said(make_week(rows=(votes.row("", True, few="3 of the 300 questions"),)))["What is to be decided?"]
    assert decided == ["Votes: Nothing yet – 3 of the 300 questions."]


@pytest.mark.parametrize(
    ("certain", "told"),
    [
        (True, "no, the whole interval misses the target"),
        (False, "it may be: the interval holds the target"),
        (None, "there is no interval, and no full form to compare"),
    ],
)
def test_a_failure_is_noise_or_not(certain: bool | None, told: str):
    row = Criterion("11.2", "Predictions", "").row("", False, certain=certain)
    assert said(make_week(rows=(row,)))["Is a failure noise?"] == [f"11.2 Predictions: {told}."]


def test_the_last_full_run_is_asked_where_there_is_no_interval():
    full = FullVerdict("2026-11-10", "2026-W46", "study/key", "", "pass")
    row = replace(Criterion("11.2", "Predictions", "").row("", False), last_full=full)
    assert said(make_week(rows=(row,)))["Is a failure noise?"] == [
        "11.2 Predictions: there is no interval; the full form of 2026-11-10 says: pass."
    ]


def test_a_plan_is_priced_where_its_devices_have_a_price():
    best = {"strategy": "D", "tokens_per_s": 200.0, "most_tokens_per_s": 8000.0, "requests": 2, "most_batch": 64}
    plan = {"model": "deepseek", "devices": ["t4", "t4"], "recommendation": "D", "plans": [best]}
    run = replace(make_run("split_strategies"), records=Records(results={"plan": plan}))
    asked = "What do a million tokens cost?"
    # 0.72 USD an hour for 720,000 tokens, or for 28.8 million
    priced = said(make_week(run, status=ProjectStatus(usd_per_hour={"t4": 0.36})))[asked]
    assert priced == [
        "Predicted for deepseek on t4, t4 at 0.720 USD an hour: 1.00 USD with 2 requests at once, 0.0250 USD with "
        "64 on each."
    ]
    assert asked not in said(make_week(run, status=ProjectStatus(usd_per_hour={"l4": 0.36})))


def test_the_quick_form_says_what_it_leaves_out_and_how_far_it_is():
    manifest = make_manifest(study="own", parameters={"questions": 8, "dtypes": ["fp32"]})
    run = make_run("own", manifest=manifest, left_out={"questions": 128, "dtypes": ["fp32", "bf16"]})
    row = Criterion("11.6", "Answers", "").row("", True, few="8 of the 50 questions", run="own")
    told = said(make_week(run, rows=(row,)))
    assert told["What did the quick form leave out?"][1:] == ["A study questions 8 of 128; dtypes fp32 of fp32, bf16."]
    assert told["How far is it from the full form?"] == ["11.6 Answers: 8 of the 50 questions."]
    assert "What did the quick form leave out?" not in said(make_week(replace(run, full=True, left_out={})))


def test_a_trend_fills_its_box_from_left_to_right():
    assert trend_points([1.0, 3.0, 2.0]) == [(0, TREND_SIZE[1]), (50, 0), (100, TREND_SIZE[1] / 2)]
    assert trend_points([2.0, 2.0]) == [(0, TREND_SIZE[1] / 2), (100, TREND_SIZE[1] / 2)]


def test_all_criteria_stand_in_one_table(sample: WeekPage, document: Element):
    assert [row[0] for row in table(document, "Acceptance table")] == [row.id for row in sample.report.rows]


def test_the_key_figure_of_earlier_weeks_is_a_line_beside_it():
    run = make_run("split_strategies", FAST)
    trend = Trend(run.name, "tokens/s", ("2026-W47", "2026-W48"), (10.0, 12.34), (None, None))
    page = make_page(make_week(run, trends=(trend,)))
    assert page.first.rows[0].trend == (10.0, 12.34)
    line = one(parse(render(page)), "{http://www.w3.org/2000/svg}svg[@class='trend']")
    assert line.get("aria-label") == "Earlier weeks and this one: 10.0, 12.3"
