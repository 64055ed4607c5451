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
