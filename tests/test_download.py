"""Models over HTTP from a server with faults: what was cut continues, what is wrong is told of in one line."""

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clusters import StartCluster
from commands import Run

from qubic_lab.api.access import ApiToken, hash_token
from qubic_lab.errors import InputError, ModelError, NotFoundError, QubicLabError, RefusedError, UnreachableError
from qubic_lab.model import download
from qubic_lab.model.download import ModelSource, fetch_model
from qubic_lab.model.folders import write_manifest
from qubic_lab.model.resolve import _check_blobs
from qubic_lab.model.split import split_checkpoint, verify

BYTES = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BYTES).hexdigest()
SetSettings = Callable[..., None]


@dataclass
class Server:
    """A folder over HTTP; `cuts` are numbers of bytes after which the next answers to GET end."""

    folder: Path
    url: str = ""
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    token: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.asked.append((request.path, asked))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            request.send_error(401)
            return
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            request.send_error(status)
            return
        file = self.folder / request.path.lstrip("/")
        if not file.is_file():
            request.send_error(404)
            return
        content = file.read_bytes()
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts and "manifest" not in request.path else None
        request.wfile.write(content[start:][:cut])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(download, name, 0.001)
    found = Server(tmp_path / "served")
    found.folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield found
        http.shutdown()
        thread.join()


@pytest.fixture
def weights(server: Server) -> str:
    """The URL of a file."""
    (server.folder / "weights").write_bytes(BYTES)
    return f"{server.url}/weights"


def fetch(url: str, out: Path, sha256: str = SHA256, size: int | None = None) -> None:
    with ModelSource(url) as source:
        source.fetch_file("", out, sha256, size)


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "served")


def test_a_cut_download_continues_where_it_was(server: Server, weights: str, tmp_path: Path) -> None:
    server.cuts = [1_000, 50_000, 7]
    fetch(weights, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BYTES
    assert [asked for _, asked in server.asked] == ["", "bytes=1000-", "bytes=51000-", "bytes=51007-"]
    assert left(tmp_path) == ["out"]


def test_the_next_command_continues_too(server: Server, weights: str, tmp_path: Path) -> None:
    server.cuts = [1_000, *[0] * download.MOST_TRIES]
    with pytest.raises(UnreachableError, match=r"weights cannot be had \(.*\); 1,000 bytes are here: run the command"):
        fetch(weights, tmp_path / "out")
    assert left(tmp_path) == [".out.part"]
    fetch(weights, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BYTES and server.asked[-1][1] == "bytes=1000-"


def test_a_server_without_ranges_begins_anew(server: Server, weights: str, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1_000, 2_000]
    fetch(weights, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BYTES


@pytest.mark.parametrize("size", [None, len(BYTES)])
def test_what_is_here_of_another_version_is_thrown_away(
    size: int | None, server: Server, weights: str, tmp_path: Path
) -> None:
    for before in (b"other", b"x" * len(BYTES), b"x" * (len(BYTES) + 5)):
        (tmp_path / ".out.part").write_bytes(before)
        fetch(weights, tmp_path / "out", size=size)
        assert (tmp_path / "out").read_bytes() == BYTES


def test_wrong_bytes_are_not_kept(server: Server, weights: str, tmp_path: Path) -> None:
    (server.folder / "weights").write_bytes(BYTES[:-1] + b"!")
    with pytest.raises(ModelError, match=rf"weights has SHA-256 \w+, not {SHA256}: it was changed or damaged"):
        fetch(weights, tmp_path / "out", size=len(BYTES))
    with pytest.raises(ModelError, match="102,400 bytes, not 7: it was changed or damaged"):
        fetch(weights, tmp_path / "out", size=7)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, NotFoundError, "does not exist: check the name, and that QUBIC_LAB_MODELS"),
        (401, RefusedError, r"is refused \(401\): set QUBIC_LAB_API_TOKEN"),
        (302, QubicLabError, "the server says 302"),
        (503, UnreachableError, r"the server says 503\); 0 bytes are here"),
    ],
)
def test_a_refusal_is_one_line(
    status: int, kind: type[QubicLabError], message: str, server: Server, weights: str, tmp_path: Path
) -> None:
    server.statuses = [status] * 9
    with pytest.raises(kind, match=message):
        fetch(weights, tmp_path / "out")
    assert left(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, weights: str, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    fetch(weights, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BYTES


def test_a_silent_server_and_none_are_told_of(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "answer", lambda *_: threading.Event().wait(0.3))
    monkeypatch.setattr(download, "SILENT_S", 0.01)
    with pytest.raises(UnreachableError, match=r"\(timed out\); 0 bytes are here"):
        fetch(weights, tmp_path / "out")
    with pytest.raises(UnreachableError, match=r"Connection refused\); 0 bytes are here"):
        fetch("http://127.0.0.1:9/weights", tmp_path / "out")
    with pytest.raises(InputError, match="is no URL: give https://HOST/FOLDER"):
        fetch("weights", tmp_path / "out")


def test_a_full_disk_is_noticed_before(server: Server, weights: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1_000))
    with pytest.raises(InputError, match=r"has room for 1,000 bytes, .*weights has 102,400 more: make room"):
        fetch(weights, tmp_path / "out")


@pytest.fixture
def parts(server: Server, tiny: Path) -> str:
    """The URL of a split of two ranks."""
    split_checkpoint(tiny, server.folder / "parts", (2, 2), "A")
    return f"{server.url}/parts"


def test_the_ranks_of_a_split_travel_whole(server: Server, parts: str, tmp_path: Path) -> None:
    server.cuts = [100, 5, 2_000]
    with ModelSource(parts) as source:
        assert fetch_model(source, tmp_path / "here", [1]) == [tmp_path / "here" / "rank-1"]
        assert verify(tmp_path / "here" / "rank-1") == [] and left(tmp_path / "here") == ["rank-1"]
        asked = len(server.asked)
        fetch_model(source, tmp_path / "here")
    assert verify(tmp_path / "here") == [] and left(tmp_path / "here") == ["rank-0", "rank-1"]
    assert not any("rank-1/model" in path for path, _ in server.asked[asked:])
    for rank in range(2):
        for file in (server.folder / "parts" / f"rank-{rank}").iterdir():
            assert (tmp_path / "here" / f"rank-{rank}" / file.name).read_bytes() == file.read_bytes()


def test_a_damaged_split_is_refused_and_what_is_sound_of_it_stays(server: Server, parts: str, tmp_path: Path) -> None:
    damaged = server.folder / "parts" / "rank-0" / "model.safetensors"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with ModelSource(parts) as source:
        with pytest.raises(ModelError, match=r"rank-0/model.safetensors has SHA-256"):
            fetch_model(source, tmp_path / "here", [0])
        assert left(tmp_path / "here") == [".rank-0.partial"]
        damaged.write_bytes(sound)
        asked = len(server.asked)
        fetch_model(source, tmp_path / "here", [0])
        again = {path for path, _ in server.asked[asked:]}
        assert verify(tmp_path / "here" / "rank-0") == [] and "/parts/rank-0/config.json" not in again
        with pytest.raises(InputError, match=r"--rank 2: .* has ranks 0 to 1"):
            fetch_model(source, tmp_path / "here", [2])
        manifest = (server.folder / "parts" / "rank-1" / "manifest.json").read_bytes()
        with pytest.raises(ModelError, match="it is of another model, or was changed"):
            fetch_model(source, tmp_path / "here", [1], SHA256)
        fetch_model(source, tmp_path / "here", [1], hashlib.sha256(manifest).hexdigest())


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", ".hidden"])
def test_a_manifest_writes_nowhere_else(name: str, server: Server, tmp_path: Path) -> None:
    folder = server.folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_manifest(folder, {"kind": "model"})
    text = (folder / "manifest.json").read_text().replace("config.json", name)
    content = json.loads(text)
    seal = content.pop("seal")
    text = text.replace(seal, hashlib.sha256(json.dumps(content).encode()).hexdigest())
    (folder / "manifest.json").write_text(text)
    with ModelSource(f"{server.url}/model") as source, pytest.raises(ModelError, match="which is no plain file name"):
        fetch_model(source, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_the_token_is_for_the_coordinator_alone(
    server: Server, parts: str, tmp_path: Path, here: Run, set_settings: SetSettings
) -> None:
    server.token = "secret"
    server.folder.rename(tmp_path / "root")
    server.folder.mkdir()
    (tmp_path / "root").rename(server.folder / "models")
    set_settings(coordinator=server.url, api_token="secret", tls_authority=None)
    assert here(f"model fetch parts {tmp_path / 'a'} --rank 0 --json").json == {"paths": [f"{tmp_path}/a/rank-0"]}
    other = server.url.replace("127.0.0.1", "localhost")
    assert "is refused (401)" in here(f"model fetch {other}/models/parts {tmp_path / 'b'}").failed(1)
    set_settings(api_token="wrong")
    assert "is refused (401): set QUBIC_LAB_API_TOKEN" in here(f"model fetch parts {tmp_path / 'b'}").failed(1)


def test_options_that_contradict_are_refused(weights: str, tmp_path: Path, here: Run) -> None:
    out = tmp_path / "out"
    assert "--file needs --sha256" in here(f"model fetch {weights} {out} --file").failed(2)
    assert "give 64 hexadecimal digits" in here(f"model fetch {weights} {out} --file --sha256 abc").failed(2)
    assert here(f"model fetch {weights} {out} --file --sha256 {SHA256}").out == f"{out}\n"
    assert out.read_bytes() == BYTES


@pytest.mark.anyio
async def test_a_coordinator_serves_models(
    start_cluster: StartCluster, tiny: Path, tmp_path: Path, set_settings: SetSettings
) -> None:
    split_checkpoint(tiny, tmp_path / "models" / "parts", (2, 2), "A")
    set_settings(models=tmp_path / "models")
    async with start_cluster(served=True) as running:
        whole = (tmp_path / "models" / "parts" / "rank-0" / "model.safetensors").read_bytes()
        found = await running.client.get("/models/parts/rank-0/model.safetensors", headers={"Range": "bytes=1000-"})
        assert (found.status_code, found.content) == (206, whole[1000:])
        for path in ("/models/parts/none", "/models/../secret", "/models/%2e%2e/secret", "/models/parts"):
            assert (await running.client.get(path)).status_code == 404
    access = ApiToken("nodes", hash_token("secret"), read_only=True)
    async with start_cluster(served=True, accesses=[access]) as running:
        url = f"{running.client.base_url}/models/parts"
        assert (await running.client.get("/models/parts/rank-0/manifest.json")).status_code == 401
        with ModelSource(url, "secret") as source:
            await asyncio.to_thread(fetch_model, source, tmp_path / "here")
    assert verify(tmp_path / "here") == []


def test_a_damaged_file_of_the_hub_is_found(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / "blobs" / SHA256, tmp_path / "snapshot"
    for folder in (blob.parent, snapshot):
        folder.mkdir()
    blob.write_bytes(BYTES)
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").write_text("{}")
    _check_blobs(snapshot)
    blob.write_bytes(BYTES[1:])
    with pytest.raises(ModelError, match="is damaged: its SHA-256 is not"):
        _check_blobs(snapshot)
