"""Options that verbs of both command lines share."""

from pathlib import Path
from typing import Annotated

import typer

CacheFile = Annotated[
    Path, typer.Argument(metavar="C.h5", help="A feature cache, made by `featurize run`.")
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE|FOLDER",
        help="As resnet50, timm:ARCH.TAG, hf-hub:ORG/NAME, lite0, seedling. [default: the cache's, "
        "or resnet50]",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.json", help="Preprocessing of a weights name, or from a .json FILE."
    ),
]
WeightsFile = Annotated[
    str | None, typer.Option("--weights", metavar="FILE", help="Where the weights FILE is now.")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where the network runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
