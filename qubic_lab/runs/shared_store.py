"""Runs and their inputs where several machines reach them: a folder, s3://, gs:// or another place that fsspec knows.

A run is one archive, `runs/<study>/<key>.tar`, an input a file that is named by its hash, `inputs/<SHA-256>`. Each gets
its name only when it is whole, and then stays, so that whoever comes second writes nothing.
"""

import logging
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.model.folders import file_hash
from qubic_lab.runs.store import FAILED, check_files, read_manifest

log = logging.getLogger(__name__)


class SharedStore:
    """A store by its URL, or by the path of a folder.

    Raises:
        InputError: no such kind of place is known, or its package is not installed; later, if it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            # A listing that is remembered would hide what others have written since.
            self._files, self._root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(f"store {url!r} cannot be used ({error}): give a folder, s3://… or gs://…") from None
        self.url: str = self._files.unstrip_protocol(self._root)

    def holds(self, study: str, key: str) -> bool:
        """Return whether a finished run is there."""
        with self._reached():
            return bool(self._files.exists(self._run(study, key, failed=False)))

    def push(self, folder: Path, study: str, key: str, *, failed: bool = False) -> None:
        """Put a run's folder there; a failure takes the place of an earlier one, and a success that of a failure."""
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:  # keeps times, by which pictures are ordered
                tar.add(folder, arcname=".")
            archive.seek(0)
            with self._reached():
                with suppress(FileNotFoundError):
                    self._files.rm(self._run(study, key, failed=True))
                self._put(archive, self._run(study, key, failed=failed))

    def fetch(self, study: str, key: str, folder: Path, *, failed: bool = False) -> bool:
        """Unpack a run into an empty folder; return False if it is not there, or damaged: then it is deleted."""
        path = self._run(study, key, failed=failed)
        with self._reached():
            if not self._files.exists(path):
                return False
            with tempfile.TemporaryFile() as archive:
                self._get(path, archive)
                try:
                    with tarfile.open(fileobj=archive) as tar:
                        tar.extractall(folder, filter="data")
                    manifest = read_manifest(folder)
                    check_files(folder, manifest)
                    if (manifest.study, manifest.key) == (study, key):
                        return True
                    raise InputError(f"it is run {manifest.study}/{manifest.key}")
                except (tarfile.TarError, InputError) as error:
                    log.warning("%s is deleted, and its run made again: %s", path, error)
            self._files.rm(path)
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return False

    def put_input(self, file: Path) -> str:
        """Put a file there and return its hash, by which it is found."""
        digest = file_hash(file)
        with file.open("rb") as source, self._reached():
            self._put(source, f"{self._root}/inputs/{digest}")
        return digest

    def get_input(self, digest: str, file: Path) -> None:
        """Write a file that was put there.

        Raises:
            InputError: it is gone or has changed.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as target, self._reached():
            self._get(f"{self._root}/inputs/{digest}", target)
        if file_hash(file) != digest:
            raise InputError(f"inputs/{digest} in {self.url} has changed: delete it and run the batch again")

    def _run(self, study: str, key: str, failed: bool) -> str:
        return f"{self._root}/runs/{study}/{FAILED if failed else ''}{key}.tar"

    def _put(self, source: IO[bytes], path: str) -> None:
        if self._files.exists(path):
            return
        temporary = f"{path}.{uuid4().hex}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self._files.open(temporary, "wb") as target:
            shutil.copyfileobj(source, target)
        self._files.mv(temporary, path)

    def _get(self, path: str, target: IO[Any]) -> None:
        with self._files.open(path, "rb") as source:
            shutil.copyfileobj(source, target)
        target.seek(0)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except QubicLabError:
            raise
        except Exception as error:  # each kind of store has errors of its own
            raise InputError(f"store {self.url}: {error}; check that it can be reached and written") from error
