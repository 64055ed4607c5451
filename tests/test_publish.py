"""Pages for others: whole or not at all in a folder or bucket, announced a few times, and kept when that fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from commands import Run
from comparisons import make_comparison
from pydantic import SecretStr
from test_alerts import Receiving, receiving
from test_report import add_run  # noqa: F401  (a fixture)

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.alerts.delivery import Webhook, signature
from qubic_lab.runs.collect_week import open_week
from qubic_lab.runs.publish import ATTEMPTS, announce, announcer, message, publish
from qubic_lab.studies.acceptance import Criterion


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with a picture beside it, and the index of all weeks above."""
    week = tmp_path / "reports" / "2026-W48"
    (week / "studies").mkdir(parents=True)
    (week / "index.html").write_text("the page")
    (week / "studies" / "one.html").write_text("a study")
    (week / ".index.html.17").write_text("left by a killed process")
    (week.parent / "index.html").write_text("all weeks")
    return week / "index.html"


def files_in(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


PUBLISHED = {"2026-W48/index.html": "the page", "2026-W48/studies/one.html": "a study", "index.html": "all weeks"}


def test_a_page_and_what_it_links_to_are_in_the_folder(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "www"
    for _ in range(2):
        assert publish(page, str(target)) == f"file://{target}/2026-W48/index.html"
        assert files_in(target) == PUBLISHED
    page.write_text("a newer page")
    publish(page, f"file://{target}/")
    assert files_in(target)["2026-W48/index.html"] == "a newer page"


def test_the_page_comes_to_a_bucket_after_what_it_links_to(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fsspec.filesystem("memory")
    written: list[str] = []
    pipe = type(bucket).pipe_file

    def noted(self: Any, path: str, content: bytes, **options: Any) -> None:
        written.append(path)
        pipe(self, path, content, **options)

    monkeypatch.setattr(type(bucket), "pipe_file", noted)
    assert publish(page, "memory://pages/lab") == "memory:///pages/lab/2026-W48/index.html"
    assert written == [
        f"/pages/lab/{name}" for name in ("2026-W48/studies/one.html", "2026-W48/index.html", "index.html")
    ]
    assert bucket.cat_file("/pages/lab/2026-W48/index.html") == b"the page"
    bucket.rm("/pages", recursive=True)


def test_a_reader_never_sees_a_part_of_a_file(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(page, str(tmp_path / "www"))
    page.write_text("a newer page")

    def stopped(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(QubicLabError, match=r"index\.html is written, but not published to .*www: .*No space left"):
        publish(page, str(tmp_path / "www"))
    assert (tmp_path / "www" / "2026-W48" / "index.html").read_text() == "the page"


@pytest.mark.parametrize("url", ["nosuch://bucket/pages", "/proc/nowhere/pages"])
def test_an_address_that_cannot_be_written_is_one_line(page: Path, url: str) -> None:
    with pytest.raises(QubicLabError) as raised:
        publish(page, url)
    assert f"{page} is written, but not published to {url}: " in str(raised.value) and "\n" not in str(raised.value)


def announced(server: Receiving, add: Callable[..., Any], secret: str | None = None) -> list[float]:
    """Announce a week of one run, and return the pauses between attempts."""
    add(make_comparison())
    pauses: list[float] = []
    hook = Webhook(SecretStr(server.url), SecretStr(secret) if secret else None, timeout_s=60.0)
    announce(message(open_week("2026-W48"), "https://pages/2026-W48/index.html"), hook, pauses.append)
    return pauses


def test_a_week_is_announced_with_its_verdicts_and_signed(add_run: Callable[..., Any]) -> None:  # noqa: F811
    with receiving(204) as server:
        assert announced(server, add_run, "shared") == []
    (body,), (headers,) = server.bodies, server.headers
    told = json.loads(body)
    assert (told["week"], told["page"]) == ("2026-W48", "https://pages/2026-W48/index.html")
    assert told["text"].startswith("Qubic Lab, week 2026-W48: ") and told["text"].endswith(told["page"])
    signed = signature(SecretStr("shared"), int(headers["x-qubic-lab-timestamp"]), body)
    assert headers["x-qubic-lab-signature"] == f"sha256={signed}"


def test_what_fails_is_named(add_run: Callable[..., Any]) -> None:  # noqa: F811
    add_run(make_comparison())
    rows = tuple(Criterion(id, "what", "target").row("", id == "1.1") for id in ("1.1", "1.2", "1.3"))
    told = message(replace(open_week("2026-W48"), rows=rows), "page")
    assert told["text"] == "Qubic Lab, week 2026-W48: 1 criteria pass, 2 fail (1.2, 1.3). page"
    assert (told["verdicts"], told["failing"]) == ({"pass": 1, "fail": 2}, ["1.2", "1.3"])


def test_a_receiver_that_fails_is_asked_again_with_the_same_message(add_run: Callable[..., Any]) -> None:  # noqa: F811
    with receiving(503, 429, 200) as server:
        server.retry_after = "7"
        assert announced(server, add_run) == [7.0, 7.0]
    assert len(server.bodies) == 3 and len(set(server.bodies)) == 1
    assert len({headers["idempotency-key"] for headers in server.headers}) == 1


def test_attempts_and_pauses_have_a_limit(add_run: Callable[..., Any]) -> None:  # noqa: F811
    with receiving(500) as server:
        server.retry_after = "3600"
        with pytest.raises(
            QubicLabError, match=r"is written, but not announced: the webhook failed \(HTTP 500\), 4 ti"
        ):
            announced(server, add_run)
    assert len(server.bodies) == ATTEMPTS
    with receiving(404) as server, pytest.raises(QubicLabError, match=r"the webhook refused it \(HTTP 404\)") as raised:
        announced(server, add_run)
    assert len(server.bodies) == 1 and "T0pSecret" not in str(raised.value)


def test_the_webhook_comes_from_the_option_or_the_environment_and_needs_tls(set_settings: Callable[..., None]) -> None:
    assert announcer(None) is None
    set_settings(announce_webhook="https://hooks.example.org/T0pSecret", announce_secret="shared")
    hook = announcer(None)
    assert hook is not None and hook.secret is not None and hook.secret.get_secret_value() == "shared"
    assert "T0pSecret" not in repr(hook)
    with pytest.raises(InputError, match=r"^--announce would send in clear text: give https"):
        announcer("http://hooks.example.org/x")
    set_settings(announce_webhook="hooks.example.org/T0pSecret")
    with pytest.raises(InputError, match=r"^QUBIC_LAB_ANNOUNCE_WEBHOOK is no address"):
        announcer(None)


def test_the_command_publishes_then_announces_and_keeps_the_page_when_that_fails(
    add_run: Callable[..., Any],  # noqa: F811
    lab_root: Path,
    here: Run,
) -> None:
    add_run(make_comparison())
    page = lab_root / "reports" / "2026-W48" / "index.html"
    with receiving(200) as server:
        done = here(f"report --publish {lab_root / 'www'} --announce {server.url}")
    published = f"file://{lab_root}/www/2026-W48/index.html"
    assert (done.status, done.out.splitlines()) == (0, [str(page), published])
    assert json.loads(server.bodies[0])["page"] == published
    with receiving(410) as server:
        done = here(f"report --announce {server.url}")
    assert (done.status, done.out, done.err.count("\n")) == (1, f"{page}\n", 1)
    assert done.err.startswith(f"error: {page} is written, but not announced: the webhook refused it")
    told = here(f"report --publish {lab_root / 'www'} --json").json
    assert (told["page"], told["published"], told["week"]) == (str(page), published, "2026-W48")
    page.unlink()
    assert "--announce would send in clear text" in here("report --announce http://example.org/x").failed(2)
    assert not page.exists()
