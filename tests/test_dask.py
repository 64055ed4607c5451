"""A batch on a Dask cluster, whose workers share nothing with it but a store."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked_python import PYTHON
from studies import Silent, everything_but_times, write_notebook, write_project, write_study

from qubic_lab.errors import InputError
from qubic_lab.runs import fingerprint, on_dask
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.on_dask import check_address, run_there
from qubic_lab.runs.one_run import RunOutcome, plan_runs
from qubic_lab.runs.shared_store import SharedStore

# Keys do not change while somebody edits the package.
WORKER = """from qubic_lab.runs import fingerprint
fingerprint.hash_package = lambda: "package"
from distributed.cli.dask_worker import main
main()
"""


def start_worker(address: str, folder: Path) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    environment = os.environ | {name: str(folder) for name in ("QUBIC_LAB_RUNS", "QUBIC_LAB_CACHE")}
    options = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    log = (folder / "log").open("wb")
    return subprocess.Popen([PYTHON, "-c", WORKER, address, *options], cwd=folder, env=environment, stderr=log)


@pytest.fixture
def workers(tmp_path: Path, lab_root: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """The address of a scheduler, and its two workers."""
    distributed = pytest.importorskip("distributed")  # a second, which other tests need not wait for
    with distributed.LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        processes = [start_worker(address, tmp_path / f"worker{number}") for number in range(2)]
        try:
            with distributed.Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            yield address, processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2, pytest.param(40, marks=pytest.mark.timeout(3600))])
def test_a_cluster_that_loses_a_worker_ends_as_an_undisturbed_pool(
    runs: int, workers: Any, lab_root: Path, set_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    address, processes = workers

    class Killing(Silent):
        def cell(self, run: Any, number: int, of: int) -> None:
            super().cell(run, number, of)
            processes[0].kill()

    week = load(write_project(lab_root, runs))
    set_settings(runs=lab_root / "pool")
    run_batch(week, full=False, watcher=Silent(), jobs=2)
    set_settings(runs=lab_root / "cluster")
    store, watcher = SharedStore(str(lab_root / "store")), Killing()
    outcomes = run_batch(week, full=False, watcher=watcher, store=store, dask=address)
    assert [outcome.error for outcome in outcomes] == [None] * runs
    assert watcher.cells, "the workers tell which cell has begun"
    assert processes[0].poll() is not None and processes[1].poll() is None
    pool = everything_but_times(lab_root / "pool", monkeypatch)
    assert everything_but_times(lab_root / "cluster", monkeypatch) == pool

    # Another machine has the runs from the store, and the cluster nothing to do.
    set_settings(runs=lab_root / "again")
    again = run_batch(week, full=False, watcher=Silent(), store=store, dask=address)
    assert [outcome.reused for outcome in again] == [True] * runs


class FakeWorker(SimpleNamespace):
    """What a run needs to know of the worker that makes it."""

    def log_event(self, topic: str, event: dict[str, Any]) -> None:
        self.events.append(event)


def test_a_worker_makes_a_run_from_the_store_alone_and_no_other_run(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    distributed = pytest.importorskip("distributed")
    worker = FakeWorker(local_directory=str(lab_root), address="tcp://worker", events=[])
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    (lab_root / "data").mkdir()
    (lab_root / "data" / "bars.csv").write_text("7")
    code = "from pathlib import Path\nassert Path('data/bars.csv').read_text() == '7', Path.cwd()"
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", code, parameters='file: str = ""')
    file = write_study(lab_root, quick={"parameters": {"file": "data/bars.csv"}}, full={})
    (run,) = plan_runs(load(file), full=False, iso_week="")
    store = SharedStore(f"memory://{lab_root}")
    inputs = on_dask.inputs_of(run, store)
    assert sorted(inputs) == ["data/bars.csv", "notebooks/tiny.ipynb"]

    with pytest.raises(InputError, match="worker would make another run: its data/bars"):
        run_there(run, {name: digest for name, digest in inputs.items() if "data" not in name}, store.url, "task")
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="install there the same qubic-lab, python, torch"),
    ):
        patch.setattr(fingerprint, "hash_package", lambda: "another package")
        run_there(run, inputs, store.url, "task")
    (lab_root / "data" / "bars.csv").unlink()
    run_there(run, inputs, store.url, "task")
    assert store.holds("study", run.key)
    assert [event["cell"] for event in worker.events] == [1, 2, 3]
    run_there(run, {}, store.url, "task")  # it is there already
    assert len(worker.events) == 3


def test_a_worker_that_cannot_make_a_run_is_a_failure_of_the_run(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    (run,) = plan_runs(load(write_study(lab_root)), full=False, iso_week="")
    outcome: RunOutcome = on_dask.collect(run, SharedStore(f"memory://{lab_root}"), InputError("no room"))
    assert (outcome.error, outcome.folder.name) == ("tiny.ipynb: no room", f"failed-{run.key}")
    with pytest.raises(InputError, match="is not in memory://"):
        on_dask.collect(run, SharedStore(f"memory://{lab_root}"), None)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://10.0.0.7:8786", "is not of TLS: give tls://HOST:PORT, or on this host 127.0.0.1:PORT"),
        ("head:8786", "is not of TLS"),
        ("ucx://127.0.0.1:8786", "is not of TLS"),
        ("127.0.0.1", "address '127.0.0.1' is not understood"),
        ("tls://head:8786", "tls://head:8786 requires mutual TLS: set QUBIC_LAB_TLS_CERTIFICATE"),
    ],
)
def test_a_cluster_beyond_this_host_takes_tls(address: str, message: str, no_tls: None):
    with pytest.raises(InputError, match=message):
        check_address(address)


def test_here_it_takes_none_and_a_batch_takes_a_store(lab_root: Path, no_tls: None):
    assert check_address("127.0.0.1:8786") == check_address("tcp://localhost:8786") == {}
    week = load(write_project(lab_root, runs=1))
    with pytest.raises(InputError, match="needs a store that its machines reach"):
        run_batch(week, full=False, watcher=Silent(), dask="127.0.0.1:8786")
