"""Findings: sentences from templates and values, which survive being recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qubic_lab.runs.notebook import RUN_DIR, record_findings
from qubic_lab.runs.records import read_records
from qubic_lab.studies.finding import Finding, answering, estimate, extent, say

SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("rule", "value", "written"),
    [
        (":.1f", -0.25, "−0.2"),
        ("", 12_000, "12,000"),
        ("", "gpt-2", "gpt-2"),
        (":.2f", None, "–"),
        (":.2f", float("nan"), "–"),
        (":node", 1, "1 node"),
        (":held-out vote", 1_200, "1,200 held-out votes"),
        (":percent", 0.9999, f"99.9{SPACE}%"),
        (":signed percent", -0.25, f"−25{SPACE}%"),
        (":points", 0.0001, "0"),
        (":points", np.float64(0.125), "+12.5"),
        (":p", 0.04, "= 0.04"),
        (":p", 1e-9, "< 0.0001"),
        (":.2f", [1.0, 2.5], "1.00, 2.50"),
        (":.1f", estimate(2.0, 1.0, 3.0), "2.0 (1.0 to 3.0)"),
        (":.1f", estimate(2.0, None, 3.0), "2.0 (too few for an interval)"),
        (":.1f", estimate(None, None, None), "unknown"),
        (":.1f", extent([1.0, 3.0, float("nan")]), "1.0 to 3.0"),
        (":.1f", extent([2.0, 2.0]), "2.0"),
        (":.1f", extent([]), "undefined"),
    ],
)
def test_values_are_written_by_their_rules(rule: str, value: Any, written: str) -> None:
    assert str(say(f"It is {{it{rule}}}.", it=value)) == f"It is {written}."


def test_a_translation_has_the_same_numbers_in_its_own_words() -> None:
    found = say(
        "{nodes:node} took {key:.1f} s ({parts}).", nodes=2, key=1.25, unit="s", low=1, high=2, parts=[say("a"), "b"]
    )
    words = {
        "{nodes:node} took {key:.1f} s ({parts}).": "{nodes:,} 個節點費時 {key:.1f} s（{parts}）。",
        "a": "甲",
        ", ": "、",
        "{key} {unit} ({low}\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}{high})": "{key} {unit}（{low} 至 {high}）",
    }
    assert found.text(lambda text: words.get(text, text)) == "2 個節點費時 1.2 s（甲、b）。"
    assert found.figure(lambda text: words.get(text, text)) == "1.2 s（1.0 至 2.0）"
    assert found.figure() == "1.2 s (1.0\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}2.0)"


def test_a_key_figure_without_an_interval_has_none_and_a_sentence_without_one_no_figure() -> None:
    assert say("{key:.1f} s", key=1.0, low=None, high=2.0, unit="s").figure() == "1.0 s"
    assert say("{other:.1f} s", other=1.0).figure() == ""
    beside = say("It is fast.", key=1.25, low=1, high=2, unit="s", rule=".2f")
    assert (str(beside), beside.figure()) == ("It is fast.", "1.25 s (1.00\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}2.00)")
    assert say("{key:.1f} s", key=None, low=None, high=None, unit="s").figure() == ""


def test_a_finding_keeps_the_values_that_it_names_and_lacks_none() -> None:
    assert say("{a}", a=1, b=2).values == {"a": 1}
    with pytest.raises(AssertionError, match="has no"):
        say("{a}", b=2)


def test_what_a_notebook_recorded_is_read_back_and_so_are_the_sentences_of_older_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(RUN_DIR, str(tmp_path))
    parts = [say("{share:percent} of {name}", share=np.float64(0.5), name="x"), "y"]
    found = answering(
        "speed", [say("Most: {parts}, {n:node}.", parts=parts, n=np.int64(3)), say("That is {all}.", all="all")]
    )
    record_findings([*found, "A plain {sentence}."])
    assert capsys.readouterr().out.splitlines()[0] == f"Most: 50{SPACE}% of x, y, 3 nodes."
    read = read_records(tmp_path).findings
    assert read == (*found, Finding("A plain {sentence}."))
    assert str(read[2]) == "A plain {sentence}."
    (tmp_path / "results" / "findings.json").write_text('{"sentences": ["It was {so}.", "Next."]}')
    assert list(map(str, read_records(tmp_path).findings)) == ["It was {so}.", "Next."]
