"""The figures of the report, which Bokeh draws in the reader's browser.

Colours of text and lines are left to the page (page.js), which knows whether it is light or dark. What the filters
switch is named after its class: `right`, `wrong`, `unknown-right`, `unknown-wrong`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    HoverTool,
    Metric,
    PanTool,
    Range1d,
    ResetTool,
    ScaleBar,
    TapTool,
    WheelZoomTool,
    ZoomInTool,
    ZoomOutTool,
)
from bokeh.plotting import figure

from geoloc_fast.evaluation.evaluate import Evaluation

__all__ = ["CLASSES", "COLOURS", "latency_figure", "map_figure", "recall_figure", "reliability_figure"]

# Of Okabe and Ito, to be told apart by all eyes.
COLOURS = {"right": "#009e73", "wrong": "#d55e00"}
CLASSES = {
    "right": "answered, right",
    "wrong": "answered, wrong",
    "unknown-right": "unknown, best guess right",
    "unknown-wrong": "unknown, best guess wrong",
}
_SERIES = ("#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
_CONE = 1 / 62  # radius of a view, of the width of the map
_BINS = 10
_TOOLBAR = """
:host { background: rgb(255 255 255 / .82); height: fit-content !important; align-self: start }
"""
_MAP_HOVER = """
<div class="tip"><b>@name</b><br>@verdict<br>heading @heading, found @found<br>@sure</div>
"""


def map_figure(
    photos: Mapping[str, Mapping[str, Sequence[Any]]],
    places: tuple[np.ndarray, np.ndarray],
    box: tuple[float, float, float, float],
    background: str | None,
) -> figure:
    """The region with every photo where it was taken and where it was found.

    Args:
        photos: for each class of `CLASSES` the columns `card`, `name`, `verdict`, `heading`, `found`, `sure` (texts),
            `x`, `y` (the truth, in metres), `begin`, `end` (of the view: mathematical angles, NaN where it is unknown),
            and `fx`, `fy`, `fbegin`, `fend` (the best guess).
        places: east_m, north_m of the places.
        box: west, south, east, north.
        background: address of the aerial mosaic.
    """
    west, south, east, north = box
    plot = figure(
        name="map",
        x_range=Range1d(west, east),
        y_range=Range1d(south, north),
        aspect_ratio=(east - west) / (north - south),
        sizing_mode="stretch_width",
        min_border=0,
        toolbar_location="right",
        toolbar_inner=True,
        tools=[
            PanTool(), BoxZoomTool(match_aspect=True), WheelZoomTool(modifiers="ctrl"), ZoomInTool(), ZoomOutTool(),
            ResetTool(), TapTool(),
        ],
        output_backend="canvas",
    )  # fmt: skip
    plot.axis.visible = False
    plot.grid.visible = False
    plot.outline_line_color = None
    plot.background_fill_color = None
    plot.border_fill_color = None
    plot.toolbar.logo = None
    plot.toolbar.stylesheets = [_TOOLBAR]
    if background is not None:
        plot.image_url(
            url=[background], x=west, y=north, w=east - west, h=north - south, anchor="top_left", name="mosaic"
        )
    plot.scatter(
        *places,
        size=3,
        fill_color="#ffffff" if background else "#8a8f98",
        fill_alpha=0.55,
        line_color=None,
        name="places",
    )
    pointed = []
    for kind in reversed(CLASSES):  # answers are drawn last
        source = ColumnDataSource({name: list(values) for name, values in photos[kind].items()})
        colour, sure = COLOURS[kind.removeprefix("unknown-")], not kind.startswith("unknown")
        faint = {"line_alpha": 0.9 if sure else 0.35}
        plot.segment("x", "y", "fx", "fy", source=source, name=kind, line_color="#ffffff", line_width=1, **faint)
        for x, y, begin, end, fill in (
            ("fx", "fy", "fbegin", "fend", 0.15),
            ("x", "y", "begin", "end", 0.35 if kind == "unknown-wrong" else 0.6),
        ):
            plot.wedge(
                x, y, radius=(east - west) * _CONE, start_angle=begin, end_angle=end, source=source,
                name=kind, fill_color=colour, fill_alpha=fill, line_color="#ffffff", line_alpha=0.9, line_width=1,
            )  # fmt: skip
        style = {"source": source, "name": kind, "line_width": 1.8}
        inside = {"fill_color": colour, "line_color": "#ffffff"}
        hollow = {"fill_color": "#ffffff", "line_color": colour}
        guess = plot.scatter("fx", "fy", marker="diamond", size=8, **style, **hollow)
        truth = plot.scatter("x", "y", marker="circle", size=9, **style, **(inside if sure else hollow))
        for drawn in (guess, truth):
            drawn.nonselection_glyph = None
        pointed += [truth, guess]
    # What names of files hold stays text: `@name` is escaped.
    plot.add_tools(HoverTool(renderers=pointed, tooltips=_MAP_HOVER, mode="mouse"))
    plot.add_layout(
        ScaleBar(
            range=plot.x_range, unit="m", dimensional=Metric(base_unit="m", include=["m", "km"]),
            location="bottom_left", background_fill_color="#ffffff", background_fill_alpha=0.85, border_line_color=None,
            bar_length=0.12, bar_line_color="#1d2024", label_text_color="#1d2024",
        )
    )  # fmt: skip
    return plot


def recall_figure(evaluations: Mapping[str, Evaluation], chance: float) -> figure:
    """Share of photos with a place in range among the first k, for every k."""
    most = max(100, *(evaluation.one_percent or 1 for evaluation in evaluations.values()))
    k = np.unique(np.rint(np.geomspace(1, min(most, *(e.neighbours for e in evaluations.values())), 60)).astype(int))
    plot = _chart(
        "recall", "k, places looked at", "photos with one in range, %", x_axis_type="log", x_range=(0.93, k[-1] * 1.08),
        y_range=(0, 103),
    )  # fmt: skip
    plot.xaxis.ticker = [10**n * digit for n in range(4) for digit in (1, 2, 5)]
    for n, (title, evaluation) in enumerate(evaluations.items()):
        rank = np.array(evaluation.rank)
        share = [100 * float((rank < at).mean()) for at in k]
        style = {"line_color": _SERIES[n % len(_SERIES)], "line_dash": "solid" if n == 0 else "dashed"}
        line = plot.line(k, share, line_width=2.5, legend_label=title, **style)
        plot.add_tools(HoverTool(renderers=[line], tooltips=[("R@", "@x"), ("", "@y{0.0} %")], mode="vline"))
    plot.line(k, 100 * (1 - (1 - chance) ** k), line_width=1.5, line_dash="dotted", legend_label="chance", name="ink")
    plot.add_layout(plot.legend[0], "above")
    plot.legend.update(padding=0, spacing=1, margin=4)
    return plot


def reliability_figure(evaluation: Evaluation) -> figure:
    """How often answers of each probability were right; on the diagonal it means what it says."""
    probability, right = np.array(evaluation.probability), evaluation.right
    judged = np.isfinite(probability)
    probability, right = 100 * probability[judged], right[judged]
    at = np.minimum((probability * _BINS / 100).astype(int), _BINS - 1)
    bins = [b for b in range(_BINS) if (at == b).any()]
    count = np.array([(at == b).sum() for b in bins])
    was = np.array([right[at == b].mean() for b in bins])
    # Wilson's interval: of so few photos a share is not known better.
    middle = (was + 2 / count) / (1 + 4 / count)
    half = 2 * np.sqrt(was * (1 - was) / count + 1 / count**2) / (1 + 4 / count)
    source = ColumnDataSource(
        {
            "said": [float(probability[at == b].mean()) for b in bins],
            "was": 100 * was,
            "low": 100 * (middle - half),
            "high": 100 * (middle + half),
            "count": count,
            "size": 6 + 20 * np.sqrt(count / count.max()),
        }
    )
    plot = _chart("reliability", "probability it gave, %", "were right, %", x_range=(0, 100), y_range=(-4, 104))
    plot.line([0, 100], [0, 100], line_dash="dotted", line_width=1.5, name="ink")
    plot.segment("said", "low", "said", "high", source=source, line_color=_SERIES[0], line_width=1.5)
    dots = plot.scatter(
        "said", "was", size="size", source=source, fill_color=_SERIES[0], fill_alpha=0.7, line_color=None
    )
    about = [("photos", "@count"), ("said", "@said{0} %"), ("right", "@was{0} % (@low{0} to @high{0})")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=about))
    return plot


def latency_figure(evaluation: Evaluation) -> figure:
    """How long photos took; the slowest hundredth counts to the last bar."""
    total = evaluation.milliseconds
    end = float(np.quantile(total, 0.99))
    count, edge = np.histogram(total.clip(max=end), bins=min(30, max(5, len(total) // 6)))
    plot = _chart("latency", "one photo, ms", "photos")
    data = {"count": count, "left": edge[:-1], "right": edge[1:]}
    bars = plot.quad(
        top="count", bottom=0, left="left", right="right", source=ColumnDataSource(data), fill_color=_SERIES[0],
        line_color=None, fill_alpha=0.75,
    )  # fmt: skip
    plot.y_range.start = 0
    about = [("photos", "@count"), ("", "@left{0.0} to @right{0.0} ms")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=about))
    return plot


def _chart(name: str, x: str, y: str, **options: Any) -> figure:
    plot = figure(
        name=name, x_axis_label=x, y_axis_label=y, sizing_mode="stretch_width", height=280, tools="",
        toolbar_location=None, min_border_right=12, **options,
    )  # fmt: skip
    for axis in (plot.xaxis, plot.yaxis):
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
    plot.background_fill_color = None
    plot.border_fill_color = None
    plot.outline_line_color = None
    plot.xgrid.visible = False
    return plot
