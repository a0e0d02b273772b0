"""Results for stdout: a few lines for a fit, tables for a comparison or an advice."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from classify.checks.summary import DataChecks
from classify.cli.tables.places import count_caches, format_layer_cells
from classify.evaluation.bootstrap import Estimate
from classify.evaluation.recall import ClassRecalls
from classify.experiments.compare import Comparison
from classify.heads.record import HeadResult, describe_place, rank_results
from classify.strategy.advise import Advice
from classify.strategy.cut_cost import CutCost
from classify.strategy.strategies import (
    DESCRIPTIONS,
    SIMILARITIES,
    SIZES,
    STRATEGIES,
    describe_similarity,
)
from featurize.cli.console import make_console, make_text

# Fits into 80 columns.
TABLE_STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
MAX_LISTED_CLASSES = 20
NO_IMAGE_READ = "no image was read, no forward pass made."


def show_fit(record: HeadResult, saved: str) -> None:
    """Print the result of one fit in a few lines.

    Parameters
    ----------
    record : HeadResult
        The trained head and its test metrics.
    saved : str
        The file of the head.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # the names of layers stay whole
    validation = "not validated"
    if record.validation is not None:
        validation = f"{record.validation:.3f} right in validation"
    table.add_row("task", make_text(f"{record.task}, {len(record.classes):,} classes"))
    table.add_row("head", make_text(f"{record.head} on {record.layer}"))
    table.add_row("chosen", make_text(f"{_format_settings(record)}, {validation}"))
    table.add_row("images", f"{record.n_train:,} training, {record.n_test:,} test")
    table.add_row("test", make_text(_format_test_accuracy(record), "bold"))
    for row in _list_doubt_rows(record.doubt):
        table.add_row(*row)
    table.add_row("saved", make_text(saved))
    console = make_console(stderr=False)
    console.print(table)
    if record.recall is not None:
        _show_recall(record.recall)
    what_ran = NO_IMAGE_READ if record.n_train else "no image was read."
    console.print(f"One head in {record.seconds:.1f} s; {what_ran}", style="dim")


def _list_doubt_rows(doubt: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Describe prediction sets and false alarms in rows of a table."""
    if not doubt or "realised" not in doubt:
        return []
    low, high = doubt["realised_ci"]
    rows = [
        (
            "sets",
            f"asked to hold {doubt['coverage']:.0%} of the truths, hold {doubt['realised']:.1%} "
            f"({low:.1%} to {high:.1%}); {doubt['set_size']:.2f} classes on average",
        )
    ]
    if "unknown" in doubt:
        low, high = doubt["unknown_ci"]
        share = f"{doubt['unknown']:.1%} of these images ({low:.1%} to {high:.1%})"
        rows.append(("unknown", f"{share}, of which none is"))
    return rows


def _show_recall(recall: ClassRecalls) -> None:
    """Print the recall of each class; of many classes, the lowest ones."""
    table = Table(**TABLE_STYLE)
    table.add_column("class")
    for heading in ("found", "95 % interval", "test images"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, class_recall in list(recall.items())[:MAX_LISTED_CLASSES]:
        low, high = class_recall["ci"]
        table.add_row(
            make_text(label),
            format_number(class_recall["value"]),
            f"{low:.3f} to {high:.3f}",
            f"{class_recall['n']:,}",
        )
    console = make_console(stderr=False)
    console.print(table)
    if len(recall) > MAX_LISTED_CLASSES:
        line = f"The worst {MAX_LISTED_CLASSES} of {len(recall):,} classes; --json lists them all."
        console.print(line, style="dim")


def format_number(value: float | None) -> str:
    """Format a number with three decimals.

    Parameters
    ----------
    value : float, or None

    Returns
    -------
    str
        A dash for None.
    """
    return "-" if value is None else f"{value:.3f}"


def _format_settings(record: HeadResult) -> str:
    """Format the params that validation chose: ``C = 0.01``."""
    return ", ".join(f"{name} = {value:g}" for name, value in record.settings.items()) or "-"


def _format_test_accuracy(record: Any) -> str:
    if record.accuracy_ci is None:
        return "not scored: no test images"
    low, high = record.accuracy_ci
    return f"{record.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"


def show_finetune(record: Any, saved: str) -> None:
    """Print the result of a fine-tuning in a few lines.

    Parameters
    ----------
    record : FineTuneResult
        The tuned network and its test metrics.
    saved : str
        The file of network and classifier.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # the names of layers stay whole
    counts = f"{record.n_train:,} training, {record.n_validation:,} validation"
    table.add_row("task", make_text(f"{record.task}, {len(record.classes):,} classes"))
    table.add_row(
        "strategy", make_text(f"{record.strategy}: {record.backbone}, {record.tune} tuned")
    )
    table.add_row("images", f"{counts}, {record.n_test:,} test")
    best = f"best after {record.best_epoch}, {record.validation:.3f} right in validation"
    table.add_row("epochs", f"{record.epochs}, {best}")
    table.add_row("test", make_text(_format_test_accuracy(record), "bold"))
    table.add_row("saved", make_text(saved))
    console = make_console(stderr=False)
    console.print(table)
    passes = f"{record.images_run:,} images went through the network"
    console.print(f"{passes}, {record.seconds:.0f} s.", style="dim")


def show_comparison(
    comparison: Comparison,
    checks: Mapping[str, DataChecks],
    joined: Mapping[str, str],
    commands: Mapping[str, str],
) -> None:
    """Print a table for each task, best head first, the time taken, and checks of the data.

    Parameters
    ----------
    comparison : Comparison
        The result of `classify.compare`.
    checks : mapping of str to DataChecks
        The checks of the data, by task.
    joined : mapping of str to str
        As `classify.data.sets.cache_set.label_joined_layers` returns it.
    commands : mapping of str to str
        The command that saves the best head, by task; empty where there is none.
    """
    console = make_console(stderr=False)
    for task, best in comparison.best_per_task.items():
        rows = [record for record in comparison.records if record.task == task]
        console.print(_build_leaderboard(rows, best, joined))
    n_heads = len(comparison.records)
    heads = "One head" if n_heads == 1 else f"{n_heads:,} heads"
    console.print(
        f"{heads} from {count_caches(comparison.caches)} in {comparison.seconds:.1f} s; "
        f"{NO_IMAGE_READ}",
        style="bold",
    )
    if comparison.n_reused:
        console.print(f"{comparison.n_reused:,} of them had been trained before and were kept.")
    if comparison.caches:
        console.print(
            "columns: numbers of an image. GMAC: 1e9 operations of the network for an image.",
            style="dim",
        )
    console.print(
        "* best by validation, whose val is the highest of several and so rather too high; ~ not "
        "distinguishable from it on these test images; < worse, allowing for the number of heads; "
        "no mark: between the two. Intervals leave out the variance of training.",
        style="dim",
    )
    lines = [
        f"{task}: {line}" for task, checked in checks.items() for line in checked.summary_lines()
    ]
    for line in lines:
        console.print(make_text(line, "yellow"))
    if lines:
        console.print("--json lists them all, `classify report` shows them.", style="dim")
    for task, best in comparison.best_per_task.items():
        name = f"{best.head} on {describe_place(best.layer, best.cache, joined)}"
        console.print(
            make_text(f"Best by validation, {task}: {name}; test {_format_test_accuracy(best)}.")
        )
        if task in commands:
            console.print(make_text(f"  {commands[task]}"), soft_wrap=True)


def _get_mark(record: HeadResult) -> str:
    return "<" if record.worse else "~" if record.distinguishable is False else ""


def _build_leaderboard(
    records: list[HeadResult], best: HeadResult, joined: Mapping[str, str]
) -> Table:
    title = (
        f"{best.task}: {len(best.classes):,} classes, "
        f"{best.n_train:,} training and {best.n_test:,} test images"
    )
    table = Table(title=make_text(title), title_justify="left", title_style="bold", **TABLE_STYLE)
    for heading in ("", "head"):
        table.add_column(heading, no_wrap=True)
    several = best.cache is not None
    for heading in ("cache", "layer") if several else ("layer",):
        table.add_column(heading, overflow="fold")
    metric_heading = [] if best.metric == "accuracy" else [best.metric.replace("_", " ")]
    # Of several caches, what an image costs matters more; both would not fit.
    last_headings = ("columns", "GMAC") if several else ("chosen", "s")
    for heading in (*metric_heading, "val", "test", "95 % CI", *last_headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in rank_results(records, best):
        low, high = record.accuracy_ci or (None, None)
        table.add_row(
            "*" if record is best else _get_mark(record),
            make_text(record.head),
            *format_layer_cells(record, joined),
            *(format_number(record.validation_metric) for _ in metric_heading),
            format_number(record.validation),
            format_number(record.accuracy),
            f"{format_number(low)}–{format_number(high)}" if low is not None else "-",
            *_format_last_cells(record),
            style="bold green" if record is best else None,
        )
    return table


def _format_last_cells(record: HeadResult) -> tuple[str | Text, str]:
    if record.columns is not None:
        return f"{record.columns:,}", "-" if record.gmacs is None else f"{record.gmacs:.2f}"
    return make_text(_format_settings(record).replace(" = ", " ")), f"{record.seconds:.1f}"


def show_evaluation(metrics: dict[str, Any]) -> None:
    """Print the metrics of a saved head, each with its interval.

    Parameters
    ----------
    metrics : dict of str to object
        As `classify.evaluate` returns it.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # the names of layers stay whole
    table.add_row("task", make_text(metrics["task"]))
    table.add_row("head", make_text(f"{metrics['head']} on {metrics['layer']}"))
    table.add_row("images", f"{metrics['n_test']:,}")
    for name, value in metrics.items():
        interval = metrics.get(f"{name}_ci")
        if isinstance(value, float) and interval is not None:
            low, high = interval
            row = f"{value:.3f} (95 % interval {low:.3f} to {high:.3f})"
            table.add_row(make_text(name.replace("_", " ")), row)
    for doubt_row in _list_doubt_rows(metrics.get("doubt")):
        table.add_row(*doubt_row)
    make_console(stderr=False).print(table)
    _show_recall(metrics["recall"])


def show_advice(advice: Advice, saving: CutCost | None) -> None:
    """Print the advised strategy among the four, the evidence, and the commands.

    Parameters
    ----------
    advice : Advice
        The result of `classify.advise`.
    saving : CutCost, or None
        The cost of the truncated network, if it was measured.
    """
    console = make_console(stderr=False)
    console.print(make_text(f"{advice.task}: {advice.strategy}", "bold green"))
    console.print(make_text(f"{DESCRIPTIONS[advice.strategy]}; layer {advice.layer}"))
    caveat = "" if advice.confident else " as far as can be told yet: see below"
    console.print(
        make_text(
            f"The data are {advice.size}, and {describe_similarity(advice.similarity)}{caveat}."
        )
    )
    console.print(_build_strategy_table(advice))
    console.print(_build_depth_table(advice))
    console.print(_build_curve_table(advice))
    if saving is not None:
        console.print(
            make_text(
                f"Up to {saving.layer} the network takes {saving.time:.0%} of its time on this "
                f"machine, {saving.macs:.0%} of its arithmetic, and {saving.weights:.0%} of its "
                "bytes."
            )
        )
    for reason in advice.reasons:
        console.print(make_text(f"- {reason}."))
    for strategy, command in advice.commands.items():
        console.print()
        console.print(make_text(f"{strategy}: {DESCRIPTIONS[strategy]}", "bold"))
        # Do not wrap the command: it must remain one line to be pasted.
        console.print(make_text(f"  {command}"), soft_wrap=True)
        if strategy == advice.strategy and advice.joined_layers_command is not None:
            console.print(make_text("or a probe on all layers joined, which validate better"))
            console.print(make_text(f"  {advice.joined_layers_command}"), soft_wrap=True)
    console.print(f"\nMeasured in {advice.seconds:.1f} s; {NO_IMAGE_READ}", style="dim")


def _build_strategy_table(advice: Advice) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", *SIMILARITIES):
        table.add_column(heading, overflow="fold")
    for size in SIZES:
        names = [STRATEGIES[size, similarity] for similarity in SIMILARITIES]
        cells = [
            make_text(f"> {name}", "bold green") if name == advice.strategy else make_text(name)
            for name in names
        ]
        table.add_row(size, *cells)
    return table


def _build_depth_table(advice: Advice) -> Table:
    profile, _ = advice.measured
    table = _new_estimate_table(
        f"Accuracy by depth, among {profile.depths.among}", "layer", "depth"
    )
    for layer, accuracy in profile.accuracy_by_layer.items():
        mark = "*" if layer == advice.layer else ""
        depth = f"{profile.depths.relative[layer]:.0%}"
        table.add_row(mark, make_text(layer), depth, *_format_estimate(accuracy))
    return table


def _build_curve_table(advice: Advice) -> Table:
    _, dataset_size = advice.measured
    table = _new_estimate_table("Learning curve on the last layer", "images", "share")
    for point in dataset_size.curve:
        table.add_row(
            "", f"{point.n_images:,}", f"{point.fraction:.0%}", *_format_estimate(point.accuracy)
        )
    return table


def _new_estimate_table(title: str, *headings: str) -> Table:
    table = Table(
        title=make_text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for heading in ("", headings[0]):
        table.add_column(heading, overflow="fold")
    for heading in (headings[1], "validation", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _format_estimate(estimate: Estimate) -> tuple[str, str]:
    interval = f"{format_number(estimate.low)} to {format_number(estimate.high)}"
    return format_number(estimate.value), interval
