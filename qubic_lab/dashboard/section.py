"""What pages are put together from: sections that say how old they are, panes of HTML, buttons; and their style."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import panel as pn

from qubic_lab.dashboard.charts import Chart
from qubic_lab.dashboard.rendering import render
from qubic_lab.dashboard.watch import Seen
from qubic_lab.runs.language import current_language, language

STYLE = resources.files("qubic_lab.dashboard").joinpath("style.css").read_text(encoding="utf-8")
PALETTES = {
    "light": "--ql-ink:#1c2733; --ql-paper:#fff; --ql-line:#d5dde2; --ql-deep:#0f5f6b; --ql-pale:#eef4f5; "
    "--ql-soft:#51616d; --ql-good:#1b7a5a; --ql-bad:#b3261e; color-scheme: light;",
    "dark": "--ql-ink:#e4ebef; --ql-paper:#141b21; --ql-line:#33414b; --ql-deep:#7fc7d2; --ql-pale:#1d2830; "
    "--ql-soft:#a3b1bb; --ql-good:#6fcf9f; --ql-bad:#ff8a80; color-scheme: dark;",
}
"""The colours of the themes; elsewhere, as in a notebook, parts have colours that are seen on white and on black."""
View = Callable[[Any, float], str]
"""Makes HTML of an answer, and of the time in seconds since it came."""


class Section:
    """A part of a tab: its title with the age of what it shows, its content, and perhaps a chart beneath."""

    def __init__(self, title: str, view: View | None = None, chart: Chart | None = None) -> None:
        self._title, self._view, self._chart = title, view, chart
        self._head, self._body = html(), html()
        self._drawn = drawn(chart) if chart else None
        self.column = stacked(self._head, *[self._body] * bool(view), *[self._drawn] * bool(chart))

    def update(self, now_s: float, seen: Seen) -> bool:
        """Show what was seen of the section's path; return whether there is an answer."""
        age_s = None if seen.at_s is None else now_s - seen.at_s
        put(self._head, render("head", title=self._title, seen=seen, age_s=age_s))
        if seen.value is None:
            return False
        if self._view:
            put(self._body, self._view(seen.value, age_s or 0.0))
        return True

    def draw(self, columns: dict[str, Any]) -> None:
        """Show columns in the chart, which is not seen while it has none."""
        assert self._chart is not None and self._drawn is not None
        self._chart.show(columns)
        self._drawn.visible = not self._chart.empty


def page_style(theme: str = "") -> str:
    """Return the style of a whole page: of a theme, or of that which the browser prefers."""
    body = resources.files("qubic_lab.dashboard").joinpath("page.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {PALETTES['dark']} }} }}"
    return f":root {{ {PALETTES[theme or 'light']} }} {'' if theme else dark} {body}"


def stacked(*parts: Any, **options: Any) -> Any:
    """Return parts one beneath the other, as wide as the page."""
    return pn.Column(*parts, sizing_mode="stretch_width", **options)


def html() -> Any:
    """Return a pane of HTML in the style of the page."""
    return pn.pane.HTML("", sizing_mode="stretch_width", stylesheets=[STYLE], margin=(0, 8))


def drawn(chart: Chart) -> Any:
    """Return a chart that is not seen yet."""
    return stacked(pn.pane.Bokeh(chart.drawing, sizing_mode="stretch_width"), visible=False)


def allow(controls: Any, note: Any, why_not: str) -> None:
    """Show controls, or instead of them in a pane why they cannot be used."""
    controls.visible = not why_not
    put(note, render("nothing", what=why_not) if why_not else "")


def put(pane: Any, text: str) -> None:
    """Change a pane if its text is another one."""
    if pane.object != text:
        pane.object = text


def button(name: str, act: Callable[[], Any], kind: str = "default") -> Any:
    """Return a button."""
    tag = current_language()
    made = pn.widgets.Button(name=name, button_type=kind, stylesheets=[STYLE], margin=(5, 5))

    async def clicked(_: Any) -> None:
        with language(tag):
            found = act()
            if inspect.isawaitable(found):
                await found

    made.on_click(clicked)
    return made


def select(name: str, options: Sequence[str] = (), **layout: Any) -> Any:
    """Return a choice of one of some options."""
    return pn.widgets.Select(name=name, options=list(options), stylesheets=[STYLE], **layout)


def offer(select: Any, options: Mapping[str, Any]) -> None:
    """Offer options by their labels: what is chosen stays, and without it the first is chosen."""
    if options != select.options:
        values = list(options.values())
        select.param.update(
            options=dict(options), value=select.value if select.value in values else (values or [None])[0]
        )
