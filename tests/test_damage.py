"""Files that are cut, emptied or changed by a bit: each reader copes, or says so in one line, and writes nothing."""

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from examples import example
from models import tiny_model
from test_confidence import calibrated
from test_gguf import write_gguf
from test_ledger_chain import filled

from qubic_lab.api.access import ApiToken, hash_token, read_tokens, write_tokens
from qubic_lab.bench.engine import EngineResult
from qubic_lab.chaos.run import ChaosResult
from qubic_lab.chaos.simulated import SimulationResult
from qubic_lab.cli.generate import _prompts
from qubic_lab.cluster.background import STATE, STATE_JSON, read_state
from qubic_lab.cluster.supervisor import ClusterState
from qubic_lab.consensus.confidence import load_calibration, save_calibration
from qubic_lab.database import open_database
from qubic_lab.errors import QubicLabError
from qubic_lab.evals.loaders import load_user_questions
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.folders import MANIFEST, read_manifest
from qubic_lab.model.gguf import convert_gguf
from qubic_lab.model.random_model import read_shape
from qubic_lab.model.safetensors_file import INDEX, WEIGHTS
from qubic_lab.model.split import rank_folder, split_checkpoint, verify
from qubic_lab.oracle.backtest.ledger import verify as verify_ledger
from qubic_lab.oracle.config import read_config
from qubic_lab.oracle.ingest.bar_files import BarOptions, read_bars
from qubic_lab.oracle.ingest.text_files import TextOptions, read_texts
from qubic_lab.oracle.risk.rules import read_rules
from qubic_lab.oracle.sentiment.labelled import Columns, read_examples, read_labelled
from qubic_lab.oracle.sentiment.models import read_head
from qubic_lab.pipeline.text import Tokenizer
from qubic_lab.runs import store, week_index
from qubic_lab.runs.experiment import load
from qubic_lab.runs.parameters import read_source
from qubic_lab.runs.week_report import read_week
from qubic_lab.trace import read_trace
from qubic_lab.wire.certificates import make_certificates
from qubic_lab.wire.channel import TlsFiles

ROOT = Path(__file__).resolve().parents[1]
NOW_US = 1_800_000_000_000_000
FLIPS = 24
BARS = "time,open,high,low,close,volume\n" + "".join(
    f"{1_700_000_000 + 3_600 * hour},{100 + hour},{102 + hour},{99 + hour},{101 + hour},5\n" for hour in range(12)
)
TEXTS = "".join(
    json.dumps({"published": f"2026-11-{day:02}T12:00:00Z", "title": f"Bitcoin on day {day}"}) + "\n"
    for day in (1, 2, 3)
)
QUESTIONS = 'question,answer\n"What is 5 + 7?",12\n"What is 5 + 8?",13\n'
LABELLED = "text,label\nBitcoin rises,positive\nBitcoin falls,negative\n"
TRACE = (
    '{"kind": "start", "ranks": 1}\n{"kind": "submit", "requests": [1], "start_ns": 1, "end_ns": 1}\n'
    '{"kind": "compute", "phase": "decode", "requests": [1], "sequence": 1, "lane": 0, "tokens": 1, "start_ns": 2, '
    '"end_ns": 5, "trace_ns": 1}\n'
)
CONFIG = """
coins: [btc, qubic-network]
sources:
  coingecko: {rate: 50, window_s: 1, monthly_quota: null}
feeds:
  - {name: forum, url: "https://forum.example/atom", kind: social}
"""


@dataclass(frozen=True)
class FileKind:
    """A kind of file: `make` writes one into a folder, `read` reads it; so many of its bits are tried."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    flips: int = FLIPS


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    """Return a function that writes a file."""

    def make(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return make


def copied(name: str) -> Callable[[Path], Path]:
    """Return a function that copies a file of the project."""
    return lambda folder: Path(shutil.copy(ROOT / name, folder))


def experiment(folder: Path) -> Path:
    for name in ("experiments/concurrency.yaml", "notebooks/concurrency.ipynb"):
        (folder / name).parent.mkdir()
        shutil.copy(ROOT / name, folder / name)
    return folder / "experiments" / "concurrency.yaml"


def zipped(folder: Path) -> Path:
    file = folder / "bars.csv.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bars.csv", BARS)
    return file


def parquet(folder: Path) -> Path:
    file = folder / "bars.parquet"
    times = pd.date_range("2026-01-01", periods=12, freq="h", tz="UTC")
    pd.DataFrame({"time": times} | {name: range(1, 13) for name in ("open", "high", "low", "close")}).to_parquet(file)
    return file


def model(file: str, sharded: bool = False) -> Callable[[Path], Path]:
    return lambda folder: tiny_model(folder / "model", num_hidden_layers=1, sharded=sharded) / file


def split(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        split_checkpoint(tiny_model(folder / "whole", num_hidden_layers=2), folder / "split", (1, 1), "B")
        return rank_folder(folder / "split", 0) / file

    return make


def check_split(file: Path) -> None:
    read_manifest(file.parent)
    if problems := verify(file.parents[1]):
        raise QubicLabError(problems[0])


def calibration(folder: Path) -> Path:
    save_calibration(calibrated(), folder / "calibration.json")
    return folder / "calibration.json"


def tokens(folder: Path) -> Path:
    write_tokens(folder / "tokens.yaml", [ApiToken("notebook", hash_token("a"))])
    return folder / "tokens.yaml"


def certificate(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        [made] = make_certificates(folder, [["localhost"]], datetime.now(UTC))
        return folder / f"{made.stem if ending != 'authority.pem' else ''}{ending}"

    return make


def ledger(folder: Path) -> Path:
    engine = open_database(f"sqlite:///{folder / 'ledger.db'}")
    filled(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return folder / "ledger.db"


def check_ledger(file: Path) -> None:
    for journal in file.parent.glob("ledger.db-*"):  # it would restore the file
        journal.unlink()
    engine = open_database(f"sqlite:///{file}", make=False)
    try:
        verify_ledger(engine)
    finally:
        engine.dispose()


def run_manifest(folder: Path) -> Path:
    store.write_manifest(folder, example(store.Manifest))
    return folder / store.MANIFEST


def week(folder: Path) -> Path:
    week_index.add_entry("2026-W48", example(week_index.WeekEntry))
    return store.runs_folder() / "weeks" / "2026-W48.json"


def state(folder: Path) -> Path:
    file = folder / STATE
    file.write_bytes(STATE_JSON.dump_json(example(ClusterState, phase="up")))
    return file


BAR_OPTIONS = BarOptions(coin="bitcoin", stamp="open", zone="UTC")
KINDS = {
    "settings": FileKind(written("oracle.yaml", CONFIG), read_config),
    "rules": FileKind(copied("data/risk/rules.yaml"), read_rules),
    "tokens": FileKind(tokens, read_tokens),
    "experiment": FileKind(experiment, load),
    "notebook": FileKind(copied("notebooks/concurrency.ipynb"), read_source),
    "bars": FileKind(written("bars.csv", BARS), lambda file: read_bars(file, BAR_OPTIONS, NOW_US)),
    "bars in gzip": FileKind(
        written("bars.csv.gz", gzip.compress(BARS.encode())), lambda file: read_bars(file, BAR_OPTIONS, NOW_US)
    ),
    "bars in zip": FileKind(zipped, lambda file: read_bars(file, BAR_OPTIONS, NOW_US), 100),
    "bars in Parquet": FileKind(parquet, lambda file: read_bars(file, BAR_OPTIONS, NOW_US), 100),
    "texts": FileKind(written("texts.jsonl", TEXTS), lambda file: read_texts(file, TextOptions(), NOW_US)),
    "labels": FileKind(written("labels.csv", LABELLED), lambda file: read_labelled(file, Columns())),
    "headlines": FileKind(copied("data/sentiment/headlines.jsonl"), read_examples),
    "sentiment head": FileKind(copied("data/sentiment/head.json"), lambda file: read_head.__wrapped__(file)),
    "questions": FileKind(written("questions.csv", QUESTIONS), load_user_questions),
    "prompts": FileKind(written("prompts.txt", "What is it?\nAnd why?\n"), lambda file: _prompts(None, file)),
    "calibration": FileKind(calibration, load_calibration),
    "engine result": FileKind(copied("data/engine/smollm2.json"), EngineResult.from_json),
    "chaos result": FileKind(copied("data/chaos/matrix.json"), ChaosResult.from_json),
    "simulation result": FileKind(copied("data/chaos/simulation.json"), SimulationResult.from_json),
    "week": FileKind(copied("reports/sample/week.json"), read_week, 8),
    "week's index": FileKind(week, lambda file: week_index.read_index(file.stem)),
    "run's manifest": FileKind(run_manifest, lambda file: store.read_manifest(file.parent)),
    "cluster's state": FileKind(state, lambda file: read_state(file.parent)),
    "trace": FileKind(written("rank-0.jsonl", TRACE), lambda file: read_trace(file.parent), 60),
    "certificate": FileKind(certificate(".pem"), lambda file: read_tls(file.parent), 60),
    "key": FileKind(certificate(".key"), lambda file: read_tls(file.parent)),
    "authority": FileKind(certificate("authority.pem"), lambda file: read_tls(file.parent), 60),
    "ledger": FileKind(ledger, check_ledger),
    "shape of a model": FileKind(model("config.json"), lambda file: read_shape(str(file))),
    "model's config": FileKind(model("config.json"), lambda file: Checkpoint.open(file.parent), 60),
    "weights": FileKind(model(WEIGHTS), lambda file: Checkpoint.open(file.parent)),
    "weights' index": FileKind(model(INDEX, sharded=True), lambda file: Checkpoint.open(file.parent)),
    "tokenizer": FileKind(model("tokenizer.json"), lambda file: Tokenizer(file.parent)),
    "split's manifest": FileKind(split(MANIFEST), check_split),
    "split's weights": FileKind(split(WEIGHTS), check_split, 4),
    "GGUF": FileKind(
        lambda folder: write_gguf(folder / "tiny.gguf", tiny_model(folder / "model", num_hidden_layers=1)),
        convert_gguf,
        4,
    ),
}


def read_tls(folder: Path) -> None:
    TlsFiles(folder / "localhost.pem", folder / "localhost.key", folder / "authority.pem").read()


def damaged(content: bytes, flips: int) -> Iterator[tuple[str, bytes]]:
    """Yield what became of a file: nothing, a part of it, other bytes behind it, or one bit that is different."""
    yield "emptied", b""
    for part in (len(content) // 2, len(content) - 1, min(10, len(content) // 4)):
        yield f"cut to {part} bytes", content[:part]
    yield "overwritten", bytes(range(256)) * (len(content) // 256 + 1)
    for number in range(flips):
        place = number * (len(content) - 1) // max(1, flips - 1)
        flipped = bytes([content[place] ^ (1 << number % 8)])
        yield f"flipped at byte {place}", content[:place] + flipped + content[place + 1 :]


def others(folder: Path, file: Path) -> dict[Path, int]:
    """Return the sizes of all other files, apart from locks and what SQLite writes beside a database."""
    return {
        each: each.stat().st_size
        for each in folder.rglob("*")
        if each.is_file() and each != file and each.suffix != ".lock" and not each.name.startswith(f"{file.name}-")
    }


@pytest.mark.usefixtures("lab_root")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_told_in_one_line(kind: str, tmp_path: Path, set_settings: Callable[..., None]) -> None:
    set_settings(cache=tmp_path / "cache")
    folder = tmp_path / "files"
    folder.mkdir()
    file = KINDS[kind].make(folder)
    whole = file.read_bytes()
    KINDS[kind].read(file)
    before = others(folder, file)
    refused = 0
    for damage, content in damaged(whole, KINDS[kind].flips):
        file.write_bytes(content)
        try:
            KINDS[kind].read(file)
        except QubicLabError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) > 20, f"{damage}: {error}"
        except Exception as error:
            pytest.fail(f"{kind}, {damage}: {error!r}")
        assert others(folder, file) == before, f"{kind}, {damage}: something was written"
    assert refused > 1
