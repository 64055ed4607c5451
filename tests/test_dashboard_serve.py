"""Who may look at the dashboard, and in which language."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from clusters import Process, processes, until

from qubic_lab.api.http_server import ServeConfig
from qubic_lab.errors import InputError

TOKEN = "qlab_a-token-of-a-test"


@pytest.mark.parametrize(
    ("asked", "accepted", "tag"),
    [
        ("zh-TW", "en", "zh-TW"),
        ("", "de-AT,zh-Hant;q=0.9,en;q=0.8", "zh-TW"),
        ("", "de,en-GB;q=0.5,zh-TW;q=0.3", "en"),
        ("xx", "", "en"),
    ],
)
def test_a_page_is_in_the_language_that_is_asked_for_or_preferred(asked: str, accepted: str, tag: str) -> None:
    from qubic_lab.dashboard.serve import language_of  # Panel takes a second and more

    assert language_of(asked, accepted) == tag


def test_beyond_loopback_it_needs_a_token_and_a_certificate() -> None:
    with pytest.raises(InputError, match="set QUBIC_LAB_API_TOKEN and QUBIC_LAB_TLS_CERTIFICATE"):
        ServeConfig("192.0.2.1:5006", guard="QUBIC_LAB_API_TOKEN")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """Return the URL of a dashboard that sends a token, and so asks for it."""
    with processes() as start:
        arguments = (
            "qubic_lab.cli.main",
            "dashboard",
            "--listen",
            "127.0.0.1:0",
            "--coordinator",
            "http://127.0.0.1:1",
        )
        process = start(tmp_path, "dashboard", *arguments, QUBIC_LAB_API_TOKEN=TOKEN, QUBIC_LAB_CACHE=str(tmp_path))
        yield until_served(process)


def until_served(process: Process) -> str:
    async def url() -> str:
        found = await until(lambda: re.search(r"at (http://[\d.:]+)", process.log))
        return str(found[1])

    return asyncio.run(url())


@pytest.mark.dist
def test_whoever_does_not_show_the_token_sees_a_form_alone(guarded: str) -> None:
    with httpx2.Client(base_url=guarded, timeout=60.0, trust_env=False) as browser:
        for path in ("/", "/?lang=zh-TW"):
            refused = browser.get(path)
            assert refused.status_code in (302, 401, 403)
        assert "password" in browser.get("/login").text
        assert browser.post("/login", data={"token": "wrong"}).status_code == 403
        assert browser.get("/").status_code != 200
        assert browser.post("/v1/traces", content=b"").status_code == 401
        entered = browser.post("/login", data={"token": TOKEN})
        assert "httponly" in entered.headers["set-cookie"].lower()
        assert "samesite=strict" in entered.headers["set-cookie"].lower()
        from bokeh.util.token import get_token_payload

        page = browser.get("/").text
        [session] = re.findall(r'"token":"([^"]+)"', page)
        seen = json.dumps(get_token_payload(session), default=str)
        assert browser.cookies["qubic_lab_token"].strip('"') not in seen, "a script could read it"
        for told in (TOKEN, base64.b64encode(TOKEN.encode()).decode()):
            assert told not in entered.headers["set-cookie"]
        assert browser.get("/").status_code == 200
    with httpx2.Client(base_url=guarded, timeout=60.0, trust_env=False) as program:
        assert program.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        sender = {"Authorization": f"Bearer {TOKEN}"}
        assert program.post("/v1/traces", content=b"", headers=sender).status_code == 200
        assert program.post("/v1/traces", content=b"no protobuf", headers=sender).status_code == 400
        socket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        socket |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "bokeh, e30"}
        assert program.get("/ws", headers=socket | {"Origin": "http://evil.example"}).status_code == 403
        assert program.get("/ws", headers=socket | {"Origin": guarded}).status_code != 101
