"""Planted defects must be found; all of them, with their table: `python tests/mutants.py`."""

import pytest
from mutants import MUTANTS, Mutant, search

QUICK = ("fencing token not compared", "end without its check", "wall clock in place of monotonic", "try counted twice")
MOST_CPU_S = 600.0


def test_mutants_have_names_of_their_own_and_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name in QUICK], ids=lambda mutant: mutant.name)
def test_a_planted_defect_is_found(mutant: Mutant) -> None:
    assert search(mutant).what


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_all_planted_defects_are_found() -> None:
    found = {mutant.name: search(mutant) for mutant in MUTANTS}
    assert [name for name, each in found.items() if each.seed is None] == []
    assert sum(each.cpu_s for each in found.values()) < MOST_CPU_S
