"""The map of the embeddings: a point for each image, its picture where the pointer is."""

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

MAX_COLOURED_CLASSES = len(COLOURS)
# Bokeh puts a column's text where @column stands, escaped; the page's script fills in @picture.
# The page's style sheet does not reach into a tooltip.
TOOLTIP_HTML = """<div style="display: flex; gap: 10px; align-items: center; max-width: 280px">
<img src="@picture" width="72" height="72" alt="" style="border-radius: 4px; object-fit: contain">
<div style="overflow-wrap: anywhere"><div>label <b>@label</b></div>
<div>predicted <b>@predicted</b></div><div>@part</div><div style="opacity: .7">@path</div></div>
</div>"""


def chart_embedding_map(
    task: Task,
    paths: Sequence[str],
    projection: Projection,
    predictions: Sequence[HeldOutPredictions | None],
    layer: str,
    element_id: str,
) -> Chart:
    """Chart a projection, coloured by class; a cross marks what a head got wrong.

    Parameters
    ----------
    task : ExtractionJob
    paths : sequence of str
        Of the whole cache.
    found : Projection
        Of rows of the task.
    answers : sequence of HeldOutPredictions or None
        Of the best head, held out and tested.
    where : str
        The layer, for the note.
    element_id : str
        Id of the element.
    """
    at = np.searchsorted(task.rows, projection.rows)
    y = task.y[at]
    said = np.full(len(projection.rows), -1)
    for outcomes in predictions:
        if outcomes is not None and len(outcomes):
            place = np.minimum(np.searchsorted(outcomes.rows, projection.rows), len(outcomes) - 1)
            same = outcomes.rows[place] == projection.rows
            said[same] = outcomes.predicted[place][same]
    first = projection.pca if projection.tsne is None else projection.tsne
    data = {
        "x": first[:, 0].round(3),
        "y": first[:, 1].round(3),
        "row": projection.rows,
        "picture": [""] * len(at),
        "path": [clean_label(paths[row], 60) for row in projection.rows],
        "label": [clean_label(task.classes[k]) for k in y],
        "predicted": ["not asked" if k < 0 else clean_label(task.classes[k]) for k in said],
        "part": [str(part) for part in task.split[at]],
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
    # The others first: they lie below.
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
        look = {"source": source, "name": key.name, "view": _make_view(chosen)}
        faint = 0.35 if key.name == "others" else 0.8
        dots.append(
            plot.scatter(
                *("x", "y"), size=7, marker=key.marker, color=key.colour, alpha=faint, **look
            )
        )
    wrong = (said >= 0) & (said != y)
    few = bool(wrong.mean() < 0.05)  # more rings than that hide the map until they are asked for
    if wrong.any():
        ring = plot.scatter(
            *("x", "y"), size=13, marker="circle", fill_color=None, line_width=1.5, source=source,
            view=_make_view(wrong), name="wrong", visible=few,
        )  # fmt: skip
        ring.glyph.tags = ["soft"]
        keys.append(LegendEntry("wrong", "predicted wrongly", "currentColor", "ring", few))
    plot.add_tools(HoverTool(tooltips=TOOLTIP_HTML, renderers=dots, point_policy="snap_to_data"))
    note = _describe_map(task, projection, layer, bool(others.any()))
    chart = to_chart(plot, element_id, "Map of the embeddings", note, keys)
    ways = [("pca", "PCA")] if projection.tsne is None else [("tsne", "t-SNE"), ("pca", "PCA")]
    return replace(chart, projections=ways)


def _make_view(chosen: np.ndarray) -> CDSView:
    return CDSView(filter=BooleanFilter(booleans=chosen.tolist()))


def _describe_map(task: Task, found: Projection, where: str, others: bool) -> str:
    shown, total = len(found.rows), len(task.rows)
    which = (
        f"all {total:,} images"
        if shown == total
        else f"{shown:,} of {total:,} images, drawn by chance"
    )
    text = (
        f"{which.capitalize()}, by their embeddings at {where}. PCA shows the two directions of "
        f"greatest variance ({format_percent(found.explained_variance_ratio)} of it)"
    )
    if found.tsne is not None:
        text += (
            "; t-SNE keeps neighbours together, but its distances and sizes of groups mean little"
        )
    text += "."
    if others:
        text += (
            f" The {MAX_COLOURED_CLASSES} largest of {len(task.classes):,} classes are coloured."
        )
    return text
