"""What all charts have in common: colours, markers, and figures that follow the page's scheme."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import FixedTicker, HoverTool, Range1d
from bokeh.plotting import figure

# After the ten colours that the colour-blind tell apart of M. A. Petroff (2021), "Accessible Color
# Sequences for Data Visualization", arXiv:2107.02270. Its greys stand at the end; red, purple and
# cyan are nearer to the middle, to be seen on white and on near-black. Markers differ as well.
COLOURS = (
    *("#3f90da", "#ffa90e", "#d63a1e", "#a25bd0", "#58c2c7"),
    *("#e76300", "#a96b59", "#b9ac70", "#717581", "#94a4a2"),
)
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus")
OTHER_COLOUR = "#9a9a9a"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"

# The page's script gives glyphs with these tags the colour that its scheme has for it.
INK_TAG, SOFT_TAG = "ink", "soft"


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend; its button shows and hides the glyphs of that name."""

    name: str
    label: str
    colour: str
    marker: str
    shown: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart as the page holds it.

    Attributes
    ----------
    id : str
        Of the element it is drawn in.
    title, note : str
        `note` says what is shown and what is left out, or why nothing is drawn.
    item : dict, or None
        Bokeh's JSON; None where there is nothing to draw.
    height : int
        In pixels.
    keys : list of LegendEntry
    ways : list of (str, str)
        Projections to choose from, by name and label.
    """

    id: str
    title: str
    note: str
    item: dict[str, Any] | None = None
    height: int = 0
    keys: list[LegendEntry] = field(default_factory=list)
    projections: list[tuple[str, str]] = field(default_factory=list)


def to_chart(plot: Any, id: str, title: str, note: str, keys: list[LegendEntry]) -> Chart:
    """A chart of a figure."""
    return Chart(id, title, note, dict(json_item(plot, ID(id))), plot.height, keys)


def new_figure(height: int, *, tools: str = "", **options: Any) -> Any:
    """An empty figure without a background; the page's script gives it ink."""
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=tools,
        toolbar_location="above" if tools else None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        min_border_top=10,
        outline_line_color=None,
        **options,
    )
    plot.toolbar.logo = None
    # A drag or a wheel over a chart scrolls the page, until a tool is chosen.
    plot.toolbar.active_drag = plot.toolbar.active_scroll = None
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = None
    plot.axis.minor_tick_line_color = None
    plot.axis.major_label_text_font = plot.axis.axis_label_text_font = FONT
    plot.axis.major_label_text_font_size = plot.axis.axis_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    return plot


def add_hover(plot: Any, rows: Sequence[tuple[str, str]], **options: Any) -> None:
    """Say something of what the pointer is over: lines of a name and a ``@column``."""
    lines = "".join(f"<div><span>{name}</span> <b>{value}</b></div>" for name, value in rows)
    plot.add_tools(HoverTool(tooltips=f"<div class='tip'>{lines}</div>", **options))


def set_tick_labels(axis: Any, labels: Sequence[str], max_length: int) -> None:
    """Put texts at 0, 1, 2, ... of an axis."""
    axis.ticker = FixedTicker(ticks=list(range(len(labels))))
    axis.major_label_overrides = {
        i: clean_label(label, max_length) for i, label in enumerate(labels)
    }


def make_slot_range(n: int) -> Range1d:
    """The range that holds 0 to n - 1, with half a slot around."""
    return Range1d(start=-0.5, end=n - 0.5)


def clean_label(text: str, max_length: int = 40) -> str:
    """A name for a chart: one line, cut to length, and never taken for a formula.

    Bokeh reads text between ``$$`` or in ``\\(...\\)`` as TeX, and would fetch MathJax for it.
    """
    text = " ".join(text.split())
    if len(text) > max_length:
        text = text[: max_length - 1] + "…"
    return text.replace("$", "$\u2060").replace("\\", "\\\u2060")
