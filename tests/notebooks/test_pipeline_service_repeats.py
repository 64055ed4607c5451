"""The notebook of the pipeline as a service, again and again: it leaves no process, socket, file or shared memory."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import papermill
import psutil
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "pipeline_service.ipynb"
TIMES = 10
GONE_WITHIN_S = 60.0
MARK = "NOTEBOOK_TEST_MARK"
CLIENT = "import sys; from qubic_lab.pipeline import Pipeline; p = Pipeline.launch(model=sys.argv[1], ranks=2); input()"

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Left:
    """What there is that a run might leave; processes are found by a mark that they inherit with their environment."""

    processes: frozenset[str]
    listening: frozenset[str]
    own_sockets: int
    files: frozenset[str]
    shared_memory: frozenset[str]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Left]:
    """Give notebooks a mark and folders of their own, and return what looks at what is there."""
    mark = uuid4().hex
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(temporary))  # where kernels are told their ports

    def look() -> Left:
        marked = [process for process in psutil.process_iter() if carries(process, mark)]
        sockets = [line.split()[7:] for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        return Left(
            processes=frozenset(f"{process.pid} {' '.join(process.cmdline())}" for process in marked),
            listening=frozenset(
                str(connection.laddr)
                for process in [*marked, psutil.Process()]
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            )
            | {path[0] for path in sockets if path and path[0].startswith(str(temporary))},
            own_sockets=len(psutil.Process().net_connections("all")),
            files=frozenset(str(path.relative_to(temporary)) for path in temporary.rglob("*")),
            shared_memory=frozenset(
                path.name
                for path in Path("/dev/shm").iterdir()
                if not path.name.startswith("PostgreSQL.")  # of servers of other tests or users: notebooks start none
            ),
        )

    return look


def carries(process: psutil.Process, mark: str) -> bool:
    """True for a process that was started with the mark; this one was not, it only sets it for others."""
    try:
        return process.environ().get(MARK) == mark and process.pid != os.getpid()
    except psutil.Error:
        return False


def left_behind(before: Left, after: Left) -> dict[str, object]:
    """What is there now and was not before."""
    names = ("processes", "listening", "files", "shared_memory")
    new: dict[str, object] = {name: sorted(getattr(after, name) - getattr(before, name)) for name in names}
    return {**new, "own_sockets": max(0, after.own_sockets - before.own_sockets)}


def assert_nothing_left(look: Callable[[], Left], before: Left) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(left_behind(before, look()).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    after = look()
    counts = {name: value if isinstance(value, int) else len(value) for name, value in asdict(after).items()}
    print(counts)
    assert not any(left_behind(before, after).values()), left_behind(before, after)


def run_once(tiny: Path, out: Path) -> None:
    parameters = {"model": str(tiny), "max_new_tokens": 8}
    papermill.execute_notebook(NOTEBOOK, out, parameters, cwd=ROOT, progress_bar=False)


def test_ten_runs_by_papermill_leave_nothing(tiny: Path, tmp_path: Path, look: Callable[[], Left]) -> None:
    run_once(tiny, tmp_path / "out.ipynb")  # what papermill opens once for this process is no leak
    before = look()
    print(asdict(before))
    for _ in range(TIMES):
        run_once(tiny, tmp_path / "out.ipynb")
    assert_nothing_left(look, before)


def test_what_a_run_starts_is_seen(tiny: Path, tmp_path: Path, look: Callable[[], Left]) -> None:
    """The other tests mean something: with a pipeline up, its processes, sockets and folder are found."""
    before = look()
    with subprocess.Popen([sys.executable, "-c", CLIENT, str(tiny)], stdin=subprocess.PIPE) as client:
        deadline = time.monotonic() + 60
        while len(look().processes) < 4 or not any("engine.sock" in name for name in look().listening):
            assert time.monotonic() < deadline, look()
            time.sleep(0.2)
        found = left_behind(before, look())
        assert found["files"]
        client.kill()
    assert_nothing_left(look, before)


def test_nbval_passes_and_leaves_nothing(look: Callable[[], Left]) -> None:
    before = look()
    command = [sys.executable, "-m", "pytest", "--nbval-lax", str(NOTEBOOK), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "--timeout=600"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout
    assert_nothing_left(look, before)
