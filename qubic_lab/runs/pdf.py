"""The weekly page as a PDF: the same values as in HTML, set by Typst on A4, for sending round and for paper."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from qubic_lab.errors import InputError
from qubic_lab.runs.cells import in_words
from qubic_lab.runs.first_screen import and_more
from qubic_lab.runs.language import ENGLISH, current_language, language, sentence_gap, translated_text
from qubic_lab.runs.language import translated as _
from qubic_lab.runs.page import ShownPicture, ShownTable, WeekPage, make_page
from qubic_lab.runs.picture import FONTS
from qubic_lab.runs.summary import SIGNS, change_word, describe_shift, interval_sentence
from qubic_lab.runs.week_index import days_of
from qubic_lab.runs.week_report import KEPT, WeekReport, read_week
from qubic_lab.studies.acceptance import AcceptanceRow, Verdict
from qubic_lab.studies.questions import Question

TEMPLATE = "report.typ"
LATIN = ("Libertinus Serif",)
"""Comes with Typst."""
CHINESE = (
    "Noto Serif CJK TC",
    "Noto Sans CJK TC",
    "Noto Serif TC",
    "Noto Sans TC",
    "Source Han Serif TC",
    "Source Han Sans TC",
    "PingFang TC",
    "Microsoft JhengHei",
    "PMingLiU",
    "AR PL UMing TW",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
)
"""Families that hold Traditional Chinese, the best first."""

Values = dict[str, Any]


def write_pdf(folder: Path, tag: str = ENGLISH) -> Path:
    """Write the PDF beside a page in a language, from the week that is kept there; return its path; see `build_pdf`."""
    report = read_week(folder / KEPT)
    file = folder / f"{report.week}.pdf"
    with language(tag):
        file.write_bytes(build_pdf(report))
    return file


def build_pdf(report: WeekReport) -> bytes:
    """Return a week as PDF, in the current language.

    Raises:
        InputError: no font of this machine holds the language's characters.
    """
    return b"".join(typeset(report, "pdf"))


def typeset(report: WeekReport, form: Literal["pdf", "png", "svg"]) -> list[bytes]:
    """Return a week as Typst sets it: one PDF, or each page as `png` or `svg`; raises as `build_pdf`."""
    import matplotlib
    import typst

    tag = current_language()
    chinese = _chinese_fonts(tag)
    page = make_page(report)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Without Chinese text a picture's font is that for which its texts were placed, and which comes with it.
        values = page_values(page, folder, chinese if tag.startswith("zh") else [])
        locale = dict(zip(("lang", "region"), tag.split("-"), strict=False))
        values |= {"fonts": [*LATIN, *chinese], "locale": locale}
        (folder / "page.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        template = files("qubic_lab.runs").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        own = [str(Path(matplotlib.get_data_path(), "fonts", "ttf"))]
        found = typst.compile(str(folder / TEMPLATE), root=name, format=form, font_paths=own)
    return [bytes(each) for each in found] if isinstance(found, list) else [bytes(found or b"")]


def page_values(page: WeekPage, folder: Path, fonts: Sequence[str] = ()) -> Values:
    """Return what the template sets, and write its pictures, in these fonts if any, into the folder."""
    report, first = page.report, page.first
    first_day, last_day = days_of(report.week)

    def picture(shown: ShownPicture) -> Values:
        file = f"{len(list(folder.iterdir()))}.svg"
        svg = shown.svg.replace(FONTS, ",".join([*fonts, FONTS]), 1)
        (folder / file).write_text(svg, encoding="utf-8")
        return {"file": file, "caption": shown.caption, "alt": shown.alt}

    return {
        "title": _("Week {number} of {year}", number=int(report.week[6:]), year=report.week[:4]),
        "subtitle": " · ".join((f"{first_day} – {last_day}", *first.machines, *first.models)),
        "notes": [note.text for note in first.notes],
        "rows": [
            {
                "verdict": _verdict(row.verdict),
                "label": _(row.question.label),
                "sentence": row.sentence.text,
                "figure": row.figure.text if row.figure else "",
                "trend": row.trend,
            }
            for row in first.rows
        ],
        "hero": picture(page.hero) if page.hero else None,
        "tiles": [
            {
                "verdict": _verdict(tile.verdict),
                "count": tile.count,
                "named": [*(f"{id} {name}" for id, name in tile.named), and_more(tile.more)],
            }
            for tile in first.tiles
        ],
        "answers": [{"asked": answer.asked, "said": [each.text for each in answer.said]} for answer in page.answers],
        "sections": [
            {
                "asks": _(section.row.question.asks),
                "verdict": _verdict(section.row.verdict),
                "criteria": section.criteria.text if section.criteria else "",
                "paragraph": sentence_gap().join(sentence.text for sentence in section.paragraph),
                "pictures": [picture(each) for each in section.pictures],
                "table": _table(section.table) if section.table else None,
                "notes": [note.text for note in section.notes],
                "limits": _limits(section.row.question),
            }
            for section in page.sections
        ],
        "tables": list(_tables(report)),
    }


def _limits(question: Question) -> str:
    return f"{_('What this does not show:')} {_(question.limits)}" if question.limits else ""


def _verdict(verdict: Verdict) -> Values:
    sign, kind = SIGNS[verdict]
    return {"sign": sign, "kind": kind, "name": _(verdict)}


def _table(shown: ShownTable) -> Values:
    columns = [{"heading": column.heading, "kind": column.kind} for column in shown.columns]
    more = _("More rows on the page: {count}.", count=shown.more) if shown.more else ""
    return {"columns": columns, "rows": shown.rows, "caption": f"{shown.caption} {more}".strip()}


def _tables(report: WeekReport) -> Iterator[Values]:
    """Yield the acceptance table, what has changed, and where the numbers are from."""
    judged = [
        (row.id, *map(translated_text, (row.what, row.target, row.measured or "–")), _judged(row))
        for row in report.rows
        if row.measurable
    ]
    yield _plain(_("Acceptance"), ("", _("What"), _("Target"), _("Measured"), _("Verdict")), judged, "npppp")
    changed = [
        (
            *map(in_words, (each.study, each.measure)),
            each.earlier_week or "–",
            describe_shift(each.judgement.shift),
            _(change_word(each)),
        )
        for each in report.changes
        if each.judgement.shift
    ]
    if changed:
        head = (_("Study"), _("Measure"), _("Compared with"), _("Change"), _("Verdict"))
        yield _plain(_("Change"), head, changed, "ppttt", interval_sentence(report.changes))
    runs = [
        (
            run.name,
            run.manifest.started_utc[:16].replace("T", " "),
            run.manifest.commit[:12],
            f"{run.manifest.seconds:.0f} s",
        )
        for run in report.runs
        if run.manifest
    ]
    columns = (_("Run"), _("Began (UTC)"), _("Commit"), _("Took"))
    yield _plain(_("Where the numbers come from"), columns, runs, "pttt")


def _judged(row: AcceptanceRow) -> str:
    verdict = f"{SIGNS[row.verdict][0]} {_(row.verdict)}"
    return f"{verdict}: {translated_text(row.reason)}" if row.reason else verdict


def _plain(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], kinds: str, note: str = "") -> Values:
    names = {"n": "number", "p": "prose", "s": "short", "t": "tight"}
    columns = [{"heading": text, "kind": names[kind]} for text, kind in zip(head, kinds, strict=True)]
    return {"heading": title, "columns": columns, "rows": rows, "caption": "", "notes": [note] if note else []}


def _chinese_fonts(tag: str) -> list[str]:
    """Return the families of this machine that hold Traditional Chinese.

    Raises:
        InputError: the language takes them, and there is none.
    """
    import typst

    found = [family for family in CHINESE if family in typst.Fonts().families()]
    if not found and tag.startswith("zh"):
        raise InputError(f"no font for {tag} is on this machine: install one, such as {CHINESE[0]}")
    return found
