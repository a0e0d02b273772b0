"""What `auto` tried, for stdout: a table, and what else could have been saved."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from classify.cli.tables.classes import TABLE_STYLE, format_number
from featurize.cli.console import make_console, make_text
from featurize.text import format_duration

if TYPE_CHECKING:
    from classify.strategy.auto import AutoResult
    from classify.strategy.tried.better import BetterCandidate

WIDE = 110  # columns from which a number and its interval stand on one line


def show_auto(result: "AutoResult", saved: str) -> None:
    """Print the strategies that `classify.auto` tried, the saved one first.

    Parameters
    ----------
    result : AutoResult
        The candidates with their metrics.
    saved : str
        The file of the chosen one.
    """
    console, advice = make_console(stderr=False), result.advice
    caveat = "" if advice.confident else ", though the evidence is thin"
    console.print(f"{advice.size} and {advice.similarity}{caveat}: {advice.strategy}")
    console.print(_build_table(result, " " if console.width >= WIDE else "\n"))
    console.print(
        "val: the share that is right of images held out of training; test: of the test "
        "images. saved minus this: by how much what is saved has more of the test images right "
        "than this line. In brackets 95 % intervals; a difference whose interval holds 0 may be "
        "chance.",
        style="dim",
    )
    if result.better is not None:
        _show_better(console, result, result.better)
    console.print(make_text(f"saved: {saved}; features: {result.summary.cache}"), soft_wrap=True)
    console.print(f"{result.seconds:.0f} s in all.", style="dim")


def _shorten(result: "AutoResult", what: str) -> str:
    """Shorten the name of all layers joined, as `compare` does."""
    layers = list(result.advice.depth_profile.accuracy_by_layer)
    return f"all {len(layers)} joined" if what == "+".join(layers) and layers[1:] else what


def _build_table(result: "AutoResult", gap: str) -> Table:
    table = Table(**TABLE_STYLE)
    table.add_column("strategy", no_wrap=True)
    table.add_column("on", overflow="fold")
    for heading in ("val", "test", "saved minus this", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in result.candidates:
        is_saved = candidate is result.chosen
        difference = "(saved)" if is_saved else "-"
        if candidate.behind is not None:
            value, low, high = candidate.behind
            difference = f"{value:+.3f}{gap}({low:+.3f} to {high:+.3f})"
        what = _shorten(result, candidate.what)
        if candidate.epochs:
            what += f"; {candidate.epochs} {'epoch' if candidate.epochs == 1 else 'epochs'}"
        accuracy = format_number(candidate.accuracy)
        if candidate.accuracy_ci is not None:
            low, high = candidate.accuracy_ci
            accuracy += f"{gap}({low:.3f} to {high:.3f})"
        table.add_row(
            candidate.strategy,
            make_text(what),
            format_number(candidate.validation),
            accuracy,
            difference,
            f"{candidate.seconds:.0f}",
            style="bold" if is_saved else "",
        )
    return table


def _show_better(console: Console, result: "AutoResult", better: "BetterCandidate") -> None:
    """Print which candidate validates better than the saved one, and how to save it."""
    value, low, high = better.ahead
    what = _shorten(result, better.what)
    chance = "" if better.certain else ", which may be chance"
    durations = " instead of ".join(format_duration(one.seconds) for one in (better, result.chosen))
    console.print(
        make_text(
            f"{better.strategy} ({what}) validates better than what is saved, by {value:+.3f} "
            f"(95 % interval {low:+.3f} to {high:+.3f}, the same {better.n_images:,} images)"
            f"{chance}. It trained for {durations}. To save it too:",
            "yellow",
        )
    )
    # Do not wrap the command: it must remain one line to be pasted.
    console.print(make_text(f"  {better.command}"), soft_wrap=True)
