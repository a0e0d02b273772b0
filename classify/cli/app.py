"""The command line of stage 2, one verb for one public function. Thin.

What is heavy is imported inside the verbs: ``--help`` must answer at once.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from classify.cli import networks
from classify.cli.console import (
    EXIT_INCOMPLETE,
    handle_errors,
    open_csv_stdout,
    progress_bar,
    show_json,
    show_notices,
    spinner,
)
from classify.cli.options import (
    DEFAULT_HEADS,
    HEAD_NAMES,
    Cache,
    ClassWeight,
    Column,
    Debug,
    Folds,
    HeadFile,
    Heads,
    Json,
    Labels,
    LabelsLevel,
    Layers,
    MetricOption,
    Prepare,
    Repeats,
    Seed,
    Shots,
    Similarity,
    Size,
    Tables,
    TestSize,
)

app = typer.Typer(
    name="classify",
    help="Train heads on a feature cache: seconds each, no image read, no forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import classify

        print(f"classify (headgraft) {classify.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    cache: Cache,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="H", help="Where to save the head.")
    ],
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    head: Annotated[str, typer.Option(help=f"One of {HEAD_NAMES}.")] = "softmax",
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="L[,L2]",
            help="Several are joined; if not given the deepest or all, what validates better.",
        ),
    ] = None,
    class_weight: ClassWeight = None,
    prepare: Prepare = None,
    metric: MetricOption = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one head, its setting chosen by validation, and save it."""
    with handle_errors(debug):
        from classify.heads.io import check_head_file, save_head

        check_head_file(output)
        with spinner(f"training {head}"):
            from classify.experiments.fit import fit as fit_head

            fitted, record = fit_head(
                cache,
                labels,
                head,
                layer,
                column=column,
                labels_level=labels_level,
                class_weight=class_weight,
                prepare=prepare,
                metric=metric,
                test_size=test_size,
                seed=seed,
            )
        save_head(fitted, output)
        show_notices(fitted.notices)
        if json:
            show_json(record.to_dict())
        else:
            from classify.cli.tables import show_fit

            show_fit(record, str(output))


@app.command()
def compare(
    cache: Cache,
    labels: Tables = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    heads: Heads = DEFAULT_HEADS,
    layers: Layers = "each,joined",
    class_weight: ClassWeight = None,
    prepare: Prepare = None,
    metric: MetricOption = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    repeats: Repeats = None,
    shots: Shots = None,
    folds: Folds = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every head on every layer for every task, and rank them by validation.

    With --repeats, --shots or --folds on several draws of training images: then intervals say how
    much another draw would change.
    """
    with handle_errors(debug):
        with spinner("reading the cache"):
            from classify.data.features import open_cache
            from classify.experiments.compare import Comparison, check_data
            from classify.experiments.compare import compare as compare_heads

            opened = open_cache(cache)
        with progress_bar() as progress:
            found = compare_heads(
                opened,
                labels or None,
                heads,
                layers,
                column=column,
                labels_level=labels_level,
                class_weight=class_weight,
                prepare=prepare,
                metric=metric,
                test_size=test_size,
                seed=seed,
                repeats=repeats,
                shots=shots,
                folds=folds,
                progress=progress,
            )
        all_layers = "+".join(opened.layers)
        if not isinstance(found, Comparison):
            show_notices(found.notices)
            if json:
                show_json(found.to_dict())
            else:
                from classify.cli.repeat_tables import show_repeated_comparison

                show_repeated_comparison(found, all_layers)
            return
        with spinner("checking the data"):
            checks = check_data(opened, found)
        show_notices(found.notices)
        if json:
            told = {task: checked.to_dict() for task, checked in checks.items()}
            show_json(found.to_dict() | {"checks": told})
        else:
            from classify.cli.tables import show_comparison

            show_comparison(found, checks, all_layers)


@app.command()
def advise(
    cache: Cache,
    labels: Labels = None,
    size: Size = None,
    similarity: Similarity = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which of four strategies a task asks for, with the evidence; needs several layers."""
    with handle_errors(debug):
        with progress_bar() as progress:
            from classify.strategy.advise import advise as advise_on

            found = advise_on(
                cache,
                labels,
                size=size,
                similarity=similarity,
                column=column,
                labels_level=labels_level,
                test_size=test_size,
                seed=seed,
                progress=progress,
            )
        show_notices(found.notices)
        saving = None
        if found.strategy == "truncated-probe":
            from classify.strategy.cut_cost import measure_cut_cost

            with spinner(f"measuring what a cut at {found.layer} saves"):
                saving = measure_cut_cost(cache, found.layer)
        if json:
            show_json(found.to_dict() | ({} if saving is None else {"saving": saving.to_dict()}))
        else:
            from classify.cli.tables import show_advice

            show_advice(found, saving)


@app.command()
def predict(
    head: HeadFile,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES|C.h5", help="A folder, an image, or a cache.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F.csv", help="Else standard output.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many labels each image gets.")] = 1,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The weights file that the backbone came from."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Label images with a saved head: CSV of path,label,probability."""
    with handle_errors(debug):
        from classify.errors import OutputError
        from classify.heads.inference import check_predictions_file
        from classify.heads.inference import predict as predict_images
        from classify.heads.io import load_head
        from featurize.cli.progress import ProgressLine
        from featurize.files import atomic_write

        if output == Path("/dev/stdout"):
            output = None
        target = None if output is None else check_predictions_file(output, head, images, weights)
        live = ProgressLine()
        found = predict_images(
            load_head(head), images, weights=weights, top=top, say=live.print_line, report=live
        )
        live.clear()
        if json:
            show_json(found.to_dict())
        elif target is None:
            found.write_csv(open_csv_stdout())
        else:
            with atomic_write(target, "w", newline="", encoding="utf-8", error=OutputError) as file:
                found.write_csv(file)
        show_notices(f"{path}: {reason}; no label" for path, reason in found.failures.items())
        if output is not None and not json:
            show_notices([f"{len(found.paths):,} images labelled in {output}"])
        if found.failures:
            raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def evaluate(
    head: HeadFile,
    cache: Cache,
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a saved head on labelled images that it was not trained on."""
    with handle_errors(debug):
        with spinner("scoring"):
            from classify.heads.inference import evaluate as evaluate_head
            from classify.heads.io import load_head

            found, notices = evaluate_head(
                load_head(head), cache, labels, column=column, labels_level=labels_level, seed=seed
            )
        show_notices(notices)
        if json:
            show_json(found)
        else:
            from classify.cli.tables import show_evaluation

            show_evaluation(found)


@app.command()
def report(
    cache: Cache,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="R.html", help="The page, one file.")
    ],
    labels: Tables = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The image folder, for thumbnails.")
    ] = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    heads: Heads = DEFAULT_HEADS,
    layers: Layers = "each,joined",
    class_weight: ClassWeight = None,
    prepare: Prepare = None,
    metric: MetricOption = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Compare heads, and show it as one HTML page that needs no network."""
    with handle_errors(debug):
        with spinner("reading the cache"):
            from classify.data.features import open_cache
            from classify.experiments.compare import compare as compare_heads
            from classify.report.write import check_report_path, write_report
            from classify.strategy.advise import advise_from_comparison

            check_report_path(output, images)
            opened = open_cache(cache)
        with progress_bar() as progress:
            found = compare_heads(
                opened,
                labels or None,
                heads,
                layers,
                column=column,
                labels_level=labels_level,
                class_weight=class_weight,
                prepare=prepare,
                metric=metric,
                test_size=test_size,
                seed=seed,
                progress=progress,
            )
        with spinner("drawing the learning curve"):
            advice, left_out = advise_from_comparison(
                opened,
                found,
                labels or (),
                column=column,
                labels_level=labels_level,
                test_size=test_size,
                seed=seed,
            )
        show_notices([*found.notices, *left_out])
        with spinner("drawing the page"):
            sources = {
                task.name: str(table)
                for task, table in zip(found.tasks, labels or [], strict=bool(labels))
            }
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            write_report(
                output,
                opened,
                found,
                images=images,
                command=command,
                sources=sources,
                seed=seed,
                advice=advice,
            )
        show_notices([f"the report is in {output}"])


app.command()(networks.finetune)
app.command()(networks.auto)
