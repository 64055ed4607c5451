"""Runs made by the workers of a Dask cluster that exists already. They share nothing with this machine but a store.

The notebook and the files that a run reads go there under their hashes. A worker makes a folder of them, plans the run
again and makes it only if its key is the same: then its package, versions, model and data are the same too.
"""

import tempfile
import textwrap
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.runs import fingerprint
from qubic_lab.runs.one_run import PlannedRun, RunOutcome, describe, make, named_inputs, plan_run, reuse
from qubic_lab.runs.parameters import read_source
from qubic_lab.runs.shared_store import SharedStore
from qubic_lab.runs.store import keep, read_manifest, unfinished_folder, utc_now
from qubic_lab.wire.channel import is_loopback, read_host, tls_from_settings

TOPIC = "qubic-lab"
"""Under which workers say which cell has begun."""
CONNECT_S = 20
_PLANNING = threading.Lock()
"""Planning may change the working folder for a moment, and a worker may have several threads."""


class DaskCluster:
    """A connection to the scheduler at an address, and a store that its workers reach too.

    Raises:
        InputError: the address is not on this host and not one of TLS, or nobody answers there.
    """

    def __init__(self, address: str, store: SharedStore) -> None:
        from distributed import Client

        options = check_address(address)
        try:
            self._client = Client(address, timeout=CONNECT_S, set_as_default=False, **options)
        except (OSError, ValueError) as error:
            raise InputError(f"no Dask scheduler answers at {address} ({error}): start it, or mend --dask") from error
        self._store = store
        self.places = max(1, sum(self._client.nthreads().values()))

    def __enter__(self) -> "DaskCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def run(
        self,
        runs: Sequence[PlannedRun],
        begin: Callable[[PlannedRun], None],
        cell: Callable[[PlannedRun, int, int], None],
    ) -> Iterator[RunOutcome]:
        """Make the runs that are not finished here or in the store; equal ones, of other clients too, are made once."""
        from distributed import as_completed

        waiting: dict[str, list[PlannedRun]] = defaultdict(list)
        for run in runs:
            if outcome := reuse(run, self._store):
                begin(run)
                yield outcome
            else:
                waiting[f"{TOPIC}-{run.study.name}-{run.key}"].append(run)

        def show(event: tuple[float, dict[str, Any]]) -> None:
            _, said = event
            for run in waiting.get(said["task"], ()):
                if said["cell"] == 1:
                    begin(run)
                cell(run, said["cell"], said["of"])

        self._client.subscribe_topic(TOPIC, show)
        tasks = [
            self._client.submit(
                run_there, each[0], inputs_of(each[0], self._store), self._store.url, task, key=task, pure=False
            )
            for task, each in waiting.items()
        ]
        with self._client.as_current():
            ended = as_completed(tasks)
        for task in ended:
            if task.status not in ("finished", "error"):
                raise QubicLabError("the Dask scheduler was lost: run the batch again; finished runs are in the store")
            for run in waiting[task.key]:
                yield collect(run, self._store, task.exception())


def inputs_of(run: PlannedRun, store: SharedStore) -> dict[str, str]:
    """Put what a run reads from its project into the store; return the hashes by the paths in the project."""
    root = run.study.root.resolve()
    files = {run.study.source.path, *(root / name for name in run.study.data)}
    for path in fingerprint.named_paths(named_inputs(run.study, run.parameters), root).values():
        files |= set(fingerprint.files_in(path)) if path.is_dir() else {path}
    # What lies elsewhere must lie there on the worker's machine too.
    inside = [file for file in map(Path.resolve, files) if file.is_relative_to(root)]
    return {file.relative_to(root).as_posix(): store.put_input(file) for file in inside}


def collect(run: PlannedRun, store: SharedStore, lost: BaseException | None) -> RunOutcome:
    """Keep the run that a worker has put into the store, or the error by which it could not.

    Raises:
        InputError: it is not in the store.
    """
    with unfinished_folder(run.study.name, run.key) as folder:
        if lost is not None:
            error = textwrap.shorten(f"{run.study.source.path.name}: {lost}", width=300)
            manifest = describe(run, folder, utc_now(), error)
        else:
            failed = not store.fetch(run.study.name, run.key, folder)
            if failed and not store.fetch(run.study.name, run.key, folder, failed=True):
                raise InputError(f"run {run.study.name}/{run.key} is not in {store.url}: run the batch again")
            manifest = read_manifest(folder)
        final = keep(folder, run.study.name, run.key, failed=manifest.error is not None)
    return RunOutcome(run, final, reused=False, seconds=manifest.seconds, error=manifest.error)


def check_address(address: str) -> dict[str, Any]:
    """Return how to connect to a Dask scheduler: with the certificates of the settings if it is one of TLS.

    Raises:
        InputError: it is beyond this host and not one of TLS, or it is malformed, or no certificates are set.
    """
    scheme, _, place = address.rpartition("://")
    host = read_host(place)
    if scheme == "tls":
        if (tls := tls_from_settings()) is None:
            raise InputError(
                f"{address} requires mutual TLS: set QUBIC_LAB_TLS_CERTIFICATE, QUBIC_LAB_TLS_KEY and "
                "QUBIC_LAB_TLS_AUTHORITY (`qubic-lab certs make` makes the files)"
            )
        from distributed import Security

        files = {"tls_ca_file": tls.authority, "tls_client_cert": tls.certificate, "tls_client_key": tls.key}
        named = {name: str(path) for name, path in files.items()}
        return {"security": Security(require_encryption=True, **named)}
    if scheme not in ("", "tcp") or not is_loopback(host):
        raise InputError(
            f"Dask address {address!r} is not of TLS: give tls://HOST:PORT, or on this host 127.0.0.1:PORT"
        )
    return {}


def run_there(run: PlannedRun, inputs: Mapping[str, str], url: str, task: str) -> None:
    """Make a run in a worker of Dask, from what lies in the store, and put it there, if nobody has yet.

    Raises:
        InputError: the run would be another one there.
    """
    from distributed import get_worker

    worker, store = get_worker(), SharedStore(url)
    if store.holds(run.study.name, run.key):
        return
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as scratch:
        root, folder = Path(scratch, "project"), Path(scratch, "run")
        folder.mkdir()
        for name, digest in inputs.items():
            store.get_input(digest, root / name)
        here = _plan_again(run, root)
        if here.key != run.key:
            raise InputError(f"worker {worker.address} would make another run: {_difference(run, here)}")

        def tell(cell: int, of: int) -> None:
            worker.log_event(TOPIC, {"task": task, "cell": cell, "of": of})

        manifest = make(here, folder, tell)
        store.push(folder, run.study.name, run.key, failed=manifest.error is not None)


def _plan_again(run: PlannedRun, root: Path) -> PlannedRun:
    notebook = root / run.study.source.path.relative_to(run.study.root)
    study = replace(run.study, root=root, source=read_source(notebook))
    with _PLANNING:
        return plan_run(study, run.parameters, fingerprint.hash_package(), iso_week="")


def _difference(run: PlannedRun, here: PlannedRun) -> str:
    if here.model_hash != run.model_hash:
        return f"its model {run.parameters.get('model')} has other weights"
    names = {*run.data_hashes, *here.data_hashes}
    if other := [name for name in sorted(names) if run.data_hashes.get(name) != here.data_hashes.get(name)]:
        return f"its {', '.join(other)} {'are' if len(other) > 1 else 'is'} different or missing"
    return f"install there the same qubic-lab, {', '.join(fingerprint.DECIDING_VERSIONS)}"
