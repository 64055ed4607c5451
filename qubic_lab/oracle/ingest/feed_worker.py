"""The worker process of `feeds`: reads feeds as lines of JSON and writes their entries."""

from dataclasses import asdict
from typing import Any

from qubic_lab.killable import answer_lines
from qubic_lab.oracle.ingest.collector_config import Feed
from qubic_lab.oracle.ingest.feeds import parse_feed


def main() -> None:
    """Answer until the input ends."""
    import feedparser  # noqa: F401  # now, not at the first question

    answer_lines(_entries)


def _entries(question: dict[str, Any]) -> list[dict[str, Any]] | str:
    content = question["content"].encode("latin-1")
    texts = parse_feed(content, Feed(**question["feed"]), question["headers"], question["most"])
    return "not a feed" if texts is None else [asdict(text) for text in texts]


if __name__ == "__main__":
    main()
