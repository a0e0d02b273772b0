"""Shared parts of the charts: colours, markers, figures in the page's colour scheme."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import FixedTicker, HoverTool, Range1d
from bokeh.plotting import figure

# After the ten accessible colours of M. A. Petroff (2021), "Accessible Color Sequences for Data
# Visualization", arXiv:2107.02270. Its greys are last. Red, purple and cyan have medium lightness,
# so that they are visible on white and on near-black. Markers differ as well.
COLOURS = (
    *("#3f90da", "#ffa90e", "#d63a1e", "#a25bd0", "#58c2c7"),
    *("#e76300", "#a96b59", "#b9ac70", "#717581", "#94a4a2"),
)
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus")
OTHER_COLOUR = "#9a9a9a"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"

# The page's script colours glyphs with these tags by its colour scheme: texts, lines, quiet texts.
INK_TAG, SOFT_TAG, QUIET_TAG = "ink", "soft", "quiet"


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend; its button shows and hides the glyphs of that name.

    Attributes
    ----------
    name : str
        Of the glyphs.
    label : str
    colour, marker : str
    shown : bool
        Whether the glyphs are visible at first.
    """

    name: str
    label: str
    colour: str
    marker: str
    shown: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart as the page embeds it.

    Attributes
    ----------
    id : str
        Of the HTML element.
    title, note : str
        `note` says what is shown and what is left out, or why the chart is empty.
    item : dict, or None
        Bokeh's JSON; None for an empty chart.
    height : int
        Pixels.
    keys : list of LegendEntry
    projections : list of (str, str)
        Name and label of each projection to choose from.
    """

    id: str
    title: str
    note: str
    item: dict[str, Any] | None = None
    height: int = 0
    keys: list[LegendEntry] = field(default_factory=list)
    projections: list[tuple[str, str]] = field(default_factory=list)


def to_chart(plot: Any, id: str, title: str, note: str, keys: list[LegendEntry]) -> Chart:
    """Convert a figure to a chart.

    Parameters
    ----------
    plot : bokeh.plotting.figure
    id : str
        Of the HTML element.
    title, note : str
    keys : list of LegendEntry

    Returns
    -------
    Chart
    """
    return Chart(id, title, note, dict(json_item(plot, ID(id))), plot.height, keys)


def new_figure(height: int, *, tools: str = "", **options: Any) -> Any:
    """Return an empty figure with a transparent background; the page's script sets its colours.

    Parameters
    ----------
    height : int
        Pixels; the width follows the page.
    tools : str
        Bokeh's tools, by default none.
    **options
        Options of `bokeh.plotting.figure`.

    Returns
    -------
    bokeh.plotting.figure
    """
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
    # Dragging or scrolling over a chart moves the page until the user selects a tool.
    plot.toolbar.active_drag = plot.toolbar.active_scroll = None
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = None
    plot.axis.minor_tick_line_color = None
    plot.axis.major_label_text_font = plot.axis.axis_label_text_font = FONT
    plot.axis.major_label_text_font_size = plot.axis.axis_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    return plot


def add_hover(plot: Any, rows: Sequence[tuple[str, str]], **options: Any) -> None:
    """Add a tooltip for the glyph under the pointer.

    Parameters
    ----------
    plot : bokeh.plotting.figure
    rows : sequence of (str, str)
        Name and ``@column`` of each line.
    **options
        Options of `bokeh.models.HoverTool`.
    """
    lines = "".join(f"<div><span>{name}</span> <b>{value}</b></div>" for name, value in rows)
    plot.add_tools(HoverTool(tooltips=f"<div class='tip'>{lines}</div>", **options))


def set_tick_labels(axis: Any, labels: Sequence[str], max_length: int) -> None:
    """Label the ticks 0, 1, 2, ... of an axis; an empty label leaves its tick out.

    Parameters
    ----------
    axis : bokeh.models.Axis
    labels : sequence of str
    max_length : int
        Longer labels are cut.
    """
    # Bokeh leaves a speck where a label is empty, so such a slot has no tick.
    shown = {i: clean_label(label, max_length) for i, label in enumerate(labels) if label}
    axis.ticker, axis.major_label_overrides = FixedTicker(ticks=list(shown)), shown


def make_slot_range(n: int) -> Range1d:
    """Return the range of n slots around 0 to n - 1.

    Parameters
    ----------
    n : int

    Returns
    -------
    bokeh.models.Range1d
        -0.5 to n - 0.5.
    """
    return Range1d(start=-0.5, end=n - 0.5)


def clean_label(text: str, max_length: int = 40) -> str:
    r"""Make a name safe for a chart: one line, of limited length, never read as a formula.

    Bokeh reads text between ``$$`` or in ``\(...\)`` as TeX, and would load MathJax for it.

    Parameters
    ----------
    text : str
    max_length : int
        Longer text is cut.

    Returns
    -------
    str
    """
    text = " ".join(text.split())
    if len(text) > max_length:
        text = text[: max_length - 1] + "…"
    return text.replace("$", "$\u2060").replace("\\", "\\\u2060")
