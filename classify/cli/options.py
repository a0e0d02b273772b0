"""Options of several verbs of `classify`. Those of both commands are in `featurize.cli.options`."""

from pathlib import Path
from typing import Annotated

import typer

# As in `classify.heads.registry`, which imports scikit-learn. A test compares the two.
HEAD_NAMES = "softmax, linear-svm, rbf-svm, ridge, lda, ncm, knn, or package.module:Class"
DEFAULT_HEADS = "softmax,linear-svm,ridge,lda,ncm"

CacheFiles = Annotated[
    list[Path],
    typer.Argument(metavar="C.h5", help="Feature caches; several of the same images."),
]
Column = Annotated[str, typer.Option(help="The column of the table that holds the labels.")]
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
    str | None, typer.Option(metavar="balanced", help="Every class counts alike, small or large.")
]
Prepare = Annotated[
    str | None,
    typer.Option(metavar="root-l2|standardise", help="How features are prepared; else as is best."),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="M",
        help="To choose and rank by: accuracy, balanced_accuracy, macro_f1, log_loss, auroc, "
        "average_precision, or COSTS.csv.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="T.csv", help="Table path,label[,split][,group]; else folder names."),
]
Tables = Annotated[
    list[Path] | None, typer.Option(metavar="T.csv", help="A label table; once for each task.")
]
Heads = Annotated[str, typer.Option(metavar="a,b", help=f"Of {HEAD_NAMES}.")]
Layers = Annotated[
    str,
    typer.Option(
        metavar="each,joined|A,B",
        help="Every layer, all at once, or these; A+B joins, CACHE:A is of one cache.",
    ),
]
Size = Annotated[
    str | None, typer.Option(metavar="small|large", help="If you know better than the count.")
]
Similarity = Annotated[
    str | None,
    typer.Option(metavar="similar|different", help="If you know better than the measurement."),
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
