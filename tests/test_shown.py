"""What a notebook shows: captions and units as on the page, parameters and verdict first, values as they are."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import html5lib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from bar_series import walk
from IPython.core.interactiveshell import InteractiveShell
from studies import Silent, write_notebook, write_study
from test_aggregate import reply_to, votes_of
from test_trace import two_ranks_trace  # noqa: F401  (a fixture)

from qubic_lab.cli.models import advise
from qubic_lab.consensus.certificate import Certificate
from qubic_lab.oracle.backtest.evaluate import BacktestConfig, Strategy, backtest
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.collect_week import open_week
from qubic_lab.runs.experiment import load
from qubic_lab.runs.notebook import RUN_DIR, record_figure, record_table, show_progress
from qubic_lab.runs.notebook_top import acceptance_lines, count_checks
from qubic_lab.runs.shown import MOST_ROWS, CaptionedTable, register, show_trace
from qubic_lab.trace import read_trace
from qubic_lab.votes.samples import SampledVote

ADVICE = ("deepseek", "t4,t4,t4", "10Gbps:0.1ms", "throughput", 1024, 1, "fp16", 512)


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """A shell that shows our types; no other test has one."""
    shell = InteractiveShell.instance()
    register(shell)
    yield shell
    InteractiveShell.clear_instance()


def shown(shell: InteractiveShell, value: Any) -> tuple[str, str]:
    """Return a value as text and as HTML, which must be valid."""
    data, _ = shell.display_formatter.format(value)
    html5lib.HTMLParser(strict=True).parseFragment(data["text/html"])
    return data["text/plain"], data["text/html"]


def test_a_table_has_its_caption_and_units_and_keeps_its_values(shell: InteractiveShell) -> None:
    rows = {"way": ["A <&> B", "C"], "layers": [[16, 14], None], "p95_s": [0.5, math.nan], "n": [1234, -5]}
    frame = pd.DataFrame(rows)
    table = record_table("ways", frame, "Ways <to> split.")
    assert table.frame is frame
    text, html = shown(shell, table)
    assert text.splitlines() == [
        "Ways <to> split.",
        "way      layers   p95 (s)      n",
        "A <&> B  16 + 14    0.500  1,234",
        "C        –              –     −5",
    ]
    assert "Ways &lt;to&gt; split.</caption>" in html and "A &lt;&amp;&gt; B" in html
    assert '<th style="text-align: right">p95 (s)</th>' in html


def test_a_long_table_is_cut_and_says_so(shell: InteractiveShell) -> None:
    text, html = shown(shell, CaptionedTable(pd.DataFrame({"n": range(1000)}), "Numbers."))
    assert text.startswith("Numbers. (the first 60 of 1,000 rows)")
    assert (len(text.splitlines()), html.count("<tr>")) == (MOST_ROWS + 2, MOST_ROWS + 1)


def test_values_that_are_no_numbers_of_a_page_are_shown(shell: InteractiveShell) -> None:
    odd = pd.DataFrame({"x": [math.inf, 1.0], "when": pd.to_datetime(["2026-11-30", None]), "yes": [True, False]})
    assert shown(shell, CaptionedTable(odd, ""))[0].splitlines()[2].split() == ["inf", "2026-11-30", "00:00:00", "yes"]
    assert shown(shell, CaptionedTable(pd.DataFrame(), "Nothing."))[0] == "Nothing."


def test_a_figure_has_its_caption_once(shell: InteractiveShell) -> None:
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    text, html = shown(shell, record_figure("line", figure, "A <line>."))
    assert text == "[picture] A <line>."
    assert html.count("A &lt;line&gt;.") == 2  # for those who see it, and for those who do not
    assert "data:image/png;base64,iVBOR" in html
    assert not plt.fignum_exists(figure.number)


def test_plans_are_shown_with_the_choice_and_all_ways(shell: InteractiveShell) -> None:
    advice = advise(*ADVICE)
    text, html = shown(shell, advice)
    assert text.startswith(f"Recommended: {advice.recommendation}. {advice.reason}")
    assert "largest rank (GB)" in html and all(f"strategy {plan.strategy}" in html for plan in advice.plans)


def test_votes_are_shown_with_every_voter(shell: InteractiveShell) -> None:
    vote = reply_to(votes_of("The answer is 12.", "5 + 7 = 12", "I cannot answer that."))
    for value in (vote, SampledVote(vote, Certificate(0, 0.05, 3), 40, 12)):
        text, html = shown(shell, value)
        assert text.startswith(vote.text)
        assert "answer with a note; no confidence (uncalibrated" in text
        assert [html.count(f">v{number}<") for number in range(3)] == [1, 1, 1]
    assert "certified at 5 %; 40 tokens, 12 saved" in text


def test_backtests_are_shown_beside_their_baselines_and_lags(shell: InteractiveShell) -> None:
    made = backtest(walk(80), Strategy(rising), BacktestConfig(draws=5, lags=(1, 2)))
    text, html = shown(shell, made)
    assert "Random timing of the same positions is as good in" in text and "of 5 draws" in text
    for name in ("rising", "hold", "cash", "filled 2 bars later", "most drawdown (%)"):
        assert name in html
    assert "filled 1 bars later" not in html


def rising(frame: pd.DataFrame) -> Any:
    return np.sign(frame["close"].diff().fillna(0.0)).clip(lower=0.0)


def test_weeks_are_shown_with_findings_and_verdicts(shell: InteractiveShell, lab_root: Path, set_settings: Any) -> None:
    set_settings(reports=Path(__file__).parents[1] / "reports")
    week = open_week("sample")
    text, html = shown(shell, week)
    assert text.startswith(f"Week {week.week}, written ")
    assert all(f">{row.id}<" in html for row in week.rows if row.measurable)


def test_traces_are_shown_by_request_and_as_a_picture(two_ranks_trace: Path) -> None:  # noqa: F811
    view = show_trace(read_trace(two_ranks_trace))
    assert "compute (ms)" in repr(view) and view._repr_html_().count("<img ") == 1
    assert plt.get_fignums() == []


def test_verdicts_are_of_studies_whatever_else_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qubic_lab.studies.cloud  # noqa: F401  # a plan is judged without results

    monkeypatch.setenv(RUN_DIR, str(tmp_path))
    assert acceptance_lines() == []


def test_the_executed_notebook_opens_with_parameters_and_verdict(lab_root: Path) -> None:
    begin = "from qubic_lab.runs.notebook_top import begin\nbegin(globals())"
    checks = "assert number == 2\nassert share == 0.5, 'another share'"
    parameters = "number: int = 1\nshare: float = 0.5\nnames: list[str] = ['a']"
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", begin, "'work'", checks, parameters=parameters)
    full: dict[str, Any] = {"parameters": {}}
    first = opening(write_study(lab_root, full=full))
    assert first.startswith("Verdict: ✓ all 2 checks hold.\n")
    assert [line.split() for line in first.splitlines()[3:]] == [
        ["parameter", "value"],
        ["number", "2"],
        ["share", "0.500"],
        ["names", "a"],
    ]
    failing = write_study(lab_root, "failing", quick={"parameters": {"number": 2, "share": 0.25}}, full=full)
    assert opening(failing).startswith("Verdict: ✗ failed, AssertionError: another share\n")


def opening(study: Path) -> str:
    """Run a study and return what its notebook shows below the parameters."""
    (outcome,) = run_batch(load(study), full=False, watcher=Silent())
    cells = json.loads((outcome.folder / "executed.ipynb").read_text())["cells"]
    (top,) = next(cell["outputs"] for cell in cells if "begin(globals())" in "".join(cell["source"]))
    return "".join(top["data"]["text/plain"])


def test_checks_are_the_asserts_of_a_cell() -> None:
    assert count_checks("x = 1\nassert x\nfor _ in ():\n    assert not x") == 2
    assert count_checks("%%ask\nwhat do you assert?") == 0


def test_progress_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm.auto

    drawn: list[tuple[float, str]] = []

    class Bar(tqdm.std.tqdm):
        def refresh(self, *given: Any, **options: Any) -> None:
            drawn.append((self.n, self.desc))

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.delenv("QUBIC_LAB_RUN_DIR", raising=False)
    update = show_progress()
    update("one", 1, 4)
    update("two", 4, 4)
    assert drawn[-2:] == [(0.25, "one: "), (1.0, "two: ")]
