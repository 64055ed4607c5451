"""What holds of every study's findings."""

from collections.abc import Sequence

from qubic_lab.studies.finding import HEADLINE_WORDS, Finding


def told(found: Sequence[Finding], question: str) -> list[str]:
    """Return findings as sentences: the first one is a headline, and all answer the study's question."""
    said = list(map(str, found))
    assert len(said[0].split()) <= HEADLINE_WORDS, said[0]
    assert {each.question for each in found} == {question}
    assert all(each.endswith(".") for each in said), said
    return said
