"""Options of several verbs of `classify`. Those of both commands are in `featurize.cli.options`."""

import csv
from pathlib import Path
from typing import Annotated

import typer

from featurize.cli.completion import (
    complete_choice,
    complete_list,
    complete_word,
    get_option,
    list_cached_layers,
)

# As in `classify.heads.registry`, which imports scikit-learn. A test compares the two.
HEAD_NAMES = (
    "softmax, softmax-lda, linear-svm, rbf-svm, ridge, lda, ncm, knn, or package.module:Class"
)
TARGET_HEAD_NAMES = "ordinal, kernel-ridge"
KINDS = ("class", "multi", "number", "grade")
DEFAULT_HEADS = "softmax,linear-svm,ridge,lda,ncm"
# As in `classify.evaluation.selection_metric`, which imports scikit-learn too.
METRIC_NAMES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "auroc",
    "average_precision",
)
MAX_HEADER_CHARS = 10_000


def _list_heads(ctx: typer.Context) -> list[str]:
    return HEAD_NAMES.split(", ")


def _list_layer_words(ctx: typer.Context) -> list[str]:
    return ["each", "joined", *list_cached_layers(ctx)]


def _list_columns(ctx: typer.Context) -> list[str]:
    """List the columns of the table named so far."""
    with Path(get_option(ctx, "labels")).open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader([file.readline(MAX_HEADER_CHARS)]))


CacheFiles = Annotated[
    list[Path],
    typer.Argument(metavar="C.h5", help="Feature caches; several of the same images."),
]
Column = Annotated[
    str,
    typer.Option(
        autocompletion=complete_word(_list_columns),
        help="The column of the table that holds the labels.",
    ),
]
LabelsLevel = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="The folder that names the label, 1 for the topmost; found out if not given.",
    ),
]
TestSize = Annotated[
    float, typer.Option(help="Share to hold out where neither table nor folders have a split.")
]
ClassWeight = Annotated[
    str | None,
    typer.Option(
        metavar="balanced",
        autocompletion=complete_choice("balanced"),
        help="Every class counts alike, small or large.",
    ),
]
Prepare = Annotated[
    str | None,
    typer.Option(
        metavar="root-l2|standardise",
        autocompletion=complete_choice("root-l2", "standardise"),
        help="How features are prepared; else as is best.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="M",
        autocompletion=complete_choice(*METRIC_NAMES),
        help="To choose and rank by: accuracy, balanced_accuracy, macro_f1, log_loss, auroc, "
        "average_precision, or COSTS.csv with truth,predicted,cost.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="class|multi|number|grade",
        autocompletion=complete_choice(*KINDS),
        help="What the labels are: one class an image, any number of labels (a|b), a number, or "
        "ordered classes; recognised if not given.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="a,b,c",
        autocompletion=complete_list(_list_columns),
        help="Columns of 0 and 1, one for each of several labels.",
    ),
]
Order = Annotated[
    str | None,
    typer.Option(metavar="mild,severe", help="The grades, from the lowest; else numbers."),
]
Coverage = Annotated[
    float | None,
    typer.Option(
        metavar="0.9",
        help="Share of new images that sets and intervals shall cover; 0.9 if not given.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="T.csv",
        help="Table path,label[,split][,group]; else what came with the images, or folder names.",
    ),
]
Tables = Annotated[
    list[Path] | None, typer.Option(metavar="T.csv", help="A label table; once for each task.")
]
Head = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_word(_list_heads),
        help=f"One of {HEAD_NAMES}; softmax-lda for classes if not given. Other kinds of labels "
        f"have {TARGET_HEAD_NAMES} too.",
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(
        metavar="a,b",
        autocompletion=complete_list(_list_heads),
        help=f"Of {HEAD_NAMES}; {DEFAULT_HEADS} for classes if not given. Other kinds of labels "
        f"have {TARGET_HEAD_NAMES} too.",
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        metavar="L[,L2]",
        autocompletion=complete_list(list_cached_layers),
        help="Several are joined; if not given the deepest, three or all, what validates best.",
    ),
]
Layers = Annotated[
    str,
    typer.Option(
        metavar="each,joined|A,B",
        autocompletion=complete_list(_list_layer_words),
        help="Every layer, all at once, or these; A+B joins, CACHE:A is of one cache.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="small|large",
        autocompletion=complete_choice("small", "large"),
        help="If you know better than the count.",
    ),
]
Similarity = Annotated[
    str | None,
    typer.Option(
        metavar="similar|different",
        autocompletion=complete_choice("similar", "different"),
        help="If you know better than the measurement.",
    ),
]
ZeroShotHeads = Annotated[
    list[Path] | None,
    typer.Option(metavar="H", help="A head of `classify zeroshot`, ranked beside the trained."),
]
HeadFile = Annotated[Path, typer.Argument(metavar="H", help="A head saved by `classify fit`.")]
Seed = Annotated[int, typer.Option(help="Decides which images are held out, and the folds.")]
Repeats = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="On so many random splits; with --shots so many draws, 5 if not given.",
    ),
]
Shots = Annotated[
    str | None,
    typer.Option(
        metavar="1,2,4,8,16",
        help="On so many training images of each class, drawn N times; the same test images.",
    ),
]
Folds = Annotated[
    int | None,
    typer.Option(metavar="K", help="Test every image once, in K folds; with --repeats N times."),
]
