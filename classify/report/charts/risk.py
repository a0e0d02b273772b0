"""Chart of accuracy on the images that a head is surest of."""

from collections.abc import Mapping
from typing import Any

from bokeh.models import ColumnDataSource, NumeralTickFormatter, Range1d

from classify.report.charts.base import COLOURS, Chart, add_hover, new_figure, to_chart


def chart_risk(risk: Mapping[str, Any] | None, note: str, element_id: str) -> Chart:
    """Chart accuracy by the share of images that are not left open.

    Parameters
    ----------
    risk : mapping, or None
        ``share`` and ``accuracy``, as in `classify.doubt.risk.RiskCurve`.
    note : str
    element_id : str
        Id of the HTML element.

    Returns
    -------
    Chart
    """
    title = "Accuracy of the surest"
    if not risk or len(risk["share"]) < 2:
        return Chart(element_id, title, "There are no test images, or they are all told alike.")
    low = min(risk["accuracy"])
    plot = new_figure(
        330,
        x_range=Range1d(start=0, end=1.02),
        y_range=Range1d(start=max(0, low - 0.05), end=min(1.02, max(risk["accuracy"]) + 0.02)),
    )
    source = ColumnDataSource({"x": risk["share"], "y": risk["accuracy"]})
    plot.line("x", "y", source=source, line_width=2, color=COLOURS[0])
    dots = plot.scatter("x", "y", source=source, size=5, color=COLOURS[0])
    add_hover(plot, [("surest", "@x{0 %} of images"), ("right", "@y{0.0 %}")], renderers=[dots])
    plot.xaxis.axis_label, plot.yaxis.axis_label = "share of images, the surest first", "accuracy"
    for axis in plot.axis:
        axis.formatter = NumeralTickFormatter(format="0 %")
    return to_chart(plot, element_id, title, note, [])
