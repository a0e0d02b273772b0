"""Chart of accuracy by layer depth."""

from collections.abc import Sequence

from bokeh.models import ColumnDataSource, NumeralTickFormatter, Range1d

from classify.heads.record import HeadResult
from classify.report.charts.base import (
    COLOURS,
    MARKERS,
    Chart,
    LegendEntry,
    add_hover,
    clean_label,
    make_slot_range,
    new_figure,
    set_tick_labels,
    to_chart,
)


def chart_depth(
    records: Sequence[HeadResult], layers: Sequence[str], split: str, element_id: str
) -> Chart:
    """Chart accuracy by layer: one line per head and cache, joined layers apart at the right.

    Parameters
    ----------
    records : sequence of HeadResult
        Of one task.
    layers : sequence of str
        Of the cache, shallowest first; of several one after the other, as ``CACHE:LAYER``.
    split : str
        ``validation`` or ``test``.
    element_id : str
        Id of the HTML element.

    Returns
    -------
    Chart
    """
    title = split.capitalize()
    field = "accuracy" if split == "test" else split
    scored = [record for record in records if getattr(record, field) is not None]
    tried_layers = {record.place for record in scored}
    single = [name for name in layers if name in tried_layers]
    joined = sorted(tried_layers - set(single), key=lambda name: (name.count("+"), name))
    if not scored:
        return Chart(element_id, title, f"There are no {split} images.")
    if len(single) + len(joined) < 2:
        return Chart(
            element_id, title, f"Only {clean_label(scored[0].layer)} was tried: no depth to show."
        )

    cache_of_layer = {record.place: record.cache for record in scored}
    joined_labels = [_abbreviate_joined(name, layers, cache_of_layer[name]) for name in joined]
    slot_of_layer = {name: i for i, name in enumerate([*single, *joined])}
    plot = new_figure(
        300, x_range=make_slot_range(len(slot_of_layer)), y_range=_make_y_range(records)
    )
    keys = []
    for i, head in enumerate(dict.fromkeys(record.head for record in records)):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        keys.append(LegendEntry(f"head-{i}", head, colour, marker))
        head_records = sorted(
            (r for r in scored if r.head == head), key=lambda r: slot_of_layer[r.place]
        )
        # Joined layers have no depth, so no line connects them.
        line_groups = [
            *(
                [r for r in head_records if r.place in single and r.cache == cache]
                for cache in dict.fromkeys(cache_of_layer[name] for name in single)
            ),
            *([r] for r in head_records if r.place in joined),
        ]
        for points in line_groups:
            source = ColumnDataSource(
                {
                    "x": [slot_of_layer[r.place] for r in points],
                    "y": [getattr(r, field) for r in points],
                    "head": [clean_label(head)] * len(points),
                    "layer": [clean_label(r.place, 80) for r in points],
                    "low": [_get_interval_end(r, field, 0) for r in points],
                    "high": [_get_interval_end(r, field, 1) for r in points],
                }
            )
            style = {"source": source, "color": colour, "name": f"head-{i}"}
            plot.line("x", "y", line_width=2, **style)
            plot.scatter("x", "y", size=8, marker=marker, **style)
    interval = "@low{0.0 %} to @high{0.0 %}"
    lines = [("", "@head"), ("layer", "@layer"), (split, "@y{0.0 %}"), ("95 %", interval)]
    add_hover(
        plot, lines, renderers=[r for r in plot.renderers if r.glyph.__class__.__name__ != "Line"]
    )
    labels = [*single, *joined_labels]
    set_tick_labels(plot.xaxis[0], labels, 22)
    if len(labels) > 4 or max(map(len, labels)) > 10:
        plot.xaxis.major_label_orientation = 0.7
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.xgrid.visible = False
    return to_chart(plot, element_id, title, "", keys)


def _abbreviate_joined(name: str, layers: Sequence[str], cache: str | None) -> str:
    count = name.count("+") + 1
    if cache is not None:
        return f"{cache}: {count} joined"
    return f"all {count} joined" if name == "+".join(layers) else f"{count} joined"


def _get_interval_end(record: HeadResult, field: str, end: int) -> float:
    interval = record.accuracy_ci if field == "accuracy" else record.validation_ci
    return float("nan") if interval is None else interval[end]


def _make_y_range(records: Sequence[HeadResult]) -> Range1d:
    """Return one range for validation and test, so that both can be compared by eye."""
    accuracies = [
        accuracy for r in records for accuracy in (r.validation, r.accuracy) if accuracy is not None
    ]
    margin = max(0.02, 0.08 * (max(accuracies) - min(accuracies)))
    return Range1d(start=max(0, min(accuracies) - margin), end=min(1, max(accuracies) + margin))
