"""The page: the tabs and a playground, made new each second."""

import asyncio
from collections.abc import Callable
from typing import Any

import panel as pn

from qubic_lab.dashboard import consensus_view
from qubic_lab.dashboard.charts import timeline_chart
from qubic_lab.dashboard.lab import Lab
from qubic_lab.dashboard.playground import Asking, spans, voter_spans
from qubic_lab.dashboard.rendering import render, vote_html
from qubic_lab.dashboard.section import STYLE, allow, button, drawn, html, put, stacked
from qubic_lab.dashboard.tabs import VOTING, ClusterTab, ConsensusTab, OracleTab
from qubic_lab.dashboard.traces import span_columns
from qubic_lab.dashboard.watch import STATUS, Watch
from qubic_lab.runs.language import ENGLISH, language, translated

UPDATE_MS, STREAM_S = 1_000, 0.1


class Playground:
    """A question, its answer as it comes, and where its time went; or a vote on it."""

    def __init__(self, lab: Lab, watch: Watch, why_not: Callable[[], str]) -> None:
        self._lab, self._watch, self._why_not = lab, watch, why_not
        self._question = pn.widgets.TextAreaInput(
            name=translated("question"),
            placeholder=translated("Why is the sky blue?"),
            rows=3,
            sizing_mode="stretch_width",
            stylesheets=[STYLE],
        )
        self._tokens = pn.widgets.IntInput(
            name=translated("tokens at most"), value=128, start=1, end=4_096, width=120, stylesheets=[STYLE]
        )
        self._temperature = pn.widgets.FloatInput(
            name=translated("temperature"), value=0.0, start=0.0, end=2.0, step=0.1, width=120, stylesheets=[STYLE]
        )
        self._ask_button = button(translated("Ask"), self._ask, "primary")
        self._vote_button = button(translated("Ask as a vote"), self._hold)
        self._stop_button = button(translated("Stop"), self._stop)
        self._answer, self._voices = html(), html()
        self._timeline = timeline_chart()
        self._drawn = drawn(self._timeline)
        self._asking: Asking | None = None
        self._parent, self._spans = "", 0
        self._columns: dict[str, list[Any]] | None = None
        options = pn.FlexBox(
            self._tokens, self._temperature, self._ask_button, self._vote_button, self._stop_button, align_items="end"
        )
        self._form = stacked(self._question, options)
        self._note = html()
        self.column = stacked(self._note, self._form, self._answer, self._drawn, self._voices)

    def update(self, now_s: float) -> None:
        """Draw the timeline of an answer that has ended; its text is shown as it comes.

        Charts may be changed here alone, where the page is held.
        """
        allow(self._form, self._note, self._why_not())
        spans = self._lab.traces.spans(self._parent) if self._parent and self._asking and self._asking.ended else ()
        if len(spans) > self._spans and any(span.rank is not None for span in spans):
            self._columns, self._spans = span_columns(spans), len(spans)
        if self._columns:
            self._timeline.drawing.y_range.factors = self._columns["what"][::-1]
            self._timeline.drawing.height = 60 + 24 * len(self._columns["what"])
            self._timeline.show({"spans": self._columns})
            self._columns, self._drawn.visible = None, True

    async def _ask(self) -> None:
        if asked := self._asked():
            parent = self._lab.traces.begin()
            self._parent, self._spans = parent, 0
            await self._show(asked[0], Asking().stream(lambda: self._lab.ask(*asked, parent)))

    async def _hold(self) -> None:
        if asked := self._asked():
            self._parent = ""
            await self._show(asked[0], Asking().vote(lambda: self._lab.vote(*asked)))

    def _stop(self) -> None:
        if self._asking:
            self._asking.stop()

    def _asked(self) -> tuple[str, int, float] | None:
        question = (self._question.value_input or self._question.value or "").strip()
        if self._why_not() or not question or (self._asking and not self._asking.ended):
            return None
        return question, self._tokens.value, self._temperature.value

    async def _show(self, question: str, asking: Asking) -> None:
        self._asking, self._drawn.visible = asking, False
        put(self._voices, "")
        while True:
            ended = asking.ended
            put(self._answer, render("answer", asking=asking, ended=ended))
            if asking.trail is None and not ended:
                running = (self._watch.see(VOTING).value or {"running": []})["running"]
                mine = [each for each in self._lab.follow(running).values() if each.question == question]
                views = (consensus_view.live_view(each.question, each.events) for each in mine)
                put(self._voices, "".join(map(vote_html, views)))
            if ended:
                break
            await asyncio.sleep(STREAM_S)
        if asking.trail:
            put(self._voices, vote_html(consensus_view.vote_view(asking.trail)))
        self._columns = spans(asking.trace) if asking.trace else voter_spans(asking.trail) if asking.trail else None


class Dashboard(pn.viewable.Viewer):
    """The page, in a browser or in a notebook's cell; it is made new each second, `updates` times, or for ever.

    `may_act` says whether the one who looks may ask and change; it is asked again and again.
    """

    def __init__(
        self, lab: Lab, watch: Watch, tag: str = ENGLISH, updates: int = 0, may_act: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__()
        self._lab, self._watch, self._tag, self._updates, self._may_act = lab, watch, tag, updates, may_act
        with language(tag):
            tabs: dict[str, Any] = {
                translated("Cluster"): ClusterTab(lab, watch, self._why_not),
                translated("Consensus"): ConsensusTab(lab, watch),
                translated("Oracle"): OracleTab(lab, watch),
                translated("Playground"): Playground(lab, watch, self._why_not),
            }
        self._tabs = list(tabs.values())
        self._shown = pn.Tabs(
            *((name, tab.column) for name, tab in tabs.items()), sizing_mode="stretch_width", stylesheets=[STYLE]
        )
        self._banner = html()
        self._page = stacked(self._banner, self._shown, max_width=1_100)
        self._begun = False

    def __panel__(self) -> Any:
        """Return the page, which is made new from now on."""
        if not self._begun:
            self._begun = True
            self.update()
            period_ms = max(20, round(UPDATE_MS * self._watch.pace))
            pn.state.add_periodic_callback(self.update, period_ms, count=self._updates or None)
        return self._page

    def _why_not(self) -> str:
        """Return why nothing can be asked or changed here; empty: it can."""
        if self._lab.read_only:
            return translated("This dashboard only reads.")
        if not self._may_act():
            return translated("Your token only reads: nothing can be asked or changed with it.")
        if (self._watch.see(STATUS).value or {}).get("read_only"):
            return translated("The token that this dashboard sends to the coordinator only reads.")
        return ""

    def update(self) -> None:
        """Show what is known now in the tab that is looked at."""
        now_s, status = self._watch.clock(), self._watch.see(STATUS)
        since_s = None if status.failing_since_s is None else now_s - status.failing_since_s
        ready = status.value["ready"] if status.value else None
        with language(self._tag):
            put(self._banner, render("banner", error=status.error, since_s=since_s, ready=ready))
            self._tabs[self._shown.active].update(now_s)
