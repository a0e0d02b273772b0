"""Chart of a confusion matrix."""

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

MAX_MATRIX_CLASSES = 25  # classes shown
MAX_COUNTED_CLASSES = 12  # up to this number of classes, cells contain their counts
CORRECT_COLOUR, WRONG_COLOUR = "#1f6fb5", "#c2500a"


def chart_confusion(counts: np.ndarray, classes: Sequence[str], element_id: str) -> Chart:
    """Chart true label by predicted label; of many classes, those with the most mistakes.

    Parameters
    ----------
    counts : int array of shape (K, K)
        Number of images, by true class (rows) and predicted class (columns).
    classes : sequence of str
        K names.
    element_id : str
        Id of the HTML element.

    Returns
    -------
    Chart
    """
    note = "Row: the label given. Column: the label predicted. Blue is right, orange is wrong."
    chosen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    if len(chosen) > MAX_MATRIX_CLASSES:
        wrong = counts - np.diag(np.diag(counts))
        worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[
            :MAX_MATRIX_CLASSES
        ]
        n_inside = int(wrong[np.ix_(worst, worst)].sum())
        note += (
            f" Shown are the {MAX_MATRIX_CLASSES} of {len(classes):,} classes with the most "
            f"mistakes; {n_inside:,} of all {int(wrong.sum()):,} mistakes lie among them."
        )
        chosen = np.sort(worst)
    n_shown, matrix = len(chosen), counts[np.ix_(chosen, chosen)]
    names = [classes[int(i)] for i in chosen]
    true_index, predicted_index = (axis.ravel() for axis in np.mgrid[:n_shown, :n_shown])
    count, class_size = matrix.ravel(), counts[chosen].sum(axis=1)[true_index]
    fraction = count / np.maximum(class_size, 1)
    on_diagonal = true_index == predicted_index
    # The square root makes rare mistakes visible.
    strength = np.where(
        on_diagonal, fraction, np.sqrt(fraction / max(fraction[~on_diagonal].max(initial=0), 1e-9))
    )
    is_dark = strength > 0.78
    source = ColumnDataSource(
        {
            "x": predicted_index,
            "y": n_shown - 1 - true_index,
            "count": count,
            "share": fraction,
            "given": [clean_label(names[i], 60) for i in true_index],
            "said": [clean_label(names[i], 60) for i in predicted_index],
            "text": [str(c) if c else "" for c in count],
            "colour": np.where(on_diagonal, CORRECT_COLOUR, WRONG_COLOUR).tolist(),
            "alpha": np.where(count > 0, 0.06 + 0.94 * strength, 0.0),
        }
    )
    plot = new_figure(
        int(np.clip(90 + 34 * n_shown, 260, 560)),
        x_range=make_slot_range(n_shown),
        y_range=make_slot_range(n_shown),
        x_axis_location="above",
        min_border_right=60 if n_shown > 2 else 10,  # for the last of the slanted labels
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
    if n_shown <= MAX_COUNTED_CLASSES:
        for chosen_cells, tag in ((is_dark, None), (~is_dark, INK_TAG)):
            text_source = ColumnDataSource(
                {k: np.asarray(v)[chosen_cells].tolist() for k, v in source.data.items()}
            )
            text = plot.text(
                *("x", "y", "text"),
                source=text_source,
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
    if n_shown > 2:
        plot.xaxis.major_label_orientation = 0.8
    plot.grid.visible = False
    plot.axis.major_tick_line_color = None
    return to_chart(plot, element_id, "Confusion matrix", note, [])
