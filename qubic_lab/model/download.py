"""Models over HTTP: continued where a connection was cut, checked by SHA-256, and whole or not there at all."""

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2

from qubic_lab.errors import InputError, ModelError, NotFoundError, QubicLabError, RefusedError, UnreachableError
from qubic_lab.model.folders import MANIFEST, check_new, file_hash, known_hash, problems, rank_name, read_manifest

CONNECT_S, SILENT_S = 10.0, 30.0
"""A server that sends nothing for `SILENT_S` counts as lost."""
MOST_TRIES = 5
"""In a row that brought no byte."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
MOST_MANIFEST_BYTES = 2**20
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be gone at the next try."""

Progress = Callable[[str, int, int], None]
"""Called with a file's name, and its bytes that are here and in all."""


class _LostError(Exception):
    """The connection was cut, or the server is out of order for now."""


class ModelSource:
    """A server of files at a URL; `token` and `authority` are for it alone. A context manager.

    Raises, in every method:
        UnreachableError: it does not answer, or was cut too often; what came is kept, and the next call continues.
        NotFoundError: it has no such file.
        RefusedError: it wants another token.
        InputError: the URL is none, or there is not enough room.
    """

    def __init__(self, url: str, token: str = "", authority: Path | None = None) -> None:
        self.url = url.rstrip("/")
        secure = authority is not None and self.url.startswith("https:")
        try:
            self._http = httpx2.Client(
                headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {}),
                timeout=httpx2.Timeout(SILENT_S, connect=CONNECT_S),
                verify=str(authority) if secure else True,
                follow_redirects=not token,  # a token stays with the server that it is for
                trust_env=not token,
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{authority} is no authority's certificate ({error}): mend QUBIC_LAB_TLS_AUTHORITY"
            ) from None
        if not re.fullmatch(r"https?://[^/]+(/.*)?", self.url):
            raise InputError(f"{url!r} is no URL: give https://HOST/FOLDER, or the name of a model of a coordinator")

    def __enter__(self) -> "ModelSource":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def fetch_file(
        self, name: str, out: Path, sha256: str, size: int | None = None, progress: Progress = lambda *_: None
    ) -> None:
        """Write the file at `URL/name` (`URL` where the name is empty) to `out`, once it has come whole.

        Until then it is `.NAME.part` beside it, and stays there if this fails.

        Raises:
            ModelError: it has another SHA-256 than it should have; nothing is kept.
        """
        url = f"{self.url}/{name}" if name else self.url
        part = out.with_name(f".{out.name}.part")
        resumed = part.exists()
        while True:
            self._bring(url, part, size, lambda have, total: progress(out.name, have, total))
            if (found := file_hash(part)) == sha256:
                break
            part.unlink()
            if not resumed:
                raise ModelError(
                    f"{url} has SHA-256 {found}, not {sha256}: it was changed or damaged; ask who serves it"
                )
            resumed = False  # what was here already may be of an earlier version
        part.replace(out)

    def fetch_folder(self, name: str, out: Path, sha256: str = "", progress: Progress = lambda *_: None) -> None:
        """Write the folder at `URL/name` to `out`, by its manifest, once all of it has come whole.

        Until then it is `.NAME.partial` beside it, and stays there if this fails. A folder that is there and the same
        stays as it is.

        Args:
            name: of the folder; empty: that of the URL.
            out: a new folder.
            sha256: expected hash of the manifest, from a trusted source; empty accepts any.
            progress: see `Progress`.

        Raises:
            ModelError: a file or the manifest has another SHA-256 than it should have.
        """
        base = f"{name}/" if name else ""
        manifest = self.read(f"{base}{MANIFEST}", MOST_MANIFEST_BYTES)
        partial = out.with_name(f".{out.name}.partial")
        try:
            if (
                (out / MANIFEST).exists()
                and (out / MANIFEST).read_bytes() == manifest
                and not problems(out, known_hash)
            ):
                return
            check_new(out)
            partial.mkdir(parents=True, exist_ok=True)
            (partial / MANIFEST).write_bytes(manifest)
            files = _listed(partial, f"{self.url}/{base}{MANIFEST}", sha256)
            for left in partial.iterdir():  # of an earlier version
                if left.name not in {MANIFEST, *files, *(f".{file}.part" for file in files)}:
                    left.unlink()
            for file, (size, digest) in files.items():
                here = partial / file
                if not (here.exists() and here.stat().st_size == size and known_hash(here) == digest):
                    self.fetch_file(f"{base}{file}", here, digest, size, progress)
            if found := problems(partial, None):  # the hashes were compared as the files came
                raise ModelError(f"{found[0]}: run the command again")
            if out.exists():
                out.rmdir()
            partial.rename(out)
        except OSError as error:
            raise InputError(
                f"{out} cannot be written ({error.strerror}): give a folder that can, with room"
            ) from error

    def ranks(self) -> int | None:
        """Return the number of ranks if a split is at the URL, or None if it is one folder."""
        try:
            self.read(MANIFEST, MOST_MANIFEST_BYTES)
            return None
        except NotFoundError:
            first = self.read(f"{rank_name(0)}/{MANIFEST}", MOST_MANIFEST_BYTES)
        try:
            return len(json.loads(first)["layers_per_rank"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self.url}/{rank_name(0)}/{MANIFEST} is of no split: split the model again") from error

    def read(self, name: str, most_bytes: int) -> bytes:
        """Return a small file; a ModelError if it has more bytes."""
        url, found = f"{self.url}/{name}", b""

        def take(response: httpx2.Response) -> None:
            nonlocal found
            _check_status(response, url)
            found = b""
            for block in response.iter_raw():
                found += block
                if len(found) > most_bytes:
                    raise ModelError(f"{url} has more than {most_bytes:,} bytes: that is no {MANIFEST} of a model")

        self._try(url, lambda: len(found), lambda: self._get(url, {}, take))
        return found

    def _bring(self, url: str, part: Path, size: int | None, progress: Callable[[int, int], None]) -> None:
        """Add to `part` what it lacks."""

        def have() -> int:
            return part.stat().st_size if part.exists() else 0

        def add(response: httpx2.Response) -> None:
            start = have()
            if response.status_code == 416:  # there is no more, or less
                if size is None or start != size:
                    part.unlink()
                    raise _LostError("it is shorter than what came before")
                return
            _check_status(response, url)
            if response.status_code == 200:
                start = 0  # a server without ranges sends all of it
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise ModelError(f"{url} sends another part than was asked for: ask who serves it")
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else size
            if size is not None and total != size:
                raise ModelError(
                    f"{url} has {total:,} bytes, not {size:,}: it was changed or damaged; ask who serves it"
                )
            if total is not None and (free := shutil.disk_usage(part.parent).free) < total - start:
                raise InputError(
                    f"{part.parent} has room for {free:,} bytes, {url} has {total - start:,} more: make room"
                )
            with part.open("ab" if start else "wb") as out:
                for block in response.iter_raw():
                    out.write(block)
                    progress(out.tell(), total or 0)
            if total is not None and have() < total:
                raise _LostError("it ended too early")

        def ask() -> None:
            start = have()
            if size is None or start < size or size == 0:
                self._get(url, {"Range": f"bytes={start}-"} if start else {}, add)

        if size is not None and have() > size:
            part.unlink()
        self._try(url, have, ask)

    def _get(self, url: str, headers: dict[str, str], take: Callable[[httpx2.Response], None]) -> None:
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                take(response)
        except (httpx2.TransportError, httpx2.TooManyRedirects) as error:
            raise _LostError(str(error) or type(error).__name__) from error
        except httpx2.InvalidURL as error:
            raise InputError(f"{url!r} is no URL ({error}): give https://HOST/FOLDER") from error

    def _try(self, url: str, have: Callable[[], int], ask: Callable[[], None]) -> None:
        """Ask, and ask again while that brings more, with pauses that grow while it does not."""
        tries, pause_s = 0, FIRST_PAUSE_S
        while True:
            before = have()
            try:
                ask()
                return
            except _LostError as error:
                tries, pause_s = (0, FIRST_PAUSE_S) if have() > before else (tries + 1, pause_s)
                if tries == MOST_TRIES:
                    raise UnreachableError(
                        f"{url} cannot be had ({error}); {have():,} bytes are here: run the command again, it continues"
                    ) from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def fetch_model(
    source: ModelSource, out: Path, ranks: Sequence[int] = (), sha256: str = "", progress: Progress = lambda *_: None
) -> list[Path]:
    """Fetch a model's folder, or of a split the folders of some ranks (none given: of all), and return what is here.

    Raises:
        InputError: `ranks` of a model that is not split, or one that it does not have; and as for `ModelSource`.
        ModelError: as for `ModelSource.fetch_folder`.
    """
    count = source.ranks()
    if count is None:
        if ranks:
            raise InputError(f"{source.url} is not split: leave --rank out")
        source.fetch_folder("", out, sha256, progress)
        return [out]
    if wrong := [rank for rank in ranks if not 0 <= rank < count]:
        raise InputError(f"--rank {wrong[0]}: {source.url} has ranks 0 to {count - 1}")
    if sha256 and len(wanted := ranks or range(count)) != 1:
        raise InputError(f"--sha256 is that of one rank's {MANIFEST}, and {len(wanted)} are fetched: give one --rank")
    folders = [out / rank_name(rank) for rank in ranks or range(count)]
    for folder in folders:
        source.fetch_folder(folder.name, folder, sha256, progress)
    return folders


def _check_status(response: httpx2.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in _AGAIN:
        raise _LostError(f"the server says {status}")
    if status in (401, 403):
        raise RefusedError(f"{url} is refused ({status}): set QUBIC_LAB_API_TOKEN to a token of the coordinator there")
    if status == 404:
        raise NotFoundError(f"{url} does not exist: check the name, and that QUBIC_LAB_MODELS names the folder there")
    raise QubicLabError(f"{url} cannot be had: the server says {status}")


def _listed(folder: Path, url: str, sha256: str) -> dict[str, tuple[int, str]]:
    """Return the size and SHA-256 of each file that a fetched manifest names."""
    if sha256 and (found := file_hash(folder / MANIFEST)) != sha256:
        raise ModelError(f"{url} has SHA-256 {found}, not {sha256}: it is of another model, or was changed")
    manifest = read_manifest(folder)
    assert manifest is not None
    try:
        files = {name: (int(each["bytes"]), str(each["sha256"])) for name, each in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{url} lists no files: make the folder again") from error
    if wrong := [name for name in files if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise ModelError(f"{url} lists {wrong[0]!r}, which is no plain file name: do not use this model")
    return files
