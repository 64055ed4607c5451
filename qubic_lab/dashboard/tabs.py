"""The tabs of the page: each shows in its sections what the watch has seen."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import panel as pn

from qubic_lab.dashboard import cluster_view, consensus_view, oracle_view
from qubic_lab.dashboard.charts import confidence_chart, news_chart, price_chart, rate_chart
from qubic_lab.dashboard.lab import METRICS, NODES, Lab
from qubic_lab.dashboard.rendering import render, vote_html
from qubic_lab.dashboard.section import Section, allow, button, html, offer, put, select, stacked
from qubic_lab.dashboard.watch import STATUS, Seen, Watch
from qubic_lab.errors import QubicLabError, RefusedError
from qubic_lab.runs.language import translated

TASKS, VOTES, MODES = "/api/cluster/tasks", "/api/consensus/history?limit=50", "/api/consensus/metrics"
VOTING, ALERTS, MARKET = "/api/consensus/status", "/api/oracle/alerts?limit=20", "/api/oracle/market_overview"
DAY_S = 86_400
FRAMES = ["1h", "4h", "1d"]


class ClusterTab:
    """Nodes, queue, latency, speed and errors; drain and return, after a second click."""

    def __init__(self, lab: Lab, watch: Watch, why_not: Callable[[], str]) -> None:
        self._lab, self._watch, self._why_not = lab, watch, why_not
        self._nodes = Section(translated("Nodes"), _nodes)
        states = cluster_view.STATES
        self._tasks = Section(translated("Queue"), lambda tasks, _: render("tasks", tasks=tasks, states=states))
        self._latency = Section(translated("Time to an answer, last five minutes"), _latency)
        self._rates = Section(translated("Speed of all nodes"), chart=rate_chart())
        self._node = select(translated("node"), width=160)
        self._drain = button(translated("Drain"), lambda: self._ask(True))
        self._return = button(translated("Return"), lambda: self._ask(False))
        self._sure, self._said = html(), html()
        self._yes = button(translated("Yes"), self._do, "danger")
        self._no = button(translated("No"), self._close)
        self._confirm = pn.Row(self._sure, self._yes, self._no, visible=False, sizing_mode="stretch_width")
        self._draining = False
        choice = pn.FlexBox(self._node, self._drain, self._return, align_items="end")
        self._manage = stacked(choice, self._confirm, self._said)
        self._note = html()
        sections = [self._tasks.column, self._latency.column, self._rates.column]
        self.column = stacked(self._nodes.column, self._note, self._manage, *sections)

    def update(self, now_s: float) -> None:
        """Show the cluster as it is known."""
        allow(self._manage, self._note, self._why_not())
        nodes, counts = self._watch.see(NODES), self._watch.see(METRICS)
        self._nodes.update(now_s, nodes)
        self._tasks.update(now_s, self._watch.see(TASKS))
        recent = Seen(self._watch.course(METRICS) or None, counts.at_s, counts.error)
        self._latency.update(now_s, recent)
        if self._rates.update(now_s, nodes):
            rates = cluster_view.token_rates(self._watch.course(NODES))
            ahead_s = time.time() - now_s
            at = [1e3 * (at_s + ahead_s) for at_s in rates["at_s"]]
            self._rates.draw({"rates": {"at": [round(each, -2) for each in at], "tokens_per_s": rates["tokens_per_s"]}})
        offer(self._node, {name: name for name in sorted(each["name"] for each in nodes.value or ())})

    def _ask(self, draining: bool) -> None:
        if not self._node.value:
            return
        self._draining = draining
        what = translated("It gets requests again.")
        if draining:
            what = translated("It finishes its requests and gets no new ones.")
        put(self._sure, render("sure", node=self._node.value, what=what))
        put(self._said, "")
        self._confirm.visible = True

    def _close(self) -> None:
        self._confirm.visible = False

    async def _do(self) -> None:
        self._close()
        try:
            if why_not := self._why_not():
                raise RefusedError(why_not)
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
        self._chart = Section(translated("Confidence against outcome"), _confidence, confidence_chart())
        self._modes = Section(translated("All answers by mode"), lambda modes, _: render("modes", modes=modes))
        self._which = select(translated("vote"), sizing_mode="stretch_width")
        self._vote = Section(translated("The vote"), lambda trail, _: vote_html(consensus_view.vote_view(trail)))
        sections = [self._live, self._held, self._chart, self._modes]
        self.column = stacked(*(each.column for each in sections), self._which, self._vote.column)

    def update(self, now_s: float) -> None:
        """Show the votes as they are known."""
        self._live.update(now_s, self._watch.see(VOTING))
        page = self._watch.see(VOTES)
        self._held.update(now_s, page)
        if self._chart.update(now_s, page):
            self._chart.draw({"votes": consensus_view.confidence_columns(page.value["votes"])})
        self._modes.update(now_s, self._watch.see(MODES))
        votes = {
            f"{each['question'][:60]} ({each['created_utc'][11:19]})": each["id"]
            for each in (page.value or {"votes": []})["votes"]
        }
        offer(self._which, votes)
        if self._which.value:
            self._vote.update(now_s, self._watch.see(f"/api/consensus/history/{self._which.value}"))

    def _show_live(self, voting: Any, _: float) -> str:
        followed = self._lab.follow(voting["running"])
        views = [consensus_view.live_view(each.question, each.events) for each in followed.values()]
        return "".join(map(vote_html, views)) or render("nothing", what=translated("None now."))


class OracleTab:
    """Prices with what they say, texts, forecasts, what was unusual, and risk with its evidence."""

    def __init__(self, lab: Lab, watch: Watch) -> None:
        self._lab, self._watch = lab, watch
        self._coin = select(translated("coin"), width=160)
        self._frame = select(translated("bars of"), FRAMES, width=90)
        self._where = html()
        self._price = Section(translated("Price"), lambda price, age_s: render("price", price=price, waited_s=age_s))
        self._charts = {
            frame: Section(translated("Candles of closed bars"), chart=price_chart(oracle_view.body_ms(frame)))
            for frame in FRAMES
        }
        self._candles = stacked()
        self._forecasts = Section(translated("Forecasts, and what came of earlier ones"), _forecasts)
        self._risk = Section(translated("Risk"), lambda risk, _: render("risk", risk=risk))
        self._unusual = Section(translated("Unusual bars, breakouts, patterns"), _unusual)
        self._indicators = Section(translated("Indicators"), lambda price, _: render("indicators", price=price))
        self._mood = Section(translated("Sentiment of a week"), _mood, news_chart())
        self._texts = Section(translated("News and posts"), lambda page, _: render("texts", texts=page["texts"]))
        self._alerts = Section(translated("Alerts"), lambda page, _: render("alerts", alerts=page["alerts"]))
        chosen = pn.FlexBox(self._coin, self._frame)
        first = [self._price.column, self._candles]
        rest = [self._forecasts, self._risk, self._unusual, self._mood, self._texts, self._alerts, self._indicators]
        self.column = stacked(chosen, self._where, *first, *(each.column for each in rest))

    def update(self, now_s: float) -> None:
        """Show the market as it is known."""
        market = self._watch.see(MARKET)
        put(self._where, render("where", local=self._lab.oracle_is_local, error=market.error))
        coins = {
            f"{each['name']} ({each['symbol']})": each["coin"] for each in (market.value or {"coins": []})["coins"]
        }
        offer(self._coin, coins)
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
        if chart.update(now_s, price):
            chart.draw(_candle_columns(price.value))
            if then := oracle_view.day_before(price.value):
                earlier = self._watch.see(f"/api/oracle/price_analysis?{asked}&as_of={then}&assumed=true")
                if earlier.value:
                    chart.draw({"then": oracle_view.forecast_columns(earlier.value)})
        self._risk.update(now_s, self._watch.see(f"/api/oracle/risk?{asked}"))
        mood = self._watch.see(f"/api/oracle/sentiment?coin={coin}&window=7d")
        if self._mood.update(now_s, mood):
            self._mood.draw({"news": oracle_view.news_columns(mood.value)})
        self._texts.update(now_s, self._watch.see(f"/api/oracle/texts?coin={coin}&limit=15"))
        self._alerts.update(now_s, self._watch.see(ALERTS))


def _nodes(nodes: Any, waited_s: float) -> str:
    return render("nodes", rows=cluster_view.node_rows(nodes), waited_s=waited_s)


def _latency(course: Any, _: float) -> str:
    return render("latency", found=cluster_view.recent_percentiles(course), errors=course[-1][1].errors)


def _votes(page: Any, _: float) -> str:
    votes = page["votes"]
    conflicts = sum(each["conflict"] for each in votes)
    return render("votes", votes=votes, bands=consensus_view.bands(votes), conflicts=conflicts, most=50)


def _confidence(page: Any, _: float) -> str:
    known = any(each["confidence"] is not None for each in page["votes"])
    return "" if known else render("nothing", what=translated("No vote has a confidence: they are not calibrated yet."))


def _forecasts(price: Any, _: float) -> str:
    return render("forecasts", price=price, rows=oracle_view.forecast_rows(price))


def _unusual(price: Any, _: float) -> str:
    return render("unusual", found=oracle_view.unusual(price), reasons=oracle_view.reasons(price))


def _mood(mood: Any, waited_s: float) -> str:
    return render("sentiment", mood=mood, waited_s=waited_s)


def _candle_columns(price: Any) -> dict[str, Any]:
    return {
        "bars": oracle_view.candles(price),
        "forecasts": oracle_view.forecast_columns(price),
        "levels": oracle_view.levels(price),
        "marks": oracle_view.unusual_columns(price),
    }
