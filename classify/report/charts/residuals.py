"""Chart of predicted numbers beside the true ones."""

import numpy as np
from bokeh.models import ColumnDataSource

from classify.report.charts.base import (
    COLOURS,
    SOFT_TAG,
    Chart,
    add_hover,
    clean_label,
    new_figure,
    to_chart,
)

MAX_POINTS = 2000


def chart_residuals(
    truth: np.ndarray,
    predicted: np.ndarray,
    paths: list[str],
    margin: float | None,
    element_id: str,
) -> Chart:
    """Chart predicted by true numbers, with the band that intervals cover.

    Parameters
    ----------
    truth, predicted : float arrays of shape (n,)
    paths : list of str
        Of the n images.
    margin : float, or None
        Half the width of the intervals.
    element_id : str
        Id of the HTML element.

    Returns
    -------
    Chart
        Of a sample of 2,000 images where there are more.
    """
    title, chosen = "Predicted and true", np.arange(len(truth))
    note = "Each point is a test image. On the dashed line, predicted equals true."
    if len(truth) > MAX_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(truth), MAX_POINTS, replace=False))
        note += f" Shown are {MAX_POINTS:,} of {len(truth):,}."
    plot = new_figure(400, tools="pan,box_zoom,reset")
    ends = np.array([min(truth.min(), predicted.min()), max(truth.max(), predicted.max())])
    if margin is not None:
        plot.varea(ends, ends - margin, ends + margin, fill_alpha=0.12, fill_color=COLOURS[0])
        note += f" The band is the interval, ± {margin:.4g}."
    diagonal = plot.line(ends, ends, line_dash="dashed", line_width=1.5)
    diagonal.glyph.tags = [SOFT_TAG]
    source = ColumnDataSource(
        {
            "x": truth[chosen],
            "y": predicted[chosen],
            "error": predicted[chosen] - truth[chosen],
            "path": [clean_label(paths[i], 60) for i in chosen],
        }
    )
    dots = plot.scatter("x", "y", source=source, size=6, color=COLOURS[0], alpha=0.6)
    lines = [("", "@path"), ("true", "@x{0.[000]}"), ("predicted", "@y{0.[000]}")]
    add_hover(plot, [*lines, ("error", "@error{+0.[000]}")], renderers=[dots])
    plot.xaxis.axis_label, plot.yaxis.axis_label = "true", "predicted"
    return to_chart(plot, element_id, title, note, [])
