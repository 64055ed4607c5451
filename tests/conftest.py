"""Fixtures that many tests share; rank groups are started once for the whole run."""

import gc
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from commands import Ended, Run
from databases import emptied, open_with_empty_tables, postgres
from forked_python import fork_from_here
from hypothesis import HealthCheck
from hypothesis import settings as effort
from sqlalchemy import Engine

from qubic_lab.bench import peers
from qubic_lab.cli.main import run
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.database import open_database
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.config import resolve_config
from qubic_lab.runs import fingerprint
from qubic_lab.settings import settings

# Collections would look at all that is imported again and again, which is a third of the time of a start.
gc.disable()

# jsonschema would build its grammar, which takes a second; no test needs it.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# Time limits of examples would judge the machine.
effort.register_profile(
    "lab",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
effort.load_profile("lab")


OFTEN_IMPORTED = (
    "math_verify",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
"""What many processes of tests import once they work, which takes seconds of each."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import all tests once, in a process that workers are forked from; from each, tests fork what they start."""
    if hasattr(session.config, "workerinput"):
        fork_from_here()
    elif session.config.pluginmanager.hasplugin("dsession"):
        fork_from_here(import_tests)


def import_tests() -> None:
    """Import all tests, and OFTEN_IMPORTED."""
    folder = Path(__file__).parent
    sys.path[:0] = [str(folder / name) for name in ("dist", "notebooks")]  # as the collection will
    for name in (*OFTEN_IMPORTED, *(file.stem for file in sorted(folder.rglob("test_*.py")))):
        with suppress(Exception, pytest.skip.Exception):  # a collection says what is wrong
            import_module(name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker run all files of a folder that use the shared ranks, so that these are started once for them."""
    from xdist.scheduler import LoadFileScheduling

    folder, sharing = Path(__file__).parents[1], re.compile(r"\b(one_rank|(two|three|of|shared)_ranks)\b")

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return str(Path(file).parent) if sharing.search((folder / file).read_text()) else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use the shared ranks, so that these are started once, where nothing else runs."""
    for item in items:
        if not {"one_rank", "two_ranks", "three_ranks"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("dist")


def pytest_collection_finish() -> None:
    """Collect garbage again, and leave out what is imported: it stays until the end."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Keep the interpreter's end from looking through all that is left."""
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests (marked `anyio`) on asyncio only."""
    return "asyncio"


@pytest.fixture(autouse=True)
def no_figures_left() -> Iterator[None]:
    """Close the figures of a test that drew any."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture
def set_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets settings for a test, such as `set_settings(cache=folder)`; `None` unsets."""

    def set_(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"QUBIC_LAB_{name.upper()}", "" if value is None else str(value))
        settings.cache_clear()

    return set_


@pytest.fixture
def fake_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_settings: Callable[..., None]
) -> Callable[[str], peers.Peer]:
    """Install a fake llama.cpp that behaves as its mode says."""
    driver = tmp_path / "fake_peer.py"
    driver.symlink_to(Path(__file__).with_name("fake_peer.py"))
    python = tmp_path / "peers" / "llama.cpp" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(peers, "DRIVER", driver)
    monkeypatch.setattr(peers, "END_TIMEOUT_S", 1.0)
    set_settings(peers=tmp_path / "peers", cache=tmp_path / "cache")

    def install(mode: str) -> peers.Peer:
        (tmp_path / "mode").write_text(mode)
        return next(peer for peer in peers.PEERS if peer.name == "llamacpp")

    return install


@pytest.fixture
def no_tls(set_settings: Callable[..., None]) -> None:
    """Keep the TLS settings of the surrounding environment out."""
    set_settings(tls_certificate=None, tls_key=None, tls_authority=None)


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Let each test read the settings from its own environment."""
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(autouse=True)
def own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a ledger of its own: trials of others would count in its verdicts."""
    monkeypatch.setenv("QUBIC_LAB_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run_here(line: str) -> Ended:
        capfd.readouterr()
        status = run(shlex.split(line))
        return Ended(status, *capfd.readouterr())

    return run_here


@pytest.fixture
def oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_settings: Callable[..., None], here: Run) -> Run:
    """Run a command of the oracle in an empty folder, on a database of its own."""
    monkeypatch.chdir(tmp_path)
    set_settings(data=tmp_path / "data", cache=tmp_path / "cache")
    set_settings(database_url=None, coingecko_key=None, newsapi_key=None)
    return lambda command: here(f"oracle {command}")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A connection to a Redis server that the tests of a module share."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server, connect(server.url) as connection:
        yield connection


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes and coordinators of a test look and retry more often."""
    from clusters import hurry

    hurry(monkeypatch)


@pytest.fixture
def start_cluster(client: redis.Redis, tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Return `clusters.cluster` on the Redis server of the module, in the folder of the test."""
    from clusters import cluster

    return partial(cluster, client, tmp_path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama-family model with random weights and a byte tokenizer."""
    from models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def _launched(model: Path, ranks: int) -> Iterator[Pipeline]:
    with Pipeline.launch(model=str(model), ranks=ranks, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def one_rank(tiny: Path) -> Iterator[Pipeline]:
    """A pipeline of one rank; tests configure it as they need."""
    yield from _launched(tiny, 1)


@pytest.fixture(scope="session")
def two_ranks(tiny: Path) -> Iterator[Pipeline]:
    """A pipeline of two ranks over gloo; tests configure it as they need."""
    yield from _launched(tiny, 2)


@pytest.fixture(scope="session")
def three_ranks(tiny: Path) -> Iterator[Pipeline]:
    """A pipeline of three ranks over gloo; tests configure it as they need."""
    yield from _launched(tiny, 3)


@pytest.fixture
def of_ranks(one_rank: Pipeline, two_ranks: Pipeline) -> Callable[[PipelineConfig], Pipeline]:
    """Configure the shared pipeline of as many ranks as a config asks for, and return it."""

    def configured(config: PipelineConfig) -> Pipeline:
        pipeline = {1: one_rank, 2: two_ranks}[resolve_config(config).ranks]
        pipeline.configure(config)
        return pipeline

    return configured


@pytest.fixture
def shared_ranks(of_ranks: Callable[[PipelineConfig], Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands use the ranks that all tests share, instead of starting their own."""
    monkeypatch.setattr(Pipeline, "launch", lambda config: nullcontext(of_ranks(config)))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of our own; skips what needs it where it is not installed."""
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of a database: each test that uses one runs on both."""
    return str(request.param)


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'lab.db'}"
    return emptied(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def empty_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with empty tables: to copy it takes a fifth of the time of making the tables."""
    file = tmp_path_factory.mktemp("tables") / "lab.db"
    open_database(f"sqlite:///{file}").dispose()
    return file


@pytest.fixture
def engine(backend: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database with empty tables, of both kinds."""
    if backend == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    engine = open_with_empty_tables(request.getfixturevalue("postgres_url"))
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(tmp_path: Path, empty_tables: Path) -> Iterator[Engine]:
    """A SQLite database with empty tables, for what is the same on both kinds."""
    shutil.copyfile(empty_tables, tmp_path / "lab.db")
    engine = open_database(f"sqlite:///{tmp_path / 'lab.db'}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def quick_audits() -> Iterator[None]:
    """Let backtests check signals in this process, at 2 bars, once on the same; `test_lookahead.py` tests all."""
    import pandas as pd

    from qubic_lab.oracle.backtest import lookahead

    @contextmanager
    def run_here(function: Any, frame: pd.DataFrame) -> Iterator[Any]:
        """Run a signal in this process: to copy one of its size takes longer than all other runs."""
        ran = None
        with suppress(lookahead.UnusableRun):  # it runs again, where that is told
            ran = lookahead.timed(lambda: lookahead.run_signal(function, frame))
        yield SimpleNamespace(wait=lambda: ran)

    check, kept = lookahead.check_lookahead, dict[Any, Any]()

    def check_once(function: Any, frame: pd.DataFrame, **options: Any) -> Any:
        named = (function.func, *sorted(function.keywords.items())) if isinstance(function, partial) else function
        key = named, *frame.columns, pd.util.hash_pandas_object(frame).to_numpy().tobytes()
        if key not in kept:
            kept[key] = check(function, frame, **(options | {"cuts": 2, "extra_s": 0.0}))
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookahead, "check_lookahead", check_once)
        patch.setattr(lookahead, "FreshRun", run_here)
        yield


@pytest.fixture
def lab_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_settings: Callable[..., None]) -> Path:
    """A folder with runs and reports of its own; keys of runs do not change while somebody edits the package."""
    monkeypatch.delenv("QUBIC_LAB_RUN_DIR", raising=False)
    monkeypatch.setattr(fingerprint, "hash_package", lambda: "package")
    set_settings(runs=tmp_path / "runs", reports=tmp_path / "reports")
    return tmp_path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    shutil.unpack_archive(built, folder / "site", "zip")
    return folder / "site"
