"""Reliability diagram of a head."""

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource, NumeralTickFormatter, Range1d

from classify.evaluation.metrics import ReliabilityCurve
from classify.report.charts.base import (
    COLOURS,
    SOFT_TAG,
    Chart,
    LegendEntry,
    add_hover,
    new_figure,
    to_chart,
)


def chart_reliability(
    before: ReliabilityCurve, after: ReliabilityCurve, note: str, element_id: str
) -> Chart:
    """Chart accuracy by confidence.

    Parameters
    ----------
    before, after : ReliabilityCurve
        From the head's own probabilities (no points if it has decision values only), and from
        those after calibration.
    note : str
        The calibration errors in words.
    element_id : str
        Id of the HTML element.

    Returns
    -------
    Chart
    """
    title = "Reliability"
    if not len(before.count) and not len(after.count):
        return Chart(element_id, title, "This head has no probabilities: nothing was held out.")
    values = np.concatenate([before.confidence, before.accuracy, after.confidence, after.accuracy])
    low = max(0.0, np.floor(10 * values.min()) / 10 - 0.02)
    plot = new_figure(
        400, x_range=Range1d(start=low, end=1.02), y_range=Range1d(start=low, end=1.02)
    )
    diagonal = plot.line([0, 1], [0, 1], line_dash="dashed", line_width=1.5)
    diagonal.glyph.tags = [SOFT_TAG]
    keys, dots = [], []
    for name, curve, colour, marker in (
        ("before", before, COLOURS[5], "circle"),
        ("after", after, COLOURS[0], "square"),
    ):
        if not len(curve.count):
            continue
        source = ColumnDataSource(
            {
                "x": curve.confidence,
                "y": curve.accuracy,
                "images": curve.count,
                "which": [f"{name} calibration"] * len(curve.count),
            }
        )
        style = {"source": source, "color": colour, "name": name}
        plot.line("x", "y", line_width=2, **style)
        dots.append(plot.scatter("x", "y", size=9, marker=marker, **style))
        keys.append(LegendEntry(name, f"{name} calibration", colour, marker))
    lines = [("", "@which"), ("confidence", "@x{0.0 %}"), ("right", "@y{0.0 %}")]
    add_hover(plot, [*lines, ("images", "@images")], renderers=dots)
    plot.xaxis.axis_label, plot.yaxis.axis_label = "confidence", "accuracy"
    for axis in plot.axis:
        axis.formatter = NumeralTickFormatter(format="0 %")
        axis.ticker = BasicTicker(desired_num_ticks=5)
        axis.bounds = (0, 1)
    return to_chart(plot, element_id, title, note, keys)
