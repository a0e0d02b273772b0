"""The command `classify`: each verb calls one public function and prints its result.

The docstring of a verb is its ``--help`` text. Its parameters are documented by their options.
Heavy modules are imported inside the verbs, so that ``--help`` is fast.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from classify.cli import groups, networks, saved_heads
from classify.cli.options import (
    CacheFiles,
    ClassWeight,
    Column,
    Columns,
    Coverage,
    Folds,
    Head,
    Heads,
    Kind,
    Labels,
    LabelsLevel,
    Layer,
    Layers,
    MetricOption,
    Order,
    Prepare,
    Repeats,
    Seed,
    Shots,
    Similarity,
    Size,
    Tables,
    TestSize,
    ZeroShotHeads,
)
from featurize.cli.command import make_app
from featurize.cli.console import (
    handle_errors,
    print_json,
    show_notices,
)
from featurize.cli.options import CacheFile, Debug, Json
from featurize.cli.progress import ProgressDisplay

app = make_app(
    "classify", "Train heads on a feature cache: seconds each, no image read, no forward pass."
)


@app.command()
def fit(
    cache: Annotated[
        list[Path], typer.Argument(metavar="C.h5", help="One cache, made by `featurize run`.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="H", help="Where to save the head.")
    ],
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    kind: Kind = None,
    columns: Columns = None,
    order: Order = None,
    head: Head = None,
    layer: Layer = None,
    class_weight: ClassWeight = None,
    prepare: Prepare = None,
    metric: MetricOption = None,
    coverage: Coverage = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one head, its setting chosen by validation, and save it."""
    with handle_errors(debug, json):
        from classify.heads.io import check_head_file
        from classify.heads.targets.record import TargetResult
        from classify.heads.targets.saved import save_head

        check_head_file(output)
        with ProgressDisplay(f"training {head or 'a head'}"):
            from classify.experiments.targets.any_kind import fit as fit_head

            fitted, record = fit_head(
                cache[0] if len(cache) == 1 else cache,  # type: ignore[arg-type]
                labels,
                head,
                layer,
                column=column,
                labels_level=labels_level,
                kind=kind,
                columns=columns,
                order=order,
                class_weight=class_weight,
                prepare=prepare,
                metric=metric,
                coverage=coverage,
                test_size=test_size,
                seed=seed,
            )
        save_head(fitted, output)
        show_notices(fitted.notices)
        if json:
            print_json(record.to_dict())
        elif isinstance(record, TargetResult):
            from classify.cli.tables.targets import show_target_fit

            show_target_fit(record, str(output))
        else:
            from classify.cli.tables.classes import show_fit

            show_fit(record, str(output))


@app.command()
def compare(
    cache: CacheFiles,
    labels: Tables = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    kind: Kind = None,
    columns: Columns = None,
    order: Order = None,
    heads: Heads = None,
    layers: Layers = "each,joined",
    class_weight: ClassWeight = None,
    prepare: Prepare = None,
    metric: MetricOption = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    zeroshot: ZeroShotHeads = None,
    repeats: Repeats = None,
    shots: Shots = None,
    folds: Folds = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every head on every layer for every task, and rank them by validation.

    With several caches of the same images, one for each backbone, over all of them. With --repeats,
    --shots or --folds on several draws of training images: then intervals say how much another draw
    would change.
    """
    with handle_errors(debug, json):
        with ProgressDisplay("reading the cache") as display:
            from classify.data.sets.cache_set import label_joined_layers, open_caches
            from classify.experiments.compare import Comparison, check_data
            from classify.experiments.repeats import RepeatedComparison
            from classify.experiments.targets.any_kind import compare as compare_heads

            opened = open_caches(cache)
            comparison = compare_heads(
                opened,
                labels or None,
                heads,
                layers,
                column=column,
                labels_level=labels_level,
                kind=kind,
                columns=columns,
                order=order,
                class_weight=class_weight,
                prepare=prepare,
                metric=metric,
                test_size=test_size,
                seed=seed,
                zeroshot=zeroshot or (),
                repeats=repeats,
                shots=shots,
                folds=folds,
                report=display.report,
            )
            checks = {}
            if isinstance(comparison, Comparison):
                display.begin("checking the data")
                checks = check_data(opened, comparison)
        show_notices(comparison.notices)
        joined = label_joined_layers(opened)
        if json and isinstance(comparison, Comparison):
            checks_by_task = {task: checked.to_dict() for task, checked in checks.items()}
            print_json(comparison.to_dict() | {"checks": checks_by_task})
        elif json:
            print_json(comparison.to_dict())
        elif isinstance(comparison, RepeatedComparison):
            from classify.cli.tables.repeats import show_repeated_comparison

            show_repeated_comparison(comparison, joined)
        else:
            from classify.cli.tables.classes import show_comparison
            from classify.cli.tables.places import format_fit_command

            options = {
                **{"kind": kind, "columns": columns, "order": order},
                "column": column if column != "label" else None,
                **{"labels-level": labels_level, "class-weight": class_weight},
                **{"prepare": prepare, "metric": metric},
                "test-size": test_size if test_size != 0.2 else None,
                "seed": seed or None,
            }
            commands = {
                task: format_fit_command(best, cache[0], labels or [], options)
                for task, best in comparison.best_per_task.items()
                if len(cache) == 1 and best.n_train
            }
            if isinstance(comparison, Comparison):
                show_comparison(comparison, checks, joined, commands)
            else:
                from classify.cli.tables.targets import show_target_comparison

                show_target_comparison(comparison, joined, commands)


@app.command()
def advise(
    cache: CacheFile,
    labels: Labels = None,
    size: Size = None,
    similarity: Similarity = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    kind: Kind = None,
    columns: Columns = None,
    order: Order = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which of four strategies a task asks for, with the evidence; needs several layers."""
    with handle_errors(debug, json):
        cut_cost = None
        with ProgressDisplay("reading the cache") as display:
            from classify.strategy.cut_cost import measure_cut_cost
            from classify.strategy.targets.advise import TargetAdvice
            from classify.strategy.targets.any_kind import advise as advise_on

            advice = advise_on(
                cache,
                labels,
                size=size,
                similarity=similarity,
                column=column,
                labels_level=labels_level,
                kind=kind,
                columns=columns,
                order=order,
                test_size=test_size,
                seed=seed,
                report=display.report,
            )
            if advice.strategy == "truncated-probe":
                display.begin(f"measuring what a cut at {advice.layer} saves")
                cut_cost = measure_cut_cost(cache, advice.layer)
        show_notices(advice.notices)
        if json:
            print_json(
                advice.to_dict() | ({} if cut_cost is None else {"saving": cut_cost.to_dict()})
            )
        elif isinstance(advice, TargetAdvice):
            from classify.cli.tables.target_advice import show_target_advice

            show_target_advice(advice, cut_cost)
        else:
            from classify.cli.tables.classes import show_advice

            show_advice(advice, cut_cost)


@app.command()
def report(
    cache: CacheFiles,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="R.html", help="The page, one file.")
    ],
    labels: Tables = None,
    images: Annotated[
        str | None, typer.Option(metavar="IMAGES", help="Those of the cache, for thumbnails.")
    ] = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    kind: Kind = None,
    columns: Columns = None,
    order: Order = None,
    heads: Heads = None,
    layers: Layers = "each,joined",
    class_weight: ClassWeight = None,
    prepare: Prepare = None,
    metric: MetricOption = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    zeroshot: ZeroShotHeads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare heads, and show it as one HTML page that needs no network.

    With --json the keys are those of `compare`, and `output` and, for each task, `advice`.
    """
    with handle_errors(debug, json):
        with ProgressDisplay("reading the cache") as display:
            from classify.data.sets.cache_set import open_caches
            from classify.experiments.compare import Comparison
            from classify.experiments.repeats import RepeatedComparison
            from classify.experiments.targets.any_kind import compare as compare_heads
            from classify.report.write import check_report_path, write_report
            from classify.strategy.advise import Advice
            from classify.strategy.advise_best import advise_on_best

            check_report_path(output, images)
            opened = open_caches(cache)
            comparison = compare_heads(
                opened,
                labels or None,
                heads,
                layers,
                column=column,
                labels_level=labels_level,
                kind=kind,
                columns=columns,
                order=order,
                class_weight=class_weight,
                prepare=prepare,
                metric=metric,
                test_size=test_size,
                seed=seed,
                zeroshot=zeroshot or (),
                report=display.report,
            )
            if isinstance(comparison, RepeatedComparison):
                raise TypeError("a report is of one split")  # which no option asks for
            advice: dict[str, Advice] = {}
            left_out: list[str] = []
            if isinstance(comparison, Comparison):
                display.begin("drawing the learning curve")
                advice, left_out = advise_on_best(
                    opened,
                    comparison,
                    labels or (),
                    column=column,
                    labels_level=labels_level,
                    test_size=test_size,
                    seed=seed,
                )
            display.begin("drawing the page")
            task_names = (task.name for task in comparison.tasks)
            write_report(
                output,
                opened,
                comparison,
                images=images,
                command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                sources=dict(zip(task_names, map(str, labels or ()), strict=bool(labels))),
                seed=seed,
                advice=advice,
            )
        show_notices([*comparison.notices, *left_out])
        if json:
            advice_by_task = {task: advised.to_dict() for task, advised in advice.items()}
            print_json(comparison.to_dict() | {"output": str(output), "advice": advice_by_task})
        else:
            show_notices([f"the report is in {output}"])


app.command()(saved_heads.predict)
app.command()(saved_heads.evaluate)
app.command()(groups.groups)
app.command()(networks.finetune)
app.command()(networks.auto)
app.command()(networks.zeroshot)
