"""How results look on stdout: a fit in a few lines, a comparison as a table for each task."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from classify.checks import Checks
from classify.comparison import Comparison
from classify.console import console, number
from classify.records import Record

UNREAD = "no image was read, no forward pass made."


def show_fit(record: Record, saved: str) -> None:
    """The result of one fit, in a few lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    validation = "not validated"
    if record.validation is not None:
        validation = f"{record.validation:.3f} right in validation"
    table.add_row("task", Text(f"{record.task}, {len(record.classes):,} classes"))
    table.add_row("head", Text(f"{record.head} on {record.layer}"))
    table.add_row("chosen", f"{chosen(record)}, {validation}")
    table.add_row("images", f"{record.n_train:,} training, {record.n_test:,} test")
    table.add_row("test", Text(_tested(record), "bold"))
    table.add_row("saved", Text(saved))
    screen = console(stderr=False)
    screen.print(table)
    screen.print(f"One head in {record.seconds:.1f} s; {UNREAD}", style="dim")


def chosen(record: Record) -> str:
    """The chosen setting: ``C = 0.01``."""
    return ", ".join(f"{name} = {value:g}" for name, value in record.settings.items()) or "-"


def _tested(record: Record) -> str:
    if record.accuracy_ci is None:
        return "not scored: no test images"
    low, high = record.accuracy_ci
    return f"{record.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"


def show_comparison(found: Comparison, checks: Mapping[str, Checks], all_layers: str) -> None:
    """A table for each task, best first, what it took, and what to look at in the data.

    Parameters
    ----------
    checks : mapping of str to Checks
        By task.
    all_layers : str
        The layers of the cache as a record joins them; too long to be repeated in each row.
    """
    screen = console(stderr=False)
    joined = {all_layers: f"all {all_layers.count('+') + 1} joined"} if "+" in all_layers else {}
    for task, best in found.best_per_task.items():
        rows = [record for record in found.records if record.task == task]
        screen.print(_leaderboard(rows, best, joined))
    count = len(found.records)
    heads = "One head" if count == 1 else f"{count:,} heads"
    screen.print(f"{heads} from one cache in {found.seconds:.1f} s; {UNREAD}", style="bold")
    if found.recalled:
        screen.print(f"{found.recalled:,} of them had been trained before and were kept.")
    screen.print(
        "* best by validation; ~ not distinguishable from it on these test images. Intervals leave "
        "out the variance of training.",
        style="dim",
    )
    lines = [f"{task}: {line}" for task, checked in checks.items() for line in checked.lines()]
    for line in lines:
        screen.print(line, style="yellow")
    if lines:
        screen.print("--json lists them all, `classify report` shows them.", style="dim")
    for task, best in found.best_per_task.items():
        name = f"{best.head} on {joined.get(best.layer, best.layer)}"
        screen.print(f"Best by validation, {task}: {name}; test {_tested(best)}.")


def _leaderboard(records: list[Record], best: Record, joined: dict[str, str]) -> Table:
    title = (
        f"{best.task}: {len(best.classes):,} classes, "
        f"{best.n_train:,} training and {best.n_test:,} test images"
    )
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in ("", "head", "layer"):
        table.add_column(heading)
    for heading in ("validation", "test", "95 % interval", "chosen", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in sorted(records, key=lambda r: (r is not best, -(r.validation or 0))):
        low, high = record.accuracy_ci or (None, None)
        table.add_row(
            "*" if record is best else "~" if record.distinguishable is False else "",
            record.head,
            Text(joined.get(record.layer, record.layer)),
            number(record.validation),
            number(record.accuracy),
            f"{number(low)} to {number(high)}" if low is not None else "-",
            chosen(record),
            f"{record.seconds:.1f}",
            style="bold green" if record is best else None,
        )
    return table


def show_scores(found: dict[str, Any]) -> None:
    """The scores of a saved head, each with its interval."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("task", Text(found["task"]))
    table.add_row("head", Text(f"{found['head']} on {found['layer']}"))
    table.add_row("images", f"{found['n_test']:,}")
    for name, value in found.items():
        interval = found.get(f"{name}_ci")
        if isinstance(value, float) and interval is not None:
            low, high = interval
            row = f"{value:.3f} (95 % interval {low:.3f} to {high:.3f})"
            table.add_row(name.replace("_", " "), row)
    console(stderr=False).print(table)
