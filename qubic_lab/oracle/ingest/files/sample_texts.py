"""Invented texts for trying things out: committed with the project, from no real publisher, and joined with no prices.

They are dated outside every range of packaged prices, and their source is `qubic_lab.oracle.model.source_names.SAMPLE`.
"""

from pathlib import Path

from qubic_lab.oracle.ingest.files.text_files import TextOptions, read_texts
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.source_names import SAMPLE
from qubic_lab.oracle.model.timestamps import now_us


def sample_texts_file() -> Path:
    """Return the committed file, from the checkout or the installed package."""
    file = "sample_texts.jsonl"
    checkout = Path(__file__).parents[4] / "data" / "oracle" / file
    return checkout if checkout.exists() else Path(__file__).parent / file


def read_sample_texts() -> tuple[Text, ...]:
    """Return all sample texts, by the time at which they are said to have appeared."""
    return read_texts(sample_texts_file(), TextOptions(source=SAMPLE), now_us()).texts
