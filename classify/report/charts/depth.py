"""Chart of accuracy by layer depth."""

from collections.abc import Sequence
from typing import Any

from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    LinearAxis,
    NumeralTickFormatter,
    Range1d,
)

from classify.heads.record import HeadResult
from classify.report.charts.base import (
    COLOURS,
    FONT,
    MARKERS,
    QUIET_TAG,
    SOFT_TAG,
    Chart,
    LegendEntry,
    add_hover,
    clean_label,
    make_slot_range,
    new_figure,
    set_tick_labels,
    to_chart,
)
from classify.report.leaderboard import format_percent

CHART_HEIGHT = 330


def chart_depth(
    records: Sequence[HeadResult],
    layers: Sequence[str],
    split: str,
    element_id: str,
    baseline: float | None = None,
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
    baseline : float, optional
        Accuracy of the majority class, drawn as a dashed line.

    Returns
    -------
    Chart
    """
    title = split.capitalize()
    field = "accuracy" if split == "test" else split
    scored = [record for record in records if getattr(record, field) is not None]
    if not scored:
        return Chart(element_id, title, f"There are no {split} images.")
    groups = _group_places(scored, layers)
    places = [place for group in groups.values() for place in group]
    if len(places) < 2:
        return Chart(
            element_id, title, f"Only {clean_label(scored[0].place)} was tried: no depth to show."
        )
    slots = _leave_gaps(list(groups.values()))
    slot_of_place = {place: i for i, place in enumerate(slots) if place is not None}
    y_range = _make_y_range(records, baseline)
    plot = new_figure(CHART_HEIGHT, x_range=make_slot_range(len(slots)), y_range=y_range)
    if baseline is not None:
        _draw_baseline(plot, baseline, len(slots), y_range)
    keys = []
    caches = dict.fromkeys(record.cache for record in scored)
    for i, head in enumerate(dict.fromkeys(record.head for record in records)):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        keys.append(LegendEntry(f"head-{i}", head, colour, marker))
        head_records = sorted(
            (r for r in scored if r.head == head), key=lambda r: slot_of_place[r.place]
        )
        # Joined layers have no depth, so no line connects them.
        line_groups = [
            *(
                [r for r in head_records if r.place in layers and r.cache == name]
                for name in caches
            ),
            *([r] for r in head_records if r.place not in layers),
        ]
        for points in filter(None, line_groups):
            source = ColumnDataSource(
                {
                    "x": [slot_of_place[r.place] for r in points],
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
        plot,
        lines,
        renderers=[r for r in plot.renderers if r.glyph.__class__.__name__ == "Scatter"],
    )
    labels = ["" if place is None else _label_place(place, layers) for place in slots]
    set_tick_labels(plot.xaxis[0], labels, 22)
    if len(labels) > 4 or max(map(len, labels)) > 10:
        plot.xaxis.major_label_orientation = 0.7
    if None not in caches:
        _name_groups(plot, {name: slot_of_place[group[0]] for name, group in groups.items()})
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.xgrid.visible = False
    return to_chart(plot, element_id, title, "", keys)


def _group_places(records: Sequence[HeadResult], layers: Sequence[str]) -> dict[str, list[str]]:
    """Group the layers that were tried by cache: by depth, then the joined ones."""
    place_caches = {record.place: record.cache or "" for record in records}
    depth = {name: i for i, name in enumerate(layers)}
    ordered = sorted(
        place_caches, key=lambda name: (name.count("+"), depth.get(name, len(depth)), name)
    )
    # Caches in their order, which is that of their layers; several joined caches come last.
    names = [place_caches[name] for name in layers if name in place_caches]
    names += sorted(place_caches.values(), key=lambda name: (name.count("+"), name))
    return {
        name: [place for place in ordered if place_caches[place] == name]
        for name in dict.fromkeys(names)
    }


def _leave_gaps(groups: Sequence[list[str]]) -> list[str | None]:
    """Put groups side by side, with an empty slot between two."""
    slots: list[str | None] = [*groups[0]]
    for group in groups[1:]:
        slots += [None, *group]
    return slots


def _label_place(place: str, layers: Sequence[str]) -> str:
    """Label layers without their cache, which is written above them."""
    names = place.split("+")
    if place in layers:
        _, colon, layer = place.partition(":")
        return layer if colon else place
    is_all = [name for name in layers if name.startswith(f"{names[0].partition(':')[0]}:")] == names
    return f"all {len(names)} joined" if is_all or names == [*layers] else f"{len(names)} joined"


def _name_groups(plot: Any, first_slots: dict[str, int]) -> None:
    """Write the name of each cache above its first slot."""
    axis: Any = LinearAxis(
        major_label_overrides={
            slot: "joined caches" if "+" in name else clean_label(name, 24)
            for name, slot in first_slots.items()
        },
        axis_line_color=None,
        major_tick_line_color=None,
        minor_tick_line_color=None,
        major_label_text_font=FONT,
        major_label_text_font_size="12px",
        major_label_text_align="left",
    )
    axis.ticker = FixedTicker(ticks=list(first_slots.values()))
    plot.add_layout(axis, "above")


def _get_interval_end(record: HeadResult, field: str, end: int) -> float:
    interval = record.accuracy_ci if field == "accuracy" else record.validation_ci
    return float("nan") if interval is None else interval[end]


def _draw_baseline(plot: Any, baseline: float, n_slots: int, y_range: Any) -> None:
    """Draw the baseline; where it lies far below the heads, say so at the lower edge."""
    below = baseline < y_range.start
    height = y_range.start if below else baseline
    if not below:
        line = plot.line([-0.5, n_slots - 0.5], [height] * 2, line_dash="dashed", line_width=1.5)
        line.glyph.tags = [SOFT_TAG]
    text = plot.text(
        [n_slots - 0.5],
        [height],
        [f"{'↓ ' if below else ''}majority class {format_percent(baseline)}"],
        text_align="right",
        text_baseline="bottom",
        y_offset=-4,
        x_offset=-4,
        text_font={"value": FONT},
        text_font_size="12px",
    )
    text.glyph.tags = [QUIET_TAG]


def _make_y_range(records: Sequence[HeadResult], baseline: float | None) -> Range1d:
    """Return one range for validation and test, so that both can be compared by eye.

    It reaches down to the baseline where the heads keep at least a third of the height.
    """
    accuracies = [
        accuracy for r in records for accuracy in (r.validation, r.accuracy) if accuracy is not None
    ]
    margin = max(0.02, 0.08 * (max(accuracies) - min(accuracies)))
    low, high = min(accuracies), max(accuracies)
    if baseline is not None and high - baseline <= 3 * (high - low):
        low = min(low, baseline)
    return Range1d(start=max(0, low - margin), end=min(1, max(accuracies) + margin))
