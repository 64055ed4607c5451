"""The page: three tabs and a playground, made new where something has changed; the one module that knows Panel."""

import asyncio
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any
from urllib.parse import urlencode

import panel as pn

from qubic_lab.dashboard import cluster_view, consensus_view, oracle_view
from qubic_lab.dashboard.charts import Chart, confidence_chart, news_chart, price_chart, rate_chart, timeline_chart
from qubic_lab.dashboard.lab import METRICS, NODES, Lab
from qubic_lab.dashboard.playground import Asking, spans, voter_spans
from qubic_lab.dashboard.rendering import render
from qubic_lab.dashboard.watch import STATUS, Seen, Watch
from qubic_lab.errors import QubicLabError
from qubic_lab.runs.language import ENGLISH, current_language, language, translated

UPDATE_MS, STREAM_S = 1_000, 0.1
TASKS, VOTES, MODES = "/api/cluster/tasks", "/api/consensus/history?limit=50", "/api/consensus/metrics"
VOTING, ALERTS, MARKET = "/api/consensus/status", "/api/oracle/alerts?limit=20", "/api/oracle/market_overview"
DAY_S = 86_400
FRAMES = ["1h", "4h", "1d"]
STYLE = resources.files("qubic_lab.dashboard").joinpath("style.css").read_text(encoding="utf-8")
PALETTES = {
    "light": "--ql-ink:#1c2733; --ql-paper:#fff; --ql-line:#d5dde2; --ql-deep:#0f5f6b; --ql-pale:#eef4f5; "
    "--ql-soft:#51616d; --ql-good:#1b7a5a; --ql-bad:#b3261e; color-scheme: light;",
    "dark": "--ql-ink:#e4ebef; --ql-paper:#141b21; --ql-line:#33414b; --ql-deep:#7fc7d2; --ql-pale:#1d2830; "
    "--ql-soft:#a3b1bb; --ql-good:#6fcf9f; --ql-bad:#ff8a80; color-scheme: dark;",
}
"""The colours of the themes; elsewhere, as in a notebook, parts have colours that are seen on white and on black."""
View = Callable[[list[Any], float], str]
"""Makes HTML of the answers of a section's paths, and of the time in seconds since the first of them came."""


class Section:
    """A part of a tab: its title with the age of what it shows, its content, and perhaps a chart beneath."""

    def __init__(self, title: str, view: View | None = None, chart: Chart | None = None) -> None:
        self._title, self._view, self.chart = title, view, chart
        self._head, self._body = html(), html()
        parts = [self._head, *([self._body] if view else [])]
        parts += [pn.pane.Bokeh(chart.drawing, sizing_mode="stretch_width")] if chart else []
        self.column = pn.Column(*parts, sizing_mode="stretch_width")

    def update(self, now_s: float, *seen: Seen) -> bool:
        """Show what was seen of the section's paths; return whether all of them have an answer."""
        first = next((each for each in seen if each.error), seen[0])
        put(self._head, render("head", title=self._title, seen=first, age_s=age_of(first, now_s)))
        if any(each.value is None for each in seen):
            return False
        if self._view:
            put(self._body, self._view([each.value for each in seen], age_of(seen[0], now_s) or 0.0))
        return True


def page_style(theme: str = "") -> str:
    """Return the style of a whole page: of a theme, or of that which the browser prefers."""
    body = resources.files("qubic_lab.dashboard").joinpath("page.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {PALETTES['dark']} }} }}"
    return f":root {{ {PALETTES[theme or 'light']} }} {'' if theme else dark} {body}"


def html(text: str = "") -> Any:
    """Return a pane of HTML in the style of the page."""
    return pn.pane.HTML(text, sizing_mode="stretch_width", stylesheets=[STYLE], margin=(0, 8))


def put(pane: Any, text: str) -> None:
    """Change a pane if its text is another one."""
    if pane.object != text:
        pane.object = text


def age_of(seen: Seen, now_s: float) -> float | None:
    """Return how old an answer is; None: there is none."""
    return None if seen.at_s is None else now_s - seen.at_s


class ClusterTab:
    """Nodes, queue, latency, speed and errors; drain and return, after a second click."""

    def __init__(self, lab: Lab, watch: Watch) -> None:
        self._lab, self._watch = lab, watch
        self._nodes = Section(translated("Nodes"), _nodes)
        self._tasks = Section(translated("Queue"), _tasks)
        self._latency = Section(translated("Time to an answer, last five minutes"), _latency)
        self._rates = Section(translated("Speed of all nodes"), chart=rate_chart())
        self._node = pn.widgets.Select(name=translated("node"), options=[], width=160, stylesheets=[STYLE])
        self._drain = button(translated("Drain"), lambda: self._ask(True))
        self._return = button(translated("Return"), lambda: self._ask(False))
        self._sure, self._said = html(), html()
        self._yes = button(translated("Yes"), self._do, "danger")
        self._no = button(translated("No"), self._close)
        self._confirm = pn.Row(self._sure, self._yes, self._no, visible=False, sizing_mode="stretch_width")
        self._draining = False
        manage = pn.FlexBox(self._node, self._drain, self._return, align_items="end")
        managed = [] if lab.read_only else [manage, self._confirm, self._said]
        sections = [self._nodes.column, *managed, self._tasks.column, self._latency.column, self._rates.column]
        self.column = pn.Column(*sections, sizing_mode="stretch_width")

    def update(self, now_s: float) -> None:
        """Show the cluster as it is known."""
        nodes, counts = self._watch.see(NODES), self._watch.see(METRICS)
        self._nodes.update(now_s, nodes)
        self._tasks.update(now_s, self._watch.see(TASKS))
        recent = Seen(self._watch.course(METRICS) or None, counts.at_s, counts.error)
        self._latency.update(now_s, recent)
        if self._rates.update(now_s, nodes) and self._rates.chart:
            rates = cluster_view.token_rates(self._watch.course(NODES))
            ahead_s = time.time() - now_s
            at = [1e3 * (at_s + ahead_s) for at_s in rates["at_s"]]
            self._rates.chart.show({"rates": {"at": [round(each, -2) for each in at], "tokens_per_s": rates["tokens_per_s"]}})
        names = sorted(each["name"] for each in nodes.value or ())
        if names != self._node.options:
            self._node.options = names

    def _ask(self, draining: bool) -> None:
        if not self._node.value:
            return
        self._draining = draining
        what = translated("It finishes its requests and gets no new ones.") if draining else translated("It gets requests again.")
        put(self._sure, render("sure", node=self._node.value, what=what))
        put(self._said, "")
        self._confirm.visible = True

    def _close(self) -> None:
        self._confirm.visible = False

    async def _do(self) -> None:
        self._close()
        try:
            await asyncio.to_thread(self._lab.drain, self._node.value, self._draining)
            put(self._said, render("said", error="", done=self._node.value))
        except QubicLabError as error:
            put(self._said, render("said", error=str(error), done=""))
        self._watch.hurry(NODES, STATUS)


class ConsensusTab:
    """Votes as they fall, those that were held, and how sure and how right they were."""

    def __init__(self, lab: Lab, watch: Watch) -> None:
        self._lab, self._watch = lab, watch
        self._live = Section(translated("Votes that are being held"), self._show_live)
        self._held = Section(translated("Bands of confidence"), _votes)
        self._chart = Section(translated("Confidence against outcome"), chart=confidence_chart())
        self._modes = Section(translated("All answers by mode"), lambda values, _: render("modes", modes=values[0]))
        self._which = pn.widgets.Select(name=translated("vote"), options={}, sizing_mode="stretch_width", stylesheets=[STYLE])
        self._vote = Section(translated("The vote"), lambda values, _: render("vote", vote=consensus_view.vote_view(values[0]), open=True))
        sections = [self._live, self._held, self._chart, self._modes]
        self.column = pn.Column(*(each.column for each in sections), self._which, self._vote.column, sizing_mode="stretch_width")

    def update(self, now_s: float) -> None:
        """Show the votes as they are known."""
        self._live.update(now_s, self._watch.see(VOTING))
        page = self._watch.see(VOTES)
        self._held.update(now_s, page)
        if self._chart.update(now_s, page) and self._chart.chart:
            self._chart.chart.show({"votes": consensus_view.confidence_columns(page.value["votes"])})
        self._modes.update(now_s, self._watch.see(MODES))
        votes = {f"{each['question'][:60]} ({each['created_utc'][11:19]})": each["id"] for each in (page.value or {"votes": []})["votes"]}
        if votes != self._which.options:
            self._which.options = votes
        if self._which.value:
            self._vote.update(now_s, self._watch.see(f"/api/consensus/history/{self._which.value}"))

    def _show_live(self, values: list[Any], _: float) -> str:
        followed = self._lab.follow(values[0]["running"])
        views = [consensus_view.live_view(each.question, each.events) for each in followed.values()]
        return "".join(render("vote", vote=each, open=True) for each in views) or render("nothing", what=translated("None now."))


class OracleTab:
    """Prices with what they say, texts, forecasts, what was unusual, and risk with its evidence."""

    def __init__(self, lab: Lab, watch: Watch) -> None:
        self._lab, self._watch = lab, watch
        self._coin = pn.widgets.Select(name=translated("coin"), options={}, width=160, stylesheets=[STYLE])
        self._frame = pn.widgets.Select(name=translated("bars"), options=FRAMES, width=90, stylesheets=[STYLE])
        self._where = html()
        self._price = Section(translated("Price"), lambda values, waited_s: render("price", price=values[0], waited_s=waited_s))
        self._charts = {frame: Section(translated("Candles of closed bars"), chart=price_chart(oracle_view.body_ms(frame))) for frame in FRAMES}
        self._candles = pn.Column(sizing_mode="stretch_width")
        self._forecasts = Section(translated("Forecasts, and what came of earlier ones"), _forecasts)
        self._risk = Section(translated("Risk"), lambda values, _: render("risk", risk=values[0]))
        self._unusual = Section(translated("Unusual bars, breakouts, patterns"), _unusual)
        self._indicators = Section(translated("Indicators"), lambda values, _: render("indicators", price=values[0]))
        self._mood = Section(translated("Sentiment of a week"), _mood, news_chart())
        self._texts = Section(translated("News and posts"), lambda values, _: render("texts", texts=values[0]["texts"]))
        self._alerts = Section(translated("Alerts"), lambda values, _: render("alerts", alerts=values[0]["alerts"]))
        chosen = pn.FlexBox(self._coin, self._frame)
        first = [self._price.column, self._candles]
        rest = [self._forecasts, self._risk, self._unusual, self._mood, self._texts, self._alerts, self._indicators]
        self.column = pn.Column(chosen, self._where, *first, *(each.column for each in rest), sizing_mode="stretch_width")

    def update(self, now_s: float) -> None:
        """Show the market as it is known."""
        market = self._watch.see(MARKET)
        put(self._where, render("where", local=self._lab.oracle_is_local, error=market.error))
        coins = {f"{each['name']} ({each['symbol']})": each["coin"] for each in (market.value or {"coins": []})["coins"]}
        if coins != self._coin.options:
            self._coin.options = coins
        if not self._coin.value:
            return
        coin, frame = self._coin.value, self._frame.value
        asked = urlencode({"coin": coin, "frame": frame})
        price = self._watch.see(f"/api/oracle/price_analysis?{asked}")
        for section in (self._price, self._forecasts, self._unusual, self._indicators):
            section.update(now_s, price)
        chart = self._charts[frame]
        if self._candles.objects != [chart.column]:
            self._candles.objects = [chart.column]
        if chart.update(now_s, price) and chart.chart:
            chart.chart.show(_candle_columns(price.value))
            if then := oracle_view.day_before(price.value):
                earlier = self._watch.see(f"/api/oracle/price_analysis?{asked}&as_of={then}&assumed=true")
                if earlier.value:
                    chart.chart.show({"then": oracle_view.forecast_columns(earlier.value)})
        self._risk.update(now_s, self._watch.see(f"/api/oracle/risk?{asked}"))
        mood = self._watch.see(f"/api/oracle/sentiment?coin={coin}&window=7d")
        if self._mood.update(now_s, mood) and self._mood.chart:
            self._mood.chart.show({"news": oracle_view.news_columns(mood.value)})
        self._texts.update(now_s, self._watch.see(f"/api/oracle/texts?coin={coin}&limit=15"))
        self._alerts.update(now_s, self._watch.see(ALERTS))


class Playground:
    """A question, its answer as it comes, and where its time went; or a vote on it."""

    def __init__(self, lab: Lab, watch: Watch) -> None:
        self._lab, self._watch = lab, watch
        self._question = pn.widgets.TextAreaInput(
            name=translated("question"), placeholder=translated("Why is the sky blue?"), rows=3, sizing_mode="stretch_width", stylesheets=[STYLE]
        )
        self._tokens = pn.widgets.IntInput(name=translated("tokens at most"), value=128, start=1, end=4_096, width=120, stylesheets=[STYLE])
        self._temperature = pn.widgets.FloatInput(name=translated("temperature"), value=0.0, start=0.0, end=2.0, step=0.1, width=120, stylesheets=[STYLE])
        self._ask_button = button(translated("Ask"), self._ask, "primary")
        self._vote_button = button(translated("Ask as a vote"), self._hold)
        self._stop_button = button(translated("Stop"), self._stop)
        self._answer, self._voices = html(), html()
        self._timeline = timeline_chart()
        self._drawn = pn.pane.Bokeh(self._timeline.drawing, sizing_mode="stretch_width", visible=False)
        self._asking: Asking | None = None
        options = pn.FlexBox(self._tokens, self._temperature, self._ask_button, self._vote_button, self._stop_button, align_items="end")
        parts = [html(render("nothing", what=translated("This dashboard only reads.")))] if lab.read_only else [self._question, options]
        self.column = pn.Column(*parts, self._answer, self._drawn, self._voices, sizing_mode="stretch_width")

    def update(self, now_s: float) -> None:
        """Do nothing: an answer is shown as it comes."""

    async def _ask(self) -> None:
        if asked := self._asked():
            await self._show(asked[0], Asking().stream(lambda: self._lab.ask(*asked)))

    async def _hold(self) -> None:
        if asked := self._asked():
            await self._show(asked[0], Asking().vote(lambda: self._lab.vote(*asked)))

    def _stop(self) -> None:
        if self._asking:
            self._asking.stop()

    def _asked(self) -> tuple[str, int, float] | None:
        question = (self._question.value_input or self._question.value or "").strip()
        if not question or (self._asking and not self._asking.ended):
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
                put(self._voices, "".join(render("vote", vote=consensus_view.live_view(each.question, each.events), open=True) for each in mine))
            if ended:
                break
            await asyncio.sleep(STREAM_S)
        if asking.trail:
            put(self._voices, render("vote", vote=consensus_view.vote_view(asking.trail), open=True))
        columns = spans(asking.trace) if asking.trace else voter_spans(asking.trail) if asking.trail else None
        if columns:
            self._timeline.drawing.y_range.factors = columns["what"][::-1]
            self._timeline.show({"spans": columns})
            self._drawn.visible = True


class Dashboard(pn.viewable.Viewer):
    """The page, in a browser or in a notebook's cell; it is made new each second, `updates` times (0: without an end)."""

    def __init__(self, lab: Lab, watch: Watch, tag: str = ENGLISH, updates: int = 0) -> None:
        super().__init__()
        self._watch, self._tag, self._updates = watch, tag, updates
        with language(tag):
            tabs = {
                translated("Cluster"): ClusterTab(lab, watch),
                translated("Consensus"): ConsensusTab(lab, watch),
                translated("Oracle"): OracleTab(lab, watch),
                translated("Playground"): Playground(lab, watch),
            }
        self._tabs = list(tabs.values())
        self._shown = pn.Tabs(*((name, tab.column) for name, tab in tabs.items()), sizing_mode="stretch_width", stylesheets=[STYLE])
        self._banner = html()
        self._page = pn.Column(self._banner, self._shown, sizing_mode="stretch_width", max_width=1_100)
        self._begun = False

    def __panel__(self) -> Any:
        """Return the page, which is made new from now on."""
        if not self._begun:
            self._begun = True
            self.update()
            period_ms = max(20, round(UPDATE_MS * self._watch.pace))
            pn.state.add_periodic_callback(self.update, period_ms, count=self._updates or None)
        return self._page

    def update(self) -> None:
        """Show what is known now in the tab that is looked at."""
        now_s, status = self._watch.clock(), self._watch.see(STATUS)
        since_s = None if status.failing_since_s is None else now_s - status.failing_since_s
        ready = status.value["ready"] if status.value else None
        with language(self._tag):
            put(self._banner, render("banner", error=status.error, since_s=since_s, ready=ready))
            self._tabs[self._shown.active].update(now_s)


def button(name: str, act: Callable[[], Any], kind: str = "default") -> Any:
    """Return a button."""
    tag = current_language()
    made = pn.widgets.Button(name=name, button_type=kind, stylesheets=[STYLE], margin=(5, 5))

    async def clicked(_: Any) -> None:
        with language(tag):
            found = act()
            if found is not None:
                await found

    made.on_click(clicked)
    return made


def _nodes(values: list[Any], waited_s: float) -> str:
    return render("nodes", rows=cluster_view.node_rows(values[0]), waited_s=waited_s)


def _tasks(values: list[Any], _: float) -> str:
    return render("tasks", tasks=values[0], states=cluster_view.STATES)


def _latency(values: list[Any], _: float) -> str:
    course = values[0]
    return render("latency", found=cluster_view.recent_percentiles(course), errors=course[-1][1].errors)


def _votes(values: list[Any], _: float) -> str:
    votes = values[0]["votes"]
    conflicts = sum(each["conflict"] for each in votes)
    return render("votes", votes=votes, bands=consensus_view.bands(votes), conflicts=conflicts, most=50)


def _forecasts(values: list[Any], _: float) -> str:
    return render("forecasts", price=values[0], rows=oracle_view.forecast_rows(values[0]))


def _unusual(values: list[Any], _: float) -> str:
    return render("unusual", found=oracle_view.unusual(values[0]), reasons=oracle_view.reasons(values[0]))


def _mood(values: list[Any], waited_s: float) -> str:
    return render("sentiment", mood=values[0], waited_s=waited_s)


def _candle_columns(price: Any) -> dict[str, Any]:
    return {
        "bars": oracle_view.candles(price),
        "forecasts": oracle_view.forecast_columns(price),
        "levels": oracle_view.levels(price),
        "marks": oracle_view.unusual_columns(price),
    }
