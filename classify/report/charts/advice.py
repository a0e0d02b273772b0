"""The advice on a strategy, with charts of the evidence."""

from dataclasses import dataclass

from bokeh.models import ColumnDataSource, NumeralTickFormatter, Range1d

from classify.evaluation.bootstrap import Estimate
from classify.report.charts.base import (
    COLOURS,
    Chart,
    add_hover,
    clean_label,
    make_slot_range,
    new_figure,
    set_tick_labels,
    to_chart,
)
from classify.strategy.advise import Advice
from classify.strategy.strategies import (
    DESCRIPTIONS,
    SIMILARITIES,
    SIZES,
    STRATEGIES,
    describe_similarity,
)


@dataclass(frozen=True)
class AdviceSection:
    """An advice prepared for the page.

    Attributes
    ----------
    advice : Advice
    similarity_text, description : str
        Similarity and strategy in words.
    headings : tuple of str
        The similarities.
    strategy_rows : list of (str, list of str)
        Sizes, and the strategies for each similarity.
    charts : list of Chart
        Accuracy by depth, and the learning curve.
    commands : list of (str, str)
        Title and command.
    """

    advice: Advice
    similarity_text: str
    description: str
    headings: tuple[str, ...]
    strategy_rows: list[tuple[str, list[str]]]
    charts: list[Chart]
    commands: list[tuple[str, str]]


def advice_section(advice: Advice, id: str) -> AdviceSection:
    """Prepare an advice for the page.

    Parameters
    ----------
    advice : Advice
    id : str
        The ids of the charts begin with it.

    Returns
    -------
    AdviceSection
    """
    commands = list(advice.commands.items())
    if advice.joined_layers_command is not None:
        commands.append(("all layers joined, which validate better", advice.joined_layers_command))
    return AdviceSection(
        advice=advice,
        similarity_text=describe_similarity(advice.similarity),
        description=DESCRIPTIONS[advice.strategy],
        headings=SIMILARITIES,
        strategy_rows=[
            (size, [STRATEGIES[size, similarity] for similarity in SIMILARITIES]) for size in SIZES
        ],
        charts=[_chart_depth(advice, f"{id}-depth"), _chart_curve(advice, f"{id}-curve")],
        commands=commands,
    )


def _chart_depth(advice: Advice, id: str) -> Chart:
    profile = advice.depth_profile
    names = list(profile.accuracy_by_layer)
    depths = [f"{profile.depths.relative[name]:.0%}" for name in names]
    labels = [f"{name} ({share})" for name, share in zip(names, depths, strict=True)]
    note = (
        f"Held-out accuracy of a linear head (lda), by depth among "
        f"{clean_label(profile.depths.among)}; "
        f"bars are 95 % intervals. The square is {clean_label(advice.layer)}, where the head goes."
    )
    chosen = [name == advice.layer for name in names]
    return _chart_estimates(
        id, "Accuracy by depth", note, labels, list(profile.accuracy_by_layer.values()), chosen
    )


def _chart_curve(advice: Advice, id: str) -> Chart:
    profile, size = advice.measured
    labels = [f"{point.n_images:,} ({point.fraction:.0%})" for point in size.curve]
    note = (
        f"A linear head (lda) on {clean_label(profile.last_layer)}, by number of training images, "
        "always tested on the same held-out images."
    )
    points = [point.accuracy for point in size.curve]
    return _chart_estimates(id, "Learning curve", note, labels, points, [False] * len(points))


def _chart_estimates(
    id: str, title: str, note: str, labels: list[str], points: list[Estimate], chosen: list[bool]
) -> Chart:
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = max(0.02, 0.08 * (high - low))
    y_range = Range1d(start=max(0, low - margin), end=min(1, high + margin))
    plot = new_figure(260, x_range=make_slot_range(len(points)), y_range=y_range)
    source = ColumnDataSource(
        {
            "x": list(range(len(points))),
            "y": [point.value for point in points],
            "low": [point.low for point in points],
            "high": [point.high for point in points],
            "name": [clean_label(label, 80) for label in labels],
            "size": [14 if is_chosen else 8 for is_chosen in chosen],
            "marker": ["square" if is_chosen else "circle" for is_chosen in chosen],
        }
    )
    plot.line("x", "y", source=source, line_width=2, color=COLOURS[0])
    dots = plot.scatter(
        "x", "y", source=source, size="size", marker="marker", color=COLOURS[0], name="points"
    )
    plot.segment("x", "low", "x", "high", source=source, line_width=1.5, color=COLOURS[0])
    add_hover(
        plot,
        [("", "@name"), ("right", "@y{0.0 %}"), ("95 %", "@low{0.0 %} to @high{0.0 %}")],
        renderers=[dots],
    )
    set_tick_labels(plot.xaxis[0], labels, 26)
    plot.xaxis.major_label_orientation = 0.7
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.xgrid.visible = False
    return to_chart(plot, id, title, note, [])
