"""What a head confuses, and how far its confidence can be believed."""

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource

from classify.report.charts.base import (
    INK_TAG,
    Chart,
    add_hover,
    clean_label,
    make_slot_range,
    new_figure,
    set_tick_labels,
    to_chart,
)

MAX_MATRIX_CLASSES = 25  # classes in a confusion matrix
MAX_COUNTED_CLASSES = 12  # classes up to which the counts are written into the cells
CORRECT_COLOUR, WRONG_COLOUR = "#1f6fb5", "#c2500a"


def chart_confusion(counts: np.ndarray, classes: Sequence[str], element_id: str) -> Chart:
    """Given label by predicted label; of many classes those that are confused most.

    Parameters
    ----------
    counts : int array of shape (K, K)
        Images, by given class (rows) and predicted class (columns).
    classes : sequence of str
        K names.
    element_id : str
        Id of the element.
    """
    note = "Row: the label given. Column: the label predicted. Blue is right, orange is wrong."
    chosen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    if len(chosen) > MAX_MATRIX_CLASSES:
        wrong = counts - np.diag(np.diag(counts))
        worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[
            :MAX_MATRIX_CLASSES
        ]
        inside = int(wrong[np.ix_(worst, worst)].sum())
        note += (
            f" Shown are the {MAX_MATRIX_CLASSES} of {len(classes):,} classes with the most mistakes; "
            f"{inside:,} of all {int(wrong.sum()):,} mistakes lie among them."
        )
        chosen = np.sort(worst)
    n, part = len(chosen), counts[np.ix_(chosen, chosen)]
    names = [classes[int(i)] for i in chosen]
    given, said = (axis.ravel() for axis in np.mgrid[:n, :n])
    count, of = part.ravel(), counts[chosen].sum(axis=1)[given]
    share = count / np.maximum(of, 1)
    right = given == said
    # The square root lifts rare mistakes out of the background.
    strength = np.where(right, share, np.sqrt(share / max(share[~right].max(initial=0), 1e-9)))
    strong = strength > 0.78
    source = ColumnDataSource(
        {
            "x": said,
            "y": n - 1 - given,
            "count": count,
            "share": share,
            "given": [clean_label(names[i], 60) for i in given],
            "said": [clean_label(names[i], 60) for i in said],
            "text": [str(c) if c else "" for c in count],
            "colour": np.where(right, CORRECT_COLOUR, WRONG_COLOUR).tolist(),
            "alpha": np.where(count > 0, 0.06 + 0.94 * strength, 0.0),
        }
    )
    plot = new_figure(
        int(np.clip(90 + 34 * n, 260, 560)),
        x_range=make_slot_range(n),
        y_range=make_slot_range(n),
        x_axis_location="above",
    )
    cells = plot.rect(
        "x",
        "y",
        0.94,
        0.94,
        source=source,
        fill_color="colour",
        fill_alpha="alpha",
        line_color=None,
    )
    if n <= MAX_COUNTED_CLASSES:
        for chosen_cells, tag in ((strong, None), (~strong, INK_TAG)):
            some = ColumnDataSource(
                {k: np.asarray(v)[chosen_cells].tolist() for k, v in source.data.items()}
            )
            text = plot.text(
                *("x", "y", "text"),
                source=some,
                text_align="center",
                text_baseline="middle",
                text_font_size="12px",
                text_color="white",
            )
            text.glyph.tags = [tag] if tag else []
    lines = [("given", "@given"), ("predicted", "@said"), ("images", "@count (@share{0.0 %})")]
    add_hover(plot, lines, renderers=[cells])
    set_tick_labels(plot.xaxis[0], names, 14)
    set_tick_labels(plot.yaxis[0], names[::-1], 14)
    if n > 2:
        plot.xaxis.major_label_orientation = 0.8
    plot.grid.visible = False
    plot.axis.major_tick_line_color = None
    return to_chart(plot, element_id, "Confusion matrix", note, [])
