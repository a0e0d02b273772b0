"""Tables of a comparison over several draws, for stdout."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from classify.cli.tables.classes import NO_IMAGE_READ, TABLE_STYLE, format_number
from classify.cli.tables.places import count_caches, format_layer_cells
from classify.evaluation.paired import Difference
from classify.experiments.repeats import HeadSummary, RepeatedComparison
from classify.heads.record import describe_place
from featurize.cli.console import make_console, make_text


def show_repeated_comparison(comparison: RepeatedComparison, joined: Mapping[str, str]) -> None:
    """Print a table for each task, best head first, and what the intervals cover.

    Parameters
    ----------
    comparison : RepeatedComparison
        The result of `classify.compare` with repeats, shots or folds.
    joined : mapping of str to str
        As in `classify.cli.tables.classes.show_comparison`.
    """
    console = make_console(stderr=False)
    for task in comparison.tasks:
        rows = [row for row in comparison.rows if row.task == task.name]
        best = comparison.best_per_task.get(task.name)
        build_table = _build_few_shot_table if comparison.shots else _build_draws_table
        console.print(build_table(comparison, rows, best, joined))
    console.print(
        f"{comparison.n_heads:,} heads from {count_caches(comparison.caches)} in "
        f"{comparison.seconds:.1f} s; "
        f"{NO_IMAGE_READ}",
        style="bold",
    )
    if comparison.n_reused:
        console.print(f"{comparison.n_reused:,} of them had been trained before and were kept.")
    console.print(
        "* best by validation; ~ not distinguishable from it; < worse, allowing for the number of "
        f"heads. {comparison.interval_note}",
        style="dim",
    )
    for name, best in comparison.best_per_task.items():
        low, high = best.accuracy_ci
        shots = "" if best.shots is None else f", {best.shots} images of each class"
        console.print(
            make_text(
                f"Best by validation, {name}: {best.head} on "
                f"{describe_place(best.layer, best.cache, joined)}"
                f"{shots}; test {best.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})."
            )
        )


def _describe_draws(comparison: RepeatedComparison) -> str:
    count, seeds = len(comparison.seeds), f"seeds {comparison.seeds[0]} to {comparison.seeds[-1]}"
    if comparison.shots:
        least, most = comparison.shots[0], comparison.shots[-1]
        images = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return f"{count} draws of {images} images of each class"
    if comparison.folds is None:
        return f"{count} random splits ({seeds})"
    folds = f"{comparison.folds} folds"
    return folds if count == 1 else f"{count} times {folds} ({seeds})"


def _build_draws_table(
    comparison: RepeatedComparison,
    rows: list[HeadSummary],
    best: HeadSummary | None,
    joined: Mapping[str, str],
) -> Table:
    first = rows[0]
    counts = f"{first.n_train:,} training and {first.n_test:,} test images"
    table = _new_table(f"{first.task}: {_describe_draws(comparison)}, {counts}", first)
    for heading in ("val", "test", "95 % CI", "sd", "best ahead by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row is not best, -(row.validation or 0))):
        low, high = row.accuracy_ci
        table.add_row(
            *_format_head(row, best, joined),
            format_number(row.validation),
            format_number(row.accuracy),
            f"{format_number(low)}–{format_number(high)}",
            format_number(row.accuracy_std),
            "" if row.difference is None else _format_difference(row.difference),
            style="bold green" if row is best else None,
        )
    return table


def _build_few_shot_table(
    comparison: RepeatedComparison,
    rows: list[HeadSummary],
    best: HeadSummary | None,
    joined: Mapping[str, str],
) -> Table:
    """Build a table with a row per head and layers, and a column per number of images."""
    rows_by_head: dict[tuple[str, str], list[HeadSummary]] = {}
    for row in rows:
        rows_by_head.setdefault((row.head, row.place), []).append(row)
    title = f"{rows[0].task}: {rows[0].n_test:,} test images, {_describe_draws(comparison)}"
    table = _new_table(title, rows[0])
    for shots in comparison.shots:
        table.add_column(f"{shots}", justify="right", no_wrap=True)
    last = -1  # the most shots, which the best head is chosen by
    for head_rows in sorted(
        rows_by_head.values(), key=lambda rows: (rows[last] is not best, -rows[last].accuracy)
    ):
        table.add_row(
            *_format_head(head_rows[last], best, joined),
            *(
                f"{_get_mark(row)}{row.accuracy:.3f}±{_compute_half_width(row):.3f}"
                for row in head_rows
            ),
            style="bold green" if head_rows[last] is best else None,
        )
    return table


def _compute_half_width(row: HeadSummary) -> float:
    """Return the longer half of an interval; the other may be cut at 0 or 1."""
    low, high = row.accuracy_ci
    return max(row.accuracy - low, high - row.accuracy)


def _format_difference(difference: Difference) -> str:
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _new_table(title: str, row: HeadSummary) -> Table:
    table = Table(title=make_text(title), title_justify="left", title_style="bold", **TABLE_STYLE)
    for heading in ("", "head"):
        table.add_column(heading, no_wrap=True)
    for heading in ("layer",) if row.cache is None else ("cache", "layer"):
        table.add_column(heading, overflow="fold")
    return table


def _format_head(
    row: HeadSummary, best: HeadSummary | None, joined: Mapping[str, str]
) -> tuple[str | Text, ...]:
    mark = "*" if row is best else _get_mark(row)
    return mark, make_text(row.head), *format_layer_cells(row, joined)


def _get_mark(row: HeadSummary) -> str:
    is_tied = row.difference is not None and not row.difference.distinguishable
    return "<" if row.worse else "~" if is_tied else ""
