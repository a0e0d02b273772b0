"""How results look on stdout: a few lines for a fit, tables for a comparison or an advice."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from classify.advice import Advice
from classify.checks import Checks
from classify.comparison import Comparison
from classify.console import console, number, plain
from classify.recalls import Recalls
from classify.records import Record, ranked
from classify.resampling import Estimate
from classify.savings import Saving
from classify.strategies import MEANS, SIMILARITIES, SIZES, STRATEGIES, likeness

# What fits into 80 columns.
NARROW: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
MOST_CLASSES = 20  # that are listed
UNREAD = "no image was read, no forward pass made."


def show_fit(record: Record, saved: str) -> None:
    """The result of one fit, in a few lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    validation = "not validated"
    if record.validation is not None:
        validation = f"{record.validation:.3f} right in validation"
    table.add_row("task", plain(f"{record.task}, {len(record.classes):,} classes"))
    table.add_row("head", plain(f"{record.head} on {record.layer}"))
    table.add_row("chosen", plain(f"{chosen(record)}, {validation}"))
    table.add_row("images", f"{record.n_train:,} training, {record.n_test:,} test")
    table.add_row("test", plain(_tested(record), "bold"))
    table.add_row("saved", plain(saved))
    screen = console(stderr=False)
    screen.print(table)
    if record.recall is not None:
        _show_recall(record.recall)
    screen.print(f"One head in {record.seconds:.1f} s; {UNREAD}", style="dim")


def _show_recall(recall: Recalls) -> None:
    """How much of each class is found; of many classes, the worst."""
    table = Table(**NARROW)
    table.add_column("class")
    for heading in ("found", "95 % interval", "test images"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, it in list(recall.items())[:MOST_CLASSES]:
        low, high = it["ci"]
        table.add_row(plain(label), number(it["value"]), f"{low:.3f} to {high:.3f}", f"{it['n']:,}")
    screen = console(stderr=False)
    screen.print(table)
    if len(recall) > MOST_CLASSES:
        line = f"The worst {MOST_CLASSES} of {len(recall):,} classes; --json lists them all."
        screen.print(line, style="dim")


def chosen(record: Record) -> str:
    """The chosen setting: ``C = 0.01``."""
    return ", ".join(f"{name} = {value:g}" for name, value in record.settings.items()) or "-"


def _tested(record: Any) -> str:
    if record.accuracy_ci is None:
        return "not scored: no test images"
    low, high = record.accuracy_ci
    return f"{record.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"


def show_tuned(record: Any, saved: str) -> None:
    """The result of a fine-tuning (a `classify.tuning.TuneRecord`), in a few lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    used = f"{record.n_train:,} training, {record.n_validation:,} validation"
    table.add_row("task", plain(f"{record.task}, {len(record.classes):,} classes"))
    table.add_row("strategy", plain(f"{record.strategy}: {record.backbone}, {record.tune} tuned"))
    table.add_row("images", f"{used}, {record.n_test:,} test")
    best = f"best after {record.best_epoch}, {record.validation:.3f} right in validation"
    table.add_row("epochs", f"{record.epochs}, {best}")
    table.add_row("test", plain(_tested(record), "bold"))
    table.add_row("saved", plain(saved))
    screen = console(stderr=False)
    screen.print(table)
    passes = f"{record.images_run:,} images went through the network"
    screen.print(f"{passes}, {record.seconds:.0f} s.", style="dim")


def show_automatic(found: Any, saved: str) -> None:
    """What `classify.auto` tried (an `Automatic`), the chosen one first."""
    table = Table(**NARROW)
    for title in ("strategy", "on", "validation", "test", "95 % interval", "chosen is ahead by"):
        table.add_column(title)
    for title in ("epochs", "s"):
        table.add_column(title, justify="right")
    for i, one in enumerate(found.candidates):
        low, high = one.accuracy_ci or (None, None)
        ahead = "" if one.behind is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*one.behind)
        table.add_row(
            one.strategy,
            plain(one.what),
            number(one.validation),
            number(one.accuracy),
            f"{number(low)} to {number(high)}",
            ahead,
            str(one.epochs),
            f"{one.seconds:.0f}",
            style="bold" if i == 0 else "",
        )
    screen, advice = console(stderr=False), found.advice
    sure = "" if advice.confident else ", though the evidence is thin"
    screen.print(f"{advice.size} and {advice.similarity}{sure}: {advice.strategy}")
    screen.print(table)
    screen.print(plain(f"saved: {saved}; features: {found.summary.cache}"))
    screen.print(f"{found.seconds:.0f} s in all.", style="dim")


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
        "* best by validation, whose val is the highest of several and so rather too high; ~ not "
        "distinguishable from it on these test images; < worse, allowing for the number of heads. "
        "Intervals leave out the variance of training.",
        style="dim",
    )
    lines = [f"{task}: {line}" for task, checked in checks.items() for line in checked.lines()]
    for line in lines:
        screen.print(plain(line, "yellow"))
    if lines:
        screen.print("--json lists them all, `classify report` shows them.", style="dim")
    for task, best in found.best_per_task.items():
        name = f"{best.head} on {joined.get(best.layer, best.layer)}"
        screen.print(plain(f"Best by validation, {task}: {name}; test {_tested(best)}."))


def _mark(record: Record) -> str:
    return "<" if record.worse else "~" if record.distinguishable is False else ""


def _leaderboard(records: list[Record], best: Record, joined: dict[str, str]) -> Table:
    title = (
        f"{best.task}: {len(best.classes):,} classes, "
        f"{best.n_train:,} training and {best.n_test:,} test images"
    )
    table = Table(title=plain(title), title_justify="left", title_style="bold", **NARROW)
    for heading in ("", "head"):
        table.add_column(heading, no_wrap=True)
    table.add_column("layer")
    by = [] if best.metric == "accuracy" else [best.metric.replace("_", " ")]
    for heading in (*by, "val", "test", "95 % CI", "chosen", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in ranked(records, best):
        low, high = record.accuracy_ci or (None, None)
        table.add_row(
            "*" if record is best else _mark(record),
            plain(record.head),
            plain(joined.get(record.layer, record.layer)),
            *(number(record.validation_metric) for _ in by),
            number(record.validation),
            number(record.accuracy),
            f"{number(low)}–{number(high)}" if low is not None else "-",
            plain(chosen(record).replace(" = ", " ")),
            f"{record.seconds:.1f}",
            style="bold green" if record is best else None,
        )
    return table


def show_scores(found: dict[str, Any]) -> None:
    """The scores of a saved head, each with its interval."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("task", plain(found["task"]))
    table.add_row("head", plain(f"{found['head']} on {found['layer']}"))
    table.add_row("images", f"{found['n_test']:,}")
    for name, value in found.items():
        interval = found.get(f"{name}_ci")
        if isinstance(value, float) and interval is not None:
            low, high = interval
            row = f"{value:.3f} (95 % interval {low:.3f} to {high:.3f})"
            table.add_row(plain(name.replace("_", " ")), row)
    console(stderr=False).print(table)
    _show_recall(found["recall"])


def show_advice(found: Advice, saving: Saving | None) -> None:
    """The strategy among the four, the evidence, and the commands.

    Parameters
    ----------
    saving : Saving, or None
        What cutting the network saves, where that was measured.
    """
    screen = console(stderr=False)
    screen.print(plain(f"{found.task}: {found.strategy}", "bold green"))
    screen.print(plain(f"{MEANS[found.strategy]}; layer {found.layer}"))
    sure = "" if found.confident else " as far as can be told yet: see below"
    screen.print(plain(f"The data are {found.size}, and {likeness(found.similarity)}{sure}."))
    screen.print(_quadrant(found))
    screen.print(_by_depth(found))
    screen.print(_by_count(found))
    if saving is not None:
        screen.print(
            plain(
                f"Up to {saving.layer} the network takes {saving.time:.0%} of its time on this "
                f"machine, {saving.macs:.0%} of its arithmetic, and {saving.weights:.0%} of its "
                "bytes."
            )
        )
    for reason in found.reasons:
        screen.print(plain(f"- {reason}."))
    for strategy, command in found.commands.items():
        screen.print()
        screen.print(plain(f"{strategy}: {MEANS[strategy]}", "bold"))
        # A command that was broken into lines could not be pasted.
        screen.print(plain(f"  {command}"), soft_wrap=True)
        if strategy == found.strategy and found.offer is not None:
            screen.print(plain("or a probe on all layers joined, which validate better"))
            screen.print(plain(f"  {found.offer}"), soft_wrap=True)
    screen.print(f"\nMeasured in {found.seconds:.1f} s; {UNREAD}", style="dim")


def _quadrant(found: Advice) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", *SIMILARITIES):
        table.add_column(heading)
    for size in SIZES:
        names = [STRATEGIES[size, likeness] for likeness in SIMILARITIES]
        cells = [plain(f"> {n}", "bold green") if n == found.strategy else plain(n) for n in names]
        table.add_row(size, *cells)
    return table


def _by_depth(found: Advice) -> Table:
    by_depth, _ = found.measured
    table = _measured(f"Accuracy by depth, among {by_depth.depths.among}", "layer", "depth")
    for layer, accuracy in by_depth.profile.items():
        mark = "*" if layer == found.layer else ""
        depth = f"{by_depth.depths.share[layer]:.0%}"
        table.add_row(mark, plain(layer), depth, *_cells(accuracy))
    return table


def _by_count(found: Advice) -> Table:
    _, by_count = found.measured
    table = _measured("Learning curve on the last layer", "images", "share")
    for point in by_count.curve:
        table.add_row("", f"{point.images:,}", f"{point.share:.0%}", *_cells(point.accuracy))
    return table


def _measured(title: str, *headings: str) -> Table:
    table = Table(title=plain(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in ("", headings[0]):
        table.add_column(heading)
    for heading in (headings[1], "validation", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(found: Estimate) -> tuple[str, str]:
    return number(found.value), f"{number(found.low)} to {number(found.high)}"
