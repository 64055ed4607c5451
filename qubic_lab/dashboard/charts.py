"""Charts that can be zoomed and say their values, and the columns that they are drawn from.

Their colours are seen on white and on black, and their grounds are transparent, so that a page may change its theme.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.layouts import column
from bokeh.models import ColumnDataSource, HoverTool, LinearAxis, NoOverlap, Range1d
from bokeh.plotting import figure

from qubic_lab.dashboard.oracle_view import TIMELINE, Columns
from qubic_lab.runs.language import translated

INK, LINE, DEEP, WARM = "#7b8a95", "#8a99a355", "#1f9aa8", "#e07a3f"
TOOLS = "xpan,xwheel_zoom,box_zoom,reset,save"
HEIGHT = 240
SPAN_OF_ONE_MS = 60_000
"""How much time a chart shows around a single value."""


@dataclass(frozen=True)
class Chart:
    """A drawing, and its sources of columns by their names; without the first of them there is nothing to see."""

    drawing: Any
    sources: Mapping[str, ColumnDataSource]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any(map(len, next(iter(self.sources.values())).data.values()))

    def show(self, columns: Mapping[str, Columns]) -> None:
        """Show columns, by the names of the sources; those that are not named stay as they are."""
        for name, data in columns.items():
            if repr(self.sources[name].data) != repr(dict(data)):
                self.sources[name].data = data


def rate_chart() -> Chart:
    """Return the chart of the tokens/s of all nodes over time."""
    rates = _source("at", "tokens_per_s")
    plot = _plot(translated("tokens/s"), 160, [("tokens/s", "@tokens_per_s{0.0}"), (translated("time"), "@at{%T}")])
    plot.y_range.start = 0
    plot.varea("at", 0, "tokens_per_s", source=rates, fill_color=DEEP, fill_alpha=0.2)
    plot.line("at", "tokens_per_s", source=rates, color=DEEP, line_width=2)
    return Chart(plot, {"rates": rates})


def confidence_chart() -> Chart:
    """Return the chart of the confidence of votes over time, with their outcome."""
    votes = _source("at", "confidence", "outcome", "color", "question", "level")
    said = [(translated("question"), "@question"), (translated("confidence"), "@confidence{0 %}")]
    plot = _plot(translated("confidence"), HEIGHT, [*said, (translated("outcome"), "@outcome"), ("", "@level")])
    plot.y_range = Range1d(-0.05, 1.05)
    plot.scatter("at", "confidence", source=votes, size=10, color="color", alpha=0.8, legend_group="outcome")
    _calm_legend(plot)
    return Chart(plot, {"votes": votes})


def price_chart(body_ms: float) -> Chart:
    """Return the chart of candles with bands, levels, forecasts and marks, and the volume beneath."""
    prices = ("open", "high", "low", "close")
    bars = _source("at", "when", *prices, "volume", "color", "middle", "band_low", "band_high")
    forecasts, then = (_source("at", "when", "price", "low", "high") for _ in range(2))
    levels = _source("xs", "ys", "kind", "price", "touches")
    marks = _source("at", "when", "price", "kind", "text")
    plot = _plot(translated("price"), 320, [])
    plot.varea(
        "at", "band_low", "band_high", source=bars, fill_color=INK, fill_alpha=0.12, legend_label=translated("bands")
    )
    plot.line("at", "middle", source=bars, color=INK, line_dash="dotted")
    lines = plot.multi_line("xs", "ys", source=levels, color=INK, line_dash="dashed", alpha=0.6)
    plot.segment("at", "high", "at", "low", source=bars, color="color")
    bodies = plot.vbar("at", body_ms, "open", "close", source=bars, color="color")
    for source, color, label in (
        (forecasts, WARM, translated("forecast")),
        (then, DEEP, translated("forecast of a day before")),
    ):
        plot.varea("at", "low", "high", source=source, fill_color=color, fill_alpha=0.18, legend_label=label)
        line = plot.line("at", "price", source=source, color=color, line_width=2, legend_label=label)
        _hover(plot, [line], [(label, "@price{0.[00000000]}"), ("", "@low{0.[0000]} – @high{0.[0000]}"), ("", "@when")])
    found = plot.scatter("at", "price", source=marks, marker="inverted_triangle", size=9, color=WARM)
    values = [(name, f"@{name}{{0.[00000000]}}") for name in prices]
    _hover(plot, [bodies], [("", "@when"), *values, (translated("volume"), "@volume{0,0}")])
    _hover(plot, [found], [("", "@kind"), ("", "@text"), ("", "@when")])
    _hover(plot, [lines], [("", "@kind"), ("", "@price{0.[00000000]}"), (translated("touches"), "@touches")])
    _calm_legend(plot)
    [old_entry] = [item for item in plot.legend[0].items if item.label.value == translated("forecast of a day before")]
    old_entry.visible = False  # where there is none

    def show_old_entry(attr: str, old: Any, new: Any) -> None:
        old_entry.visible = bool(new["at"])

    then.on_change("data", show_old_entry)
    below = _plot(translated("volume"), 90, [])
    below.x_range = plot.x_range
    below.vbar("at", body_ms, "volume", source=bars, color="color", alpha=0.6)

    def show_volume(attr: str, old: Any, new: Any) -> None:
        below.visible = not all(map(math.isnan, new["volume"]))

    bars.on_change("data", show_volume)
    sources = {"bars": bars, "forecasts": forecasts, "then": then, "levels": levels, "marks": marks}
    return Chart(column(plot, below, sizing_mode="stretch_width"), sources)


def news_chart() -> Chart:
    """Return the chart of the sentiment index, with the number of texts behind it."""
    news = _source("at", "when", "index", "texts")
    values = [("", "@when"), (translated("sentiment"), "@index{+0.00}"), (translated("texts"), "@texts")]
    plot = _plot(translated("sentiment"), 180, values)
    plot.y_range = Range1d(-1.05, 1.05)
    plot.extra_y_ranges = {"texts": Range1d(0, 10)}
    plot.add_layout(
        LinearAxis(
            y_range_name="texts",
            axis_label=translated("texts"),
            axis_label_text_color=INK,
            major_label_text_color=INK,
            axis_line_color=None,
        ),
        "right",
    )
    plot.vbar("at", 2.4e6, "texts", source=news, color=INK, alpha=0.35, y_range_name="texts")
    plot.line("at", "index", source=news, color=DEEP, line_width=2)
    plot.scatter("at", "index", source=news, color=DEEP, size=5)
    return Chart(plot, {"news": news})


def timeline_chart() -> Chart:
    """Return the chart of where the time of an answer went."""
    spans = _source(*TIMELINE)
    plot = figure(
        height=150, sizing_mode="stretch_width", y_range=[], tools="xpan,xwheel_zoom,reset", toolbar_location=None
    )
    bars = plot.hbar("what", 0.6, "end", "start", source=spans, color="color")
    _hover(plot, [bars], [("", "@what"), ("ms", "@ms{0,0.0}")])
    _look(plot)
    plot.xaxis.axis_label = translated("ms since the question was sent")
    return Chart(plot, {"spans": spans})


def _source(*names: str) -> ColumnDataSource:
    return ColumnDataSource({name: [] for name in names})


def _plot(label: str, height: int, values: Sequence[tuple[str, str]]) -> Any:
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        tools=TOOLS,
        active_scroll="xwheel_zoom",
        toolbar_location="above",
        y_axis_label=label,
    )
    plot.x_range.default_span = SPAN_OF_ONE_MS
    if values:
        plot.add_tools(HoverTool(tooltips=list(values), formatters={"@at": "datetime"}, mode="vline"))
    _look(plot)
    return plot


def _hover(plot: Any, renderers: Sequence[Any], values: Sequence[tuple[str, str]]) -> None:
    plot.add_tools(HoverTool(renderers=list(renderers), tooltips=list(values)))


def _look(plot: Any) -> None:
    plot.toolbar.logo = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = None
    plot.grid.grid_line_color = LINE
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.major_label_policy = NoOverlap()
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = LINE


def _calm_legend(plot: Any) -> None:
    legend = plot.legend[0]
    legend.background_fill_alpha = legend.border_line_alpha = 0.0
    legend.label_text_color = INK
    legend.orientation, legend.click_policy = "horizontal", "hide"
    plot.add_layout(legend, "below")
