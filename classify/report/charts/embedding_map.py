"""Chart of the embeddings: one point per image, with its thumbnail as tooltip."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool

from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions
from classify.report.charts.base import (
    COLOURS,
    MARKERS,
    OTHER_COLOUR,
    Chart,
    LegendEntry,
    clean_label,
    new_figure,
    to_chart,
)
from classify.report.leaderboard import format_percent
from classify.report.projection import Projection
from featurize.cache.reader import FeatureCache

MAX_COLOURED_CLASSES = len(COLOURS)
# Bokeh replaces @column by the escaped text; the page's script provides @picture. Styles are inline
# because the page's style sheet does not apply inside a tooltip.
TOOLTIP_HTML = """<div style="display: flex; gap: 10px; align-items: center; max-width: 280px">
<img src="@picture" width="72" height="72" alt="" style="border-radius: 4px; object-fit: contain">
<div style="overflow-wrap: anywhere"><div>label <b>@label</b></div>
<div>predicted <b>@predicted</b></div><div>@part</div><div style="opacity: .7">@path</div></div>
</div>"""


def chart_embedding_map(
    task: Task,
    cache: FeatureCache,
    projection: Projection,
    predictions: Sequence[HeldOutPredictions | None],
    layer: str,
    element_id: str,
) -> Chart:
    """Chart a projection, coloured by class; a ring marks a wrong prediction.

    Parameters
    ----------
    task : Task
    cache : FeatureCache
    projection : Projection
        Of rows of the task.
    predictions : sequence of HeldOutPredictions or None
        Of the best head, on the validation and on the test images.
    layer : str
        The layer, for the note.
    element_id : str
        Id of the HTML element.

    Returns
    -------
    Chart
    """
    positions = np.searchsorted(task.rows, projection.rows)
    y = task.y[positions]
    predicted = np.full(len(projection.rows), -1)
    for held_out in predictions:
        if held_out is not None and len(held_out):
            nearest = np.minimum(np.searchsorted(held_out.rows, projection.rows), len(held_out) - 1)
            is_same_row = held_out.rows[nearest] == projection.rows
            predicted[is_same_row] = held_out.predicted[nearest][is_same_row]
    shown_points = projection.pca if projection.tsne is None else projection.tsne
    data = {
        "x": shown_points[:, 0].round(3),
        "y": shown_points[:, 1].round(3),
        "row": projection.rows,
        "picture": [""] * len(positions),
        "path": [clean_label(path, 60) for path in cache.paths_of(projection.rows)],
        "label": [clean_label(task.classes[k]) for k in y],
        "predicted": [
            "not predicted" if k < 0 else clean_label(task.classes[k]) for k in predicted
        ],
        "part": [str(part) for part in task.split[positions]],
    }
    for name, points in (("pca", projection.pca), ("tsne", projection.tsne)):
        if points is not None:
            data |= {f"{name}_x": points[:, 0].round(3), f"{name}_y": points[:, 1].round(3)}
    source = ColumnDataSource(data, name="points")
    plot = new_figure(560, tools="pan,box_zoom,wheel_zoom,reset", match_aspect=True)
    plot.axis.visible = False
    plot.grid.visible = False

    counts = np.bincount(y, minlength=len(task.classes))
    largest = np.argsort(-counts, kind="stable")[:MAX_COLOURED_CLASSES]
    # The other classes first, so that they are below.
    keys, others = [], ~np.isin(y, largest)
    groups = (
        [(LegendEntry("others", "other classes", OTHER_COLOUR, "circle"), others)]
        if others.any()
        else []
    )
    for i, k in enumerate(np.sort(largest)):
        if counts[k]:
            key = LegendEntry(f"class-{i}", task.classes[k], COLOURS[i], MARKERS[i % len(MARKERS)])
            groups.append((key, y == k))
    dots = []
    for key, chosen in groups:
        keys.append(key)
        style = {"source": source, "name": key.name, "view": _make_view(chosen)}
        alpha = 0.35 if key.name == "others" else 0.8
        dots.append(
            plot.scatter(
                *("x", "y"), size=7, marker=key.marker, color=key.colour, alpha=alpha, **style
            )
        )
    wrong = (predicted >= 0) & (predicted != y)
    rings_shown = bool(wrong.mean() < 0.05)  # more rings would hide the map, so they start hidden
    if wrong.any():
        ring = plot.scatter(
            *("x", "y"), size=13, marker="circle", fill_color=None, line_width=1.5, source=source,
            view=_make_view(wrong), name="wrong", visible=rings_shown,
        )  # fmt: skip
        ring.glyph.tags = ["soft"]
        keys.append(LegendEntry("wrong", "predicted wrongly", "currentColor", "ring", rings_shown))
    plot.add_tools(HoverTool(tooltips=TOOLTIP_HTML, renderers=dots, point_policy="snap_to_data"))
    note = _describe_map(task, projection, layer, bool(others.any()))
    chart = to_chart(plot, element_id, "Map of the embeddings", note, keys)
    projections = (
        [("pca", "PCA")] if projection.tsne is None else [("tsne", "t-SNE"), ("pca", "PCA")]
    )
    return replace(chart, projections=projections)


def _make_view(chosen: np.ndarray) -> CDSView:
    return CDSView(filter=BooleanFilter(booleans=chosen.tolist()))


def _describe_map(task: Task, projection: Projection, layer: str, others: bool) -> str:
    n_shown, n_total = len(projection.rows), len(task.rows)
    images_text = (
        f"all {n_total:,} images"
        if n_shown == n_total
        else f"{n_shown:,} of {n_total:,} images, drawn at random"
    )
    text = (
        f"{images_text.capitalize()}, by their embeddings at {layer}. PCA shows the two directions "
        f"of greatest variance ({format_percent(projection.explained_variance_ratio)} of it)"
    )
    if projection.tsne is not None:
        text += (
            "; t-SNE keeps neighbours together, but its distances and sizes of groups mean little"
        )
    text += "."
    if others:
        text += (
            f" The {MAX_COLOURED_CLASSES} largest of {len(task.classes):,} classes are coloured."
        )
    return text
