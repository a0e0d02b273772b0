"""Options of both command lines, and those of `featurize` whose words a shell offers."""

from pathlib import Path
from typing import Annotated

import typer

from featurize.backbones.licences import LICENCE_KINDS
from featurize.cli.completion import (
    complete_choice,
    complete_list,
    complete_word,
    list_backbones,
    list_cached_layers,
    list_engines,
    list_stages,
)
from featurize.layer_spec import POOLS

CacheFile = Annotated[
    Path, typer.Argument(metavar="C.h5", help="A feature cache, made by `featurize run`.")
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE|FOLDER",
        autocompletion=complete_word(list_backbones),
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
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:N]",
        autocompletion=complete_choice("auto", "cpu", "cuda"),
        help="Where the network runs.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

# --- of `featurize` alone ------------------------------------------------------------------

Layers = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_list(list_stages),
        help="last, auto, or names: layer3,layer4:max. [default: last]",
    ),
]
CachedLayers = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_list(list_cached_layers), help="Layers to take. [default: all]"
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_choice(*POOLS),
        help="avg, max, avgmax, none or token. [default: avg]",
    ),
]
DType = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_choice("float32", "float16"),
        help="Stored as float32 or float16. [default: float32]",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_choice("float32", "tf32", "bf16", "fp16"),
        help="Computed in float32, tf32, bf16, fp16. [default: float32]",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        autocompletion=complete_word(list_engines),
        help="auto, eager, compile, onnxruntime or cuda.",
    ),
]
Decode = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_choice("exact", "quick", "fast", "fastest"),
        help="exact, quick, fast or fastest: how images are decoded. [default: exact]",
    ),
]
Licence = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_choice(*LICENCE_KINDS),
        help="Only weights that are permissive, non-commercial, restricted, unknown.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of a table or list: the column of images, paths or URLs."),
]
Split = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of tables, lists and shards: only this split, as train."),
]
Component = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of samples with several images: which one, as left.jpg."),
]
Root = Annotated[
    str | None,
    typer.Option(metavar="DIR|URL", help="Where the paths of a list begin. [default: its folder]"),
]
Scratch = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="For copies of remote archives, so that each comes once."),
]
