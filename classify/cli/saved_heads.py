"""The verbs of `classify` that use a saved head: `predict` and `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from classify.cli.options import Column, Columns, HeadFile, Labels, LabelsLevel, Seed
from featurize.cli.console import (
    EXIT_INCOMPLETE,
    handle_errors,
    open_csv_stdout,
    print_json,
    show_notices,
)
from featurize.cli.options import CacheFile, Debug, Json, WeightsFile
from featurize.cli.progress import ProgressDisplay


def predict(
    head: HeadFile,
    images: Annotated[
        str,
        typer.Argument(metavar="IMAGES|C.h5", help="As for `featurize run`; an image; a cache."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F.csv", help="Else standard output.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many labels each image gets.")] = 1,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="No label where the head is not sure."),
    ] = False,
    weights: WeightsFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Label images with a saved head: CSV of path,label,probability; path,number; path,grade."""
    with handle_errors(debug, json):
        from classify.errors import OutputError
        from classify.heads.inference.any_kind import predict as predict_images
        from classify.heads.predictions import check_predictions_file
        from classify.heads.targets.saved import load_head
        from featurize.files import atomic_write

        if output == Path("/dev/stdout"):
            output = None
        target = None if output is None else check_predictions_file(output, head, images, weights)
        with ProgressDisplay() as display:
            predictions = predict_images(
                load_head(head),
                images,
                weights=weights,
                top=top,
                abstain=abstain,
                say=display.say,
                report=display.report,
            )
        if target is not None:
            with atomic_write(target, "w", newline="", encoding="utf-8", error=OutputError) as file:
                predictions.write_csv(file)
        elif not json:
            predictions.write_csv(open_csv_stdout())
        if json:
            print_json(predictions.to_dict())
        show_notices(predictions.notices)
        if output is not None:
            show_notices([f"{len(predictions.paths):,} images labelled in {output}"])
        if predictions.failures:
            raise typer.Exit(EXIT_INCOMPLETE)


def evaluate(
    head: HeadFile,
    cache: CacheFile,
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a saved head on labelled images that it was not trained on."""
    with handle_errors(debug, json):
        with ProgressDisplay("scoring"):
            from classify.heads.inference.any_kind import evaluate as evaluate_head
            from classify.heads.targets.saved import load_head

            metrics, notices = evaluate_head(
                load_head(head),
                cache,
                labels,
                column=column,
                labels_level=labels_level,
                columns=columns,
                seed=seed,
            )
        show_notices(notices)
        if json:
            print_json(metrics)
        elif "kind" in metrics:
            from classify.cli.tables.targets import show_target_evaluation

            show_target_evaluation(metrics)
        else:
            from classify.cli.tables.classes import show_evaluation

            show_evaluation(metrics)
