"""The advice: the four strategies with the one that fits, and the evidence for it."""

from dataclasses import dataclass

from bokeh.models import ColumnDataSource, NumeralTickFormatter, Range1d

from classify.advice import Advice
from classify.pages.figures import COLOURS, Chart, blank, drawn, hover, named_ticks, plain, slots
from classify.resampling import Estimate
from classify.strategies import MEANS, SIMILARITIES, SIZES, STRATEGIES, likeness


@dataclass(frozen=True)
class Counsel:
    """What the page says of an advice.

    Attributes
    ----------
    likeness, means : str
        Similarity and strategy in words.
    rows : list of (str, list of str)
        Sizes, and the strategies for each similarity.
    charts : list of Chart
        Accuracy by depth, and the learning curve.
    commands : list of (str, str)
    """

    advice: Advice
    likeness: str
    means: str
    headings: tuple[str, ...]
    rows: list[tuple[str, list[str]]]
    charts: list[Chart]
    commands: list[tuple[str, str]]


def counsel(advice: Advice, id: str) -> Counsel:
    """Prepare an advice for the page; ids of its charts begin with `id`."""
    commands = list(advice.commands.items())
    if advice.offer is not None:
        commands.append(("all layers joined, which validate better", advice.offer))
    return Counsel(
        advice=advice,
        likeness=likeness(advice.similarity),
        means=MEANS[advice.strategy],
        headings=SIMILARITIES,
        rows=[(size, [STRATEGIES[size, like] for like in SIMILARITIES]) for size in SIZES],
        charts=[_depth(advice, f"{id}-depth"), _curve(advice, f"{id}-curve")],
        commands=commands,
    )


def _depth(advice: Advice, id: str) -> Chart:
    found, _ = advice.measured
    names = list(found.profile)
    depths = [f"{found.depths.share[name]:.0%}" for name in names]
    labels = [f"{name} ({share})" for name, share in zip(names, depths, strict=True)]
    note = (
        f"A linear head (lda) out of fold, by depth among {plain(found.depths.among)}; bars are "
        f"95 % intervals. The square is {plain(advice.layer)}, where the head goes."
    )
    chosen = [name == advice.layer for name in names]
    return _measured(id, "Accuracy by depth", note, labels, list(found.profile.values()), chosen)


def _curve(advice: Advice, id: str) -> Chart:
    found, _ = advice.measured
    _, size = advice.measured
    labels = [f"{point.images:,} ({point.share:.0%})" for point in size.curve]
    note = (
        f"A linear head (lda) on {plain(found.last)}, by the number of images it learns from, "
        "always asked the same held-out images."
    )
    points = [point.accuracy for point in size.curve]
    return _measured(id, "Learning curve", note, labels, points, [False] * len(points))


def _measured(
    id: str, title: str, note: str, labels: list[str], points: list[Estimate], chosen: list[bool]
) -> Chart:
    low, high = min(p.low for p in points), max(p.high for p in points)
    room = max(0.02, 0.08 * (high - low))
    y_range = Range1d(start=max(0, low - room), end=min(1, high + room))
    plot = blank(260, x_range=slots(len(points)), y_range=y_range)
    source = ColumnDataSource(
        {
            "x": list(range(len(points))),
            "y": [p.value for p in points],
            "low": [p.low for p in points],
            "high": [p.high for p in points],
            "name": [plain(label, 80) for label in labels],
            "size": [14 if it else 8 for it in chosen],
            "marker": ["square" if it else "circle" for it in chosen],
        }
    )
    plot.line("x", "y", source=source, line_width=2, color=COLOURS[0])
    dots = plot.scatter(
        "x", "y", source=source, size="size", marker="marker", color=COLOURS[0], name="points"
    )
    plot.segment("x", "low", "x", "high", source=source, line_width=1.5, color=COLOURS[0])
    hover(
        plot,
        [("", "@name"), ("right", "@y{0.0 %}"), ("95 %", "@low{0.0 %} to @high{0.0 %}")],
        renderers=[dots],
    )
    named_ticks(plot.xaxis[0], labels, 26)
    plot.xaxis.major_label_orientation = 0.7
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.xgrid.visible = False
    return drawn(plot, id, title, note, [])
