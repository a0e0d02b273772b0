"""Results for stdout: of heads for several labels, numbers and grades."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from classify.evaluation.targets.metrics import LOWER_IS_BETTER
from classify.evaluation.targets.titles import format_metric_name
from classify.experiments.targets.compare import TargetComparison, rank_target_results
from classify.heads.targets.record import TargetResult
from classify.kinds import KIND_NOUNS, NUMBER
from featurize.cli.console import make_console, make_text

TABLE_STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
MAX_LISTED = 20  # labels, or grades of a confusion table
NO_IMAGE_READ = "no image was read, no forward pass made."


def show_target_fit(record: TargetResult, saved: str) -> None:
    """Print the result of one fit in a few lines.

    Parameters
    ----------
    record : TargetResult
    saved : str
        The file of the head.
    """
    table = _make_grid()
    table.add_row("task", make_text(f"{record.task}, {_count_names(record)}"))
    table.add_row("head", make_text(f"{record.head} on {record.layer}, {record.prepare} features"))
    table.add_row("chosen", make_text(_format_settings(record) or "-"))
    table.add_row("images", f"{record.n_train:,} training, {record.n_test:,} test")
    for row in _list_test_rows(record):
        table.add_row(*row)
    table.add_row("saved", make_text(saved))
    console = make_console(stderr=False)
    console.print(table)
    _show_labels(record.labels)
    _show_confusion(record.names, record.confusion)
    console.print(f"{record.seconds:.1f} s; {NO_IMAGE_READ}", style="dim")


def show_target_finetune(record: Any, saved: str) -> None:
    """Print the result of a fine-tuning in a few lines.

    Parameters
    ----------
    record : FineTuneTargetResult
    saved : str
        The file of network and classifier.
    """
    table = _make_grid()
    counts = f"{record.n_train:,} training, {record.n_validation:,} validation"
    table.add_row("task", make_text(f"{record.task}, {_count_names(record)}"))
    strategy = f"{record.strategy}: {record.backbone}, {record.tune} tuned"
    table.add_row("strategy", make_text(strategy))
    table.add_row("images", f"{counts}, {record.n_test:,} test")
    validation = f"{format_metric_name(record.metric)} {_format(record.validation)} in validation"
    table.add_row("epochs", f"{record.epochs}, best after {record.best_epoch}, {validation}")
    for row in _list_test_rows(record):
        table.add_row(*row)
    table.add_row("saved", make_text(saved))
    console = make_console(stderr=False)
    console.print(table)
    _show_labels(record.labels)
    _show_confusion(record.names, record.confusion)
    passes = f"{record.images_run:,} images went through the network"
    console.print(f"{passes}, {record.seconds:.0f} s.", style="dim")


def _list_test_rows(record: Any) -> list[tuple[str, str]]:
    """List what is said of the test images: metrics, a constant guess, and intervals."""
    rows = _list_metric_rows(record.metrics)
    guess = record.baseline.get(record.metric)
    if guess is not None:
        rows.append(
            (
                "no image",
                f"{format_metric_name(record.metric)} {_format(guess)} by a constant guess",
            )
        )
    if record.interval is not None:
        low, high = record.interval["realised_ci"]
        asked = f"asked to cover {record.interval['coverage']:.0%}"
        covered = f"cover {record.interval['realised']:.1%} of the test ({low:.1%} to {high:.1%})"
        rows.append(("intervals", f"± {record.interval['margin']:.4g}: {asked}, {covered}"))
    return rows


def show_target_comparison(
    comparison: TargetComparison, joined: Mapping[str, str], commands: Mapping[str, str]
) -> None:
    """Print a table for each task, best head first.

    Parameters
    ----------
    comparison : TargetComparison
    joined : mapping of str to str
        As `classify.data.sets.cache_set.label_joined_layers` returns it.
    commands : mapping of str to str
        The command that saves the best head, by task.
    """
    console = make_console(stderr=False)
    for task, best in comparison.best_per_task.items():
        own = [record for record in comparison.records if record.task == task]
        console.print(_build_leaderboard(own, best, joined))
        guess = best.baseline.get(best.metric)
        better = "lower" if best.metric in LOWER_IS_BETTER else "higher"
        console.print(
            f"val, test: {format_metric_name(best.metric)}, {better} is better.", style="dim"
        )
        if guess is not None:
            console.print(
                f"A guess without an image has {format_metric_name(best.metric)} {_format(guess)}.",
                style="dim",
            )
    n_heads = len(comparison.records)
    heads = "One head" if n_heads == 1 else f"{n_heads:,} heads"
    console.print(
        f"{heads} from one cache in {comparison.seconds:.1f} s; {NO_IMAGE_READ}", style="bold"
    )
    if comparison.n_reused:
        console.print(f"{comparison.n_reused:,} of them had been trained before and were kept.")
    console.print(
        "* best by validation, whose val is the best of several and so rather too good; ~ not "
        "distinguishable from it on these test images; < worse, allowing for the number of heads; "
        "no mark: between the two. Intervals leave out the variance of training.",
        style="dim",
    )
    for task, best in comparison.best_per_task.items():
        place = joined.get(best.place, best.layer)
        console.print(make_text(f"Best by validation, {task}: {best.head} on {place}."))
        if task in commands:
            console.print(make_text(f"  {commands[task]}"), soft_wrap=True)


def _build_leaderboard(
    records: list[TargetResult], best: TargetResult, joined: Mapping[str, str]
) -> Table:
    title = (
        f"{best.task}: {_count_names(best)}, {best.n_train:,} training and {best.n_test:,} test "
        "images"
    )
    table = Table(title=make_text(title), title_justify="left", title_style="bold", **TABLE_STYLE)
    for heading in ("", "head"):
        table.add_column(heading, no_wrap=True)
    table.add_column("layer", overflow="fold")
    for heading in ("val", "test", "95 % CI", "chosen", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in rank_target_results(records, best):
        is_best = record is best
        mark = "*" if is_best else "<" if record.worse else ""
        mark = "~" if not is_best and record.distinguishable is False else mark
        interval = record.test_ci
        table.add_row(
            mark,
            make_text(record.head),
            make_text(joined.get(record.place, record.layer)),
            _format(record.validation_metric),
            _format(record.test_metric),
            "-" if interval is None else f"{_format(interval[0])}–{_format(interval[1])}",
            make_text(_format_settings(record).replace(" = ", " ")),
            f"{record.seconds:.1f}",
            style="bold green" if is_best else None,
        )
    return table


def show_target_evaluation(metrics: dict[str, Any]) -> None:
    """Print the metrics of a saved head, each with its interval.

    Parameters
    ----------
    metrics : dict of str to object
        As `classify.evaluate` returns it.
    """
    table = _make_grid()
    table.add_row("task", make_text(metrics["task"]))
    table.add_row("head", make_text(f"{metrics['head']} on {metrics['layer']}"))
    table.add_row("images", f"{metrics['n_test']:,}")
    for row in _list_metric_rows(metrics):
        table.add_row(*row)
    if metrics.get("realised") is not None:
        asked = f"asked to cover {metrics['coverage']:.0%}"
        table.add_row("intervals", f"{asked}, cover {metrics['realised']:.1%}")
    make_console(stderr=False).print(table)
    _show_labels(metrics.get("labels"))


def _make_grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # the names of layers stay whole
    return table


def _list_metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in metrics.items():
        interval = metrics.get(f"{name}_ci")
        if isinstance(value, float) and interval is not None:
            low, high = interval
            text = f"{_format(value)} (95 % interval {_format(low)} to {_format(high)})"
            rows.append((format_metric_name(name), text))
    return rows


def _show_labels(labels: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Print the labels that are told worst."""
    if not labels:
        return
    table = Table(**TABLE_STYLE)
    table.add_column("label", overflow="fold")
    for heading in ("images", "precision", "recall", "F1", "average precision", "95 % CI"):
        table.add_column(heading, justify="right")
    measured = {name: s for name, s in labels.items() if s["average_precision"] is not None}
    ordered = sorted(measured, key=lambda name: float(measured[name]["average_precision"]))
    for name in ordered[:MAX_LISTED]:
        scores = measured[name]
        low, high = scores["average_precision_ci"]
        table.add_row(
            make_text(name),
            f"{scores['positives']:,}",
            *(_format(scores[key]) for key in ("precision", "recall", "f1", "average_precision")),
            f"{_format(low)}–{_format(high)}",
        )
    console = make_console(stderr=False)
    console.print(table)
    if len(labels) > MAX_LISTED:
        console.print(f"{len(labels):,} labels; --json lists them all.", style="dim")


def _show_confusion(names: list[str], confusion: list[list[int]] | None) -> None:
    if confusion is None or len(names) > MAX_LISTED:
        return
    table = Table(title="True grade, and the grades it was taken for", **TABLE_STYLE)
    table.add_column("")
    for name in names:
        table.add_column(make_text(name), justify="right")
    for name, row in zip(names, confusion, strict=True):
        table.add_row(make_text(name), *(f"{count:,}" for count in row))
    make_console(stderr=False).print(table)


def _count_names(record: Any) -> str:
    if record.kind == NUMBER:
        return "numbers"
    return f"{len(record.names):,} {KIND_NOUNS[record.kind]}"


def _format_settings(record: TargetResult) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in record.settings.items())


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
