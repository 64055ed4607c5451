"""Pages of the KV cache: what a host has memory for, and which pages are forgotten first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qubic_lab import provenance
from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.layout import PAGE
from qubic_lab.pipeline.pages import KEPT_BYTES, Page, Pages, affordable_pages

MIB = 2**20


def ranks(*each: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Ranks by host, MiB of a page, and MiB that are free on the host."""
    return [{"host": host, "page_bytes": page * MIB, "free_bytes": free * MIB} for host, page, free in each]


def test_the_tightest_host_decides_and_ranks_of_one_host_share_its_memory() -> None:
    placed = ranks(("a", 1, 1000), ("a", 3, 900), ("b", 1, 300))
    assert affordable_pages(placed, 0, needed_tokens=10**9) == (112, KEPT_BYTES // (4 * MIB)), "half of a's 900 by 4"
    assert affordable_pages(placed, 0, needed_tokens=100)[0] == 2
    assert affordable_pages(placed, 200 * PAGE - 5, needed_tokens=100)[0] == 200
    with pytest.raises(
        InputError, match=r"asks for 1000 pages of 64 tokens, which take 3\.9 GiB on a, .* at most 12928"
    ):
        affordable_pages(placed, 1000 * PAGE, needed_tokens=100)
    with pytest.raises(ModelError, match="b has 1 MiB of free memory"):
        affordable_pages(ranks(("b", 3, 1)), 0, needed_tokens=100)


def known(pages: Pages, *texts: Sequence[int]) -> list[list[Page]]:
    """Pages of texts whose pages are all known; nobody uses them any more."""
    each = []
    for text in texts:
        found = pages.use(pages.find(text))
        found += pages.take(len(text) // PAGE - len(found))
        for place, page in enumerate(found):
            before = found[place - 1] if place else None
            assert pages.know(page, before, tuple(text[PAGE * place : PAGE * (place + 1)])) is page
        assert not pages.release(found)
        each.append(found)
    return each


def test_the_longest_unused_end_of_a_text_is_forgotten_first() -> None:
    pages = Pages(total=5, most_kept=99)
    beginning, one, two = [1] * PAGE, [2] * PAGE, [3] * PAGE
    (first, of_one), (again, _) = known(pages, beginning + one, beginning + two)
    assert first is again and pages.available == 5
    pages.use(pages.find(beginning + one))
    pages.release([first, of_one])
    pages.take(3)
    assert pages.find(beginning + two) == [first], "what was used last is still known"
    assert pages.find(beginning + one) == [first, of_one]
    pages.take(2)
    assert not pages.find(beginning) and not pages.available


def test_no_more_is_kept_for_nobody_than_allowed_while_new_pages_are_left() -> None:
    pages = Pages(total=99, most_kept=2)
    for text in range(9):
        known(pages, [text] * PAGE)
    assert len({page.number for text in range(9) for page in pages.find([text] * PAGE)}) <= 3


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "CGROUP", tmp_path)
    anywhere = provenance.free_memory_bytes()
    assert anywhere > 100 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert provenance.free_memory_bytes() > 100 * MIB
    (tmp_path / "memory.max").write_text(f"{90 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{50 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile {30 * MIB}\nfile_dirty 7\n")
    assert provenance.free_memory_bytes() == 70 * MIB
