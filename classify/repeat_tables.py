"""How a comparison over several draws looks on stdout."""

from rich.table import Table
from rich.text import Text

from classify.console import console, number, plain
from classify.repeats import Repeated, Summary
from classify.scores import Difference
from classify.tables import NARROW, UNREAD


def show_repeated(found: Repeated, all_layers: str) -> None:
    """A table for each task, best first, and what its intervals cover.

    Parameters
    ----------
    all_layers : str
        As in `classify.tables.show_comparison`.
    """
    screen = console(stderr=False)
    joined = {all_layers: f"all {all_layers.count('+') + 1} joined"} if "+" in all_layers else {}
    for task in found.tasks:
        rows = [row for row in found.rows if row.task == task.name]
        best = found.best_per_task.get(task.name)
        drawn = _few_shot if found.shots else _over_draws
        screen.print(drawn(found, rows, best, joined))
    screen.print(
        f"{found.heads:,} heads from one cache in {found.seconds:.1f} s; {UNREAD}", style="bold"
    )
    if found.recalled:
        screen.print(f"{found.recalled:,} of them had been trained before and were kept.")
    screen.print(
        "* best by validation; ~ not distinguishable from it; < worse, allowing for the number of "
        f"heads. {found.covers}",
        style="dim",
    )
    for name, best in found.best_per_task.items():
        low, high = best.accuracy_ci
        shots = "" if best.shots is None else f", {best.shots} images of each class"
        screen.print(
            plain(
                f"Best by validation, {name}: {best.head} on {joined.get(best.layer, best.layer)}"
                f"{shots}; test {best.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})."
            )
        )


def _times(found: Repeated) -> str:
    count, seeds = len(found.seeds), f"seeds {found.seeds[0]} to {found.seeds[-1]}"
    if found.shots:
        least, most = found.shots[0], found.shots[-1]
        images = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return f"{count} draws of {images} images of each class"
    if found.folds is None:
        return f"{count} random splits ({seeds})"
    return f"{found.folds} folds" if count == 1 else f"{count} times {found.folds} folds ({seeds})"


def _over_draws(
    found: Repeated, rows: list[Summary], best: Summary | None, joined: dict[str, str]
) -> Table:
    one = rows[0]
    counts = f"{one.n_train:,} training and {one.n_test:,} test images"
    table = _titled(f"{one.task}: {_times(found)}, {counts}", "head", "layer")
    for heading in ("val", "test", "95 % CI", "sd", "best ahead by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda r: (r is not best, -(r.validation or 0))):
        low, high = row.accuracy_ci
        table.add_row(
            *_whose(row, best, joined),
            number(row.validation),
            number(row.accuracy),
            f"{number(low)}–{number(high)}",
            number(row.accuracy_std),
            "" if row.difference is None else _apart(row.difference),
            style="bold green" if row is best else None,
        )
    return table


def _few_shot(
    found: Repeated, rows: list[Summary], best: Summary | None, joined: dict[str, str]
) -> Table:
    """A line for each head on each choice of layers, a column for each number of images."""
    lines: dict[tuple[str, str], list[Summary]] = {}
    for row in rows:
        lines.setdefault((row.head, row.layer), []).append(row)
    title = f"{rows[0].task}: {rows[0].n_test:,} test images, {_times(found)}"
    table = _titled(title, "head", "layer")
    for shots in found.shots:
        table.add_column(f"{shots}", justify="right", no_wrap=True)
    last = -1  # the most shots: what the best is chosen by
    for line in sorted(lines.values(), key=lambda it: (it[last] is not best, -it[last].accuracy)):
        table.add_row(
            *_whose(line[last], best, joined),
            *(f"{_mark(row)}{row.accuracy:.3f}±{_half(row):.3f}" for row in line),
            style="bold green" if line[last] is best else None,
        )
    return table


def _half(row: Summary) -> float:
    """Half of an interval; the longer part, where an end of the scale cuts the other off."""
    low, high = row.accuracy_ci
    return max(row.accuracy - low, high - row.accuracy)


def _apart(difference: Difference) -> str:
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _titled(title: str, *names: str) -> Table:
    table = Table(title=plain(title), title_justify="left", title_style="bold", **NARROW)
    for heading in ("", names[0]):
        table.add_column(heading, no_wrap=True)
    table.add_column(names[1])
    return table


def _whose(row: Summary, best: Summary | None, joined: dict[str, str]) -> tuple[str, Text, Text]:
    layer = joined.get(row.layer, row.layer)
    return "*" if row is best else _mark(row), plain(row.head), plain(layer)


def _mark(row: Summary) -> str:
    alike = row.difference is not None and not row.difference.distinguishable
    return "<" if row.worse else "~" if alike else ""
