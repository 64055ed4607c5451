"""The page in other forms: as a PDF, in a browser that loads it again, and the page over all weeks."""

import threading
from pathlib import Path
from urllib.request import urlopen

import pytest

from qubic_lab.errors import InputError
from qubic_lab.runs.language import language
from qubic_lab.runs.pdf import typeset
from qubic_lab.runs.serve import LOOPBACK, SCRIPT, open_server, serve_reports
from qubic_lab.runs.week_report import KEPT, SAMPLE, read_week
from qubic_lab.runs.weeks_page import write_weeks_page

REPORTS = Path(__file__).parents[1] / "reports"
MOST_PAGES = 12
PATIENCE_S = 60.0


def test_a_week_is_a_pdf_of_few_pages() -> None:
    report = read_week(REPORTS / SAMPLE / KEPT)
    (pdf,) = typeset(report, "pdf")
    assert pdf.startswith(b"%PDF")
    assert 2 < len(typeset(report, "svg")) <= MOST_PAGES


def test_a_language_without_a_font_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.runs.pdf.CHINESE", ("No Such Font",))
    with language("zh-TW"), pytest.raises(InputError, match="no font for zh-TW"):
        typeset(read_week(REPORTS / SAMPLE / KEPT), "pdf")


def test_a_page_is_served_with_a_script_that_is_not_in_its_file_and_told_of_changes(tmp_path: Path) -> None:
    page = tmp_path / "2026-W48" / "index.html"
    page.parent.mkdir()
    page.write_text("<p>one</p>")
    server = open_server(tmp_path, 0)
    address = f"http://{LOOPBACK}:{server.server_address[1]}"
    try:
        with urlopen(f"{address}/2026-W48/", timeout=PATIENCE_S) as answer:
            assert answer.read() == b"<p>one</p>" + SCRIPT
        with urlopen(f"{address}/events", timeout=PATIENCE_S) as events:
            assert events.readline().startswith(b":"), "the stream is open, and nothing has changed"
            page.write_text("<p>two</p>")
            assert b"data: changed\n" in iter(events.readline, b"")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match="port -1"):
        open_server(tmp_path, -1)


def test_pages_are_built_again_when_a_run_has_ended_until_ctrl_c(lab_root: Path) -> None:
    weeks = lab_root / "runs" / "weeks"
    weeks.mkdir(parents=True)
    told: list[str] = []

    def build() -> None:
        raise KeyboardInterrupt

    writer = threading.Timer(0.5, (weeks / "2026-W48.json").write_text, ["{}"])
    writer.start()
    serve_reports(0, build, told.append)
    assert told[0].startswith(f"http://{LOOPBACK}:")


def test_all_weeks_are_on_one_page_the_latest_first(lab_root: Path) -> None:
    kept = (REPORTS / SAMPLE / KEPT).read_text()
    week = read_week(REPORTS / SAMPLE / KEPT).week
    for name in ("2026-W40", "2026-W41", SAMPLE):
        folder = lab_root / "reports" / name
        folder.mkdir(parents=True)
        (folder / KEPT).write_text(kept.replace(f'"week":"{week}"', f'"week":"{name}"'))
    (lab_root / "reports" / "2026-W39").mkdir()
    (lab_root / "reports" / "2026-W39" / KEPT).write_text("{}")
    page = write_weeks_page().read_text()
    assert page.index("2026-W41/index.html") < page.index("2026-W40/index.html")
    assert "sample" not in page and "W39" not in page
    assert page.count('class="verdict') == 12
