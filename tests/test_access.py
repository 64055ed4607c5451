"""Who may call: nobody beyond loopback without token and certificate; tokens are kept as hashes, each with a rate."""

import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from clusters import Fragile, StartCluster, cluster
from commands import Run

from qubic_lab.api.access import ApiToken, TokenFile, find_token, hash_token, new_token, read_tokens, write_tokens
from qubic_lab.api.http_server import KEY, ServeConfig
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.errors import InputError
from qubic_lab.wire.certificates import make_certificates
from qubic_lab.wire.channel import TlsFiles

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]
ASK = "/api/ai/query"
QUESTION = {"prompt": "hi", "max_new_tokens": 2}


def accesses_of(*names: str, per_minute: int = 120) -> tuple[dict[str, str], list[ApiToken]]:
    """New tokens by name, and how the coordinator knows them."""
    tokens = {name: new_token() for name in names}
    return tokens, [ApiToken(name, hash_token(token), per_minute) for name, token in tokens.items()]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_without_a_known_token_nothing_is_told_and_each_has_its_own_keys(start_cluster: StartCluster) -> None:
    tokens, known = accesses_of("notebook", "other")
    token = tokens["notebook"]
    async with start_cluster(nodes={"a": Fragile()}, served=True, accesses=known) as running:
        ask = running.client
        for headers, detail in (
            ({}, "no token was sent: send the header Authorization: Bearer TOKEN"),
            ({"Authorization": "Bearer"}, "no token was sent"),
            (bearer(new_token()), "the token is not known"),
            (bearer(hash_token(token)), "the token is not known"),
            (bearer("é"), "the token is not known"),
            ({"Authorization": f"Basic {token}"}, "the token is not known"),
        ):
            for path in ("/health", "/api/nothing"):
                response = await ask.get(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.headers["content-type"] == "application/problem+json"
                assert detail in response.json()["detail"]
            assert (await ask.post(ASK, json=QUESTION, headers=bearer("x"))).status_code == 401
        for path in ("/docs", "/openapi.json", "/metrics", "/ready", "/api/cluster/nodes"):
            assert (await ask.get(path)).status_code == 401
        assert (await running.coordinator.counts()).submitted == 0
        assert (await ask.get("/health", headers=bearer(token))).status_code == 200
        assert (await ask.get("/health", headers={"Authorization": f"bearer  {token}"})).status_code == 200
        assert (await ask.post(ASK, json=QUESTION, headers=bearer(token))).status_code == 200

        found = []
        for name in ("notebook", "other", "notebook"):
            headers = {**bearer(tokens[name]), "Idempotency-Key": "key"}
            found.append((await ask.post(ASK, json=QUESTION, headers=headers)).json()["task_id"])
        assert found[0] == found[2] != found[1]

        known.pop(0)  # withdrawn
        assert (await ask.get("/health", headers=bearer(token))).status_code == 401


async def test_a_token_that_only_reads_neither_asks_nor_changes(start_cluster: StartCluster) -> None:
    tokens, known = accesses_of("viewer", "notebook")
    known[0] = replace(known[0], read_only=True)
    viewer = bearer(tokens["viewer"])
    async with start_cluster(nodes={"a": Fragile()}, served=True, accesses=known) as running:
        ask = running.client
        for method, path in (
            ("POST", ASK),
            ("POST", "/v1/chat/completions"),
            ("POST", "/api/cluster/nodes/a/drain"),
            ("DELETE", "/api/cluster/nodes/a/drain"),
            ("DELETE", "/api/cluster/tasks/some"),
        ):
            refused = await ask.request(method, path, headers=viewer)
            said = f"the token of viewer only reads, and {method} {path} asks or changes something"
            assert refused.status_code == 403 and said in refused.text
        assert running.gates("a") == {None} and (await running.coordinator.counts()).submitted == 0
        assert [node["name"] for node in (await ask.get("/api/cluster/nodes", headers=viewer)).json()] == ["a"]
        for headers, reads in ((viewer, True), (bearer(tokens["notebook"]), False)):
            assert (await ask.get("/api/cluster/status", headers=headers)).json()["read_only"] is reads


async def test_a_rate_counts_over_all_coordinators_and_for_each_client_alone(start_cluster: StartCluster) -> None:
    tokens, known = accesses_of("one", "two", per_minute=3)
    async with start_cluster(coordinators=2, served=True, accesses=known) as running:
        first, second = running.clients
        for ask in (first, second, first):
            assert (await ask.get("/health", headers=bearer(tokens["one"]))).status_code == 200
        for ask in (first, second):
            response = await ask.get("/health", headers=bearer(tokens["one"]))
            assert response.status_code == 429
            assert response.json()["detail"] == "one may send 3 requests a minute: send this one later"
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert (await second.get("/health", headers=bearer(tokens["two"]))).status_code == 200


async def test_without_redis_nobody_is_let_in(tmp_path: Path) -> None:
    tokens, known = accesses_of("one")
    with RedisServer(tmp_path / "redis") as server:
        connection = connect(server.url)
        async with cluster(connection, tmp_path, served=True, accesses=known) as running:
            connection.config_set("maxmemory", "1")
            response = await running.client.get("/health", headers=bearer(tokens["one"]))
            assert response.status_code == 503
            assert response.json()["detail"] == "requests cannot be counted now: Redis does not answer"
            connection.config_set("maxmemory", "0")


def test_tokens_are_long_and_kept_as_hashes(tmp_path: Path) -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and all(len(token) >= 43 for token in tokens)
    token, other = sorted(tokens)[:2]
    access = ApiToken("notebook", hash_token(token), 60)
    write_tokens(path := tmp_path / "new" / "tokens.yaml", [access])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert read_tokens(path) == [access]
    assert find_token(token, [ApiToken("first", hash_token(other)), access]) == access
    assert find_token(other, [access]) is None
    assert find_token("", []) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {name: a}", "'sha256' is missing"),
        ("- {name: a, sha256: x}", "sha256 of a is not a SHA-256"),
        (f"- {{name: 'a:b', sha256: {'a' * 64}}}", "name 'a:b'"),
        (f"- {{name: a, sha256: {'a' * 64}, per_minute: 0}}", "per_minute of a is 0: it must be at least 1"),
        (f"- {{name: a, sha256: {'a' * 64}, rate: 5}}", "unknown name 'rate'"),
        ("[", "is not valid YAML"),
    ],
)
def test_files_that_are_none_of_tokens(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"token file .*tokens\.yaml.*{message}.*qubic-lab token add makes one"):
        read_tokens(path)


def test_a_changed_file_is_read_again_and_a_broken_one_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    with pytest.raises(InputError, match=r"No such file.*qubic-lab token add makes one"):
        TokenFile(path)
    one, two = ApiToken("one", "1" * 63 + "a"), ApiToken("two", "2" * 63 + "b")
    write_tokens(path, [one])
    accesses = TokenFile(path)
    assert accesses() == [one]
    write_tokens(path, [one, two])
    assert accesses() == [one, two]
    path.write_text("- broken")
    assert accesses() == []
    path.unlink()
    assert accesses() == []
    write_tokens(path, [two])
    assert accesses() == [two]


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    [certificate] = make_certificates(tmp_path / "tls", [["localhost"]], datetime.now(UTC))
    return TlsFiles(certificate, certificate.with_suffix(".key"), tmp_path / "tls" / "authority.pem")


@pytest.mark.parametrize("listen", ["0.0.0.0:5000", "10.0.0.2:5000", "vm-1:5000", "[::]:5000"])
def test_beyond_loopback_tokens_and_certificates_are_asked_for(listen: str, tls: TlsFiles) -> None:
    tokens = Path("tokens.yaml")
    for options, asked, not_asked in (
        ({}, ("QUBIC_LAB_API_TOKENS", "QUBIC_LAB_TLS_CERTIFICATE"), None),
        ({"tokens": tokens}, ("qubic-lab certs make",), "QUBIC_LAB_API_TOKENS"),
        ({"tls": tls}, ("qubic-lab token add",), "QUBIC_LAB_TLS_KEY"),
    ):
        with pytest.raises(InputError, match="is not on this host: set ") as caught:
            ServeConfig(listen, **options)
        assert all(each in str(caught.value) for each in asked)
        assert not_asked is None or not_asked not in str(caught.value)
    assert ServeConfig(listen, tokens, tls).url == f"https://{listen}"
    with pytest.raises(InputError, match=r"set QUBIC_LAB_API_KEY and QUBIC_LAB_TLS_CERTIFICATE"):
        ServeConfig(listen, guard=KEY)
    with pytest.raises(InputError, match=r"QUBIC_LAB_API_KEY has 5 characters, and .* give at least 16"):
        ServeConfig(listen, tls=tls, key="short", guard=KEY)
    served = ServeConfig(listen, tls=tls, key="a secret of the test", guard=KEY)
    assert "a secret" not in repr(served)
    accesses = served.accesses()
    assert accesses is not None and find_token("a secret of the test", accesses()) and not find_token("", accesses())
    write_tokens(tokens := tls.key.with_name("tokens.yaml"), [ApiToken("reader", hash_token("of one"), read_only=True)])
    both = ServeConfig(listen, tokens, tls, "a secret of the test", guard=KEY).accesses()
    assert both is not None and [each.read_only for each in both()] == [False, True]


@pytest.mark.parametrize("listen", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"])
def test_on_loopback_nothing_is_asked_for(listen: str) -> None:
    config = ServeConfig(listen)
    assert (config.url, config.port) == (f"http://{listen}", 5000)
    with pytest.raises(InputError, match="not understood"):
        ServeConfig(listen.rpartition(":")[0])


@pytest.mark.parametrize("used", ["--listen", "--nodes"])
def test_a_coordinator_whose_port_is_used_says_so(
    used: str, tmp_path: Path, here: Run, set_settings: Callable[..., None], no_tls: None
) -> None:
    set_settings(api_tokens=None, redis_url=None, cache=tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        listen, nodes = (address if option == used else "127.0.0.1:0" for option in ("--listen", "--nodes"))
        ended = here(f"coordinator --listen {listen} --nodes {nodes}")
    assert ended.status == 2 and f"error: cannot listen at {address}: another process " in ended.err


def test_a_served_model_that_is_none_and_a_port_that_is_used(
    tmp_path: Path, here: Run, set_settings: Callable[..., None], no_tls: None
) -> None:
    set_settings(api_key=None, cache=tmp_path)
    ended = here(f"serve --model {tmp_path / 'nothing'} --listen 127.0.0.1:0")
    assert ended.status == 2 and ended.err.splitlines()[-1].startswith("error: ") and "nothing" in ended.err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ended = here(f"serve --listen 127.0.0.1:{other.getsockname()[1]}")
    assert ended.status == 2 and "another process holds it" in ended.err


def test_tokens_by_command(tmp_path: Path, here: Run) -> None:
    path = tmp_path / "tokens.yaml"

    def told(line: str, status: int = 0) -> tuple[str, str]:
        ended = here(f"token {line} --file {path}")
        assert ended.status == status
        return ended.out.strip(), ended.err

    token, _ = told("add notebook --per-minute 60")
    assert find_token(token, read_tokens(path)) == ApiToken("notebook", hash_token(token), 60)
    for line, said in (
        ("add notebook", "'notebook' has a token: remove it first"),
        ("add 'a b'", "give 1 to 100 letters"),
        ("add other --per-minute 0", "at least 1"),
        ("remove notebok", "did you mean 'notebook'"),
    ):
        assert said in told(line, status=2)[1]
    told("add other --read-only")
    listed, _ = told("list --json")
    assert yaml.safe_load(listed) == {
        "tokens": [
            {"name": "notebook", "per_minute": 60, "read_only": False},
            {"name": "other", "per_minute": 120, "read_only": True},
        ]
    }
    assert "notebook" in told("list")[0]
    told("remove notebook")
    assert [each.name for each in read_tokens(path)] == ["other"]
    assert find_token(token, read_tokens(path)) is None
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.yaml"]
