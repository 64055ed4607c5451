"""What further samples cost: three ways of asking in turn, by hand and on real ranks. No time is judged here."""

import json
from pathlib import Path

import pytest

from qubic_lab.cli.main import run

ASK = ["bench", "samples", "--ranks", "2", "--prompt-tokens", "9", "--new-tokens", "3", "--dtype", "fp32"]


@pytest.mark.dist
def test_samples_are_compared_with_one_sample_of_the_same_repeat(
    tiny: Path, shared_ranks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*ASK, "--model", str(tiny), "--samples", "4", "--repeat", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["samples"], result["lanes"], result["slots"]) == (4, 2, 2), "as few slots as the samples need"
    one, several = result["one_s"]["all"], result["samples_s"]["all"]
    assert len(one) == 3 and min(one) > 0
    assert result["times"]["all"] == [pytest.approx(s / o) for s, o in zip(several, one, strict=True)]
    assert result["times"]["low"] <= result["times"]["median"] <= result["times"]["high"]
    assert result["within_limit"] == (result["times"]["median"] <= result["limit"] == 2.0)
    assert (result["prompt_tokens"], result["new_tokens"], result["dtype"]) == (9, 3, "fp32")


@pytest.mark.dist
def test_the_command_says_whether_the_limit_is_kept(
    tiny: Path, shared_ranks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*ASK, "--model", str(tiny), "--repeat", "1"]) == 0
    table, said = capsys.readouterr().out.split("\n\n")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "one sample",
        "4 samples of one prompt",
        "4 requests",
    ]
    assert "times one. 1 repeats" in said and "2 lanes of 2" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--samples 1", "--samples is 1: it must be at least 2"),
        ("--repeat 0", "repeat is 0: it must be at least 1"),
        ("--prompt-tokens 0", "prompt tokens is 0: it must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "samples", *options.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.dist
def test_more_samples_than_slots_are_refused(
    tiny: Path, shared_ranks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*ASK, "--model", str(tiny), "--samples", "5", "--slots", "2"]) == 2
    assert "samples is 5: it must be at most 4" in capsys.readouterr().err
