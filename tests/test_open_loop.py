"""Arrivals that wait for nobody, and a long prompt beside short requests."""

from pathlib import Path
from typing import Any

import pytest
from commands import Run

from qubic_lab.bench.open_loop import OpenLoad, kept_up, poisson, recorded
from qubic_lab.bench.result import Rate
from qubic_lab.errors import InputError


def test_arrivals_have_their_rate_and_are_the_same_again() -> None:
    found = poisson(5.0, 2000, seed=3)
    assert found == poisson(5.0, 2000, seed=3) != poisson(5.0, 2000, seed=4)
    assert found.due_s[0] == 0 and list(found.due_s) == sorted(found.due_s)
    assert found.due_s[-1] == pytest.approx(400, rel=0.1)  # four standard errors


def test_recorded_arrivals_begin_at_once(tmp_path: Path) -> None:
    file = tmp_path / "burst.txt"
    file.write_text("7\n7.5\n11\n")
    found = recorded(file)
    assert (found.name, found.per_s, found.due_s) == ("burst", 0.5, (0.0, 0.5, 4.0))
    for text, reason in (("1", "has 1 times"), ("2\n1", "in order"), ("soon", "no arrivals")):
        file.write_text(text)
        with pytest.raises(InputError, match=reason):
            recorded(file)


def test_a_system_keeps_up_until_a_rate_at_which_it_does_not() -> None:
    def load(per_s: float, good: int) -> OpenLoad:
        return OpenLoad("one", "Poisson", per_s, 100, 0, 1, 1, None, None, 1, Rate.of(good, 100), 1.0, 0.1)

    assert kept_up([load(4.0, 99), load(1.0, 100), load(2.0, 96)]) == 4.0
    assert kept_up([load(4.0, 99), load(1.0, 100), load(2.0, 90)]) == 1.0
    assert kept_up([load(1.0, 10)]) is None


@pytest.mark.dist
def test_latencies_count_from_when_requests_were_due(tiny: Path, shared_ranks: None, here: Run, tmp_path: Path) -> None:
    (tmp_path / "burst.txt").write_text("0\n" * 5 + "0.1\n")
    ask = f"bench concurrency --model {tiny} --ranks 2 --slots 1 --threads 1 --dtype fp32 --rates 50 --requests 6"
    found = here(
        f"{ask} --arrivals {tmp_path / 'burst.txt'} --limit 60s --repeat 1 --prompt-tokens 9 --new-tokens 4 --json"
    )
    loads: list[dict[str, Any]] = found.json["loads"]
    systems = ["pipeline", "one process", "replicas"]
    assert [(each["system"], each["arrivals"]) for each in loads] == [
        *((each, "Poisson") for each in systems),
        *((each, "burst") for each in systems),
    ]
    assert all(each["requests"] == 6 and each["refused"] == 0 and each["within"]["value"] == 1 for each in loads)
    assert found.json["answers_unchanged"] and set(found.json["keeps_up"]) == set(systems)


@pytest.mark.dist
def test_short_requests_are_measured_with_and_without_a_long_prompt(tiny: Path, shared_ranks: None, here: Run) -> None:
    ask = f"bench concurrency --model {tiny} --ranks 1 --slots 4 --threads 1 --dtype fp32 --long-prompt 300"
    found = here(f"{ask} --requests 3 --prompt-tokens 5 --new-tokens 4 --repeat 6 --json").json
    assert (found["short"], found["pairs"], found["long_prompt_tokens"]) == (3, 6, 300)
    assert found["answers_unchanged"] and found["low"] <= found["times"] <= found["high"]
    assert found["within_limit"] == (found["times"] <= 2.0)
